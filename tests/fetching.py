"""`mixos-fetch` as whoever asks it has it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from types import TracebackType
from typing import Any

from tests.hostpackages import ROOT


def program(account: str | None = None) -> list[str]:
    """account: who it becomes; None: it stays as it is, with its descriptors and limits."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from daemon import fetch; "
    code += f"fetch.ACCOUNT = {account!r}; " if account else "fetch._confine = lambda: None; "
    return [sys.executable, "-c", f"{code}sys.exit(fetch.main(sys.argv[1:]))"]


class Running:
    """kind: what it answers for; told: what it is to fetch."""

    def __init__(self, kind: str, told: str, account: str | None = None) -> None:
        self.ours, theirs = socket.socketpair()
        self._out, said = os.pipe()  # it may write to no file
        os.set_blocking(self._out, False)
        self._said, given = b"", os.memfd_create("given")
        os.write(given, told.encode())
        os.lseek(given, 0, os.SEEK_SET)
        with theirs:
            places = ((theirs.fileno(), 0), (said, 1), (given, 99))
            actions = [(os.POSIX_SPAWN_DUP2, one, there) for one, there in places]
            argv = [*program(account), kind, "99"]
            self.pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        os.close(given)
        os.close(said)
        self.descriptor = self.ours.fileno()
        self._ended: int | None = None

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.end()
        os.close(self._out)

    def said(self) -> list[dict[str, Any]]:
        """Its lines up to now."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._out, 1 << 16):
                self._said += data
        return [json.loads(line) for line in self._said.splitlines()]

    def end(self) -> int:
        """Ask nothing more; its exit code."""
        self.ours.close()
        self._ended = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._ended
