"""Reads compiled AppArmor policy and answers what the kernel would: so rules are tested without a kernel that has it.

The stream is what security/apparmor/policy_unpack.c reads (little endian, tagged values), the automaton what match.c
walks (big endian tables, as flex lays them out: base, default, next, check, equivalence classes, accept).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = {0: "<B", 1: "<H", 2: "<I", 3: "<Q"}  # AA_U8 … AA_U64
_NAME, _STRING, _BLOB, _ARRAY = 4, 5, 6, 11
_MAGIC = b"\x1b\x5e\x78\x3d"
_ACCEPT, _BASE, _CHECK, _DEFAULT, _CLASSES, _NEXT = 1, 2, 3, 4, 5, 8
_WIDTHS = {1: "B", 2: "H", 4: "I"}
_LETTERS = ((4, "r"), (2, "w"), (8, "a"), (16, "l"), (32, "k"), (64, "m"))


@dataclass(frozen=True)
class Policy:
    """One profile: its name, mode (0: enforce), capabilities (a bit each), what it attaches to, its file rules."""

    name: str
    mode: int
    capabilities: int
    attachment: Automaton
    files: Automaton

    def attaches(self, path: str) -> bool:
        """Whether a program at this path gets the profile when an unconfined process executes it."""
        return self.attachment.accept(path.encode()) != 0

    def may(self, path: str, *, owner: bool = False) -> str:
        """What the profile allows at a path: letters of `rwalkm`, then how it may be executed: ix, px, ux or nothing.

        The parser adds `m` to `ix`, and the kernel counts `w` as `a` too.
        """
        bits = self.files.accept(path.encode()) >> (0 if owner else 14) & 0x3FFF
        letters = "".join(letter for bit, letter in _LETTERS if bits & bit)
        return letters + (_execute(bits) if bits & 1 else "")


def _execute(bits: int) -> str:
    # dfa_map_xindex() of file.h: bit 9 inherit; index 1 unconfined, 2 attachment by name, 4 and more a table
    how = {0: "", 1: "ux", 2: "px"}.get(bits >> 10 & 0xF, "table")
    return how + ("ix" if bits & 0x200 else "")


@dataclass(frozen=True)
class Automaton:
    """The tables of one automaton by their number."""

    tables: dict[int, tuple[int, ...]]

    @classmethod
    def read(cls, data: bytes) -> Automaton:
        data = data[data.index(_MAGIC) :]  # before it: padding
        position, size = struct.unpack_from(">II", data, 4)
        tables = {}
        while position < size:
            number, width, _, count = struct.unpack_from(">HHII", data, position)
            tables[number] = struct.unpack_from(f">{count}{_WIDTHS[width]}", data, position + 12)
            position += (12 + count * width + 7) & ~7
        return cls(tables)

    def accept(self, text: bytes) -> int:
        """The value of the state after `text`."""
        state = 1  # DFA_START
        classes = self.tables.get(_CLASSES, range(256))
        for byte in text:
            place = self.tables[_BASE][state] + classes[byte]
            follow = self.tables[_CHECK][place] == state
            state = self.tables[_NEXT][place] if follow else self.tables[_DEFAULT][state]
        return self.tables[_ACCEPT][state]


def _values(data: bytes) -> Iterator[tuple[str, object]]:
    """Every tagged value in order, with the name before it."""
    name, position = "", 0
    while position < len(data):
        code = data[position]
        position += 1
        value: object = None
        if code in _NUMBERS:
            (value,) = struct.unpack_from(_NUMBERS[code], data, position)
            position += struct.calcsize(_NUMBERS[code])
        elif code in (_NAME, _STRING):
            (size,) = struct.unpack_from("<H", data, position)
            text = data[position + 2 : position + 2 + size].rstrip(b"\0").decode()
            position += 2 + size
            if code == _NAME:
                name = text
                continue
            value = text
        elif code == _BLOB:
            (size,) = struct.unpack_from("<I", data, position)
            value = data[position + 4 : position + 4 + size]
            position += 4 + size
        elif code == _ARRAY:
            position += 2
        yield name, value
        name = ""


def read_policy(path: Path) -> Policy:
    """A compiled file with one profile."""
    values = list(_values(path.read_bytes()))
    names = [name for name, _ in values]
    first, *_, last = (Automaton.read(value) for name, value in values if name == "aadfa" and isinstance(value, bytes))
    flags, upper = names.index("flags"), names.index("caps64")
    lower = names.index("path_flags") if "path_flags" in names else flags + 4
    capabilities = _number(values[lower + 1]) | _number(values[upper + 1]) << 32
    title = str(values[names.index("profile") + 1][1])
    return Policy(title, _number(values[flags + 2]), capabilities, first, last)


def _number(item: tuple[str, object]) -> int:
    assert isinstance(item[1], int)
    return item[1]
