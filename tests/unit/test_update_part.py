"""The part `update` on a disk with two slots: commit, failures and their reasons, going back."""

import asyncio
import json
import os

import pytest

from common.efi.entries import RESCUE, image_name
from common.errors import MixosError
from daemon import migrations
from daemon.core.change.files import Trees
from daemon.core.figures import Finding
from daemon.core.method import Nothing
from daemon.core.part import Context
from daemon.core.release.ledger import Conflict, Ledger, Move, load, save
from daemon.core.release.switch import Migration
from daemon.parts.update import starts as module
from daemon.parts.update.boot import Disk
from daemon.parts.update.part import Update, Version
from daemon.slots.disk import count
from daemon.slots.main import main
from tests import updatepart
from tests.slots import Device
from tests.updatepart import ask, context_of, program, slots
from tests.waiting import eventually


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "STABLE", 0.03)


def run(device, scenario, findings=lambda: (), own=()):
    """Bring the part up on what was booted, do something with it, end it; gives what `scenario` gives."""
    context = context_of(device.tree, etc="etc")
    context.figures.offer("test", findings=findings)
    return updatepart.run(device.tree, scenario, context, slots=own or slots(device.tree))


async def become_good(update):
    await eventually(lambda: update.starts.boot.running.entry.good)
    return await ask(update, "status")


async def status(update):
    return await ask(update, "status")


def fail(device, times=3):
    """The new version is started and never gets well."""
    for _ in range(times):
        device.boot()


def test_what_came_for_the_esp_is_put_in_place_once_the_version_is_good(device, tmp_path):
    """A refusal is a finding, and the version stays good."""
    asked, fits = tmp_path / "asked", tmp_path / "fits"
    own = program(f"""
from common.errors import RefusedError
from daemon.slots import main
def renew(root):
    with Path({str(asked)!r}).open("a") as stream:
        stream.write("renew ")
    if not Path({str(fits)!r}).exists():
        raise RefusedError("there is no room", reason="esp-full")
    return ("mixos-esp:EFI/Linux/RESCUE.EFI",)
main.renew = renew
sys.exit(main.main(sys.argv[1:], Path({str(device.tree)!r})))
""")

    async def settled(update):
        await become_good(update)
        await eventually(lambda: update.starts.stale or (fits.exists() and asked.read_text() == "renew renew "))
        await asyncio.sleep(0.1)
        return [one.text for one in update.findings()]

    device.boot()
    (problem,) = run(device, settled, own=own)
    assert problem == "rescue entry and loader are not those of this version: there is no room"
    assert asked.read_text() == "renew ", "once in a boot"
    assert device.starts() == {"1.0": (4, 0)}
    fits.touch()
    device.boot()
    assert run(device, settled, own=own) == []


def test_a_new_version_that_is_well_is_called_good(device):
    assert device.boot() == "1.0"
    assert device.starts() == {"1.0": (2, 1)}
    (device.tree / "run/mixos/trial").write_text("600\n")
    found = run(device, become_good)
    assert device.starts() == {"1.0": (4, 0)}
    assert found["state"] == "good"
    assert found["next"] == "1.0"
    assert found["last"]["what"] == "committed"
    assert not (device.tree / "run/mixos/trial").exists()


def test_one_that_was_good_gets_its_starts_back_at_each_boot(device):
    device.boot()
    run(device, become_good)
    device.boot()
    assert device.starts() == {"1.0": (3, 1)}

    async def renewed(update):
        await eventually(lambda: not update.starts.boot.running.entry.done)

    run(device, renewed, findings=lambda: [Finding("units", "critical", "web is not up")])
    assert device.starts() == {"1.0": (4, 0)}


def unwell(device, check="units"):
    """Look at a boot in which something does not come up."""

    async def wait(update):
        await eventually(lambda: update.starts.problem)
        await asyncio.sleep(0.2)
        return await status(update)

    return run(device, wait, findings=lambda: [Finding(check, "critical", "web is not up")])


def test_what_is_not_well_is_not_called_good(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    device.boot()
    found = unwell(device)
    assert (found["state"], found["problem"]) == ("trial", "web is not up")
    assert device.starts() == {"1.0": (4, 0), "1.1": (2, 1)}


def test_the_last_version_is_not_left_for_the_rescue_entry_while_it_comes_up(device):
    """It can be reached, and somebody who has to go to the device cannot do more there."""
    device.rescue()
    for _ in range(5):
        assert device.boot() == "1.0"
        assert unwell(device)["state"] == "trial"
        assert device.starts() == {"1.0": (3, 0)}
    device.boot()
    unwell(device, "parts")
    assert device.starts() == {"1.0": (2, 1)}


def test_the_last_version_that_never_comes_up_ends_in_the_rescue_entry(device):
    device.rescue()
    fail(device)
    assert device.next().entry.name.upper() == RESCUE
    assert device.starts() == {"1.0": (0, 3)}


def test_the_rescue_entry_is_neither_counted_nor_another_version(device):
    device.rescue()
    device.boot()
    found = run(device, become_good)
    assert [(one["file"].upper(), one["state"], one["slot"]) for one in found["images"]] == [
        (f"{image_name(device.root_hash)}+4.efi".upper(), "good", "a"),
        (RESCUE, "uncounted", None),
    ]
    with pytest.raises(MixosError) as caught:
        run(device, lambda update: ask(update, "rollback"))
    assert caught.value.reason == "update-no-other"


def test_a_version_that_never_gets_well_is_left_and_told(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    assert device.boot() == "1.1"

    async def wait(update):
        await eventually(lambda: update.starts.problem)

    run(device, wait, findings=lambda: [Finding("units", "critical", "web is not up")])
    fail(device, 2)
    assert device.boot() == "1.0"
    found = run(device, status)
    assert found["last"]["what"] == "failed"
    assert found["last"]["reason"] == "after 3 starts: web is not up"
    assert found["blocked"] == {"1.1": "after 3 starts: web is not up"}
    assert (found["version"], found["slot"], found["next"]) == ("1.0", "a", "1.0")
    history = run(device, lambda update: ask(update, "history"))
    assert [one["what"] for one in history] == ["failed", "committed"]


def test_the_last_words_of_a_kernel_are_the_reason(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    fail(device)
    dump = device.tree / "sys/fs/pstore/dmesg-efi_pstore-1"
    dump.write_text("<0>[ 1.0] Kernel panic - not syncing: no init found\n")
    device.boot()
    found = run(device, status)
    assert found["last"]["reason"] == "after 3 starts: kernel panic: no init found"
    assert not dump.exists()


def test_a_version_that_the_keeper_ended_was_not_well_in_time(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    device.boot()

    async def wait(update):
        await eventually(lambda: update.starts.problem)

    run(device, wait, findings=lambda: [Finding("units", "critical", "web is not up")])
    fail(device, 2)
    dump = device.tree / "sys/fs/pstore/dmesg-efi_pstore-1"
    dump.write_text("<2>[600.1] mixos: this version did not get well in time: restarting\n")
    device.boot()
    assert run(device, status)["blocked"] == {"1.1": "after 3 starts: it was not well in time: web is not up"}
    assert not dump.exists()


def test_a_version_that_hung_was_ended_by_the_watchdog(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    fail(device)
    (device.tree / "sys/class/watchdog/watchdog0").mkdir(parents=True)
    (device.tree / "sys/class/watchdog/watchdog0/bootstatus").write_text("32\n")
    device.boot()
    assert run(device, status)["last"]["reason"] == "after 3 starts: the watchdog restarted the machine"


def test_a_good_version_that_breaks_falls_back_too(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    device.boot()
    run(device, become_good)
    fail(device, 4)
    assert device.boot() == "1.0"
    assert run(device, status)["blocked"] == {
        "1.1": "after 4 starts: the daemon was never up (it crashed or hung, lost power, or could not read its root)"
    }


def test_going_back_and_forth(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    device.boot()
    run(device, become_good)
    assert run(device, lambda update: ask(update, "rollback")) == {"next": "1.0", "next-slot": "a"}
    assert device.starts() == {"1.0": (4, 0), "1.1": (0, 4)}
    assert device.boot() == "1.0"
    found = run(device, become_good)
    assert found["blocked"] == {}
    assert run(device, lambda update: ask(update, "rollback")) == {"next": "1.1", "next-slot": "b"}
    assert device.boot() == "1.1"
    assert run(device, become_good)["version"] == "1.1"


def test_what_was_left_is_not_called_good_in_the_same_boot(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    device.boot()

    async def leave(update):
        await ask(update, "rollback")
        await asyncio.sleep(0.2)

    run(device, leave, findings=lambda: [Finding("parts", "warning", "net is starting")])
    assert device.starts() == {"1.0": (4, 0), "1.1": (0, 3)}


def test_nowhere_to_go_back_to(device):
    device.boot()
    with pytest.raises(MixosError) as caught:
        run(device, lambda update: ask(update, "rollback"))
    assert caught.value.reason == "update-no-other"
    assert device.names()


def test_a_version_that_failed_is_gone_back_to_only_when_it_was_cleared(device):
    device.boot()
    run(device, become_good)
    device.install("1.1", "b")
    fail(device)
    device.boot()
    with pytest.raises(MixosError) as caught:
        run(device, lambda update: ask(update, "rollback"))
    assert caught.value.reason == "update-blocked"

    async def clear(update):
        await ask(update, "clear", version="1.1")
        return await ask(update, "rollback")

    assert run(device, clear)["next"] == "1.1"
    with pytest.raises(MixosError) as caught:
        run(device, lambda update: ask(update, "clear", version="9"))
    assert caught.value.reason == "update-not-blocked"


def test_a_host_without_a_boot_disk_says_so(tmp_path):
    async def life():
        update = Update(Context(run=tmp_path, state=tmp_path, etc=tmp_path, cgroups=tmp_path), root=tmp_path)
        await update.start()
        with pytest.raises(MixosError) as caught:
            await ask(update, "status")
        await update.stop()
        return caught.value.reason

    assert asyncio.run(life()) == "disk-unknown"


def test_parameters():
    assert Version(version="1.0").version == "1.0"
    assert Nothing()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("STEM+3.efi", "other+3.efi"),
        ("STEM+3.efi", "STEM.efi"),
        ("STEM+3.efi", "STEM+9.efi"),
        ("STEM+3.efi", "other.txt"),
        ("../BOOT/BOOTX64.EFI", "../BOOT/BOOTX64+3.EFI"),
        ("other+3.efi", "other+4.efi"),
        ("RESCUE.EFI", "RESCUE.EFI"),
    ],
)
def test_the_counter_changes_nothing_but_counters(device, old, new, capsys):
    stem = image_name(device.root_hash)
    before = device.path.read_bytes()
    assert main(["count", old.replace("STEM", stem), new.replace("STEM", stem)], device.tree) == 8
    assert capsys.readouterr().out.startswith('{"error": ')
    assert device.path.read_bytes() == before


def test_one_name_of_an_image_is_left(device):
    """As a cut while firmware renames may leave two: the loader cannot count the one down to the other."""
    stem = image_name(device.root_hash)
    descriptor = os.open(device.path, os.O_RDWR)
    for name in (f"{stem}+2-1.efi", "other+2-1.efi", "COMING.NEW"):
        device.editor(descriptor).add(f"EFI/Linux/{name}", [b"as if it were the same"], 22, epoch=0)
    os.close(descriptor)
    count(Disk.at(device.path), f"{stem}+3.efi", f"{stem}+2-1.efi")
    assert device.names() == sorted([f"{stem}+2-1.efi", "other+2-1.efi", "COMING.NEW"])
    assert len(Disk.at(device.path).images()) == 1


def test_the_counter_counts(device, capsys):
    stem = image_name(device.root_hash)
    assert main(["count", f"{stem}+3.efi", f"{stem}+4.efi"], device.tree) == 0
    assert device.names() == [f"{stem}+4.efi"]
    assert main([], device.tree) == 2
    assert "usage" in capsys.readouterr().out
    with pytest.raises(MixosError):
        count(Disk.at(device.path), f"{stem}+3.efi", f"{stem}+4.efi")


# -- the data ----------------------------------------------------------------------------------------------------------


def ledger_of(device, *conflicts, release="", moves=()):
    """What init has left of a change of the release."""
    (device.tree / "data/mixos").mkdir(parents=True, exist_ok=True)
    save(device.tree / "data/mixos/ledger", Ledger(release, "1.0", moves=moves, conflicts=conflicts))


def handed_over(device, **result):
    (device.tree / "run/mixos/release.json").write_text(json.dumps(result))


def test_a_version_that_could_not_take_the_data_over_is_not_well(device):
    device.boot()
    handed_over(device, how="failed", reason="migration-failed", error="migration m0001_x: KeyError: 'a'")

    async def look(update):
        (finding,) = update.findings()
        return finding, (await ask(update, "status"))["data-problem"]

    finding, problem = run(device, look)
    assert (finding.check, finding.state) == ("data", "critical")
    assert "m0001_x" in problem
    assert finding.text == problem


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_what_init_left_is_not_trusted(device, text):
    device.boot()
    (device.tree / "run/mixos/release.json").write_text(text)
    assert run(device, status)["data-problem"] is None


def test_a_conflict_is_shown_until_it_is_settled(device):
    device.boot()
    (device.tree / "etc").mkdir()
    for name in ("profile", "issue"):
        (device.tree / f"etc/{name}").write_text("umask 077\n")
    other = (b"umask 027\n", 0o644)
    ledger_of(
        device,
        Conflict("etc/profile", "bb", "default", "1.1", 5.0, other),
        Conflict("etc/issue", "bb", "default", "1.1", 5.0, other),
        Conflict("var/lib/mixos/x.json", "bb", "release", "1.1", 5.0, None),
    )

    async def scenario(update):
        update.starts.context.changes.places = Trees(device.tree / "etc", device.tree / "lib")
        (device.tree / "lib").mkdir()
        first = (await ask(update, "status"))["conflicts"]
        (finding,) = update.findings()
        rows = await ask(update, "conflicts")
        left = await ask(update, "resolve", file="/etc/issue")
        await ask(update, "resolve", file="/etc/profile", take=True)
        with pytest.raises(MixosError) as refused:
            await ask(update, "resolve", file="/var/lib/mixos/x.json", take=True)
        with pytest.raises(MixosError) as unknown:
            await ask(update, "resolve", file="/etc/profile")
        assert [refused.value.reason, unknown.value.reason] == ["update-not-taken", "update-no-conflict"]
        return first, finding.state, rows, left, (await ask(update, "status"))["conflicts"]

    first, state, rows, left, last = run(device, scenario)
    assert (len(first), state, len(left), last) == (3, "warning", 2, ["/var/lib/mixos/x.json"])
    assert rows[0]["diff"].splitlines()[-2:] == ["-umask 077", "+umask 027"]
    assert (device.tree / "etc/profile").read_text() == "umask 027\n"
    assert (device.tree / "etc/issue").read_text() == "umask 077\n"


def test_whoever_goes_back_leaves_the_other_version_what_it_would_have_by_now(device, monkeypatch):
    def backward(tree):
        tree.write("var/lib/mixos/x.json", b"old shape of " + (tree.read("var/lib/mixos/x.json") or b""))

    monkeypatch.setattr(migrations, "migrations", lambda: [Migration(1, "m0001_x", backward, backward)])
    device.install("1.1", "b")
    device.boot()
    (device.tree / "state/mixos").mkdir(parents=True)
    before = {"var/lib/mixos/x.json": ((b"old", 0o600), (b"new", 0o600))}
    ledger_of(device, release=Disk.at(device.path).images()[0].digest, moves=(Move("aa", "1.0", 1.0, (1,), before),))

    async def scenario(update):
        update.starts.context.changes.places = Trees(device.tree / "etc", device.tree / "lib")
        (device.tree / "lib/mixos").mkdir(parents=True)
        (device.tree / "lib/mixos/x.json").write_bytes(b"newer")
        await ask(update, "rollback")

    run(device, scenario)
    ledger = load(device.tree / "data/mixos/ledger")
    assert ledger.moves[0].files["var/lib/mixos/x.json"][0][0] == b"old shape of newer"


def test_what_a_later_version_remembers_does_not_make_an_older_one_forget(device):
    path = device.tree / "state/update/record.json"
    path.parent.mkdir(parents=True)
    blocked = {"aa": {"version": "1.1", "reason": "it hung", "at": 1.0, "by": "something new"}}
    path.write_text(json.dumps({"format": 1, "blocked": blocked, "weather": "fine"}))
    device.boot()
    assert run(device, status)["blocked"] == {"1.1": "it hung"}
