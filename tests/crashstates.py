"""Disk states that a power cut can leave behind, from a log of the writes: shown one after the other on one file.

A log has the format of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst), which the
driver `blklogwrites` of QEMU writes too: `read_log`. `recorded` makes one of what Python code does to an open file.

The model: a write of one sector happens or not. What was written before a flush ended is there; of what was written
after it, any sectors may be there, in any of their versions. So the states are: after each write, within a write of
several sectors, and, for each stretch between two flushes, seeded choices of what had arrived. Nothing is copied for a
state: the few sectors in which it differs are written, and written back. Contents have fingerprints, kept up with every
write, so that a check is made once for each content (`Scratch.once`).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import mock

from common.disk import fatread, gpt, verity
from common.efi import uki
from common.efi.entries import FOLDER, RESCUE, Entry, in_order, read_name
from common.errors import FormatError

FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16
_MAGIC, _VERSION = 0x6A736677736872, 1
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_COUNTERS = struct.Struct("<QQQQ")
_SAMPLE = 128  # sectors of one write that may be late or early; the others of a larger one arrive in order
_POOL = 4096  # sectors that one choice is about

Result = TypeVar("Result")


@dataclass(frozen=True)
class Event:
    """A flush, a write (offset, size: bytes on the disk; at: where its data are in the log, 0: zeros), or a mark."""

    flags: int
    offset: int = 0
    size: int = 0
    at: int = 0
    text: str = ""


@dataclass(frozen=True)
class Log:
    """A log, with its data left in the file, which is open as long as a `with` lasts. sector: bytes."""

    fd: int
    sector: int
    events: tuple[Event, ...]

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def data(self, event: Event) -> bytes:
        """What was written."""
        return os.pread(self.fd, event.size, event.at) if event.at else bytes(event.size)


def read_log(path: Path) -> Log:
    """Read a log; what came after the last flush that is in its superblock is not in it. Raises ValueError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    magic, version, count, sector = _SUPER.unpack(os.pread(fd, _SUPER.size, 0).ljust(_SUPER.size, b"\0"))
    if (magic, version) != (_MAGIC, _VERSION) or sector not in {512, 1024, 2048, 4096}:
        raise ValueError(f"{path} is no log of writes")
    events: list[Event] = []
    at = sector
    for _ in range(count):
        raw = os.pread(fd, sector, at)
        first, sectors, flags, length = _ENTRY.unpack_from(raw)
        at += sector
        if flags & FLUSH:  # before the data that the same entry may carry
            events.append(Event(FLUSH))
        if flags & MARK:
            events.append(Event(MARK, text=raw[_ENTRY.size : _ENTRY.size + length].decode()))
        elif sectors:
            data = 0 if flags & DISCARD else at
            events.append(Event(flags & ~FLUSH, first * sector, sectors * sector, data))
            at += sectors * sector if data else 0
    return Log(fd, sector, tuple(events))


class Recorder:
    """Writes the log of one open file, also of what processes do to it that this one forks; `recorded` makes one."""

    def __init__(self, fd: int, path: Path, sector: int) -> None:
        self._file, self._fd, self._sector = os.fstat(fd), os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), sector
        self._shared = mmap.mmap(-1, _COUNTERS.size)  # at, entries, written, pending
        self._put(sector, 0, 0, 0)

    @property
    def written(self) -> int:
        """How many writes there were."""
        return self._now()[2]

    def ours(self, fd: int) -> bool:
        """Whether a descriptor is of the recorded file."""
        return isinstance(fd, int) and os.path.samestat(os.fstat(fd), self._file)

    def mark(self, text: str) -> None:
        """Say which step follows; everything before it must be durable."""
        assert not self._now()[3], "a step ended without a flush"
        self._entry(0, 0, MARK, text.encode())

    def write(self, offset: int, data: bytes) -> None:
        """Log a write of whole sectors."""
        assert offset % self._sector == len(data) % self._sector == 0, f"{len(data)} bytes at {offset}"
        self._entry(offset // self._sector, len(data) // self._sector, 0)
        at, entries, written, _ = self._now()
        os.pwritev(self._fd, [data], at)
        self._put(at + len(data), entries, written + 1, 1)

    def flush(self) -> None:
        """Log a flush."""
        self._entry(0, 0, FLUSH)
        self._put(*self._now()[:3], 0)

    def close(self) -> None:
        """End the log with its superblock."""
        os.pwritev(self._fd, [_SUPER.pack(_MAGIC, _VERSION, self._now()[1], self._sector)], 0)
        os.close(self._fd)

    def _entry(self, first: int, sectors: int, flags: int, text: bytes = b"") -> None:
        head = _ENTRY.pack(first, sectors, flags, len(text)) + text
        at, entries, *rest = self._now()
        os.pwritev(self._fd, [head.ljust(self._sector, b"\0")], at)
        self._put(at + self._sector, entries + 1, *rest)

    def _now(self) -> tuple[int, int, int, int]:
        found: tuple[int, int, int, int] = _COUNTERS.unpack_from(self._shared)
        return found

    def _put(self, *values: int) -> None:
        _COUNTERS.pack_into(self._shared, 0, *values)


@contextmanager
def recorded(fd: int, path: Path, sector: int = 512) -> Iterator[Recorder]:
    """Log to `path` what is written to the open file `fd` meanwhile, by whatever descriptor of it.

    Only os.pwrite, os.fsync and os.fdatasync are understood. What was written otherwise is not in the log: see
    `Scratch.same`.
    """
    log = Recorder(fd, path, sector)
    pwrite, fsync = os.pwrite, os.fsync

    def logged_write(to: int, data: Any, offset: int) -> int:
        if log.ours(to):
            log.write(offset, bytes(data))
        return pwrite(to, data, offset)

    def logged_sync(of: int) -> None:
        fsync(of)
        if log.ours(of):
            log.flush()

    with (
        mock.patch.object(os, "pwrite", logged_write),
        mock.patch.object(os, "fsync", logged_sync),
        mock.patch.object(os, "fdatasync", logged_sync),
    ):
        try:
            yield log
        finally:
            log.close()


class Scratch:
    """A sparse copy of a disk or partition, at `path`, on which states are shown.

    watched: (offset, size) of the stretches, in whole sectors, that checks are about (`once`).
    """

    def __init__(self, base: Path, path: Path, watched: Iterable[tuple[int, int]] = (), sector: int = 512) -> None:
        self.path, self.sector = path, sector
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        with base.open("rb") as source:
            self.size = os.fstat(source.fileno()).st_size
            os.truncate(self.fd, self.size)
            for start, end in _extents(source.fileno()):
                os.copy_file_range(source.fileno(), self.fd, end - start, start, start)
        self.content = 0  # the fingerprint of everything
        self._watched = dict.fromkeys(watched, 0)
        self._known: dict[object, Any] = {}

    def write(self, offset: int, data: bytes) -> list[tuple[int, bytes]]:
        """Write whole sectors; gives those that differed, as they were: (offset, bytes)."""
        before = os.pread(self.fd, len(data), offset)
        old: list[tuple[int, bytes]] = []
        for at in range(0, len(data), self.sector):
            was, now = before[at : at + self.sector], data[at : at + self.sector]
            if was == now:
                continue
            place = offset + at
            change = _fingerprint(place, was) ^ _fingerprint(place, now)
            self.content ^= change
            for start, size in self._watched:
                if start <= place < start + size:
                    self._watched[start, size] ^= change
            old.append((place, was))
        if old:
            os.pwrite(self.fd, data, offset)
        return old

    @contextmanager
    def with_sectors(self, sectors: Mapping[int, bytes]) -> Iterator[None]:
        """Some sectors (offset → bytes) for a while."""
        undo = [was for offset, data in sectors.items() for was in self.write(offset, data)]
        try:
            yield
        finally:
            for offset, data in undo:
                self.write(offset, data)

    def once(self, check: Callable[..., Result], parts: Iterable[tuple[int, int]], *given: Any) -> Result:
        """`check(*given)`, made once for each content of these watched parts."""
        key = (check, given, *(self._watched[part] for part in parts))
        if key not in self._known:
            self._known[key] = check(*given)
        return cast("Result", self._known[key])

    def same(self, other: Path) -> bool:
        """Whether that file has these bytes: whether a log that was replayed here had all that was written."""
        with other.open("rb") as file:
            for fd in (file.fileno(), self.fd):
                for start, end in _extents(fd):
                    if os.pread(self.fd, end - start, start) != os.pread(file.fileno(), end - start, start):
                        return False
        return True

    def close(self) -> None:
        """Let go of the copy."""
        os.close(self.fd)


@dataclass(frozen=True)
class State:
    """What a cut left. name: how it came about. step: the last mark before it. torn: whether only a part of a write is
    there, or a write and not one before it."""

    name: str
    step: str
    torn: bool = False


def states(log: Log, scratch: Scratch, *, seed: int = 0, torn: int = 4, orders: int = 16) -> Iterator[State]:
    """Show states on `scratch`, which shows what was there before the log, and in the end what is there after it.

    torn: cuts within one write. orders: choices for each stretch between two flushes. A content comes once in a step.
    """
    chance = random.Random(seed)
    seen: set[tuple[str, int]] = set()
    late: dict[int, list[bytes]] = {}  # offset → versions of a sector since the last flush; the first is surely there
    step = ""

    def fresh() -> bool:
        known = len(seen)
        seen.add((step, scratch.content))
        return len(seen) > known

    for number, event in enumerate(log.events):
        if event.flags & MARK:
            step = event.text
            if fresh():
                yield State(f"event {number}: before the step", step)
        elif event.flags & FLUSH:
            for choice, sectors in enumerate(_choices(late, chance, orders)):
                with scratch.with_sectors(sectors):
                    if fresh():
                        yield State(f"event {number}: choice {choice} before the flush", step, torn=True)
            late.clear()
        else:
            data = log.data(event)
            _remember(late, scratch, event, data, chance)
            whole = len(data) // scratch.sector
            done = 0
            for cut in [*sorted(chance.sample(range(1, whole), min(torn, whole - 1))), whole]:
                scratch.write(event.offset + done, data[done : cut * scratch.sector])
                done = cut * scratch.sector
                if fresh():
                    yield State(f"event {number}: {cut} of {whole} sectors written", step, torn=cut < whole)


def _remember(late: dict[int, list[bytes]], scratch: Scratch, event: Event, data: bytes, chance: random.Random) -> None:
    """Take a write among what may be late: sectors that are in it already, and of a large one a sample."""
    unit = scratch.sector
    numbers = range(len(data) // unit)
    sample = set(numbers if len(numbers) <= _SAMPLE else chance.sample(numbers, _SAMPLE))
    before = os.pread(scratch.fd, len(data), event.offset)
    for at in numbers:
        place, new = event.offset + at * unit, data[at * unit : (at + 1) * unit]
        if event.flags & FUA:
            late.pop(place, None)
        elif place in late:
            late[place].append(new)
        elif at in sample:
            late[place] = [before[at * unit : (at + 1) * unit], new]


def _choices(late: Mapping[int, list[bytes]], chance: random.Random, count: int) -> Iterator[dict[int, bytes]]:
    """Sectors to show in older versions: one of them, all but one, the first ones, or some at random."""
    for number in range(count if late else 0):
        some = set(late if len(late) <= _POOL else chance.sample(list(late), _POOL))
        pool = [place for place in late if place in some]
        one = pool[number // 4 % len(pool)] if 4 * len(pool) <= count else chance.choice(pool)
        chosen = (
            [one],
            [place for place in pool if place != one],
            pool[: chance.randint(1, len(pool))],
            [place for place in pool if chance.random() < 0.5],
        )[number % 4]
        yield {place: chance.choice(late[place][:-1]) for place in chosen}


@dataclass(frozen=True)
class Start:
    """What firmware finds on a disk. good: names of UKIs whose root verifies. broken: of those whose root is there and
    does not. lost: of those without a root. problems: of the partition table. first: the UKI that the loader starts.
    versions: by name.
    """

    good: tuple[str, ...]
    broken: tuple[str, ...]
    lost: tuple[str, ...]
    problems: tuple[str, ...]
    first: str = field(default="", compare=False)
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)


class Starts:
    """Looks at the states of a disk whose partitions stay where `disk` has them. esp: one of them."""

    def __init__(self, disk: Path, copy: Path) -> None:
        table = gpt.read(disk)
        self.esp = table.find("mixos-esp")
        ends = gpt.Geometry().first_usable * gpt.SECTOR
        size = table.sectors * gpt.SECTOR
        self._tables = ((0, ends), (size - ends, ends))
        watched = [(part.offset, part.size) for part in table.partitions]
        self.scratch = Scratch(disk, copy, [*self._tables, *watched])

    def look(self) -> Start:
        """What is there now. Raises FormatError when the partition table or the ESP cannot be read."""
        scratch, esp = self.scratch, self.esp
        table = scratch.once(gpt.read, self._tables, scratch.fd)
        found: dict[str, list[str]] = {"good": [], "broken": [], "lost": []}
        ukis = scratch.once(_ukis, [(esp.offset, esp.size)], scratch.fd, esp)
        for name, root in ukis.items():
            places = {part.id: part for part in table.partitions}
            parts = [places.get(one) for one in verity.partition_ids(root.hash)]
            if parts[0] is None or parts[1] is None:
                found["lost"].append(name)
                continue
            watched = [(part.offset, part.size) for part in parts if part]
            sound = scratch.once(_verifies, watched, scratch.fd, parts[0], parts[1], root)
            found["good" if sound else "broken"].append(name)
        good, broken, lost = (tuple(sorted(found[kind])) for kind in ("good", "broken", "lost"))
        versions = {name: root.version for name, root in ukis.items()}
        return Start(good, broken, lost, table.problems, next(iter(ukis), ""), versions)


@dataclass(frozen=True)
class Root:
    """What a UKI's command line says of its root, and its own version. blocks: of 4096 bytes."""

    hash: bytes
    salt: bytes
    blocks: int
    version: str


_VERITY = re.compile(r" verity 1 \S+ \S+ 4096 4096 (\d+) 0 sha256 ([0-9a-f]{64}) ([0-9a-f]+|-) ")


def _ukis(fd: int, esp: gpt.Partition) -> dict[str, Root]:
    """The versions among the entries of the boot manager, in its order: name → root."""
    found: dict[Entry, Root] = {}
    for path, content in fatread.read_files(fd, esp.offset, esp.size).items():
        folder, _, name = path.rpartition("/")
        entry = read_name(name)
        if folder != FOLDER or entry is None or name == RESCUE:
            continue
        head = uki.read_uki(content)
        match = _VERITY.search(head.cmdline)
        assert match, f"{name} names no root"
        blocks, digest, salt = match.groups()
        entry = replace(entry, sort_key=head.identity("IMAGE_ID"), version=head.identity("IMAGE_VERSION"))
        found[entry] = Root(bytes.fromhex(digest), bytes.fromhex(salt.strip("-")), int(blocks), entry.version)
    return {entry.name: found[entry] for entry in in_order(found)}


def _verifies(fd: int, data: gpt.Partition, hashes: gpt.Partition, root: Root) -> bool:
    """Whether dm-verity would accept every block of a root."""
    try:
        tree = verity.build(fd, root.blocks * verity.BLOCK, root.salt, data.offset)
    except FormatError:
        return False
    return tree.root == root.hash and os.pread(fd, len(tree.hashes), hashes.offset) == tree.hashes


def _fingerprint(place: int, data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=16, salt=place.to_bytes(16, "little")).digest(), "little")


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is no hole in a file, in pieces of up to 4 MiB."""
    end = os.fstat(fd).st_size
    at = 0
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            return
        stop = os.lseek(fd, at, os.SEEK_HOLE)
        while at < stop:
            yield at, min(stop, at + (4 << 20))
            at = min(stop, at + (4 << 20))
