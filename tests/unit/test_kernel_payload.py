"""The kernel as frames: what an update of it costs, and that it fits the memory of a device."""

from __future__ import annotations

import io
import random

from backports import zstd

from common.bundle import frames
from common.bundle.plan import Payload, make_plan, parse
from common.bundle.windows import Target
from kernel import payload
from tests.plans import applied, text


def packed(kernel: bytes) -> bytes:
    """A kernel image: some code, the kernel as frames, and its size behind them."""
    out = io.BytesIO()
    payload.compress(io.BytesIO(kernel), out)
    return random.Random(1).randbytes(17_000) + out.getvalue() + len(kernel).to_bytes(4, "little")


def test_it_is_frames_that_follow_one_another_and_say_their_size() -> None:
    kernel = text(1, 3 * payload.FRAME + 1000)
    out = io.BytesIO()
    payload.compress(io.BytesIO(kernel), out)
    found = list(frames.runs(out.getvalue()))
    assert [len(run.plain or b"") for run in found] == [payload.FRAME] * 3 + [1000]
    assert zstd.decompress(out.getvalue()) == kernel


def test_another_build_costs_what_differs() -> None:
    """Some words are longer, so that everything behind them has moved, across the borders of frames too."""
    old = text(1, 1_500_000)
    new = old[:10_000] + b"a word that is new" + old[10_000:]
    found, pieces = parse(packed(new)), Payload()
    assert found.packing is not None
    plan = make_plan(found, packed(old), pieces, 1, 12)
    assert applied(plan, b"".join(pieces.pieces), packed(old), Target.of(found.data)) == found.data
    assert len(plan) + pieces.size < 2000 < len(found.data) // 100
