"""What holds for the tests themselves."""

from __future__ import annotations

import re

from tests.hostpackages import ROOT


def test_no_test_module_is_imported() -> None:
    """What tests share is in modules without tests; fixtures are in conftest.py, which pytest finds."""
    shared = re.compile(r"^\s*(?:from|import) tests\.(?:[\w.]+\.)?(?:test_\w+|conftest)\b", re.MULTILINE)
    assert not [path for path in (ROOT / "tests").rglob("*.py") if shared.search(path.read_text())]
