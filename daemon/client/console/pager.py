"""Output by the page, built in: a pager program would be a way out of the console.

The pager lies under `sys.stdout` and stops whoever writes, so nothing is kept in memory and the first page is there at
once. Space or Enter go on, `q` ends the command.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator

from daemon.client.console.terminal import Terminal

_PROMPT = "-- more: space, Enter, q --"
_ON = frozenset({" ", "f", "page-down"})
_LINE = frozenset({"enter", "j", "down"})
_END = frozenset({"q", "Q", "ctrl-c", "ctrl-d", "escape"})
_REST = frozenset({"G", "end"})


class EnoughError(BaseException):
    """The person wants no more of this output. Not an Exception: a command must not take it for a failure."""


class Paged(io.RawIOBase):
    """A byte stream to the terminal that pauses after each screenful. seconds: how long a key is waited for."""

    def __init__(self, terminal: Terminal, seconds: float | None) -> None:
        self.terminal = terminal
        self.seconds = seconds
        self.off = False  # no more pauses
        self.ended = False  # nothing is written any more
        self._columns, self._rows = terminal.size()
        self._left = self._rows - 1  # rows until the next pause
        self._column = 0

    def writable(self) -> bool:
        """As every output stream."""
        return True

    def isatty(self) -> bool:
        """What is below is a terminal, so colours may be used."""
        return True

    def fileno(self) -> int:
        """The terminal's descriptor, for programs that ask for its size."""
        return self.terminal.target

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]  # io's Buffer has no name in 3.11
        """Show `data`. Raises EnoughError once, when the person ends it."""
        count = len(data)
        for line in bytes(data).splitlines(keepends=True):
            if self.ended:
                break
            if self._left <= 0 and not self.off:
                self._pause()
            self.terminal.write(line.decode("utf-8", "replace"))
            self._count(line)
        return count

    def _count(self, line: bytes) -> None:
        """Rows that the line took; bytes that continue a UTF-8 character take no column."""
        self._column += sum(1 for byte in line.rstrip(b"\n") if byte & 0xC0 != 0x80)
        rows, self._column = divmod(self._column, self._columns)
        if line.endswith(b"\n"):
            rows, self._column = rows + 1, 0
        self._left -= rows

    def _pause(self) -> None:
        key = ""
        self.terminal.write(_PROMPT)
        with self.terminal.raw():
            while key not in _ON | _LINE | _END | _REST:
                try:
                    pressed = self.terminal.key(self.seconds)
                except EOFError:
                    pressed = None
                key = "q" if pressed is None else pressed  # nobody is there
        self.terminal.write(f"\r{' ' * len(_PROMPT)}\r")
        if key in _END:
            self.ended = True
            raise EnoughError
        self.off = key in _REST
        self._left = 1 if key in _LINE else self.terminal.size()[1] - 1


@contextlib.contextmanager
def paged(terminal: Terminal, seconds: float | None) -> Iterator[None]:
    """Page what is printed in this block. Ends quietly when the person has seen enough."""
    stream = Paged(terminal, seconds)
    old = sys.stdout
    sys.stdout = io.TextIOWrapper(stream, "utf-8", errors="backslashreplace", newline="\n", write_through=True)
    try:
        yield
    except EnoughError:
        pass
    finally:
        sys.stdout.detach()
        sys.stdout = old
