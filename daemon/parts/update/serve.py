"""The client's end of a bundle: a file here, or somebody at the other end of standard input and output."""

from __future__ import annotations

import contextlib
import os
import socket
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
        if bundle == "-":
            _run(_pump, 0, ours.fileno())
            _run(_pump, ours.fileno(), 1)
        else:
            _run(_answer, _opened(bundle, stack), ours.fileno())
        yield theirs.fileno()
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)


def _run(function: Callable[[int, int], None], one: int, other: int) -> None:
    threading.Thread(target=function, args=(one, other), daemon=True).start()


def _opened(bundle: str, stack: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(bundle, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MixosError(f"{bundle}: {error.strerror}", reason="file-unreadable") from error
    stack.callback(os.close, descriptor)
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
