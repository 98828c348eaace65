"""Asking the daemon: one connection, one call, one answer or one stream of items.

Imports next to nothing: `mixctl status` must be quick on a slow board.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from common.errors import RpcError, UnreachableError
from daemon.core import rpc

_OURS = "/run/mixos/mixosd.sock"
SOCKET = os.environ.get("MIXOS_SOCKET") or _OURS
# Seconds to wait for a daemon that init is starting: sshd is up some seconds before it, and so may a person be.
PATIENCE = 30.0
STARTING = "part-starting"  # the server's reason when the part that has the method is not up yet
Progress = Callable[[int, int | None], object]  # bytes that were read, and in all if that is known


def call(
    method: str,
    params: Mapping[str, object],
    path: str | os.PathLike[str] = SOCKET,
    timeout: float = 15.0,
    patience: float = 0.0,
    descriptors: Sequence[int] = (),
    progress: Progress | None = None,
) -> Any:
    """The result of `method`.

    timeout: seconds for the answer; patience: seconds to wait for the daemon to listen and
    for the part that has the method to come up. descriptors: go with the call; a parameter that takes content names one
    by its place (`daemon.core.transfer`). progress: told how much of it was read. Raises UnreachableError
    (`daemon-unreachable`, `daemon-denied`, `daemon-timeout`) or RpcError with the server's reason, hint and exit code.
    """
    asked = _Asked(method, params, os.fspath(path), timeout, descriptors, progress)
    with _answered(asked, patience) as (_, result, _):
        return result


def stream(
    method: str,
    params: Mapping[str, object],
    path: str | os.PathLike[str] = SOCKET,
    timeout: float = 15.0,
    patience: float = 0.0,
    descriptors: Sequence[int] = (),
    reader: int | None = None,
) -> Iterator[Any]:
    """The items of a stream method, as they come, until it ends; leaving the loop early ends it at the server too.

    timeout: seconds for the answer that opens the stream; items may be any time apart. descriptors: as for `call`.
    reader: a descriptor that the items go to: when nobody is left to read it, that is noticed without an item, and
    BrokenPipeError is raised. Raises like `call` besides, at the first item or in between; UnreachableError
    `daemon-gone` when the daemon ended before the stream did.
    """
    asked = _Asked(method, params, os.fspath(path), timeout, descriptors)
    with _answered(asked, patience) as (channel, opened, lines):
        ident = opened.get("stream") if isinstance(opened, dict) else None
        if ident is None:
            raise rpc.failure(f"{method} is not a stream", code=rpc.INTERNAL_ERROR, reason="rpc-answer")
        channel.settimeout(None)
        lines.reader = reader
        while True:
            try:
                line = next(lines)
            except BrokenPipeError:
                raise
            except OSError as error:
                message = "mixosd ended before the stream did"
                raise UnreachableError(message, reason="daemon-gone", retryable=True) from error
            more, item = rpc.decode_stream(line, ident)
            if not more:
                return
            yield item


class _Asked(NamedTuple):
    """A call, and where it goes."""

    method: str
    params: Mapping[str, object]
    path: str
    timeout: float
    descriptors: Sequence[int] = ()
    progress: Progress | None = None


@contextlib.contextmanager
def _answered(asked: _Asked, patience: float) -> Iterator[tuple[socket.socket, Any, _Lines]]:
    """A connection, the result, and the lines behind it."""
    deadline = time.monotonic() + patience
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
            try:
                found = _open(channel, asked, deadline)
            except RpcError as error:
                if error.reason != STARTING or time.monotonic() > deadline:
                    raise
            else:
                yield channel, *found
                return
        time.sleep(0.2)


def _open(channel: socket.socket, asked: _Asked, deadline: float) -> tuple[Any, _Lines]:
    path, timeout = asked.path, asked.timeout
    request = rpc.encode_request(asked.method, asked.params, 1)
    channel.settimeout(timeout)
    try:
        _connect(channel, path, timeout, deadline)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # turned away at the door: with the reason
            sent = socket.send_fds(channel, [request], asked.descriptors) if asked.descriptors else 0
            channel.sendall(request[sent:])
        lines = _Lines(channel)
        answer = next(lines)
        while (done := rpc.decode_progress(answer)) is not None:  # also of what was uploaded before
            if asked.progress is not None:
                asked.progress(*done)
            answer = next(lines)
    except TimeoutError as error:
        raise UnreachableError(
            f"mixosd did not answer within {timeout:g} s", reason="daemon-timeout", retryable=True
        ) from error
    except PermissionError as error:
        raise UnreachableError(
            f"{path}: permission denied", reason="daemon-denied", hint="log in as admin; the group is mixos"
        ) from error
    except OSError as error:
        raise UnreachableError(
            f"mixosd is not running ({path}: {error.strerror or error})",
            reason="daemon-unreachable",
            hint="init starts it again within a second; /var/log/messages says why it ended"
            if path == _OURS
            else "MIXOS_SOCKET names the socket of a daemon that runs",
            retryable=True,
        ) from error
    return rpc.decode_answer(answer, 1), lines


def _connect(channel: socket.socket, path: str, timeout: float, deadline: float) -> None:
    """Connect. Raises OSError; TimeoutError when the daemon is there and takes no connection for `timeout` seconds."""
    begin = time.monotonic()
    while True:
        try:
            return channel.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        except BlockingIOError as error:  # many connect at once: its queue is full (connect(2), EAGAIN)
            if time.monotonic() > begin + timeout:
                raise TimeoutError from error
            time.sleep(0.02)


class _Lines:
    """Lines until the peer closes, which is an error: every conversation ends with an answer. reader: see `stream`."""

    def __init__(self, channel: socket.socket) -> None:
        self.reader: int | None = None
        self._channel = channel
        self._data = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        at = 0
        while (end := self._data.find(b"\n", at)) < 0:
            at = len(self._data)
            self._listened_to()
            chunk = self._channel.recv(64 << 10)
            if not chunk or at > rpc.MAX_ANSWER:
                raise ConnectionError(0, "the connection was closed before an answer")
            self._data += chunk
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line

    def _listened_to(self) -> None:
        """Wait for bytes. Raises BrokenPipeError when nobody will read them."""
        if self.reader is None:
            return
        waiting = select.poll()
        waiting.register(self._channel, select.POLLIN)
        waiting.register(self.reader, 0)  # a pipe without readers, a socket or terminal that is hung up (poll(2))
        if any(number == self.reader for number, _ in waiting.poll()):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
