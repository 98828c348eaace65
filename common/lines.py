"""Lines of text files."""

from __future__ import annotations


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends: a newline, or carriage return and newline. `str.splitlines` also ends one
    at characters that are content for everybody else, U+2028 and form feed among them."""
    found = text.split("\n")
    return [line.removesuffix("\r") for line in (found if found[-1] else found[:-1])]
