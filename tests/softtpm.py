"""A software TPM 2.0 (swtpm) behind a socket that answers like /dev/tpmrm0, and what else somebody may do to it.

with SoftTpm(tree / "dev/tpmrm0") as machine:
    tpm = Tpm(machine.descriptor)    # or, once that is closed, a program that was given PROGRAM
    machine.cut()                    # the power goes in this moment, and comes back
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Self

from buildsys.run import Process, find_tool, kill_group, spawn
from tests.waiting import PATIENCE, until

OWNER, LOCKOUT = 0x40000001, 0x4000000A  # TPM_RH
PROGRAM = """
import os, socket, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from daemon import floor

def opened(path):
    end = socket.socket(socket.AF_UNIX)
    end.connect(os.fspath(path))
    return end.detach()

floor._open, floor._confine = opened, lambda _: None
sys.exit(floor.main(sys.argv[1:], Path({tree!r})))
"""  # `mixos-floor` with it
_PASSWORD = struct.Struct(">IHBH")


class SoftTpm:
    """See the module."""

    def __init__(self, path: Path) -> None:
        self._path, self._state = path, path.with_name(f"{path.name}.state")
        self._state.mkdir(parents=True)
        self._log = (self._state / "log").open("ab")
        self._process: Process | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._log.close()

    @property
    def descriptor(self) -> int:
        """What commands go through. There is one at a time: `close` lets others connect."""
        return self._connected().fileno()

    def close(self) -> None:
        """Let others have it."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def cut(self) -> None:
        """Off, whatever it does, and on again, as firmware starts it."""
        self._end()
        self._start()

    def _start(self) -> None:
        self._path.unlink(missing_ok=True)
        words = [find_tool("swtpm"), "socket", "--tpm2", "--flags", "startup-clear"]
        words += ["--tpmstate", f"dir={self._state}", "--server", f"type=unixio,path={self._path}"]
        self._process = spawn([str(word) for word in words], log=self._log)
        until(self._listens)
        self.close()

    def _listens(self) -> bool:
        with contextlib.suppress(OSError):
            return self._connected().fileno() >= 0
        self.close()
        return False

    def _end(self) -> None:
        self.close()
        if self._process is not None:
            self._process.kill()  # SIGTERM would be an orderly end
            kill_group(self._process)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(PATIENCE)
            self._socket.connect(os.fspath(self._path))
        return self._socket

    def asked(self, command: int, handles: bytes, parameters: bytes, password: bytes = b"") -> tuple[int, bytes]:
        """The response code to any command with a password, and what follows it."""
        session = _PASSWORD.pack(0x40000009, 0, 0, len(password)) + password
        body = handles + struct.pack(">I", len(session)) + session + parameters
        end = self._connected()
        end.sendall(struct.pack(">HII", 0x8002, 10 + len(body), command) + body)
        answer = end.recv(4096)
        return struct.unpack_from(">I", answer, 6)[0], answer[10:]

    def owned(self, password: bytes) -> None:
        """Somebody takes the TPM: TPM2_HierarchyChangeAuth."""
        code, _ = self.asked(0x129, struct.pack(">I", OWNER), struct.pack(">H", len(password)) + password)
        assert code == 0

    def cleared(self) -> None:
        """TPM2_Clear, as by firmware's menu: what is the owner's is gone, his password too."""
        code, _ = self.asked(0x126, struct.pack(">I", LOCKOUT), b"")
        assert code == 0

    def defined(self, index: int, attributes: int, size: int, password: bytes = b"", policy: bytes = b"") -> None:
        """TPM2_NV_DefineSpace."""
        public = struct.pack(">IHIH", index, 0xB, attributes, len(policy)) + policy + struct.pack(">H", size)
        secret = struct.pack(">H", len(password)) + password
        code, _ = self.asked(0x12A, struct.pack(">I", OWNER), secret + struct.pack(">H", len(public)) + public)
        assert code == 0, hex(code)
