"""What a FAT32 that we made keeps twice, boot sector and allocation table: one copy restores the other. And what
follows from the rest: the names `.` and `..` of folders.

A power cut leaves both boot sectors, and the first table sound for all names that are there (`common.disk.fatedit`);
so these faults are the disk's. In every other case the first table counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from common.disk import fat, fatread
from common.disk.fat import SECTOR, SLOT, FatError
from common.disk.fatread import BAD_CLUSTER, Volume

_BACKUP = 6  # the sector in which the copy of the boot sector is
_MAX_FOLDERS = 1000
_CLEAN = slice(65, 66)  # of the boot sector: what drivers note for themselves


@dataclass(frozen=True)
class Fault:
    """name: what is wrong; offset: byte of the file at which `data` put it right."""

    name: str
    offset: int
    data: bytes


def faults(fd: int, offset: int, size: int, block: int = SECTOR) -> list[Fault]:
    """What is wrong and can be restored. block: bytes of a sector of the disk. Raises FatError when the boot sector is
    damaged, and its copy as well."""
    shape = fat.geometry(size, block)
    first, second = (fatread.pread(fd, offset + number * block, block) for number in (0, _BACKUP))
    sound = [_is_ours(one, shape) for one in (first, second)]
    if sound == [False, True]:
        return [Fault("boot-sector", offset, second)]
    found = []
    if sound == [True, False]:
        found.append(Fault("boot-sector-copy", offset + _BACKUP * block, first))
    volume = fatread.open_volume(fd, offset, size)
    tables = [fatread.pread(fd, at, volume.fat_size) for at in volume.fats]
    if tables[0] != tables[1] and not _leads(volume):
        other = replace(volume, chain=fatread.table(tables[1][: len(volume.chain) * 4]))
        if _leads(other):
            found += [
                Fault("table", volume.fats[0] + at, tables[1][at : at + block])
                for at in range(0, volume.fat_size, block)
                if tables[0][at : at + block] != tables[1][at : at + block]
            ]
    return found or (list(_dots(volume, block)) if sound[0] else [])


def _dots(volume: Volume, block: int) -> Iterator[Fault]:
    """The first two names of each folder, which say where it and the one above it are."""
    queue, seen = [(volume.root, 0)], {volume.root}
    while queue:
        first, above = queue.pop()
        try:
            folder = fatread.read_folder(volume, first, "")
        except FatError:
            folder = None
        if first != volume.root:
            place = volume.place(first)
            sector = fatread.pread(volume.fd, place - place % block, block)
            at = place % block
            slots = bytearray(sector[at : at + 2 * SLOT])
            for start, name, cluster in ((0, b".", first), (SLOT, b"..", above)):
                slots[start : start + 12] = name.ljust(11) + bytes([fat.DIRECTORY])
                slots[start + 20 : start + 22] = (cluster >> 16).to_bytes(2, "little")
                slots[start + 26 : start + 28] = (cluster & 0xFFFF).to_bytes(2, "little")
            if slots != sector[at : at + 2 * SLOT]:
                yield Fault("folder", place - at, sector[:at] + bytes(slots) + sector[at + 2 * SLOT :])
                continue  # what else is in it is read then
        for entry in folder.entries if folder else ():
            if entry.directory and entry.first not in seen and len(seen) < _MAX_FOLDERS:
                seen.add(entry.first)
                queue.append((entry.first, 0 if first == volume.root else first))


def mend(fd: int, offset: int, size: int, block: int = SECTOR) -> list[Fault]:
    """Restore it, and give what was wrong. Raises FatError, OSError."""
    mended: list[Fault] = []
    while found := faults(fd, offset, size, block):  # without its boot sector no table is looked at
        for one in found:
            fat.put(fd, one.offset, one.data)
        os.fsync(fd)
        mended += found
    return mended


def _is_ours(boot: bytes, shape: fat.Geometry) -> bool:
    """Whether a boot sector is as `fat.write` makes it, but for id, label, and the sectors before it: the disk may
    have been another one."""
    try:
        volume_id, label = int.from_bytes(boot[67:71], "little"), boot[71:82].decode("ascii")
    except UnicodeDecodeError:
        return False
    made = fat.boot_sector(shape, volume_id, label, int.from_bytes(boot[28:32], "little"))
    same = bytearray(made.ljust(len(boot), b"\0"))
    same[_CLEAN] = boot[_CLEAN]
    return bytes(same[:SECTOR]) == boot[:SECTOR]


def _leads(volume: Volume) -> bool:
    """Whether by this table every name has as many clusters as its size takes, and none has one of another's."""
    owner: dict[int, int] = {}  # cluster → first one of the chain that it is in
    try:
        for folder in fatread.folders(volume):
            for cluster in folder.clusters:
                if owner.setdefault(cluster, folder.clusters[0]) != folder.clusters[0]:
                    return False
            if volume.chain[folder.clusters[-1]] <= BAD_CLUSTER:
                return False
            for entry in folder.entries:
                if not entry.directory and not _whole(volume, entry, owner):
                    return False
    except FatError:
        return False
    return True


def _whole(volume: Volume, entry: fatread.Entry, owner: dict[int, int]) -> bool:
    count = -(-entry.size // volume.cluster)
    if not count:
        return not entry.first
    clusters = fatread.follow(volume, entry.first, count)
    ends = len(clusters) == count and volume.chain[clusters[-1]] > BAD_CLUSTER
    return ends and all(owner.setdefault(cluster, entry.first) == entry.first for cluster in clusters)
