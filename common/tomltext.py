"""TOML from outside, read in bounded time. Standard library only: the first boot reads this, too."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from common.text import MARK

DEEPEST = 100  # parts of one key: what reads them takes time by the square of their number
_DEEP = re.compile(
    rf"(?<![A-Za-z0-9_.-])(?:(?:[A-Za-z0-9_-]++|\"[^\"\n]*+\"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{DEEPEST}}}", re.ASCII
)


def loads(text: str) -> dict[str, Any]:
    """The content of TOML text, which may begin with a byte order mark. Raises tomllib.TOMLDecodeError, with line and
    column, also for a key (or what looks like one in a text of several lines) of more than `DEEPEST` parts; for what
    nests too deeply otherwise RecursionError."""
    text = text.removeprefix(MARK)
    deep = _DEEP.search(text)
    if deep is not None:
        line, column = text.count("\n", 0, deep.start()) + 1, deep.start() - text.rfind("\n", 0, deep.start())
        problem = f"Key of more than {DEEPEST} parts (at line {line}, column {column})"
        raise tomllib.TOMLDecodeError(problem)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise tomllib.TOMLDecodeError(str(error)) from error
