"""Content that comes in pieces, for callers that cannot hand over a descriptor (D-Bus, a browser).

A transfer is begun for one method and has a size; pieces are written in order; the id is then given to the method
instead of a descriptor, as often as the caller likes, until it is cancelled or was not used for `IDLE` seconds. A piece
that is there already is a repetition; other bytes in its place, and a piece behind a gap, are refused: to go on, ask
how much is there.

The bytes lie in files without a name on the data partition, so nothing is left of them whatever ends the daemon.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import NotFoundError, RefusedError

PIECE = 32 << 10  # bytes of one piece
MOST = 4  # transfers of one account
BYTES = 2 << 30  # of all transfers of one account
IDLE = 600.0  # seconds
_RESERVE = 32 << 20  # bytes of the disk that are left free


class Transfer:
    """One of them. size: bytes when it is whole; received: bytes that are there, without a gap; at: last use."""

    def __init__(self, uid: int, purpose: str, size: int, digest: str | None, descriptor: int) -> None:
        self.uid = uid
        self.purpose = purpose
        self.size = size
        self.received = 0
        self.at = 0.0
        self.descriptor = descriptor
        self._wanted = digest
        self._hash = hashlib.sha256() if digest is not None else None

    def write(self, data: bytes) -> None:
        """Add what follows. Raises OSError."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.descriptor, view, self.received)
            if self._hash is not None:
                self._hash.update(view[:count])
            self.received += count
            view = view[count:]

    @property
    def damaged(self) -> bool:
        """Whether it is whole and not what its digest says."""
        return self._hash is not None and self.received == self.size and self._hash.hexdigest() != self._wanted


class Spool:
    """All transfers. folder: ours alone; clock: seconds that never go back."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._transfers: dict[str, Transfer] = {}

    def begin(self, uid: int, purpose: str, size: int, digest: str | None) -> str:
        """The id of a new transfer. Raises RefusedError `transfer-limit`, `transfer-space`; OSError."""
        mine = self.of(uid).values()
        if len(mine) >= MOST or sum(one.size for one in mine) + size > BYTES:
            limit = f"an account has at most {MOST} transfers and {BYTES >> 20} MiB at once"
            raise RefusedError(limit, reason="transfer-limit", hint="transfer.list, transfer.cancel", retryable=True)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # As much again stays free: whoever may call a method with content must not fill the disk.
        self._check_space(2 * size + sum(one.size - one.received for one in self._transfers.values()))
        name = secrets.token_hex(16)
        path = self.folder / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        path.unlink()
        found = self._transfers[name] = Transfer(uid, purpose, size, digest, descriptor)
        found.at = self._clock()
        return name

    def write(self, uid: int, name: str, offset: int, data: bytes) -> int:
        """Add a piece; the bytes that are there now. Raises NotFoundError `transfer-unknown`, RefusedError
        `transfer-gap`, `transfer-conflict`, `transfer-too-big`, `transfer-space`, `transfer-digest`; OSError."""
        found = self.get(uid, name)
        if offset > found.received:
            message = f"{found.received} bytes are there, and the piece begins at {offset}"
            raise RefusedError(message, reason="transfer-gap", hint="transfer.status says where to go on")
        if offset + len(data) > found.size:
            raise RefusedError(f"more than the {found.size} bytes that were announced", reason="transfer-too-big")
        old, new = data[: found.received - offset], data[found.received - offset :]
        if os.pread(found.descriptor, len(old), offset) != old:
            raise RefusedError("other bytes are there", reason="transfer-conflict", hint="transfer.cancel forgets them")
        self._check_space(len(new))
        found.write(new)
        if found.damaged:
            self._drop(name)
            raise RefusedError("what came has another SHA-256", reason="transfer-digest", hint="begin again")
        return found.received

    def get(self, uid: int, name: str) -> Transfer:
        """One's own transfer, which counts as a use of it. Raises NotFoundError `transfer-unknown`."""
        self.expire()
        found = self._transfers.get(name)
        if found is None or found.uid != uid:
            raise NotFoundError("there is no such transfer", reason="transfer-unknown", hint="transfer.begin makes one")
        found.at = self._clock()
        return found

    def of(self, uid: int) -> dict[str, Transfer]:
        """The transfers of an account, by id."""
        self.expire()
        return {name: one for name, one in self._transfers.items() if one.uid == uid}

    def open(self, uid: int, name: str, purpose: str) -> int:
        """A descriptor of a whole transfer, which is the caller's. Raises NotFoundError `transfer-unknown`,
        RefusedError `transfer-purpose`, `transfer-incomplete`."""
        found = self.get(uid, name)
        if found.purpose != purpose:
            raise RefusedError(f"the transfer is for {found.purpose}", reason="transfer-purpose")
        if found.received < found.size:
            message = f"{found.received} of {found.size} bytes are there"
            raise RefusedError(message, reason="transfer-incomplete", hint="transfer.status says where to go on")
        return os.dup(found.descriptor)

    def cancel(self, uid: int, name: str) -> None:
        """Forget it; a call that reads it goes on. Raises NotFoundError `transfer-unknown`."""
        self.get(uid, name)
        self._drop(name)

    def expire(self) -> None:
        """Forget what was not used for long."""
        now = self._clock()
        for name in [name for name, one in self._transfers.items() if now - one.at > IDLE]:
            self._drop(name)

    def clear(self) -> None:
        """Forget everything, and what an earlier daemon may have left between making a file and taking its name."""
        for name in list(self._transfers):
            self._drop(name)
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def status(self) -> dict[str, Any]:
        """How many there are, and how many bytes."""
        return {"transfers": len(self._transfers), "bytes": sum(one.received for one in self._transfers.values())}

    def _drop(self, name: str) -> None:
        os.close(self._transfers.pop(name).descriptor)

    def _check_space(self, size: int) -> None:
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < size + _RESERVE:
            hint = "mixctl storage usage shows what fills the disk"
            raise RefusedError("there is not enough free space", reason="transfer-space", hint=hint)
