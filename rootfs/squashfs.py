"""Reading a squashfs image that another program wrote, to see whether it holds what it should.

The format: Linux, fs/squashfs/squashfs_fs.h (version 4.0, little-endian), compressed with zstd. Blocks are decompressed
by the host's `zstd`, all frames of a step in one go; each says its own size (RFC 8878, 3.1.1.1).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from buildsys.run import CommandError, find_tool, run
from common.errors import CheckError
from packages.mix.manifest import MAX_FILES, MAX_SIZE, Entry

_SUPER = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")
_MAGIC, _ZSTD = 0x73717368, 6
_META = 8192  # bytes of a metadata block, unpacked
_RAW_META, _RAW_DATA = 1 << 15, 1 << 24  # set in a size: the block is stored as it is
_NO_FRAGMENT = _NO_XATTR = 0xFFFFFFFF
_NO_TABLE = (1 << 64) - 1
_PREFIXES = ("user.", "trusted.", "security.")
_OUT_OF_LINE = 0x100  # an attribute's value is a reference to the one of another file


class _Block(NamedTuple):
    """Bytes of the image: where they begin, how many, and whether they are packed."""

    start: int
    size: int
    packed: bool


@dataclass(frozen=True)
class _Table:
    """Consecutive metadata blocks, unpacked, and at which byte of them each block (by its place) begins."""

    data: bytes
    at: dict[int, int]

    def unpack(self, form: str, position: int) -> tuple[Any, ...]:
        return struct.unpack_from("<" + form, self.data, position)

    def take(self, position: int, size: int) -> bytes:
        if position + size > len(self.data):
            raise ValueError("a table ends early")
        return self.data[position : position + size]


@dataclass(frozen=True)
class _Content:
    """Where a file's bytes are: blocks in order (None: zeros), then `tail` bytes of a fragment from `offset` on."""

    size: int
    blocks: Sequence[_Block | None]
    fragment: int
    offset: int


def read_squashfs(image: Path, work: Path) -> dict[str, Entry]:
    """Path → what the image says of it, hash of the content included; the root folder has the path "".

    `work` is a folder for scratch files. Raises CheckError `image-unreadable`.
    """
    try:
        with image.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Image(data, work).entries()
    except (CommandError, ValueError, KeyError, IndexError, struct.error, OverflowError, RecursionError) as error:
        raise CheckError(f"{image.name} cannot be read back: {error}", reason="image-unreadable") from error


class _Image:
    def __init__(self, data: mmap.mmap, work: Path) -> None:
        self._data, self._work = data, work
        magic, *fields = _SUPER.unpack_from(data)
        if magic != _MAGIC or fields[4] != _ZSTD or fields[8:10] != [4, 0]:
            raise ValueError("not squashfs 4.0 with zstd")
        self._block, fragments, ids = fields[2], fields[3], fields[7]
        self._root, used, id_index, xattr_index, inodes, folders, fragment_index, _ = fields[10:]
        if not 4096 <= self._block <= 1 << 20 or used > len(data):
            raise ValueError("the superblock points outside the image")
        first_id = self._index(id_index)
        first_fragment = self._index(fragment_index) if fragments else first_id
        self._inodes, self._folders = self._table(inodes, folders), self._table(folders, first_fragment)
        raw = self._table(first_id, id_index).data
        self._ids = struct.unpack(f"<{ids}I", raw[: 4 * ids])
        raw = self._table(first_fragment, fragment_index).data if fragments else b""
        found = [struct.unpack_from("<QII", raw, 16 * number) for number in range(fragments)]
        self._fragments = self._unpack([self._stored(start, size) for start, size, _ in found])
        self._xattrs = list(self._attributes(xattr_index)) if xattr_index != _NO_TABLE else []

    def entries(self) -> dict[str, Entry]:
        found: dict[str, tuple[Entry, _Content | None]] = {}
        self._walk("", self._root, found)
        contents = [content for _, content in found.values() if content is not None]
        hashes = iter(self._hashes(contents))
        return {
            path: entry if content is None else Entry(**{**vars(entry), "sha256": next(hashes)})
            for path, (entry, content) in found.items()
        }

    def _walk(self, path: str, reference: int, found: dict[str, tuple[Entry, _Content | None]]) -> None:
        if path in found or len(found) > MAX_FILES:
            raise ValueError("a path is there twice, or there are too many")
        position = self._inodes.at[reference >> 16] + (reference & 0xFFFF)
        kind, mode, uid, gid, _, _ = self._inodes.unpack("HHHHII", position)
        place = position + 16
        owner = {"mode": mode, "uid": self._ids[uid], "gid": self._ids[gid]}
        if kind in (1, 8):
            block, size, offset, xattr = self._folder(kind, place)
            found[path] = (Entry(path, "dir", **owner, xattrs=self._xattr(xattr)), None)
            for name, child in self._names(block, offset, size - 3):
                self._walk(f"{path}/{name}" if path else name, child, found)
        elif kind in (2, 9):
            content, xattr = self._file(kind, place)
            found[path] = (Entry(path, "file", **owner, size=content.size, xattrs=self._xattr(xattr)), content)
        elif kind in (3, 10):
            _, size = self._inodes.unpack("II", place)
            target = self._inodes.take(place + 8, size).decode("utf-8", "surrogateescape")
            xattr = self._inodes.unpack("I", place + 8 + size)[0] if kind == 10 else _NO_XATTR
            found[path] = (Entry(path, "symlink", **owner, target=target, xattrs=self._xattr(xattr)), None)
        else:
            raise ValueError(f"/{path} is of type {kind}")

    def _folder(self, kind: int, place: int) -> tuple[int, int, int, int]:
        if kind == 1:
            block, _, size, offset, _ = self._inodes.unpack("IIHHI", place)
            return block, size, offset, _NO_XATTR
        _, size, block, _, _, offset, xattr = self._inodes.unpack("IIIIHHI", place)
        return block, size, offset, xattr

    def _file(self, kind: int, place: int) -> tuple[_Content, int]:
        form = "IIII" if kind == 2 else "QQQIIII"
        values = self._inodes.unpack(form, place)
        if kind == 2:
            start, fragment, offset, size = values
            xattr = _NO_XATTR
        else:
            start, size, _, _, fragment, offset, xattr = values
        if size > MAX_SIZE:
            raise ValueError(f"a file of {size} bytes")
        count = -(-size // self._block) if fragment == _NO_FRAGMENT else size // self._block
        blocks: list[_Block | None] = []
        for word in self._inodes.unpack(f"{count}I", place + struct.calcsize("<" + form)):
            blocks.append(self._stored(start, word) if word else None)
            start += word & ~_RAW_DATA
        return _Content(size, blocks, fragment, offset), xattr

    def _names(self, block: int, offset: int, size: int) -> Iterator[tuple[str, int]]:
        """The names in a folder, each with the reference of its inode."""
        if size <= 0:
            return
        at = self._folders.at[block] + offset
        end = at + size
        while at < end:
            count, start, _ = self._folders.unpack("III", at)
            at += 12
            for _ in range(count + 1):
                inode, _, _, length = self._folders.unpack("HhHH", at)
                yield self._folders.take(at + 8, length + 1).decode("utf-8", "surrogateescape"), start << 16 | inode
                at += 9 + length

    def _xattr(self, number: int) -> dict[str, bytes]:
        return {} if number == _NO_XATTR else self._xattrs[number]

    def _attributes(self, place: int) -> Iterator[dict[str, bytes]]:
        """The sets of extended attributes, by number."""
        values, count, _ = struct.unpack_from("<QII", self._data, place)
        first = self._index(place + 16)
        sets, pairs = self._table(first, place).data, self._table(values, first)
        for number in range(count):
            reference, length, _ = struct.unpack_from("<QII", sets, 16 * number)
            at = pairs.at[reference >> 16] + (reference & 0xFFFF)
            found: dict[str, bytes] = {}
            for _ in range(length):
                kind, size = pairs.unpack("HH", at)
                name = _PREFIXES[kind & 0xFF] + pairs.take(at + 4, size).decode("utf-8", "surrogateescape")
                at += 4 + size
                (size,) = pairs.unpack("I", at)
                value, at = at + 4, at + 4 + size
                if kind & _OUT_OF_LINE:
                    (other,) = pairs.unpack("Q", value)
                    value = pairs.at[other >> 16] + (other & 0xFFFF) + 4
                    (size,) = pairs.unpack("I", value - 4)
                found[name] = pairs.take(value, size)
            yield found

    def _hashes(self, contents: Sequence[_Content]) -> Iterator[str]:
        """SHA-256 of each content, in this order."""
        blocks = [block for content in contents for block in content.blocks if block is not None]
        pieces = self._unpacked(blocks)
        for content in contents:
            digest, left = hashlib.sha256(), content.size
            for block in content.blocks:
                piece = next(pieces) if block is not None else bytes(min(left, self._block))
                if len(piece) != min(left, self._block):
                    raise ValueError("a block has another size than its file says")
                digest.update(piece)
                left -= len(piece)
            if left:
                tail = self._fragments[content.fragment][content.offset : content.offset + left]
                if len(tail) != left:
                    raise ValueError("a fragment ends early")
                digest.update(tail)
            yield digest.hexdigest()

    def _index(self, place: int) -> int:
        return int(struct.unpack_from("<Q", self._data, place)[0])

    def _stored(self, start: int, word: int) -> _Block:
        return _Block(start, word & ~_RAW_DATA, not word & _RAW_DATA)

    def _table(self, start: int, end: int) -> _Table:
        blocks: list[_Block] = []
        place = start
        while place < end:
            (word,) = struct.unpack_from("<H", self._data, place)
            blocks.append(_Block(place + 2, word & ~_RAW_META, not word & _RAW_META))
            place += 2 + (word & ~_RAW_META)
        at: dict[int, int] = {}
        pieces, size = self._unpack(blocks), 0
        for block, piece in zip(blocks, pieces, strict=True):
            if len(piece) > _META:
                raise ValueError("a metadata block is too large")
            at[block.start - 2 - start] = size
            size += len(piece)
        return _Table(b"".join(pieces), at)

    def _unpack(self, blocks: Sequence[_Block]) -> list[bytes]:
        return list(self._unpacked(blocks))

    def _unpacked(self, blocks: Sequence[_Block]) -> Iterator[bytes]:
        """The content of each block; what is packed goes through one `zstd`."""
        frames, out = self._work / "frames.zst", self._work / "frames"
        sizes: list[int] = []
        with frames.open("wb") as stream:
            for block in blocks:
                if block.packed:
                    data = self._bytes(block)
                    sizes.append(_frame_size(data, max(self._block, _META)))
                    stream.write(data)
        if sizes:
            run([find_tool("zstd"), "-d", "-q", "-f", frames, "-o", out])
        else:
            out.write_bytes(b"")
        with out.open("rb") as plain:
            yield from self._pieces(blocks, iter(sizes), plain)
            if plain.read(1):
                raise ValueError("more was packed than its frames say")
        frames.unlink()
        out.unlink()

    def _pieces(self, blocks: Sequence[_Block], sizes: Iterator[int], plain: IO[bytes]) -> Iterator[bytes]:
        for block in blocks:
            yield plain.read(next(sizes)) if block.packed else self._bytes(block)

    def _bytes(self, block: _Block) -> bytes:
        data = self._data[block.start : block.start + block.size]
        if len(data) != block.size:
            raise ValueError("a block lies outside the image")
        return data


def _frame_size(frame: bytes, limit: int) -> int:
    """Bytes that a zstd frame unpacks to, as its header says. Raises ValueError when it does not, or above `limit`."""
    if frame[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("a block is no zstd frame")
    flags = frame[4]
    single = flags >> 5 & 1
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    size = int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)
    if not width or not size <= limit:
        raise ValueError(f"a zstd frame of {size} bytes")
    return size
