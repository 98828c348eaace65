"""The states that a power cut can leave behind: that they are shown, and what a disk starts in each of them."""

import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid5

import pytest

from common.disk import gpt, verity
from common.disk.fatedit import Editor
from common.efi.entries import COMING, FOLDER, image_name
from tests import crashstates
from tests.crashstates import DISCARD, FLUSH, FUA, MARK, Event, Scratch, Start
from tests.images import ROOT, Bench

EPOCH = 1703030400


def sectors(text: str) -> bytes:
    """One sector for each letter."""
    return b"".join(letter.encode() * 512 for letter in text)


def log_of(path: Path, *entries: tuple[int, int, str], known: int | None = None) -> crashstates.Log:
    """A log by the format's description. entries: (flags, sector, letters). known: entries that the head counts."""
    data = struct.pack("<QQQI", 0x6A736677736872, 1, len(entries) if known is None else known, 512).ljust(512, b"\0")
    for flags, sector, letters in entries:
        text = letters.encode() if flags & MARK else b""
        count = 0 if flags & MARK else len(letters)
        data += (struct.pack("<QQQQ", sector, count, flags, len(text)) + text).ljust(512, b"\0")
        data += sectors(letters) if not flags & (MARK | DISCARD) else b""
    path.write_bytes(data)
    return crashstates.read_log(path)


def test_a_log_is_read(tmp_path: Path) -> None:
    log = log_of(
        tmp_path / "log", (0, 7, "ab"), (MARK, 0, "step"), (DISCARD, 3, "zz"), (FLUSH | FUA, 1, "c"), (FLUSH, 0, ""),
        (0, 9, "late"), known=5,
    )  # fmt: skip
    assert log.events == (
        Event(0, 7 * 512, 1024, 1024),
        Event(MARK, text="step"),
        Event(DISCARD, 3 * 512, 1024),
        Event(FLUSH),
        Event(FUA, 512, 512, 3584),
        Event(FLUSH),
    )
    assert [log.data(event) for event in log.events if event.size] == [sectors("ab"), bytes(1024), sectors("c")]


@pytest.mark.parametrize("raw", [b"", bytes(512), struct.pack("<QQQI", 0x6A736677736872, 1, 0, 1 << 20)])
def test_what_is_no_log_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "log").write_bytes(raw)
    with pytest.raises(ValueError, match="no log"):
        crashstates.read_log(tmp_path / "log")


def shown(tmp_path: Path, log: crashstates.Log) -> set[str]:
    """The contents of all states, on a disk of four sectors of dots."""
    (tmp_path / "base").write_bytes(sectors("...."))
    scratch = Scratch(tmp_path / "base", tmp_path / "scratch")
    return {os.pread(scratch.fd, 2048, 0)[::512].decode() for _ in crashstates.states(log, scratch)}


def test_states_are_those_that_can_be(tmp_path: Path) -> None:
    start = (MARK, 0, "start")
    torn = {"....", "a...", "ab.."}
    assert shown(tmp_path, log_of(tmp_path / "log", start, (0, 0, "ab"))) == torn
    between = torn | {".b..", "ab.c", "a..c", ".b.c", "...c"}
    assert shown(tmp_path, log_of(tmp_path / "log", start, (0, 0, "ab"), (0, 3, "c"), (FLUSH, 0, ""))) == between
    flushed = torn | {".b..", "ab.c"}
    log = log_of(tmp_path / "log", start, (0, 0, "ab"), (FLUSH, 0, ""), (0, 3, "c"), (FLUSH, 0, ""))
    assert shown(tmp_path, log) == flushed
    log = log_of(tmp_path / "log", start, (FUA, 0, "ab"), (0, 3, "c"), (0, 3, "d"), (FLUSH, 0, ""))
    assert shown(tmp_path, log) == torn | {"ab.c", "ab.d"}
    log = log_of(tmp_path / "log", start, (0, 0, "a"), (0, 0, "b"), (0, 1, "c"), (FLUSH, 0, ""))
    assert shown(tmp_path, log) == {"....", "a...", "b...", "bc..", "ac..", ".c.."}


def test_a_write_that_was_not_recorded_is_found(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(sectors("...."))
    scratch = Scratch(tmp_path / "disk", tmp_path / "scratch")
    fd = os.open(tmp_path / "disk", os.O_RDWR)
    with crashstates.recorded(fd, tmp_path / "log") as log:
        again = os.open(tmp_path / "disk", os.O_RDWR)
        os.pwrite(again, sectors("a"), 512)
        os.fsync(fd)
        with pytest.raises(AssertionError):
            os.pwrite(fd, b"half a sector", 0)
    assert log.written == 1
    list(crashstates.states(crashstates.read_log(tmp_path / "log"), scratch))
    assert scratch.same(tmp_path / "disk")
    os.lseek(fd, 1536, os.SEEK_SET)
    os.write(fd, b"x")
    assert not scratch.same(tmp_path / "disk")


# --- a whole disk -----------------------------------------------------------------------------------------------------


class Build:
    """One version: its disk, root and UKI."""

    def __init__(self, folder: Path, version: str, root: bytes) -> None:
        bench = Bench(folder / version, root, version=version, seed=version)
        self.version, self.root = version, root
        self.disk = bench.image().with_name(f"mixos-{version}-x86_64.img")
        self.uki = (bench.inputs["uki"] / "mixos.efi").read_bytes()
        self.tree = (bench.inputs["verity"] / "verity.img").read_bytes()
        self.hash = bytes.fromhex((bench.inputs["verity"] / "root-hash").read_text())
        self.name = f"{image_name(self.hash)}+3.efi"


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[Build]:
    folder = tmp_path_factory.mktemp("builds")
    return [Build(folder, f"1.{number}", ROOT + os.urandom(4096 * (40 * number + 1))) for number in range(3)]


@pytest.fixture
def disk(builds: list[Build], tmp_path: Path) -> Iterator[int]:
    """The first version on a disk, open."""
    path = tmp_path / "disk"
    shutil.copy(builds[0].disk, path)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def editor(fd: int) -> Editor:
    esp = gpt.read(fd).find("mixos-esp")
    return Editor(fd, esp.offset, esp.size)


def identify(fd: int, slot: str, root: bytes | None) -> None:
    """Give a slot the identities of a root hash, or such as no root hash has."""
    table = gpt.read(fd)
    data, hashes = table.find(f"mixos-root-{slot}"), table.find(f"mixos-verity-{slot}")
    ids = verity.partition_ids(root) if root else [uuid5(table.disk_id, part.name) for part in (data, hashes)]
    gpt.write(fd, table.replaced(replace(data, id=ids[0])).replaced(replace(hashes, id=ids[1])))


def install(fd: int, slot: str, build: Build, old: str | None) -> None:
    """The order of an update: what is not whole has no identity, and no name that the boot manager lists."""
    identify(fd, slot, None)
    table = gpt.read(fd)
    os.pwrite(fd, build.root, table.find(f"mixos-root-{slot}").offset)
    os.fsync(fd)
    os.pwrite(fd, build.tree, table.find(f"mixos-verity-{slot}").offset)
    os.fsync(fd)
    identify(fd, slot, build.hash)
    esp = editor(fd)
    if old:
        esp.remove(f"{FOLDER}/{old}")
    esp.add(f"{FOLDER}/{COMING}", [build.uki], len(build.uki), epoch=EPOCH)
    esp.rename(f"{FOLDER}/{COMING}", build.name)


def test_an_update_leaves_a_disk_that_starts_at_every_cut(
    disk: int, builds: list[Build], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Into slot B, counted and blessed, and then another one into slot A, which has the first version."""
    starts = crashstates.Starts(tmp_path / "disk", tmp_path / "scratch")
    one, two, three = (build.name for build in builds)
    counted = two.replace("+3", "+2-1")
    assert starts.look() == Start((one,), (), (), ())
    with crashstates.recorded(disk, tmp_path / "log") as log:
        log.mark("update")
        install(disk, "b", builds[1], None)
        log.mark("count")
        editor(disk).rename(f"{FOLDER}/{two}", counted)
        log.mark("bless")
        editor(disk).rename(f"{FOLDER}/{counted}", two)
        log.mark("update again")
        install(disk, "a", builds[2], one)
    seen: list[str] = []
    found: set[object] = set()
    for state in crashstates.states(crashstates.read_log(tmp_path / "log"), starts.scratch, torn=60, orders=500):
        seen.append(state.step)
        start = starts.look()
        assert start.good, state
        assert not start.broken, state
        found |= {(state.step, start.good), *start.problems}
    record_property("states", Counter(seen))
    assert starts.scratch.same(tmp_path / "disk")
    assert starts.look() == Start(tuple(sorted((two, three))), (), (), ())
    assert len(seen) > 1000
    assert {
        ("update", (one,)),
        ("update", tuple(sorted((one, two)))),
        ("update again", (two,)),
        ("update again", tuple(sorted((two, three)))),
    } <= found
    assert {"primary-entries-crc", "backup-entries-crc", "backup-differs"} <= found


def test_a_disk_that_does_not_start_is_told(disk: int, builds: list[Build], tmp_path: Path) -> None:
    """In the wrong order (the identities first) there are states in which the new version is broken."""
    starts = crashstates.Starts(tmp_path / "disk", tmp_path / "scratch")
    build = builds[1]
    with crashstates.recorded(disk, tmp_path / "log") as log:
        log.mark("update")
        identify(disk, "b", build.hash)
        esp = editor(disk)
        esp.add(f"{FOLDER}/{build.name}", [build.uki], len(build.uki), epoch=EPOCH)
        esp.remove(f"{FOLDER}/{builds[0].name}")
        os.pwrite(disk, build.root, gpt.read(disk).find("mixos-root-b").offset)
        os.pwrite(disk, build.tree, gpt.read(disk).find("mixos-verity-b").offset)
        os.fsync(disk)
    found = {starts.look() for _ in crashstates.states(crashstates.read_log(tmp_path / "log"), starts.scratch)}
    assert Start((), (build.name,), (), ()) in found
    assert starts.look() == Start((build.name,), (), (), ())


def test_a_root_with_one_changed_bit_is_broken(disk: int, builds: list[Build], tmp_path: Path) -> None:
    starts = crashstates.Starts(tmp_path / "disk", tmp_path / "scratch")
    for part, size in (("mixos-root-a", len(builds[0].root)), ("mixos-verity-a", len(builds[0].tree))):
        at = gpt.read(disk).find(part).offset + size - 512
        sector = bytearray(os.pread(disk, 512, at))
        sector[511] ^= 1
        with starts.scratch.with_sectors({at: bytes(sector)}):
            assert starts.look().broken == (builds[0].name,)
        assert starts.look().good == (builds[0].name,)
    with starts.scratch.with_sectors({512: bytes(512)}):
        assert starts.look() == Start((builds[0].name,), (), (), ("primary-magic",))
