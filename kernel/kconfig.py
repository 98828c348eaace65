"""Reading and writing Kconfig requests: fragments, the final .config, and the symbols that a tree defines.

Format: Documentation/kbuild/kconfig.rst and scripts/kconfig/confdata.c of the kernel. A fragment is stricter than what
the kernel accepts: no trailing text, no modules, no comment that looks like a request but is not one.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError

OFF = "n"
_SET = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(.*)")
_UNSET = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set")
_VALUE = re.compile(r'y|n|-?[0-9]+|0[xX][0-9a-fA-F]+|"(?:[^"\\]|\\.)*"')
# The keyword that opens an entry (scripts/kconfig/lexer.l); entries may be indented.
_ENTRY = re.compile(r"^[ \t]*(?:menu)?config[ \t]+([A-Za-z0-9_]+)", re.MULTILINE)
# Folders of a tree whose Kconfig files no x86 configuration reads.
_NOT_READ = frozenset({"Documentation", "LICENSES", "samples", "tools"})


@dataclass(frozen=True)
class Request:
    """One symbol that a fragment wants, without the CONFIG_ prefix. value: y, n, a number or a quoted string."""

    symbol: str
    value: str
    file: str
    line: int

    @property
    def where(self) -> str:
        """file:line, for messages."""
        return f"{self.file}:{self.line}"


def normal(value: str) -> str:
    """The value in the spelling used for comparisons: numbers in decimal, everything else as it is."""
    if re.fullmatch(r"-?[0-9]+", value):
        return str(int(value, 10))
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", value):
        return str(int(value, 16))
    return value


def parse_fragment(text: str, file: str) -> list[Request]:
    """The requests of one fragment, in order. Raises ConfigError (kconfig-syntax, kconfig-module) with file:line."""
    return [
        request
        for number, line in enumerate(text.splitlines(), start=1)
        if (request := _parse_line(line.rstrip(), file, number)) is not None
    ]


def _parse_line(line: str, file: str, number: int) -> Request | None:
    """One line: a request, or None for an empty line or a comment."""
    if unset := _UNSET.fullmatch(line):
        return Request(unset[1], OFF, file, number)
    if not line or (line.startswith("#") and not line.startswith("# CONFIG_")):
        return None
    found = _SET.fullmatch(line)
    if found is None:
        raise ConfigError(
            f"{file}:{number}: '{line}' is neither a request nor a comment",
            reason="kconfig-syntax",
            hint="expected CONFIG_NAME=value or '# CONFIG_NAME is not set'",
        )
    symbol, value = found[1], found[2]
    if value == "m":
        raise ConfigError(
            f"{file}:{number}: {symbol} is asked for as a module",
            reason="kconfig-module",
            hint="this kernel has no loadable modules: write =y",
        )
    if not _VALUE.fullmatch(value):
        raise ConfigError(
            f"{file}:{number}: '{value}' is not a value for {symbol}",
            reason="kconfig-syntax",
            hint='expected y, n, a number, or "text" in double quotes',
        )
    return Request(symbol, value, file, number)


def merge(fragments: Iterable[Sequence[Request]]) -> dict[str, Request]:
    """All requests by symbol; asking twice for the same value is fine. Raises ConfigError (kconfig-conflict)."""
    merged: dict[str, Request] = {}
    for fragment in fragments:
        for request in fragment:
            first = merged.setdefault(request.symbol, request)
            if normal(first.value) != normal(request.value):
                raise conflict(first, request)
    return merged


def conflict(first: Request, second: Request) -> ConfigError:
    """The error for two requests that contradict each other."""
    return ConfigError(
        f"{first.symbol} is asked for as {first.value} in {first.where} and {second.symbol} as {second.value} in"
        f" {second.where}",
        reason="kconfig-conflict",
        hint="keep one of the two lines",
    )


def read_fragments(folder: Path) -> dict[str, Request]:
    """Read and merge every *.config file of a folder, in the order of their names."""
    files = sorted(folder.glob("*.config"))
    if not files:
        raise ConfigError(f"{folder}: no kernel fragment (*.config) is there", reason="kconfig-no-fragments")
    return merge(parse_fragment(file.read_text(encoding="utf-8-sig"), file.name) for file in files)


def render(values: Mapping[str, str]) -> str:
    """A .config with these symbols, sorted by name: what KCONFIG_ALLCONFIG reads."""
    lines = [
        f"# CONFIG_{symbol} is not set" if value == OFF else f"CONFIG_{symbol}={value}"
        for symbol, value in sorted(values.items())
    ]
    return "".join(f"{line}\n" for line in lines)


def parse_final(text: str) -> dict[str, str]:
    """A .config that the kernel wrote: symbol → value ("n" for "is not set"). Lines of other kinds are comments."""
    final: dict[str, str] = {}
    for line in text.splitlines():
        if unset := _UNSET.fullmatch(line):
            final[unset[1]] = OFF
        elif found := _SET.fullmatch(line):
            final[found[1]] = found[2]
    return final


def defined_symbols(tree: Path, srcarch: str = "x86") -> frozenset[str]:
    """Every symbol name that the Kconfig files of a tree define for one architecture (srcarch: its folder in arch/)."""
    names: set[str] = set()
    for root, folders, files in os.walk(tree):
        place = Path(root).relative_to(tree)
        if place == Path("."):
            folders[:] = [name for name in folders if name not in _NOT_READ and not name.startswith(".")]
        elif place == Path("arch"):
            folders[:] = [name for name in folders if name == srcarch]
        elif place == Path("scripts"):
            folders[:] = [name for name in folders if name != "kconfig"]  # its test cases define symbols of their own
        for name in files:
            if name.startswith("Kconfig"):
                names.update(_ENTRY.findall(Path(root, name).read_text(encoding="utf-8", errors="replace")))
    return frozenset(names)


def read_symbols(path: Path) -> frozenset[str]:
    """A list of symbol names, one a line, '#' for comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    return frozenset(line for line in lines if line and not line.startswith("#"))


def did_you_mean(symbol: str, known: Iterable[str]) -> str | None:
    """A hint naming the closest known symbols, or None when nothing is close."""
    close = difflib.get_close_matches(symbol, sorted(known), n=3, cutoff=0.75)
    return f"did you mean {' or '.join(close)}?" if close else None
