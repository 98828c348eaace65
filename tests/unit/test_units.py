"""Quantities for people."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.units import clock, duration, percent, rate, size, word


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (0.0005, "0.5 ms"),
        (0.25, "250 ms"),
        (1.25, "1.2 s"),
        (9.96, "10 s"),
        (59.9, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (90061.5, "1 d 1 h"),
        (86400 + 59, "1 d"),
        (-1, "0 s"),
    ],
)
def test_durations(seconds: float | None, text: str):
    assert duration(seconds) == text


def test_what_is_not_known_is_a_dash():
    assert {form(None) for form in (size, rate, percent, duration, clock, word)} == {"-"}
    assert (rate(1536), percent(12.25)) == ("1.5 KiB/s", "12.2 %")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (False, "no"),
        ([], "-"),
        (["a", "b"], "a b"),
        ("", "-"),
        (0, "0"),
        ("x", "x"),
        ([True, 1], "yes 1"),
    ],
)
def test_words(value: object, text: str):
    assert word(value) == text


def test_times_are_local(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        assert clock(0) == "1970-01-01 01:00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.integers(0, 1 << 60))
def test_bytes_are_short(count: int):
    number, unit = size(count).split()
    assert len(number) <= 7
    assert unit in ("B", "KiB", "MiB", "GiB", "TiB")
