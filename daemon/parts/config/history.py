"""Revisions of a folder of configuration files, kept as content-addressed objects and an append-only list.

    objects/<sha256>     the content of a file, once, however many revisions have it
    revisions.jsonl      one object per line: id (from 1), at (seconds since 1970), who, why,
                         files {path: [sha256, mode]}

Objects are made durable before the line that names them, and a line is written with one append; a line that a power
cut left torn is dropped when the list is read. Nothing is ever rewritten but by `prune`.

A file of more than MAX_FILE bytes (a list of addresses that a program fetches each day) is only noted: it has
"long:SIZE:MTIME" in place of the sha256, and no object. Otherwise a few such lists would fill the disk, or push out
what people wrote.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import stat
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from common.errors import NotFoundError, RefusedError
from common.files import read_regular, sync_folder, write_atomically

MAX_FILES = 2000
MAX_FILE = 1 << 20  # bytes
MAX_REVISIONS = 500
_LIST = "revisions.jsonl"
_LONG = "long:"
_MOST_PAIRS = 100_000  # of equal lines, each in one of two files, for which a short difference is looked for
_SETTLED = 2_000_000_000  # nanoseconds: a file can change twice within a tick of the clock and look the same

Files = Mapping[str, tuple[str, int]]  # path below the folder → (sha256, or what is noted of a long file; mode)


@dataclass(frozen=True)
class Revision:
    """The folder at one moment. who: the caller's name; why: what was done."""

    id: int
    at: float
    who: str
    why: str
    files: Files


def kept(file: tuple[str, int] | None) -> bool:
    """Whether the content of a file is there, if it is one."""
    return file is None or not file[0].startswith(_LONG)


class History:
    """The revisions of `folder`, kept in `store`."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        self.store = store
        self._seen: Mapping[str, tuple[tuple[int, ...], str]] = {}  # path → (inode, size and times, sha256)

    def revisions(self) -> Iterator[Revision]:
        """All revisions, oldest first; one at a time, since each names every file."""
        try:
            stream = (self.store / _LIST).open("rb")
        except FileNotFoundError:
            return
        with stream:
            yield from (revision for line in stream if (revision := _decode(line)) is not None)

    def last(self) -> Revision | None:
        """The newest revision; unless the last line is torn, no other is decoded."""
        try:
            with (self.store / _LIST).open("rb") as stream:
                lines = deque(stream, maxlen=1)
        except FileNotFoundError:
            return None
        found = _decode(lines[0]) if lines else None
        return found or next(iter(deque(self.revisions(), maxlen=1)), None)

    def get(self, number: int) -> Revision:
        """Revision `number`; 0 and below count back from the last. Raises NotFoundError `revision-missing`."""
        newest = self.last() if number <= 0 else None
        wanted = number + (newest.id if newest else 0)
        for revision in self.revisions():
            if revision.id == wanted:
                return revision
        raise NotFoundError(f"there is no revision {number}", reason="revision-missing", hint="mixctl config history")

    def record(self, who: str, why: str, at: float) -> Revision | None:
        """Keep the folder as it is now; None when nothing changed since the last revision.

        Raises RefusedError `history-too-big` when the folder holds more than configuration.
        """
        files, newest = self.current(), self.last()
        if newest is not None and newest.files == files:
            return None
        revision = Revision(newest.id + 1 if newest else 1, at, who, why, files)
        self._append(revision)
        if self._count() > MAX_REVISIONS:
            self.prune(MAX_REVISIONS // 2)
        return revision

    def changes(self, old: Files, new: Files) -> str:
        """A unified diff between two sets of files; "" when they are equal. Content that is not text, or not kept,
        is only named."""
        parts = []
        for path in sorted({*old, *new}):
            if old.get(path) != new.get(path):
                parts.append(_diff(path, self._lines(old.get(path)), self._lines(new.get(path))))
        return "".join(parts)

    def current(self) -> Files:
        """The files of the folder now, their content kept so that `changes` can show it. Files that did not change are
        not read again: this is done after every call that may have changed something."""
        objects = self.store / "objects"
        objects.mkdir(mode=0o700, parents=True, exist_ok=True)
        result, seen, settled = {}, {}, time.time_ns() - _SETTLED
        for path, found in self._scan():
            if found.st_size > MAX_FILE:
                result[path] = f"{_LONG}{found.st_size}:{found.st_mtime_ns}", stat.S_IMODE(found.st_mode)
                continue
            stamp = found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
            before, digest = self._seen.get(path, (None, ""))
            if before != stamp or _size(f"{objects}/{digest}") != found.st_size:
                data = read_regular(self.folder / path)
                digest = hashlib.sha256(data).hexdigest()
                if _size(f"{objects}/{digest}") != len(data):
                    write_atomically(objects / digest, data, 0o600)
            if found.st_ctime_ns < settled:
                seen[path] = stamp, digest
            result[path] = digest, stat.S_IMODE(found.st_mode)
        self._seen = seen
        return result

    def prune(self, keep: int) -> None:
        """Forget all but the newest `keep` revisions, and the content that only the others had."""
        left = deque(self.revisions(), maxlen=keep)
        write_atomically(self.store / _LIST, b"".join(map(_encode, left)), 0o600)
        used = {digest for revision in left for digest, _ in revision.files.values()}
        for path in (self.store / "objects").iterdir():
            if path.name not in used:
                path.unlink()

    def _scan(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every regular file; links and what begins with a dot are nobody's configuration."""
        count, top = 0, f"{self.folder}/"
        for root, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = os.path.join(root, name)
                found = os.lstat(path)
                if name.startswith(".") or not stat.S_ISREG(found.st_mode):
                    continue
                count += 1
                if count > MAX_FILES:
                    raise RefusedError(
                        f"{self.folder} holds more than configuration ({path})",
                        reason="history-too-big",
                        hint=f"at most {MAX_FILES} files",
                    )
                yield path[len(top) :], found

    def _append(self, revision: Revision) -> None:
        descriptor = os.open(self.store / _LIST, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = (b"\n" if torn else b"") + _encode(revision)
            try:
                while data:  # a disk that becomes full takes a part
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        sync_folder(self.store)

    def _count(self) -> int:
        with (self.store / _LIST).open("rb") as stream:
            return sum(1 for _ in stream)

    def content(self, digest: str) -> bytes:
        """What a file held. Raises RefusedError `history-damaged`."""
        try:
            data = (self.store / "objects" / digest).read_bytes()
        except FileNotFoundError:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise RefusedError(
                f"the kept content {digest[:12]} is damaged", reason="history-damaged", hint="restore a backup"
            )
        return data

    def _lines(self, file: tuple[str, int] | None) -> list[str] | None:
        """The lines of a kept file; empty for none, None for what is not text or not kept."""
        if file is None:
            return []
        if not kept(file):
            return None
        try:
            return re.findall(r"[^\n]*\n|[^\n]+", self.content(file[0]).decode("utf-8"))
        except UnicodeDecodeError:
            return None


def _size(path: str) -> int:
    """Of a file, in bytes; -1 when it is not there."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


def _diff(path: str, old: list[str] | None, new: list[str] | None) -> str:
    if old is None or new is None:
        return f"--- {path}\n+++ {path}\n(not text, or too long to be kept)\n"
    counts = Counter(old)
    if sum(counts[line] for line in new) > _MOST_PAIRS:  # difflib would take minutes
        whole = f"@@ -1,{len(old)} +1,{len(new)} @@\n"
        sides = ([f"{sign}{line}" for line in lines] for sign, lines in (("-", old), ("+", new)))
        lines = chain([f"--- a/{path}\n", f"+++ b/{path}\n", whole], *sides)
    else:
        lines = chain(difflib.unified_diff(old, new, f"a/{path}", f"b/{path}"))
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines) or f"mode of {path} changed\n"


def _encode(revision: Revision) -> bytes:
    files = {path: list(value) for path, value in sorted(revision.files.items())}
    document = {"id": revision.id, "at": revision.at, "who": revision.who, "why": revision.why, "files": files}
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _decode(line: bytes) -> Revision | None:
    """A line of the list; None for one that is torn."""
    try:
        document = json.loads(line)
        files = {str(path): (str(digest), int(mode)) for path, (digest, mode) in document["files"].items()}
        return Revision(int(document["id"]), float(document["at"]), str(document["who"]), str(document["why"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
