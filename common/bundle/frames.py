"""Zstd frames inside a file (the blocks of a squashfs image), unpacked and packed again.

Entropy coding hides what two files have in common: one changed byte of a block changes all bytes of its frame. Files
are therefore compared by what their frames unpack to, and the device packs again what it has put together. The same
input, level and library version give the same frame; whoever makes a plan has tried it with each frame, and the hash
of its window judges what the device made.

RFC 8878 describes frames. Only those that say their size, of at most 1 MiB, are unpacked; all else is plain bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from backports import zstd

MAGIC = b"\x28\xb5\x2f\xfd"
MAX_PLAIN = 1 << 20  # bytes of a frame, unpacked: the largest block of squashfs
MAX_FRAME = MAX_PLAIN + (MAX_PLAIN >> 8) + 64  # ZSTD_COMPRESSBOUND, from below 128 KiB on a little more
LEVELS = (10, 15, 19, 22, *range(1, 10), *range(11, 15), 16, 17, 18, 20, 21)  # in the order in which they are tried
_PROBES = 3  # frames that must agree on a level
_FAILURES = 1024  # magic numbers that begin no frame, by chance: one in 4 GiB of packed data


class Run(NamedTuple):
    """Consecutive bytes of a file: offset and length in it, and what they unpack to (None: they are no frame)."""

    offset: int
    length: int
    plain: bytes | None


def runs(data: bytes) -> Iterator[Run]:
    """`data` as frames and what is between them, in order. It depends on `data` alone, and work is bounded: after
    `_FAILURES` magic numbers that begin no frame the rest is plain bytes."""
    start = at = failures = 0
    while failures < _FAILURES and (at := data.find(MAGIC, at)) >= 0:
        found = _frame(data[at : at + MAX_FRAME])
        if found is None:
            at += len(MAGIC)
            failures += 1
            continue
        if at > start:
            yield Run(start, at - start, None)
        yield Run(at, *found)
        start = at = at + found[0]
    if start < len(data):
        yield Run(start, len(data) - start, None)


def expand(data: bytes) -> Iterator[bytes]:
    """The bytes of `data` with each frame unpacked, in pieces of at most 1 MiB or as long as `data`."""
    for run in runs(data):
        yield data[run.offset : run.offset + run.length] if run.plain is None else run.plain


def pack(plain: bytes | bytearray, level: int) -> bytes:
    """The frame that `rootfs.squashfs_write` makes of a block at this level."""
    return zstd.compress(plain, level)


def level_of(data: bytes) -> int | None:
    """The level at which our library makes the first frames of `data` again; None when there is none, or no frames."""
    probes: list[tuple[bytes, bytes]] = []
    for run in runs(data):
        if run.plain is not None and run.length >= 4096:
            probes.append((data[run.offset : run.offset + run.length], run.plain))
            if len(probes) == _PROBES:
                break
    if not probes:
        return None
    return next((level for level in LEVELS if all(pack(plain, level) == packed for packed, plain in probes)), None)


def _frame(data: bytes) -> tuple[int, bytes] | None:
    """(packed length, unpacked bytes) of the frame with which `data` begins."""
    try:
        size = zstd.get_frame_info(data[:18]).decompressed_size
        if size is None or not 0 < size <= MAX_PLAIN:
            return None
        length = zstd.get_frame_size(data)
        plain = zstd.ZstdDecompressor().decompress(data[:length], size + 1)
    except zstd.ZstdError:
        return None
    return (length, plain) if len(plain) == size else None
