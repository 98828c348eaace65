"""Revisions of a folder of configuration files, kept as content-addressed objects and an append-only list.

    objects/<sha256>     the content of a file, once, however many revisions have it
    revisions.jsonl      one object per line: id (from 1), at (seconds since 1970), who, why,
                         files {path: [sha256, mode]}

Objects are made durable before the line that names them, and a line is written with one append; a line that a power
cut left torn is dropped when the list is read. Nothing is ever rewritten but by `prune`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import NotFoundError, RefusedError
from daemon.files import sync_folder, write_atomically

MAX_FILES = 2000
MAX_FILE = 1 << 20  # bytes
MAX_REVISIONS = 500
_LIST = "revisions.jsonl"

Files = Mapping[str, tuple[str, int]]  # path below the folder → (sha256, mode)


@dataclass(frozen=True)
class Revision:
    """The folder at one moment. who: the caller's name; why: what was done."""

    id: int
    at: float
    who: str
    why: str
    files: Files


class History:
    """The revisions of `folder`, kept in `store`."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        self.store = store

    def revisions(self) -> list[Revision]:
        """All revisions, oldest first."""
        try:
            lines = (self.store / _LIST).read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [revision for line in lines if (revision := _decode(line)) is not None]

    def get(self, number: int) -> Revision:
        """Revision `number`; 0 and below count back from the last. Raises NotFoundError `revision-missing`."""
        found = self.revisions()
        wanted = number if number > 0 else (found[-1].id if found else 0) + number
        for revision in found:
            if revision.id == wanted:
                return revision
        raise NotFoundError(f"there is no revision {number}", reason="revision-missing", hint="mixctl config history")

    def record(self, who: str, why: str, at: float) -> Revision | None:
        """Keep the folder as it is now; None when nothing changed since the last revision.

        Raises RefusedError `history-too-big` when the folder holds more than configuration.
        """
        files = self._keep(self._scan())
        found = self.revisions()
        if found and found[-1].files == files:
            return None
        revision = Revision(found[-1].id + 1 if found else 1, at, who, why, files)
        self._append(revision)
        if len(found) >= MAX_REVISIONS:
            self.prune(MAX_REVISIONS // 2)
        return revision

    def changes(self, old: Files, new: Files) -> str:
        """A unified diff between two sets of files; "" when they are equal. Content that is not text is only named."""
        parts = []
        for path in sorted({*old, *new}):
            if old.get(path) != new.get(path):
                parts.append(_diff(path, self._lines(old.get(path)), self._lines(new.get(path))))
        return "".join(parts)

    def current(self) -> Files:
        """The files of the folder now, their content kept so that `changes` can show it."""
        return self._keep(self._scan())

    def restore(self, revision: Revision) -> list[str]:
        """Make the folder what it was; the paths that changed. Each file changes at once, and a cut in between is
        finished by calling this again (the caller's journal says so)."""
        now, changed = self.current(), []
        for path, (digest, mode) in revision.files.items():
            if now.get(path) != (digest, mode):
                target = self.folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, self._read(digest), mode)
                changed.append(path)
        for path in now:
            if path not in revision.files:
                (self.folder / path).unlink(missing_ok=True)
                changed.append(path)
        return sorted(changed)

    def prune(self, keep: int) -> None:
        """Forget all but the newest `keep` revisions, and the content that only the others had."""
        left = self.revisions()[-keep:]
        write_atomically(self.store / _LIST, b"".join(map(_encode, left)), 0o600)
        used = {digest for revision in left for digest, _ in revision.files.values()}
        for path in (self.store / "objects").iterdir():
            if path.name not in used:
                path.unlink()

    def _scan(self) -> Iterator[tuple[str, bytes, int]]:
        """Path, content and mode of every regular file; links and what begins with a dot are nobody's configuration."""
        count = 0
        for root, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(root, name)
                found = path.lstat()
                if name.startswith(".") or not stat.S_ISREG(found.st_mode):
                    continue
                count += 1
                if count > MAX_FILES or found.st_size > MAX_FILE:
                    raise RefusedError(
                        f"{self.folder} holds more than configuration ({path})",
                        reason="history-too-big",
                        hint=f"at most {MAX_FILES} files of {MAX_FILE >> 20} MiB",
                    )
                yield os.fspath(path.relative_to(self.folder)), path.read_bytes(), stat.S_IMODE(found.st_mode)

    def _keep(self, files: Iterator[tuple[str, bytes, int]]) -> Files:
        objects = self.store / "objects"
        objects.mkdir(mode=0o700, parents=True, exist_ok=True)
        result = {}
        for path, data, mode in files:
            digest = hashlib.sha256(data).hexdigest()
            if not (objects / digest).exists():
                write_atomically(objects / digest, data, 0o600)
            result[path] = (digest, mode)
        return result

    def _append(self, revision: Revision) -> None:
        path = self.store / _LIST
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, (b"\n" if torn else b"") + _encode(revision))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self.store)

    def _read(self, digest: str) -> bytes:
        data = (self.store / "objects" / digest).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise RefusedError(
                f"the kept content {digest[:12]} is damaged", reason="history-damaged", hint="restore a backup"
            )
        return data

    def _lines(self, file: tuple[str, int] | None) -> list[str] | None:
        """The lines of a kept file; empty for none, None for what is not text."""
        if file is None:
            return []
        try:
            return self._read(file[0]).decode("utf-8").splitlines(keepends=True)
        except UnicodeDecodeError:
            return None


def _diff(path: str, old: list[str] | None, new: list[str] | None) -> str:
    if old is None or new is None:
        return f"--- {path}\n+++ {path}\n(not text)\n"
    lines = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}")
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
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
