"""Write a FAT32 file system, deterministically and without root (Microsoft FAT specification, 1.03).

The host's mkfs.vfat and mtools differ between releases and stamp files with the time of day, so the EFI system
partition is written here: every byte follows from the files, the volume id and the epoch. Each file lies in one piece.
Blocks that hold nothing are not written, so a sparse image stays sparse.

The sectors of a file system must not be smaller than those of its disk, or Linux does not mount it; a cluster has at
least one. So 256 MiB hold a FAT32 with sectors of 512 bytes, and just not one with sectors of 4096. A small file system
has small clusters, so that there are enough of them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from common.errors import FormatError

RESERVED = 32  # sectors before the first FAT
SECTOR = 512  # bytes of the smallest sector
CLUSTER = 2048  # bytes, where sectors are not larger and there is room for enough of them
MIN_CLUSTERS = 65525  # fewer would make it FAT16 by definition
MAX_CLUSTERS = 0x0FFFFFF5
END_OF_CHAIN = 0x0FFFFFFF
MASK = 0x0FFFFFFF  # of an entry of the allocation table; the four bits above are reserved
SLOT = 32  # bytes of a directory entry
LONG_UNITS = (slice(1, 11), slice(14, 26), slice(28, 32))  # the characters in a slot of a long name (UTF-16)
_MEDIA = 0xF8
_SHORT = struct.Struct("<11sBBBHHHHHHHI")
_LONG = struct.Struct("<B10sBBB12sH4s")
DIRECTORY, ARCHIVE, _VOLUME, _LONG_NAME = 0x10, 0x20, 0x08, 0x0F
_SHORT_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()-@^_`{}~")
_LONG_FORBIDDEN = frozenset('"*/:<>?\\|')


class FatError(FormatError):
    """Files that do not fit, a name that FAT cannot hold, or a damaged file system."""


@dataclass(frozen=True)
class Geometry:
    """Where things lie, in sectors of `sector` bytes from the start of the file system; clusters: those of data, of
    `cluster` bytes each."""

    sector: int
    sectors: int
    fat_sectors: int
    clusters: int
    cluster: int

    def place(self, cluster: int) -> int:
        """The byte at which a cluster begins; the first one is number 2."""
        return (RESERVED + 2 * self.fat_sectors) * self.sector + (cluster - 2) * self.cluster


def geometry(size: int, sector: int) -> Geometry:
    """The layout of a file system of `size` bytes, in sectors of `sector` bytes. Raises FatError when that is no valid
    FAT32."""
    sectors = size // sector
    cluster = max(CLUSTER, sector)
    while cluster > sector and size < MIN_CLUSTERS * (cluster + 8) + (RESERVED + 8) * sector:
        cluster //= 2
    per_cluster = cluster // sector
    # Each cluster takes its sectors plus 4 bytes in both FATs; round the FATs so that the data stay 4 KiB aligned.
    fat_sectors = -(-(sectors - RESERVED + 2 * per_cluster) * 4 // (cluster + 8))
    fat_sectors += -fat_sectors % 4
    clusters = (sectors - RESERVED - 2 * fat_sectors) // per_cluster
    if size % sector or not MIN_CLUSTERS <= clusters < MAX_CLUSTERS or sectors >= 1 << 32:
        raise FatError(f"{size} bytes do not make a FAT32 file system in sectors of {sector}", "fat-size")
    if (clusters + 2) * 4 > fat_sectors * sector:
        raise FatError(f"{size} bytes: the FAT came out too small", "fat-size")
    return Geometry(sector, sectors, fat_sectors, clusters, cluster)


@dataclass
class _Node:
    """A file (content) or directory (children) while the tree is being laid out."""

    content: bytes | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    first: int = 0
    count: int = 0


def write(
    fd: int,
    offset: int,
    size: int,
    files: Mapping[str, bytes],
    *,
    volume_id: int,
    label: str,
    epoch: int,
    sector: int = 512,
) -> None:
    """Make a file system of `size` bytes at byte `offset` of an open file, with `files` (path with "/" → content).

    volume_id: 32 bits. label: up to 11 characters. epoch: seconds, the time of every entry (UTC). sector: bytes. The
    old content of unused clusters stays. Raises FatError.
    """
    shape = geometry(size, sector)
    root = _tree(files)
    chains = list(_allocate(root, shape))
    stamp = timestamp(epoch)
    short_label = label.upper().ljust(11)
    if len(short_label) != 11 or not set(short_label) <= _SHORT_CHARS | {" "}:
        raise FatError(f"{label!r} is no volume label", "fat-label")
    volume = entry(short_label.encode("ascii"), _VOLUME, 0, 0, stamp)
    used = 0
    for node, parent in chains:
        data = node.content
        if data is None:
            data = _directory(node, parent, root, stamp, volume if node is root else b"")
        put(fd, offset + shape.place(node.first), data + bytes(-len(data) % shape.cluster))
        used += node.count
    fat = _fat([node for node, _ in chains], shape)
    for copy in range(2):
        put(fd, offset + (RESERVED + copy * shape.fat_sectors) * sector, fat)
    boot = boot_sector(shape, volume_id, short_label, offset // sector)
    info = struct.pack("<I480sIII12sI", 0x41615252, b"", 0x61417272, shape.clusters - used, 2 + used, b"", 0xAA550000)
    third = bytes(510) + b"\x55\xaa"
    region = bytearray(RESERVED * sector)
    for start in (0, 6):  # boot sector, FSInfo and their copies (BPB_BkBootSec)
        for at, part in enumerate((boot, info, third), start):
            region[at * sector : at * sector + len(part)] = part
    put(fd, offset, bytes(region))


def boot_sector(shape: Geometry, volume_id: int, label: str, hidden: int) -> bytes:
    """hidden: sectors before it on the disk."""
    head = struct.pack(
        "<3s8sHBHBHHBHHHII", b"\xeb\x58\x90", b"MIXOS   ", shape.sector, shape.cluster // shape.sector,
        *(RESERVED, 2, 0, 0, _MEDIA, 0),
        *(32, 64, hidden, shape.sectors),
    )  # fmt: skip
    extended = struct.pack("<IHHIHH12sBBBI", shape.fat_sectors, 0, 0, 2, 1, 6, b"", 0x80, 0, 0x29, volume_id)
    return (head + extended + label.encode("ascii") + b"FAT32   ").ljust(510, b"\0") + b"\x55\xaa"


def _tree(files: Mapping[str, bytes]) -> _Node:
    root = _Node()
    for path in sorted(files):
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            node = _child(node, folder, path)
            if node.content is not None:
                raise FatError(f"{path!r}: {folder!r} is a file", "fat-name")
        leaf = _child(node, name, path)
        if leaf.content is not None or leaf.children or len(files[path]) >= 1 << 32:
            raise FatError(f"{path!r} exists twice or is too large", "fat-name")
        leaf.content = files[path]
    return root


def _child(node: _Node, name: str, path: str) -> _Node:
    """The child of that name, made when missing. FAT compares names without case."""
    check_name(name, path)
    for known, child in node.children.items():
        if known.upper() == name.upper():
            if known != name:
                raise FatError(f"{path!r} differs from {known!r} in case only", "fat-name")
            return child
    return node.children.setdefault(name, _Node())


def check_name(name: str, path: str) -> None:
    """Raise FatError when `name`, a part of `path`, is none that we write (ASCII only)."""
    if not name or name.rstrip(". ") != name or not name.isascii() or not name.isprintable() or len(name) > 255:
        raise FatError(f"{path!r} has a part that FAT cannot hold", "fat-name")
    if set(name) & _LONG_FORBIDDEN:
        raise FatError(f"{path!r} has a character that FAT cannot hold", "fat-name")


def _allocate(root: _Node, shape: Geometry) -> Iterator[tuple[_Node, _Node]]:
    """Give clusters to every node, directories before what they hold; yields (node, parent) for nodes that have any."""
    free = 2
    queue = [(root, root)]
    while queue:
        node, parent = queue.pop(0)
        if node.content is not None:
            size = len(node.content)
        else:  # "." and ".." (or the volume label), the entries, and one free slot
            size = _SHORT.size * (3 + sum(1 + len(long_slots(name, b"")) for name in node.children))
            queue += [(child, node) for child in node.children.values()]
        node.count = -(-size // shape.cluster)
        node.first = free if node.count else 0
        free += node.count
        if free > shape.clusters + 2:
            raise FatError("the files do not fit into the file system", "fat-full")
        if node.count:
            yield node, parent


def _fat(nodes: list[_Node], shape: Geometry) -> bytes:
    table = bytearray(shape.fat_sectors * shape.sector)
    struct.pack_into("<II", table, 0, 0x0FFFFF00 | _MEDIA, END_OF_CHAIN)
    for node in nodes:
        chain = [*range(node.first + 1, node.first + node.count), END_OF_CHAIN]
        struct.pack_into(f"<{len(chain)}I", table, node.first * 4, *chain)
    return bytes(table)


def _directory(node: _Node, parent: _Node, root: _Node, stamp: tuple[int, int], volume: bytes) -> bytes:
    """The entries of one directory. `..` of a child of the root has cluster 0, as the specification asks."""
    entries = [volume]
    if node is not root:
        entries = [entry(b".".ljust(11), DIRECTORY, node.first, 0, stamp)]
        entries.append(entry(b"..".ljust(11), DIRECTORY, 0 if parent is root else parent.first, 0, stamp))
    taken: set[bytes] = {name.encode() for name in map(_plain_short, node.children) if name}
    for name, child in node.children.items():
        short = short_name(name, taken)
        entries += long_slots(name, short)
        if child.content is None:
            entries.append(entry(short, DIRECTORY, child.first, 0, stamp))
        else:
            entries.append(entry(short, ARCHIVE, child.first, len(child.content), stamp))
    return b"".join(entries)


def _plain_short(name: str) -> str:
    """The 11 characters of a name that is a short name as it stands, or an empty string."""
    base, dot, extension = name.partition(".")
    fits = 1 <= len(base) <= 8 and len(extension) <= 3 and bool(extension) == bool(dot)
    return base.ljust(8) + extension.ljust(3) if fits and set(base + extension) <= _SHORT_CHARS else ""


def short_name(name: str, taken: set[bytes]) -> bytes:
    """The short alias of a name, unique in its directory (basis name and numeric tail of the specification)."""
    plain = _plain_short(name)
    if plain:
        return plain.encode("ascii")
    base, _, extension = name.upper().rpartition(".") if "." in name else (name.upper(), "", "")
    clean = [
        "".join(char if char in _SHORT_CHARS else "_" for char in part if char not in " .")
        for part in (base, extension)
    ]
    for number in range(1, 1_000_000):
        tail = f"~{number}"
        short = (clean[0][: 8 - len(tail)] + tail).ljust(8) + clean[1][:3].ljust(3)
        if short.encode("ascii") not in taken:
            taken.add(short.encode("ascii"))
            return short.encode("ascii")
    raise FatError(f"no short name is left for {name!r}", "fat-name")


def long_slots(name: str, short: bytes) -> list[bytes]:
    """The long-name entries in front of the short one; none when the name is a short name already."""
    if _plain_short(name):
        return []
    checksum = name_checksum(short)
    units = name.encode("utf-16-le")
    count = -(-len(name) // 13)
    units += b"\0\0" if len(name) % 13 else b""
    units = units.ljust(count * 26, b"\xff")
    slots: list[bytes] = []
    for number in range(count, 0, -1):
        part = units[(number - 1) * 26 : number * 26]
        order = number | (0x40 if number == count else 0)
        slots.append(_LONG.pack(order, part[:10], _LONG_NAME, 0, checksum, part[10:22], 0, part[22:]))
    return slots


def name_checksum(short: bytes) -> int:
    """What the slots of a long name carry of the 11 bytes of their short name."""
    checksum = 0
    for byte in short:
        checksum = ((checksum >> 1 | checksum << 7) + byte) & 0xFF
    return checksum


def entry(short: bytes, kind: int, first: int, size: int, stamp: tuple[int, int]) -> bytes:
    """A short entry. kind: attributes. first: cluster. stamp: as `timestamp` gives it."""
    date, time = stamp
    return _SHORT.pack(short, kind, 0, 0, time, date, date, first >> 16, time, date, first & 0xFFFF, size)


def timestamp(epoch: int) -> tuple[int, int]:
    """FAT date and time (two-second steps) of a POSIX time, kept within the years 1980 to 2107."""
    when = datetime.fromtimestamp(min(max(epoch, 315532800), 4354819198), UTC)
    date = (when.year - 1980) << 9 | when.month << 5 | when.day
    return date, when.hour << 11 | when.minute << 5 | when.second // 2


def put(fd: int, offset: int, data: bytes) -> None:
    """Write all of it at that byte of the file."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done
