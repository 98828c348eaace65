"""Reader and power-safe writer of GUID partition tables (UEFI 2.10, chapter 5.3).

Used on the host to make the image and on the device to grow the data partition and to switch slots, so only the
standard library is imported. Positions are in logical sectors of the disk, of 512 or 4096 bytes each: a table is good
for one size only, and `Table.resized` makes the one for the other.

A table is kept twice: primary header in sector 1 with the entries behind it, backup header in the last sector with the
entries before it. We make 128 entries of 128 bytes; what else the standard allows (other numbers and places of entries,
room that is kept free at both ends) is read, and kept when the table is written again. `write` makes one durable before
it touches the other, and never begins with the only one that is whole, so at any power cut at least one of the two is;
`read` uses the backup when the primary is not and says so in `problems`.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from common.errors import FormatError

SECTOR = 512  # bytes: what images are made for
SECTORS = (SECTOR, 4096)  # bytes: what disks have
ALIGN = 1 << 20  # bytes: where partitions begin
ENTRIES = 128
ENTRY_SIZE = 128
MAX_ARRAY = 1 << 20  # bytes of the entries that are read: sixty times what everybody makes
NAME_UNITS = 36  # UTF-16 code units in an entry's name

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MBR_ENTRY = struct.Struct("<B3sB3sII")
_REVISION = 0x00010000
_ZERO_ID = UUID(int=0)
_BLKSSZGET = 0x1268  # linux/fs.h: the logical sector size of a block device

# Discoverable Partitions Specification (UAPI group), x86-64.
TYPE_ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
TYPE_ROOT_X86_64 = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
TYPE_ROOT_VERITY_X86_64 = UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")
TYPE_LINUX_DATA = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ATTRIBUTE_READ_ONLY = 1 << 60


class GptError(FormatError):
    """A partition table that is damaged, foreign or would not fit."""


@dataclass(frozen=True)
class Partition:
    """One entry. index: 1-based position in the table; first, last: sectors (of `sector` bytes), both inside it."""

    index: int
    type: UUID
    id: UUID
    first: int
    last: int
    name: str
    attributes: int = 0
    sector: int = SECTOR

    @property
    def sectors(self) -> int:
        """Length in sectors."""
        return self.last - self.first + 1

    @property
    def offset(self) -> int:
        """First byte on the disk."""
        return self.first * self.sector

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.sectors * self.sector

    def on(self, sector: int) -> Partition:
        """The same bytes in sectors of another size. Raises GptError when these are no whole sectors."""
        if self.offset % sector or self.size % sector:
            raise GptError(f"partition {self.index} is not made of whole sectors of {sector} bytes", "gpt-sector")
        first = self.offset // sector
        return replace(self, first=first, last=first + self.size // sector - 1, sector=sector)


@dataclass(frozen=True)
class Geometry:
    """Where a table keeps what, as its header says; the default is what we make.

    entries: how many, of entry_size bytes each, beginning in sector `array` in the primary copy. first_usable: sector.
    reserve: sectors between the last usable one and the backup's entries. sector: bytes.
    """

    entries: int = ENTRIES
    entry_size: int = ENTRY_SIZE
    array: int = 2
    first_usable: int = 2 + ENTRIES * ENTRY_SIZE // SECTOR  # sector 0: MBR, sector 1: header
    reserve: int = 0
    sector: int = SECTOR

    @property
    def sectors(self) -> int:
        """Length of the entries in sectors."""
        return -(-self.entries * self.entry_size // self.sector)

    def on(self, sector: int) -> Geometry:
        """As many entries, in the usual places, on a disk of another sector size."""
        moved = Geometry(self.entries, self.entry_size, sector=sector)
        return replace(moved, first_usable=2 + moved.sectors)


def min_sectors(sector: int) -> int:
    """The smallest disk that holds what we make, in sectors of so many bytes."""
    return 2 * Geometry().on(sector).sectors + 4


@dataclass(frozen=True)
class Table:
    """A partition table and the size of the disk it is for.

    partitions are ordered by index. `problems` are the reasons why one of the two copies is not as it should be
    ("primary-…", "backup-…"; "backup-not-at-end" after a copy to a larger disk); empty when both are sound and equal.
    """

    disk_id: UUID
    sectors: int
    partitions: tuple[Partition, ...]
    problems: tuple[str, ...] = ()
    geometry: Geometry = Geometry()

    @property
    def last_usable(self) -> int:
        """The last sector that a partition may use."""
        return self.sectors - self.geometry.sectors - 2 - self.geometry.reserve

    def find(self, name: str) -> Partition:
        """The only partition with this name. Raises GptError."""
        found = [part for part in self.partitions if part.name == name]
        if len(found) != 1:
            raise GptError(f"{len(found)} partitions are named {name!r}, expected one", "gpt-name")
        return found[0]

    def replaced(self, part: Partition) -> Table:
        """The table with the entry of the same index replaced."""
        if part.index not in {one.index for one in self.partitions}:
            raise GptError(f"there is no partition {part.index}", "gpt-name")
        parts = tuple(part if one.index == part.index else one for one in self.partitions)
        return checked(replace(self, partitions=parts))

    def resized(self, size: int, sector: int) -> Table:
        """The same partitions, at the same bytes, on a disk of so many bytes in sectors of so many.

        Raises GptError when they do not fit.
        """
        if sector == self.geometry.sector:
            return checked(replace(self, sectors=size // sector))
        parts = tuple(part.on(sector) for part in self.partitions)
        return checked(Table(self.disk_id, size // sector, parts, geometry=self.geometry.on(sector)))

    def grown(self, part: Partition) -> Table:
        """The table with a partition extended over the free space behind it (to a whole MiB)."""
        end = min((other.first for other in self.partitions if other.first > part.last), default=self.last_usable + 1)
        step = ALIGN // self.geometry.sector
        return self.replaced(replace(part, last=max(part.last, end // step * step - 1)))


def checked(table: Table) -> Table:
    """`table` itself when it can be written: bounds, overlaps, identities, names. Raises GptError."""
    geometry = table.geometry
    if table.sectors < min_sectors(geometry.sector):
        raise GptError(f"a disk of {table.sectors} sectors is too small for a partition table", "gpt-disk-too-small")
    indexes = [part.index for part in table.partitions]
    if indexes != sorted(set(indexes)) or any(not 1 <= index <= geometry.entries for index in indexes):
        raise GptError(f"partition numbers {indexes} are not rising within 1..{geometry.entries}", "gpt-index")
    for part in table.partitions:
        if not geometry.first_usable <= part.first <= part.last <= table.last_usable:
            where = f"{part.first}..{part.last}, usable {geometry.first_usable}..{table.last_usable}"
            raise GptError(f"partition {part.index} is out of bounds: {where}", "gpt-bounds")
        if part.sector != geometry.sector:
            raise GptError(f"partition {part.index} counts in other sectors than its table", "gpt-sector")
        if part.type == _ZERO_ID or part.id == _ZERO_ID:
            raise GptError(f"partition {part.index} has a zero identity", "gpt-zero-id")
        if not 0 <= part.attributes < 1 << 64:
            raise GptError(f"partition {part.index} has attributes outside 64 bits", "gpt-attributes")
        _encode_name(part.name)
    if len({part.id for part in table.partitions}) != len(table.partitions):
        raise GptError("two partitions have the same identity", "gpt-duplicate-id")
    by_place = sorted(table.partitions, key=lambda part: part.first)
    for before, after in pairwise(by_place):
        if after.first <= before.last:
            raise GptError(f"partitions {before.index} and {after.index} overlap", "gpt-overlap")
    return table


def _encode_name(name: str) -> bytes:
    """A name as the 72 bytes of an entry. Raises GptError when it is too long, has a NUL or a lone surrogate."""
    try:
        units = name.encode("utf-16-le")
    except UnicodeEncodeError as error:
        raise GptError(f"partition name {name!r} is not text", "gpt-name") from error
    if len(units) > NAME_UNITS * 2 or "\0" in name:
        raise GptError(f"partition name {name!r} is longer than {NAME_UNITS} units or has a NUL", "gpt-name")
    return units.ljust(NAME_UNITS * 2, b"\0")


def encode_entries(partitions: Iterable[Partition], geometry: Geometry = Geometry()) -> bytes:
    """The entry array."""
    array = bytearray(geometry.entries * geometry.entry_size)
    for part in partitions:
        _ENTRY.pack_into(
            array,
            (part.index - 1) * geometry.entry_size,
            part.type.bytes_le,
            part.id.bytes_le,
            part.first,
            part.last,
            part.attributes,
            _encode_name(part.name),
        )
    return bytes(array)


def encode_header(table: Table, entries: bytes, *, backup: bool) -> bytes:
    """One header sector."""
    end, geometry = table.sectors - 1, table.geometry
    here, other, array = (end, 1, end - geometry.sectors) if backup else (1, end, geometry.array)

    def packed(checksum: int) -> bytes:
        return _HEADER.pack(
            b"EFI PART",
            _REVISION,
            _HEADER.size,
            checksum,
            0,
            here,
            other,
            geometry.first_usable,
            table.last_usable,
            table.disk_id.bytes_le,
            array,
            geometry.entries,
            geometry.entry_size,
            zlib.crc32(entries),
        )

    return packed(zlib.crc32(packed(0))).ljust(geometry.sector, b"\0")


def encode_mbr(sectors: int) -> bytes:
    """The protective MBR (UEFI 5.2.3): one entry of type 0xEE over the whole disk, no boot code."""
    entry = _MBR_ENTRY.pack(0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def write(fd: int, table: Table) -> None:
    """Put the table on the disk: backup, fsync, primary, fsync; the primary first when it cannot be read.

    So a cut leaves the one whole that was whole before, or the other one is whole and new. Raises GptError when the
    table is not sound, OSError from the disk.
    """
    checked(table)
    geometry = table.geometry
    sector = geometry.sector
    if os.lseek(fd, 0, os.SEEK_END) < table.sectors * sector:
        raise GptError("the disk is smaller than its partition table", "gpt-disk-too-small")
    entries = encode_entries(table.partitions, geometry)
    padded = entries.ljust(geometry.sectors * sector, b"\0")
    backup = padded + encode_header(table, entries, backup=True)
    head = encode_mbr(table.sectors).ljust(sector, b"\0") + encode_header(table, entries, backup=False)
    pieces = [((table.sectors - 1 - geometry.sectors) * sector, backup)], [(0, head + padded)]
    if geometry.array != 2:
        pieces = pieces[0], [(geometry.array * sector, padded), (0, head)]
    for copy in pieces if _primary_is_whole(fd, sector) else reversed(pieces):
        for offset, data in copy:
            _write_at(fd, offset, data)
        os.fsync(fd)


def _primary_is_whole(fd: int, sector: int) -> bool:
    try:
        _read_copy(fd, 1, os.lseek(fd, 0, os.SEEK_END) // sector, sector)
    except GptError:
        return False
    return True


def read(disk: int | str | os.PathLike[str]) -> Table:
    """The table of a disk or image file, given by path or open descriptor. A file may stand for a disk of either sector
    size.

    Refuses (GptError) what is not a GPT disk, and disks on which neither copy is sound.
    """
    if not isinstance(disk, int):
        fd = os.open(Path(disk), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read(fd)
        finally:
            os.close(fd)
    return _of_disk(disk, _check_mbr)


def _of_disk(disk: int, check_mbr: Callable[[bytes], None]) -> Table:
    if stat.S_ISBLK(os.fstat(disk).st_mode):
        return _read(disk, int.from_bytes(fcntl.ioctl(disk, _BLKSSZGET, bytes(4)), sys.byteorder), check_mbr)
    try:
        return _read(disk, SECTOR, check_mbr)
    except GptError:
        with suppress(GptError):
            return _read(disk, SECTORS[1], check_mbr)
        raise


def _read(fd: int, sector: int, check_mbr: Callable[[bytes], None]) -> Table:
    sectors = os.lseek(fd, 0, os.SEEK_END) // sector
    if sectors < min_sectors(sector):
        raise GptError(f"{sectors} sectors hold no partition table", "gpt-disk-too-small")
    check_mbr(_read_at(fd, 0, 512))
    problems: list[str] = []
    primary: Table | None = None
    backup_at = sectors - 1
    try:
        primary, backup_at = _read_copy(fd, 1, sectors, sector)
    except GptError as error:
        problems.append(f"primary-{error.reason.removeprefix('gpt-')}")
        first_error = error
    try:
        backup, _ = _read_copy(fd, backup_at, sectors, sector)
    except GptError as error:
        if primary is None:
            raise first_error from error
        return replace(primary, problems=(f"backup-{error.reason.removeprefix('gpt-')}",))
    if primary is None:
        return replace(backup, problems=tuple(problems))
    if backup_at != sectors - 1:
        problems.append("backup-not-at-end")
    if (backup.disk_id, backup.partitions) != (primary.disk_id, primary.partitions):
        problems.append("backup-differs")
    return replace(primary, problems=tuple(problems))


def faults(fd: int) -> tuple[str, ...]:
    """What is not as it should be of a table that some copy of is sound: `Table.problems`, and "mbr" when that is not
    the protective one. Raises GptError when neither copy is sound."""
    table = _of_disk(fd, lambda _: None)
    mbr = _read_at(fd, 0, 512)
    ours = encode_mbr(table.sectors)
    sound = (mbr[446:458], mbr[462:]) == (ours[446:458], ours[462:])  # its length may be that of a smaller disk
    return table.problems if sound else (*table.problems, "mbr")


def mend(fd: int) -> tuple[str, ...]:
    """Write both copies of the table and the MBR again where one is not as it should be (`faults`, which it gives).

    Raises GptError when neither copy is sound, OSError."""
    found = faults(fd)
    if found:
        write(fd, replace(_of_disk(fd, lambda _: None), problems=()))
    return found


def _check_mbr(mbr: bytes) -> None:
    """Without a protective MBR this is not a GPT disk, whatever stale headers it still carries."""
    types = [_MBR_ENTRY.unpack_from(mbr, 446 + 16 * number)[2] for number in range(4)]
    if mbr[510:] != b"\x55\xaa" or 0xEE not in types:
        raise GptError("the disk has no protective MBR, so it is not a GPT disk", "gpt-no-mbr")


def _read_copy(fd: int, at: int, sectors: int, sector: int) -> tuple[Table, int]:
    """The table by the header in sector `at`, and the sector in which that header says the other one is."""
    raw = _read_at(fd, at * sector, sector)
    magic, revision, size, checksum, reserved, here, other, low, high, *rest = _HEADER.unpack_from(raw)
    disk_id, array, count, entry_size, entries_crc = rest
    if magic != b"EFI PART":
        raise GptError(f"sector {at} holds no partition table header", "gpt-magic")
    if revision != _REVISION or not _HEADER.size <= size <= sector or reserved != 0:
        raise GptError(f"header in sector {at}: unknown revision {revision:#x} or size {size}", "gpt-revision")
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != checksum:
        raise GptError(f"header in sector {at}: wrong checksum", "gpt-header-crc")
    if not count or entry_size < ENTRY_SIZE or entry_size & (entry_size - 1) or count * entry_size > MAX_ARRAY:
        raise GptError(f"header in sector {at}: {count} entries of {entry_size} bytes", "gpt-entries")
    end = other if at == 1 else here  # the sector of the backup header, and so the size the table was made for
    if at == 1 and sectors <= end < 1 << 40:
        raise GptError(f"the table is for {end + 1} sectors, and there are {sectors}", "gpt-cut-short")
    if here != at or (at != 1 and other != 1) or not min_sectors(sector) <= end + 1 <= sectors:
        raise GptError(f"header in sector {at}: points outside the disk", "gpt-geometry")
    geometry = _geometry(at, array, Geometry(count, entry_size, first_usable=low, sector=sector), high, end)
    entries = _read_at(fd, array * sector, count * entry_size)
    if zlib.crc32(entries) != entries_crc:
        raise GptError(f"header in sector {at}: wrong checksum of the entries", "gpt-entries-crc")
    parts = tuple(_decode_entries(entries, entry_size, sector))
    found = Table(UUID(bytes_le=disk_id), end + 1, parts, geometry=geometry)
    # Checked against the size the table was made for, then told the size of the disk it lies on.
    return replace(checked(found), sectors=sectors), end


def _geometry(at: int, array: int, found: Geometry, high: int, end: int) -> Geometry:
    """The geometry by a header: the entries of the primary copy lie before the usable sectors (low to high), those of
    the backup behind them. Where the primary's are, only its own header says; else they are where everybody has them.
    """
    low, length = found.first_usable, found.sectors
    place = array if at == 1 else 2
    if place < 2 or place + length > low or not low - 1 <= high < end - length:
        raise GptError(f"header in sector {at}: usable range {low}..{high}, entries in sector {place}", "gpt-geometry")
    if at != 1 and not high < array <= end - length:
        raise GptError(f"header in sector {at}: entries in sector {array}", "gpt-geometry")
    return replace(found, array=place, reserve=end - length - 1 - high)


def _decode_entries(entries: bytes, entry_size: int, sector: int) -> Iterable[Partition]:
    for index in range(len(entries) // entry_size):
        kind, ident, first, last, attributes, name = _ENTRY.unpack_from(entries, index * entry_size)
        if kind == bytes(16):
            continue
        text = name.decode("utf-16-le", "replace").partition("\0")[0]  # what follows the end of a name is not of it
        yield Partition(index + 1, UUID(bytes_le=kind), UUID(bytes_le=ident), first, last, text, attributes, sector)


def _read_at(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise GptError(f"short read at byte {offset}", "gpt-short-read")
    return data


def _write_at(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done
