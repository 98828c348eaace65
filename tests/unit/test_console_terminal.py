"""Bytes of a terminal become keys."""

from __future__ import annotations

import contextlib
import os
import pty
import termios

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.client.console.terminal import Terminal, width_of


def keys(data: bytes) -> list[str]:
    """The keys in `data`, until it ends."""
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        terminal, found = Terminal(reading, reading), []
        while True:
            try:
                found.append(terminal.key(0) or "")
            except EOFError:
                return found
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"ab\r\n", ["a", "b", "enter", "enter"]),
        (b"\x03\x04\x12\x7f\x08\t", ["ctrl-c", "ctrl-d", "ctrl-r", "backspace", "backspace", "tab"]),
        (b"\x1b[A\x1b[B\x1bOC\x1b[D", ["up", "down", "right", "left"]),
        (b"\x1b[H\x1b[4~\x1b[3~\x1b[1~", ["home", "end", "delete", "home"]),
        (b"\x1bb\x1bf\x1b\x1b", ["alt-b", "alt-f", "escape"]),
        (b"\x1b[1;5Cx", ["", "x"]),
        ("é東👍".encode(), ["é", "東", "👍"]),
        (b"\xc3(\xff\x1f", ["", "(", "", ""]),
        (b"\x1b[200~hi", ["", "h", "i"]),
    ],
)  # fmt: skip
def test_keys(data, expected):
    assert keys(data) == expected


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100))
def test_any_bytes_are_keys(data):
    for key in keys(data):
        assert key.isprintable()


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("é", 1), ("e\u0301", 1), ("東京", 4), ("\u2764\ufe0f", 1), ("👍", 2)]
)
def test_columns_of_a_text(text, width):
    assert width_of(text) == width


def test_raw_mode_is_left_again():
    master, slave = pty.openpty()
    try:
        terminal = Terminal(slave, slave)
        before = termios.tcgetattr(slave)
        with contextlib.suppress(ZeroDivisionError), terminal.raw():
            assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
            raise ZeroDivisionError
        assert termios.tcgetattr(slave) == before
        assert terminal.size() == (80, 24)
        assert terminal.interactive
    finally:
        os.close(master)
        os.close(slave)
