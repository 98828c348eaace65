"""The audit log: who did what, from where, and what came of it. Append-only lines of JSON, each sealing all before it.

A line is an object without spaces that ends in `,"prev":P,"hash":H}`: `prev` is the hash of the line before (64 zeros
for the first), `hash` the SHA-256 of the line's bytes without the member `hash`. So no line can be changed, removed or
put in between without breaking the chain. What a chain cannot show is that its end was cut off or all of it rewritten
by whoever has root: for that, note `head` elsewhere and give it to `verify` later.

Files are named by their first number (`audit-000000000001.jsonl`); a full one is followed by the next with the chain
carried over, and the oldest goes. A call that changes something is an `intent`, on disk before the call begins, and an
`outcome` that names the intent's number. After a power cut the torn end is cut off, which is itself recorded, and
intents without outcome get the outcome "unknown".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import MixosError
from common.files import sync_folder

START = "0" * 64
MAX_FILE = 1 << 20  # bytes
KEEP = 8  # files
MAX_VALUE = 4096  # bytes of JSON that one member may have; longer ones are replaced by their digest
_SEAL = len(',"hash":""}') + 64


class AuditError(MixosError):
    """The audit log cannot be written. What must be audited is then not done."""

    exit_code = 8


class Place(NamedTuple):
    """A position in the chain: the number of an entry and its hash."""

    seq: int
    hash: str


def seal(body: Mapping[str, Any], prev: str) -> tuple[bytes, str]:
    """The line of an entry, and its hash."""
    text = json.dumps({**body, "prev": prev}, separators=(",", ":"), ensure_ascii=False)
    data = text.encode("utf-8", "backslashreplace")
    digest = hashlib.sha256(data).hexdigest()
    return data[:-1] + f',"hash":"{digest}"}}\n'.encode(), digest


def unseal(line: bytes) -> dict[str, Any] | None:
    """The entry in a line (without its newline), or None when the line is not what its hash says."""
    body, end = line[:-_SEAL] + b"}", line[-_SEAL:]
    if end != f',"hash":"{hashlib.sha256(body).hexdigest()}"}}'.encode():
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("seq"), int) else None


class Audit:
    """The log in one folder. One process writes it: the holder of the daemon's lock."""

    def __init__(self, folder: Path, *, max_file: int = MAX_FILE, keep: int = KEEP) -> None:
        self._folder = folder
        self._max_file = max_file
        self._keep = keep
        self._place = Place(0, START)
        self._durable = 0
        self._descriptor = -1
        self._size = 0
        self._syncing = asyncio.Lock()

    def open(self) -> None:
        """Find the end of the chain, repair it after a crash, settle what was left open. Raises AuditError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            files = self.files()
            left_open, torn = {}, b""
            for path in files[-2:]:  # an intent and its outcome are never further apart, unless the outcome is lost
                entries, torn = _read_end(path)
                for entry in entries:
                    left_open[entry["seq"]] = entry.get("kind") == "intent"
                    left_open.pop(entry.get("call"), None)
                    self._place = Place(entry["seq"], entry["hash"])
            self._durable = self._place.seq
            self._continue(files[-1] if files else self._next_path(), torn)
            for call in [seq for seq, is_open in left_open.items() if is_open]:
                self.append("outcome", call=call, outcome="unknown")
        except OSError as error:
            raise AuditError(f"{self._folder}: {error.strerror}", reason="audit-failed") from error

    def _continue(self, path: Path, torn: bytes) -> None:
        """Go on in `path`, whose torn end is cut off. When that fails, nothing has changed."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(descriptor).st_size - len(torn)
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
            sync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor, self._size = descriptor, size
        if torn:
            self.append("repaired", bytes=len(torn), sha256=hashlib.sha256(torn).hexdigest())

    def close(self) -> None:
        """Make everything durable."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def head(self) -> Place:
        """The last entry."""
        return self._place

    def append(self, kind: str, **members: Any) -> int:
        """Write an entry, not yet durably; returns its number. Raises AuditError `audit-failed`."""
        if self._descriptor < 0:
            raise AuditError("the audit log is not open", reason="audit-failed", hint="see the daemon's log")
        body = {"seq": self._place.seq + 1, "at": round(time.time(), 3), "kind": kind, **_short(members)}
        line, digest = seal(body, self._place.hash)
        try:
            if self._size and self._size + len(line) > self._max_file:
                self._rotate()
            try:
                self._write(line)
            except OSError:
                if not self._drop(1):  # the disk is full: the oldest file gives way
                    raise
                self._write(line)
        except OSError as error:
            raise AuditError(
                f"the audit log cannot be written: {error.strerror}",
                reason="audit-failed",
                hint="nothing is changed without an entry; make space on the data partition",
            ) from error
        self._place = Place(body["seq"], digest)
        return self._place.seq

    async def record(self, kind: str, **members: Any) -> int:
        """`append`, and return when the entry is on disk. Entries of the same moment share one sync."""
        seq = self.append(kind, **members)
        async with self._syncing:
            if self._durable < seq:
                reached, descriptor = self._place.seq, os.dup(self._descriptor)  # a copy: the file may be rotated away
                try:
                    await asyncio.to_thread(os.fdatasync, descriptor)
                except OSError as error:
                    raise AuditError(f"the audit log: {error.strerror}", reason="audit-failed") from error
                finally:
                    os.close(descriptor)
                self._durable = reached
        return seq

    def _write(self, line: bytes) -> None:
        written = 0
        try:
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written

    def _rotate(self) -> None:
        self._drop(len(self.files()) - self._keep + 1)
        try:
            self._continue(self._next_path(), b"")
        except OSError:
            if not self._drop(1):
                raise
            self._continue(self._next_path(), b"")

    def _drop(self, count: int) -> bool:
        """Remove up to `count` of the oldest files, never the current one; whether there was one to remove."""
        old = self.files()[: max(0, count)]
        current = os.fstat(self._descriptor).st_ino if self._descriptor >= 0 else None
        gone = [path for path in old if path.stat().st_ino != current]
        for path in gone:
            path.unlink()
        return bool(gone)

    def _next_path(self) -> Path:
        return self._folder / f"audit-{self._place.seq + 1:012}.jsonl"

    def files(self) -> list[Path]:
        """The files, oldest first."""
        return sorted(self._folder.glob("audit-[0-9]*.jsonl"))

    def _snapshot(self) -> list[tuple[Path, int]]:
        """The files with the sizes they have now: what is appended later is not read half."""
        files = [(path, path.stat().st_size) for path in self.files()]
        return [*files[:-1], (files[-1][0], self._size)] if files and self._descriptor >= 0 else files

    async def entries(self, limit: int, *, before: int | None = None, **wanted: object) -> list[dict[str, Any]]:
        """The last `limit` entries, oldest first, older than number `before`, whose members are as `wanted`."""
        return await asyncio.to_thread(_select, self._snapshot(), limit, before, wanted)

    async def verify(self, anchor: Place | None = None) -> dict[str, Any]:
        """Walk the whole chain: {ok, entries, first, last, head, complete, anchored, problem}.

        complete: nothing was dropped by rotation yet; anchored: whether an entry noted earlier is in the chain (None
        when none was given); problem: {file, line, what} of the first fault, or None.
        """
        return await asyncio.to_thread(_verify, self._snapshot(), anchor)


def _short(members: Mapping[str, Any]) -> dict[str, Any]:
    """Members with everything long replaced by its digest."""
    result = {}
    for name, value in members.items():
        data = json.dumps(value, ensure_ascii=True).encode()
        result[name] = (
            {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} if len(data) > MAX_VALUE else value
        )
    return result


def _lines(path: Path, size: int) -> Iterator[bytes]:
    """Lines with their newline. A file that rotation removed in between has none."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
        left = size
        while left > 0 and (line := stream.readline(min(left, MAX_FILE))):
            left -= len(line)
            yield line


def _read_end(path: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The entries of a file, and what stands behind the last one of them that is whole."""
    entries, whole, reached = [], 0, 0
    for line in _lines(path, path.stat().st_size):
        reached += len(line)
        entry = unseal(line[:-1]) if line.endswith(b"\n") else None
        if entry is not None:
            entries.append(entry)
            whole = reached
    with path.open("rb") as stream:
        stream.seek(whole)
        return entries, stream.read()


def _select(
    files: list[tuple[Path, int]], limit: int, before: int | None, wanted: Mapping[str, object]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path, size in reversed(files):
        for line in reversed(list(_lines(path, size))):
            entry = unseal(line[:-1])
            if entry is None or (before is not None and entry["seq"] >= before):
                continue
            if all(entry.get(name) == value for name, value in wanted.items()):
                found.append(entry)
                if len(found) == limit:
                    return found[::-1]
    return found[::-1]


def _verify(files: list[tuple[Path, int]], anchor: Place | None) -> dict[str, Any]:
    first, last, count, anchored = None, None, 0, False
    problem = None
    for path, size in files:
        for number, line in enumerate(_lines(path, size), 1):
            entry = unseal(line[:-1])
            what = _fault(entry, last)
            if what or entry is None:
                problem = {"file": path.name, "line": number, "what": what}
                break
            last = Place(entry["seq"], entry["hash"])
            first = first or last.seq
            anchored = anchored or last == anchor
            count += 1
        if problem:
            break
    return {
        "ok": problem is None and (anchor is None or anchored),
        "entries": count,
        "first": first,
        "last": last.seq if last else None,
        "head": last.hash if last else START,
        "complete": first in (None, 1),
        "anchored": None if anchor is None else anchored,
        "problem": problem,
    }


def _fault(entry: dict[str, Any] | None, last: Place | None) -> str | None:
    """What is wrong with an entry behind `last`; the first of all must be the beginning or a carry-over."""
    if entry is None:
        return "not what its hash says"
    if last is None:
        return "does not begin the chain" if entry["seq"] == 1 and entry["prev"] != START else None
    if entry["seq"] != last.seq + 1:
        return f"number {entry['seq']} follows {last.seq}"
    return None if entry["prev"] == last.hash else "does not continue the line before"
