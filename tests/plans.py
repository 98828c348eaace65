"""Files as updates meet them, and plans between them: blocks packed by zstd with plain bytes between."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from common.bundle import frames, windows
from common.bundle.plan import Payload, make_plan, parse

LEVEL = 3  # of zstd everywhere here: what is tested does not depend on it


def text(seed: int, size: int) -> bytes:
    """Words, which pack to about a third."""
    draw = random.Random(seed)
    words = [draw.randbytes(draw.randrange(2, 9)).hex().encode() for _ in range(500)]
    return b" ".join(draw.choice(words) for _ in range(size // 8 + 1))[:size]


def image(blocks: Sequence[bytes], level: int = LEVEL) -> bytes:
    """Blocks packed, each with its packed size in front of it, behind a head, before a table of where they are."""
    out, places = bytearray(b"HEAD" * 24), []
    for block in blocks:
        packed = frames.pack(block, level)
        places.append(len(out).to_bytes(8, "little"))
        data = min(packed, block, key=len)
        out += len(data).to_bytes(3, "little") + data
    out += b"".join(places)
    return bytes(out + bytes(-len(out) % 4096))


def reader(data: bytes) -> Callable[[int, int], bytes]:
    """A `read` of a file that ends where it ends."""
    return lambda offset, length: data[offset : offset + length]


def planned(new: bytes, old: bytes | None, jobs: int = 1) -> tuple[bytes, bytes]:
    """(plan, payload) of one file out of another."""
    payload = Payload()
    plan = make_plan(parse(new, jobs=jobs), old, payload, jobs, LEVEL)
    return plan, b"".join(payload.pieces)


def applied(plan: bytes, payload: bytes, old: bytes | None, target: windows.Target, start: bytes = b"") -> bytes:
    """What a device makes of the target's begin `start`: windows that are there are kept."""
    out = bytearray(start.ljust(target.size, b"\0"))

    def write(offset: int, data: memoryview) -> None:
        out[offset : offset + len(data)] = data

    wanted = windows.missing(target, lambda offset, length: bytes(out[offset : offset + length]))
    windows.apply(windows.read_plan(plan), target, wanted, reader(old or b""), reader(payload), write)
    return bytes(out)
