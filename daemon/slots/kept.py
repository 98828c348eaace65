"""What a slot keeps besides its root, so that the loader's entry can be made again: the kernel image behind the root,
and in the last block of the partition a note of where it is and what it must be.

A note counts only in the slot whose identities are the root hash that it names. It proves nothing to others: whether
firmware starts a kernel image is decided by the image's signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from dataclasses import dataclass

from common.bundle.order import Order
from common.disk import verity
from common.efi import pe, uki
from common.errors import DiskError, FormatError
from daemon.slots.disk import BLOCK, Slot, forget, kernel_place, opened, read_all

MAX_KERNEL = 256 << 20
_MAGIC = b"MIXOSKPT"
_HEAD = struct.Struct("<8sIIQQ32s32sI")  # magic, format, created, blocks, bytes of kernel, its hash, root hash, salt's
_FORMAT = 1
_SQUASHFS = struct.Struct("<4s36xQ")  # magic, and bytes that are used (kernel: fs/squashfs/squashfs_fs.h)
_PIECE = 1 << 20  # bytes written at once


@dataclass(frozen=True)
class Note:
    """blocks: of 4096 bytes, of the root; size, sha256: of the kernel image; created: seconds since 1970."""

    root_hash: bytes
    salt: bytes
    blocks: int
    size: int
    sha256: bytes
    created: int

    @classmethod
    def of(cls, target: uki.VerityTarget, image: bytes, created: int) -> Note:
        """For a kernel image that starts that root."""
        return cls(target.root, target.salt, target.blocks, len(image), hashlib.sha256(image).digest(), created)

    @property
    def target(self) -> uki.VerityTarget:
        """The root."""
        return uki.VerityTarget(self.blocks, self.root_hash, self.salt)

    def dump(self) -> bytes:
        """A block."""
        numbers = _MAGIC, _FORMAT, self.created & 0xFFFFFFFF, self.blocks, self.size
        text = _HEAD.pack(*numbers, self.sha256, self.root_hash, len(self.salt)) + self.salt
        return (text + hashlib.sha256(text).digest()).ljust(BLOCK, b"\0")


def parse(data: bytes) -> Note | None:
    """The inverse of `dump`; None for anything else."""
    magic, number, created, blocks, size, digest, root_hash, salt = _HEAD.unpack_from(data)
    if (magic, number) != (_MAGIC, _FORMAT) or salt > verity.MAX_SALT:
        return None
    note = Note(root_hash, data[_HEAD.size :][:salt], blocks, size, digest, created)
    return note if note.dump() == data and 0 < size <= MAX_KERNEL and blocks else None


def fits(slot: Slot, root_size: int, kernel_size: int) -> bool:
    """Whether a slot has room for a root, its tree, its kernel image and the note."""
    tree = verity.tree_blocks(root_size // verity.BLOCK) * verity.BLOCK
    return kernel_place(root_size) + kernel_size + BLOCK <= slot.root[2] and tree <= slot.tree[2]


def read(slot: Slot) -> Note | None:
    """The note of a slot; None without one that can be read, and be true."""
    note = None
    with opened(slot.root, os.O_RDONLY) as descriptor, contextlib.suppress(OSError):
        forget(descriptor)
        note = parse(read_all(descriptor, _place(slot), BLOCK))
    return note if note and fits(slot, note.blocks * verity.BLOCK, note.size) else None


def write(slot: Slot, note: Note) -> None:
    """Make it durable. Raises OSError."""
    with opened(slot.root, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, note.dump(), _place(slot))
        os.fsync(descriptor)


def _place(slot: Slot) -> int:
    return slot.root[1] + slot.root[2] - BLOCK


def of_order(order: Order) -> Note:
    """The note of a release."""
    blocks = order.root.size // verity.BLOCK
    return Note(order.root_hash, order.salt, blocks, order.uki.size, order.uki.sha256, order.created)


def kernel(slot: Slot, note: Note) -> bytes | None:
    """The kernel image that is kept, read past the cache; None when it cannot be read or is not what the note says."""
    image = b""
    with opened(slot.root, os.O_RDONLY) as descriptor, contextlib.suppress(OSError):
        forget(descriptor)
        image = read_all(descriptor, slot.root[1] + kernel_place(note.blocks * verity.BLOCK), note.size)
    return image if hashlib.sha256(image).digest() == note.sha256 else None


def beside(slot: Slot, target: uki.VerityTarget, size: int) -> bytes:
    """So many bytes from where the kernel image of a root is kept, whatever they are; fewer at the end of the slot.

    Raises OSError."""
    begin = kernel_place(target.blocks * verity.BLOCK)
    with opened(slot.root, os.O_RDONLY) as descriptor:
        forget(descriptor)
        return read_all(descriptor, slot.root[1] + begin, max(0, min(size, slot.root[2] - BLOCK - begin)))


def without_note(slot: Slot, root_hash: bytes) -> tuple[uki.VerityTarget, bytes] | None:
    """The root that a slot must hold and its kernel image, found by the size in the superblock of its squashfs when
    there is no note; None unless that leads to an image that starts this root. Raises OSError."""
    with opened(slot.root, os.O_RDONLY) as descriptor:
        forget(descriptor)
        magic, size = _SQUASHFS.unpack(read_all(descriptor, slot.root[1], _SQUASHFS.size))
    target = uki.VerityTarget(-(-size // verity.BLOCK), root_hash, b"")
    if magic != b"hsqs" or kernel_place(size) >= slot.root[2]:
        return None
    try:
        image = beside(slot, target, uki.HEAD)
        extent = pe.extent(image, MAX_KERNEL)
        image = beside(slot, target, extent)
        found = uki.verity_target(startable(image, root_hash).cmdline)
    except (FormatError, DiskError):
        return None
    return (found, image) if found and found.blocks == target.blocks else None


def keep(slot: Slot, target: uki.VerityTarget, image: bytes, created: int) -> bool:
    """Write a kernel image behind the root, and then the note; False without room. The root is not touched.

    Raises OSError."""
    size = target.blocks * verity.BLOCK
    if not fits(slot, size, len(image)):
        return False
    with opened(slot.root, os.O_RDWR) as descriptor:
        begin = slot.root[1] + kernel_place(size)
        for at in range(0, len(image), _PIECE):
            piece = image[at : at + _PIECE]
            os.pwrite(descriptor, piece.ljust(-(-len(piece) // BLOCK) * BLOCK, b"\0"), begin + at)
        os.fsync(descriptor)
    write(slot, Note.of(target, image, created))
    return True


def startable(image: bytes, root_hash: bytes) -> uki.Uki:
    """What a kernel image says, when it is whole as far as it says that itself, and starts that root.

    Raises DiskError `slots-kernel`."""
    from common.efi import pkcs7  # only where nothing else tells

    try:
        found = uki.read_uki(image)
        signatures = pe.signatures(image)
        digests = {"sha256": pe.authenticode(image)} if signatures else {}
        if found.root_hash == root_hash and (not signatures or any(pkcs7.signers(one, digests) for one in signatures)):
            return found
    except FormatError as error:
        raise DiskError(f"the kernel image is damaged: {error}", reason="slots-kernel") from error
    raise DiskError("the kernel image is damaged, or another root's", reason="slots-kernel")
