"""The lines of earlier sessions: ~/.mixctl_history, one a line, for its owner alone.

A line is appended when it was entered, so that a lost connection loses nothing, and two sessions at once both keep
theirs. The file is made smaller, atomically, when it has grown. What looks like a secret is never written, nor what
begins with a blank (the shells' habit for "do not keep this").
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from common.files import write_atomically
from common.lines import split_lines

LINES = 1000
MAX_BYTES = 256 << 10

_SECRET = re.compile(
    r"pass(word|wd|phrase|code)?\b|secret|token|\bpsk\b|preshared|private|credential|api-?key|://[^/\s]*@",
    re.IGNORECASE,
)


class History:
    """What was entered, oldest first. A file that cannot be used costs the memory of earlier sessions, nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = self._load()

    def add(self, line: str) -> None:
        """Remember `line`, unless it is a secret, a repetition, or marked by a blank."""
        line = line.rstrip()
        if not line or line[0] == " " or _SECRET.search(line) or self.lines[-1:] == [line]:
            return
        self.lines = [*self.lines[1 - LINES :], line]
        try:
            if self._append(f"{line}\n".encode("utf-8", "replace")) > MAX_BYTES:
                self._shrink()
        except OSError:
            pass  # a full disk must not stop anyone from working on it

    def _load(self) -> list[str]:
        try:
            data = _read_regular(self.path)
        except OSError:
            return []
        found = split_lines(data.decode("utf-8", "replace"))
        return [line for line in found if line.isprintable() and line][-LINES:]

    def _append(self, data: bytes) -> int:
        """Add one line in one write; the file's size then. A link in its place is not followed."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                return 0
            if found.st_mode & 0o077:
                os.fchmod(descriptor, 0o600)
            os.write(descriptor, data)
            return found.st_size + len(data)
        finally:
            os.close(descriptor)

    def _shrink(self) -> None:
        kept = self._load()[-LINES // 2 :]
        while sum(len(line.encode()) + 1 for line in kept) > MAX_BYTES // 2:
            kept = kept[len(kept) // 2 + 1 :]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept).encode(), 0o600)


def _read_regular(path: Path) -> bytes:
    """The last `MAX_BYTES` of a regular file of our own; else nothing. A cut first line is dropped."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return b""
        if found.st_size <= MAX_BYTES:
            return stream.read(MAX_BYTES)
        stream.seek(found.st_size - MAX_BYTES)
        return stream.read(MAX_BYTES).partition(b"\n")[2]
