"""What is changed on the boot disk: counters of entries, identities of slots. Each change is whole at every sector."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from common.bundle.order import Order
from common.disk import gpt
from common.disk.fatedit import Editor
from common.efi import uki
from common.efi.entries import COMING, FOLDER, GOOD, TRIES, Entry, image_name, read_name
from common.errors import DiskError, RefusedError
from daemon.linux import facts
from daemon.parts.update.boot import SLOTS, Boot, Disk, look, node

if TYPE_CHECKING:
    from daemon.erase import How

TABLE, SLOT = 0, 1  # what is locked: the partition table and the ESP; the slot that does not run
_PATIENCE = 20.0  # seconds for who holds a lock
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2)
BLOCK = 4096  # bytes of a note that a slot keeps, and what such files are aligned to
_ALIGN = 1 << 20
_PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Slot:
    """A slot as two places to read and write: device (or image of a disk), offset and size in bytes."""

    name: str
    root: tuple[Path, int, int]
    tree: tuple[Path, int, int]

    @classmethod
    def of(cls, disk: Disk, name: str) -> Slot:
        """Raises GptError."""
        return cls(name, _place(disk, disk.partition("root", name)), _place(disk, disk.partition("verity", name)))


def _place(disk: Disk, part: gpt.Partition) -> tuple[Path, int, int]:
    device = node(disk.path, part.index)  # by its own device, whose cache is not the disk's
    return (disk.path, part.offset, part.size) if device is None else (device, 0, part.size)


def kernel_place(root_size: int) -> int:
    """Where in a slot its kernel image is kept, behind the root of so many bytes."""
    return -(-root_size // _ALIGN) * _ALIGN


def file_places(root_size: int, kernel_size: int, sizes: Sequence[int]) -> list[int]:
    """Where in a slot files of these sizes are kept, behind the kernel image, and where they end."""
    places = [_up(kernel_place(root_size) + kernel_size)]
    for size in sizes:
        places.append(_up(places[-1] + size))
    return places


def _up(at: int) -> int:
    return -(-at // BLOCK) * BLOCK


@contextlib.contextmanager
def opened(place: tuple[Path, int, int], flags: int) -> Iterator[int]:
    """A descriptor of the device of a place. Raises OSError."""
    descriptor = os.open(place[0], flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_all(descriptor: int, offset: int, size: int) -> bytes:
    """Exactly so many bytes. Raises DiskError `slots-io` at the end of the device, OSError."""
    out = bytearray()
    while len(out) < size:
        piece = os.pread(descriptor, min(_PIECE, size - len(out)), offset + len(out))
        if not piece:
            raise DiskError("the disk ends before the slot does", reason="slots-io")
        out += piece
    return bytes(out)


def forget(descriptor: int) -> None:
    """What is in the cache, once it is on the disk (posix_fadvise(2)): the disk is to be read, not what was written."""
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def found(root: Path, wanted: bytes = b"") -> tuple[Disk, Boot]:
    """The boot disk, and what runs. Raises DiskError; RefusedError `update-slot` when that is not known.

    From the rescue entry no slot runs: then it is the one that is kept when a release of root hash `wanted` comes.
    """
    disk = Disk.find(root)
    boot = look(disk, facts.slot(root), root)
    if boot.slot in SLOTS and boot.root_hash is not None:
        return disk, boot
    if in_rescue(root):
        return disk, spared(boot, wanted)
    raise RefusedError("it is not known which slot runs: this system has no verified root", reason="update-slot")


def in_rescue(root: Path) -> bool:
    """Whether the rescue entry runs, by its command line."""
    return any(word.startswith("mixos.rescue=") for word in (facts.text(root / "proc/cmdline") or "").split())


def spared(boot: Boot, wanted: bytes) -> Boot:
    """As if the slot ran that is not to be written: to be written is the one that holds `wanted`, else one that holds
    nothing, else the one that the loader would start last."""
    held = {image.slot: image for image in reversed(boot.images) if image.slot is not None}
    order = sorted(SLOTS, key=lambda slot: boot.images.index(held[slot]) if slot in held else len(boot.images))
    target = next((slot for slot in order if slot in held and held[slot].root_hash == wanted), order[-1])
    slot = next(one for one in SLOTS if one != target)
    running = held.get(slot)
    return replace(boot, slot=slot, root_hash=running.root_hash if running else None, running=running)


@contextlib.contextmanager
def locked(disk: Disk | Path, what: int, patience: float = _PATIENCE, *, shared: bool = False) -> Iterator[None]:
    """Alone with a part of the disk, among those who use this; shared: with others who only read. Raises DiskError
    `slots-busy` (retryable)."""
    access, kind = (os.O_RDONLY, fcntl.F_RDLCK) if shared else (os.O_RDWR, fcntl.F_WRLCK)
    descriptor = os.open(disk if isinstance(disk, Path) else disk.path, access | os.O_CLOEXEC)
    try:
        end = time.monotonic() + patience
        while not _lock(descriptor, what, kind):
            if time.monotonic() >= end:
                raise DiskError("another update is under way", reason="slots-busy", retryable=True)
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, what: int, kind: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, what, 1, 0))
    except BlockingIOError:
        return False
    return True


def count(disk: Disk, old: str, new: str) -> None:
    """Give the entry OLD the counter that NEW has. Raises DiskError, `slots-name` for anything but another counter.

    Other names of the same image go: a cut while firmware counted has left them, and where one is, it cannot count.
    """
    before, after = read_name(old), read_name(new)
    known = before is not None and after is not None and before.stem == after.stem and os.path.basename(old) == old
    if not known or before is None or after is None or after.left is None or after.left + after.done > GOOD:
        raise DiskError(f"{old!r:.80} does not become {new!r:.80}: only a counter changes", reason="slots-name")
    with locked(disk, TABLE), disk.esp().changing() as esp:
        for path in esp.files():
            name = path.removeprefix(f"{FOLDER}/")
            other = read_name(name) if name != path else None
            if other is not None and other.stem == before.stem and name.lower() != old.lower():
                esp.remove(path)
        esp.rename(f"{FOLDER}/{old}", new)


def entry(order: Order) -> Entry:
    """Of a release that was not started yet."""
    return Entry(image_name(order.root_hash), TRIES, version=order.version)


def invalidate(disk: Disk, boot: Boot, slot: str) -> None:
    """Nothing starts what is in a slot, and nothing finds it: first its entries go, then its identities.

    Entries that no slot holds the root of go as well, and what a cut has left of one. Raises DiskError.
    """
    assert slot != boot.slot
    with locked(disk, TABLE):
        with disk.esp().changing() as esp:
            for image in boot.images:
                if image.root_hash not in (None, boot.root_hash):
                    esp.remove(f"{FOLDER}/{image.entry.name}")
            remove_unfinished(esp)
        identify(disk, slot, (uuid4(), uuid4()))


def remove_unfinished(esp: Editor) -> None:
    """What a cut has left of an entry that was written."""
    for path in esp.files():
        if path.lower() == f"{FOLDER}/{COMING}".lower():  # FAT has no case
            esp.remove(path)


def identify(disk: Disk, slot: str, ids: tuple[UUID, UUID]) -> None:
    """Give the partitions of a slot their identities, in both copies of the table. Raises DiskError, GptError."""
    descriptor = os.open(disk.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        table = gpt.read(descriptor)
        for kind, identity in zip(("root", "verity"), ids, strict=True):
            table = table.replaced(replace(table.find(f"mixos-{kind}-{slot}"), id=identity))
        gpt.write(descriptor, table)
    finally:
        os.close(descriptor)


def reset(disk: Disk, how: How | None) -> None:
    """Say in the partition table that the data partition is to be made anew, or (None) not.

    Raises DiskError, GptError."""
    from daemon import erase  # seldom, and it starts programs

    with locked(disk, TABLE):
        descriptor = os.open(disk.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            erase.want(descriptor, how)
        finally:
            os.close(descriptor)


def startable(image: bytes, root_hash: bytes, version: str) -> None:
    """Raise DiskError `slots-kernel` unless a kernel image is of this version, and starts this root and no other."""
    head = uki.read_uki(image)
    if head.root_hash != root_hash or head.identity("IMAGE_VERSION") != version:
        raise DiskError("the kernel image is not the one of this root", reason="slots-kernel")
