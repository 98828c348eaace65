"""Taking releases, as a person or the schedule asks for it: the part, its programs as processes, bundles that are
signed, a web server. What the programs give up is tested on the booted system."""

import asyncio
import contextlib
import functools
import hashlib
import http.server
import json
import os
import signal
import socket
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from buildsys.bundle import Hook, Lock
from common.bundle import container, manifest, sealing
from common.bundle import order as orders
from common.bundle.ranges import answer
from common.errors import DiskError, MixosError, RefusedError
from common.trust.channel import Terms, Wave, file_of
from daemon.core.transfer import Accepts, Content
from daemon.parts.sandbox.confined import Result
from daemon.parts.update import automatic, taking
from daemon.parts.update import starts as module
from daemon.parts.update.hooks import MAX_SAID
from tests import releases, updatepart
from tests.offers import FACTS, offer, root_of
from tests.slots import Device
from tests.updatepart import ADMIN, ask, context_of
from tests.waiting import eventually

NEW, OLD = "1.1.0", "1.0.0"


class Publisher:
    """Whoever makes the releases that the device trusts."""

    def __init__(self, base):
        self.base = base
        self.repository, self.signer = releases.Repository(), releases.Signer()

    def release(self, version, earlier=OLD, lock=None, **facts):
        def sign(text):
            self.repository.release(text, version)
            return releases.front(self.repository, text, self.signer)

        self.base.mkdir(exist_ok=True)
        return offer(self.base, version, earlier, sign, replace(FACTS, **{"minimum": 0, **facts}), lock=lock)[0]

    def trusted_by(self, device):
        folder = device.tree / "usr/lib/mixos/update"
        folder.mkdir(parents=True, exist_ok=True)
        found = releases.anchors(self.repository, self.signer)
        (folder / "root.json").write_bytes(self.repository.anchor)
        (folder / "openpgp.asc").write_bytes(found.certificates)
        (folder / "trust.json").write_text(found.policy.model_dump_json(by_alias=True))
        (device.tree / "usr/lib/mixos/release").write_text(f"MIXOS_VERSION={OLD}\nMIXOS_SEQUENCE=3\n")


@pytest.fixture(scope="module")
def publisher(tmp_path_factory):
    return Publisher(tmp_path_factory.mktemp("publisher"))


@pytest.fixture(scope="module")
def bundle(publisher):
    return publisher.release(NEW)


@pytest.fixture
def device(tmp_path, publisher, bundle):
    found = Device(tmp_path, OLD, root_of(OLD))
    publisher.trusted_by(found)
    found.boot()
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "STABLE", 0.03)
    monkeypatch.setattr(automatic, "TICK", 0.05)
    monkeypatch.setattr(taking, "ACCOUNT", "nobody")


def program(name, root):
    """One of the programs on that tree, as the account that runs the tests."""
    code = f"""
import os
from daemon import fetch, release
from daemon.slots import worker
worker._confine = lambda *_: None
release.ACCOUNT = "nobody"
release._confine = lambda folder, _: os.chdir(folder)
fetch._confine = lambda *_: None
from daemon.slots import main as slots
root = Path({str(root)!r})
sys.exit({{"slots": lambda a: slots.main(a, root), "release": lambda a: release.main(a, root), "fetch": fetch.main}}
         [{name!r}](sys.argv[1:]))
"""
    return updatepart.program(code)


def run(device, scenario, settings=""):
    """Bring the part up, wait until what runs is good, and do something; gives what `scenario` gives, and signals."""
    base, asked = device.tree, []
    (base / "etc/mixos").mkdir(parents=True, exist_ok=True)
    (base / "etc/mixos/update.toml").write_text(settings)

    async def well(update):
        await eventually(lambda: update.starts.well, 60)
        return await scenario(update), asked

    programs = {name: program(name, base) for name in ("slots", "release", "fetch")}
    return updatepart.run(base, well, context_of(base, "var/lib/mixos"), ask_init=asked.append, **programs)


async def stage(update, path, heard=lambda offset: None, **params):
    """As mixctl does for a file. heard: of each offset that is asked for."""
    ours, theirs = socket.socketpair()
    with path.open("rb") as stream, ours:
        content = Content(0, Accepts(None, idle=None))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("daemon.core.transfer._is_connected", lambda descriptor: True)
            content.attach(theirs.detach())

        def read(offset, length):
            heard(offset)
            return os.pread(stream.fileno(), length, offset)

        thread = threading.Thread(target=_serve, args=(ours, read))
        thread.start()
        method = next(one for one in update.methods() if one.name == "update.stage")
        params = method.params.model_construct(content=content, again=params.get("again", False))
        items = []
        try:
            async with contextlib.aclosing(method.handler(ADMIN, params)) as steps:
                async for step in steps:
                    items.append(step)
        finally:
            content.close()
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()
        return items


def _serve(channel, read):
    with contextlib.suppress(OSError):
        answer(channel.fileno(), channel.fileno(), read)


class Ranged(http.server.SimpleHTTPRequestHandler):
    """A web server that has ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            return self.send_error(404)
        data = Path(path).read_bytes()
        wanted = self.headers.get("Range")
        first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else len(data)]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def web(folder):
    """Its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranged, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_release_is_staged_applied_and_called_good(device, bundle):
    async def take(update):
        steps = await stage(update, bundle)
        staged = await ask(update, "status")
        return steps, staged, await ask(update, "apply"), await asyncio.sleep(0.3)

    (steps, staged, applied, _), asked = run(device, take)
    assert [steps[0]["step"], steps[-1]["step"], steps[-1]["slot"]] == ["start", "staged", "b"]
    assert steps[-2]["fetched"] <= steps[0]["transfer"] < bundle.stat().st_size
    assert (staged["staged"], staged["next"]) == (NEW, OLD)
    assert applied == {"next": NEW, "next-slot": "b"}
    assert asked == [signal.SIGTERM]
    assert device.boot() == NEW
    found, _ = run(device, lambda update: ask(update, "status"))
    assert (found["version"], found["slot"], found["state"], found["staged"]) == (NEW, "b", "good", None)
    assert [one["what"] for one in run(device, lambda update: ask(update, "history"))[0]] == [
        "committed",
        "installed",
        "committed",
    ]


def test_a_release_comes_from_a_web_server(device, bundle):
    async def take(update):
        with web(bundle.parent) as address:
            return await ask(update, "fetch", url=f"{address}/{bundle.name}")

    steps, _ = run(device, take)
    assert steps[-1]["step"] == "staged"


def test_a_release_is_taken_with_nobody_waiting(device, bundle):
    """As over D-Bus: begun, followed by events, and ended."""

    async def take(update):
        heard = []
        publish = update.starts.context.events.publish

        def hear(topic, subject, /, **data):
            heard.append((topic, subject, data))
            publish(topic, subject, **data)

        with pytest.MonkeyPatch.context() as patch, web(bundle.parent) as address:
            patch.setattr(update.starts.context.events, "publish", hear)
            assert await ask(update, "take", url=f"{address}/{bundle.name}") is True
            with pytest.raises(MixosError) as caught:
                await ask(update, "take", url=f"{address}/{bundle.name}")
            await eventually(lambda: update.releases._background.done(), 60)
            assert await ask(update, "take", url=f"{address}/nothing.mixb") is True
            await eventually(lambda: update.releases.trouble is not None, 60)
        assert await ask(update, "stop") is False
        return heard, caught.value.reason

    (heard, reason), _ = run(device, take)
    assert reason == "update-busy"
    topics = [topic for topic, _, _ in heard]
    assert topics.index("update.progress") < topics.index("update.staged") < topics.index("update.not-staged")
    assert {"step", "done", "of", "fetched", "transfer"} <= heard[0][2].keys()


def test_whatever_is_being_staged_can_be_ended(device, bundle):
    """Also when a caller began it, and whoever has the bundle says nothing."""
    silent, theirs = socket.socketpair()

    async def wait(update):
        async for _ in update.releases.staged(theirs.fileno(), again=False):
            pass

    async def take(update):
        staging = asyncio.create_task(wait(update))
        await eventually(lambda: update.releases._staging, 60)
        await asyncio.sleep(0.2)
        assert not staging.done()
        assert await ask(update, "stop") is True
        with pytest.raises(MixosError) as caught:
            await staging
        assert await ask(update, "stop") is False
        return caught.value.reason, (await stage(update, bundle))[-1]["step"]

    with silent, theirs:
        assert run(device, take)[0] == ("update-stopped", "staged")


def test_an_update_back_and_forth(device, bundle):
    """Update, rollback, update: nothing is fetched twice that is there."""

    async def take(update):
        await stage(update, bundle)
        return await ask(update, "apply", restart=False)

    async def back(update):
        return await ask(update, "rollback")

    run(device, take)
    assert device.boot() == NEW
    assert run(device, back)[0]["next"] == OLD
    assert device.boot() == OLD

    async def again(update):
        steps = await stage(update, bundle)
        await ask(update, "apply", restart=False)
        return steps

    steps, _ = run(device, again)
    assert max(step["fetched"] for step in steps) == 0
    assert device.boot() == NEW


def test_two_updates_without_a_restart_between(device, publisher, bundle):
    newer = publisher.release("1.2.0", sequence=9)

    async def take(update):
        await stage(update, bundle)
        await ask(update, "apply", restart=False)
        await stage(update, newer)
        return await ask(update, "apply", restart=False)

    assert run(device, take)[0]["next"] == "1.2.0"
    assert device.boot() == "1.2.0"


@pytest.mark.parametrize("version", [NEW, "0.9.1"])
def test_what_was_applied_can_be_taken_back_before_the_restart(device, publisher, bundle, version):
    """What runs keeps its starts; asked again, it stays so."""
    path = bundle if version == NEW else publisher.release(version, sequence=3)

    async def take(update):
        await stage(update, path, again=True)
        assert (await ask(update, "apply", restart=False))["next"] == version
        return [(await ask(update, "rollback"))["next"] for _ in range(2)]

    assert run(device, take)[0] == [OLD, OLD]
    assert device.starts()[OLD] == (4, 0)
    assert device.boot() == OLD
    assert run(device, lambda update: ask(update, "rollback"))[0]["next"] == version


def test_an_older_release_is_taken_only_when_that_is_meant(device, publisher):
    older = publisher.release("0.9.0", sequence=3)

    async def take(update):
        with pytest.raises(MixosError) as caught:
            await stage(update, older)
        await stage(update, older, again=True)
        await ask(update, "apply", restart=False)
        return caught.value.reason

    assert run(device, take)[0] == "update-older"
    assert device.boot() == "0.9.0"


def refused(device, path, **params):
    async def take(update):
        before = device.path.read_bytes()
        with pytest.raises(MixosError) as caught:
            await stage(update, path, **params)
        return caught.value, device.path.read_bytes() == before

    (error, same), _ = run(device, take)
    assert same, "nothing was written"
    return error


def test_a_bundle_of_somebody_else_is_refused(device, tmp_path):
    strange = Publisher(tmp_path / "strange").release(NEW)
    assert refused(device, strange).exit_code == 12


def test_a_bundle_below_the_floor_is_refused(device, publisher):
    (device.tree / "usr/lib/mixos/release").write_text(f"MIXOS_VERSION={OLD}\nMIXOS_SEQUENCE=8\nMIXOS_FLOOR=8\n")
    found, _ = run(device, lambda update: ask(update, "status"))
    assert found["floor"] == 8, "raised when the version was called good"
    assert refused(device, publisher.release("1.3.0", sequence=7)).reason == "release-downgrade"


def test_the_floor_of_what_runs_outlives_the_record(device, publisher):
    (device.tree / "usr/lib/mixos/release").write_text(f"MIXOS_VERSION={OLD}\nMIXOS_SEQUENCE=8\nMIXOS_FLOOR=8\n")
    run(device, lambda update: ask(update, "status"))
    (device.tree / "var/lib/mixos/update/record.json").unlink()  # as a factory reset does
    assert refused(device, publisher.release("1.3.1", sequence=7)).reason == "release-downgrade"


def test_what_is_no_bundle_is_refused(device, tmp_path):
    odd = tmp_path / "odd.mixb"
    odd.write_bytes(b"no bundle" * 1000)
    assert refused(device, odd).reason == "bundle-magic"


def test_a_version_that_failed_is_not_staged_again(device, bundle):
    async def take(update):
        await stage(update, bundle)
        await ask(update, "apply", restart=False)

    run(device, take)
    for _ in range(3):
        assert device.boot() == NEW
    assert device.boot() == OLD
    assert refused(device, bundle).reason == "update-blocked"


def test_nothing_to_apply(device):
    async def apply(update):
        with pytest.raises(MixosError) as caught:
            await ask(update, "apply")
        return caught.value.reason

    assert run(device, apply)[0] == "update-not-staged"


def test_a_caller_who_leaves_ends_the_work_and_a_retry_goes_on(device, bundle):
    async def leave(update):
        before = psutil.Process().children(recursive=True)
        task = asyncio.create_task(stage(update, bundle))
        async with asyncio.timeout(30):
            while update.releases.progress is None:
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        running = psutil.Process().children(recursive=True)
        left = [one for one in running if one not in before and one.status() != "zombie"]
        progress = (await ask(update, "status"))["taking"]
        return left, progress, (await stage(update, bundle))[-1]["step"]

    assert run(device, leave)[0] == ([], None, "staged")


def test_only_one_release_is_taken_at_a_time(device, bundle):
    async def both(update):
        found = await asyncio.gather(stage(update, bundle), stage(update, bundle), return_exceptions=True)
        return sorted(one.reason if isinstance(one, MixosError) else one[-1]["step"] for one in found)

    assert run(device, both)[0] == ["staged", "update-busy"]


# -- hooks -------------------------------------------------------------------------------------------------------------


class Confined:
    """The sandbox of a device, which says of a program's words how it ends."""

    def __init__(self, monkeypatch):
        self.asked = []
        monkeypatch.setattr("daemon.parts.update.hooks.function", {"confined": self.run}.__getitem__)

    async def run(self, context, policy, program, most):
        assert (policy.network, policy.limits.wall, most) == ("none", 30.0, MAX_SAID)
        self.asked.append((policy.environment["MIXOS_HOOK"], program))
        if program.startswith(b"fails"):
            raise MixosError("no walls", reason="sandbox-refused")
        if program.startswith(b"endless"):
            raise MixosError("it says more than 65536 bytes", reason="program-output")
        code = int(program.split()[-1])
        return Result(code, code == 124, b"first\nthe disk is too small\n\n" if code == 1 else b"", b"")


@pytest.fixture
def confined(monkeypatch):
    return Confined(monkeypatch)


def hooked(publisher, version, **programs):
    """A bundle with hooks, by when they run."""
    found = tuple(Hook(name.replace("_", "-"), program, 30) for name, program in programs.items())
    return publisher.release(version, sequence=9, hooks=found)


def history(update):
    return [(one.what, one.reason) for one in update.starts.records.now.history if one.what == "refused"]


def test_hooks_are_asked_before_each_step(device, publisher, confined):
    path = hooked(publisher, "1.4.0", before_stage=b"passes 0", before_apply=b"passes, too 0")

    async def take(update):
        steps = await stage(update, path)
        asked = list(confined.asked)
        await ask(update, "apply", restart=False)
        return steps, asked, history(update), update.releases.progress

    (steps, asked, told, progress), _ = run(device, take)
    assert [steps[0]["step"], steps[1]["step"]] == ["before-stage", "start"]
    assert asked == [("before-stage", b"passes 0")]
    assert confined.asked[1:] == [("before-apply", b"passes, too 0")]
    assert (told, progress) == ([], None)
    assert device.boot() == "1.4.0"


def test_a_hook_refuses_before_anything_is_written(device, publisher, bundle, confined):
    path = hooked(publisher, "1.5.0", before_stage=b"too small 1")

    async def take(update):
        await stage(update, bundle)
        before = device.path.read_bytes()
        for _ in range(2):
            with pytest.raises(RefusedError) as caught:
                await stage(update, path)
        assert device.path.read_bytes() == before
        return caught.value, history(update), await ask(update, "apply", restart=False)

    (error, told, applied), _ = run(device, take)
    assert (error.reason, error.exit_code) == ("update-hook", 7)
    assert told == [("refused", error.message)], "once"
    assert applied["next"] == NEW, "what was staged before is left"


def test_a_hook_refuses_before_anything_is_started(device, publisher, confined):
    path = hooked(publisher, "1.6.0", before_apply=b"too small 1")

    async def take(update):
        await stage(update, path)
        before = device.path.read_bytes()
        with pytest.raises(RefusedError) as caught:
            await ask(update, "apply", restart=False)
        assert device.path.read_bytes() == before
        return caught.value.reason, history(update), (await ask(update, "status"))["staged"]

    (reason, told, staged), asked = run(device, take)
    assert (reason, [what for what, _ in told], staged, asked) == ("update-hook", ["refused"], "1.6.0", [])
    assert device.boot() == OLD


def test_a_hook_that_is_not_what_was_verified_is_not_run(device, publisher, confined):
    path = hooked(publisher, "1.7.0", before_apply=b"passes 0")

    async def take(update):
        for harm in (Path.unlink, lambda kept: kept.write_bytes(b"another 0")):
            await stage(update, path)  # and so it comes again
            (kept,) = (device.tree / "var/lib/mixos/update/hooks").iterdir()
            harm(kept)
            with pytest.raises(RefusedError) as caught:
                await ask(update, "apply", restart=False)
            assert (caught.value.reason, confined.asked) == ("update-hook-lost", [])
        await stage(update, path)
        await ask(update, "apply", restart=False)

    run(device, take)
    assert confined.asked == [("before-apply", b"passes 0")]


def test_hooks_are_fetched_once_and_others_go(device, publisher, confined):
    paths = [hooked(publisher, f"1.8.{number}", before_stage=b"%d refuses 1" % number) for number in range(2)]
    folder = device.tree / "var/lib/mixos/update/hooks"

    async def take(update):
        for path in paths:
            with pytest.raises(RefusedError):
                await stage(update, path)
        names = [one.read_bytes() for one in folder.iterdir()]
        asked = []
        with path.open("rb") as stream:
            front, start = container.read(stream.read)
        place = start + manifest.parse(front.manifest).hooks[0].offset
        with pytest.raises(RefusedError):
            await stage(update, path, asked.append)
        return names, place in asked

    assert run(device, take)[0] == ([b"1 refuses 1"], False)


def test_a_hook_that_is_damaged_on_its_way_is_refused(device, publisher, confined):
    path = hooked(publisher, "1.9.0", before_stage=b"passes 0")
    path.write_bytes(path.read_bytes().replace(b"passes 0", b"passes 1"))
    assert refused(device, path).reason == "bundle-damaged"
    assert confined.asked == []


def test_a_repair_asks_no_hook(device, publisher, confined):
    path = hooked(publisher, "1.9.1", before_stage=b"passes 0")

    async def take(update):
        await stage(update, path)
        with web(path.parent) as address:
            return await ask(update, "repair", url=f"{address}/{path.name}")

    assert run(device, take)[0][-1]["step"] == "done"
    assert confined.asked == [("before-stage", b"passes 0")]


# -- encryption --------------------------------------------------------------------------------------------------------


def for_devices(*keys):
    """A lock to them, by the keys that they tell."""
    return Lock(tuple(map(sealing.read_public, keys)), lambda digest: hashlib.sha256(b"secret" + digest).digest())


def key_of(device):
    return run(device, lambda update: ask(update, "key"))[0]["key"]


def test_the_key_of_a_device_stays_and_is_root_s_own(device):
    path = device.tree / "var/lib/mixos/update/key"

    async def both(update):
        return await asyncio.gather(ask(update, "key"), ask(update, "key"))

    one, two = run(device, both)[0]
    assert one == two == {"key": key_of(device)}
    assert path.stat().st_mode & 0o7777 == 0o600


def test_a_key_that_is_damaged_is_neither_used_nor_replaced(device, publisher, capfd):
    path = publisher.release("2.3.0", lock=for_devices(key_of(device)), sequence=9)
    key = device.tree / "var/lib/mixos/update/key"
    damages = (
        lambda: key.write_text("nonsense"),
        lambda: key.write_bytes(b"A" * (1 << 20)),
        lambda: key.symlink_to(key),
        lambda: os.mkfifo(key),
    )
    for damage in damages:
        key.unlink()
        damage()
        with pytest.raises(DiskError) as caught:
            run(device, lambda update: ask(update, "key"))
        assert (caught.value.reason, "update/key" in str(caught.value)) == ("device-key", True)
        error = refused(device, path)
        assert (error.reason, "damaged" in str(error)) == ("release-sealed", True)
    assert "Traceback" not in capfd.readouterr().err


def test_a_release_for_this_device_is_taken(device, publisher, confined):
    hook = Hook("before-stage", b"passes, and was encrypted 0", 30)
    other = sealing.write_public(bytes(range(32)))
    path = publisher.release("2.0.0", lock=for_devices(other, key_of(device)), sequence=9, hooks=(hook,))
    assert b"was encrypted" not in path.read_bytes()

    async def take(update):
        steps = await stage(update, path)
        record = (device.tree / "var/lib/mixos/update/record.json").read_text()
        with web(path.parent) as address:
            again = await ask(update, "fetch", url=f"{address}/{path.name}", again=True)
            mended = await ask(update, "repair", url=f"{address}/{path.name}")
        await ask(update, "apply", restart=False)
        return steps[-1], again[-1]["step"], mended[-1]["step"], orders.parse(json.loads(record)["staged"]["order"])

    (step, again, mended, order), _ = run(device, take)
    assert (step["step"], step["version"], again, mended) == ("staged", "2.0.0", "staged", "done")
    assert order.key is None, "it is not kept"
    assert confined.asked[0] == ("before-stage", hook.data)
    assert 0 < step["transfer"] < 10_000, "only what differs"


def test_a_release_for_other_devices_is_refused(device, publisher):
    other = sealing.write_public(bytes(range(32)))
    path = publisher.release("2.1.0", lock=for_devices(other), sequence=9)
    assert (refused(device, path).reason, refused(device, path).exit_code) == ("release-sealed", 12)
    assert "no key" in str(refused(device, path))
    key_of(device)
    assert "not for this device" in str(refused(device, path))


def test_a_sealed_key_that_somebody_changed_is_refused(device, publisher):
    key = key_of(device)
    path = publisher.release("2.2.0", lock=for_devices(key), sequence=9)
    with path.open("rb") as stream:
        front, start = container.read(stream.read)
    (name,), public = front.recipients, sealing.read_public(key)
    sealed = sealing.seal(bytes(32), public)
    for recipients in ({name: sealed}, {name: bytes(sealing.SEALED)}, {}):
        changed = container.dump(replace(front, recipients=recipients)) + path.read_bytes()[start:]
        path.write_bytes(changed)
        with path.open("rb") as stream:
            _, start = container.read(stream.read)
        assert refused(device, path).reason == "release-sealed"


# -- channels ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def channel(publisher, bundle):
    """The address of one that offers NEW."""
    with bundle.open("rb") as stream:
        text = container.read(stream.read)[0].manifest
    found = manifest.parse(text)
    terms = Terms.of(found, (Wave(start=0, share=10_000),)).model_dump(mode="json", by_alias=True)
    target = publisher.repository.targets.targets[found.target]
    target.unrecognized_fields["custom"] = {"mixos": terms}
    publisher.repository.bump()
    folder = publisher.base
    (folder / "release").mkdir(exist_ok=True)
    (folder / file_of(found.target, target)).write_text(text)
    for name, data in publisher.repository.files.items():
        (folder / name).write_bytes(data)
    with web(folder) as address:
        yield address


def test_a_channel_says_what_it_has(device, channel):
    (device.tree / "etc").mkdir(exist_ok=True)
    found, _ = run(device, lambda update: ask(update, "check"), f'channel = "{channel}/"\n')
    assert (found["offer"]["version"], found["offer"]["whole"]) == (NEW, False)
    assert 0 < found["offer"]["transfer"] < 10_000
    assert (found["why"], found["channel"]) == (None, channel)


def test_what_a_channel_offers_is_staged_by_name_of_nothing(device, channel):
    steps, _ = run(device, lambda update: ask(update, "fetch"), f'channel = "{channel}"\n')
    assert (steps[-1]["step"], steps[-1]["version"]) == ("staged", NEW)


def test_without_a_channel_nothing_is_asked(device):
    async def check(update):
        with pytest.raises(MixosError) as caught:
            await ask(update, "check")
        return caught.value.reason

    assert run(device, check)[0] == "update-no-channel"


def test_a_channel_that_is_not_there_is_told(device, monkeypatch):
    async def check(update):
        with pytest.raises(MixosError) as caught:
            await ask(update, "check")
        return caught.value

    with web(device.tree) as address:
        error, _ = run(device, check, f'channel = "{address}/nothing"\n')
    assert error.reason == "release-missing"


def soon(monkeypatch):
    monkeypatch.setattr(automatic.Automatic, "_share", lambda self: 0.0)


def test_the_schedule_fetches_and_applies(device, channel, monkeypatch):
    soon(monkeypatch)

    async def wait(update):
        await eventually(lambda: any(one.what == "installed" for one in update.starts.records.now.history), 60)
        await asyncio.sleep(0.3)

    _, asked = run(device, wait, f'channel = "{channel}"\napply = "window"\nwhen = ["00:00-24:00"]\n')
    assert asked == [signal.SIGTERM]
    assert device.boot() == NEW


def test_the_schedule_leaves_the_restart_to_others(device, channel, monkeypatch):
    soon(monkeypatch)

    async def wait(update):
        await eventually(lambda: any(one.what == "installed" for one in update.starts.records.now.history), 60)
        return await ask(update, "status")

    found, asked = run(device, wait, f'channel = "{channel}"\napply = "reboot"\n')
    assert (found["next"], found["version"], asked) == (NEW, OLD, [])


@pytest.mark.parametrize("held", ['fetch = "manual"', "max-bytes = 10", 'fetch = "window"\nwhen = ["LATER"]'])
def test_what_is_not_allowed_waits(device, channel, monkeypatch, held):
    soon(monkeypatch)
    hour = datetime.now().hour  # windows are in local time
    held = held.replace("LATER", f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00")

    async def wait(update):
        await eventually(lambda: update.releases.checked is not None, 60)
        await asyncio.sleep(0.5)
        return await ask(update, "status")

    found, _ = run(device, wait, f'channel = "{channel}"\n{held}\n')
    assert (found["staged"], found["taking"], found["checked"]["offer"]["version"]) == (None, None, NEW)
