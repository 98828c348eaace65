"""Asking the daemon: one connection, one call, one answer."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from daemon import rpc
from daemon.errors import UnreachableError

SOCKET = "/run/mixos/mixosd.sock"
_MAX_ANSWER = 4 << 20


def call(
    method: str,
    params: Mapping[str, object],
    path: str | os.PathLike[str] = SOCKET,
    timeout: float = 15.0,
    patience: float = 0.0,
) -> Any:
    """The result of `method`.

    timeout: seconds for the answer; patience: seconds to wait for the daemon to listen. Raises UnreachableError
    (`daemon-unreachable`, `daemon-denied`, `daemon-timeout`) or RpcError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(timeout)
        try:
            _connect(channel, os.fspath(path), patience)
            channel.sendall(rpc.encode_request(method, params, 1))
            line = _read_line(channel)
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
    return rpc.decode_answer(line, 1)


def _connect(channel: socket.socket, path: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return channel.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _read_line(channel: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = channel.recv(64 << 10)
        if not chunk or len(data) > _MAX_ANSWER:
            raise ConnectionError(0, "the connection was closed before an answer")
        data += chunk
    return bytes(data)
