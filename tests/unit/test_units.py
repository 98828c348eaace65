"""Quantities for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.units import size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (928 << 20, "928 MiB"),
        (975.9 * 2**20, "976 MiB"),
        (1.2 * 2**30, "1.2 GiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_bytes(count: float | None, text: str):
    assert size(count) == text


@given(st.integers(0, 1 << 60))
def test_bytes_are_short(count: int):
    number, unit = size(count).split()
    assert len(number) <= 7
    assert unit in ("B", "KiB", "MiB", "GiB", "TiB")
