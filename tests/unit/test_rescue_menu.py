"""The rescue entry on a simulated disk: what it tells, and what its menu does."""

import base64
import contextlib
import json
import re
import sys

import pytest

from common.errors import MixosError
from daemon.linux import programs
from daemon.parts.update.boot import Disk
from daemon.rescue import found, menu, repair
from daemon.rescue.menu import Menu
from daemon.slots.disk import count
from tests.hostpackages import ROOT
from tests.slots import Device

LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


@pytest.fixture
def device(tmp_path):
    """1.0 in slot a and 1.1 in slot b were started in vain."""
    made = Device(tmp_path)
    made.install("1.1", "b")
    made.rescue()
    for _ in range(6):
        made.boot()
    made.boot_rescue()
    (made.tree / "sys/block/vda").mkdir(parents=True)
    return made


@pytest.fixture(autouse=True)
def programs_here(monkeypatch, tmp_path):
    """The programs of the device, on this tree."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from daemon.slots.main import main
sys.exit(main(sys.argv[1:], Path({str(tmp_path / "tree")!r})))
"""
    monkeypatch.setattr(programs, "SLOTS", (sys.executable, "-c", code))


@pytest.fixture
def data(monkeypatch, tmp_path):
    """The data partition, as a folder."""
    folder = tmp_path / "data"
    (folder / "overlay/var/upper/lib/mixos/update/trust").mkdir(parents=True)
    (folder / "overlay/etc/upper/mixos").mkdir(parents=True)
    monkeypatch.setattr(found, "data", lambda disk: contextlib.nullcontext(folder))
    return folder


def remember(folder, **record):
    (folder / found.RECORD).write_text(json.dumps({"format": 1, **record}))


class Person:
    """Answers what the menu asks for: words of a line of the menu, or what is typed."""

    def __init__(self, capsys, *answers):
        self.capsys, self.answers, self.shown = capsys, list(answers), ""

    def __call__(self, prompt):
        self.shown += self.capsys.readouterr().out
        if not self.answers:
            raise EOFError
        answer = self.answers.pop(0)
        rows = re.findall(r"^  (\d+)  (.*)$", self.shown, re.MULTILINE)
        return next((number for number, text in reversed(rows) if len(answer) > 1 and answer in text), answer)


def use(device, capsys, *answers):
    """What is shown to somebody who answers so, until they go away."""
    person = Person(capsys, *answers)
    one = Menu(person, device.tree)
    with contextlib.suppress(EOFError):
        one.begin()
        while True:
            one.turn()
    return person.shown + capsys.readouterr().out


def test_it_says_why_each_version_is_not_started(device, data, capsys):
    first = device.root_hash.hex()
    remember(data, blocked={first: {"version": "1.0", "reason": "after 3 starts: web is not up", "at": 1.0}})
    (device.tree / "sys/fs/pstore/dmesg-efi_pstore-1").write_text("Kernel panic - not syncing: no init found\n")
    shown = use(device, capsys)
    assert "No version is left to start" in shown
    assert "1.0 (slot a): after 3 starts: web is not up" in shown
    assert "1.1 (slot b): after 3 starts: kernel panic: no init found" in shown
    assert (device.tree / "run/mixos/disk").read_text().endswith("DISK=vda\n")


def test_what_cannot_be_read_is_said_and_does_not_stop_it(device, data, capsys):
    (data / found.RECORD).write_text("{")
    assert "what was recorded of versions cannot be read: it is damaged" in use(device, capsys)
    with device.path.open("r+b") as stream:
        stream.seek(Disk.at(device.path).table.find("mixos-esp").offset)
        stream.write(bytes(4096))
    shown = use(device, capsys)
    assert "the EFI system partition cannot be read" in shown
    assert "There is no version to start" in shown


def test_a_version_is_started_again(device, data, capsys):
    before = device.starts()
    assert before == {"1.1": (0, 3), "1.0": (0, 3)}
    assert "The next start is that of 1.0" in use(device, capsys, "start a version again", "1.0 (slot a)")
    assert device.starts() == {"1.0": (3, 0), "1.1": (0, 3)}
    assert device.boot() == "1.0"


def test_going_back_by_hand_leaves_the_newer_version(device, data, capsys):
    repair.start_first(Disk.at(device.path), next(one for one in Disk.at(device.path).images() if one.version == "1.1"))
    assert device.starts() == {"1.1": (3, 0), "1.0": (0, 3)}
    shown = use(device, capsys, "start a version again", "1.0 (slot a)")
    assert shown.count("This was chosen at the boot loader's menu. The next start is that of 1.1.") == 1
    assert "The next start is that of 1.0." in shown
    assert device.starts() == {"1.0": (3, 0), "1.1": (0, 3)}


@pytest.mark.parametrize("answer", ["", "0", "7", "-1", "x", "1 1"])
def test_what_is_no_choice_changes_nothing(device, data, capsys, answer):
    before = device.path.read_bytes()
    use(device, capsys, answer, "start a version again", answer if answer != "1 1" else "9")
    assert device.path.read_bytes() == before


def test_a_shell_is_there_only_when_the_image_allows_it(device, data, capsys):
    assert "open a shell" not in use(device, capsys)
    (device.tree / "proc/cmdline").write_text("panic=10 mixos.rescue=shell\n")
    assert "open a shell" in use(device, capsys)


def test_erasing_takes_a_word(device, data, capsys, monkeypatch):
    done = []
    monkeypatch.setattr(repair, "reset", done.append)
    assert "Nothing was erased" in use(device, capsys, "factory reset", "yes")
    assert not done
    use(device, capsys, "factory reset", "RESET")
    assert [disk.path for disk in done] == [device.path]


def test_errors_are_said_in_one_line(device, data, capsys, monkeypatch):
    def fails(disk):
        raise MixosError("it \x1b[2J failed", reason="slots-io")

    monkeypatch.setattr(repair, "reset", fails)
    assert r"That failed: it \x1b[2J failed" in use(device, capsys, "factory reset", "RESET")


# --- the disk ---------------------------------------------------------------------------------------------------------


def another(device, name):
    (device.tree / "sys/block" / name).mkdir()
    copy = device.tree / "dev" / name
    copy.write_bytes(device.path.read_bytes())
    return copy


def test_the_disk_is_the_one_that_the_loader_came_from(device):
    (device.tree / "sys/block/vdb").mkdir()
    (device.tree / "dev/vdb").write_bytes(bytes(1 << 20))
    assert [one.path.name for one in found.disks(device.tree)] == ["vda"]
    copy = another(device, "vdc")
    assert [one.path.name for one in found.disks(device.tree)] == ["vda", "vdc"], "a copy has the same identities"
    identity = Disk.at(copy).table.find("mixos-esp-b").id
    content = copy.read_bytes().replace(identity.bytes_le, bytes(range(16)))
    copy.write_bytes(repaired(content))
    variable = device.tree / f"sys/firmware/efi/efivars/LoaderDevicePartUUID-{LOADER}"
    variable.write_bytes(b"\6\0\0\0" + f"{str(identity).upper()}\0".encode("utf-16-le"))
    assert [one.path.name for one in found.disks(device.tree)] == ["vda"]


def repaired(content):
    """Another disk: its tables are damaged, so that nothing of it is known."""
    return bytes(1 << 20) + content[1 << 20 : -(1 << 20)] + bytes(1 << 20)


def test_of_several_disks_somebody_chooses(device, data, capsys):
    another(device, "vdb")
    shown = use(device, capsys, "nonsense", "vdb")
    assert "Several disks have MixOS on them" in shown
    assert (device.tree / "run/mixos/disk").read_text().endswith("DISK=vdb\n")


def test_without_a_disk_it_says_so(device, capsys, monkeypatch):
    monkeypatch.setattr(found, "PATIENCE", 0.0)
    device.path.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(found, "wait_for_disks", lambda root: found.disks(root))
    shown = use(device, capsys)
    assert "No disk of MixOS was found" in shown
    assert "factory reset" not in shown


# --- a bundle ---------------------------------------------------------------------------------------------------------

FAKE = """
import json, os, sys
log = open(sys.argv[1], "a")
words = sys.argv[2:]
given = os.read(int(words[-1]), 1 << 20).decode() if words[-1].isdigit() else ""
log.write(json.dumps([words[0], given]) + "\\n")
if words[0] == "verify":
    print(json.dumps({"order": ORDER}))
elif words[0] == "stage":
    print(json.dumps({"step": "root", "done": 1, "of": 2, "fetched": 5}))
    print(json.dumps({"slot": "a"}))
else:
    print(json.dumps({"slot": "a"}))
"""


def test_a_bundle_is_verified_staged_and_sealed(device, data, capsys, monkeypatch, tmp_path):
    from tests.offers import offer, order_for  # makes images, which takes a while

    _, manifest, payload = offer(tmp_path / "offer", "1.2.0")
    order = order_for(manifest, payload, b"").dump()
    fake = (sys.executable, "-c", FAKE.replace("ORDER", repr(order)), str(tmp_path / "log"))
    monkeypatch.setattr(programs, "SLOTS", fake)
    monkeypatch.setattr(programs, "RELEASE", fake)
    monkeypatch.setattr(repair, "ACCOUNT", "nobody")
    monkeypatch.setattr("daemon.rescue.repair.shutil.chown", lambda *words: None)
    remember(data, floor=41)
    (data / "overlay/var/upper/lib/mixos/update/trust/root.json").write_text("trusted")
    (data / "overlay/var/upper/lib/mixos/update/key").write_text("secret")
    bundle = tmp_path / "new.mixb"
    bundle.write_bytes(b"bytes")
    (device.tree / "usr/lib/mixos").mkdir(parents=True)
    (device.tree / "usr/lib/mixos/release").write_text("MIXOS_SEQUENCE=7\nMIXOS_VARIANT=kiosk\n")

    @contextlib.contextmanager
    def mounted(where, kind, *options, root):
        yield tmp_path

    monkeypatch.setattr(found, "mounted", mounted)
    monkeypatch.setattr(repair, "bundles", lambda disk, root: [repair.Bundle(tmp_path / "sdb1", "vfat", "new.mixb")])
    shown = use(device, capsys, "install a bundle", "", "new.mixb on sdb1")
    assert "1.2.0 is installed" in shown
    calls = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [name for name, _ in calls] == ["verify", "stage", "seal"]
    facts = json.loads(calls[0][1])
    assert (facts["sequence"], facts["variant"], facts["floor"], facts["root-hash"]) == (7, "kiosk", 41, "")
    assert calls[1][1] == calls[2][1] == order
    assert (device.tree / repair.TRUST / "root.json").read_text() == "trusted"
    key = device.tree / repair.KEY
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("secret", 0o600)


@pytest.mark.parametrize("damaged", ["record.json", "trust/trusted.json", "key", "update.pem"])
def test_what_is_damaged_takes_nothing_with_it(device, data, monkeypatch, damaged):
    monkeypatch.setattr("daemon.rescue.repair.shutil.chown", lambda *words: None)
    kept, etc = data / "overlay/var/upper/lib/mixos/update", data / "overlay/etc/upper/mixos"
    certificate = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(b'0').decode()}\n-----END CERTIFICATE-----\n"
    remember(data, floor=41)
    (kept / "key").write_text("secret")
    (kept / "trust/trusted.json").write_text("trusted")
    (etc / "update.pem").write_text(certificate)
    path = (etc if damaged == "update.pem" else kept) / damaged
    path.unlink()
    path.mkdir()
    known = repair._known(Disk.find(device.tree), device.tree)
    assert (known.facts["floor"] == 41) == (damaged != "record.json")
    assert (known.servers == {"ca": certificate}) == (damaged != "update.pem")
    assert (device.tree / repair.KEY).exists() == (damaged != "key")
    assert (device.tree / repair.TRUST / "trusted.json").exists() == (damaged != "trust/trusted.json")


def test_the_floor_of_the_rescue_entry_outlives_the_data(device, data, monkeypatch):
    monkeypatch.setattr("daemon.rescue.repair.shutil.chown", lambda *words: None)
    (device.tree / "usr/lib/mixos").mkdir(parents=True)
    (device.tree / "usr/lib/mixos/release").write_text("MIXOS_SEQUENCE=7\nMIXOS_FLOOR=5\nMIXOS_EPOCH=9\n")
    for kept, floor in ((3, 5), (6, 6)):
        remember(data, floor=kept)
        facts = repair._known(Disk.find(device.tree), device.tree).facts
        assert (facts["floor"], facts["epoch"]) == (floor, 9)


# -- without anybody ---------------------------------------------------------------------------------------------------


@pytest.fixture
def went_back(tmp_path, data):
    """1.0 was good, and left for 1.1 by somebody; 1.1 was started in vain."""
    made = Device(tmp_path)
    made.boot()
    entry = made.running
    old = Disk.at(made.path).images()[0].digest
    bless = entry.blessed()
    count(Disk.at(made.path), entry.name, bless.name)
    count(Disk.at(made.path), bless.name, bless.given_up().name)
    remember(data, given_up=[old])
    made.install("1.1", "b")
    made.rescue()
    for _ in range(3):
        assert made.boot() == "1.1"
    made.boot_rescue()
    (made.tree / "sys/block/vda").mkdir(parents=True)
    return made


def test_a_version_that_was_only_left_is_started_again(went_back, capsys):
    assert menu.back(went_back.tree) == 0
    assert "1.0, which was good, is started again" in capsys.readouterr().out
    assert went_back.boot() == "1.0"


def test_once_only(went_back):
    """It does not come up either: a machine that restarts for ever helps nobody."""
    assert menu.back(went_back.tree) == 0
    assert [went_back.boot(), went_back.boot()] == ["1.0", "1.0"]
    went_back.boot_rescue()
    assert menu.back(went_back.tree) == 1


def test_versions_that_failed_are_for_a_person(device, data):
    names = device.names()
    assert menu.back(device.tree) == 1
    assert device.names() == names


def test_a_rescue_that_somebody_chose_changes_nothing(went_back):
    went_back.install("1.2", "b")
    assert menu.back(went_back.tree) == 1
    assert went_back.boot() == "1.2"


def test_without_a_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(found, "PATIENCE", 0.0)
    monkeypatch.setattr(found, "wait_for_disks", lambda root: [])
    assert menu.back(tmp_path) == 1
