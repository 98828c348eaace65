"""Content digests of files and trees: what makes two outputs the same thing."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_CHUNK = 1 << 20
# What is in a folder and of nobody's making: of editors (vim, Emacs, nano, KDE), patch, version control, file managers.
_LEFTOVER = re.compile(
    r".*~|#.*#|\.#.*|\..*\.sw[a-p]|.*\.(orig|rej|kate-swp)"
    r"|\.(git|gitignore|gitattributes|gitkeep|hg|svn)|\.DS_Store|Thumbs\.db"
)


def frame(value: Any) -> bytes:
    """Encode a JSON-like value so that no two different values share an encoding: type tag, length, content.

    Mappings are sorted by key. Floats are refused: nothing that decides a key may depend on their printing.
    """
    if value is None or value is True or value is False:
        return {None: b"n", True: b"t", False: b"f"}[value]
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        return b"s%d:%b" % (len(data), data)
    if isinstance(value, int):
        return b"i%d;" % value
    if isinstance(value, Mapping):
        items = [frame(str(key)) + frame(value[key]) for key in sorted(value)]
        return b"d%d:%b" % (len(items), b"".join(items))
    if isinstance(value, Sequence):
        return b"l%d:%b" % (len(value), b"".join(frame(item) for item in value))
    raise TypeError(f"{type(value).__name__} cannot be part of a key")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Entry:
    """One path of a tree. kind: 'f' file, 'd' folder, 'l' link; data: hash of the bytes, or the link's target."""

    path: str
    kind: str
    mode: int
    size: int
    data: str

    def as_list(self) -> list[object]:
        """The form that is hashed and stored."""
        return [self.path, self.kind, self.mode, self.size, self.data]


def scan_tree(root: Path, only: Sequence[str] = (), hide: Sequence[str] = ()) -> list[Entry]:
    """Every path below `root` (or `root` itself when it is a file), sorted; special files raise ValueError.

    Owners and times are not part of a tree: they travel in manifests. `only` keeps the paths that match one of the glob
    patterns, without what editors, version control and byte-code caches leave; `hide` leaves out names at the top.
    """
    if not root.is_dir():
        return [_entry(root, "")]
    return sorted(_walk(root, "", only, hide), key=lambda entry: entry.path)


def _walk(root: Path, prefix: str, only: Sequence[str], hide: Sequence[str] = ()) -> Iterator[Entry]:
    with os.scandir(root / prefix) as listing:
        for item in listing:
            path = f"{prefix}/{item.name}" if prefix else item.name
            if item.name in hide or (only and _LEFTOVER.fullmatch(item.name)):
                continue
            if item.is_dir(follow_symlinks=False):
                if item.name == "__pycache__" and only:
                    continue
                if not only:
                    yield Entry(path, "d", stat.S_IMODE(item.stat(follow_symlinks=False).st_mode), 0, "")
                yield from _walk(root, path, only)
            elif not only or any(matches(path, pattern) for pattern in only):
                yield _entry(root / path, path)


def matches(path: str, pattern: str) -> bool:
    """Glob match of a relative path: `**` spans folders, `*` does not."""
    return _matches(PurePosixPath(path).parts, PurePosixPath(pattern).parts)


def _matches(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and PurePosixPath(parts[0]).match(patterns[0]) and _matches(parts[1:], patterns[1:])


def _entry(full: Path, path: str) -> Entry:
    info = full.lstat()
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return Entry(path, "l", 0o777, 0, os.fspath(full.readlink()))
    if stat.S_ISREG(info.st_mode):
        return Entry(path, "f", mode, info.st_size, file_sha256(full))
    raise ValueError(f"{full} is neither file, folder nor link")


def tree_digest(entries: Sequence[Entry]) -> str:
    """SHA-256 over the framed entries."""
    return hashlib.sha256(b"mixos-tree-1\0" + frame([entry.as_list() for entry in entries])).hexdigest()
