"""A part in a process of its own: the same methods, events and status, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import daemon.parts
from buildsys.run import spawn
from common.errors import MixosError
from daemon.core import manifest
from daemon.core.manifest import Manifest, ManifestError, Process
from daemon.core.method import Caller, Role
from daemon.core.part import Context, cgroups
from daemon.core.parts import source
from daemon.core.worker import worker as workers
from daemon.core.worker.channel import MAX_UNREAD, Channel
from daemon.core.worker.forks import Forks
from daemon.core.worker.worker import Worker
from tests.daemons import Running, running
from tests.hostpackages import ROOT
from tests.waiting import PATIENCE
from tests.waiting import eventually as eventually_

CALLER = Caller(Role.ADMIN, 0, 0, 1, "root", "local")
PROCESS = Process("nobody", "none", memory=256 << 20, runs="kettleprocess:Bare")

MANIFEST = """
from daemon.core.manifest import Manifest, Process

MANIFEST = Manifest(
    name="kettle",
    part="part:Kettle",
    after=("config",),
    process=Process("nobody", "none", memory=256 << 20, hears=("service.",)),
)
"""
PART = """
import asyncio
import os
import pathlib
import time
from typing import Any

from pydantic import SecretStr

from common.errors import NotFoundError
from common.tomlfile import Strict
from daemon.core.method import ADMINS, Method

if (pathlib.Path(__file__).parent / "broken-import").exists() and "mixosd:kettle" in __import__("sys").argv[0]:
    raise ImportError("as asked")


class Boil(Strict):
    degrees: int = 100
    word: SecretStr | None = None
    path: pathlib.PurePath = pathlib.PurePath("/")
    parts: tuple[str, ...] = ()


class Kettle:
    name = "kettle"

    def __init__(self, context):
        self.context = context
        self.calls = 0
        self.heard = []

    def methods(self):
        if (self.context.etc / "broken-methods").exists():
            raise ValueError("as asked")
        return [
            Method("kettle.pid", "Where it runs.", self.pid),
            Method("kettle.boil", "Boil.", self.boil, ADMINS, Boil, changes=True),
            Method("kettle.fail", "Fail.", self.fail),
            Method("kettle.broken", "A defect.", self.broken),
            Method("kettle.wait", "Wait.", self.wait, seconds=30.0),
            Method("kettle.hang", "Stop the loop.", self.hang, seconds=30.0),
            Method("kettle.garbage", "Write garbage.", self.garbage, seconds=30.0),
            Method("kettle.count", "Count.", self.count, params=Boil),
            Method("kettle.tell", "Publish.", self.tell, params=Boil),
            Method("kettle.strange", "Publish what is not its own.", self.strange),
            Method("kettle.events", "What it has heard.", self.events),
            Method("kettle.large", "Answer too much.", self.large),
        ]

    async def start(self):
        if (self.context.etc / "broken-start").exists():
            raise NotFoundError("no water", reason="kettle-empty")
        if (self.context.etc / "dead-start").exists():
            os._exit(3)
        self.task = asyncio.create_task(self.listen())

    async def listen(self):
        async for event in self.context.events.listen():
            self.heard.append(event.topic)

    async def stop(self):
        (self.context.state / "stopped").write_text(str(os.getpid()))

    def status(self):
        return {"calls": self.calls}

    async def pid(self, caller, params) -> int:
        self.calls += 1
        return os.getpid()

    async def boil(self, caller, params) -> dict[str, Any]:
        return {"degrees": params.degrees, "word": params.word.get_secret_value(), "who": list(caller),
                "path": str(params.path), "parts": params.parts}

    async def fail(self, caller, params) -> None:
        raise NotFoundError("no water", reason="kettle-empty", hint="fill it")

    async def broken(self, caller, params) -> None:
        raise ValueError("secret detail")

    async def wait(self, caller, params) -> None:
        await asyncio.sleep(1000)

    async def hang(self, caller, params) -> None:
        time.sleep(1000)

    async def garbage(self, caller, params) -> None:
        for descriptor in range(3, 50):
            if os.path.exists(f"/proc/self/fd/{descriptor}"):
                try:
                    os.write(descriptor, b"garbage " * 10)
                except OSError:
                    pass
        await asyncio.sleep(1000)

    async def count(self, caller, params):
        for number in range(params.degrees):
            yield number
        if params.degrees == 3:
            raise NotFoundError("no water", reason="kettle-empty")

    async def tell(self, caller, params) -> None:
        for number in range(params.degrees):
            self.context.events.publish("kettle.boiled", str(number), self=1, degrees=number)

    async def strange(self, caller, params) -> None:
        self.context.events.publish("service.exited", "x")

    async def events(self, caller, params) -> list[str]:
        return self.heard

    async def large(self, caller, params) -> str:
        return "x" * (5 << 20)
"""
BARE = """
class Bare:
    def __init__(self, host):
        self.host = host

    def handlers(self):
        return {"up": self.up, "settings": self.settings, "files": self.files}

    async def start(self):
        pass

    async def stop(self):
        pass

    def status(self):
        return {"bare": True}

    async def up(self, params):
        return await self.host.ask(*params)

    async def settings(self, params):
        return self.host.settings

    async def files(self, params):
        import socket
        with socket.socket(fileno=self.host.files[0]) as one:
            one.send(b"hello")
"""


@pytest.fixture
def kettle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a part that runs in a process, and an installation that has it."""
    folder = tmp_path / "parts" / "kettle"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "manifest.py").write_text(MANIFEST)
    (folder / "part.py").write_text(textwrap.dedent(PART))
    monkeypatch.setattr(daemon.parts, "__path__", [*daemon.parts.__path__, str(tmp_path / "parts")])
    monkeypatch.setattr(workers, "FIRST", 0.05)
    yield folder
    for name in [name for name in sys.modules if name.startswith("daemon.parts.kettle")]:
        del sys.modules[name]


@pytest.fixture
def device(tmp_path: Path, kettle: Path) -> Iterator[Running]:
    with started(tmp_path) as found:
        yield found


def started(base: Path) -> Any:
    (base / "d/state").mkdir(parents=True, exist_ok=True)
    place = place_of(base)
    return running(base / "d", more=[source(one, place) for one in wanted()], context=place)


def place_of(base: Path) -> Context:
    folder = base / "d"
    return Context(folder, folder / "state", folder, folder, folder / "log", cgroups=folder / "none", shared=False)


def wanted() -> list[Manifest]:
    return [one for one in manifest.manifests() if one.name == "kettle"]


def eventually(question: Callable[[], Any]) -> Any:
    """An answer that is true; far longer than it ever takes."""
    deadline = time.monotonic() + 20
    while not (found := question()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def state(device: Running) -> dict[str, Any]:
    return dict(device.daemon.parts.status()["kettle"])


def alive(pid: int) -> bool:
    """Whether it runs: one that has ended may wait for its new parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- the same as any part ---------------------------------------------------------------------------------------------


def test_methods_events_status(device: Running, tmp_path: Path):
    pid = device.call("kettle.pid")
    assert pid != os.getpid()
    assert Path(f"/proc/{pid}/comm").read_text() == "mixosd:kettle\n"
    given = {"degrees": 80, "word": "secret", "path": "/x", "parts": ["a"], "idempotency": "k"}
    with pytest.raises(MixosError) as caught:
        device.call("kettle.boil", {"degrees": "hot"})
    assert caught.value.reason == "rpc-params"
    found = device.call("kettle.boil", {key: value for key, value in given.items() if key != "idempotency"})
    assert (found["degrees"], found["word"], found["path"], found["parts"]) == (80, "secret", "/x", ["a"])
    assert found["who"][:2] == ["admin", os.getuid()]
    entries = [one for one in device.audit() if one.get("method") == "kettle.boil"]
    assert "secret" not in str(entries)
    assert entries
    assert device.reason("kettle.fail") == "kettle-empty"
    assert device.reason("kettle.broken") == "rpc-internal"
    assert device.reason("kettle.large") == "rpc-answer-too-long"
    assert list(device.stream("kettle.count", {"degrees": 5})) == [0, 1, 2, 3, 4]
    with pytest.raises(MixosError) as caught:
        list(device.stream("kettle.count", {"degrees": 3}))
    assert caught.value.reason == "kettle-empty"
    eventually(lambda: state(device).get("calls") == 1)
    process = state(device)["process"]
    assert (process["state"], process["pid"], process["restarts"]) == ("running", pid, 0)
    assert {"account", "apparmor"} <= set(process["not-enforced"])
    publish = device.daemon.context.events.publish
    for topic in ("service.exited", "net.changed"):
        device.loop.call_soon_threadsafe(publish, topic, "x")
    eventually(lambda: device.call("kettle.events"))
    assert device.call("kettle.events") == ["service.exited"]


def events(device: Running, topics: tuple[str, ...], work: Callable[[], Any], count: int = 1) -> list[Any]:
    """What is published, while work is done."""
    heard: list[Any] = []
    ready = asyncio.Event()

    async def listen() -> None:
        items = device.daemon.context.events.listen(topics)
        task = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0)
        ready.set()
        heard.append(await task)
        async for event in items:
            heard.append(event)

    listening = asyncio.run_coroutine_threadsafe(listen(), device.loop)
    asyncio.run_coroutine_threadsafe(ready.wait(), device.loop).result(10)
    try:
        work()
        eventually(lambda: len(heard) >= count)
    finally:
        listening.cancel()
    return heard


def test_its_events_are_events(device: Running):
    found = events(device, ("kettle.",), lambda: device.call("kettle.tell", {"degrees": 2}), 2)
    assert [(one.topic, one.subject, one.data) for one in found] == [
        ("kettle.boiled", "0", {"self": 1, "degrees": 0}),
        ("kettle.boiled", "1", {"self": 1, "degrees": 1}),
    ]


# -- its end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("kill", "signal-9"),
        ("kettle.garbage", "process-garbage"),
        ("kettle.hang", "process-hung"),
        ("kettle.strange", "process-garbage"),
        ("flood", "process-garbage"),
    ],
)
def test_a_process_that_dies_or_must_is_told_and_started_again(
    device: Running, how: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "LOOK", 0.1)
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(workers, "STOP_SECONDS", 0.5)
    pid = device.call("kettle.pid")  # and with it a look, which takes the new times
    failed: list[str] = []

    def end() -> None:
        if how == "kill":
            os.kill(pid, signal.SIGKILL)
        elif how == "flood":
            failed.append(device.reason("kettle.tell", {"degrees": 10_000}))
        elif how == "kettle.strange":
            with suppress(MixosError):  # it may have been ended before it could answer
                device.call(how)
        else:
            failed.append(device.reason(how))

    told = events(device, ("process.",), end, 2)
    assert [(one.topic, one.subject) for one in told] == [("process.ended", "kettle"), ("process.started", "kettle")]
    assert told[0].data["reason"] == reason
    assert set(failed) <= {"process-gone"}
    eventually(lambda: state(device)["process"]["state"] == "running")
    assert device.call("kettle.pid") != pid
    assert not alive(pid)
    process = state(device)["process"]
    assert (process["restarts"], process["problem"]) == (1, reason)
    assert device.call("sample.echo", {"text": "hi"})["text"] == "hi"


def test_calls_in_flight_fail_and_may_be_made_again(device: Running):
    pid = device.call("kettle.pid")
    answers: list[MixosError] = []

    async def ask() -> None:
        try:
            await device.daemon.dispatcher.call(CALLER, device.daemon.dispatcher.prepare(CALLER, "kettle.wait", {}))
        except MixosError as error:
            answers.append(error)

    asking = asyncio.run_coroutine_threadsafe(ask(), device.loop)
    eventually(lambda: device.call("kettle.pid"))  # the call before it is there
    os.kill(pid, signal.SIGKILL)
    asking.result(30)
    assert [(one.reason, one.retryable) for one in answers] == [("process-gone", True)]


def test_it_ends_with_the_daemon_and_says_what_it_must(tmp_path: Path, kettle: Path):
    with started(tmp_path) as device:
        pid = device.call("kettle.pid")
    assert not alive(pid)
    assert (tmp_path / "d/state/stopped").read_text() == str(pid)


@pytest.mark.parametrize(
    ("mark", "where", "error"),
    [
        ("broken-start", "etc", "kettle-empty"),
        ("dead-start", "etc", "process-gone"),
        ("broken-import", "part", "process-start"),
        ("broken-methods", "etc", "ValueError: as asked"),
    ],
)
def test_a_process_that_does_not_come_up_is_a_part_that_failed(
    tmp_path: Path, kettle: Path, mark: str, where: str, error: str
):
    (tmp_path / "d").mkdir()
    ((tmp_path / "d" if where == "etc" else kettle) / mark).touch()
    with started(tmp_path) as device:
        assert (state(device)["state"], state(device)["error"]) == ("failed", error)
        assert device.reason("kettle.pid") == "part-failed"
        assert device.call("ping") == "pong"


def test_the_fork_server_may_die(device: Running):
    pid = device.call("kettle.pid")
    server = device.daemon.context.forks._server
    os.kill(server, signal.SIGKILL)
    eventually(lambda: state(device)["process"]["restarts"] == 1)
    eventually(lambda: not Path(f"/proc/{server}").exists())  # not even as a zombie
    eventually(lambda: state(device)["process"]["state"] == "running")
    assert device.call("kettle.pid") != pid
    assert not alive(pid)


SCRIPT = """
import asyncio, sys, os, pathlib
import daemon.parts
daemon.parts.__path__.append(sys.argv[1])
from daemon.core.manifest import manifests
from daemon.core.part import Context, cgroups
from daemon.core.worker.part import ProcessPart
place = pathlib.Path(sys.argv[2])
async def main():
    part = ProcessPart(next(one for one in manifests() if one.name == "kettle"),
                       Context(place, place, place, place, place, cgroups=place / "none", shared=False))
    await part.start()
    pids = [part.worker.status()["pid"]]
    (place / "new").write_text(" ".join(map(str, [*pids, part.worker.context.forks._server])))
    (place / "new").rename(place / "pids")
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def test_processes_end_when_mixosd_is_killed(tmp_path: Path, kettle: Path):
    process = spawn([sys.executable, "-c", SCRIPT, str(kettle.parent), str(tmp_path)], cwd=ROOT)
    try:
        eventually((tmp_path / "pids").exists)
        pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
        assert all(map(alive, pids))
    finally:
        process.kill()
        process.wait()
    eventually(lambda: not any(map(alive, pids)))


# -- a class of its own, and its part in mixosd ------------------------------------------------------------------------


def play(context: Context, script: Callable[[Worker], Awaitable[object]], **options: Any) -> Any:
    async def run() -> object:
        worker = Worker(context, "bare", PROCESS, PROCESS.runs, **options)
        try:
            await worker.start()
            return await script(worker)
        finally:
            await worker.stop()

    return asyncio.run(run())


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    (tmp_path / "kettleprocess.py").write_text(BARE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "d").mkdir()
    return place_of(tmp_path)


def test_it_asks_mixosd_only_what_it_may(bare: Context):
    async def double(params: Any) -> object:
        return params * 2

    async def script(worker: Worker) -> list[Any]:
        found: list[Any] = [await worker.call("settings"), await worker.call("up", ["double", 21])]
        for name in ("nothing", "start", "call"):
            with pytest.raises(MixosError) as caught:
                await worker.call("up", [name, None])
            found.append(caught.value.reason)
        return found

    found = play(bare, script, handlers={"double": double}, settings=lambda: {"a": 1})
    assert found == [{"a": 1}, 42, "process-call", "process-call", "process-call"]


def test_it_gets_descriptors(bare: Context):
    ours, theirs = socket.socketpair()
    with ours, theirs:

        async def script(worker: Worker) -> bytes:
            await worker.call("files")
            return ours.recv(100)

        assert play(bare, script, files=[theirs]) == b"hello"


def test_the_server_that_was_executed_ends_with_its_last_process(bare: Context):
    async def script(worker: Worker) -> int:
        return bare.forks._server

    assert not alive(play(bare, script))


def test_it_lives_in_a_control_group_that_goes_with_it(bare: Context):
    """Where this host has any."""
    place = replace(bare, cgroups=cgroups().with_name(f"mixos-test-{os.getpid()}"))
    group = place.cgroups / ".parts/bare"

    async def script(worker: Worker) -> tuple[str, list[str]]:
        process = worker.status()
        return Path(f"/proc/{process['pid']}/cgroup").read_text(), process["not-enforced"]

    try:
        found, missing = play(place, script)
        if group.parent.exists():
            assert found.strip().endswith("/.parts/bare")
        else:
            assert "memory.max" in missing
        assert not group.exists()
    finally:
        for folder in (group.parent, place.cgroups):
            with suppress(OSError):
                folder.rmdir()


def test_one_that_cannot_be_had_for_a_moment_is_started_again(bare: Context):
    async def script(worker: Worker) -> None:
        fork, tries = worker._fork, iter([True])

        async def without_descriptors(channel: socket.socket) -> Any:
            if next(tries, False):
                raise OSError(errno.EMFILE, "too many open files")
            return await fork(channel)

        worker._fork = without_descriptors  # type: ignore[method-assign]
        assert worker._pid is not None
        os.kill(worker._pid, signal.SIGKILL)
        await eventually_(lambda: worker.state == "running" and worker.restarts == 2)

    play(bare, script)


def ends(handlers: dict[str, Any], frames: Iterator[bytes], look: Callable[[Channel], bool]) -> bool:
    """What is seen of mixosd's end of a channel, after frames that are sent and answers that nobody reads."""

    async def main() -> bool:
        ours, theirs = socket.socketpair()
        channel = Channel("bad", ours, handlers, lambda *_: None)
        await channel.open()
        serving = asyncio.create_task(channel.run())
        for data in frames:
            with suppress(OSError):
                theirs.sendall(len(data).to_bytes(4, "big") + data)
        await asyncio.wait([serving], timeout=1)
        found = look(channel)
        theirs.close()
        await asyncio.gather(serving, return_exceptions=True)
        return found

    return asyncio.run(main())


async def large(_: Any) -> object:
    return "x" * (3 << 20)


def test_streams_that_there_are_not_keep_nothing():
    """Their parameters would be kept as long as the process lives, 4 MiB of JSON each."""
    frames = (b'{"id":%d,"stream":"call","params":[[],[],[]]}' % number for number in range(1, 100))
    assert ends({"call": large}, frames, lambda channel: not channel._streams)


def test_who_reads_no_answer_gets_no_more_of_them():
    frames = (b'{"id":%d,"call":"call"}' % number for number in range(1, 101))
    assert ends({"call": large}, frames, lambda channel: _unread(channel) < MAX_UNREAD)


def _unread(channel: Channel) -> int:
    assert channel._writer is not None
    return channel._writer.transport.get_write_buffer_size()


def test_on_a_device_nothing_runs_without_its_account(bare: Context):
    wrong = replace(bare, shared=True)

    async def script(worker: Worker) -> None:
        raise AssertionError

    async def run() -> str:
        worker = Worker(wrong, "bare", PROCESS._replace(account="no-such-account"), PROCESS.runs)
        with pytest.raises(MixosError) as caught:
            await worker.start()
        return caught.value.reason

    assert asyncio.run(run()) == "process-account"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")
def test_what_it_gives_up(tmp_path: Path):
    """The account, all capabilities, whatever execve(2) could give, and others' descriptors."""
    read, write = os.pipe()

    async def run() -> tuple[dict[str, str], set[str]]:
        forks = Forks(note=tmp_path / "why")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            packet = {"name": "bare", "account": [65534, 65534], "profile": None}
            forked = await forks.fork(packet, [theirs.fileno(), write])
            place = Path(f"/proc/{forked.pid}")
            while (place / "comm").read_text() != "mixosd:bare\n":  # it has become what it is
                await asyncio.sleep(0.01)
            status = (place / "status").read_text()
            files = {os.readlink(one) for one in (place / "fd").iterdir()}
        await forked.ended
        await forks.close()
        return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line), files

    found, files = asyncio.run(run())
    assert {*found["Uid"].split(), *found["Gid"].split()} == {"65534"}
    assert found["Groups"].strip() == ""
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"
    assert f"pipe:[{os.fstat(read).st_ino}]" in files
    assert {name for name in files if name.startswith("/")} == {os.devnull}
    os.close(read)
    os.close(write)


def test_only_a_part_in_mixosd_confines_units():
    with pytest.raises(ManifestError):
        manifest.check([Manifest("a", claims="m:f", process=PROCESS._replace(runs=""))])
    manifest.check([Manifest("a", claims="m:f", process=PROCESS)])


# -- the watchdog ------------------------------------------------------------------------------------------------------

HUNG = """
import pathlib, signal, sys, time
from daemon.core.worker import forkserver
forkserver.TICK, forkserver.SILENT, forkserver.GRACE = 0.05, 0.5, 0.5
_, control = forkserver.start(True, pathlib.Path(sys.argv[1]))
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
deadline = time.monotonic() + float(sys.argv[3])
while time.monotonic() < deadline:
    if sys.argv[2] == "beats":
        control.send(b'{"beat":true}')
    time.sleep(0.02)
print("lived")
"""


# case: H2
@pytest.mark.parametrize(
    ("how", "seconds", "expected"),
    [("silent", "60", -signal.SIGABRT), ("deaf", "60", -signal.SIGKILL), ("beats", "2", 0)],
)
def test_a_mixosd_whose_loop_stands_still_is_ended(tmp_path: Path, how: str, seconds: str, expected: int):
    process = spawn([sys.executable, "-c", HUNG, str(tmp_path / "why"), how, seconds], cwd=ROOT)
    assert process.wait(60) == expected
    assert (tmp_path / "why").exists() is (expected != 0)


def test_one_that_a_debugger_has_stopped_is_left_alone(tmp_path: Path):
    process = spawn([sys.executable, "-c", HUNG, str(tmp_path / "why"), "beats", "3"], cwd=ROOT)
    try:
        time.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
    assert not (tmp_path / "why").exists()


def test_beats_keep_a_server_there(tmp_path: Path):
    """A watchdog that died is replaced."""

    async def run() -> bool:
        forks = Forks(watch=False, note=tmp_path / "why")
        forks.attach()
        first = forks._server
        os.kill(first, signal.SIGKILL)
        while forks._control is not None:
            await asyncio.sleep(0.01)
        beating = asyncio.create_task(forks.beat())
        while not forks._server:
            await asyncio.sleep(0.01)
        second = forks._server
        beating.cancel()
        await forks.close()
        async with asyncio.timeout(PATIENCE):
            while Path(f"/proc/{first}").exists():  # nobody waited for it
                await asyncio.sleep(0.01)
        return second != first and not alive(second)

    assert asyncio.run(run())


DIES = """
import asyncio, os, pathlib, signal, sys
from daemon.core.worker import forkserver
server, control = forkserver.start(False, pathlib.Path(sys.argv[1]))
from daemon.core.worker.forks import Forks

async def run():
    forks = Forks(control, server=server)
    forks.attach()
    os.kill(server, signal.SIGKILL)
    async with asyncio.timeout(20):
        while os.path.exists(f"/proc/{server}"):
            await asyncio.sleep(0.01)

asyncio.run(run())
"""


def test_the_first_server_leaves_no_zombie_either(tmp_path: Path):
    assert spawn([sys.executable, "-c", DIES, str(tmp_path / "why")], cwd=ROOT).wait(60) == 0
