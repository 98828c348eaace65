"""`mixos-slots examine|repair`: one wrong bit anywhere on the boot disk, entries that are gone, cuts of a repair."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.bundle.manifest import Manifest
from common.disk import fatread, gpt, verity
from common.efi import uki
from common.efi.entries import FOLDER, Entry
from common.errors import DiskError, FormatError, RefusedError
from daemon.parts.update.boot import Boot, Disk, look
from daemon.slots import kept, worker
from daemon.slots.disk import Slot, count, identify, kernel_place
from daemon.slots.examine import Report, examine
from daemon.slots.repair import repair, repair_by
from daemon.slots.seal import seal
from daemon.slots.stage import Stage
from tests import crashstates
from tests.offers import offer, order_for, root_of, served
from tests.slots import Device

WHOLE = "MIXOS_WHOLE" in os.environ
OLD, NEW = "1.0.0", "1.1.0"
Offered = tuple[Path, Manifest, int]


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> Offered:
    """The bundle of NEW, for those who run OLD."""
    return offer(tmp_path_factory.mktemp("offer"), NEW, earlier=OLD)


@pytest.fixture(scope="module")
def back(tmp_path_factory: pytest.TempPathFactory) -> Offered:
    """The bundle of OLD."""
    return offer(tmp_path_factory.mktemp("back"), OLD)


class Both:
    """A device with OLD in slot a and NEW in slot b, both good, of which NEW runs, or OLD, to which it went back."""

    def __init__(self, base: Path, offered: Offered, *, runs: str = NEW) -> None:
        self.device, self.base = Device(base, OLD, root_of(OLD)), base
        self.tree = self.device.tree
        self.device.boot()
        self.bless()
        self.repair()  # keeps the kernel image of what was flashed
        running = self.look().root_hash
        assert running is not None
        self.order = order_for(offered[1], offered[2], running)
        with served(offered[0]) as ranges:
            Stage(self.tree, self.order, lambda *step: None, "nobody").run(ranges)
        seal(self.tree, self.order)
        if runs == NEW:
            self.device.boot()
            self.bless()
        else:
            new = self.look().images[0].entry
            count(Disk.at(self.device.path), new.name, new.given_up().name)
            assert self.device.boot() == OLD
            self.bless()
        assert self.problems() == ()

    def look(self) -> Boot:
        disk = Disk.at(self.device.path)
        return look(disk, (self.tree / "run/mixos/slot").read_text().strip(), self.tree)

    def bless(self) -> None:
        running = self.look().running
        assert running is not None
        if running.entry != running.entry.blessed():
            count(Disk.at(self.device.path), running.entry.name, running.entry.blessed().name)

    def problems(self) -> tuple[str, ...]:
        return examine(self.tree).problems

    def repair(self) -> tuple[Report, tuple[str, ...]]:
        return repair(self.tree)

    def slot(self, name: str) -> Slot:
        return Slot.of(Disk.at(self.device.path), name)

    def flip(self, at: int, bit: int = 0) -> None:
        """Turn a bit of the disk."""
        with self.device.path.open("r+b") as disk:
            old = os.pread(disk.fileno(), 1, at)[0]
            os.pwrite(disk.fileno(), bytes([old ^ 1 << bit]), at)

    def names(self) -> list[str]:
        return self.device.names()

    def entry(self, slot: str) -> Entry:
        return next(image.entry for image in self.look().images if image.slot == slot)

    def first(self) -> str:
        return self.look().images[0].version

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The disk is as it was, afterwards."""
        copy = Path(tempfile.mkdtemp(dir=self.base)) / "disk"
        crashstates.Scratch(self.device.path, copy).close()
        try:
            yield
        finally:
            copy.rename(self.device.path)

    def place(self, path: str) -> int:
        """Where the content of a file on the ESP begins."""
        with self.device.path.open("rb") as disk:
            esp = gpt.read(disk.fileno()).find("mixos-esp")
            volume = fatread.open_volume(disk.fileno(), esp.offset, esp.size)
            return volume.place(next(entry.first for name, entry in fatread.files(volume) if name == path))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, offered: Offered) -> dict[str, Both]:
    """By what runs."""
    return {runs: Both(tmp_path_factory.mktemp("both"), offered, runs=runs) for runs in (OLD, NEW)}


@pytest.fixture
def both(made: dict[str, Both]) -> Iterator[Both]:
    """NEW runs."""
    with made[NEW].kept():
        yield made[NEW]


@pytest.fixture
def left(made: dict[str, Both]) -> Iterator[Both]:
    """OLD runs again."""
    with made[OLD].kept():
        yield made[OLD]


def test_what_is_sound_is_not_touched(both: Both) -> None:
    before = both.device.path.read_bytes()
    report, mended = both.repair()
    assert (report.problems, mended) == ((), ())
    assert both.device.path.read_bytes() == before
    assert [(one.slot.name, one.version, one.data) for one in report.slots] == [
        ("a", OLD, "sound"),
        ("b", NEW, "sound"),
    ]


def test_what_others_change_meanwhile_is_no_damage(both: Both) -> None:
    """A version is called good while the slots are read."""
    running = both.look().running
    assert running is not None
    tried = Entry(running.entry.stem, 2, 1)
    count(Disk.at(both.device.path), running.entry.name, tried.name)

    def step(_what: str, number: int, *_: int) -> None:
        if number == 1:
            count(Disk.at(both.device.path), tried.name, tried.blessed().name)

    assert examine(both.tree, step).problems == ()
    assert both.entry("b").good


def test_what_was_flashed_keeps_no_kernel_image_until_it_is_repaired(tmp_path: Path) -> None:
    device = Device(tmp_path, OLD, root_of(OLD))
    device.boot()
    assert examine(device.tree).problems == ("slot-a kernel missing",)
    _, mended = repair(device.tree)
    assert mended == ("slot-a kernel missing",)
    assert examine(device.tree).problems == ()


def test_each_copy_of_the_table_restores_the_other(both: Both) -> None:
    size = both.device.path.stat().st_size
    before = both.device.path.read_bytes()
    places = {512 + 16: "primary", 1024 + 40: "primary", size - 512 + 16: "backup", size - 33 * 512 + 60: "backup"}
    for at, copy in places.items():
        both.flip(at)
        assert [one.split("-")[0] for one in both.problems()] == [f"table {copy}"]
        _, mended = both.repair()
        assert mended[0].startswith(f"table {copy}-")
        assert both.device.path.read_bytes() == before


@pytest.mark.parametrize("at", [446, 450, 454, 510, 511, 470])
def test_the_protective_mbr_is_made_again(both: Both, at: int) -> None:
    both.flip(at)
    assert both.repair()[1] == ("table mbr",)
    assert both.problems() == ()


def test_each_boot_sector_restores_the_other(both: Both) -> None:
    esp = Disk.at(both.device.path).table.find("mixos-esp").offset
    for sector, name in ((0, "boot-sector"), (6, "boot-sector-copy")):
        for at in (11, 13, 14, 16, 36, 44, 510):
            both.flip(esp + sector * 512 + at, 1)
            assert f"esp {name}" in both.problems()
            assert both.repair()[1] == (f"esp {name}",)
            assert both.problems() == ()


@pytest.mark.parametrize("runs", ["a", "b"])
def test_an_allocation_table_is_restored_by_the_other(both: Both, runs: str) -> None:
    """Of a chain that something has, in either table."""
    path = f"{FOLDER}/{both.entry(runs).name}"
    esp = Disk.at(both.device.path).table.find("mixos-esp")
    with both.device.path.open("rb") as disk:
        volume = fatread.open_volume(disk.fileno(), esp.offset, esp.size)
        first = next(entry.first for name, entry in fatread.files(volume) if name == path)
    before = both.device.path.read_bytes()
    for bit in (0, 3, 9):
        both.flip(volume.fats[0] + (first + 1) * 4 + bit // 8, bit % 8)
        assert both.problems()[0] == "esp table"
        assert "esp table" in both.repair()[1]
        assert both.device.path.read_bytes() == before
        both.flip(volume.fats[1] + (first + 1) * 4 + bit // 8, bit % 8)
        assert both.repair()[1] == ("esp tables-differ",)
        assert both.device.path.read_bytes() == before


@pytest.mark.parametrize("slot", ["a", "b"])
def test_a_damaged_entry_is_restored_under_its_name(both: Both, slot: str) -> None:
    name = both.entry(slot).name
    for at in (0, 2000, 9000):
        both.flip(both.place(f"{FOLDER}/{name}") + at, 5)
        assert f"slot-{slot} entry damaged" in both.problems()
        assert f"slot-{slot} entry damaged" in both.repair()[1]
        assert (both.problems(), both.entry(slot).name, both.first()) == ((), name, NEW)


@pytest.mark.parametrize("slot", ["a", "b"])
def test_a_kernel_image_that_is_kept_is_restored_by_the_entry(both: Both, slot: str) -> None:
    place = both.slot(slot)
    note = kept.read(place)
    assert note is not None
    for at in (kernel_place(note.blocks * verity.BLOCK) + 77, place.root[2] - kept.BLOCK + 50):
        both.flip(place.root[1] + at)
        assert both.repair()[1] in ((f"slot-{slot} kernel damaged",), (f"slot-{slot} kernel missing",))
        assert both.problems() == ()


@pytest.mark.parametrize("slot", ["a", "b"])
def test_a_tree_is_made_again_of_its_root(both: Both, slot: str) -> None:
    both.flip(both.slot(slot).tree[1] + 100)
    assert both.problems() == (f"slot-{slot} tree damaged",)
    both.repair()
    assert both.problems() == ()


def test_what_runs_gets_an_entry_and_can_be_updated_again(left: Both, offered: Offered) -> None:
    remove(left, "a")
    assert left.look().running is None
    assert left.repair()[1] == ("slot-a entry missing",)
    running = left.look().running
    assert running is not None
    assert (running.entry.left, left.first()) == (3, OLD)
    left.bless()
    with served(offered[0]) as ranges:
        assert Stage(left.tree, left.order, lambda *step: None, "nobody").run(ranges) == "b"


def remove(both: Both, slot: str) -> None:
    with Disk.at(both.device.path).esp().changing() as esp:
        esp.remove(f"{FOLDER}/{both.entry(slot).name}")


def test_a_newer_version_that_was_left_is_not_started_when_its_entry_is_made_again(left: Both) -> None:
    remove(left, "b")
    assert left.repair()[1] == ("slot-b entry missing",)
    assert (left.entry("b").bad, left.first(), left.problems()) == (True, OLD, ())


def test_an_older_version_gets_the_starts_of_a_new_one(both: Both) -> None:
    remove(both, "a")
    both.repair()
    assert (both.entry("a").left, both.first()) == (3, NEW)


def test_an_entry_under_no_proper_name_gets_one(both: Both) -> None:
    name = both.entry("a").name
    with Disk.at(both.device.path).esp().changing() as esp:
        esp.rename(f"{FOLDER}/{name}", "odd.efi")
    both.repair()
    assert (both.problems(), both.entry("a").stem, both.first()) == ((), name.partition("+")[0], NEW)


def test_a_slot_without_entry_and_note_is_known_by_its_file_system(tmp_path: Path, offered: Offered) -> None:
    root = b"hsqs".ljust(40, b"\0") + len(root_of(OLD)).to_bytes(8, "little") + root_of(OLD)[48:]
    device = Device(tmp_path, OLD, root)
    device.boot()
    repair(device.tree)
    disk = Disk.at(device.path)
    slot, names = Slot.of(disk, "a"), device.names()
    with device.path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(kept.BLOCK), slot.root[1] + slot.root[2] - kept.BLOCK)
    with disk.esp().changing() as esp:
        esp.remove(f"{FOLDER}/{names[0]}")
    (device.tree / "proc/cmdline").write_text("panic=10\n")
    assert examine(device.tree).problems == ("slot-a kernel missing", "slot-a entry missing")
    repair(device.tree)
    assert examine(device.tree).problems == ()
    assert device.boot() == OLD


def test_what_belongs_to_nothing_goes(both: Both) -> None:
    """Names of the same file after a cut, an entry whose root nobody has, a file that was coming."""
    device = both.device
    lost = device.install("0.9.0", "a", Entry("lost1", 3))
    identify(Disk.at(device.path), "a", verity.partition_ids(bytes.fromhex(both.device.root_hash.hex())))
    with Disk.at(device.path).esp().changing() as esp:
        esp.add(f"{FOLDER}/COMING.NEW", [b"half"], 4, epoch=0)
        esp.add(f"{FOLDER}/notes.txt", [b"mine"], 4, epoch=0)
    assert {"file lost1+3.efi", "file COMING.NEW"} <= set(both.problems())
    report, _ = both.repair()
    assert report.unknown == ("notes.txt",)
    assert all(image.root_hash != lost for image in both.look().images)
    assert [one for one in report.problems if one.startswith("file")] == []


# -- with a bundle -----------------------------------------------------------------------------------------------------


def by_bundle(both: Both, bundle: Offered) -> tuple[Report, tuple[str, ...], int]:
    """Repaired; and bytes that were fetched."""
    running = uki.root_hash((both.tree / "proc/cmdline").read_text())
    assert running is not None
    order = order_for(bundle[1], bundle[2], running)
    fetched = [0]
    with served(bundle[0]) as ranges:
        report, mended = repair_by(both.tree, order, ranges, lambda *step: fetched.append(step[3]), "nobody")
    return report, mended, max(fetched)


def test_a_damaged_root_is_fetched_where_it_is_damaged(both: Both, back: Offered) -> None:
    names, first = both.names(), both.first()
    both.flip(both.slot("a").root[1] + 123_456)
    assert both.problems() == ("slot-a data damaged",)
    assert both.repair()[1] == ()
    assert examine(both.tree).as_json()["bundle"] == ["a"]
    report, mended, fetched = by_bundle(both, back)
    assert (report.problems, mended) == ((), ("slot-a data damaged",))
    assert 0 < fetched <= order_for(back[1], back[2], bytes(32)).transfer
    assert (both.names(), both.first()) == (names, first)


def test_all_of_a_slot_is_repaired_at_once(both: Both, back: Offered) -> None:
    slot, name = both.slot("a"), both.entry("a").name
    note = kept.read(slot)
    assert note is not None
    for at in (5000, kernel_place(note.blocks * verity.BLOCK) + 5, slot.root[2] - kept.BLOCK):
        both.flip(slot.root[1] + at)
    both.flip(slot.tree[1])
    both.flip(both.place(f"{FOLDER}/{name}") + 300)
    report, _, _ = by_bundle(both, back)
    assert (report.problems, both.entry("a").name, both.first()) == ((), name, NEW)


def test_a_slot_that_nothing_but_its_identities_names_is_repaired(both: Both, back: Offered) -> None:
    """Neither note nor entry."""
    slot = both.slot("a")
    remove(both, "a")
    both.flip(slot.root[1] + slot.root[2] - kept.BLOCK)
    both.flip(slot.root[1] + 5000)
    report, _, _ = by_bundle(both, back)
    assert (report.problems, both.entry("a").left, both.first()) == ((), 3, NEW)


def test_a_version_that_was_left_stays_left(left: Both, offered: Offered) -> None:
    both, entry = left, left.entry("b")
    both.flip(both.slot("b").root[1] + 5000)
    report, _, _ = by_bundle(both, offered)
    assert (report.problems, both.entry("b"), both.first()) == ((), entry, OLD)
    remove(both, "b")
    both.flip(both.slot("b").root[1] + 5000)
    by_bundle(both, offered)
    assert (both.entry("b").bad, both.first(), both.problems()) == (True, OLD, ())


def test_what_runs_is_not_repaired_by_a_bundle(both: Both, offered: Offered) -> None:
    before = both.device.path.read_bytes()
    with pytest.raises(RefusedError) as caught:
        by_bundle(both, offered)
    assert caught.value.reason == "update-same"
    assert both.device.path.read_bytes() == before


def test_what_is_not_there_is_not_repaired(left: Both, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        by_bundle(left, offer(tmp_path, "1.2.0"))
    assert caught.value.reason == "update-not-there"


@pytest.mark.parametrize("place", ["root", "tree", "kernel", "note"])
def test_a_sector_that_cannot_be_read_is_damaged_until_it_is_written(
    both: Both, back: Offered, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    slot, bad = both.slot("a"), mmap.mmap(-1, 1)  # also of processes that this one forks
    note = kept.read(slot)
    assert note is not None
    at = {
        "root": slot.root[1] + 8192,
        "tree": slot.tree[1],
        "kernel": slot.root[1] + kernel_place(note.blocks * verity.BLOCK) + 512,
        "note": slot.root[1] + slot.root[2] - 512,
    }[place]
    bad[0] = 1
    read, write = os.pread, os.pwrite

    def fails(fd: int, size: int, offset: int) -> bytes:
        if bad[0] and offset <= at < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, size, offset)

    def remaps(fd: int, data: bytes, offset: int) -> int:
        if offset <= at < offset + len(data):
            bad[0] = 0
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pread", fails)
    monkeypatch.setattr(os, "pwrite", remaps)
    name = {"root": "data"}.get(place, place)
    how = "missing" if place == "note" else "damaged"
    assert both.problems() == (f"slot-a {name.replace('note', 'kernel')} {how}",)
    report, _, _ = by_bundle(both, back) if place == "root" else (*both.repair(), 0)
    assert (report.problems, bad[0]) == ((), 0)


# -- one bit -----------------------------------------------------------------------------------------------------------

BITS = 1000 if WHOLE else 20


def places(both: Both) -> list[tuple[str, int, int]]:
    """What is on the disk, and where it is: kind, first byte, bytes."""
    disk = Disk.at(both.device.path)
    size = both.device.path.stat().st_size
    esp = disk.table.find("mixos-esp")
    with both.device.path.open("rb") as file:
        volume = fatread.open_volume(file.fileno(), esp.offset, esp.size)
        folder = next(one for one in fatread.folders(volume) if one.prefix == f"{FOLDER}/")
    found = [
        ("table", 512, 92),
        ("table", 1024, 6 * 128),
        ("table", size - 512, 92),
        ("table", size - 33 * 512, 6 * 128),
        ("mbr", 446, 66),
        ("fat", volume.fats[0], 512),
        ("fat", volume.fats[1], 512),
        ("boot", esp.offset, 512),
        ("boot", esp.offset + 6 * 512, 512),
        ("names", volume.place(folder.clusters[0]), folder.end * 32),
    ]
    for name in ("a", "b"):
        slot, note = both.slot(name), kept.read(both.slot(name))
        assert note is not None
        found += [
            ("root", slot.root[1], note.blocks * verity.BLOCK),
            ("tree", slot.tree[1], verity.tree_blocks(note.blocks) * verity.BLOCK),
            ("kept", slot.root[1] + kernel_place(note.blocks * verity.BLOCK), note.size),
            ("note", slot.root[1] + slot.root[2] - kept.BLOCK, kept.BLOCK),
            ("kernel", both.place(f"{FOLDER}/{both.entry(name).name}"), note.size),
        ]
    return found


def mended(both: Both, back: Offered, kind: str, at: int) -> str:
    """Whether a wrong bit is "mended", only "told", "lost", or one that nobody minds: "harmless"."""
    found = examine(both.tree).problems
    if kind == "names" and found == ("esp damaged",):  # a folder that cannot be read has no copy
        with pytest.raises(DiskError) as caught:
            both.repair()
        assert caught.value.reason == "esp-damaged"
        return "lost"
    report, _ = both.repair()
    if kind == "root":
        slot = "b" if at >= both.slot("b").root[1] else "a"
        assert report.problems == (f"slot-{slot} data damaged",)
        if slot == "b":
            return "told"  # it runs
        report, _, _ = by_bundle(both, back)
    where = kind, at, found
    assert report.problems == (), where
    assert [one.version for one in both.look().images] == [NEW, OLD], where
    assert all(one.files for one in report.slots), where
    return "mended" if found else "harmless"


def test_one_wrong_bit_anywhere_is_repaired_or_told(
    both: Both, back: Offered, record_property: Callable[[str, object], None]
) -> None:
    """What was started first is, and what is not as it was is named. Only a root needs more than what is there.

    Each bit is turned on the disk that the repair of the one before has left.
    """
    chance, seen = random.Random(5), Counter[tuple[str, str]]()
    for number in range(BITS):
        there = places(both)
        kind, start, size = there[number % len(there)]
        at, bit = start + chance.randrange(size), chance.randrange(8)
        both.flip(at, bit)
        how = mended(both, back, kind, at)
        seen[kind, how] += 1
        if how != "mended":
            both.flip(at, bit)
    record_property("bits", seen)
    assert not any(seen[kind, "harmless"] for kind in ("root", "tree", "kept", "note", "kernel"))
    if WHOLE:
        assert all(seen[kind, "mended"] for kind in ("table", "mbr", "fat", "boot", "names"))
        assert 2 * seen["names", "lost"] < seen["names", "mended"]


# -- cuts --------------------------------------------------------------------------------------------------------------

STATES = 2000 if WHOLE else 40


def in_table(both: Both) -> None:
    both.flip(512 + 20)


def in_boot_sector(both: Both) -> None:
    both.flip(Disk.at(both.device.path).table.find("mixos-esp").offset + 14)


def in_entry(slot: str) -> Callable[[Both], None]:
    return lambda both: both.flip(both.place(f"{FOLDER}/{both.entry(slot).name}") + 9000)


def without_entry(slot: str) -> Callable[[Both], None]:
    return lambda both: remove(both, slot)


def in_root(both: Both) -> None:
    both.flip(both.slot("a").root[1] + 70_000)


def in_tree(slot: str) -> Callable[[Both], None]:
    return lambda both: both.flip(both.slot(slot).tree[1] + 64)


def in_note(slot: str) -> Callable[[Both], None]:
    return lambda both: both.flip(both.slot(slot).root[1] + both.slot(slot).root[2] - 4090)


ENTRY, NO_ENTRY, NOTE = in_entry("a"), without_entry("a"), in_note("a")
DAMAGES = [
    *(in_table, in_boot_sector, in_root, ENTRY, NO_ENTRY, NOTE),
    *(in_entry("b"), without_entry("b"), in_tree("a"), in_tree("b")),
]


class Startable:
    """What would come up of a disk: the names of entries that are whole, of roots that verify."""

    def __init__(self, both: Both) -> None:
        self.kernels = set()
        for name in ("a", "b"):
            slot = both.slot(name)
            note = kept.read(slot)
            assert note is not None
            self.kernels.add(note.sha256)

    def of(self, starts: crashstates.Starts) -> tuple[dict[str, str], str]:
        """Stem → name, and the name of the one that the loader starts."""
        try:
            start = starts.look()
        except FormatError:  # as it was damaged
            return {}, ""
        esp = starts.esp
        files = starts.scratch.once(
            fatread.read_files, [(esp.offset, esp.size)], starts.scratch.fd, esp.offset, esp.size
        )
        good = {
            name.partition("+")[0]: name
            for name in start.good
            if hashlib.sha256(files[f"{FOLDER}/{name}"]).digest() in self.kernels
        }
        return good, start.first


def test_no_cut_of_a_repair_takes_anything_from_the_loader(
    tmp_path: Path,
    offered: Offered,
    back: Offered,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """What came up before comes up, what was started first is, and a repair that was cut is made to its end."""
    monkeypatch.setattr(worker, "_confine", lambda *_: None)  # it would take the log away from the process
    chance, seen, torn, better = random.Random(3), Counter[str](), Counter[str](), Counter[str]()
    both = Both(tmp_path, offered)
    whole = Startable(both)
    running = both.entry("b").stem
    rounds = 0
    while sum(seen.values()) < STATES or (WHOLE and rounds < 3 * len(DAMAGES)):
        with both.kept():
            some = [DAMAGES[rounds % len(DAMAGES)], *chance.sample(DAMAGES, chance.randrange(3))]
            for damage in sorted(dict.fromkeys(some), key=lambda one: one is in_boot_sector):
                with contextlib.suppress(StopIteration):  # no entry to damage is left
                    damage(both)
            rounds += 1
            by = in_root in some or (NOTE in some and (ENTRY in some or NO_ENTRY in some))
            kind = "bundle" if by else "copies"
            for state, before, found in cut(both, whole, back if by else None, chance):
                seen[kind] += 1
                torn[kind] += state.torn
                better[kind] += found != before
                where = (state, [one.__qualname__ for one in some], before, found)
                assert set(before[0]) <= set(found[0]), where
                if before[1] in before[0].values():
                    assert found[1] in found[0].values(), where
                    assert found[1] == before[1] or found[1].startswith(f"{running}+"), where
            (both.base / "next").rename(both.device.path)
            if by:
                by_bundle(both, back)
            else:
                both.repair()
            assert both.problems() == (), some
            assert Startable(both).kernels == whole.kernels, some
    record_property("states", (seen, torn, better))
    assert torn["copies"] > STATES // 20
    assert better["copies"] > 0
    assert seen["bundle"] > STATES // 10 or not WHOLE


def cut(
    both: Both, whole: Startable, bundle: Offered | None, chance: random.Random
) -> Iterator[tuple[crashstates.State, tuple[dict[str, str], str], tuple[dict[str, str], str]]]:
    """Repair, and look at all that cuts may leave of it; one of those is in the file `next` then."""
    starts = crashstates.Starts(both.device.path, both.base / "scratch")
    before = whole.of(starts)
    fd = os.open(both.device.path, os.O_RDWR)
    with crashstates.recorded(fd, both.base / "log") as log:
        log.mark("repair")
        if bundle is None:
            both.repair()
        else:
            by_bundle(both, bundle)
    os.close(fd)
    states = crashstates.states(crashstates.read_log(both.base / "log"), starts.scratch, torn=8, orders=24)
    for number, state in enumerate(states, 1):
        yield state, before, whole.of(starts)
        if chance.random() < 1 / number:
            crashstates.Scratch(starts.scratch.path, both.base / "next").close()
    assert starts.scratch.same(both.device.path)
    starts.scratch.close()
