"""Three-way merge of text files by lines (Khanna, Kunal, Pierce: A Formal Investigation of Diff3, 2007)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MAX_BYTES = 256 << 10  # of each text
MAX_LINES = 4000


class _Edit(NamedTuple):
    """Lines first up to end of the base become `lines`."""

    first: int
    end: int
    lines: tuple[bytes, ...]


def merge(base: bytes, mine: bytes, theirs: bytes) -> bytes | None:
    """What both sides made of `base`. None when they changed the same lines, or put different ones at the same place,
    and for what is no text or too large to be compared."""
    if mine == theirs or theirs == base:
        return mine
    if mine == base:
        return theirs
    if any(b"\0" in one or len(one) > MAX_BYTES or one.count(b"\n") > MAX_LINES for one in (base, mine, theirs)):
        return None
    lines = _lines(base)
    edits = sorted({*_edits(lines, _lines(mine)), *_edits(lines, _lines(theirs))})
    for before, after in pairwise(edits):
        inserts = before.first == before.end or after.first == after.end
        if after.first < before.end or (inserts and after.first == before.end):
            return None
    for edit in reversed(edits):
        lines[edit.first : edit.end] = edit.lines
    return b"".join(lines)


def _lines(text: bytes) -> list[bytes]:
    """With their ends. Only a newline ends one."""
    found = [line + b"\n" for line in text.split(b"\n")]
    last = found.pop()[:-1]
    return [*found, last] if last else found


def _edits(base: Sequence[bytes], other: Sequence[bytes]) -> list[_Edit]:
    codes = difflib.SequenceMatcher(None, base, other, autojunk=False).get_opcodes()
    return [_Edit(first, end, tuple(other[a:b])) for tag, first, end, a, b in codes if tag != "equal"]
