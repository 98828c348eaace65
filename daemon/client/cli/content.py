"""Content of a call, as descriptors that the daemon reads: files that people name, and standard input."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from common.errors import MixosError
from common.units import size as readable

_WITHOUT_SIZE = 16 << 20  # bytes of a file without size that are read


@contextmanager
def opened(file: str) -> Iterator[int]:
    """A descriptor of a file, or of standard input for `-`. Raises MixosError `file-unreadable`, `file-too-large`.

    What the daemon says of its content while it is open gets its name, which the daemon does not know."""
    try:
        descriptor = _sized(os.dup(0) if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise MixosError(f"{file}: {error.strerror}", reason="file-unreadable") from error
    try:
        yield descriptor
    except MixosError as error:
        if error.reason.startswith("transfer-") or error.reason == "firewall-list":
            error.message = f"{'standard input' if file == '-' else file}: {error.message}"
        raise
    finally:
        os.close(descriptor)


def _sized(descriptor: int) -> int:
    """The same; of a file that does not tell its size (proc(5)) a copy instead, since the daemon reads up to a file's
    size."""
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size:
        return descriptor
    copy, size = os.memfd_create("content"), 0
    while data := os.read(descriptor, 1 << 20):
        size += os.write(copy, data)
        if size > _WITHOUT_SIZE:
            raise MixosError(f"a file without size has more than {readable(_WITHOUT_SIZE)}", reason="file-too-large")
    os.lseek(copy, 0, os.SEEK_SET)
    os.close(descriptor)
    return copy


class Meter:
    """How many bytes have gone, on the terminal and five times a second; nothing where standard error is none."""

    def __init__(self, word: str) -> None:
        self._word = word
        self._shown = sys.stderr.isatty()
        self._bytes = 0
        self._due = time.monotonic() + 1.0  # what is over at once needs no meter
        self._width = 0

    def add(self, count: int) -> None:
        """So many more."""
        self.at(self._bytes + count)

    def at(self, count: int, size: int | None = None) -> None:
        """So many by now, of `size` where that is known."""
        self._bytes = count
        if self._shown and time.monotonic() >= self._due:
            self._due = time.monotonic() + 0.2
            self._write(f"{self._word} {readable(count)}" + (f" of {readable(size)}" if size else ""))

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            self._write("")

    def _write(self, text: str) -> None:
        click.echo(f"\r{text.ljust(self._width)}\r", nl=False, err=True)
        self._width = max(self._width, len(text))
