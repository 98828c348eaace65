"""Files of the ESP that come with a release besides its kernel image: the rescue entry, the loader, its configuration.

They are staged behind the kernel image of the slot, with a note of their own in the block before the one of
`daemon.slots.kept`. `renew` puts them on both EFI system partitions once what runs was called good: until then the old
rescue entry must be there to go back by. The second one, to which firmware falls back, comes first. Each file is
written beside the old one, read back past the cache, and takes its place by one write of a sector; one that firmware
would refuse, or that does not fit, is not written, and the old ones stay. When all are in place that is marked in the
note, and not done again: a version that somebody goes back to brings no older ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.bundle.order import MAX_BOOT_FILE, Order
from common.disk.fat import FatError
from common.disk.fatedit import Editor
from common.efi import uki
from common.efi.entries import BOOT_FILES, RESCUE_SORT_KEY
from common.errors import DiskError, FormatError, MixosError, RefusedError
from daemon.firmware import variables
from daemon.linux import facts
from daemon.parts.update.boot import SLOTS, Disk, look
from daemon.parts.update.esp import Esp
from daemon.slots.disk import BLOCK, TABLE, Slot, file_places, forget, locked, opened, read_all

ESPS = ("mixos-esp-b", "mixos-esp")  # in the order in which they are renewed
_MAGIC = b"MIXOSFIL"
_HEAD = struct.Struct("<8sI32s")  # magic, length of the text, its hash
_TEXT = 2048  # bytes of the note; the sector behind them is the mark
_MARK = 512
_PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Kept:
    """A file in a slot: where it begins there, in bytes."""

    name: str
    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True)
class Note:
    """What was staged with the root of that hash. created: seconds since 1970; done: it was put in place."""

    root_hash: bytes
    created: int
    files: tuple[Kept, ...]
    done: bool = False

    def dump(self) -> bytes:
        """A block."""
        files = [[one.name, one.offset, one.size, one.sha256.hex()] for one in self.files]
        text = json.dumps([self.root_hash.hex(), self.created, files], separators=(",", ":")).encode()
        head = _HEAD.pack(_MAGIC, len(text), hashlib.sha256(text).digest())
        mark = hashlib.sha256(head).digest() if self.done else b""
        return ((head + text).ljust(_TEXT, b"\0") + mark).ljust(BLOCK, b"\0")


def parse(data: bytes) -> Note | None:
    """The inverse of `dump`; None for anything else."""
    magic, length, _ = _HEAD.unpack_from(data)
    if magic != _MAGIC or length > _TEXT - _HEAD.size:
        return None
    try:
        found: Any = json.loads(data[_HEAD.size :][:length])
        root_hash, created, files = found
        kept = tuple(Kept(name, offset, size, bytes.fromhex(digest)) for name, offset, size, digest in files)
        note = Note(bytes.fromhex(root_hash), created, kept)
        sound = note.dump()[:_TEXT] == data[:_TEXT]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    known = all(one.name in BOOT_FILES and 0 < one.size <= MAX_BOOT_FILE and one.offset > 0 for one in kept)
    if not sound or not known:
        return None
    done = replace(note, done=True)
    return done if done.dump() == data else note


def of_order(order: Order) -> Note:
    """The note of a release."""
    sizes = [file.size for file in order.files.values()]
    places = file_places(order.root.size, order.uki.size, sizes)
    kept = (
        Kept(name, at, file.size, file.sha256)
        for (name, file), at in zip(order.files.items(), places[:-1], strict=True)
    )
    return Note(order.root_hash, order.created, tuple(kept))


def read(slot: Slot, root_hash: bytes) -> Note | None:
    """The note of a slot that holds this root; None without one that can be read, and be true."""
    note = None
    with opened(slot.root, os.O_RDONLY) as descriptor, contextlib.suppress(OSError):
        forget(descriptor)
        note = parse(read_all(descriptor, _place(slot), BLOCK))
    if note is None or note.root_hash != root_hash:
        return None
    ends = max((one.offset + one.size for one in note.files), default=0)
    return note if ends <= slot.root[2] - 2 * BLOCK else None


def write(slot: Slot, note: Note) -> None:
    """Make it durable. Raises OSError."""
    with opened(slot.root, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, note.dump(), _place(slot))
        os.fsync(descriptor)


def restore(slot: Slot, kept: Kept, data: bytes) -> None:
    """Write a file that a slot keeps anew. Raises OSError."""
    with opened(slot.root, os.O_RDWR) as descriptor:
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            padded = piece.ljust(-(-len(piece) // BLOCK) * BLOCK, b"\0")
            os.pwrite(descriptor, padded, slot.root[1] + kept.offset + at)
        os.fsync(descriptor)


def _mark(slot: Slot, note: Note) -> None:
    """Say that all is in place; nothing else of the note is written. Raises OSError."""
    mark = replace(note, done=True).dump()[_TEXT:][:_MARK]
    with opened(slot.root, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, mark, _place(slot) + _TEXT)
        os.fsync(descriptor)


def _place(slot: Slot) -> int:
    return slot.root[1] + slot.root[2] - 2 * BLOCK


def contents(slot: Slot, note: Note) -> Iterator[tuple[str, bytes | None]]:
    """Each file, read past the cache; None when it cannot be read or is not what the note says."""
    with opened(slot.root, os.O_RDONLY) as descriptor:
        forget(descriptor)
        for one in note.files:
            data = b""
            with contextlib.suppress(OSError):
                data = read_all(descriptor, slot.root[1] + one.offset, one.size)
            yield one.name, data if hashlib.sha256(data).digest() == one.sha256 else None


def checked(slot: Slot, note: Note) -> Iterator[tuple[str, bytes]]:
    """Each file. Raises DiskError: `slots-readback` for one that is not in the slot, `slots-kernel` for one that is no
    such file."""
    for name, data in contents(slot, note):
        if data is None:
            hint = "try again; if it stays so, the disk is failing: see 'mixctl storage status'"
            message = f"slot {slot.name} does not hold the file {name} that was written to it"
            raise DiskError(message, reason="slots-readback", hint=hint, retryable=True)
        if not fitting(name, data):
            raise DiskError(f"the file {name} of the release is none", reason="slots-kernel")
        yield name, data


def fitting(name: str, data: bytes) -> bool:
    """Whether a file is of the kind that its name says, as far as it tells that itself."""
    if name != "rescue":
        return name != "loader" or data[:2] == b"MZ"
    try:
        found = uki.read_uki(data)
    except FormatError:
        return False
    return found.identity("IMAGE_ID") == RESCUE_SORT_KEY and found.root_hash is None


# -- in place ----------------------------------------------------------------------------------------------------------


def renew(root: Path) -> tuple[str, ...]:
    """Put what came with the version that runs in place; gives the files that were written, as PARTITION:PATH.

    Raises RefusedError: `update-slot` without a slot that runs, `update-trial` before it was called good,
    `update-refused` for what firmware would not start, `esp-full`; DiskError, `slots-readback` when a file is not in
    the slot any more. What is in place then stays, all else is as it was, and it may be done again.
    """
    disk = Disk.find(root)
    boot = look(disk, facts.slot(root), root)
    if boot.slot not in SLOTS or boot.running is None or boot.root_hash != disk.holds(boot.slot):
        raise RefusedError("it is not known which slot runs: this system has no verified root", reason="update-slot")
    if not boot.running.entry.good:
        raise RefusedError("what runs was not called good yet", reason="update-trial")
    slot = Slot.of(disk, boot.slot)
    note = read(slot, boot.root_hash)
    if note is None or note.done:
        return ()
    found = dict(checked(slot, note))
    for name, data in found.items():
        if name != "loader-conf" and (why := variables.refusal(data, root)):
            hint = "the old ones stay; it must be signed with a key that this machine's db has: see docs/secureboot.md"
            message = f"firmware would not start the {name} of {boot.running.version}: {why}"
            raise RefusedError(message, reason="update-refused", hint=hint)
    written: list[str] = []
    failed: MixosError | None = None
    with locked(disk, TABLE):
        for partition in partitions(disk):
            try:
                written += [f"{partition}:{path}" for path in put(disk.esp(partition), found, note.created)]
            except MixosError as error:  # a second one that is damaged keeps nothing from the first
                failed = failed or error
        if failed is not None:
            raise failed
        _mark(slot, note)
    return tuple(written)


def partitions(disk: Disk) -> list[str]:
    """The EFI system partitions that a disk has, in the order in which they are renewed."""
    return [name for name in ESPS if any(part.name == name for part in disk.table.partitions)]


def put(esp: Esp, files: dict[str, bytes], created: int) -> list[str]:
    """Give an EFI system partition these files (by name) where it has such; gives the paths of those that were others.

    Raises RefusedError `esp-full`, DiskError.
    """
    written: list[str] = []
    with esp.changing() as editor:
        there = {path.lower(): path for path in editor.files()}
        for name, data in files.items():
            for path in (there[one.lower()] for one in BOOT_FILES[name] if one.lower() in there):
                if _holds(editor, path, data):
                    continue
                try:
                    editor.replace(path, [data], len(data), epoch=created)
                except FatError as error:
                    if error.reason != "fat-full":
                        raise
                    raise RefusedError(f"{path} does not fit beside the old one: {error}", reason="esp-full") from error
                written.append(path)
    return written


def _holds(editor: Editor, path: str, data: bytes) -> bool:
    pieces = range(0, len(data), _PIECE)
    with contextlib.suppress(FatError):  # one that cannot be read is another one
        return editor.files()[path] == len(data) and all(
            editor.read(path, at, min(_PIECE, len(data) - at)) == data[at : at + _PIECE] for at in pieces
        )
    return False
