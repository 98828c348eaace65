"""The terminal of a session: its size, raw mode, one key at a time. Knows the VT100 set that serial consoles have.

No terminfo: what TERM names is the client's word, and all terminals that reach a device by SSH or serial line agree on
the few sequences that are used here (ECMA-48: CUF, EL, ED, CUP).
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
from collections.abc import Iterator

CLEAR = "\x1b[H\x1b[J"
_ESCAPE_SECONDS = 0.15  # within which the rest of a key's sequence follows; a slow line needs 10 ms for a byte
_NAMES = {0x09: "tab", 0x0A: "enter", 0x0D: "enter", 0x08: "backspace", 0x7F: "backspace"}
_SEQUENCES = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
    "1~": "home", "7~": "home", "4~": "end", "8~": "end", "3~": "delete", "5~": "page-up", "6~": "page-down",
}  # fmt: skip


class Terminal:
    """The session's terminal, or what stands in for it: pipes, when a script talks."""

    def __init__(self, source: int = 0, target: int = 1) -> None:
        self.source = source
        self.target = target
        self.interactive = os.isatty(source) and os.isatty(target)
        self._pending = bytearray()

    @property
    def pending(self) -> bool:
        """Whether more was typed than was asked for yet."""
        return bool(self._pending)

    def size(self) -> tuple[int, int]:
        """Columns and rows; a serial line tells neither and gets 80 and 24."""
        try:
            found = os.get_terminal_size(self.target)
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def write(self, text: str) -> None:
        """Write at once, all of it."""
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self.target, data) :]

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Keys come one by one, unechoed, Ctrl-C among them. Input typed ahead is kept."""
        old = termios.tcgetattr(self.source)
        new = termios.tcgetattr(self.source)
        new[0] &= ~(termios.ICRNL | termios.INLCR | termios.IXON | termios.ISTRIP)
        new[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        new[6][termios.VMIN], new[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.source, termios.TCSADRAIN, new)
        try:
            yield
        finally:
            with contextlib.suppress(termios.error):  # the line is gone
                termios.tcsetattr(self.source, termios.TCSADRAIN, old)

    def key(self, seconds: float | None = None) -> str | None:
        """The next key: a character, or a name such as "enter", "up", "ctrl-c", "alt-b"; "" for one without a name.

        None when there was none for `seconds`. Raises EOFError when the terminal is gone.
        """
        first = self._byte(seconds)
        if first is None:
            return None
        if first == 0x1B:
            return self._escape()
        if first < 0x20 or first == 0x7F:
            return _NAMES.get(first) or (f"ctrl-{chr(first + 0x60)}" if 0 < first <= 26 else "")
        return chr(first) if first < 0x80 else self._character(first)

    def _character(self, first: int) -> str:
        """A UTF-8 sequence (RFC 3629) whose first byte was read."""
        data = bytearray([first])
        for _ in range(1 if first < 0xE0 else 2 if first < 0xF0 else 3):
            more = self._byte(_ESCAPE_SECONDS)
            if more is None:
                break
            if more & 0xC0 != 0x80:  # no continuation: the next key begins
                self._pending.insert(0, more)
                break
            data.append(more)
        text = data.decode("utf-8", "ignore")
        return text if len(text) == 1 and text.isprintable() else ""

    def _escape(self) -> str:
        second = self._byte(_ESCAPE_SECONDS)
        if second is None or second == 0x1B:
            return "escape"
        if second not in b"[O":
            return f"alt-{chr(second)}" if 0x20 < second < 0x7F else ""
        sequence = ""
        while len(sequence) < 16 and (byte := self._byte(_ESCAPE_SECONDS)) is not None:
            sequence += chr(byte)
            if 0x40 <= byte <= 0x7E:  # the final byte of a control sequence
                return _SEQUENCES.get(sequence, "")
        return ""

    def _byte(self, seconds: float | None) -> int | None:
        if not self._pending:
            if not select.select([self.source], [], [], seconds)[0]:
                return None
            try:
                self._pending += os.read(self.source, 1024)
            except OSError as error:  # EIO after a hang-up
                raise EOFError from error
            if not self._pending:
                raise EOFError
        return self._pending.pop(0)


def width_of(text: str) -> int:
    """Columns that a text takes on the screen: none for marks that are written over the character before them."""
    if text.isascii():
        return len(text)
    import unicodedata

    wide = sum(1 for char in text if unicodedata.east_asian_width(char) in "WF")
    return len(text) + wide - sum(1 for char in text if unicodedata.category(char) in ("Mn", "Me", "Cf"))
