"""A client for QEMU's machine protocol (QMP): JSON lines over a Unix socket; one command at a time."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from common.errors import ImageError

_MAX_LINE = 1 << 20


def connect_unix(path: Path, timeout: float) -> socket.socket:
    """Connect to a Unix socket whose path may exceed the 108 bytes of sockaddr_un: go through an open directory."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout)
        link.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        link.close()
        raise
    finally:
        os.close(folder)
    return link


class Qmp:
    """One QMP connection; use as a context manager. Raises ImageError (reason "qmp-…") when QEMU is gone or says no."""

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        try:
            self._link = connect_unix(path, timeout)
        except OSError as error:
            raise ImageError(f"QEMU does not listen on {path}: {error.strerror}", reason="qmp-connect") from error
        self._file = self._link.makefile("rb")
        self._receive()  # greeting
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """Run one command and return its result; events that come in between are dropped."""
        message = {"execute": name, **({"arguments": arguments} if arguments else {})}
        try:
            self._link.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ImageError("QEMU went away", reason="qmp-closed") from error
        while True:
            answer = self._receive()
            if "error" in answer:
                raise ImageError(f"QEMU refused {name}: {answer['error'].get('desc')}", reason="qmp-refused")
            if "return" in answer:
                return answer["return"]

    def event(self, name: str) -> Any:
        """Wait for an event, as long as the connection lets an answer take; its data. Others are dropped."""
        while (found := self._receive()).get("event") != name:
            pass
        return found.get("data")

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._file.readline(_MAX_LINE)
        except OSError as error:
            raise ImageError("QEMU does not answer", reason="qmp-timeout") from error
        if not line:
            raise ImageError("QEMU went away", reason="qmp-closed")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise ImageError("QEMU sent something that is not JSON", reason="qmp-protocol") from error
        if not isinstance(answer, dict):
            raise ImageError("QEMU sent something that is no object", reason="qmp-protocol")
        return answer

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._link.close()

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
