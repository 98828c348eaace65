"""`mixos-slots renew`: rescue entry and loader of a release, put on both EFI system partitions once it is good."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from common.bundle.manifest import Manifest
from common.disk import fatread, gpt
from common.disk.fatedit import Cleaned, Editor
from common.efi import pe, siglist
from common.efi.entries import BOOT_FILES
from common.errors import DiskError, MixosError, RefusedError
from daemon.parts.update.boot import Boot, Disk, look
from daemon.slots import bootfiles
from daemon.slots.bootfiles import ESPS, Kept, Note, renew
from daemon.slots.disk import BLOCK, Slot, count
from daemon.slots.examine import examine
from daemon.slots.repair import repair, repair_by
from daemon.slots.seal import seal
from daemon.slots.stage import Stage
from tests import crashstates
from tests.offers import boot_files, offer, order_for, root_of, served
from tests.secureboot import OWNER
from tests.slots import EFIVARS, Device

WHOLE = "MIXOS_WHOLE" in os.environ
STATES = 4000 if WHOLE else 300
OLD, NEW = "1.0.0", "1.1.0"
PATHS = [path for name in ("rescue", "loader") for path in BOOT_FILES[name]]
Offered = tuple[Path, Manifest, int]


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> Offered:
    return offer(tmp_path_factory.mktemp("offer"), NEW, earlier=OLD, rescue=True)


class Updated:
    """A device that runs OLD with its files, and has taken NEW, which the loader starts next."""

    def __init__(self, base: Path, offered: Offered) -> None:
        self.device = Device(base, OLD, root_of(OLD), boot_files(OLD))
        self.tree, self.path = self.device.tree, self.device.path
        self.device.boot()
        self.bless()
        running = self.look().root_hash
        assert running is not None
        self.order = order_for(offered[1], offered[2], running)
        with served(offered[0]) as ranges:
            Stage(self.tree, self.order, lambda *_: None, "nobody").run(ranges)
            self.fetched = ranges.fetched
        seal(self.tree, self.order)

    def look(self) -> Boot:
        return look(Disk.at(self.path), (self.tree / "run/mixos/slot").read_text().strip(), self.tree)

    def bless(self) -> None:
        running = self.look().running
        assert running is not None
        if running.entry != running.entry.blessed():
            count(Disk.at(self.path), running.entry.name, running.entry.blessed().name)

    def switched(self) -> Updated:
        """NEW runs, and was called good."""
        assert self.device.boot() == NEW
        self.bless()
        return self

    def versions(self) -> dict[str, str]:
        """PARTITION:PATH → the version whose file it is, "" for another one."""
        found = {}
        with self.path.open("rb") as disk:
            for name in ESPS:
                part = gpt.read(disk.fileno()).find(name)
                files = fatread.read_files(disk.fileno(), part.offset, part.size)
                found |= {f"{name}:{path}": version_of(path, files[path]) for path in PATHS}
        return found

    def slot(self, name: str) -> Slot:
        return Slot.of(Disk.at(self.path), name)

    def note(self) -> Note:
        found = bootfiles.read(self.slot("b"), self.order.root_hash)
        assert found is not None
        return found


def version_of(path: str, data: bytes) -> str:
    number = 0 if path in BOOT_FILES["rescue"] else 1
    return next((one for one in (OLD, NEW) if boot_files(one)[number] == data), "")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, offered: Offered) -> Updated:
    return Updated(tmp_path_factory.mktemp("updated"), offered)


@pytest.fixture
def updated(made: Updated, tmp_path: Path) -> Iterator[Updated]:
    """As `Updated` leaves it."""
    crashstates.Scratch(made.path, tmp_path / "disk").close()
    told = {path: path.read_bytes() for path in made.tree.rglob("*") if path.is_file() and path != made.path}
    yield made
    (tmp_path / "disk").rename(made.path)
    for path, data in told.items():
        path.write_bytes(data)


def test_the_files_of_a_release_wait_until_it_is_good(updated: Updated) -> None:
    assert set(updated.versions().values()) == {OLD}
    assert renew(updated.tree) == (), "the version that runs brought none"
    assert updated.device.boot() == NEW
    with pytest.raises(RefusedError) as caught:
        renew(updated.tree)
    assert caught.value.reason == "update-trial"
    assert set(updated.versions().values()) == {OLD}
    updated.bless()
    written = renew(updated.tree)
    assert written == tuple(f"{esp}:{path}" for esp in ("mixos-esp-b", "mixos-esp") for path in PATHS)
    assert set(updated.versions().values()) == {NEW}
    for name in ESPS:
        with Disk.at(updated.path).esp(name).changing() as esp:
            assert esp.clean() == Cleaned(0, 0, 0, ())


def test_they_are_put_in_place_once(updated: Updated) -> None:
    """What somebody goes back to brings no older ones, and what is changed afterwards stays."""
    updated.switched()
    assert not updated.note().done
    renew(updated.tree)
    assert updated.note().done
    before = updated.path.read_bytes()
    assert renew(updated.tree) == ()
    assert updated.path.read_bytes() == before
    new = updated.look().running
    assert new is not None
    count(Disk.at(updated.path), new.entry.name, new.entry.given_up().name)
    assert updated.device.boot() == OLD
    updated.bless()
    assert renew(updated.tree) == ()
    assert set(updated.versions().values()) == {NEW}


def test_a_delta_of_them_fetches_what_has_changed(updated: Updated) -> None:
    assert updated.fetched <= updated.order.transfer < sum(map(len, boot_files(NEW))) // 4


def test_files_that_are_there_already_are_not_written(updated: Updated) -> None:
    """After a cut, for one."""
    updated.switched()
    rescue = boot_files(NEW)[0]
    with Disk.at(updated.path).esp("mixos-esp-b").changing() as esp:
        esp.replace(PATHS[0], [rescue], len(rescue), epoch=0)
    assert "mixos-esp-b:EFI/Linux/RESCUE.EFI" not in renew(updated.tree)
    assert set(updated.versions().values()) == {NEW}


def test_an_old_one_that_cannot_be_read_is_replaced(updated: Updated) -> None:
    """Its chain of clusters ends too early."""
    updated.switched()
    with updated.path.open("r+b") as disk:
        part = gpt.read(disk.fileno()).find("mixos-esp")
        volume = fatread.open_volume(disk.fileno(), part.offset, part.size)
        first = next(entry.first for name, entry in fatread.files(volume) if name == PATHS[0])
        for table in volume.fats:
            os.pwrite(disk.fileno(), b"\xff\xff\xff\x0f", table + first * 4)
    with pytest.raises(DiskError), Disk.at(updated.path).esp().reading() as esp:
        esp.read(PATHS[0])
    renew(updated.tree)
    assert set(updated.versions().values()) == {NEW}


def test_where_there_is_no_such_file_none_is_made(updated: Updated) -> None:
    """An image without a rescue entry, a table without a second partition."""
    updated.switched()
    with Disk.at(updated.path).esp().changing() as esp:
        esp.remove(PATHS[0])
    assert "mixos-esp:EFI/Linux/RESCUE.EFI" not in renew(updated.tree)
    with Disk.at(updated.path).esp().reading() as esp:
        assert PATHS[0] not in esp.files()


@pytest.mark.parametrize("partition", ESPS)
def test_a_full_partition_keeps_the_old_ones(updated: Updated, partition: str) -> None:
    updated.switched()
    with Disk.at(updated.path).esp(partition).changing() as esp:
        free = esp._vacant().count(1) * esp._volume.cluster
        size = free - (64 << 10)
        esp.add("EFI/Linux/FULL.BIN", (bytes(min(1 << 20, size - at)) for at in range(0, size, 1 << 20)), size, epoch=0)
    with pytest.raises(RefusedError) as caught:
        renew(updated.tree)
    assert caught.value.reason == "esp-full"
    versions = updated.versions()
    assert versions[f"{partition}:EFI/Linux/RESCUE.EFI"] == OLD
    assert "" not in versions.values()
    assert not updated.note().done
    repair(updated.tree)
    assert "" not in updated.versions().values()
    with Disk.at(updated.path).esp(partition).changing() as esp:
        esp.remove("EFI/Linux/FULL.BIN")
    renew(updated.tree)
    assert set(updated.versions().values()) == {NEW}


def test_a_second_partition_that_is_damaged_is_told_and_keeps_nothing_from_the_first(updated: Updated) -> None:
    updated.switched()
    part = gpt.read(updated.path).find("mixos-esp-b")
    with updated.path.open("r+b") as disk:
        os.pwrite(disk.fileno(), bytes(64 << 10), part.offset)
    with pytest.raises(DiskError) as caught:
        renew(updated.tree)
    assert caught.value.reason == "esp-damaged"
    with Disk.at(updated.path).esp().reading() as esp:
        assert {version_of(path, esp.read(path)) for path in PATHS} == {NEW}
    assert not updated.note().done


def test_what_firmware_refuses_is_not_put_in_place(updated: Updated) -> None:
    """The old ones stay; once its key is in db it is."""
    updated.switched()

    def variable(name: str, data: bytes) -> None:
        vendor = siglist.VARIABLES.get(name, siglist.VARIABLES["PK"])
        (updated.tree / EFIVARS / f"{name}-{vendor}").write_bytes(b"\7\0\0\0" + data)

    def hashes(*images: bytes) -> bytes:
        return siglist.write([siglist.Signature(siglist.SHA256, OWNER, pe.authenticode(image)) for image in images])

    before = updated.path.read_bytes()
    rescue, loader = boot_files(NEW)
    variable("SecureBoot", b"\1")
    for db, dbx in ((hashes(rescue), b""), (hashes(loader), b""), (hashes(rescue, loader), hashes(rescue))):
        variable("db", db)
        variable("dbx", dbx)
        with pytest.raises(RefusedError) as caught:
            renew(updated.tree)
        assert caught.value.reason == "update-refused"
    assert updated.path.read_bytes() == before
    variable("dbx", b"")
    renew(updated.tree)
    assert set(updated.versions().values()) == {NEW}
    for name in ("SecureBoot", "db", "dbx"):
        vendor = siglist.VARIABLES.get(name, siglist.VARIABLES["PK"])
        (updated.tree / EFIVARS / f"{name}-{vendor}").unlink()


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_that_the_slot_has_lost_is_told(updated: Updated, number: int) -> None:
    updated.switched()
    slot, kept = updated.slot("b"), updated.note().files[number]
    with updated.path.open("r+b") as disk:
        at = slot.root[1] + kept.offset + kept.size - 1
        os.pwrite(disk.fileno(), bytes([os.pread(disk.fileno(), 1, at)[0] ^ 1]), at)
    with pytest.raises(DiskError) as caught:
        renew(updated.tree)
    assert caught.value.reason == "slots-readback"
    assert set(updated.versions().values()) == {OLD}


def test_a_disk_that_loses_what_was_written_is_noticed_before_the_old_ones_go(
    updated: Updated, monkeypatch: pytest.MonkeyPatch
) -> None:
    updated.switched()
    write, lost = os.pwrite, NEW.encode() * 40
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: len(data) if lost in bytes(data) else write(fd, data, at))
    with pytest.raises(DiskError) as caught:
        renew(updated.tree)
    assert "another content than was written" in caught.value.message
    monkeypatch.undo()
    assert updated.versions()["mixos-esp:EFI/Linux/RESCUE.EFI"] == OLD
    assert updated.versions()["mixos-esp-b:EFI/Linux/RESCUE.EFI"] == OLD


def test_a_release_whose_files_the_slot_cannot_hold_is_refused(updated: Updated, offered: Offered) -> None:
    rescue = updated.order.files["rescue"]
    large = replace(rescue, target=replace(rescue.target, size=16 << 20))
    order = replace(updated.order, files={"rescue": large}, root_hash=bytes(32))
    with served(offered[0]) as ranges, pytest.raises(RefusedError) as caught:
        Stage(updated.tree, order, lambda *_: None, "nobody").run(ranges)
    assert caught.value.reason == "update-size"


# -- repair ------------------------------------------------------------------------------------------------------------


@contextmanager
def changing(updated: Updated, partition: str) -> Iterator[Editor]:
    with Disk.at(updated.path).esp(partition).changing() as esp:
        yield esp


def flip(updated: Updated, partition: str, path: str, at: int) -> None:
    with updated.path.open("r+b") as disk:
        part = gpt.read(disk.fileno()).find(partition)
        volume = fatread.open_volume(disk.fileno(), part.offset, part.size)
        place = volume.place(next(entry.first for name, entry in fatread.files(volume) if name == path)) + at
        os.pwrite(disk.fileno(), bytes([os.pread(disk.fileno(), 1, place)[0] ^ 4]), place)


@pytest.mark.parametrize("partition", ESPS)
def test_one_partition_restores_the_other(updated: Updated, partition: str) -> None:
    """Of the release that runs: what its slot keeps tells which copy is the damaged one."""
    updated.switched()
    renew(updated.tree)
    assert examine(updated.tree).problems == ("slot-a kernel missing",)
    for path in PATHS:
        flip(updated, partition, path, 700)
        wrong = f"file {partition}:{path} damaged"
        assert wrong in examine(updated.tree).problems
        assert wrong in repair(updated.tree)[1]
        assert examine(updated.tree).problems == ()
    with changing(updated, partition) as esp:
        esp.remove(PATHS[0])
    assert repair(updated.tree)[1] == (f"file {partition}:{PATHS[0]} missing",)
    assert set(updated.versions().values()) == {NEW}


def test_both_copies_are_restored_from_the_slot(updated: Updated) -> None:
    updated.switched()
    renew(updated.tree)
    for number, partition in enumerate(ESPS):
        flip(updated, partition, PATHS[0], 900 + number)
    assert len([one for one in repair(updated.tree)[1] if one.endswith("RESCUE.EFI damaged")]) == 2
    assert set(updated.versions().values()) == {NEW}


def test_between_two_that_nothing_tells_apart_nobody_chooses(updated: Updated) -> None:
    """Rescue entries as they were flashed, without a signature; of the loader there are four."""
    flip(updated, ESPS[0], PATHS[0], 700)
    assert not [one for one in examine(updated.tree).problems if one.startswith("file")]
    flip(updated, ESPS[1], PATHS[1], 700)
    assert f"file {ESPS[1]}:{PATHS[1]} damaged" in repair(updated.tree)[1]
    assert updated.versions()[f"{ESPS[1]}:{PATHS[1]}"] == OLD


def test_what_the_slot_keeps_is_restored_from_the_partitions(updated: Updated) -> None:
    """Once it was put there; before that only the bundle has it."""
    updated.switched()
    slot, kept = updated.slot("b"), updated.note().files[0]
    wrong = f"file mixos-root-b:{kept.name} damaged"
    for renewed in (False, True):
        if renewed:
            renew(updated.tree)
        with updated.path.open("r+b") as disk:
            at = slot.root[1] + kept.offset + 50
            byte = os.pread(disk.fileno(), 1, at)[0]
            os.pwrite(disk.fileno(), bytes([byte ^ 1]), at)
            report, mended = repair(updated.tree)
            assert (wrong in report.problems, wrong in mended) == (not renewed, renewed)
            os.pwrite(disk.fileno(), bytes([byte]), at)
    assert updated.note().done


def test_a_slot_that_a_bundle_repairs_brings_no_older_ones(updated: Updated, offered: Offered) -> None:
    """It remembers that its files were put in place."""
    updated.switched()
    renew(updated.tree)
    new = updated.look().running
    assert new is not None
    count(Disk.at(updated.path), new.entry.name, new.entry.given_up().name)
    assert updated.device.boot() == OLD
    updated.bless()
    for kept in updated.note().files:
        with updated.path.open("r+b") as disk:
            os.pwrite(disk.fileno(), b"?", updated.slot("b").root[1] + kept.offset)
    with served(offered[0]) as ranges:
        report, _ = repair_by(updated.tree, updated.order, ranges, lambda *_: None, "nobody")
    assert not [one for one in report.problems if "file" in one]
    assert updated.note().done


def test_half_a_renewal_is_no_damage(updated: Updated) -> None:
    updated.switched()
    with changing(updated, ESPS[0]) as esp:
        for path, data in zip(PATHS, [boot_files(NEW)[0], *[boot_files(NEW)[1]] * 2], strict=True):
            esp.replace(path, [data], len(data), epoch=0)
    repair(updated.tree)
    versions = updated.versions()
    assert {versions[f"{ESPS[0]}:{path}"] for path in PATHS} == {NEW}


def test_the_boot_sector_of_the_second_partition_is_restored(updated: Updated) -> None:
    offset = gpt.read(updated.path).find(ESPS[0]).offset
    with updated.path.open("r+b") as disk:
        os.pwrite(disk.fileno(), b"\xff", offset + 14)
    assert "esp-b boot-sector" in repair(updated.tree)[1]
    assert set(updated.versions().values()) == {OLD}


# -- the note ----------------------------------------------------------------------------------------------------------


def test_a_note_says_what_it_was_given_and_nothing_else_is_one() -> None:
    files = (Kept("rescue", 8192, 5, bytes(32)), Kept("loader", 16384, 7, bytes(range(32))))
    for done in (False, True):
        note = Note(bytes(range(32)), 1_700_000_000, files, done)
        data = note.dump()
        assert len(data) == BLOCK
        assert bootfiles.parse(data) == note
        chance = random.Random(1)
        for _ in range(2000):
            at = chance.randrange(BLOCK)
            torn = bytearray(data)
            torn[at] ^= 1 << chance.randrange(8)
            assert bootfiles.parse(bytes(torn)) in (None, replace(note, done=False))
    for bad in ("rescue2", "../x"):
        assert bootfiles.parse(Note(bytes(32), 0, (Kept(bad, 8192, 5, bytes(32)),)).dump()) is None
    for size, at in ((0, 8192), (1 << 40, 8192), (5, 0), (5, -1)):
        assert bootfiles.parse(Note(bytes(32), 0, (Kept("rescue", at, size, bytes(32)),)).dump()) is None


# -- cuts --------------------------------------------------------------------------------------------------------------


def test_no_cut_of_a_renewal_leaves_half_a_file(
    updated: Updated, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each file is the old or the new one, whole, on both partitions, and both versions start; what was cut is made to
    its end from there."""
    updated.switched()
    chance, seen, torn, found = random.Random(5), 0, 0, Counter[int]()
    crashstates.Scratch(updated.path, tmp_path / "begin").close()
    while seen < STATES:
        starts = crashstates.Starts(updated.path, tmp_path / "scratch")
        parts = [gpt.read(updated.path).find(name) for name in ESPS]
        old = starts.look()
        fd = os.open(updated.path, os.O_RDWR)
        with crashstates.recorded(fd, tmp_path / "log") as log:
            log.mark("renew")
            renew(updated.tree)
            written = log.written
        os.close(fd)
        assert set(updated.versions().values()) == {NEW}
        number = 0
        with crashstates.read_log(tmp_path / "log") as log_of_it:
            for state in crashstates.states(log_of_it, starts.scratch, seed=seen, torn=2, orders=12):
                if chance.random() > (1.0 if WHOLE else STATES / written / 2):
                    continue
                new = sum(starts.scratch.once(_new, [(p.offset, p.size)], starts.scratch.fd, p) for p in parts)
                assert starts.look() == old, state
                found[new] += 1
                seen, torn, number = seen + 1, torn + state.torn, number + 1
                if chance.random() < 1 / number:
                    crashstates.Scratch(starts.scratch.path, tmp_path / "next").close()
        assert starts.scratch.same(updated.path)
        starts.scratch.close()
        (tmp_path / "next").rename(updated.path)
        renew(updated.tree)
        assert set(updated.versions().values()) == {NEW}
        assert updated.note().done
        for name in ESPS:
            with Disk.at(updated.path).esp(name).changing() as esp:
                assert esp.clean() == Cleaned(0, 0, 0, ())
        crashstates.Scratch(tmp_path / "begin", updated.path).close()
    record_property("states", (seen, torn, dict(found)))
    assert torn > STATES // 10
    assert {0, 2 * len(PATHS)} <= set(found)
    assert len(found) > 3


def _new(fd: int, part: gpt.Partition) -> int:
    """How many of the files are the new ones; the others are the old ones."""
    files = fatread.read_files(fd, part.offset, part.size)
    versions = [version_of(path, files[path]) for path in PATHS]
    assert "" not in versions
    return versions.count(NEW)


def test_a_disk_that_fails_at_any_write_is_told_and_tried_again(
    updated: Updated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updated.switched()
    crashstates.Scratch(updated.path, tmp_path / "begin").close()
    write, left = os.pwrite, [10**9]

    def failing(fd: int, data: bytes, at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error")
        return write(fd, data, at)

    monkeypatch.setattr(os, "pwrite", failing)
    renew(updated.tree)
    total = 10**9 - left[0]
    for after in range(total) if WHOLE else random.Random(3).sample(range(total), 8):
        left[0] = 10**9
        crashstates.Scratch(tmp_path / "begin", updated.path).close()
        left[0] = after
        with pytest.raises((MixosError, OSError)):
            renew(updated.tree)
        left[0] = 10**9
        assert "" not in updated.versions().values()
        renew(updated.tree)
        assert set(updated.versions().values()) == {NEW}
