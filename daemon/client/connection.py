"""Asking the daemon: one connection, one call, one answer or one stream of items.

Imports next to nothing: `mixctl status` must be quick on a slow board.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from common.errors import RpcError, UnreachableError
from daemon.core import rpc

SOCKET = os.environ.get("MIXOS_SOCKET") or "/run/mixos/mixosd.sock"
# Seconds to wait for a daemon that init is starting: sshd is up some seconds before it, and so may a person be.
PATIENCE = 30.0
STARTING = "part-starting"  # the server's reason when the part that has the method is not up yet


def call(
    method: str,
    params: Mapping[str, object],
    path: str | os.PathLike[str] = SOCKET,
    timeout: float = 15.0,
    patience: float = 0.0,
) -> Any:
    """The result of `method`.

    timeout: seconds for the answer; patience: seconds to wait for the daemon to listen and
    for the part that has the method to come up. Raises UnreachableError
    (`daemon-unreachable`, `daemon-denied`, `daemon-timeout`) or RpcError with the server's reason, hint and exit code.
    """
    with _asked(method, params, os.fspath(path), timeout, patience) as (_, result, _):
        return result


class Feeder(Protocol):
    """What a stream is given to read while its items come, on the same connection: no thread is needed, and none may
    be had (the console gives up starting any)."""

    def descriptor(self) -> int | None:
        """What to wait for; None while there is nothing to give."""

    def request(self, answer: object) -> tuple[str, Mapping[str, object]] | None:
        """The next call. answer: None when the descriptor can be read, else the result of the call before, or the
        RpcError that it ended with."""


def stream(
    method: str,
    params: Mapping[str, object],
    path: str | os.PathLike[str] = SOCKET,
    timeout: float = 15.0,
    patience: float = 0.0,
    feeder: Feeder | None = None,
) -> Iterator[Any]:
    """The items of a stream method, as they come, until it ends; leaving the loop early ends it at the server too.

    timeout: seconds for the answer that opens the stream; items may be any time apart. Raises like `call`, at the
    first item or in between; UnreachableError `daemon-gone` when the daemon ended before the stream did.
    """
    with _asked(method, params, os.fspath(path), timeout, patience) as (channel, opened, lines):
        ident = opened.get("stream") if isinstance(opened, dict) else None
        if ident is None:
            raise rpc.failure(f"{method} is not a stream", code=rpc.INTERNAL_ERROR, reason="rpc-answer")
        channel.settimeout(None)
        feed = _Feed(channel, feeder) if feeder is not None else None
        while True:
            if feed is not None:
                feed.wait(lines)
            try:
                line = next(lines)
            except OSError as error:
                message = "mixosd ended before the stream did"
                raise UnreachableError(message, reason="daemon-gone", retryable=True) from error
            if feed is not None and feed.took(line):
                continue
            more, item = rpc.decode_stream(line, ident)
            if not more:
                return
            yield item


class _Feed:
    """Gives a feeder its turns: one call at a time, sent when its descriptor can be read, between the items."""

    IDENT = 2  # of its calls; 1 is the stream's

    def __init__(self, channel: socket.socket, feeder: Feeder) -> None:
        self._channel = channel
        self._feeder = feeder
        self._asked = False

    def wait(self, lines: _Lines) -> None:
        """Return when a line has come; until then send what there is to send."""
        while not lines.ready():
            descriptor = None if self._asked else self._feeder.descriptor()
            wanted = [self._channel.fileno(), *([] if descriptor is None else [descriptor])]
            found = select.select(wanted, [], [])[0]
            if self._channel.fileno() in found:
                return
            self._send(None)

    def took(self, line: bytes) -> bool:
        """Whether the line is the answer to our call; then it is the feeder's turn again."""
        if not self._asked or rpc.is_stream(line):
            return False
        try:
            answer: object = rpc.decode_answer(line, self.IDENT)
        except RpcError as error:
            answer = error
        self._asked = False
        self._send(answer)
        return True

    def _send(self, answer: object) -> None:
        request = self._feeder.request(answer)
        if request is not None:
            self._channel.sendall(rpc.encode_request(*request, self.IDENT))
            self._asked = True


@contextlib.contextmanager
def _asked(
    method: str, params: Mapping[str, object], path: str, timeout: float, patience: float
) -> Iterator[tuple[socket.socket, Any, _Lines]]:
    """A connection, the result, and the lines behind it."""
    deadline = time.monotonic() + patience
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
            try:
                found = _open(channel, method, params, path, timeout, deadline)
            except RpcError as error:
                if error.reason != STARTING or time.monotonic() > deadline:
                    raise
            else:
                yield channel, *found
                return
        time.sleep(0.2)


def _open(
    channel: socket.socket, method: str, params: Mapping[str, object], path: str, timeout: float, deadline: float
) -> tuple[Any, _Lines]:
    request = rpc.encode_request(method, params, 1)
    channel.settimeout(timeout)
    try:
        _connect(channel, path, timeout, deadline)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            channel.sendall(request)  # turned away at the door: the reason is there to be read
        lines = _Lines(channel)
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
            f"mixosd is not running ({path}: {error.strerror})",
            reason="daemon-unreachable",
            hint="init starts it again within a second; /var/log/messages says why it ended",
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
    """Lines until the peer closes, which is an error: every conversation ends with an answer."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._data = bytearray()

    def ready(self) -> bool:
        """Whether a whole line is there already."""
        return b"\n" in self._data

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        at = 0
        while (end := self._data.find(b"\n", at)) < 0:
            at = len(self._data)
            chunk = self._channel.recv(64 << 10)
            if not chunk or at > rpc.MAX_ANSWER:
                raise ConnectionError(0, "the connection was closed before an answer")
            self._data += chunk
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line
