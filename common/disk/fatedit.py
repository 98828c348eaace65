"""Edit a FAT32 file system in place so that a power cut at any moment leaves the old or the new state of a folder.

Used on an unmounted EFI system partition, where the kernel's driver promises no order of writes. The rules:

- A write of one sector (512 bytes, or the disk's larger one) happens or not; of all writes between two fsyncs, any may
  have happened. Each step below ends with an fsync.
- Content and chain of a new file are written, and the content read back past the cache, before the sector that names
  it is; a chain is freed after its last name.
- All slots of one name lie in one sector of 512 bytes if they fit into one (names up to 195 characters). Then `add`,
  `remove` and `rename` take effect by one sector write, and so does the content of a name in `replace`.
- Where the first room for the new name of a file is not in the sector of the old one, both are there for a while. A
  longer name's slots are written in an order in which firmware and Linux ignore the part that is there.
- Firmware that renames a file (a boot manager that counts) deletes the old slots and appends new ones at the end of the
  folder; it fills no gaps. That happens at once only within one sector. So names are put as far to the front as they
  go, and the end of the folder is moved back behind the last one. `.`, `..`, a one-slot name, two names of up to 13
  characters, and four more that firmware appends before we come to tidy up, have room in one sector.

What a cut leaves behind is space that nothing uses, slots that mean nothing, and different allocation tables, of which
the first counts. `clean` removes that; until then the space is not free. The number in FSInfo is only a hint.
"""

from __future__ import annotations

import hashlib
import operator
import os
import struct
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import compress, islice

from common.disk import fat, fatread
from common.disk.fat import END_OF_CHAIN, MASK, SECTOR, SLOT, FatError
from common.disk.fatread import Entry, Folder

_UNIT = SECTOR // SLOT  # slots that one sector write changes at once
_DELETED = b"\xe5".ljust(SLOT, b"\0")
_PIECE = 1 << 20  # bytes read at once
_FREE_COUNT = 488  # byte in the FSInfo sector


@dataclass(frozen=True)
class Cleaned:
    """What `clean` found. slots: of long names without a file, and behind the end of a folder. clusters: that belonged
    to no name. sectors: in which the second allocation table was different. shared: paths that have one content, as
    they are still there.
    """

    slots: int
    clusters: int
    sectors: int
    shared: tuple[tuple[str, ...], ...]


class Editor:
    """One file system of `size` bytes at byte `offset` of an open file or disk. Paths have "/", their case is ignored.

    block: the bytes of a sector of the disk, of which only whole ones are written (512 or 4096). Nobody else may write
    meanwhile. After an OSError the state on the disk is known again once it is opened anew. Raises FatError for what is
    damaged, missing, or does not fit; a file whose chain is damaged can be removed and replaced.
    """

    def __init__(self, fd: int, offset: int, size: int, block: int = SECTOR) -> None:
        if block not in {512, 4096} or offset % block or size % block:
            raise FatError(f"{size} bytes at {offset} are no whole sectors of {block} bytes", "fat-block")
        self._volume = fatread.open_volume(fd, offset, size)
        self._fd, self._block = fd, block
        self._used()  # nothing is changed where a folder is damaged

    def files(self) -> dict[str, int]:
        """Path → size in bytes, of all files."""
        return {path: entry.size for path, entry in fatread.files(self._volume)}

    def folders(self) -> set[str]:
        """Paths of all folders, "" among them."""
        return {folder.prefix.rstrip("/") for folder in fatread.folders(self._volume)}

    def free(self) -> int:
        """Bytes that are free."""
        return self._vacant().count(1) * self._volume.cluster

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """The content of a file, or `length` bytes of it from byte `start`."""
        return fatread.read(self._volume, self._existing(path)[1], start, length)

    def add(self, path: str, chunks: Iterable[bytes], size: int, *, epoch: int) -> None:
        """A new file with these `size` bytes, in a folder that is there. epoch: seconds, its time."""
        folder, name, _ = self._find(path)
        slots = _slots(folder, name, path)
        first = self._store(path, chunks, size, self._growth(folder, len(slots)))
        slots[-1] = fat.entry(slots[-1][:11], fat.ARCHIVE, first, size, fat.timestamp(epoch))
        self._enter(folder, slots)

    def replace(self, path: str, chunks: Iterable[bytes], size: int, *, epoch: int) -> None:
        """Give a file that is there another content."""
        folder, entry = self._existing(path)
        first = self._store(path, chunks, size, 0)
        at = entry.slots[-1] * SLOT
        slot = bytearray(fat.entry(entry.short, folder.raw[at + 11], first, size, fat.timestamp(epoch)))
        slot[12] = folder.raw[at + 12]  # which parts of a short name are in lower case
        self._put_folder(folder, folder.raw[:at] + slot + folder.raw[at + SLOT :])
        self._release(entry.first)

    def rename(self, path: str, name: str) -> None:
        """Give a file another name in its folder (not the same one in other case)."""
        folder, entry = self._existing(path)
        if entry.name == name:
            return
        slots = _slots(folder, name, folder.prefix + name)
        old = folder.raw[entry.slots[-1] * SLOT :][:SLOT]
        slots[-1] = slots[-1][:11] + old[11:12] + b"\0" + old[13:]
        at = _room(folder, len(slots), entry.slots)
        at_once = at is not None and len({place // _UNIT for place in (at, at + len(slots) - 1, *entry.slots)}) == 1
        if not at_once and self._growth(folder, len(slots)) > self._vacant().count(1):
            raise FatError(f"there is no room for the name {name!r}", "fat-full")
        folder = self._ended(folder)
        if at is not None and at_once:
            self._put_folder(folder, _with(_without(folder.raw, entry.slots), at, slots), descending=True)
        else:
            folder = self._enter(folder, slots)
            self._put_folder(folder, _without(folder.raw, entry.slots), descending=True)

    def remove(self, path: str) -> None:
        """Remove a file. Its space becomes free unless another name has the same content."""
        folder, entry = self._existing(path)
        self._put_folder(folder, _without(folder.raw, entry.slots), descending=True)
        self._release(entry.first)

    def clean(self) -> Cleaned:
        """Remove what cuts have left behind. Of names that share one content none is dropped: that is the caller's."""
        return self._cleaned(change=True)

    def leftovers(self) -> Cleaned:
        """What `clean` would find. Nothing is changed."""
        return self._cleaned(change=False)

    def _cleaned(self, *, change: bool) -> Cleaned:
        volume = self._volume
        names: dict[int, list[str]] = defaultdict(list)
        slots = 0
        for folder in list(fatread.folders(volume)):
            slots += len(folder.orphans) + sum(map(bool, folder.raw[folder.end * SLOT :: SLOT]))
            if change:
                ended = self._ended(folder)
                self._put_folder(ended, _without(ended.raw, ended.orphans), descending=True)
            for entry in folder.entries:
                if entry.first and not entry.directory:
                    names[entry.first].append(folder.prefix + entry.name)
        used, chain = self._used(), volume.chain
        taken = compress(range(len(chain)), chain)
        lost = [at for at in taken if not used[at] and chain[at] != fatread.BAD_CLUSTER]
        if change:
            self._set(dict.fromkeys(lost, 0))
        first, second = (fatread.pread(self._fd, table, len(chain) * 4) for table in volume.fats)
        differing = [at for at in range(0, len(first), SECTOR) if first[at : at + SECTOR] != second[at : at + SECTOR]]
        if change:
            for at in differing:
                self._write(volume.fats[1] + at, first[at : at + SECTOR])
            self._hint()
            os.fsync(self._fd)
        shared = tuple(tuple(paths) for paths in names.values() if len(paths) > 1)
        return Cleaned(slots, len(lost), len(differing), shared)

    # --- names --------------------------------------------------------------------------------------------------------

    def _find(self, path: str) -> tuple[Folder, str, Entry | None]:
        """The folder of a path, its last part, and the entry of that name, if any."""
        *parts, name = path.split("/")
        folder = fatread.read_folder(self._volume, self._volume.root, "")
        for part in parts:
            entry = _named(folder, part)
            if entry is None or not entry.directory:
                raise FatError(f"there is no folder {folder.prefix + part!r}", "fat-missing")
            folder = fatread.read_folder(self._volume, entry.first, f"{folder.prefix}{entry.name}/")
        return folder, name, _named(folder, name)

    def _existing(self, path: str) -> tuple[Folder, Entry]:
        folder, _, entry = self._find(path)
        if entry is None or entry.directory:
            raise FatError(f"there is no file {path!r}", "fat-missing")
        return folder, entry

    def _growth(self, folder: Folder, count: int) -> int:
        """How many clusters the folder must grow by to take a name of so many slots."""
        if _room(folder, count) is not None:
            return 0
        clusters = -(-count * SLOT // self._volume.cluster)
        if len(folder.raw) + clusters * self._volume.cluster > fatread.MAX_DIRECTORY:
            raise FatError(f"the folder {folder.prefix!r} is full", "fat-full")
        return clusters

    def _enter(self, folder: Folder, slots: list[bytes]) -> Folder:
        """Write a name into a folder, which grows when it must; gives the folder as it is then."""
        folder = self._ended(folder)
        for _ in range(self._growth(folder, len(slots))):
            folder = self._grown(folder)
        at = _room(folder, len(slots))
        assert at is not None
        # In one unit it is there when the last write, that of the lowest unit, removes what was the end before (for
        # Linux, which looks behind an end, when it is whole). A longer one begins at the end or in free slots: its
        # short name, which counts, is in the highest unit.
        one = at // _UNIT == (at + len(slots) - 1) // _UNIT
        return self._put_folder(folder, _with(folder.raw, at, slots), descending=one)

    def _ended(self, folder: Folder) -> Folder:
        """The folder with nothing but zeros behind its end: Linux sees what is there, firmware once the end moves."""
        tail = len(folder.raw) - folder.end * SLOT
        return self._put_folder(folder, folder.raw[: folder.end * SLOT] + bytes(tail), descending=True)

    def _grown(self, folder: Folder) -> Folder:
        """The folder with one more cluster, of zeros."""
        last, new = folder.clusters[-1], self._vacant().index(1)
        self._write(self._volume.place(new), bytes(self._volume.cluster))
        self._set({new: END_OF_CHAIN})
        os.fsync(self._fd)
        self._set({last: new})
        self._hint()
        os.fsync(self._fd)
        return replace(folder, clusters=(*folder.clusters, new), raw=folder.raw + bytes(self._volume.cluster))

    def _put_folder(self, folder: Folder, raw: bytes, *, descending: bool = False) -> Folder:
        """Write the units of a folder that differ in `raw`, one after the other, each made durable before the next."""
        starts = [at for at in range(0, len(raw), SECTOR) if raw[at : at + SECTOR] != folder.raw[at : at + SECTOR]]
        for at in reversed(starts) if descending else starts:
            cluster, within = divmod(at, self._volume.cluster)
            self._write(self._volume.place(folder.clusters[cluster]) + within, raw[at : at + SECTOR])
            os.fsync(self._fd)
        return replace(folder, raw=raw)

    # --- content ------------------------------------------------------------------------------------------------------

    def _store(self, path: str, chunks: Iterable[bytes], size: int, more: int) -> int:
        """Write content and chain of a file, make them durable, and read the content back past the cache; gives the
        first cluster (0: empty).

        more: clusters that are needed besides. Raises FatError: `fat-full`, before anything is written, when they are
        not free; `fat-readback`.
        """
        if not 0 <= size < 1 << 32:
            raise FatError(f"{path!r}: {size} bytes", "fat-size")
        cluster, vacant = self._volume.cluster, self._vacant()
        count = -(-size // cluster)
        if count + more > vacant.count(1):
            raise FatError(f"{path!r} has {size} bytes, and {vacant.count(1) * cluster} are free", "fat-full")
        whole = vacant.find(b"\1" * count)  # in one piece if there is one
        places = range(whole, whole + count) if whole > 0 else compress(range(len(vacant)), vacant)
        clusters = list(islice(places, count))
        written, there = hashlib.sha256(), hashlib.sha256()
        for piece, place in zip(_pieces(path, chunks, size, cluster), clusters, strict=False):
            self._write(self._volume.place(place), piece)
            written.update(piece)
        self._set(dict(zip(clusters, [*clusters[1:], END_OF_CHAIN], strict=False)))
        self._hint()
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for first, length in fatread.runs(clusters):
            begin, left = self._volume.place(first), length * cluster
            for at in range(0, left, _PIECE):
                there.update(fatread.pread(self._fd, begin + at, min(_PIECE, left - at)))
        if there.digest() != written.digest():
            raise FatError(f"{path!r} is on the disk with another content than was written", "fat-readback")
        return clusters[0] if clusters else 0

    def _vacant(self) -> bytes:
        """For each cluster, 1 if it is free. One that a damaged chain leads to is not, whatever its entry says."""
        return bytes(map(operator.gt, map(operator.not_, self._volume.chain), self._used()))

    def _release(self, first: int) -> None:
        """Free a chain that has lost a name, as far as no other name has it; damaged ones as far as they go."""
        used, chain = self._used(), self._volume.chain
        freed: dict[int, int] = {}
        while 2 <= first < len(chain) and not used[first] and first not in freed:
            if chain[first] == fatread.BAD_CLUSTER:
                break
            freed[first] = 0
            first = chain[first]
        self._set(freed)
        self._hint()
        os.fsync(self._fd)

    def _used(self) -> bytearray:
        """For each cluster, 1 if some name or folder has it, or if it is none. Raises FatError for damaged folders."""
        chain = self._volume.chain
        used = bytearray(len(chain))
        used[:2] = b"\1\1"
        for folder in fatread.folders(self._volume):
            for first in (folder.clusters[0], *(entry.first for entry in folder.entries if not entry.directory)):
                cluster = first
                while 2 <= cluster < len(chain) and not used[cluster]:
                    used[cluster] = 1
                    cluster = chain[cluster]
        return used

    def _set(self, values: Mapping[int, int]) -> None:
        """Write entries (cluster → next one) into both allocation tables. The four reserved bits of each are kept."""
        volume = self._volume
        for cluster, following in values.items():
            volume.chain[cluster] = following
        for first, count in fatread.runs(sorted({cluster * 4 // SECTOR for cluster in values})):
            start = first * SECTOR
            new = volume.chain[start // 4 : (start + count * SECTOR) // 4]
            for table in volume.fats:
                old = array("I", fatread.pread(self._fd, table + start, len(new) * 4))
                merged = array("I", (before & ~MASK | after for before, after in zip(old, new, strict=True)))
                self._write(table + start, merged.tobytes())

    def _hint(self) -> None:
        """Tell the number of free clusters where a valid FSInfo sector is."""
        at = self._volume.info
        sector = fatread.pread(self._fd, at, SECTOR) if at else bytes(SECTOR)
        told = sector[:_FREE_COUNT] + struct.pack("<I", self._volume.chain[2:].count(0)) + sector[_FREE_COUNT + 4 :]
        if told != sector and (sector[:4], sector[484:488], sector[508:]) == (b"RRaA", b"rrAa", b"\0\0\x55\xaa"):
            self._write(at, told)

    def _write(self, at: int, data: bytes) -> None:
        """Write at a byte of the file, whole sectors of the disk."""
        before, behind = at % self._block, -(at + len(data)) % self._block
        head = fatread.pread(self._fd, at - before, before) if before else b""
        tail = fatread.pread(self._fd, at + len(data), behind) if behind else b""
        fat.put(self._fd, at - before, head + data + tail)


def _named(folder: Folder, name: str) -> Entry | None:
    """The entry that has this name or short name, without regard to case."""
    return next((one for one in folder.entries if name.upper() in _names(one)), None)


def _names(entry: Entry) -> set[str]:
    return {entry.name.upper(), fatread.display_name(entry.short)}


def _slots(folder: Folder, name: str, path: str) -> list[bytes]:
    """The slots of a new name, of the last one only the short name. Raises FatError when it is taken or no name."""
    fat.check_name(name, path)
    if _named(folder, name):
        raise FatError(f"{path!r} is there already", "fat-exists")
    short = fat.short_name(name, {entry.short for entry in folder.entries})
    return [*fat.long_slots(name, short), short.ljust(SLOT, b"\0")]


def _room(folder: Folder, count: int, freed: range = range(0)) -> int | None:
    """The first of `count` free slots in a row (those of `freed` count as free), in one unit if they fit into one."""
    run = 0
    for at in range(len(folder.raw) // SLOT):
        if count <= _UNIT and at % _UNIT == 0:
            run = 0
        run = run + 1 if at >= folder.end or folder.raw[at * SLOT] == 0xE5 or at in freed else 0
        if run == count:
            return at - count + 1
    return None


def _with(raw: bytes, at: int, slots: list[bytes]) -> bytes:
    """A folder's bytes with slots from number `at` on; those that are then before the end are deleted ones."""
    new = bytearray(raw)
    for before in range(at):
        if not new[before * SLOT]:
            new[before * SLOT : (before + 1) * SLOT] = _DELETED
    new[at * SLOT : (at + len(slots)) * SLOT] = b"".join(slots)
    return _trimmed(new)


def _without(raw: bytes, slots: Iterable[int]) -> bytes:
    """A folder's bytes with these slots deleted."""
    new = bytearray(raw)
    for at in slots:
        new[at * SLOT] = 0xE5
    return _trimmed(new)


def _trimmed(raw: bytearray) -> bytes:
    """A folder's bytes with its end behind the last slot that is not deleted."""
    heads = raw[::SLOT].replace(b"\xe5", b"\0").rstrip(b"\0")
    return bytes(raw[: len(heads) * SLOT]).ljust(len(raw), b"\0")


def _pieces(path: str, chunks: Iterable[bytes], size: int, length: int) -> Iterator[bytes]:
    """The content in pieces of `length` bytes, zeros at the end. Raises FatError when it is not `size` bytes."""
    held, total = bytearray(), 0
    for chunk in chunks:
        total += len(chunk)
        if total > size:
            break
        held += chunk
        while len(held) >= length:
            yield bytes(held[:length])
            del held[:length]
    if total != size:
        raise FatError(f"{path!r}: the content has not the {size} bytes that were said", "fat-length")
    if held:
        yield bytes(held).ljust(length, b"\0")
