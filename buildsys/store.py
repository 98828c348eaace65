"""The content store: output trees by digest, action results by key. Safe to share, to kill and to run out of disk.

    <root>/trees/<digest>/        an output tree, never changed after the rename that put it there
    <root>/trees/<digest>.json    its entries: path, kind, mode, size, hash
    <root>/actions/<key>.json     a result: output digest, key document, seconds, time
    <root>/latest/<action>        the key of the last result of that action (for `mixos why` and duration estimates)
    <root>/staging/<id>/          where an action writes; renamed into trees/, or moved to failed/, or removed; what a
                                  killed build left there is removed by the next one that has the store to itself
    <root>/failed/<action>/       the last failed attempt, for `mixos shell`; never a hit; gone after a success or gc
    <root>/logs/<action>.log      the last log of each action
    <root>/locks/                 one lock file per key (who builds it) and `store` (shared by builds, exclusive for gc)

Commit order: the tree is renamed into place, then its result is written beside it and renamed. `kill -9` at any point
leaves either nothing or a complete object; `hook` lets tests stop the world at each step. Trees are not synced file by
file: a tree is re-hashed before anything is built on it or exported, so an object that a power cut or a bad disk
damaged is found, named, dropped and rebuilt.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from buildsys.digest import Entry, scan_tree, tree_digest
from buildsys.files import atomic_write, remove_tree
from buildsys.oserrors import host_error, store_errors
from common.errors import StoreError

Hook = Callable[[str], None]
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SET_ID = stat.S_ISUID | stat.S_ISGID
POLL_SECONDS = 0.2  # between two looks at a lock that somebody else holds


@dataclass(frozen=True)
class Result:
    """What is known of a finished action."""

    action: str
    key: str
    output: str  # tree digest
    size: int  # bytes of its files
    seconds: float
    document: dict[str, Any]


class Store:
    """See the module's text. All paths given out are read-only by convention; the sandbox mounts them read-only."""

    def __init__(self, root: Path, hook: Hook = lambda step: None) -> None:
        self.root = root
        self._hook = hook
        try:
            for name in ("trees", "actions", "latest", "staging", "failed", "logs", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{root}: {error.strerror}", reason="store-unusable", hint="set MIXOS_CACHE") from error

    # -- locks ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def session(self, *, exclusive: bool = False) -> Iterator[None]:
        """Held by a build (shared) so that gc (exclusive) never removes what is in use."""
        if not exclusive:
            self._sweep()
        with self._lock("store", exclusive=exclusive, wait=not exclusive) as held:
            if not held:
                raise StoreError(
                    "a build is using the store", reason="store-busy", hint="try again later", retryable=True
                )
            yield

    def _sweep(self) -> None:
        """Remove what killed builds left, if nobody uses the store: then nothing in staging belongs to the living."""
        with self._lock("store", exclusive=True, wait=False) as alone:
            if alone:
                for path in (self.root / "staging").iterdir():
                    self.discard(path)

    @contextlib.contextmanager
    def building(
        self, key: str, waiting: Callable[[], None], check: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """The right to build `key`; calls `waiting` once if someone else has it, then waits.

        check: called every now and then while waiting; may raise to end it.
        """
        asked = False
        while True:
            with self._lock(key, exclusive=True, wait=False) as held:
                if held:
                    yield
                    return
            if not asked:
                waiting()
                asked = True
            check()
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _lock(self, name: str, *, exclusive: bool, wait: bool) -> Iterator[bool]:
        descriptor = os.open(self.root / "locks" / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o660)
        try:
            try:
                fcntl.flock(
                    descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
                )
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)

    # -- reading -------------------------------------------------------------------------------------------------------

    def result(self, key: str) -> Result | None:
        """The stored result of `key`, if it is readable and its tree is there."""
        try:
            result = Result(**json.loads((self.root / "actions" / f"{key}.json").read_bytes()))
            sound = (
                result.key == key
                and _DIGEST.fullmatch(result.output) is not None
                and isinstance(result.seconds, int | float)
                and isinstance(result.size, int)
            )
        except (OSError, ValueError, TypeError):
            return None
        return result if sound and self.tree(result.output).is_dir() else None

    def latest(self, action: str) -> Result | None:
        """The newest result of an action, whatever its key was."""
        try:
            key = (self.root / "latest" / action).read_text().strip()
        except (OSError, ValueError):
            return None
        return self.result(key)

    def tree(self, digest: str) -> Path:
        """Where the tree of that digest is (or would be)."""
        return self.root / "trees" / digest

    def part_digest(self, digest: str, path: str) -> str:
        """The digest of one path of a tree. Raises StoreError when it is not there or the tree is damaged."""
        entries = self._listed(digest)
        if entries is None:  # lost or damaged, but nothing is in it that the tree does not tell
            problem = self.damage(digest)
            if problem is not None:
                raise StoreError(f"tree {digest} is damaged ({problem})", reason="store-damaged")
            entries = scan_tree(self.tree(digest))
            with store_errors("cannot store a listing"):
                self._write_listing(digest, entries)
        part = [entry for entry in entries if entry.path == path or entry.path.startswith(f"{path}/")]
        if not part:
            raise StoreError(f"tree {digest} has no '{path}'", reason="output-missing")
        return tree_digest(part)

    def _listed(self, digest: str) -> list[Entry] | None:
        """The entries of a tree as its listing has them; None when that cannot be read or is not what it was."""
        try:
            entries = [Entry(*item) for item in json.loads(self._listing(digest).read_bytes())]
            return entries if tree_digest(entries) == digest else None
        except (OSError, ValueError, TypeError):
            return None

    def _write_listing(self, digest: str, entries: list[Entry]) -> None:
        atomic_write(self._listing(digest), json.dumps([entry.as_list() for entry in entries]).encode())

    def damage(self, digest: str) -> str | None:
        """Re-hash a tree: None when it is what its name says, else the first path that differs."""
        try:
            entries = scan_tree(self.tree(digest))
        except (OSError, ValueError) as error:
            return str(error)
        if tree_digest(entries) == digest:
            return None
        return self.first_difference(digest, entries)

    def first_difference(self, digest: str, entries: list[Entry]) -> str:
        """The first path in which `entries` are not what the tree `digest` holds."""
        listing = self._listed(digest)
        if listing is None:
            return "its listing"
        listed = {entry.path: entry for entry in listing}
        found = {entry.path: entry for entry in entries}
        different = sorted(path for path in {*listed, *found} if listed.get(path) != found.get(path))
        return different[0] if different else "its listing"

    def remove_damaged(self, digest: str) -> str | None:
        """As `damage`, and a damaged tree is dropped at once; of two builds that look, one does it."""
        with self._lock(f"tree-{digest}", exclusive=True, wait=True):
            problem = self.damage(digest)
            if problem is not None and self.tree(digest).exists():
                self.drop(digest)
        return problem

    def _listing(self, digest: str) -> Path:
        return self.root / "trees" / f"{digest}.json"

    # -- writing -------------------------------------------------------------------------------------------------------

    def stage(self) -> Path:
        """A fresh folder for one action, with `out` and `build` in it. Raises StoreError."""
        path = self.root / "staging" / f"{os.getpid()}-{secrets.token_hex(6)}"
        with store_errors("cannot make a folder to build in"):
            path.mkdir(mode=0o700)  # an action can make set-uid files of ours: nobody else shall reach them
            for name in ("out", "build", "root"):
                (path / name).mkdir()
        return path

    def commit(
        self, staged: Path, action: str, key: str, document: dict[str, Any], seconds: float, epoch: int
    ) -> Result:
        """Take `staged`/out into the store as the result of `key`. Raises StoreError (special or set-uid file,
        full disk)."""
        out = staged / "out"
        try:
            out.chmod(0o755)  # its own mode is not part of a tree, and a folder that forbids writing cannot be moved
            entries = scan_tree(out)
            special = next((entry.path for entry in entries if entry.kind == "f" and entry.mode & _SET_ID), None)
            if special is not None:
                raise ValueError(f"{special} is set-uid or set-gid: outside of the sandbox it would have our rights")
            digest = tree_digest(entries)
            _settle(out, epoch)
            self._hook("settled")
            if not self.tree(digest).is_dir():
                self._write_listing(digest, entries)
                self._hook("listed")
                with contextlib.suppress(FileExistsError):  # another build committed the same bytes meanwhile
                    _rename_tree(out, self.tree(digest))
            self._hook("renamed")
            result = Result(action, key, digest, sum(entry.size for entry in entries), round(seconds, 2), document)
            atomic_write(self.root / "actions" / f"{key}.json", json.dumps(asdict(result)).encode())
            self._hook("recorded")
            atomic_write(self.root / "latest" / action, key.encode())
        except ValueError as error:
            raise StoreError(f"{action}: {error}", reason="output-special-file") from error
        except OSError as error:
            raise host_error(error, f"{action}: cannot store the result", StoreError, "store-write") from error
        self.discard(staged)
        self.discard(self.root / "failed" / action)  # what it tells is out of date
        return result

    def touch_latest(self, action: str, key: str) -> None:
        """Remember that `key` is the current result of `action`, and that it was used now (gc keeps the newest)."""
        with store_errors(f"{action}: cannot record its result"):
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.root / "actions" / f"{key}.json")
            path = self.root / "latest" / action
            if not path.exists() or path.read_bytes() != key.encode():
                atomic_write(path, key.encode())

    def keep_failed(self, staged: Path, action: str) -> Path | None:
        """Move a failed attempt aside, replacing the previous one; where it is, or None when that cannot be done."""
        target = self.root / "failed" / action
        try:
            remove_tree(target)
            staged.rename(target)
        except OSError:  # a full disk, a link to another one: the action's own error matters more
            return None
        return target

    def drop(self, digest: str) -> None:
        """Forget a damaged tree. Results that point at it stop counting at once."""
        grave = self.root / "staging" / f"{os.getpid()}-{secrets.token_hex(6)}"
        with contextlib.suppress(FileNotFoundError):
            self.tree(digest).rename(grave)
        self._listing(digest).unlink(missing_ok=True)
        remove_tree(grave)

    def discard(self, staged: Path) -> None:
        """Throw a staging folder away. What a dying process still holds on to is left to the next sweep."""
        with contextlib.suppress(OSError):
            remove_tree(staged)

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def digests(self) -> list[str]:
        """Every tree in the store, sorted."""
        return sorted(path.name for path in (self.root / "trees").iterdir() if path.is_dir())

    def results(self) -> list[Result]:
        """Every stored result that still counts, newest first."""
        paths = sorted((self.root / "actions").glob("[!.]*.json"), key=lambda path: -path.stat().st_mtime_ns)
        found = [self.result(path.stem) for path in paths]
        return [result for result in found if result is not None]

    def collect(self, choose: Callable[[], set[str]]) -> int:
        """Remove every tree that `choose` does not name, failed attempts, and what dead builds left; bytes freed.

        `choose` is called when no build can add results any more. Raises StoreError when a build uses the store.
        """
        freed = 0
        with self.session(exclusive=True), store_errors("cannot clean up"):
            keep = choose()
            for folder in ("staging", "failed"):
                for path in (self.root / folder).iterdir():
                    remove_tree(path)
            for digest in self.digests():
                if digest not in keep:
                    freed += sum(path.lstat().st_size for path in self.tree(digest).rglob("*") if not path.is_dir())
                    self.drop(digest)
            for path in (self.root / "actions").glob("*.json"):
                if self.result(path.stem) is None:
                    path.unlink()
            self._tidy()
        return freed

    def _tidy(self) -> None:
        """Remove half-written files of dead builds, listings without a tree, and locks: nobody holds one now."""
        for folder in ("trees", "actions", "latest", "logs"):
            for path in (self.root / folder).glob(".*"):
                remove_tree(path)
        for path in (self.root / "trees").glob("*.json"):
            if not self.tree(path.stem).is_dir():
                path.unlink()
        for path in (self.root / "locks").iterdir():
            if path.name != "store":
                path.unlink()


def _settle(root: Path, epoch: int) -> None:
    """Give every path the same time, so that nothing can come to depend on when it was built."""
    os.utime(root, (epoch, epoch))
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            os.utime(f"{folder}/{name}", (epoch, epoch), follow_symlinks=False)


def _rename_tree(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
