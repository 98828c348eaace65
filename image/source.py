"""The image that is to be flashed: a file, a packed one (xz, zstd, gzip, bzip2), or a pipe.

Places in an image are read in any order and checked before the first byte is written to a disk. So what is packed or
comes through a pipe is unpacked first, into a file without a name whose zeros take no room.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from buildsys.run import find_tool, kill_group, spawn
from common.errors import ImageError
from common.units import size as words
from image.host import opened

STDIN = Path("-")
MAX_IMAGE = 1 << 41  # bytes that an image unpacks to at most
_CHUNK = 1 << 20
_BLOCK = 64 << 10  # bytes; so many zeros become a hole
_HEAD = 512  # bytes by which a format is known
_MEMORY = 512 << 20  # bytes that unpacking may take; xz -9 needs 65 MiB, zstd --ultra -22 128 MiB

Progress = Callable[[str, int, int], None]
Unpack = Callable[["_Counted"], Iterator[bytes]]

_CONVERT = "convert it: qemu-img convert -O raw"
_WEB = "the download gave something else than the image; look at the address"
# What people take for an image: where its mark is, the mark, what it is, what to do.
_FOREIGN: Sequence[tuple[int, bytes, str, str]] = (
    (0, b"PK\x03\x04", "a zip archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (257, b"ustar", "a tar archive", "unpack it first"),
    (0, b"\x04\x22\x4d\x18", "packed with lz4", "unpack it first: lz4 -d"),
    (0, b"QFI\xfb", "a qcow2 disk of QEMU", _CONVERT),
    (0, b"KDMV", "a disk of VMware", _CONVERT),
    (0, b"vhdxfile", "a disk of Hyper-V", _CONVERT),
    (0, b"\x3a\xff\x26\xed", "a sparse image of Android", "convert it: simg2img"),
    (0, b"<?xml", "an XML file", "a .bmap file tells about an image: name the image itself"),
    (0, b"<!DOCTYPE", "a web page", _WEB),
    (0, b"<html", "a web page", _WEB),
)


@contextmanager
def open_image(path: Path, report: Progress, most: int = MAX_IMAGE) -> Iterator[int]:
    """A descriptor of the plain image at `path` ("-": standard input); `report` gets ("unpack", bytes read, bytes in
    all or 0). most: bytes that it may unpack to; a few packed ones can stand for any number.

    Raises ImageError: "cannot-open", "not-an-image", "image-damaged", "image-io", "disk-too-small".
    """
    if path == STDIN:
        with _plain(0, "standard input", report, most) as fd:
            yield fd
        return
    with opened(path) as source, _plain(source, str(path), report, most) as fd:
        yield fd


@contextmanager
def _plain(source: int, name: str, report: Progress, most: int) -> Iterator[int]:
    info = os.fstat(source)
    if stat.S_ISDIR(info.st_mode) or stat.S_ISBLK(info.st_mode) or os.isatty(source):
        what = "a folder" if stat.S_ISDIR(info.st_mode) else "a disk" if stat.S_ISBLK(info.st_mode) else "a terminal"
        raise ImageError(f"{name} is {what}, not an image", reason="not-an-image", hint="build one: mixos build")
    regular = stat.S_ISREG(info.st_mode)
    with io.FileIO(source, closefd=False) as raw:
        stream = _Counted(io.BufferedReader(raw, _CHUNK), info.st_size if regular else 0, report)
        head = stream.head
        if not head:
            raise ImageError(f"{name} is empty", reason="not-an-image")
        _refuse_foreign(head, f"{name} is")
        unpack = _unpacker(head)
        if regular and unpack is None:
            yield source
            return
        folder = os.environ.get("TMPDIR") or "/var/tmp"  # /tmp may be memory
        try:
            unnamed = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed below)
        except OSError as error:
            raise ImageError(f"{folder}: {error.strerror}", reason="image-io", hint="set TMPDIR") from error
        with unnamed as target:
            _keep((unpack or _copied)(stream), target, name, most)
            head = os.pread(target.fileno(), _HEAD, 0)
            _refuse_foreign(head, f"{name} holds")
            if _unpacker(head):
                hint = "unpack it once, and flash what comes out"
                raise ImageError(f"{name} is packed twice", reason="not-an-image", hint=hint)
            yield target.fileno()


def _refuse_foreign(head: bytes, subject: str) -> None:
    """Raise ImageError for what is no disk image, by how it begins. subject: the first words of the message."""
    for at, mark, what, hint in _FOREIGN:
        if head.startswith(mark, at):
            raise ImageError(f"{subject} {what}, not an image", reason="not-an-image", hint=hint)


def _unpacker(head: bytes) -> Unpack | None:
    """What unpacks a stream that begins so; None for what is not packed."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:  # a frame to be skipped (RFC 8878, 3.1.2), as of pzstd
        return _zstd
    return next((unpack for mark, unpack in _PACKED.items() if head.startswith(mark)), None)


class _Counted:
    """A stream that tells how much of it has been read. head: how it begins, whole however a pipe brings it."""

    def __init__(self, stream: io.BufferedReader, total: int, report: Progress) -> None:
        self._stream, self._total, self._report = stream, total, report
        self._done = 0
        self.head = self._again = stream.read(_HEAD)

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as many as there are or `size`; fewer or none at the end."""
        most = _CHUNK if size < 0 else size
        data, self._again = self._again[:most], self._again[most:]
        data = data or (self._stream.read1(most) if size < 0 else self._stream.read(most))
        self._done += len(data)
        self._report("unpack", self._done, self._total)
        return data


def _keep(pieces: Iterator[bytes], target: IO[bytes], name: str, most: int) -> None:
    """Write the pieces into an empty file, with holes for zeros. Raises ImageError."""
    size = 0
    zeros = bytes(_BLOCK)
    try:
        for piece in pieces:
            at = 0
            while at < len(piece):  # blocks of the file, whatever the pieces are: its partitions begin with them
                block = piece[at : at + _BLOCK - size % _BLOCK]
                if block != zeros[: len(block)]:
                    _written(target, size, block)
                size += len(block)
                at += len(block)
            if size > most:
                problem = f"{name} unpacks to more than {words(most)}, for which the disk has no room"
                raise ImageError(problem, reason="disk-too-small")
        target.truncate(size)
        target.flush()
    except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile, ValueError) as error:
        hint = f"it is damaged, cut short, or needs more than {_MEMORY >> 20} MiB of memory: get or make it again"
        raise ImageError(f"{name} cannot be unpacked: {error}", reason="image-damaged", hint=hint) from error
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}", reason="image-damaged") from error


def _written(target: IO[bytes], at: int, block: bytes) -> None:
    try:
        target.seek(at)
        target.write(block)
    except OSError as error:
        hint = "there is no room for the unpacked image; set TMPDIR to a folder that has some"
        raise ImageError(f"cannot unpack: {error.strerror}", reason="image-io", hint=hint) from error


def _copied(stream: _Counted) -> Iterator[bytes]:
    while data := stream.read():
        yield data


class _Decompressor(Protocol):
    """Of one stream, as `lzma` and `bz2` have them."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _xz(stream: _Counted) -> Iterator[bytes]:
    """The content of xz streams one after the other, with zeros between them (the .xz file format, 2)."""
    return _streams(stream, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY), padding=b"\0")


def _bzip2(stream: _Counted) -> Iterator[bytes]:
    """The content of bzip2 streams one after the other, as programs with several threads write them."""
    return _streams(stream, bz2.BZ2Decompressor)


def _streams(stream: _Counted, make: Callable[[], _Decompressor], padding: bytes = b"") -> Iterator[bytes]:
    one: _Decompressor | None = None
    data = b""
    while True:
        if one is None or one.eof:
            data = one.unused_data.lstrip(padding) if one is not None else b""
            while not data:
                piece = stream.read(_BLOCK)  # small: what is behind a stream is copied with each of many tiny ones
                if not piece:
                    return
                data = piece.lstrip(padding)
            one = make()
        elif one.needs_input:
            data = stream.read(_BLOCK)
            if not data:
                raise EOFError("it ends early")
        try:
            yield one.decompress(data, _CHUNK)
        except OSError as error:  # so `bz2` says what is not right with the data
            raise ValueError(str(error)) from error
        data = b""


def _gzip(stream: _Counted) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=stream) as plain:  # type: ignore[call-overload]  # only read() is called
        while data := plain.read(_CHUNK):
            yield data


def _zstd(stream: _Counted) -> Iterator[bytes]:
    """What the host's zstd makes of it."""
    process = spawn([str(find_tool("zstd")), "-d", "-q", "-c", f"--memory={_MEMORY >> 20}MB"], stdin=b"", split=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None

    failed: list[OSError] = []

    def feed(pipe: IO[bytes]) -> None:
        try:
            with pipe:
                while data := stream.read():
                    pipe.write(data)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=feed, args=(process.stdin,), daemon=True)
    thread.start()
    try:
        while data := process.stdout.read(_CHUNK):
            yield data
        said = process.stderr.read(4096).decode("utf-8", "replace").strip()
        if process.wait() != 0:
            raise ValueError(said.partition("\n")[0].rpartition(": ")[2])  # without its name for the file and its hints
        thread.join()
        if failed:
            raise failed[0]
    finally:
        kill_group(process)


_PACKED: Mapping[bytes, Unpack] = {
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x1f\x8b": _gzip,
    b"BZh": _bzip2,
}
