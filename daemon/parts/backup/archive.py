"""The inner format of a backup: a tar stream of the plainest kind (POSIX.1-1988 "ustar"), written and read strictly.

Files, folders and symbolic links only; every name once, no name below what is not a folder, no link that leads out of
the folder it is kept for. A header is accepted only if this module would have written the very same 512 bytes, so there
is one way to say a thing and nothing to interpret.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from daemon.parts.backup.sealed import BackupError

BLOCK = 512
MAX_ENTRIES = 50_000
MAX_TOTAL = 1 << 30  # bytes of all files of a backup, unpacked
MAX_ID = 0o7777777  # user and group ids that fit a header

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_USTAR = b"ustar\x0000"
_PERMISSIONS = 0o1777  # set-uid and set-gid are not kept: nothing here is a program of the system
_PIECE = 128 << 10

Kind = Literal["file", "folder", "link"]
_TYPES: dict[Kind, bytes] = {"file": b"0", "link": b"2", "folder": b"5"}
_KINDS: dict[bytes, Kind] = {code: kind for kind, code in _TYPES.items()}


@dataclass(frozen=True)
class Entry:
    """path: relative, with bytes that are not UTF-8 as surrogates; size: bytes, of files only; target: of links only;
    mtime: seconds since 1970."""

    path: str
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    target: str = ""


def encode(entry: Entry) -> bytes:
    """The header. Raises BackupError `backup-name` for names and numbers that it cannot hold."""
    prefix, name = _split(_bytes(entry.path) + (b"/" if entry.kind == "folder" else b""))
    target = _bytes(entry.target)
    if len(target) > 100 or max(entry.uid, entry.gid) > MAX_ID or not 0 <= entry.mtime < 1 << 33:
        raise BackupError(f"{entry.path!r}: link, owner or time cannot be kept", reason="backup-name")
    fields = (
        name,
        b"%07o\0" % (entry.mode & _PERMISSIONS),
        b"%07o\0" % entry.uid,
        b"%07o\0" % entry.gid,
        b"%011o\0" % entry.size,
        b"%011o\0" % entry.mtime,
        b" " * 8,
        _TYPES[entry.kind],
        target,
        _USTAR,
        b"",
        b"",
        b"0000000\0",
        b"0000000\0",
        prefix,
    )
    block = _HEADER.pack(*fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def decode(block: bytes) -> Entry:
    """The entry of a header. Raises BackupError `backup-tar` for everything that `encode` does not write."""
    name, mode, uid, gid, size, mtime, _, code, target, *_, prefix = _HEADER.unpack(block)
    path = b"/".join(part for part in (prefix.rstrip(b"\0"), name.rstrip(b"\0")) if part)
    try:
        kind = _KINDS[code]
        numbers = {"mode": mode, "uid": uid, "gid": gid, "size": size, "mtime": mtime}
        values = {word: int(field[:-1], 8) for word, field in numbers.items()}
        text = path.removesuffix(b"/").decode("utf-8", "surrogateescape")
        entry = Entry(text, kind, **values, target=target.rstrip(b"\0").decode("utf-8", "surrogateescape"))
        if min(values.values()) < 0 or encode(entry) != block:
            raise ValueError("not written by us")
    except (KeyError, ValueError, struct.error, BackupError) as error:
        raise BackupError("the archive in the backup has a header that is not one of ours", reason="backup-tar") from (
            error
        )
    parts = text.split("/")
    if not text or "\0" in text or any(part in ("", ".", "..") for part in parts):
        raise BackupError(f"the name {text!r} is not allowed in a backup", reason="backup-name")
    if (kind != "file" and entry.size) or (kind == "link") != bool(entry.target):
        raise BackupError(f"{text!r} contradicts itself", reason="backup-tar")
    return entry


def leads_out(path: str, target: str, root: str) -> bool:
    """Whether a link at `path` may lead out of the folder `root` above it.

    Only leading ".." are allowed, counted from the folder that the link really is in; every link of an archive being
    so, no chain of them leads out either.
    """
    parts = target.split("/")
    ups = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    depth = len(path.split("/")) - len(root.split("/")) - 1
    return target.startswith("/") or "\0" in target or ups > depth or any(p in ("..", "") for p in parts[ups:])


def write(entries: Iterable[tuple[Entry, Iterable[bytes]]]) -> Iterator[bytes]:
    """The stream. The content of each file must have the size that its entry says: BackupError `backup-changed`."""
    total = 0
    for number, (entry, content) in enumerate(entries):
        total += entry.size
        if number >= MAX_ENTRIES or total > MAX_TOTAL:
            raise too_big()
        yield encode(entry)
        left = entry.size
        for piece in content:
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            raise BackupError(f"{entry.path!r} changed while it was read", reason="backup-changed", retryable=True)
        yield bytes(-entry.size % BLOCK)
    yield bytes(2 * BLOCK)


def too_big() -> BackupError:
    """The error for what is larger than a backup may be."""
    limit = f"{MAX_ENTRIES} names or {MAX_TOTAL >> 20} MiB"
    return BackupError(f"a backup has at most {limit}", reason="backup-too-big", hint="leave out state directories")


def read(pieces: Iterator[bytes], limit: int = MAX_TOTAL) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """Entries with their content, which is skipped if it is not taken before the next entry.

    limit: bytes of all files together. Raises BackupError `backup-tar`, `backup-name`, `backup-too-big`,
    `backup-truncated`; and whatever `pieces` raises.
    """
    source, kinds, total = _Source(pieces), dict[str, str](), 0
    while (block := source.take(BLOCK)) != bytes(BLOCK):
        entry = decode(block)
        total += entry.size
        if len(kinds) >= 2 * MAX_ENTRIES or total > limit:
            raise too_big()
        _claim(entry, kinds)
        content = source.give(entry.size)
        yield entry, content
        for _ in content:
            pass
        if source.take(-entry.size % BLOCK).strip(b"\0"):
            raise BackupError("there is something between the files of the archive", reason="backup-tar")
    if source.take(BLOCK).strip(b"\0") or not source.ended():
        raise BackupError("there is something behind the end of the archive", reason="backup-tar")


def _claim(entry: Entry, kinds: dict[str, str]) -> None:
    """Every name once, and only below folders; folders that are only meant by a name may still come."""
    above = entry.path
    while "/" in above:
        above = above.rpartition("/")[0]
        if kinds.setdefault(above, "meant") not in ("meant", "folder"):
            raise BackupError(f"{entry.path!r} is below something that is not a folder", reason="backup-name")
    if kinds.get(entry.path, "meant") != "meant" or (entry.path in kinds and entry.kind != "folder"):
        raise BackupError(f"{entry.path!r} is there twice", reason="backup-name")
    kinds[entry.path] = entry.kind


class _Source:
    """Bytes from pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._data = memoryview(b"")

    def take(self, count: int) -> bytes:
        return b"".join(self.give(count))

    def give(self, count: int) -> Iterator[bytes]:
        while count:
            if not self._data:
                piece = next(self._pieces, None)
                if piece is None:
                    raise BackupError("the archive in the backup was cut off", reason="backup-truncated")
                self._data = memoryview(piece)
            part = bytes(self._data[: min(count, _PIECE)])
            self._data = self._data[len(part) :]
            count -= len(part)
            yield part

    def ended(self) -> bool:
        """Whether nothing is left. Asking makes the pieces check their own end."""
        return not self._data and next(self._pieces, None) is None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Prefix and name of a path: as much as fits into the name, the rest, up to a slash, before it."""
    if len(path) <= 100:
        return b"", path
    place = path.find(b"/", len(path) - 101, len(path) - 1)
    if not 0 < place <= 155:
        raise BackupError(f"{path!r} is too long a name for a backup", reason="backup-name")
    return path[:place], path[place + 1 :]
