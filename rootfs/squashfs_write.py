"""Writing a squashfs image (Linux, fs/squashfs/squashfs_fs.h, version 4.0, zstd).

Our own, so that the same tree gives the same image on every build host, and so that an update can make its blocks again
on the device: `zstd` here is the library that the image carries (`common.bundle.frames`), not whichever one the host's
tools were linked with.

On the disk: superblock, blocks of files, then the tables of inodes, folders, fragments, owners and attributes. A table
is a run of metadata blocks (8 KiB before packing, each with its size in two bytes in front); the last three are found
through an index of the places of their blocks. A file below the block size shares a block (a fragment) with others.
"""

from __future__ import annotations

import stat
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from common.bundle.frames import pack
from common.errors import CheckError
from packages.mix.manifest import Entry
from rootfs.compose import RootFile

_SUPER = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")
_MAGIC, _ZSTD = 0x73717368, 6
_META = 8192  # bytes of a metadata block before packing
_RAW_META, _RAW_DATA = 1 << 15, 1 << 24  # set in a size: stored as it is, because packing did not make it smaller
_NONE, _NO_TABLE = 0xFFFFFFFF, (1 << 64) - 1
_DUPLICATES, _NO_XATTRS = 1 << 6, 1 << 9  # flags
_PREFIXES = ("user.", "trusted.", "security.")
_DIR, _FILE, _LINK = 1, 2, 3
_EXTENDED = 7  # added to a type: the inode has a field for attributes, and wider ones
_RUN = 256  # names below one header of a folder's listing
PAD = 4096

Placed = Callable[[int, int], None]  # hears where a block lies and its size word


@dataclass
class _Node:
    """A path of the tree, with its number and what its inode needs."""

    entry: Entry
    source: Path | None
    number: int = 0
    children: dict[bytes, _Node] = field(default_factory=dict)
    start: int = 0
    blocks: list[int] = field(default_factory=list)
    fragment: int = _NONE
    offset: int = 0


class _Table:
    """Metadata blocks in the making."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._open = bytearray()
        self.packed = bytearray()
        self.starts: list[int] = []

    def place(self) -> tuple[int, int]:
        """(place of the block among the packed ones, byte in it) of what is added next."""
        return len(self.packed), len(self._open)

    def add(self, data: bytes) -> None:
        self._open += data
        while len(self._open) >= _META:
            self._close(bytes(self._open[:_META]))
            del self._open[:_META]

    def finish(self) -> bytes:
        if self._open:
            self._close(bytes(self._open))
            self._open.clear()
        return bytes(self.packed)

    def _close(self, block: bytes) -> None:
        self.starts.append(len(self.packed))
        packed = pack(block, self._level)
        raw = len(packed) >= len(block)
        data = block if raw else packed
        self.packed += struct.pack("<H", len(data) | (_RAW_META if raw else 0)) + data


def write_squashfs(files: Sequence[RootFile], image: Path, *, epoch: int, block: int, level: int, jobs: int) -> None:
    """Write the tree as `image`, padded to 4 KiB; every time stamp is `epoch`.

    block: bytes of a block, a power of two from 4096 to 1 MiB; level: of zstd; `jobs` threads, which do not change the
    bytes. Raises CheckError `squashfs-entry` for what the format cannot hold.
    """
    root = _tree(files)
    with image.open("wb") as out, ThreadPoolExecutor(jobs) as threads:
        out.write(bytes(_SUPER.size))
        fragments = _Contents(out, threads, block, level, 4 * jobs).write(root)
        _Tables(out, root, epoch, level).write(block, fragments)


def _tree(files: Sequence[RootFile]) -> _Node:
    root = _Node(Entry("", "dir", 0o755), None)
    folders = {"": root}
    for file in sorted(files, key=lambda one: one.entry.path.encode("utf-8", "surrogateescape")):
        parent, _, name = file.entry.path.rpartition("/")
        node = _Node(file.entry, file.source)
        if parent not in folders or folders[parent].entry.type != "dir":
            raise CheckError(f"/{file.entry.path} is in no folder", reason="squashfs-entry", hint="see its package")
        folders[parent].children[name.encode("utf-8", "surrogateescape")] = node
        folders[file.entry.path] = node
    for number, node in enumerate(_walk(root), 1):
        node.number = number
    return root


def _walk(node: _Node) -> Iterator[_Node]:
    yield node
    for _, child in sorted(node.children.items()):
        yield from _walk(child)


class _Contents:
    """The blocks of all files. Files of the same content share them."""

    def __init__(self, out: BinaryIO, threads: ThreadPoolExecutor, block: int, level: int, depth: int) -> None:
        self._out, self._threads, self._block, self._level, self._depth = out, threads, block, level, depth
        self._waiting: deque[tuple[Future[bytes], bytes, Placed]] = deque()
        self._open = bytearray()
        self._fragments: list[tuple[int, int]] = []

    def write(self, root: _Node) -> list[tuple[int, int]]:
        """Write them behind what is there; the place and size word of each fragment."""
        known: dict[str, _Node] = {}
        copies: list[tuple[_Node, _Node]] = []
        for node in _walk(root):
            if node.entry.type != "file" or not node.entry.size or node.source is None:
                continue
            first = known.setdefault(node.entry.sha256, node)
            if first is not node:
                copies.append((node, first))
            elif node.entry.size < self._block:
                self._small(node, node.source.read_bytes())
            else:
                self._large(node, node.source)
        self._fragment()
        self._settle(0)
        for node, first in copies:
            node.start, node.blocks = first.start, first.blocks
            node.fragment, node.offset = first.fragment, first.offset
        return self._fragments

    def _small(self, node: _Node, data: bytes) -> None:
        _sized(node, len(data))
        if len(self._open) + len(data) > self._block:
            self._fragment()
        node.fragment, node.offset = len(self._fragments), len(self._open)
        self._open += data

    def _large(self, node: _Node, source: Path) -> None:
        def placed(place: int, word: int) -> None:
            if not node.blocks:
                node.start = place
            node.blocks.append(word)

        total = 0
        with source.open("rb") as stream:
            while data := stream.read(self._block):
                self._add(data, placed)
                total += len(data)
        _sized(node, total)

    def _fragment(self) -> None:
        if self._open:
            number = len(self._fragments)
            self._fragments.append((0, 0))
            self._add(bytes(self._open), lambda place, word: self._fragments.__setitem__(number, (place, word)))
            self._open.clear()

    def _add(self, data: bytes, placed: Placed) -> None:
        self._waiting.append((self._threads.submit(pack, data, self._level), data, placed))
        self._settle(self._depth)

    def _settle(self, depth: int) -> None:
        """Write blocks, in order, until no more than `depth` are waiting."""
        while len(self._waiting) > depth:
            future, data, placed = self._waiting.popleft()
            packed, place = future.result(), self._out.tell()
            raw = len(packed) >= len(data)
            self._out.write(data if raw else packed)
            placed(place, len(data) | _RAW_DATA if raw else len(packed))


def _sized(node: _Node, size: int) -> None:
    if size != node.entry.size:
        raise CheckError(
            f"/{node.entry.path} has {size} bytes, its manifest says {node.entry.size}",
            reason="squashfs-entry",
            hint="build the package again",
        )


class _Tables:
    """What says which files there are."""

    def __init__(self, out: BinaryIO, root: _Node, epoch: int, level: int) -> None:
        self._out, self._root, self._epoch, self._level = out, root, epoch, level
        nodes = list(_walk(root))
        self._count = len(nodes)
        self._ids = sorted({number for node in nodes for number in (node.entry.uid, node.entry.gid)})
        self._sets: dict[tuple[tuple[str, bytes], ...], int] = {}
        self._inodes, self._folders = _Table(level), _Table(level)

    def write(self, block: int, fragments: Sequence[tuple[int, int]]) -> None:
        reference = self._inode(self._root, self._count + 1)
        places = [self._out.tell()]
        self._out.write(self._inodes.finish())
        places.append(self._out.tell())
        self._out.write(self._folders.finish())
        rows = b"".join(struct.pack("<QII", start, size, 0) for start, size in fragments)
        places.append(self._indexed(rows))
        owners = self._indexed(struct.pack(f"<{len(self._ids)}I", *self._ids))
        attributes = self._attributes() if self._sets else _NO_TABLE
        used = self._out.tell()
        self._out.write(bytes(-used % PAD))
        self._out.seek(0)
        flags = _DUPLICATES | (0 if self._sets else _NO_XATTRS)
        numbers = (self._count, self._epoch, block, len(fragments), _ZSTD, block.bit_length() - 1, flags)
        tables = (reference, used, owners, attributes, *places, _NO_TABLE)
        self._out.write(_SUPER.pack(_MAGIC, *numbers, len(self._ids), 4, 0, *tables))

    def _inode(self, node: _Node, parent: int) -> int:
        """Write the inodes of what is below a node and then its own; the reference of it."""
        kind, body = {"dir": self._folder, "file": self._file, "symlink": self._link}[node.entry.type](node, parent)
        block, at = self._inodes.place()
        entry = node.entry
        owner = (self._ids.index(entry.uid), self._ids.index(entry.gid))
        self._inodes.add(struct.pack("<HHHHII", kind, stat.S_IMODE(entry.mode), *owner, self._epoch, node.number))
        self._inodes.add(body)
        return block << 16 | at

    def _folder(self, node: _Node, parent: int) -> tuple[int, bytes]:
        rows = [(name, child, self._inode(child, node.number)) for name, child in sorted(node.children.items())]
        block, at = self._folders.place()
        size = 3 + self._listing(rows)
        links = 2 + sum(child.entry.type == "dir" for _, child, _ in rows)
        attributes = self._set(node.entry)
        if attributes == _NONE and size <= 0xFFFF:
            return _DIR, struct.pack("<IIHHI", block, links, size, at, parent)
        return _DIR + _EXTENDED, struct.pack("<IIIIHHI", links, size, block, parent, 0, at, attributes)

    def _listing(self, rows: Sequence[tuple[bytes, _Node, int]]) -> int:
        """Write the names of a folder; how many bytes they take."""
        size = at = 0
        while at < len(rows):
            _, first, reference = rows[at]
            run = [
                row
                for row in rows[at : at + _RUN]
                if row[2] >> 16 == reference >> 16 and abs(row[1].number - first.number) < 1 << 15
            ]
            run = run[: next((n for n, row in enumerate(run) if row is not rows[at + n]), len(run))]
            parts = [struct.pack("<III", len(run) - 1, reference >> 16, first.number)]
            for name, child, place in run:
                kind = {"dir": _DIR, "file": _FILE, "symlink": _LINK}[child.entry.type]
                parts.append(struct.pack("<HhHH", place & 0xFFFF, child.number - first.number, kind, len(name) - 1))
                parts.append(name)
            data = b"".join(parts)
            self._folders.add(data)
            size += len(data)
            at += len(run)
        return size

    def _file(self, node: _Node, parent: int) -> tuple[int, bytes]:
        attributes = self._set(node.entry)
        blocks = struct.pack(f"<{len(node.blocks)}I", *node.blocks)
        if attributes == _NONE and max(node.start, node.entry.size) < 1 << 32:
            return _FILE, struct.pack("<IIII", node.start, node.fragment, node.offset, node.entry.size) + blocks
        numbers = (node.start, node.entry.size, 0, 1, node.fragment, node.offset, attributes)
        return _FILE + _EXTENDED, struct.pack("<QQQIIII", *numbers) + blocks

    def _link(self, node: _Node, parent: int) -> tuple[int, bytes]:
        target = node.entry.target.encode("utf-8", "surrogateescape")
        attributes = self._set(node.entry)
        body = struct.pack("<II", 1, len(target)) + target
        if attributes == _NONE:
            return _LINK, body
        return _LINK + _EXTENDED, body + struct.pack("<I", attributes)

    def _set(self, entry: Entry) -> int:
        """The number of a set of attributes; equal sets are one."""
        if not entry.xattrs:
            return _NONE
        return self._sets.setdefault(tuple(sorted(entry.xattrs.items())), len(self._sets))

    def _attributes(self) -> int:
        pairs, rows = _Table(self._level), _Table(self._level)
        for attributes in self._sets:
            block, at = pairs.place()
            for name, value in attributes:
                kind = next((number for number, prefix in enumerate(_PREFIXES) if name.startswith(prefix)), None)
                if kind is None:
                    raise CheckError(
                        f"no attribute can be named {name}", reason="squashfs-entry", hint="see its package"
                    )
                short = name[len(_PREFIXES[kind]) :].encode("utf-8", "surrogateescape")
                pairs.add(struct.pack("<HH", kind, len(short)) + short + struct.pack("<I", len(value)) + value)
            size = sum(len(name.encode("utf-8", "surrogateescape")) + 1 + len(value) for name, value in attributes)
            rows.add(struct.pack("<QII", block << 16 | at, len(attributes), size))
        values = self._out.tell()
        self._out.write(pairs.finish())
        starts = self._written(rows)
        place = self._out.tell()
        self._out.write(struct.pack("<QII", values, len(self._sets), 0) + struct.pack(f"<{len(starts)}Q", *starts))
        return place

    def _indexed(self, data: bytes) -> int:
        """Write a table and the index of its blocks; the place of the index."""
        table = _Table(self._level)
        table.add(data)
        starts = self._written(table)
        place = self._out.tell()
        self._out.write(struct.pack(f"<{len(starts)}Q", *starts))
        return place

    def _written(self, table: _Table) -> list[int]:
        place = self._out.tell()
        self._out.write(table.finish())
        return [place + start for start in table.starts]
