"""The dm-verity hash tree (kernel: Documentation/admin-guide/device-mapper/verity.rst), format version 1.

SHA-256, data and hash blocks of 4096 bytes, no superblock: the tree begins at the first byte of the hash partition, so
the table says `hash_start_block` 0. A digest is SHA-256(salt + block). Each hash block holds 128 digests of the level
below, zero-padded; the levels lie in the partition from the root downwards. The updater rebuilds the tree on the device
with this module and compares the root with the signed one, so only the standard library is imported.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from uuid import UUID

from common.errors import FormatError

BLOCK = 4096
DIGEST = 32
FANOUT = BLOCK // DIGEST
MAX_SALT = 256
_CHUNK = 256 * BLOCK  # bytes read at once


class VerityError(FormatError):
    """Data of a size, or a salt, that dm-verity does not take."""


@dataclass(frozen=True)
class Tree:
    """The result: root digest, the bytes of the hash partition, the salt and how many data blocks are covered."""

    root: bytes
    hashes: bytes
    salt: bytes
    blocks: int


def tree_blocks(blocks: int) -> int:
    """How many hash blocks the tree over `blocks` data blocks takes; sizes the hash partition for a whole slot."""
    total = 0
    while blocks > 1:
        blocks = -(-blocks // FANOUT)
        total += blocks
    return total


def build(fd: int, size: int, salt: bytes, offset: int = 0) -> Tree:
    """Hash `size` bytes (a positive multiple of 4096) of an open file or device from byte `offset`.

    Raises VerityError for other sizes, a salt over 256 bytes, or a file that ends early.
    """
    if size <= 0 or size % BLOCK:
        raise VerityError(f"{size} bytes are not a positive number of whole {BLOCK}-byte blocks", "verity-size")
    if len(salt) > MAX_SALT:
        raise VerityError(f"a salt of {len(salt)} bytes is too long", "verity-salt")
    salted = hashlib.sha256(salt)
    level = _hash_file(fd, offset, size, salted)
    levels: list[bytes] = []
    while len(level) > DIGEST:
        level += bytes(-len(level) % BLOCK)
        levels.append(level)
        level = _hash_blocks(memoryview(level), salted)
    return Tree(level, b"".join(reversed(levels)), salt, size // BLOCK)


def _hash_blocks(data: memoryview, salted: hashlib._Hash) -> bytes:
    """The digests of consecutive blocks, joined. `salted` has already taken in the salt."""
    digests: list[bytes] = []
    for start in range(0, len(data), BLOCK):
        state = salted.copy()
        state.update(data[start : start + BLOCK])
        digests.append(state.digest())
    return b"".join(digests)


def _hash_file(fd: int, offset: int, size: int, salted: hashlib._Hash) -> bytes:
    digests: list[bytes] = []
    done = 0
    while done < size:
        chunk = os.pread(fd, min(_CHUNK, size - done), offset + done)
        if not chunk or len(chunk) % BLOCK:
            raise VerityError(f"the data end at byte {done + len(chunk)} of {size}", "verity-short-read")
        digests.append(_hash_blocks(memoryview(chunk), salted))
        done += len(chunk)
    return b"".join(digests)


def partition_ids(root: bytes) -> tuple[UUID, UUID]:
    """PARTUUIDs of root and hash partition: first and last 128 bits of the root digest (discoverable partitions)."""
    if len(root) != DIGEST:
        raise VerityError(f"a root digest has {DIGEST} bytes, not {len(root)}", "verity-root")
    return UUID(bytes=root[:16]), UUID(bytes=root[16:])


def dm_create(tree: Tree, name: str = "root") -> str:
    """The value of the kernel's `dm-mod.create=` (dm-init.rst), with both devices found by PARTUUID."""
    data, hashes = partition_ids(tree.root)
    sectors = tree.blocks * (BLOCK // 512)
    target = (
        f"verity 1 PARTUUID={data} PARTUUID={hashes} {BLOCK} {BLOCK} {tree.blocks} 0 "
        f"sha256 {tree.root.hex()} {tree.salt.hex() or '-'} 1 panic_on_corruption"
    )
    return f"{name},,,ro,0 {sectors} {target}"
