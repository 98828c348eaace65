"""Package artifacts: the manifest's data model, its one writer and its one strict, bounded reader.

An artifact is a folder with `manifest.json` and the tree `files/`. The manifest is the authority on owner, mode and
extended attributes (a build sandbox has a single uid, so the tree cannot carry them); the tree holds contents only.

Rules that the reader enforces, whoever wrote the manifest:
- UTF-8 JSON of at most `MAX_MANIFEST` bytes, known keys only, no key twice, no floats, at most `MAX_FILES` entries;
- paths are relative, normalised, free of control characters, strictly ascending in byte order (so none is there twice);
- the parent of every entry is itself listed as a directory, hence nothing can be reached through a symbolic link;
- each type has exactly its own fields: `file` size and sha256, `symlink` target, `dir` neither.

`open_artifact` also compares the tree with the manifest: nothing missing, nothing extra, right types, sizes, hashes.
Standard library only: this module runs on the device.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.errors import ArtifactError

FORMAT = 1
MAX_MANIFEST = 16 << 20  # bytes of manifest.json
MAX_FILES = 100_000
MAX_PATH = 1024  # bytes; a component has at most 255 as everywhere on Linux
MAX_SIZE = 2 << 30  # bytes of one file
MAX_ID = 65_533  # 65534 is "nobody" and never owns a file
MAX_XATTR = 64 << 10  # Linux: XATTR_SIZE_MAX

FileType = Literal["file", "dir", "symlink"]

_NAME = re.compile(r"[a-z0-9][a-z0-9+._-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~_:-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"[0-7]{4}")
_XATTR = re.compile(r"(security|user)\.[A-Za-z0-9_.-]{1,200}")
_KEYS = {"format", "name", "version", "summary", "license", "homepage", "depends", "files"}
_FIELDS: Mapping[str, set[str]] = {
    "file": {"path", "type", "mode", "uid", "gid", "size", "sha256"},
    "dir": {"path", "type", "mode", "uid", "gid"},
    "symlink": {"path", "type", "mode", "uid", "gid", "target"},
}


@dataclass(frozen=True)
class Entry:
    """One file of a package. `mode` holds the permission bits (0o7777); `size` and `sha256` are of a regular file."""

    path: str
    type: FileType
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    sha256: str = ""
    target: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The entry as it stands in the manifest."""
        row: dict[str, object] = {
            "path": self.path,
            "type": self.type,
            "mode": f"{self.mode:04o}",
            "uid": self.uid,
            "gid": self.gid,
        }
        if self.type == "file":
            row |= {"size": self.size, "sha256": self.sha256}
        elif self.type == "symlink":
            row["target"] = self.target
        if self.xattrs:
            row["xattrs"] = {name: base64.b64encode(data).decode() for name, data in sorted(self.xattrs.items())}
        return row


@dataclass(frozen=True)
class Manifest:
    """What a package is and which files it has, sorted by path."""

    name: str
    version: str
    summary: str
    license: str
    homepage: str
    depends: tuple[str, ...]
    files: tuple[Entry, ...]

    def encode(self) -> bytes:
        """The canonical bytes: equal manifests give equal bytes. One line per file keeps differences readable."""
        head = {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "summary": self.summary,
            "license": self.license,
            "homepage": self.homepage,
            "depends": list(self.depends),
        }
        lines = [f"{_dump(key)}: {_dump(value)}" for key, value in head.items()]
        rows = ",\n".join(_dump(entry.as_json()) for entry in self.files)
        return ("{" + ",\n".join(lines) + f',\n"files": [\n{rows}\n]}}\n').encode()


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk whose tree was compared with its manifest."""

    root: Path
    manifest: Manifest

    def source(self, entry: Entry) -> Path:
        """Where the content of `entry` lies."""
        return self.root / "files" / entry.path


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _bad(where: str, what: str, reason: str) -> ArtifactError:
    return ArtifactError(f"{where}: {what}", reason=reason, hint="the package is damaged or hostile; build it again")


def path_problem(path: str) -> str | None:
    """Why `path` may not be a path in a package, or None when it may."""
    raw = path.encode("utf-8", "surrogatepass")
    if not raw or len(raw) > MAX_PATH:
        return "is empty or too long"
    if path.startswith("/"):
        return "is absolute"
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in path):
        return "contains control characters"
    parts = raw.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        return "is not normalised"
    if any(len(part) > 255 for part in parts):
        return "has a component over 255 bytes"
    return None


def sort_key(path: str) -> bytes:
    """The order of files in a manifest: by bytes of the path."""
    return path.encode()


def decode(data: bytes, where: str) -> Manifest:
    """Read a manifest. `where` names it in errors. Raises ArtifactError (reasons `manifest-*`, `path-unsafe`)."""
    if len(data) > MAX_MANIFEST:
        raise _bad(where, f"more than {MAX_MANIFEST} bytes", "manifest-too-big")
    document = _parse(data, where)
    if not isinstance(document, dict) or set(document) != _KEYS:
        raise _bad(where, f"must be an object with exactly the keys {', '.join(sorted(_KEYS))}", "manifest-schema")
    if document["format"] != FORMAT or isinstance(document["format"], bool):
        raise _bad(where, f"format {document['format']!r} is not {FORMAT}", "manifest-format")
    if not _NAME.fullmatch(_text(document, "name", where)) or not _VERSION.fullmatch(_text(document, "version", where)):
        raise _bad(where, "name or version has forbidden characters", "manifest-schema")
    depends = document["depends"]
    if not isinstance(depends, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in depends):
        raise _bad(where, "depends must be a list of package names", "manifest-schema")
    rows = document["files"]
    if not isinstance(rows, list) or len(rows) > MAX_FILES:
        raise _bad(where, f"files must be a list of at most {MAX_FILES} entries", "manifest-schema")
    entries = tuple(_entry(row, f"{where}: files[{index}]") for index, row in enumerate(rows))
    _check_order(entries, where)
    return Manifest(
        name=document["name"],
        version=document["version"],
        summary=_text(document, "summary", where),
        license=_text(document, "license", where),
        homepage=_text(document, "homepage", where),
        depends=tuple(depends),
        files=entries,
    )


def _parse(data: bytes, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise _bad(where, "a key appears twice in one object", "manifest-json")
        return result

    def no_number(text: str) -> Any:
        raise _bad(where, f"the number {text} is not an integer", "manifest-json")

    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_float=no_number, parse_constant=no_number
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _bad(where, f"not valid JSON ({error})", "manifest-json") from error


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or len(value) > 1000 or any(ord(char) < 0x20 for char in value):
        raise _bad(where, f"{key} must be one line of text", "manifest-schema")
    return value


def _number(row: Mapping[str, Any], key: str, limit: int, where: str) -> int:
    value = row[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise _bad(where, f"{key} must be an integer from 0 to {limit}", "manifest-schema")
    return value


def _entry(row: Any, where: str) -> Entry:
    kind = row.get("type") if isinstance(row, dict) else None
    if not isinstance(kind, str) or kind not in _FIELDS or set(row) - {"xattrs"} != _FIELDS[kind]:
        raise _bad(where, "unknown type, or fields that its type does not have", "manifest-schema")
    path = row["path"]
    problem = path_problem(path) if isinstance(path, str) else "is not text"
    if problem:
        raise _bad(where, f"path {path!r} {problem}", "path-unsafe")
    mode = row["mode"]
    if not isinstance(mode, str) or not _MODE.fullmatch(mode):
        raise _bad(where, f"mode {mode!r} is not four octal digits", "manifest-schema")
    sha256, target = row.get("sha256", ""), row.get("target", "")
    if kind == "file" and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise _bad(where, "sha256 is not 64 hex digits", "manifest-schema")
    if kind == "symlink" and not (isinstance(target, str) and _target_ok(target)):
        raise _bad(where, f"symbolic link target {target!r} is not usable", "path-unsafe")
    return Entry(
        path=path,
        type=kind,  # type: ignore[arg-type]  # one of the keys of _FIELDS, checked above
        mode=int(mode, 8),
        uid=_number(row, "uid", MAX_ID, where),
        gid=_number(row, "gid", MAX_ID, where),
        size=_number(row, "size", MAX_SIZE, where) if kind == "file" else 0,
        sha256=sha256,
        target=target,
        xattrs=_xattrs(row.get("xattrs", {}), where),
    )


def _target_ok(target: str) -> bool:
    try:
        return 0 < len(target.encode()) <= MAX_PATH and all(ord(char) >= 0x20 for char in target)
    except UnicodeEncodeError:
        return False


def _xattrs(value: Any, where: str) -> dict[str, bytes]:
    if not isinstance(value, dict) or len(value) > 16:
        raise _bad(where, "xattrs must be an object of at most 16 attributes", "manifest-schema")
    result = {}
    for name, text in value.items():
        try:
            data = base64.b64decode(text, validate=True) if isinstance(text, str) and _XATTR.fullmatch(name) else None
        except (binascii.Error, ValueError):
            data = None
        if data is None or len(data) > MAX_XATTR:
            raise _bad(where, f"extended attribute {name!r} is not a known name with base64 content", "manifest-schema")
        result[name] = data
    return result


def _check_order(entries: tuple[Entry, ...], where: str) -> None:
    directories = {""}
    last = b""
    for entry in entries:
        key = sort_key(entry.path)
        if key <= last:
            raise _bad(where, f"{entry.path} stands twice or out of order", "manifest-order")
        last = key
        # A parent sorts before its children, so it was seen already; being a listed directory, it is no symlink.
        if entry.path.rpartition("/")[0] not in directories:
            raise _bad(where, f"the parent of {entry.path} is not a directory of this package", "path-unsafe")
        if entry.type == "dir":
            directories.add(entry.path)


def read_manifest(path: Path) -> Manifest:
    """Read `manifest.json` at `path`. Raises ArtifactError; never reads more than the limit."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise _bad(str(path), error.strerror or "cannot be read", "manifest-missing") from error
    return decode(data, str(path))


def open_artifact(root: Path) -> Artifact:
    """Read an artifact and compare its tree with its manifest, contents included.

    Raises ArtifactError: `file-missing`, `file-extra`, `file-type`, `file-hash` beside the manifest's own reasons.
    """
    manifest = read_manifest(root / "manifest.json")
    expected = {entry.path: entry for entry in manifest.files}
    for path, found in walk(root / "files"):
        entry = expected.pop(path, None)
        if entry is None:
            raise _bad(f"{root}: {path}", "is in the tree but not in the manifest", "file-extra")
        _compare(root / "files" / path, found, entry)
    if expected:
        raise _bad(f"{root}: {min(expected)}", "is in the manifest but not in the tree", "file-missing")
    return Artifact(root, manifest)


def _compare(path: Path, found: os.stat_result, entry: Entry) -> None:
    kinds = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}
    if stat.S_IFMT(found.st_mode) != kinds[entry.type]:
        raise _bad(str(path), f"is not a {entry.type} as its manifest says", "file-type")
    if entry.type == "symlink" and os.readlink(path) != entry.target:
        raise _bad(str(path), f"does not point to {entry.target}", "file-hash")
    if entry.type == "file" and (found.st_size != entry.size or hash_file(path) != entry.sha256):
        raise _bad(str(path), "does not have the content its manifest names", "file-hash")


def walk(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below `tree` as (relative path, lstat), unsorted; symbolic links are not followed."""
    pending = [("", tree)]
    while pending:
        prefix, folder = pending.pop()
        with os.scandir(folder) as listing:
            for item in listing:
                info = item.stat(follow_symlinks=False)
                yield prefix + item.name, info
                if stat.S_ISDIR(info.st_mode):
                    pending.append((f"{prefix}{item.name}/", Path(item.path)))


def hash_file(path: Path) -> str:
    """The sha256 of a file's content, in hex. A link put in its place is refused, not followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
