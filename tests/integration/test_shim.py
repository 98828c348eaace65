"""The shim with real processes: starts, ends, readiness, descriptors, kills, logs, what survives which `kill -9`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildsys.run import run
from daemon.linux import process
from daemon.linux.cgroup import CgroupError, Leaf, Limits, Tree
from daemon.parts.service import shim as protocol
from daemon.parts.service.logs import Query, Reader
from daemon.parts.service.shim import (
    Empty,
    Exited,
    Failed,
    Gone,
    MainPid,
    Phase,
    Ready,
    Shim,
    ShimError,
    Started,
    load_state,
)
from daemon.parts.service.spec import ANYBODY, HEAD, Limit, Logging, Spec
from tests.native import SANITIZE, native
from tests.waiting import eventually
from tests.waiting import until as until_true

pytestmark = pytest.mark.integration
SECONDS = 120  # nothing here takes that long; a test that hangs ends


class Place:
    """A folder with a unit `hello`: its runtime folder, its logs, and a spec to change."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "hello"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.root = folder

    def spec(self, *argv: str, **changes: object) -> Spec:
        log = Logging(str(self.logs / "hello"))
        base = Spec(unit="hello", argv=argv, log=log, environment={"PATH": "/usr/bin:/bin", "DIR": str(self.root)})
        return replace(base, **changes)

    def sh(self, script: str, **changes: object) -> Spec:
        return self.spec("/bin/sh", "-c", script, **changes)

    def py(self, script: str, **changes: object) -> Spec:
        return self.spec(sys.executable, "-c", "import os, socket, sys, time, signal\n" + script, **changes)

    def lines(self, *streams: str) -> list[str]:
        return [r.text for r in Reader(self.logs).read(Query(("hello",), streams=frozenset(streams or ("stdout",))))]


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="shim-", dir="/tmp"))
    folder.chmod(0o755)
    yield Place(folder)
    for state in folder.glob("*/state"):
        if (found := load_state(state.parent)) is not None and found.shim.alive():
            os.kill(found.shim.pid, signal.SIGCONT)
            with contextlib.suppress(ShimError):
                asyncio.run(end(state.parent))
    for pid in shims(folder):  # those of a test that failed half-way
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


def shims(folder: Path) -> list[int]:
    """Processes that were started as `PROGRAM FOLDER/...`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (path / "cmdline").read_bytes().split(b"\0")
            if len(argv) == 3 and argv[1].startswith(os.fsencode(folder) + b"/"):
                found.append(int(path.name))
    return found


async def end(folder: Path) -> None:
    shim = await Shim.connect(folder)
    await shim.stop(0)
    await until(shim, Empty)
    await shim.quit()


@contextlib.asynccontextmanager
async def shim_of(place: Place, spec: Spec, binary: Path | None = None) -> AsyncIterator[Shim]:
    async with asyncio.timeout(SECONDS):
        shim = await Shim.spawn(binary or native("shim"), place.run, spec)
        try:
            yield shim
        finally:
            shim.close()


async def until(shim: Shim, kind: type, count: int = 1) -> list[protocol.Event]:
    """Events up to and with the `count`th of a kind."""
    seen: list[protocol.Event] = []
    async with asyncio.timeout(SECONDS):
        async for event in shim.events():
            seen.append(event)
            count -= isinstance(event, kind)
            if not count or isinstance(event, Gone):
                break
    return seen


async def complete(place: Place, spec: Spec, binary: Path | None = None) -> tuple[Shim, list[protocol.Event]]:
    """Start, and wait until nothing is left."""
    async with shim_of(place, spec, binary) as shim:
        await shim.start()
        events = await until(shim, Empty)
        await shim.quit()
        return shim, events


def completed(place: Place, spec: Spec, binary: Path | None = None) -> list[protocol.Event]:
    return asyncio.run(complete(place, spec, binary))[1]


def test_streams_code_and_last_line(place):
    shim, events = asyncio.run(complete(place, place.sh("echo one; echo two >&2; printf three; exit 3")))
    assert [type(event) for event in events] == [Started, Exited, Empty]
    assert events[1] == Exited(3, 0, False)
    assert place.lines("stdout") == ["one", "three"]
    assert place.lines("stderr") == ["two"]
    assert place.lines("shim") == [f"started {events[0].pid}", "exited 3 0"]
    assert (shim.state.phase, shim.state.starts, shim.state.populated) == (Phase.EXITED, 1, False)
    assert not list(place.run.glob("*control*"))
    assert not (place.run / "state").exists()


def test_signal_is_reported(place):
    assert completed(place, place.sh("kill -SEGV $$"))[1] == Exited(-1, signal.SIGSEGV, False)


@pytest.mark.parametrize(
    ("changes", "step", "error"),
    [
        ({"argv": ("/nonexistent",)}, "exec", errno.ENOENT),
        ({"argv": ("/etc/passwd",)}, "exec", errno.EACCES),
        ({"cwd": "/nonexistent"}, "cwd", errno.ENOENT),
        ({"limits": {"nofile": Limit(10, 5)}}, "nofile", errno.EINVAL),
    ],
)
def test_program_that_cannot_be_executed(place, changes, step, error):
    events = completed(place, place.sh("true", **changes))
    assert events == [Failed(step, error), Exited(127, 0, False), Empty()]
    assert place.lines("shim") == [f"failed {step} {error}", "exited 127 0"]


@contextlib.contextmanager
def inherited_ignored(number: int) -> Iterator[None]:
    """A signal that our children find ignored, whichever: a libc keeps its own ones from callers of sigaction(3)."""
    call = {"x86_64": 13, "aarch64": 134}[os.uname().machine]
    old, ignore = (ctypes.c_uint64 * 4)(), (ctypes.c_uint64 * 4)(1)
    assert ctypes.CDLL(None).syscall(call, number, ignore, old, ctypes.c_size_t(8)) == 0
    yield
    assert ctypes.CDLL(None).syscall(call, number, old, None, ctypes.c_size_t(8)) == 0


def test_environment_of_the_process(place):
    script = (
        "cat /proc/self/status; ulimit -n; umask; pwd; nice; cat /proc/self/oom_score_adj; readlink /proc/self/fd/*;"
        "env | sort; cut -d' ' -f6 /proc/$$/stat; echo $$; cat; echo 'a b'"
    )
    spec = place.sh(
        script,
        uid=12345,
        gid=12346,
        groups=(12347, 12348),
        umask=0o027,
        nice=5,
        oom_score_adj=300,
        cwd="/usr",
        limits={"nofile": Limit(77, 88), "core": Limit(0, 0)},
        environment={"PATH": "/usr/bin:/bin", "ODD": "%a b=\tcé"},
        ambient=frozenset({"net_bind_service"}),
        bounding=frozenset({"net_bind_service", "chown"}),
    )
    with inherited_ignored(32), inherited_ignored(signal.SIGUSR2):
        completed(place, spec)
    lines = place.lines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    mask = f"{1 << 10:016x}"
    assert status["Uid"].split() == ["12345"] * 4
    assert status["Gid"].split() == ["12346"] * 4
    assert status["Groups"].split() == ["12347", "12348"]
    assert (status["CapEff"], status["CapAmb"], status["CapPrm"]) == (mask, mask, mask)
    assert status["CapBnd"] == f"{1 << 10 | 1:016x}"
    assert status["NoNewPrivs"] == "1"
    assert (status["SigBlk"], status["SigIgn"]) == ("0" * 16, "0" * 16)
    rest = [line for line in lines if ":\t" not in line]
    assert rest[:5] == ["77", "0027", "/usr", "5", "300"]
    links = [line for line in rest if line.startswith(("/dev/null", "pipe:"))]
    assert links[0] == "/dev/null"
    assert len(links) == 3  # the descriptors of readlink itself: no other is inherited
    assert "ODD=%a b=\tcé" in rest
    assert not [line for line in rest if line.startswith(("LISTEN_", "NOTIFY_"))]
    assert rest[-3] == rest[-2]  # leader of its session
    assert rest[-1] == "a b"


def test_arguments_arrive_as_they_are(place):
    odd = ("", " ", "%", "%41", "a=b", "\n", "\t\x01\x7f", "é\U0001f600", "\udcff", "-", "x" * 9000)
    completed(place, place.spec(sys.executable, "-c", "import sys\nfor word in sys.argv[1:]: print(ascii(word))", *odd))
    assert "".join(place.lines()) == "".join(map(ascii, odd))


def test_not_confined_when_not_asked(place):
    completed(place, place.sh("grep -E '^(NoNewPrivs|CapEff)' /proc/self/status", no_new_privileges=False))
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    assert place.lines() == [own, "NoNewPrivs:\t0"]


def test_output_may_be_opened_again_by_its_user(place):
    completed(place, place.sh("echo again >/dev/stdout; echo error >/proc/self/fd/2", uid=12345))
    assert (place.lines("stdout"), place.lines("stderr")) == (["again"], ["error"])


def test_restart_keeps_the_log(place):
    async def scenario() -> None:
        async with shim_of(place, place.sh("echo first; exit 1")) as shim:
            await shim.start()
            await until(shim, Empty)
            await shim.start(place.sh("echo second; exit 2"))
            assert Exited(2, 0, False) in await until(shim, Empty)
            assert (shim.state.starts, shim.state.code) == (2, 2)
            await shim.quit()

    asyncio.run(scenario())
    assert place.lines() == ["first", "second"]


def test_broken_spec_leaves_all_as_it_was(place):
    async def scenario() -> None:
        async with shim_of(place, place.sh("exit 4")) as shim:
            (place.run / "spec").write_bytes(HEAD + b"\nnonsense\n")
            with pytest.raises(ShimError) as caught:
                await shim.start()
            assert caught.value.reason == "shim-spec"
            await shim.start(place.sh("exit 5"))
            assert Exited(5, 0, False) in await until(shim, Empty)
            await shim.quit()

    asyncio.run(scenario())


def test_one_shim_per_folder(place):
    async def scenario() -> None:
        async with shim_of(place, place.sh("sleep 60")) as shim:
            await shim.start()
            with pytest.raises(ShimError) as caught:
                await Shim.spawn(native("shim"), place.run, place.sh("true"))
            assert caught.value.reason == "shim-running"
            for command in (shim.start(), shim.quit()):
                with pytest.raises(ShimError) as caught:
                    await command
                assert caught.value.reason == "shim-busy"
            await shim.stop(0)
            assert Exited(-1, signal.SIGTERM, False) in await until(shim, Empty) or shim.state.signal == signal.SIGKILL
            with pytest.raises(ShimError) as caught:
                await shim.signal(signal.SIGHUP)
            assert caught.value.reason == "shim-idle"
            await shim.quit()
            assert await until(shim, Gone) == [Gone()]
            with pytest.raises(ShimError) as caught:
                await shim.start()
            assert caught.value.reason == "shim-gone"

    asyncio.run(scenario())


def test_nothing_that_the_daemon_has_open_is_inherited(place, tmp_path):
    """Neither by the shim nor by the service, not even what lacks O_CLOEXEC."""
    secret = tmp_path / "secret"

    async def scenario() -> list[str]:
        async with shim_of(place, place.sh("readlink /proc/self/fd/*; exec sleep 60")) as shim:
            await shim.start()
            await until(shim, Started)
            await eventually(lambda: len(place.lines()) >= 3)
            held = [os.readlink(path) for path in Path(f"/proc/{shim.state.shim.pid}/fd").iterdir()]
            await shim.stop(0)
            await until(shim, Empty)
            return [*held, *place.lines()]

    with secret.open("w") as stream:
        os.set_inheritable(stream.fileno(), True)
        assert str(secret) not in asyncio.run(scenario())


def test_readiness_by_descriptor(place):
    async def scenario() -> None:
        async with shim_of(place, place.sh("sleep 0.1; printf noise >&7; echo >&7; read x <&1", ready_fd=7)) as shim:
            await shim.start()
            assert await until(shim, Started)
            assert shim.state.phase == Phase.STARTING
            assert Ready() in await until(shim, Ready)
            assert (shim.state.phase, shim.state.ready) == (Phase.RUNNING, True)

    asyncio.run(scenario())


def test_readiness_seen_by_the_daemon(place):
    async def scenario() -> None:
        async with shim_of(place, place.sh("exec sleep 60", notify=True, await_ready=True)) as shim:
            await shim.start()
            await until(shim, Started)
            await shim.mark_ready()
            assert await until(shim, Ready) == [Ready()]
            again = await Shim.connect(place.run)
            assert again.state.ready
            again.close()

    asyncio.run(scenario())


NOTIFY = """
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
channel.connect(os.environ["NOTIFY_SOCKET"])
say = lambda text, *fds: socket.send_fds(channel, [text.encode()], fds)
"""


def test_notifications(place):
    script = f"""{NOTIFY}
say("EXTEND_TIMEOUT_USEC=1500000"); say("STATUS=half way: 50 %é\\nUNKNOWN=1\\nREADY=1")
say("WATCHDOG=1"); say("RELOADING=1"); say("READY=1"); say("STOPPING=1")
say("X" * 5000); say("\\0\\n==\\n"); say("WATCHDOG=trigger")
"""

    async def scenario() -> None:
        async with shim_of(place, place.py(script, notify=True, await_ready=True)) as shim:
            await shim.start()
            events = await until(shim, Empty)
            assert events[1:-2] == [
                protocol.Extend(),
                protocol.Status("half way: 50 %é"),
                Ready(),
                protocol.Watchdog(False),
                protocol.Reloading(),
                Ready(),
                protocol.Stopping(),
                protocol.Watchdog(True),
            ]
            assert shim.state.status == "half way: 50 %é"
            await shim.quit()

    asyncio.run(scenario())


ASKING = f"""{NOTIFY}
def asks(*_):
    say("EXTEND_TIMEOUT_USEC=1")
    for micro in MICRO:
        say(f"EXTEND_TIMEOUT_USEC={{micro}}")
    say("STATUS=asked")
signal.signal(signal.SIGTERM, asks)
say("EXTEND_TIMEOUT_USEC=90000000"); say("READY=1")
while True: time.sleep(60)
"""


async def asked(shim: Shim) -> None:
    """Wait until it has asked, which it does when it is stopped."""
    async with asyncio.timeout(SECONDS):
        async for event in shim.events():
            if event == protocol.Status("asked"):
                return


def test_a_service_that_is_stopped_gets_the_time_that_it_asks_for(place):
    async def scenario() -> None:
        async with shim_of(place, place.py(f"MICRO = [2_000_000]\n{ASKING}", notify=True, await_ready=True)) as shim:
            await shim.start()
            await until(shim, Ready)
            assert shim.state.until - shim.state.since > 80  # its start had more time, which a stop does not have
            await shim.stop(0.5)
            told = shim.state.until
            await asked(shim)
            assert 1 < shim.state.until - told < 2
            await until(shim, Exited)
            assert (shim.state.signal, shim.state.stopped) == (signal.SIGKILL, True)
            assert shim.state.since >= shim.state.until or shim.state.since > told + 1
            await shim.quit()

    asyncio.run(scenario())


def test_a_service_that_is_stopped_does_not_get_time_without_end(place):
    """A limit, whatever it asks for; a stop in no time ends it, and after that asking is of no use."""

    async def scenario() -> None:
        endless = "MICRO = [60_000_000, 10**13, 10**17, 10**18, 2**64 - 1]"
        async with shim_of(place, place.py(f"{endless}\n{ASKING}", notify=True, await_ready=True)) as shim:
            await shim.start()
            await until(shim, Ready)
            await shim.stop(5)
            told = shim.state.until
            await asked(shim)
            assert shim.state.until == told + 600
            await shim.stop(5000)
            assert shim.state.until == told + 600
            await shim.stop(0)
            await until(shim, Exited)
            assert shim.state.signal == signal.SIGKILL
            await shim.quit()

    asyncio.run(scenario())


def test_notification_of_a_helper_that_has_ended(place):
    helper = f"{NOTIFY}\nsay('READY=1')"
    script = (
        f"import subprocess\nsubprocess.run([sys.executable, '-c', {'import os, socket' + helper!r}]); time.sleep(60)"
    )

    async def scenario() -> None:
        async with shim_of(place, place.py(script, notify=True, await_ready=True)) as shim:
            await shim.start()
            assert Ready() in await until(shim, Ready)

    asyncio.run(scenario())


@pytest.mark.parametrize(("notifier", "owner", "mode"), [(None, 0, 0o755), (65534, 65534, 0o755), (ANYBODY, 0, 0o666)])
def test_the_notification_socket_belongs_to_its_user_before_the_program_runs(place, notifier, owner, mode):
    """A launcher runs as root; the service in it, which notifies, does not."""
    script = "seen = os.stat(os.environ['NOTIFY_SOCKET']); print(seen.st_uid, oct(seen.st_mode & 0o777))"
    completed(place, place.py(script, notify=True, notify_uid=notifier))
    assert place.lines() == [f"{owner} {oct(mode)}"]


def test_a_helper_that_has_ended_is_believed_by_the_user_who_notifies(place):
    helper = f"{NOTIFY}\nos.setuid(65534); say('READY=1')"
    script = (
        f"import subprocess\nsubprocess.run([sys.executable, '-c', {'import os, socket' + helper!r}]); time.sleep(60)"
    )

    async def scenario() -> None:
        async with shim_of(place, place.py(script, notify=True, await_ready=True, notify_uid=65534)) as shim:
            await shim.start()
            assert Ready() in await until(shim, Ready)

    asyncio.run(scenario())


LINGER = """
import struct
listener = socket.create_server(("127.0.0.1", 0))
kept = []
def lingering():
    one = socket.create_connection(listener.getsockname())
    kept.append(listener.accept()[0])
    one.setblocking(False)
    with __import__("contextlib").suppress(BlockingIOError):
        while True:
            one.send(bytes(1 << 16))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7200))
    return one.detach()
"""


@pytest.mark.parametrize(("word", "count"), [("STATUS=x", 1), ("STATUS=x", 30), ("FDSTORE=1\\nFDNAME=a", 1)])
def test_descriptors_that_linger_do_not_hold_up_the_shim(place, word, count):
    """The last close(2) of such a socket waits for its other end."""
    script = f"""{NOTIFY}{LINGER}
made = [lingering() for _ in range({count})]
say("{word}", *made)
for one in made:
    os.close(one)
say("FDSTOREREMOVE=1\\nFDNAME=a")
say("READY=1")
time.sleep(600)
"""

    async def scenario() -> None:
        async with shim_of(place, place.py(script, notify=True, await_ready=True, fd_store=1)) as shim:
            await shim.start()
            assert Ready() in await until(shim, Ready)

    asyncio.run(scenario())


def test_strangers_cannot_notify(place):
    async def scenario() -> None:
        async with shim_of(place, place.sh("exec sleep 60", notify=True, await_ready=True)) as shim:
            await shim.start()
            await until(shim, Started)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.connect(str(place.run / "notify"))  # we are root, and no process of the service
                read, write = os.pipe()
                socket.send_fds(channel, [b"READY=1\nSTATUS=forged\nFDSTORE=1"], [write])
                channel.send(b"READY=1")
            os.close(write)
            assert os.read(read, 1) == b""  # the shim has closed its copy
            os.close(read)
            await shim.signal(0)
            assert (shim.state.phase, shim.state.status) == (Phase.STARTING, "")
            assert (place.run / "notify").stat().st_mode & 0o022 == 0  # other users cannot even connect

    asyncio.run(scenario())


def test_main_process_by_notification(place):
    script = f"""{NOTIFY}
child = os.fork()
if child == 0:
    time.sleep(60)
say("MAINPID=1"); say(f"MAINPID={{os.getppid()}}"); say("MAINPID=junk"); say(f"MAINPID={{child}}\\nREADY=1")
os.waitpid(child, 0)
print("parent goes on"); sys.stdout.flush(); time.sleep(60)
"""

    async def scenario() -> None:
        async with shim_of(place, place.py(script, notify=True, await_ready=True)) as shim:
            await shim.start()
            started, moved, _ = await until(shim, Ready)
            assert moved == MainPid(shim.state.main.pid, shim.state.main.start_time)
            assert shim.state.main.pid != started.pid
            assert shim.state.main.alive()
            await shim.signal(signal.SIGKILL)
            assert await until(shim, Exited) == [Exited(-1, 0, False)]  # its parent has taken the status
            assert shim.state.populated
            await shim.stop(10)
            assert Empty() in await until(shim, Empty)

    asyncio.run(scenario())


DAEMON = "if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"


def test_daemon_that_forks_twice(place):
    script = DAEMON + "time.sleep(0.3); print('daemon ends'); sys.stdout.flush(); os._exit(42)"
    events = completed(place, place.py(script, daemonises=True))
    kinds = [type(event) for event in events]
    assert kinds[:3] == [Started, MainPid, Ready]
    assert set(kinds[3:-2]) <= {MainPid}  # the process in the middle may have been taken for main until it ended
    assert events[-2:] == [Exited(42, 0, False), Empty()]
    assert events[1].pid != events[0].pid
    assert place.lines() == ["daemon ends"]


def test_main_of_a_daemon_is_named_from_outside(place):
    script = "first, second = os.fork(), 0\nif first: second = os.fork()\n"
    script += "if not first or not second: time.sleep(1000)\nprint(second); sys.stdout.flush(); os._exit(0)"

    async def scenario() -> None:
        async with shim_of(place, place.py(script, daemonises=True, await_ready=True)) as shim:
            await shim.start()
            await until(shim, MainPid)
            await eventually(place.lines)
            second = int(place.lines()[0])
            for stranger in (1, os.getpid(), 1 << 22):
                with pytest.raises(ShimError) as caught:
                    await shim.become_main(stranger)
                assert caught.value.reason == "shim-stranger"
            await shim.become_main(second)
            await shim.become_main(second)
            assert (shim.state.main.pid, shim.state.ready) == (second, False)
            await shim.mark_ready()
            os.kill(second, signal.SIGUSR1)
            assert Exited(-1, signal.SIGUSR1, False) in await until(shim, Exited)

    asyncio.run(scenario())


def test_main_of_a_service_in_the_foreground_is_named_by_nobody(place):
    async def scenario() -> None:
        async with shim_of(place, place.sh("sleep 1000 & echo $!; exec sleep 1000")) as shim:
            await shim.start()
            await until(shim, Started)
            await eventually(place.lines, SECONDS)
            with pytest.raises(ShimError) as caught:
                await shim.become_main(int(place.lines()[0]))
            assert caught.value.reason == "shim-stranger"

    asyncio.run(scenario())


def test_orphans_are_reaped_and_counted(place):
    """Without `daemonises`, main is what was started; the service is empty when its orphans have ended too."""
    script = DAEMON + "time.sleep(0.3); print('late'); sys.stdout.flush(); os._exit(42)"
    events = completed(place, place.py(script))
    assert events[1:] == [Exited(0, 0, False), Empty()]
    assert place.lines() == ["late"]


def test_descriptors_for_sockets(place):
    script = """
import socket
names = os.environ["LISTEN_FDNAMES"].split(":")
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "2"
for number, name in enumerate(names, 3):
    print(name, socket.socket(fileno=number).getsockname()[1])
os.write(9, b"\\n")
"""

    async def scenario() -> None:
        async with shim_of(place, place.py(script, ready_fd=9)) as shim:
            listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
            ports = [listener.getsockname()[1] for listener in listeners]
            for name, listener in zip(("web", "api"), listeners, strict=True):
                await shim.store(name, listener.fileno())
                listener.close()
            shim.close()
            again = await Shim.connect(place.run)
            await again.start()
            await until(again, Empty)
            assert place.lines() == [f"web {ports[0]}", f"api {ports[1]}"]
            for (name, descriptor), port, wanted in zip(await again.fds(), ports, ("web", "api"), strict=True):
                with socket.socket(fileno=descriptor) as copy:
                    assert (name, copy.getsockname()[1]) == (wanted, port)
            await again.unstore("web")
            (left,) = await again.fds()
            os.close(left[1])
            assert left[0] == "api"
            for name in ("", "a b", "a:b", "x" * 65):
                with pytest.raises(ShimError) as caught:
                    await again.store(name, 0)
                assert caught.value.reason in ("shim-full", "shim-protocol")
            for _ in range(63):
                await again.store("n" * 64, 0)
            with pytest.raises(ShimError) as caught:
                await again.store("one more", 0)
            with pytest.raises(ShimError) as caught:
                await again.store("more", 0)
            assert caught.value.reason == "shim-full"
            copies = await again.fds()
            assert len(copies) == 64
            for _, descriptor in copies:
                os.close(descriptor)
            with pytest.raises(ShimError) as caught:
                await again.start()  # 64 descriptors from 3 on: 9 is not free for readiness
            assert caught.value.reason == "shim-system"
            await again.quit()

    asyncio.run(scenario())


def test_descriptors_beyond_the_limit_of_open_files_are_an_error(place):
    """The kernel leaves out what does not fit (unix(7), MSG_CTRUNC): that is told, and the next answer is whole."""

    async def scenario() -> None:
        async with shim_of(place, place.py("")) as shim:
            for number in range(8):
                await shim.store(f"n{number}", 0)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, hard))
            try:
                with pytest.raises(ShimError) as caught:
                    await shim.fds()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert caught.value.reason == "shim-system"
            copies = await shim.fds()
            assert [name for name, _ in copies] == [f"n{number}" for number in range(8)]
            for _, descriptor in copies:
                os.close(descriptor)
            assert os.dup(0) == free  # none was left open
            os.close(free)
            await shim.quit()

    asyncio.run(scenario())


def test_service_stores_descriptors_for_its_next_start(place):
    script = f"""{NOTIFY}
if "LISTEN_FDS" in os.environ:
    print(os.environ["LISTEN_FDNAMES"], os.read(3, 100)); sys.stdout.flush()
    say("FDSTOREREMOVE=1\\nFDNAME=state")
else:
    r, w = os.pipe(); os.write(w, b"kept")
    say("FDSTORE=1\\nFDPOLL=0\\nFDNAME=state", r)  # else it would go with the writer
    say("FDSTORE=1\\nFDNAME=too-many", w)
"""

    async def scenario() -> None:
        async with shim_of(place, place.py(script, notify=True, fd_store=1)) as shim:
            await shim.start()
            assert protocol.Stored("state", True) in await until(shim, Empty)
            await shim.start()
            assert protocol.Stored("state", False) in await until(shim, Empty)
            assert await shim.fds() == []
            await shim.quit()

    asyncio.run(scenario())
    assert place.lines() == ["state b'kept'"]


# case: D14
def test_of_what_is_stored_duplicates_and_what_has_hung_up_go(place):
    """As sd_notify(3) says; nothing else is taken for a duplicate."""
    script = f"""{NOTIFY}
import select, tempfile
if "LISTEN_FDS" in os.environ:
    print(os.environ["LISTEN_FDNAMES"]); sys.exit()
memory = os.memfd_create("m")
one, other = socket.socketpair()
for fd in (memory, one.fileno()):
    for number in range(5):
        say("FDSTORE=1\\nFDNAME=again", fd)
say("FDSTORE=1\\nFDNAME=other", other.fileno())
polls = [select.epoll(), select.epoll()]
for poll in polls:
    say("FDSTORE=1\\nFDNAME=polls", poll.fileno())
for number in range(30):
    near, far = socket.socketpair(); far.close()
    say("FDSTORE=1\\nFDNAME=dead", near.fileno())
    near.close()
say("FDSTORE=1\\nFDNAME=last", os.pidfd_open(os.getppid()))
"""

    async def scenario() -> None:
        async with shim_of(place, place.py(script, notify=True, fd_store=16)) as shim:
            await shim.start()
            await until(shim, Empty)
            await shim.start()
            await until(shim, Empty)
            await shim.quit()

    asyncio.run(scenario())
    assert place.lines() == ["again:again:other:polls:polls:last"]


STUBBORN = """
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
print("ready"); sys.stdout.flush()
time.sleep(600)
"""


@pytest.fixture
def leaf(place: Place) -> Iterator[Path]:
    """A control group of this host's version 2 hierarchy, which needs no controllers for kill and populated."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next(Path(point) for _, point, kind, *_ in mounts if kind == "cgroup2")
    folder = root / f"mixos-test-{place.root.name}"
    folder.mkdir()
    yield folder
    (folder / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return Leaf(folder).remove()
        except CgroupError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def sleeping(place: Place) -> list[int]:
    """Processes whose environment names this place: those of the service, wherever they hide."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"DIR={place.root}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("grouped", [False, True])
def test_service_that_ignores_sigterm(place, leaf, grouped):
    async def scenario() -> None:
        spec = place.py(STUBBORN, cgroup=str(leaf) if grouped else "")
        async with shim_of(place, spec) as shim:
            await shim.start()
            await eventually(lambda: place.lines() == ["ready"], SECONDS)
            assert shim.state.cgroup == spec.cgroup
            await eventually(lambda: len(sleeping(place)) == 4, SECONDS)  # one that is in execve(2) shows none
            if grouped:
                members = leaf / "main/cgroup.procs"
                await eventually(
                    lambda: sorted(map(int, members.read_text().split())) == sorted(sleeping(place)), SECONDS
                )
                assert shim.state.shim.pid not in map(int, members.read_text().split())
            await shim.stop(60)
            await shim.signal(0)
            assert shim.state.phase == Phase.STOPPING
            assert len(sleeping(place)) == 4
            await shim.stop(0.2)
            assert Exited(-1, signal.SIGKILL, False) in await until(shim, Empty)
            assert sleeping(place) == []
            assert (shim.state.stopped, shim.state.populated) == (True, False)
            await shim.quit()

    asyncio.run(scenario())


def test_cgroup_that_is_not_there_fails_the_start(place):
    async def scenario() -> None:
        async with shim_of(place, place.sh("exec sleep 60", cgroup="/sys/fs/cgroup/unified/nonexistent")) as shim:
            with pytest.raises(ShimError) as caught:
                await shim.start()
            assert caught.value.reason == "shim-system"
            assert (shim.state.phase, shim.state.starts) == (Phase.IDLE, 0)
            await shim.start(place.sh("exit 6"))
            assert Exited(6, 0, False) in await until(shim, Empty)
            await shim.quit()

    asyncio.run(scenario())


def test_start_after_a_kill_of_the_whole_group(place, leaf):
    """Since the fix of the race of cgroup.kill with fork, Linux kills what is cloned into a group killed before."""

    async def scenario() -> None:
        async with shim_of(place, place.sh("exec sleep 60", cgroup=str(leaf))) as shim:
            for _ in range(3):
                await shim.start()
                await until(shim, Started)
                (leaf / "cgroup.kill").write_text("1")
                assert await until(shim, Empty) == [Exited(-1, signal.SIGKILL, False), Empty()]
            await shim.start(place.sh("exit 6", cgroup=str(leaf)))
            assert Exited(6, 0, False) in await until(shim, Empty)
            assert not (leaf / "main").exists()
            await shim.quit()

    asyncio.run(scenario())


def test_groups_of_this_host(place, leaf):
    """The Python side on a real hierarchy: one without controllers, so all of them are named as missing."""
    tree = Tree(leaf / "mixos")
    assert set(tree.prepare()) >= {"cpu", "memory"} - set((leaf / "cgroup.controllers").read_text().split())
    group = tree.leaf("hello")
    wanted = Limits(memory_max=1 << 30, pids_max=9)
    given = (leaf / "mixos/cgroup.subtree_control").read_text().split()
    missing = {name for name in ("memory.max", "memory.oom.group", "pids.max") if name.split(".")[0] not in given}
    assert set(group.limit(wanted)) == missing

    async def scenario() -> None:
        async with shim_of(place, place.py(STUBBORN, cgroup=str(group.path))) as shim:

            def pids() -> list[int]:
                return sorted(map(int, (group.path / "main/cgroup.procs").read_text().split()))

            await shim.start()
            await eventually(lambda: place.lines() == ["ready"] and len(pids()) == 4, SECONDS)
            await eventually(lambda: pids() == sorted(sleeping(place)), SECONDS)  # one that is in execve(2) shows none
            assert group.populated()
            assert group.usage().cpu_seconds is not None
            with pytest.raises(CgroupError) as caught:
                group.remove()
            assert caught.value.reason == "cgroup-busy"
            group.kill()
            await until(shim, Empty)
            assert not group.populated()
            group.remove()
            await shim.quit()

    asyncio.run(scenario())


def test_leftovers_are_stopped_after_main(place, leaf):
    async def scenario() -> None:
        script = "if os.fork() == 0:\n os.setsid(); time.sleep(600)\nos._exit(7)"
        async with shim_of(place, place.py(script, cgroup=str(leaf))) as shim:
            await shim.start()
            assert Exited(7, 0, False) in await until(shim, Exited)
            assert shim.state.populated
            with pytest.raises(ShimError) as caught:
                await shim.start()
            assert caught.value.reason == "shim-busy"
            await shim.stop(30)
            assert await until(shim, Empty) == [Empty()]
            assert shim.state.code == 7
            await shim.quit()

    asyncio.run(scenario())


def test_shim_told_to_end(place):
    """SIGTERM to the shim, as at the end of the system: the service is stopped in order, then the shim ends."""

    async def scenario() -> None:
        spec = place.sh("trap 'echo asked; exit 9' USR1; echo ready; while :; do sleep 0.05; done", stop_signal=10)
        async with shim_of(place, spec) as shim:
            await shim.start()
            await eventually(lambda: place.lines() == ["ready"], SECONDS)
            os.kill(shim.state.shim.pid, signal.SIGTERM)
            assert Exited(9, 0, False) in await until(shim, Gone)

    asyncio.run(scenario())
    assert place.lines()[-1] == "asked"
    assert not (place.run / "state").exists()


# ---- logs ----


def test_binary_long_and_partial_lines(place):
    body = b"\0\x01\xff\x1b[31m" + bytes(range(11, 256)) * 2
    script = (
        f"w = lambda b: os.write(1, b)\nw({body!r}); time.sleep(0.1); w(b'end\\n' + b'x' * 20000 + b'\\n\\n'); "
        "w(b'y' * 8192 + b'\\n' + b'z' * 8193)"
    )
    completed(place, place.py(script))
    (file,) = (place.logs / "hello").glob("*.log")
    records = [line.split(b" ", 4)[3:] for line in file.read_bytes().split(b"\n")[:-1]]
    output = [(letter, text) for letter, text in records if letter in b"oO"]
    assert output[0] == (b"o", body + b"end")
    assert [letter for letter, _ in output] == [b"o", b"O", b"O", b"o", b"o", b"o", b"O", b"o"]
    assert [len(text) for _, text in output[1:]] == [8192, 8192, 3616, 0, 8192, 8192, 1]


def test_every_line_of_many_arrives(place):
    """100,000 lines as fast as they come, without a limit: none is lost, across many files."""
    script = "print('\\n'.join(f'line {n}' for n in range(100_000)))"
    log = Logging(str(place.logs / "hello"), size=1 << 20, files=20, rate=0)
    completed(place, place.py(script, log=log))
    assert place.lines() == [f"line {n}" for n in range(100_000)]
    assert 3 < len(list((place.logs / "hello").iterdir())) <= 21


def test_flood_is_bounded_and_counted(place):
    script = "for n in range(50):\n  os.write(1, b'flood\\n' * 2000)"
    log = Logging(str(place.logs / "hello"), rate=100, burst=500)
    shim, _ = asyncio.run(complete(place, place.py(script, log=log)))
    kept = place.lines()
    said = [line.split() for line in place.lines("shim")]
    dropped = sum(int(words[1]) for words in said if words[0] == "dropped")
    assert set(kept) == {"flood"}
    assert 500 <= len(kept) < 50_000
    assert len(kept) + dropped == 100_000
    assert shim.state.dropped == dropped
    assert len([words for words in said if words[0] == "dropped"]) < 60  # not one for each line


# case: D7
def test_of_one_long_line_each_piece_is_there_or_counted(place):
    log = Logging(str(place.logs / "hello"), rate=100, burst=500)
    shim, _ = asyncio.run(complete(place, place.py("os.write(1, b'x' * 3_000_000 + b'\\n')", log=log)))
    assert shim.state.dropped > 0
    assert len(place.lines()) + shim.state.dropped == 367  # pieces of 8192 bytes


def test_rotation_keeps_so_many_files(place):
    script = "for n in range(8000):\n  print(n, 'x' * 100)"
    log = Logging(str(place.logs / "hello"), size=65536, files=2, rate=0)
    completed(place, place.py(script, log=log))
    files = sorted((place.logs / "hello").iterdir())
    assert len(files) == 3
    assert all(file.stat().st_size <= 65536 for file in files)
    numbers = [int(line.split()[0]) for line in place.lines()]
    assert numbers == list(range(numbers[0], 8000))


def test_rotation_on_demand_and_torn_tail(place):
    folder = place.logs / "hello"
    folder.mkdir()
    (folder / "00000007.log").write_bytes(b"1 2 abcdef01 o whole\n3 4 abcdef01 o to")
    (folder / "00000003.log").write_bytes(b"old\n")
    (folder / "notes").write_bytes(b"not ours\n")

    async def scenario() -> None:
        async with shim_of(place, place.sh("echo hello")) as shim:
            await shim.start()
            await until(shim, Empty)
            await shim.rotate()
            await shim.start()
            await until(shim, Empty)
            await shim.quit()

    asyncio.run(scenario())
    assert sorted(path.name for path in folder.iterdir()) == ["00000007.log", "00000008.log", "notes"]
    assert place.lines() == ["whole", "to", "hello", "hello"]
    assert (folder / "00000007.log").read_bytes().startswith(b"1 2 abcdef01 o whole\n3 4 abcdef01 o to\n")


def test_full_disk(place):
    """No space: the service goes on, lost lines are counted, whole records only, and later lines are there."""
    folder = place.logs
    run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder])
    try:
        script = """
for n in range(3000): print("a" * 100)
sys.stdout.flush()
while not os.path.exists(os.environ["DIR"] + "/go"): time.sleep(0.02)
print("later"); sys.stdout.flush()
"""

        async def scenario() -> None:
            spec = place.py(script, log=Logging(str(folder / "hello"), rate=0))
            async with shim_of(place, spec) as shim:
                await shim.start()
                async with asyncio.timeout(SECONDS):
                    while not shim.state.lost:
                        await asyncio.sleep(0.05)
                        await shim.mark_ready()
                        shim.close()
                        shim = await Shim.connect(place.run)
                whole = next((folder / "hello").iterdir())
                assert whole.read_bytes().endswith(b"\n")
                (folder / "hello" / "00000000.fill").unlink(missing_ok=True)
                run(["mount", "-o", "remount,size=1m", folder])
                (place.root / "go").touch()
                events = await until(shim, Empty)
                assert Exited(0, 0, False) in events
                kept = place.lines()
                assert kept[-1] == "later"
                assert len(kept) - 1 + shim.state.lost == 3000
                said = [line.split() for line in place.lines("shim")]
                assert sum(int(words[1]) for words in said if words[0] == "lost") == shim.state.lost
                await shim.quit()

        asyncio.run(scenario())
    finally:
        run(["umount", "-l", folder])


def test_log_folder_that_cannot_be_made(place):
    spec = place.sh("echo gone; exit 3", log=Logging("/proc/nonexistent/x"))
    shim, events = asyncio.run(complete(place, spec))
    assert events[1] == Exited(3, 0, False)
    assert shim.state.lost > 0


# ---- kill -9 ----

CLIENT = """
import asyncio, os, sys
from pathlib import Path
from daemon.parts.service.shim import Shim
from daemon.parts.service.spec import parse

async def main():
    folder, binary, steps = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split()
    spec = parse((folder / "spec.given").read_bytes())
    shim = None
    for step in steps:
        if step == "spawn": shim = await Shim.spawn(binary, folder, spec)
        elif step == "connect": shim = await Shim.connect(folder)
        elif step == "start": await shim.start()
        elif step == "stop": await shim.stop(5)
        elif step == "started":
            async for event in shim.events(): break
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def client(place: Place, spec: Spec, steps: str) -> None:
    """Another process that does `steps` and dies by `kill -9` right behind them."""
    place.run.mkdir(exist_ok=True)
    (place.run / "spec.given").write_bytes(bytes(spec))
    argv = [sys.executable, "-c", CLIENT, str(place.run), str(native("shim")), steps]
    done = asyncio.run(process.capture(argv, seconds=SECONDS, extra={"PYTHONPATH": os.pathsep.join(sys.path)}))
    assert done.status == -9, done.err


async def adopted(place: Place) -> tuple[Shim, list[str]]:
    """A new daemon: it finds the state, connects, and goes on until nothing is left."""
    assert load_state(place.run) is not None
    shim = await Shim.connect(place.run)
    if shim.state.phase == Phase.IDLE:
        await shim.start()
    if shim.state.phase != Phase.EXITED or shim.state.populated:
        await until(shim, Empty)
    lines = place.lines()
    await shim.quit()
    return shim, lines


@pytest.mark.parametrize("steps", ["spawn", "spawn start", "spawn start started"])
def test_daemon_killed_at_every_step_of_a_start(place, steps):
    script = "for n in range(40):\n  print('line', n); sys.stdout.flush(); time.sleep(0.01)\nos._exit(33)"
    client(place, place.py(script), steps)
    shim, lines = asyncio.run(adopted(place))
    assert lines == [f"line {n}" for n in range(40)]
    assert (shim.state.code, shim.state.starts) == (33, 1)


def test_exit_while_no_daemon_is_there(place):
    client(place, place.sh("echo a; sleep 0.2; echo b; exit 12"), "spawn start")
    deadline = time.monotonic() + SECONDS
    while (state := load_state(place.run)) is None or state.populated:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (state.phase, state.code) == (Phase.EXITED, 12)
    shim, lines = asyncio.run(adopted(place))
    assert (shim.state.code, lines) == (12, ["a", "b"])


def test_daemon_killed_while_it_stops_a_service(place):
    script = "signal.signal(15, lambda *_: (print('asked'), sys.stdout.flush(), time.sleep(0.3), os._exit(5)))\n"
    script += "print('up'); sys.stdout.flush()\nwhile True: time.sleep(60)"
    client(place, place.py(script), "spawn start started")
    until_true(lambda: place.lines() == ["up"], SECONDS)
    client(place, place.py(script), "connect stop")
    shim, lines = asyncio.run(adopted(place))
    assert (shim.state.code, shim.state.stopped, lines) == (5, True, ["up", "asked"])


STEPS = ["spawned", "state-written", "before-send", "started", "exit-seen", "exit-drained", "exit-logged", "exit-state"]


async def hooked(place: Place, spec: Spec, step: str) -> int:
    """A shim that stops itself at a step, started and told to start the service; its pid."""
    place.run.mkdir()
    (place.run / "spec").write_bytes(bytes(spec))
    binary = native("shim", "-DTEST_HOOKS")
    done = await process.capture([str(binary), str(place.run)], extra={"MIXOS_SHIM_STOP_AT": step})
    assert done.status == 0, done.err
    (pid,) = shims(place.root)  # before there is a child of it that looks the same until it executes
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(str(place.run / "control"))
        channel.send(b"start")
        await stopped(pid)
    return pid  # our connection is closed while the shim stands still at the step: a killed daemon


async def stopped(pid: int) -> None:
    """Wait until a process stands still."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        await asyncio.sleep(0.01)


async def going(pid: int, condition: object) -> None:
    """Let a shim go on whenever it stops, until the condition holds."""
    while not condition():  # type: ignore[operator]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("step", STEPS)
def test_daemon_killed_at_every_step_of_the_shim(place, step):
    async def scenario() -> None:
        async with asyncio.timeout(SECONDS):
            pid = await hooked(place, place.sh("echo one; sleep 0.1; echo two; exit 21"), step)

            def begun_and_ended() -> bool:
                state = load_state(place.run)
                return state is not None and state.phase == Phase.EXITED and not state.populated

            if step in ("state-written", "before-send"):  # they are before `start` too
                os.kill(pid, signal.SIGCONT)
                with contextlib.suppress(ConnectionError, ShimError):
                    going_on = asyncio.create_task(going(pid, begun_and_ended))
                    shim = await Shim.connect(place.run)
                    if shim.state.phase == Phase.IDLE:
                        await shim.start()
                    shim.close()
                await going_on
            await going(pid, begun_and_ended)
            state = load_state(place.run)
            assert state is not None
            assert (state.code, state.starts) == (21, 1)
            assert place.lines() == ["one", "two"]
            going_on = asyncio.create_task(going(pid, lambda: not Path(f"/proc/{pid}").exists()))
            shim = await Shim.connect(place.run)
            assert shim.state.code == 21
            await shim.quit()
            await going_on

    asyncio.run(scenario())


@pytest.mark.parametrize("step", [*STEPS, "prepared", "log-open"])
def test_shim_killed_at_every_step(place, leaf, step):
    """What is left can be found and ended, the folder is free for another shim, and the logs can be read."""

    async def scenario() -> None:
        async with asyncio.timeout(SECONDS):
            spec = place.sh("echo one; sleep 0.1; echo two; exit 21", cgroup=str(leaf))
            pid = await hooked(place, spec, step)
            os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.01)
            state = load_state(place.run)
            assert state is None or not state.shim.alive()
            with pytest.raises(ShimError) as caught:
                await Shim.connect(place.run)
            assert caught.value.reason == "shim-gone"
            (leaf / "cgroup.kill").write_text("1")
            while "populated 1" in (leaf / "cgroup.events").read_text():
                await asyncio.sleep(0.01)
            (place.run / "spec").unlink()
            shim = await Shim.spawn(native("shim"), place.run, place.sh("echo again; exit 22", cgroup=str(leaf)))
            await shim.start()
            assert Exited(22, 0, False) in await until(shim, Empty)
            reader = Reader(place.logs)
            assert "again" in [record.text for record in reader.read(Query(("hello",)))]
            assert reader.damaged == 0
            await shim.quit()

    asyncio.run(scenario())


def test_client_that_does_not_listen_is_dropped(place):
    """A flood of notifications fills the client's socket: the shim goes on, and a new client gets the whole state."""
    script = f"{NOTIFY}\nfor n in range(2000): say(f'STATUS={{n}}')\nsay('READY=1')\ntime.sleep(60)"

    async def scenario() -> None:
        async with shim_of(place, place.py(script, notify=True, await_ready=True)) as shim:
            asyncio.get_running_loop().remove_reader(shim._channel)
            shim._channel.send(b"start")
            await eventually(lambda: (state := load_state(place.run)) is not None and state.ready, SECONDS)
            again = await Shim.connect(place.run)
            assert (again.state.status, again.state.ready) == ("1999", True)
            again.close()
            asyncio.get_running_loop().add_reader(shim._channel, shim._read)

    asyncio.run(scenario())


# ---- garbage ----


def test_garbage_commands(place):
    @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(
            st.binary(min_size=1, max_size=400),
            st.text("startopignalredyquf 0123456789-%", min_size=1, max_size=30).map(str.encode),
        ).filter(lambda data: data not in (b"quit", b"start"))
    )
    def attempt(data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.settimeout(SECONDS)
            channel.connect(str(place.run / "control"))
            assert channel.recv(16384).startswith(b"state\n")
            channel.send(data)
            assert channel.recv(16384).partition(b"\n")[0].split()[0] in (b"ok", b"error", b"fds", b"empty", b"state")

    async def scenario() -> None:
        async with shim_of(place, place.sh("exit 8"), native("shim", *SANITIZE)):
            pass
        await asyncio.to_thread(attempt)
        shim = await Shim.connect(place.run)
        await shim.start()
        assert Exited(8, 0, False) in await until(shim, Empty)
        await shim.quit()

    asyncio.run(scenario())


KEYS = [
    "unit",
    "cwd",
    "cgroup",
    "log-folder",
    "arg",
    "env",
    "group",
    "limit",
    "uid",
    "gid",
    "umask",
    "nice",
    "ambient",
    "bounding",
    "notify",
    "ready-fd",
    "log-size",
    "log-files",
    "grace",
    "nofile",
    "infinity",
]


def test_garbage_specs(place):
    """Refused with status 3 and a reason, by a shim with the checks of the sanitizers on; never a crash."""
    binary = native("shim", *SANITIZE)
    place.run.mkdir()
    word = st.one_of(
        st.sampled_from(
            [*(key.encode() for key in KEYS), b"%", b"%0", b"%00", b"%41", b"%zz", b"/x", b"", b"-", b"-1", b"9" * 30]
        ),
        st.binary(max_size=12),
        st.integers().map(lambda number: str(number).encode()),
    )
    line = st.lists(word, min_size=1, max_size=5).map(b" ".join)
    garbage = st.one_of(
        st.binary(max_size=300),
        st.lists(line, max_size=12).map(lambda lines: b"\n".join([HEAD, *lines, b""])),
        st.lists(line, max_size=4).map(lambda lines: bytes(place.sh("true")) + b"\n".join([*lines, b"bad"])),
    )

    @settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck))
    @given(garbage)
    def attempt(data: bytes) -> None:
        (place.run / "spec").write_bytes(data)
        done = asyncio.run(process.capture([str(binary), str(place.run)]))
        assert (done.status, done.err.split(b" ")[0]) == (3, b"spec"), done.err
        assert done.err.count(b"\n") == 1

    attempt()


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"x" * (129 << 10), 3), (HEAD + b"\n" + b"env A=b\n" * 1100, 3), (HEAD + b"\n" + b"arg /x\n" * 1100, 3)],
)
def test_spec_that_is_too_large(place, content, status):
    place.run.mkdir()
    (place.run / "spec").write_bytes(content)
    done = asyncio.run(process.capture([str(native("shim", *SANITIZE)), str(place.run)]))
    assert (done.status, done.err.split(b" ")[0]) == (status, b"spec")


@pytest.mark.parametrize("argv", [[], ["relative"], ["/a", "/b"], ["/" + "x" * 300]])
def test_wrong_usage(argv):
    done = asyncio.run(process.capture([str(native("shim")), *argv]))
    assert (done.status, done.err.split(b" ")[0]) == (2, b"usage")


def test_folder_that_is_not_there():
    done = asyncio.run(process.capture([str(native("shim")), "/nonexistent/unit"]))
    assert (done.status, done.err.split(b" ")[0]) == (1, b"system")


def test_clean_under_the_sanitizers(place, leaf):
    """A whole life with the checks on: a report of theirs would end the shim and with it the connection."""
    script = f"""{NOTIFY}
say("STATUS=" + "é" * 500); say("READY=1"); say("FDNAME=a\\nFDSTORE=1", os.memfd_create("a"))
for n in range(3000): os.write(1 + n % 2, b"x" * (n * 7 % 9001) + b"\\n" * (n % 3))
if os.fork() == 0: time.sleep(600)
os._exit(3)
"""

    async def scenario() -> None:
        log = Logging(str(place.logs / "hello"), size=65536, files=1, rate=5000, burst=5000)
        spec = place.py(script, notify=True, await_ready=True, fd_store=4, cgroup=str(leaf), log=log)
        async with shim_of(place, spec, native("shim", *SANITIZE)) as shim:
            for _ in range(3):
                await shim.start()
                assert Exited(3, 0, False) in await until(shim, Exited)
                await shim.stop(0.1)
                await until(shim, Empty)
            copies = await shim.fds()
            assert len(copies) == 3
            for _, descriptor in copies:
                os.close(descriptor)
            await shim.quit()
            assert await until(shim, Gone) == [Gone()]

    asyncio.run(scenario())
