"""Changing a TOML file that people also write: one table's keys, or one table less, everything else untouched.

Comments, order and blank lines stay. After every edit the text is read again and compared with what was meant; an edit
that this small editor cannot make (an inline table, a dotted key) is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from common import toml
from common.errors import RefusedError
from common.lines import split_lines
from common.positions import positions, statements

Path = tuple[str | int, ...]
_COMMENT = re.compile(r"""\s*#(?!.*("{3}|'{3}))""")  # and no end of a text that goes over several lines


def literal(value: object) -> str:
    """A value as TOML 1.0: text, whole number, boolean, list, table on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        escaped = "".join(
            "\\" + char if char in '"\\' else f"\\u{ord(char):04x}" if ord(char) < 32 or ord(char) == 127 else char
            for char in value
        )
        return f'"{escaped}"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key(name)} = {literal(item)}" for name, item in value.items()) + " }"
    if isinstance(value, Sequence):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} is not written to TOML here")


def key(name: str) -> str:
    """A key, quoted when it must be."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else literal(name)


def set_keys(text: str, table: Sequence[str], values: Mapping[str, object]) -> str:
    """`text` with `values` in `[table]`; None removes a key; the table is appended when there is none.

    Raises RefusedError `config-edit` when the file is written in a way that must be edited by hand.
    """
    lines = split_lines(text)
    places = positions(text)
    new = {name: f"{key(name)} = {literal(value)}" for name, value in values.items() if value is not None}
    if not table or tuple(table) in places:
        ends = _statement_ends(text)
        replaced: list[tuple[int, int, list[str]]] = []
        for name in values:
            place = places.get((*table, name))
            if place is not None:
                replaced.append((place.line - 1, ends[place.line - 1], [new.pop(name)] if name in new else []))
        for start, end, instead in sorted(replaced, reverse=True):
            lines[start:end] = instead
        lines[_header_line(lines, table) : _header_line(lines, table)] = new.values()
    else:
        lines += [*([""] if lines and lines[-1] else []), f"[{'.'.join(map(key, table))}]", *new.values()]
    return _checked(text, "\n".join(lines) + "\n", table, values)


def remove_table(text: str, table: Sequence[str]) -> str:
    """`text` without `[table]` and the tables below it. Raises RefusedError `config-edit`."""
    wanted = toml.loads(text)
    parent: Any = wanted
    for name in table[:-1]:
        parent = parent.get(name, {})
    parent.pop(table[-1], None)
    lines = split_lines(text)
    headers = sorted(
        (place.line - 1, path) for path, place in positions(text).items() if lines and _is_header(lines, place.line)
    )
    kept: list[str] = []
    inside = False
    starts = {_with_comments(lines, line): path[: len(table)] == tuple(table) for line, path in headers}
    for number, line in enumerate(lines):
        inside = starts.get(number, inside)
        if not inside:
            kept.append(line)
    result = "\n".join(kept).rstrip("\n") + "\n" if kept else ""
    if _pruned(toml.loads(result)) != _pruned(wanted):
        raise _refuse(table)
    return result


def _with_comments(lines: Sequence[str], header: int) -> int:
    """The first line (from 0) of the comments right above a header: they are the table's. Those that begin the file are
    the file's."""
    line = header
    while line and _COMMENT.match(lines[line - 1]):
        line -= 1
    return line or header


def _statement_ends(text: str) -> dict[int, int]:
    """First line of each statement → the line behind its last one (from 0)."""
    return {place.line - 1: place.line + statement.count("\n") for place, statement in statements(text)}


def _is_header(lines: Sequence[str], line: int) -> bool:
    return lines[line - 1].lstrip().startswith("[")


def _header_line(lines: Sequence[str], table: Sequence[str]) -> int:
    """The line behind the header of a table: where new keys are put; the top of the file for the root table."""
    if not table:
        return 0
    place = positions("\n".join(lines) + "\n").get(tuple(table))
    if place is None or not _is_header(lines, place.line):
        raise _refuse(table)
    return place.line


def _checked(old: str, result: str, table: Sequence[str], values: Mapping[str, object]) -> str:
    """`result`, after making sure that it says what was meant."""
    wanted = toml.loads(old)
    inner: Any = wanted
    for name in table:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise _refuse(table)
    for name, value in values.items():
        if value is None:
            inner.pop(name, None)
        else:
            inner[name] = toml.loads(f"value = {literal(value)}")["value"]
    try:
        same = toml.loads(result) == wanted
    except toml.TOMLDecodeError:
        same = False
    if not same:
        raise _refuse(table)
    return result


def _pruned(value: Any) -> Any:
    """Without empty tables: removing the only peer may leave or take `[interface.wg0]` around it."""
    if isinstance(value, dict):
        return {name: inner for name, item in value.items() if (inner := _pruned(item)) != {}}
    return value


def _refuse(table: Sequence[str]) -> RefusedError:
    return RefusedError(
        f"[{'.'.join(table)}] is written in a way that this command does not edit",
        reason="config-edit",
        hint="edit the file by hand: one table per header, each key on a line of its own",
    )
