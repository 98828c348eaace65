"""The inner format of a backup: a tar stream of the plainest kind (POSIX.1-1988 "ustar"), written and read strictly.

Files, folders and symbolic links only; every name once, no name below what is not a folder, so that no link is ever
followed. What is too long for a header stands in an extended one before it (POSIX.1-2001 pax: `path`, `linkpath`, and
for a file with holes `MIXOS.sparse`: its whole size, then offset and length of each part that follows). Headers are
accepted only if this module would have written the very same bytes, so there is one way to say a thing and nothing to
interpret.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from daemon.parts.backup.sealed import BackupError

BLOCK = 512
MAX_ENTRIES = 50_000
MAX_TOTAL = 1 << 30  # bytes of all files of a backup, unpacked; holes have none
MAX_PARTS = 1024  # of a file with holes
MAX_LENGTH = 1 << 43  # bytes of a file with holes
MAX_NAME = 1024  # bytes of a path, and of a link's target
MAX_NAMES = 16 << 20  # bytes of all paths of a backup, those of folders that are only meant included
MAX_ID = 0o7777777  # user and group ids that fit a header

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_USTAR = b"ustar\x0000"
_PERMISSIONS = 0o1777  # set-uid and set-gid are not kept: nothing here is a program of the system
_PIECE = 128 << 10
_EXTENDED = b"x"
_SPARSE = b"MIXOS.sparse"
_MAX_FRONT = 2 * (MAX_NAME + 32) + 32 + (2 * MAX_PARTS + 1) * (len(str(MAX_LENGTH)) + 1)

Kind = Literal["file", "folder", "link"]
_TYPES: dict[Kind, bytes] = {"file": b"0", "link": b"2", "folder": b"5"}
_KINDS: dict[bytes, Kind] = {code: kind for kind, code in _TYPES.items()}


@dataclass(frozen=True)
class Entry:
    """path: relative, with bytes that are not UTF-8 as surrogates; size: bytes, of files only; target: of links only;
    mtime: seconds since 1970. length: of a file with holes, the whole of it; then size is that of its parts, (offset,
    bytes) each, in order."""

    path: str
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    target: str = ""
    length: int = 0
    parts: tuple[tuple[int, int], ...] = ()

    def placed(self, content: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        """The pieces of its content, each with its offset in the file."""
        parts = iter(self.parts if self.length else ((0, self.size),))
        at = left = 0
        for piece in content:
            rest = memoryview(piece)
            while rest:
                if not left:
                    at, left = next(parts)
                yield at, bytes(rest[:left])
                taken = min(left, len(rest))
                at, left, rest = at + taken, left - taken, rest[taken:]


def encode(entry: Entry) -> bytes:
    """The header, with an extended one before it where names are long. Raises BackupError `backup-name` for names and
    numbers that cannot be kept."""
    path, target = _bytes(entry.path) + (b"/" if entry.kind == "folder" else b""), _bytes(entry.target)
    numbers = max(entry.uid, entry.gid) <= MAX_ID and 0 <= entry.mtime < 1 << 33
    if not numbers or max(len(path), len(target)) > MAX_NAME:
        raise BackupError(f"{entry.path!r:.200}: name, link, owner or time cannot be kept", reason="backup-name")
    short = _split(path)
    records = b"" if short else _record(b"path", path)
    records += _record(b"linkpath", target) if len(target) > 100 else b""
    records += _record(_SPARSE, _parts(entry)) if entry.length else b""
    header = _header(entry, _TYPES[entry.kind], *(short or (b"", path[:100])), target[:100])
    if not records:
        return header
    front = _header(Entry("", "file", 0o600, size=len(records)), _EXTENDED, b"", b"extended", b"")
    return front + records + bytes(-len(records) % BLOCK) + header


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE`: bytes of the whole, its own digits and the newline included."""
    size = len(key) + len(value) + 3
    digits = next(count for count in range(1, 8) if len(str(size + count)) == count)
    return b"%d %s=%s\n" % (size + digits, key, value)


def _parts(entry: Entry) -> bytes:
    """Raises BackupError `backup-name` for parts that no file has."""
    at, size = 0, 0
    for offset, length in entry.parts:
        if offset < at or length < 1:
            raise BackupError(f"{entry.path!r:.200}: parts of it lie over each other", reason="backup-name")
        at, size = offset + length, size + length
    if (
        entry.kind != "file"
        or len(entry.parts) > MAX_PARTS
        or size != entry.size
        or not at <= entry.length <= MAX_LENGTH
    ):
        raise BackupError(f"{entry.path!r:.200}: holes that cannot be kept", reason="backup-name")
    return " ".join(map(str, [entry.length, *(number for part in entry.parts for number in part)])).encode()


def _header(entry: Entry, code: bytes, prefix: bytes, name: bytes, target: bytes) -> bytes:
    fields = (
        name,
        b"%07o\0" % (entry.mode & _PERMISSIONS),
        b"%07o\0" % entry.uid,
        b"%07o\0" % entry.gid,
        b"%011o\0" % entry.size,
        b"%011o\0" % entry.mtime,
        b" " * 8,
        code,
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


def decode(block: bytes, front: bytes = b"") -> Entry:
    """The entry of a header; front: the extended one before it, padding included. Raises BackupError `backup-tar` for
    everything that `encode` does not write."""
    name, mode, uid, gid, size, mtime, _, code, target, *_, prefix = _HEADER.unpack(block)
    path = b"/".join(part for part in (prefix.rstrip(b"\0"), name.rstrip(b"\0")) if part)
    try:
        long = _records(front[BLOCK:])
        path, target = long.get(b"path", path), long.get(b"linkpath", target)
        length, *ends = map(int, long.get(_SPARSE, b"0").split(b" "))
        parts = tuple(zip(ends[::2], ends[1::2], strict=True))
        kind = _KINDS[code]
        numbers = [int(field[:-1], 8) for field in (mode, uid, gid, size, mtime)]
        text = path.removesuffix(b"/").decode("utf-8", "surrogateescape")
        link = target.rstrip(b"\0").decode("utf-8", "surrogateescape")
        mode, uid, gid, size, mtime = numbers
        entry = Entry(text, kind, mode, uid, gid, size, mtime, link, length, parts)
        if min(numbers) < 0 or encode(entry) != front + block:
            raise ValueError("not written by us")
    except (KeyError, ValueError, struct.error, BackupError) as error:
        raise BackupError("the archive in the backup has a header that is not one of ours", reason="backup-tar") from (
            error
        )
    names = text.split("/")
    if not text or "\0" in text or any(part in ("", ".", "..") for part in names):
        raise BackupError(f"the name {text!r} is not allowed in a backup", reason="backup-name")
    if (kind != "file" and entry.size) or (kind == "link") != bool(entry.target):
        raise BackupError(f"{text!r} contradicts itself", reason="backup-tar")
    return entry


def _records(data: bytes) -> dict[bytes, bytes]:
    """What an extended header says. Raises ValueError."""
    found = {}
    while data.rstrip(b"\0"):
        size = int(data[: data.index(b" ")])
        key, _, value = data[data.index(b" ") + 1 : size - 1].partition(b"=")
        found[key], data = value, data[max(size, 1) :]
    return found


def fits(entry: Entry) -> bool:
    """Whether an archive can hold it."""
    try:
        return bool(encode(entry))
    except BackupError:
        return False


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
    source, kinds, total, names = _Source(pieces), dict[str, str](), 0, 0
    while (block := source.take(BLOCK)) != bytes(BLOCK):
        front = _front(source, block)
        entry = decode(source.take(BLOCK) if front else block, front)
        total += entry.size
        names += _claim(entry, kinds)
        if len(kinds) > 2 * MAX_ENTRIES or total > limit or names > MAX_NAMES:
            raise too_big()
        content = source.give(entry.size)
        yield entry, content
        for _ in content:
            pass
        if source.take(-entry.size % BLOCK).strip(b"\0"):
            raise BackupError("there is something between the files of the archive", reason="backup-tar")
    if source.take(BLOCK).strip(b"\0") or not source.ended():
        raise BackupError("there is something behind the end of the archive", reason="backup-tar")


def _front(source: _Source, block: bytes) -> bytes:
    """The whole of an extended header that begins with `block`; empty when it is another one."""
    if block[156:157] != _EXTENDED:
        return b""
    size = int(block[124:135], 8) if re.fullmatch(rb"[0-7]{11}", block[124:135]) else 0
    if not 0 < size <= _MAX_FRONT:
        raise BackupError("the archive in the backup has a header that is not one of ours", reason="backup-tar")
    return block + source.take(size + -size % BLOCK)


def _claim(entry: Entry, kinds: dict[str, str]) -> int:
    """Every name once, and only below folders; folders that are only meant by a name may still come. Bytes of the
    names that are new."""
    above, new = entry.path, len(entry.path)
    while "/" in above:
        above = above.rpartition("/")[0]
        new += len(above) if above not in kinds else 0
        if kinds.setdefault(above, "meant") not in ("meant", "folder"):
            raise BackupError(f"{entry.path!r} is below something that is not a folder", reason="backup-name")
    if kinds.get(entry.path, "meant") != "meant" or (entry.path in kinds and entry.kind != "folder"):
        raise BackupError(f"{entry.path!r} is there twice", reason="backup-name")
    kinds[entry.path] = entry.kind
    return new


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


def _split(path: bytes) -> tuple[bytes, bytes] | None:
    """Prefix and name of a path: as much as fits into the name, the rest, up to a slash, before it. None: too long."""
    if len(path) <= 100:
        return b"", path
    place = path.find(b"/", len(path) - 101, len(path) - 1)
    return (path[:place], path[place + 1 :]) if 0 < place <= 155 else None
