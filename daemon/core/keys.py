"""Idempotency keys: a change that a client asks for twice, because the answer was lost, is made once.

One small file per key in the state folder, for 24 hours. A key belongs to the account that used it and to the exact
call. While the first call runs its file says so; if the daemon ends in the middle, nobody knows what came of it, and
that is the answer to the second one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import MixosError, RefusedError
from common.files import write_atomically
from daemon.linux.log import log

SECONDS = 24 * 3600.0
PER_UID = 256  # keys that one account may have in use
MAX_ANSWER = 16 << 10  # bytes of an answer that are kept
MAX_KEY = 128


class Keys:
    """The keys in one folder."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._times: dict[str, float] | None = None  # file name → when it was used; read at the first use
        self._running: set[str] = set()

    async def begin(self, uid: int, key: str, method: str, params: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Claim a key: None, and the call goes on; or the record of the first call, {"result"} or {"error"}.

        Raises RefusedError `idempotency-mismatch` (used for another call), `-busy` (still running), `-unknown` (the
        daemon ended during it), `-answer` (done, but its answer was not kept), `-full` (too many keys of this account);
        MixosError `idempotency-failed` (the disk does not take it).
        """
        name, digest = _name(uid, key), _digest(method, params)
        try:
            times = self._prune()
        except OSError as error:
            raise _failed(error) from error
        if name in self._running:
            raise RefusedError("the first call with this key is running", reason="idempotency-busy", retryable=True)
        if name in times:
            return _answer(await asyncio.to_thread(_read, self._folder / name), digest)
        if sum(other.startswith(f"{uid}-") for other in times) >= PER_UID:
            raise RefusedError(f"{PER_UID} keys of this account are in use", reason="idempotency-full")
        self._running.add(name)
        try:
            await self._write(name, {"digest": digest})
        except BaseException:  # nothing was done yet: the key is as free as before
            self._running.discard(name)
            times.pop(name, None)
            raise
        return None

    def release(self, uid: int, key: str) -> None:
        """The claimed call ended, however it did. A claim that got no outcome until now is "unknown" from here on."""
        self._running.discard(_name(uid, key))

    async def finish(
        self, uid: int, key: str, method: str, params: Mapping[str, Any], outcome: Mapping[str, Any]
    ) -> None:
        """Keep what came of a claimed call: {"result": …} or {"error": …}.

        Where that cannot be written, the claim stays and says "unknown" from now on: what was done is done, and its
        answer goes to whoever waits for it.
        """
        try:
            kept = outcome if len(json.dumps(outcome)) <= MAX_ANSWER else {}
        except (TypeError, ValueError):  # a defect, which the door reports; that it was done is still true
            kept = {}
        try:
            await self._write(_name(uid, key), {"digest": _digest(method, params), **(kept or {"large": True})})
        except MixosError as error:
            log("warning", f"the outcome of {method}: {error.message}")

    async def forget(self, uid: int, key: str) -> None:
        """The call did nothing and may be tried again."""
        name = _name(uid, key)
        with contextlib.suppress(OSError):  # then it says "unknown", which is what it was made for
            self._prune().pop(name, None)
            await asyncio.to_thread((self._folder / name).unlink, missing_ok=True)

    async def _write(self, name: str, record: Mapping[str, Any]) -> None:
        self._prune()[name] = self._clock()
        try:
            await asyncio.to_thread(write_atomically, self._folder / name, json.dumps(record).encode(), 0o600)
        except OSError as error:
            raise _failed(error) from error

    def _prune(self) -> dict[str, float]:
        """The names in use; those of an earlier daemon are found, old ones removed."""
        if self._times is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._times = {entry.name: entry.stat().st_mtime for entry in os.scandir(self._folder) if entry.is_file()}
        now = self._clock()
        for name in [name for name, at in self._times.items() if now - at > SECONDS and name not in self._running]:
            del self._times[name]
            (self._folder / name).unlink(missing_ok=True)
        return self._times


def _failed(error: OSError) -> MixosError:
    return MixosError(f"the key cannot be kept: {error.strerror}", reason="idempotency-failed")


def _name(uid: int, key: str) -> str:
    return f"{uid}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


def _digest(method: str, params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([method, params], sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _answer(record: Mapping[str, Any], digest: str) -> Mapping[str, Any]:
    if record.get("digest", digest) != digest:
        raise RefusedError("this key was used for another call", reason="idempotency-mismatch", hint="take a new key")
    if "large" in record:
        raise RefusedError("this was done; its answer was too long to keep", reason="idempotency-answer")
    if "result" not in record and "error" not in record:
        hint = "see what the state is now, then call with a new key"
        raise RefusedError("the daemon ended during the first call", reason="idempotency-unknown", hint=hint)
    return record
