"""Where in a TOML file each key stands.

`tomllib` gives values without positions. This scanner walks a file that `tomllib` has already accepted, statement by
statement, and records the line and column of every table header and key, so that a complaint about a value can name the
place. Keys inside inline tables and arrays are reported at the statement that holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Position:
    """A place in a text: both counted from 1."""

    line: int
    column: int


def positions(text: str) -> dict[Path, Position]:
    """Map key paths (tables by name, arrays of tables by index) to where they are written. The root is at 1:1."""
    found: dict[Path, Position] = {(): Position(1, 1)}
    counts: dict[Path, int] = {}
    table: Path = ()
    for place, statement in statements(text):
        if statement.startswith("[["):
            path = _resolve(_keys(statement[2:]), counts)
            counts[path] = counts.get(path, -1) + 1
            table = (*path, counts[path])
            found.setdefault(path, place)
        elif statement.startswith("["):
            table = _resolve(_keys(statement[1:]), counts)
        else:
            for depth in range(1, len(keys := _keys(statement)) + 1):
                found.setdefault((*table, *keys[:depth]), place)
            continue
        found.setdefault(table, place)
    return found


def nearest(found: dict[Path, Position], path: Path) -> Position:
    """The position of `path`, or of the closest thing around it that has one."""
    for depth in range(len(path), -1, -1):
        if path[:depth] in found:
            return found[path[:depth]]
    return Position(1, 1)


class Locator:
    """Finds the keys of TOML text by dotted path, as `ssh.keys[0].account`. Nothing is done before the first time."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _places(self) -> dict[str, Position]:
        return {_dotted(path): place for path, place in positions(self._text).items() if path}

    def find(self, path: str) -> Position | None:
        """The place of `path`, or of the table around it."""
        while path and path not in self._places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._places.get(path)


def _dotted(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _resolve(keys: list[str], counts: dict[Path, int]) -> Path:
    """Insert the index of the current element behind every name that is an array of tables, except the last."""
    path: Path = ()
    for index, key in enumerate(keys):
        path = (*path, key)
        if path in counts and index < len(keys) - 1:
            path = (*path, counts[path])
    return path


def _keys(statement: str) -> list[str]:
    """The dotted key at the start of a statement or header."""
    keys: list[str] = []
    rest = statement.lstrip()
    while rest:
        if rest[0] in "\"'":
            quote = rest[0]
            end = 1
            while rest[end] != quote:
                end += 2 if rest[end] == "\\" and quote == '"' else 1
            keys.append(rest[1:end])
            rest = rest[end + 1 :].lstrip()
        else:
            end = 0
            while end < len(rest) and (rest[end].isalnum() or rest[end] in "-_"):
                end += 1
            keys.append(rest[:end])
            rest = rest[end:].lstrip()
        if not rest.startswith("."):
            break
        rest = rest[1:].lstrip()
    return keys


def statements(text: str) -> Iterator[tuple[Position, str]]:
    """Each header or key/value pair, with the comment behind it; strings and brackets may span lines."""
    index, size = 0, len(text)
    line, begin = 1, 0  # of the line that `index` is in
    while index < size:
        if text[index] == "\n":
            index += 1
            line, begin = line + 1, index
        elif text[index] in " \t\r":
            index += 1
        elif text[index] == "#":
            index = _line_end(text, index)
        else:
            end = _line_end(text, index) if text[index] == "[" else _pair_end(text, index)
            yield Position(line, index - begin + 1), text[index:end]
            if lines := text.count("\n", index, end):
                line, begin = line + lines, text.rfind("\n", index, end) + 1
            index = end


def _line_end(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end


def _pair_end(text: str, index: int) -> int:
    """The offset of the newline that ends a key/value pair: one outside of strings and brackets."""
    depth, size = 0, len(text)
    while index < size:
        char = text[index]
        if char in "\"'":
            index = _string_end(text, index)
            continue
        if char == "#":
            index = _line_end(text, index)
            continue
        if char == "\n" and depth == 0:
            return index
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(char, 0)
        index += 1
    return size


def _string_end(text: str, index: int) -> int:
    quote = text[index]
    fence = quote * 3 if text.startswith(quote * 3, index) else quote
    index += len(fence)
    while index < len(text) and not text.startswith(fence, index):
        index += 2 if text[index] == "\\" and quote == '"' else 1
    return index + len(fence)
