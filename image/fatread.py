"""Strict, bounded reader of FAT32 file systems that `image.fat` made, also after firmware or Linux changed them."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from image.fat import MIN_CLUSTERS, FatError

_MAX_FILES = 4096
_MAX_DIRECTORY = 1 << 20  # bytes
_MAX_DEPTH = 8
_FIRST_RESERVED = 0x0FFFFFF7  # bad cluster; above: end of chain


@dataclass(frozen=True)
class Volume:
    """An opened file system: where its parts are (bytes from the start of the file) and its FAT, entry by entry."""

    fd: int
    data: int
    cluster: int
    root: int
    volume_id: int
    sector: int
    chain: tuple[int, ...]


def open_volume(fd: int, offset: int, size: int) -> Volume:
    """Check the boot sector at byte `offset` and load the first FAT. Raises FatError."""
    boot = _pread(fd, offset, 512)
    (sector, per_cluster, reserved, fats, roots, small, media, fat16) = struct.unpack_from("<HBHBHHBH", boot, 11)
    sectors, fat_sectors, _, version, root = struct.unpack_from("<IIHHI", boot, 32)
    if boot[510:] != b"\x55\xaa" or sector not in (512, 1024, 2048, 4096) or media < 0xF0 or version != 0:
        raise FatError("this is no FAT32 file system", "fat-magic")
    if roots or small or fat16 or fats != 2 or per_cluster not in {1, 2, 4, 8, 16, 32, 64, 128} or not reserved:
        raise FatError("this is no FAT32 file system", "fat-magic")
    data = reserved + fats * fat_sectors
    clusters = (sectors - data) // per_cluster
    if sectors * sector > size or clusters < MIN_CLUSTERS or not 2 <= root < clusters + 2:
        raise FatError("the file system does not fit its partition", "fat-size")
    if (clusters + 2) * 4 > fat_sectors * sector:
        raise FatError("the allocation table is too small", "fat-size")
    raw = _pread(fd, offset + reserved * sector, (clusters + 2) * 4)
    chain = tuple(entry & 0x0FFFFFFF for (entry,) in struct.iter_unpack("<I", raw))
    (volume_id,) = struct.unpack_from("<I", boot, 67)
    return Volume(fd, offset + data * sector, per_cluster * sector, root, volume_id, sector, chain)


def read_files(fd: int, offset: int, size: int) -> dict[str, bytes]:
    """All files: path with "/" → content. Raises FatError for loops, bad chains, or more than the bounds allow."""
    volume = open_volume(fd, offset, size)
    found: dict[str, bytes] = {}
    _walk(volume, volume.root, "", 0, found, set())
    return found


def _walk(volume: Volume, first: int, prefix: str, depth: int, found: dict[str, bytes], used: set[int]) -> None:
    if first in used or depth > _MAX_DEPTH:
        raise FatError(f"directory {prefix!r} loops or lies too deep", "fat-loop")
    for name, directory, start, length in _entries(_follow(volume, first, None, used)):
        path = prefix + name
        if directory:
            _walk(volume, start, path + "/", depth + 1, found, used)
            continue
        if path in found or len(found) >= _MAX_FILES:
            raise FatError(f"{path!r} exists twice, or there are too many files", "fat-directory")
        found[path] = _follow(volume, start, length, used)[:length] if length else b""


def _follow(volume: Volume, first: int, length: int | None, used: set[int]) -> bytes:
    """The bytes of a chain of clusters. length: of the file, or None for a directory (bounded instead). used: each
    cluster is one file's, and there once: so no more is read than there is."""
    limit = _MAX_DIRECTORY if length is None else length
    parts: list[bytes] = []
    cluster, total = first, 0
    while total < limit:
        if not 2 <= cluster < len(volume.chain):
            raise FatError(f"cluster {cluster} lies outside the file system", "fat-chain")
        if cluster in used:
            raise FatError(f"cluster {cluster} is used twice", "fat-chain")
        used.add(cluster)
        parts.append(_pread(volume.fd, volume.data + (cluster - 2) * volume.cluster, volume.cluster))
        total += volume.cluster
        cluster = volume.chain[cluster]
        if cluster > _FIRST_RESERVED:
            break
    if length is not None and total < length:
        raise FatError("a file has fewer clusters than bytes", "fat-chain")
    return b"".join(parts)


def _entries(raw: bytes) -> list[tuple[str, bool, int, int]]:
    """(name, is a directory, first cluster, length) of the live entries of a directory, "." and ".." left out."""
    found: list[tuple[str, bool, int, int]] = []
    long_name: list[str] = []
    for at in range(0, len(raw), 32):
        entry = raw[at : at + 32]
        if entry[0] == 0:
            break
        kind = entry[11]
        if entry[0] == 0xE5:
            long_name = []
        elif kind & 0x3F == 0x0F:
            units = entry[1:11] + entry[14:26] + entry[28:32]
            long_name.insert(0, units.decode("utf-16-le", "replace").split("\0")[0].rstrip("\uffff"))
        else:
            name = "".join(long_name) or _short(entry)
            long_name = []
            if kind & 0x08 or name in (".", ".."):
                continue
            if not name or "/" in name or not name.isprintable():
                raise FatError(f"the name {name!r} is not allowed", "fat-name")
            high, low, length = struct.unpack_from("<20xH4xHI", entry)
            found.append((name, bool(kind & 0x10), high << 16 | low, length))
    return found


def _short(entry: bytes) -> str:
    """A short name; bits 3 and 4 of the reserved byte say that base or extension are meant in lower case."""
    base, extension = (part.decode("cp437").rstrip() for part in (entry[:8], entry[8:11]))
    base = base.lower() if entry[12] & 0x08 else base
    extension = extension.lower() if entry[12] & 0x10 else extension
    return f"{base}.{extension}" if extension else base


def _pread(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise FatError(f"short read at byte {offset}", "fat-short-read")
    return data
