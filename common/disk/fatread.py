"""Strict, bounded reader of FAT32 file systems that `fat` made, also after firmware or Linux changed them.

Believed is the first allocation table, as by firmware and Linux; the second one is only kept equal by `fatedit`.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from common.disk.fat import LONG_UNITS, MASK, MIN_CLUSTERS, SECTOR, SLOT, FatError, name_checksum

BAD_CLUSTER = 0x0FFFFFF7  # the largest value that is no end of a chain
MAX_DIRECTORY = 1 << 20  # bytes
MAX_NAME = 255  # characters
_MAX_CLUSTERS = 1 << 24  # the largest ESP of ours has half as many
_MAX_BYTES = 1 << 30  # of all files together
_MAX_DIRECTORIES = 4 << 20  # bytes of all of them
_MAX_ENTRIES = 4096
_MAX_DEPTH = 8
_LOW_NIBBLE = bytes(value & 0x0F for value in range(256))


@dataclass(frozen=True)
class Volume:
    """An opened file system. offset, fats, data, info: bytes from the start of the file.

    fats: the two allocation tables, of fat_size bytes each. data: cluster 2. cluster: bytes. root: the first cluster of
    the root folder. info: the FSInfo sector, or 0. sector: bytes. chain: the first table, entry by entry, without its
    reserved bits.
    """

    fd: int
    offset: int
    fats: tuple[int, int]
    fat_size: int
    data: int
    cluster: int
    root: int
    info: int
    volume_id: int
    sector: int
    chain: array[int]

    def place(self, cluster: int) -> int:
        """Where a cluster lies, in bytes from the start of the file."""
        return self.data + (cluster - 2) * self.cluster


@dataclass(frozen=True)
class Entry:
    """A name in a folder, as text that can be shown and is part of a path: a character that cannot be is written as
    `\\u{hex}`, which no name of FAT holds.

    first: cluster, 0 for an empty file. size: bytes. slots: of 32 bytes, numbered in the folder, the long name's before
    the short one's, `short` (11 bytes).
    """

    name: str
    directory: bool
    first: int
    size: int
    slots: range
    short: bytes


@dataclass(frozen=True)
class Folder:
    """A folder as it lies on the disk. prefix: its path with "/" behind it, or nothing. raw: the bytes of its clusters.
    orphans: slots of long names that belong to no entry. end: the slot that ends the folder, or how many there are.
    """

    prefix: str
    clusters: tuple[int, ...]
    raw: bytes
    entries: tuple[Entry, ...]
    orphans: tuple[int, ...]
    end: int


def open_volume(fd: int, offset: int, size: int) -> Volume:
    """Check the boot sector at byte `offset` and load the first FAT. Raises FatError."""
    boot = pread(fd, offset, SECTOR)
    (sector, per_cluster, reserved, fats, roots, small, media, fat16) = struct.unpack_from("<HBHBHHBH", boot, 11)
    sectors, fat_sectors, flags, version, root, info = struct.unpack_from("<IIHHIH", boot, 32)
    if boot[510:] != b"\x55\xaa" or sector not in {512, 1024, 2048, 4096} or media < 0xF0 or version != 0:
        raise FatError("this is no FAT32 file system", "fat-magic")
    if roots or small or fat16 or fats != 2 or per_cluster not in {1, 2, 4, 8, 16, 32, 64, 128} or not reserved:
        raise FatError("this is no FAT32 file system", "fat-magic")
    if flags & 0x80:
        raise FatError("the file system keeps only one of its allocation tables", "fat-mirror")
    data = reserved + fats * fat_sectors
    clusters = (sectors - data) // per_cluster
    if sectors * sector > size or not MIN_CLUSTERS <= clusters <= _MAX_CLUSTERS or not 2 <= root < clusters + 2:
        raise FatError("the file system does not fit its partition", "fat-size")
    if (clusters + 2) * 4 > fat_sectors * sector:
        raise FatError("the allocation table is too small", "fat-size")
    tables = offset + reserved * sector
    (volume_id,) = struct.unpack_from("<I", boot, 67)
    return Volume(
        fd=fd,
        offset=offset,
        fats=(tables, tables + fat_sectors * sector),
        fat_size=fat_sectors * sector,
        data=offset + data * sector,
        cluster=per_cluster * sector,
        root=root,
        info=offset + info * sector if 0 < info < reserved else 0,
        volume_id=volume_id,
        sector=sector,
        chain=table(pread(fd, tables, (clusters + 2) * 4)),
    )


def read_files(fd: int, offset: int, size: int) -> dict[str, bytes]:
    """All files: path with "/" → content. Raises FatError for loops, bad chains, or more than the bounds allow."""
    volume = open_volume(fd, offset, size)
    found: dict[str, bytes] = {}
    total = 0
    for path, entry in files(volume):
        total += entry.size
        if total > min(2 * size, _MAX_BYTES):  # two names may have one content, after a cut in the middle of a rename
            raise FatError("the files are larger than the file system, or than 1 GiB", "fat-size")
        found[path] = read(volume, entry)
    return found


def files(volume: Volume) -> Iterator[tuple[str, Entry]]:
    """Path with "/" and entry of every file. Raises FatError, also for names that differ in case only."""
    known: set[str] = set()
    for folder in folders(volume):
        for entry in folder.entries:
            path = folder.prefix + entry.name
            if path.upper() in known:
                raise FatError(f"{path!r} exists twice", "fat-directory")
            known.add(path.upper())
            if not entry.directory:
                yield path, entry


def folders(volume: Volume) -> Iterator[Folder]:
    """Every folder, the root first. Raises FatError for loops, bad chains, or more than the bounds allow."""
    queue = [(volume.root, "", 0)]
    seen: set[int] = set()
    total = entries = 0
    while queue:
        first, prefix, depth = queue.pop(0)
        folder = read_folder(volume, first, prefix)
        total += len(folder.raw)
        entries += len(folder.entries)
        if not seen.isdisjoint(folder.clusters) or depth > _MAX_DEPTH:
            raise FatError(f"directory {prefix!r} loops or lies too deep", "fat-loop")
        if total > _MAX_DIRECTORIES or entries > _MAX_ENTRIES:
            raise FatError("there are too many files and directories", "fat-directory")
        seen.update(folder.clusters)
        queue += [(one.first, f"{prefix}{one.name}/", depth + 1) for one in folder.entries if one.directory]
        yield folder


def read_folder(volume: Volume, first: int, prefix: str) -> Folder:
    """The folder that begins in that cluster. Raises FatError."""
    most = MAX_DIRECTORY // volume.cluster
    clusters = follow(volume, first, most + 1)
    if len(clusters) > most:
        raise FatError(f"directory {prefix!r} is too large", "fat-directory")
    raw = b"".join(_pieces(volume, clusters))
    entries, orphans, end = _slots(raw)
    return Folder(prefix, tuple(clusters), raw, tuple(entries), tuple(orphans), end)


def read(volume: Volume, entry: Entry, start: int = 0, length: int | None = None) -> bytes:
    """The content of a file, or `length` bytes of it from byte `start`. Raises FatError."""
    end = entry.size if length is None else start + length
    if not 0 <= start <= end <= entry.size:
        raise FatError(f"bytes {start} to {end} of {entry.size} of {entry.name!r}", "fat-range")
    count = -(-end // volume.cluster)
    clusters = follow(volume, entry.first, count) if count else []
    if len(clusters) < count:
        raise FatError(f"{entry.name!r} has fewer clusters than bytes", "fat-chain")
    skipped = start // volume.cluster
    raw = b"".join(_pieces(volume, clusters[skipped:]))
    return raw[start - skipped * volume.cluster : end - skipped * volume.cluster]


def follow(volume: Volume, first: int, most: int) -> list[int]:
    """The first clusters of a chain, `most` of them or until it ends. Raises FatError when it leads nowhere."""
    found: list[int] = []
    cluster = first
    while len(found) < min(most, len(volume.chain)):
        if not 2 <= cluster < len(volume.chain):
            raise FatError(f"cluster {cluster} lies outside the file system", "fat-chain")
        found.append(cluster)
        cluster = volume.chain[cluster]
        if cluster > BAD_CLUSTER:
            break
    if len(set(found)) != len(found):
        raise FatError(f"the chain of cluster {first} loops", "fat-loop")
    return found


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of stretches in which each number is one more than the one before."""
    first = count = 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count


def pread(fd: int, offset: int, size: int) -> bytes:
    """Exactly that many bytes. Raises FatError when there are fewer."""
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise FatError(f"short read at byte {offset}", "fat-short-read")
    return data


def display_name(short: bytes, case: int = 0) -> str:
    """The 11 bytes of a short name as text; bits 3 and 4 of `case`: base or extension are meant in lower case."""
    raw = b"\xe5" + short[1:] if short[0] == 0x05 else short
    base, extension = (part.decode("cp437").rstrip(" ") for part in (raw[:8], raw[8:]))
    base = base.lower() if case & 0x08 else base
    extension = extension.lower() if case & 0x10 else extension
    return f"{base}.{extension}" if extension else base


def table(raw: bytes) -> array[int]:
    """The entries of an allocation table, the four reserved bits of each cleared."""
    entries = bytearray(raw)
    entries[3::4] = entries[3::4].translate(_LOW_NIBBLE)
    return array("I", entries)


def _pieces(volume: Volume, clusters: Iterable[int]) -> Iterator[bytes]:
    for first, count in runs(clusters):
        yield pread(volume.fd, volume.place(first), count * volume.cluster)


def _slots(raw: bytes) -> tuple[list[Entry], list[int], int]:
    """The live entries of a directory without "." and "..", the slots of orphaned long names, and where it ends.

    A long name counts only when it is whole, not too long, and has the checksum of the short one behind it, as for
    firmware.
    """
    found: list[Entry] = []
    orphans: list[int] = []
    pending: list[int] = []  # slots of a long name so far
    for at in range(len(raw) // SLOT):
        slot = raw[at * SLOT : (at + 1) * SLOT]
        kind = slot[11]
        if slot[0] in (0x00, 0xE5):
            orphans += pending
            pending = []
            if slot[0] == 0:
                return found, orphans, at
        elif kind & 0x3F == 0x0F:
            if not (pending and _continues(raw, pending[-1], slot)):
                orphans += pending
                pending = []
            (pending if pending or slot[0] & 0x40 else orphans).append(at)
        else:
            long = _long(raw, pending, slot[:11])
            if not long:
                orphans += pending
                pending = []
            slots = range(at - len(pending), at + 1)
            pending = []
            name = long or display_name(slot[:11], slot[12])
            if kind & 0x08 or name in (".", ".."):
                continue
            if not name:
                raise FatError("a file has no name", "fat-name")
            high, low, size = struct.unpack_from("<20xH4xHI", slot)
            found.append(Entry(_shown(name), bool(kind & 0x10), (high << 16 | low) & MASK, size, slots, slot[:11]))
    return found, orphans + pending, len(raw) // SLOT


def _shown(name: str) -> str:
    """What other systems leave on a FAT must not hide all that is beside it: see `Entry`."""
    if name.isprintable() and not {"/", "\\"} & set(name):
        return name
    return "".join(char if char.isprintable() and char not in "/\\" else f"\\u{{{ord(char):x}}}" for char in name)


def _continues(raw: bytes, before: int, slot: bytes) -> bool:
    """Whether a slot of a long name is the next one after the slot number `before`."""
    return slot[0] == (raw[before * SLOT] & 0x3F) - 1 and slot[13] == raw[before * SLOT + 13]


def _long(raw: bytes, pending: list[int], short: bytes) -> str:
    """The long name in those slots, or nothing when it is not whole or not of this short name."""
    if not pending or raw[pending[-1] * SLOT] & 0x3F != 1 or raw[pending[-1] * SLOT + 13] != name_checksum(short):
        return ""
    slots = [raw[at * SLOT : (at + 1) * SLOT] for at in reversed(pending)]
    units = b"".join(slot[part] for slot in slots for part in LONG_UNITS)
    text = units.decode("utf-16-le", "replace")
    name = text.partition("\0")[0]
    return name if len(name) <= MAX_NAME else ""
