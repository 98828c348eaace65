"""The table of cases, `tests/cases.md`: what must hold, and the tests that show it.

    python -m tests.cases

writes its last column anew, from the markers of the tests: a line `# case: N6` or `# case: N6, N7` above a test says
which rows it shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.hostpackages import ROOT

TABLE = ROOT / "tests" / "cases.md"
_MARKER = re.compile(r"\s*# case: (.*)")
_TEST = re.compile(r"\s*(?:async )?def (test_\w+)")
_ROW = re.compile(r"\| ([A-Z]\d+) \| (.*) \| .* \|")


def marked(folder: Path = ROOT / "tests") -> Iterator[tuple[str, str]]:
    """(row, `module::function`) of every marker, in the order of modules and lines. Raises ValueError for a marker
    without a test below it."""
    for path in sorted(folder.rglob("test_*.py")):
        module = path.relative_to(folder).with_suffix("").as_posix()
        rows: list[str] = []
        for line in path.read_text("utf-8").split("\n"):
            if found := _MARKER.fullmatch(line):
                rows += [row for row in found[1].split(", ") if not row.startswith("wanted ")]
            elif rows and (found := _TEST.match(line)):
                yield from ((row, f"{module}::{found[1]}") for row in rows)
                rows = []
        if rows:
            raise ValueError(f"{path}: no test stands below the marker of {', '.join(rows)}")


def shown_by(folder: Path = ROOT / "tests") -> dict[str, list[str]]:
    """Row → its tests."""
    found: dict[str, list[str]] = {}
    for row, test in marked(folder):
        found.setdefault(row, []).append(test)
    return found


def rows(text: str) -> list[str]:
    """The names of the rows of a table, in their order."""
    return [found[1] for line in text.split("\n") if (found := _ROW.fullmatch(line))]


def filled(text: str, tests: dict[str, list[str]]) -> str:
    """The table with these tests in its last column."""

    def line(found: re.Match[str]) -> str:
        return f"| {found[1]} | {found[2]} | {', '.join(f'`{test}`' for test in tests.get(found[1], []))} |"

    return "\n".join(_ROW.sub(line, one) for one in text.split("\n"))


if __name__ == "__main__":
    TABLE.write_text(filled(TABLE.read_text("utf-8"), shown_by()), "utf-8")
