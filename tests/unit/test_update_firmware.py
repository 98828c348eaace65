"""The part `update` and what the image adds to Secure Boot's databases: one in each boot, told once, held, refused."""

import asyncio
import json
import sys

import pytest

from daemon.core.method import Caller, Nothing, Role
from daemon.core.part import Context
from daemon.parts.update import secureboot, starts
from daemon.parts.update.part import Update
from daemon.slots.disk import SLOT, locked
from tests.firmware import LOADER, Firmware, addition, argv, certificate, hash_of, sign_entry
from tests.hostpackages import ROOT
from tests.secureboot import signer
from tests.slots import Device

ADMIN = Caller(Role.ADMIN, 0, 0, 1, "somebody", "local")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(starts, "PAUSE", 0.01)
    monkeypatch.setattr(starts, "STABLE", 0.03)
    monkeypatch.setattr(secureboot, "TICK", 0.02)


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


@pytest.fixture
def firmware(device):
    return Firmware(device)


def slots(device):
    code = f"import sys, pathlib; sys.path.insert(0, {str(ROOT)!r}); from daemon.slots.main import main; "
    return sys.executable, "-c", f"{code}sys.exit(main(sys.argv[1:], pathlib.Path({str(device.tree)!r})))"


def run(device, scenario, program=None):
    """Bring the part up in what was booted; gives the events and what `scenario` gives."""

    async def life():
        base, events = device.tree, []
        context = Context(run=base / "run/mixos", state=base / "state", etc=base / "etc", cgroups=base / "cgroup")
        context.events.hand = events.append
        update = Update(context, root=base, slots=slots(device), firmware=program or argv(device))
        await update.start()
        try:
            found = await scenario(update)
        finally:
            await update.stop()
        return [(one.topic, one.subject) for one in events if "firmware" in one.topic], found

    return asyncio.run(life())


async def ask(update, name):
    method = next(one for one in update.methods() if one.name == f"update.{name}")
    return await method.handler(ADMIN, Nothing())


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def good(update):
    await until(lambda: update.starts.well)


async def done(update):
    """Good, and whatever is to be added in this boot was."""
    await good(update)
    await asyncio.wait_for(update.additions.done.wait(), 60)
    return (await ask(update, "status"))["firmware"]


async def idle(update):
    """Good, and nothing comes of it for a while."""
    await good(update)
    await until(lambda: update.additions._brought)
    await asyncio.sleep(0.5)
    return (await ask(update, "status"))["firmware"]


def history(device):
    """(what, reason), the oldest first."""
    record = json.loads((device.tree / "state/update/record.json").read_text())
    return [(one["what"], one["reason"]) for one in record["history"] if one["what"].startswith("firmware")]


def row(name, state="waits", why=None):
    return {"name": name, "database": name.partition("-")[2], "state": state, "why": why}


def test_one_in_each_boot(device, firmware):
    firmware.brings(1, addition("KEK", certificate("KEK-2")))
    firmware.brings(2, addition("db", certificate("db-2"), by="KEK-2"))
    device.boot()
    assert run(device, done) == ([("update.firmware-changed", "0001-KEK")], [row("0002-db")])
    assert firmware.get("db") == (certificate("db"),)
    assert run(device, done) == ([], [row("0002-db")])  # the daemon was started again
    device.boot()
    assert run(device, done) == ([("update.firmware-changed", "0002-db")], [])
    device.boot()
    assert run(device, done) == ([], [])
    assert history(device) == [("firmware-changed", "0001-KEK"), ("firmware-changed", "0002-db")]
    assert firmware.get("db") == (certificate("db"), certificate("db-2"))


def test_what_would_keep_the_other_slot_from_starting_is_held(device, firmware):
    device.boot()
    root_hash = device.install("0.9", "b")  # an older one, in the other slot
    image = sign_entry(device, root_hash, signer("db"))
    firmware.brings(1, addition("dbx", hash_of(image)))
    firmware.brings(2, addition("db", certificate("db-2")))

    async def held(update):
        return await done(update), list(update.findings())

    events, ((found,), (finding,)) = run(device, held)
    assert events == [("update.firmware-changed", "0002-db")]
    assert (found["name"], found["state"]) == ("0001-dbx", "held")
    assert "(0.9)" in found["why"]
    assert (finding.check, finding.state) == ("firmware", "warning")
    assert firmware.get("dbx") == ()


def test_firmware_that_refuses_is_asked_again_by_another_version(device, firmware):
    firmware.brings(1, addition("db", certificate("db-2"), by="stranger"))
    firmware.brings(2, addition("db", certificate("db-3")))
    device.boot()
    events, (first, second) = run(device, done)
    assert events == [("update.firmware-refused", "0001-db")]
    assert (first["state"], second) == ("refused", row("0002-db"))
    device.boot()
    assert run(device, done)[0] == [("update.firmware-changed", "0002-db")]
    device.boot()
    events, (first,) = run(device, done)
    assert (events, first["state"]) == ([], "refused")
    sign_entry(device, device.install("1.1", "b"), signer("db"))
    device.boot()
    assert run(device, done)[0] == [("update.firmware-refused", "0001-db")]
    assert [what for what, _ in history(device)] == ["firmware-refused", "firmware-changed", "firmware-refused"]


def test_nothing_while_a_version_is_on_trial_or_staged(device, firmware):
    firmware.brings(1, addition("db", certificate("db-2")))
    device.boot()

    async def trial(update):
        update.starts._unwell = lambda: "web is not up"
        await until(lambda: update.additions._brought)
        await asyncio.sleep(0.3)
        return (await ask(update, "status"))["firmware"]

    assert run(device, trial) == ([], [row("0001-db")])

    async def staged(update):
        update.starts.records.change(
            staged={"version": "2", "sequence": 2, "root_hash": "aa", "slot": "b", "at": 0.0, "order": ""}
        )
        return await idle(update)

    assert run(device, staged) == ([], [row("0001-db")])

    async def taken(update):
        update.starts.records.change(staged=None)
        update.additions._busy = lambda: True
        return await idle(update)

    assert run(device, taken) == ([], [row("0001-db")])
    sign_entry(device, device.install("1.1", "b"), signer("db"))  # applied: the next boot starts it
    assert run(device, idle) == ([], [row("0001-db")])
    assert firmware.get("db") == (certificate("db"),)


def test_a_slow_program_keeps_nobody_waiting(device, firmware):
    firmware.brings(1, addition("db", certificate("db-2")))
    device.boot()
    adds, gate = argv(device), device.tree / "gate"
    wait = f"while sys.argv[1] == 'add' and not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    code = f"import os, sys, time\n{wait}\nos.execv({adds[0]!r}, [*{adds!r}, *sys.argv[1:]])"

    async def asked(update):
        await until(lambda: update.starts.records.now.adding is not None)
        async with asyncio.timeout(60):
            meanwhile = (await ask(update, "status"))["firmware"]
        gate.touch()
        return meanwhile, await done(update)

    events, found = run(device, asked, (sys.executable, "-c", code))
    assert (events, found) == ([("update.firmware-changed", "0001-db")], ([row("0001-db")], []))


def test_what_is_refused_by_who_writes_a_slot_is_added_later(device, firmware):
    firmware.brings(1, addition("dbx", hash_of(b"".join([LOADER, b"older"]))))
    device.boot()

    async def later(update):
        with locked(device.path, SLOT):
            await good(update)
            await until(lambda: update.starts.records.now.adding is not None)
            await until(lambda: update.starts.records.now.adding is None)
            during = firmware.get("dbx")
        return during, await done(update)

    events, found = run(device, later)
    assert (events, found) == ([("update.firmware-changed", "0001-dbx")], ((), []))


def test_a_cut_is_seen_by_the_next_boot(device, firmware):
    """Either it is there, and that is told once; or it is added again, and after two such boots no more."""
    firmware.brings(1, addition("db", certificate("db-2")))
    device.boot()
    adds = argv(device)

    def cut(written):
        """The program that adds, in the middle of which the machine is cut."""
        add = f"subprocess.run([*{adds!r}, *sys.argv[1:]], check=False)" if written else ""
        look = f"os.execv({adds[0]!r}, [*{adds!r}, *sys.argv[1:]])"
        code = f"import os, subprocess, sys\nif sys.argv[1] == 'look': {look}\n{add}\nos.kill(os.getpid(), 9)"
        return sys.executable, "-c", code

    async def trouble(update):
        await good(update)
        await until(lambda: update.additions._problem)

    run(device, trouble, cut(written=False))
    assert history(device) == []
    device.boot()
    run(device, trouble, cut(written=True))
    assert history(device) == []
    device.boot()
    assert run(device, done) == ([("update.firmware-changed", "0001-db")], [])
    assert history(device) == [("firmware-changed", "0001-db")]
    firmware.set("db", certificate("db"))
    for _ in range(2):
        device.boot()
        run(device, trouble, cut(written=False))
    device.boot()
    events, (found,) = run(device, done)
    assert (events, found["state"]) == ([("update.firmware-refused", "0001-db")], "refused")
    device.boot()
    assert run(device, done)[0] == []
    assert firmware.get("db") == (certificate("db"),)


def test_without_secure_boot_or_additions_there_is_nothing(device, firmware):
    device.boot()

    async def nothing(update):
        await good(update)
        await asyncio.sleep(0.3)
        return (await ask(update, "status"))["firmware"]

    assert run(device, nothing, ("/bin/false",)) == ([], [])
    firmware.brings(1, addition("db", certificate("db-2")))
    firmware.enforce(on=False)
    assert run(device, nothing) == ([], [])
    assert firmware.get("db") == (certificate("db"),)


@pytest.mark.parametrize("said", ["{}", '{"additions": [1]}', '{"additions": [{"name": "x"}]}', "nonsense", ""])
def test_a_program_that_talks_nonsense(device, firmware, said):
    firmware.brings(1, addition("db", certificate("db-2")))
    device.boot()

    async def nothing(update):
        await good(update)
        await asyncio.sleep(0.3)
        return (await ask(update, "status"))["firmware"]

    assert run(device, nothing, (sys.executable, "-c", f"print({said!r})")) == ([], [])
