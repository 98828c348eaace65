"""Three-way merges of text."""

from __future__ import annotations

import random

import pytest

from common.merge import MAX_BYTES, merge


def text(words: str) -> bytes:
    return "".join(f"{word}\n" for word in words.split()).encode()


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "merged"),
    [
        ("a b c", "a b c", "a x c", "a x c"),
        ("a b c", "a x c", "a b c", "a x c"),
        ("a b c", "a x c", "a x c", "a x c"),
        ("a b c d", "x b c d", "a b c y", "x b c y"),
        ("a b c", "x b c", "a y c", "x y c"),  # neighbours are other lines
        ("a b c", "a b c mine", "new a b c", "new a b c mine"),
        ("a b c", "a c", "a b c d", "a c d"),
        ("a b c", "a b x c", "a b x c y", "a b x c y"),  # the same addition
        ("a b c", "a x c", "a y c", None),
        ("a b c", "a c", "a y c", None),
        ("a b c", "a b c x", "a b c y", None),  # which comes first, nobody knows
        ("a b c", "a x b c", "y b c", None),
        ("", "a", "b", None),
        ("a", "", "a b", None),
    ],
)
def test_merges(base: str, mine: str, theirs: str, merged: str | None) -> None:
    expected = None if merged is None else text(merged)
    assert merge(text(base), text(mine), text(theirs)) == expected
    assert merge(text(base), text(theirs), text(mine)) == expected


def test_a_last_line_without_an_end_is_not_joined_to_another() -> None:
    assert merge(b"a\nb", b"a\nb\nc", b"x\nb") == b"x\nb\nc"
    assert merge(b"a\nb\n", b"a\nb", b"a\nb\nc\n") is None


def test_what_is_no_text_is_not_merged() -> None:
    assert merge(b"a\0b", b"a\0c", b"a\0d") is None
    assert merge(b"a\0b", b"a\0b", b"a\0d") == b"a\0d"
    assert merge(b"a\n", b"b\na\n" + b"x" * MAX_BYTES, b"a\nc\n") is None


def test_changes_that_do_not_meet_always_merge() -> None:
    chance = random.Random(1)
    for _ in range(300):
        lines = [f"{number} {chance.random()}\n".encode() for number in range(30)]
        mine, theirs, both = list(lines), list(lines), list(lines)
        for at in chance.sample(range(0, 30, 2), 6):
            side, new = chance.choice([mine, theirs]), f"changed {chance.random()}\n".encode()
            side[at] = both[at] = new
        assert merge(b"".join(lines), b"".join(mine), b"".join(theirs)) == b"".join(both)
