"""The line editor, played with keys; the screen is not looked at, the line is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.client.console.editor import LONGEST, Editor
from daemon.client.console.terminal import width_of
from tests.terminals import Played

WORDS = ("service", "status", "start", "stop")


def complete(before: str) -> tuple[int, Sequence[str]]:
    word = before.rpartition(" ")[2]
    return len(before) - len(word), [name for name in WORDS if name.startswith(word)]


def read(*keys: str | None, past: Sequence[str] = ()) -> tuple[str, str]:
    terminal = Played([*keys, "enter"])
    return Editor(terminal, complete).read("> ", past), terminal.written


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ([*"abc"], "abc"),
        ([*"abc", "left", "left", "x"], "axbc"),
        ([*"abc", "home", "x", "end", "y"], "xabcy"),
        ([*"abc", "ctrl-a", "delete", "ctrl-e", "backspace"], "b"),
        ([*"one two", "ctrl-w", *"three"], "one three"),
        ([*"one two", "ctrl-u", "x"], "x"),
        ([*"one two", "alt-b", "ctrl-k"], "one "),
        ([*"one two", "ctrl-w", "home", "ctrl-y"], "twoone "),
        ([*"one two", "home", "alt-d", "alt-f", "!"], " two!"),
        ([*"abc", "left", "ctrl-d", "ctrl-l", "", "page-up"], "ab"),
        (["left", "backspace", "delete", "right", "a"], "a"),
        ([*"日本", "left", "x"], "日x本"),
    ],
)
def test_editing(keys, line):
    assert read(*keys)[0] == line


def test_history_and_back_to_what_was_being_written():
    past = ["first", "second"]
    assert read("up", past=past)[0] == "second"
    assert read("up", "up", "up", past=past)[0] == "first"
    assert read(*"new", "up", "up", "down", "down", past=past)[0] == "new"
    assert past == ["first", "second"]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["ctrl-r", *"log"], "log a"),
        (["ctrl-r", *"log", "ctrl-r"], "log b"),
        (["ctrl-r", *"log", "ctrl-r", "ctrl-r"], "log b"),
        (["ctrl-r", *"lox", "backspace", "right"], "log a"),
        (["ctrl-r", *"nothing"], ""),
        (["ctrl-r", "ctrl-r", "left"], ""),
    ],
)
def test_search(keys, line):
    assert read(*keys, "left", past=["log b", "other", "log a"])[0] == line


def test_completion():
    assert read(*"se", "tab")[0] == "service "
    line, screen = read(*"st", "tab")  # nothing in common beyond: the words are listed
    assert line == "st"
    assert re.search(r"start +status +stop", screen)
    assert read(*"x", "tab")[0] == "x"
    assert read(*"service sta", "tab", "tab")[0] == "service sta"


def test_completions_that_would_hurt_the_terminal_are_not_offered():
    terminal = Played(["tab", "tab", "enter"])
    assert Editor(terminal, lambda _: (0, ["\x1b]0;x\x07", "a\nb"])).read("> ") == ""
    assert "\x07" not in terminal.written


def test_endings():
    with pytest.raises(KeyboardInterrupt):
        read(*"abc", "ctrl-c")
    with pytest.raises(EOFError):
        read("ctrl-d")
    with pytest.raises(TimeoutError):
        read(*"abc", None)
    with pytest.raises(EOFError):
        Editor(Played([*"abc"]), complete).read("> ")


KEYS = st.lists(
    st.sampled_from(
        [*"ab ", "日", "left", "right", "up", "down", "home", "end", "alt-b", "alt-f", "alt-d", "backspace", "delete"]
        + [f"ctrl-{letter}" for letter in "abdefkluwyrnp"]
        + ["tab", "", "escape"]
    ),
    max_size=60,
)


@given(KEYS, st.integers(12, 60))
def test_no_line_of_the_screen_is_wider_than_it(keys, columns):
    terminal = Played(["x", *keys, "end", "enter"], columns)
    with contextlib.suppress(EOFError):
        Editor(terminal, complete).read("> ", ["earlier " * 20, "b"])
    for shown in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", terminal.written)):
        if not shown.startswith("(search)"):
            assert width_of(shown) < columns + 8
    for moved in re.findall(r"\x1b\[(\d+)C", terminal.written):
        assert int(moved) <= columns + 8


def test_a_line_has_a_longest_length():
    terminal = Played([*("x" * (LONGEST + 50)), "enter"])
    assert len(Editor(terminal, complete).read("> ")) == LONGEST
