"""Output by the page."""

from __future__ import annotations

import sys

import click
import pytest

from daemon.client.console.pager import EnoughError, Paged, paged
from tests.terminals import Played


def shown(terminal: Played) -> list[str]:
    """The lines that were printed, without the prompts."""
    return [line for part in terminal.written.split("\r") for line in part.split("\n") if line.startswith("line")]


def print_lines(terminal: Played, count: int) -> bool:
    """Print lines through the pager; whether the printing code came to its end."""
    with paged(terminal, 1.0):
        for number in range(count):
            click.echo(f"line {number}")
        return True
    return False


def test_a_page_is_not_paused():
    terminal = Played([])
    assert print_lines(terminal, 9)
    assert "more" not in terminal.written
    assert len(shown(terminal)) == 9


@pytest.mark.parametrize(
    ("keys", "lines", "finished"),
    [
        ([" ", " "], 25, True),
        (["enter"] * 16, 25, True),
        (["x", "?", "", " ", "f"], 25, True),
        (["G"], 25, True),
        (["q"], 9, False),
        ([" ", "ctrl-c"], 18, False),
        (["enter", "escape"], 10, False),
        ([None], 9, False),
        ([], 9, False),
    ],
)
def test_keys(keys, lines, finished):
    terminal = Played(keys)
    assert print_lines(terminal, 25) is finished
    assert len(shown(terminal)) == lines


def test_stdout_is_back_afterwards():
    before = sys.stdout
    print_lines(Played(["q"]), 25)
    assert sys.stdout is before
    with pytest.raises(ZeroDivisionError), paged(Played([]), None):
        raise ZeroDivisionError
    assert sys.stdout is before


def test_wrapped_lines_count_as_what_they_take():
    terminal = Played(["q"])
    with paged(terminal, None):
        for _ in range(5):
            print("é" * 100)  # 40 columns: three rows
    assert terminal.written.count("é" * 100) == 3


def test_after_the_end_nothing_is_written():
    terminal = Played(["q"])
    stream = Paged(terminal, None)
    with pytest.raises(EnoughError):
        stream.write(b"line\n" * 30)
    assert stream.write(b"late\n") == 5
    assert "late" not in terminal.written
    assert stream.isatty()
