"""What the tests compile of the C programs is what the image gets."""

from __future__ import annotations

import re

from tests.native import SOURCES, WARNINGS


def test_tests_and_image_ask_for_the_same_warnings() -> None:
    (found,) = re.findall(r'^warnings="(.*)"$', (SOURCES / "build.sh").read_text(), re.MULTILINE)
    assert tuple(found.split()) == WARNINGS


def test_every_folder_is_built_as_a_program() -> None:
    (found,) = re.findall(r"^for program in (.*); do$", (SOURCES / "build.sh").read_text(), re.MULTILINE)
    assert set(found.split()) == {path.parent.name for path in SOURCES.glob("*/main.c")}


def test_headers_declare_and_do_not_define() -> None:
    """A function's body belongs into one .c file: a line that ends a prototype's list of parameters opens no block."""
    for header in SOURCES.rglob("*.h"):
        assert not re.search(r"\)\s*\{", re.sub(r"^#define(?:.*\\\n)*.*$", "", header.read_text(), flags=re.MULTILINE))
