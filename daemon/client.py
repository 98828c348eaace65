"""Asking the daemon: one connection, one call, one answer or one stream of items.

Imports next to nothing: `mixctl status` must be quick on a slow board.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from daemon import rpc
from daemon.errors import UnreachableError

SOCKET = "/run/mixos/mixosd.sock"
# Seconds to wait for a daemon that init is starting: sshd is up some seconds before it, and so may a person be.
PATIENCE = 15.0


def call(
    method: str,
    params: Mapping[str, object],
    path: str | os.PathLike[str] = SOCKET,
    timeout: float = 15.0,
    patience: float = 0.0,
) -> Any:
    """The result of `method`.

    timeout: seconds for the answer; patience: seconds to wait for the daemon to listen. Raises UnreachableError
    (`daemon-unreachable`, `daemon-denied`, `daemon-timeout`) or RpcError with the server's reason, hint and exit code.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
        return _open(channel, method, params, os.fspath(path), timeout, patience)[0]


def stream(
    method: str,
    params: Mapping[str, object],
    path: str | os.PathLike[str] = SOCKET,
    timeout: float = 15.0,
    patience: float = 0.0,
) -> Iterator[Any]:
    """The items of a stream method, as they come, until it ends; leaving the loop early ends it at the server too.

    timeout: seconds for the answer that opens the stream; items may be any time apart. Raises like `call`, at the
    first item or in between; UnreachableError `daemon-gone` when the daemon ended before the stream did.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
        opened, lines = _open(channel, method, params, os.fspath(path), timeout, patience)
        ident = opened.get("stream") if isinstance(opened, dict) else None
        if ident is None:
            raise rpc.failure(f"{method} is not a stream", code=rpc.INTERNAL_ERROR, reason="rpc-answer")
        channel.settimeout(None)
        while True:
            try:
                line = next(lines)
            except OSError as error:
                message = "mixosd ended before the stream did"
                raise UnreachableError(message, reason="daemon-gone", retryable=True) from error
            more, item = rpc.decode_stream(line, ident)
            if not more:
                return
            yield item


def _open(
    channel: socket.socket, method: str, params: Mapping[str, object], path: str, timeout: float, patience: float
) -> tuple[Any, Iterator[bytes]]:
    """The result, and the lines behind it."""
    request = rpc.encode_request(method, params, 1)
    channel.settimeout(timeout)
    try:
        _connect(channel, path, patience)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            channel.sendall(request)  # turned away at the door: the reason is there to be read
        lines = _lines(channel)
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


def _connect(channel: socket.socket, path: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return channel.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _lines(channel: socket.socket) -> Iterator[bytes]:
    """Lines until the peer closes, which is an error: every conversation ends with an answer."""
    data = bytearray()
    while True:
        chunk = channel.recv(64 << 10)
        if not chunk or len(data) > rpc.MAX_ANSWER:
            raise ConnectionError(0, "the connection was closed before an answer")
        data += chunk
        if b"\n" in chunk:
            *lines, rest = data.split(b"\n")
            data = bytearray(rest)
            for line in lines:
                yield bytes(line)
