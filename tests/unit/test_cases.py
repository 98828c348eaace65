"""The table of cases is whole and says what the tests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import TABLE, filled, marked, rows, shown_by

LAST = {"B": 24, "D": 22, "N": 23, "H": 19}


def test_every_case_has_a_row_and_every_row_a_test() -> None:
    named = rows(TABLE.read_text("utf-8"))
    assert named == [f"{kind}{number}" for kind, last in LAST.items() for number in range(1, last + 1)]
    tests = shown_by()
    assert not set(tests) - set(named), "a marker names a row that is not in tests/cases.md"
    assert not set(named) - set(tests), "no test is marked with this row"


def test_the_table_is_fresh() -> None:
    text = TABLE.read_text("utf-8")
    assert filled(text, shown_by()) == text, "python -m tests.cases writes it"


def test_markers(tmp_path: Path) -> None:
    text = "# case: B1, wanted more\n@one(\n    2,\n)\n# case: N6\nasync def test_a():\n    pass\n\n\ndef test_b():\n"
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit/test_x.py").write_text(text)
    assert list(marked(tmp_path)) == [("B1", "unit/test_x::test_a"), ("N6", "unit/test_x::test_a")]
    assert filled("| N6 | it holds | old |", shown_by(tmp_path)) == "| N6 | it holds | `unit/test_x::test_a` |"
    (tmp_path / "unit/test_x.py").write_text(f"{text}# case: D1\n")
    with pytest.raises(ValueError, match="D1"):
        list(marked(tmp_path))
