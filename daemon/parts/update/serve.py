"""The client's end of a bundle: a file here, or somebody at the other end of standard input and output."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator

from common.bundle.ranges import answer
from common.errors import MixosError

_PIECE = 1 << 16


@contextlib.contextmanager
def served(bundle: str) -> Iterator[int]:
    """A descriptor of a socket at whose other end ranges of the bundle are answered for; "-": by whoever has our
    standard input and output. Raises MixosError `file-unreadable`."""
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(theirs)
        stack.enter_context(ours)
        waiting = None  # for the end of a file's thread: who mounted it can unmount it then
        if bundle == "-":
            _run(_pump, os.dup(0), ours)
            _run(_pump, os.dup(ours.fileno()), 1)
        else:
            waiting = _run(_answer, _opened(bundle), ours)
        yield theirs.fileno()
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        if waiting is not None:
            waiting.join()


def _run(function: Callable[[int, int], None], one: int, other: socket.socket | int) -> threading.Thread:
    """In a thread with descriptors of its own (`one`, and a copy of `other`): it may end later than we do, and a number
    that is closed is given to the next file that is opened."""
    copy = os.dup(other if isinstance(other, int) else other.fileno())

    def work() -> None:
        try:
            function(one, copy)
        finally:
            os.close(one)
            os.close(copy)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _opened(bundle: str) -> int:
    hint = "name a file, an address that begins with http:// or https://, or -"
    try:
        descriptor = os.open(bundle, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
    except OSError as error:
        raise MixosError(f"{bundle}: {error.strerror}", reason="file-unreadable", hint=hint) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MixosError(f"{bundle}: not a file", reason="file-unreadable", hint=hint)
    return descriptor


def _answer(descriptor: int, channel: int) -> None:
    with contextlib.suppress(OSError, MixosError):
        answer(channel, channel, lambda offset, length: _read(descriptor, offset, length))


def _read(descriptor: int, offset: int, length: int) -> bytes:
    try:
        return os.pread(descriptor, length, offset)
    except OSError as error:
        raise MixosError(f"the bundle cannot be read: {error.strerror}", reason="source-unreadable") from error


def _pump(come: int, go: int) -> None:
    """All bytes from one to the other, until either ends."""
    with contextlib.suppress(OSError):
        while data := os.read(come, _PIECE):
            view = memoryview(data)
            while view:
                view = view[os.write(go, view) :]
    with contextlib.suppress(OSError):
        socket.socket(fileno=os.dup(go)).shutdown(socket.SHUT_WR)
