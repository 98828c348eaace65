"""The image that is to be flashed: a file, a packed one (xz, zstd, gzip), or a pipe.

Places in an image are read in any order and checked before the first byte is written to a disk. So what is packed or
comes through a pipe is unpacked first, into a file without a name whose zeros take no room.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from buildsys.run import find_tool, kill_group, spawn
from common.errors import ImageError
from image.host import opened

STDIN = Path("-")
MAX_IMAGE = 1 << 41  # bytes that an image unpacks to at most
_CHUNK = 1 << 20
_BLOCK = 64 << 10  # bytes; so many zeros become a hole
_HEAD = 16  # bytes by which a format is known
_XZ_MEMORY = 512 << 20  # bytes; xz -9 needs 65 MiB

Progress = Callable[[str, int, int], None]
Unpack = Callable[["_Counted"], Iterator[bytes]]

# What people take for an image: how it begins, what it is, what to do.
_FOREIGN: Mapping[bytes, tuple[str, str]] = {
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
    b"QFI\xfb": ("a qcow2 disk of QEMU", "convert it: qemu-img convert -O raw"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it first"),
    b"<!DOCTYPE": ("a web page", "the download gave something else than the image; look at the address"),
    b"<html": ("a web page", "the download gave something else than the image; look at the address"),
}


@contextmanager
def open_image(path: Path, report: Progress, most: int = MAX_IMAGE) -> Iterator[int]:
    """A descriptor of the plain image at `path` ("-": standard input); `report` gets ("unpack", bytes read, bytes in
    all or 0). most: bytes that it may unpack to, which a few of a packed one can do for any number.

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
        for magic, (what, hint) in _FOREIGN.items():
            if head.startswith(magic):
                raise ImageError(f"{name} is {what}, not an image", reason="not-an-image", hint=hint)
        unpack = next((unpack for magic, unpack in _PACKED.items() if head.startswith(magic)), None)
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
            yield target.fileno()


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
            for at in range(0, len(piece), _BLOCK):
                block = piece[at : at + _BLOCK]
                if block != zeros[: len(block)]:
                    _written(target, size, block)
                size += len(block)
            if size > most:
                raise ImageError(f"{name} unpacks to more than the {most} bytes of the disk", reason="disk-too-small")
        target.truncate(size)
        target.flush()
    except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile, ValueError) as error:
        raise ImageError(
            f"{name} is damaged or cut short: {error}", reason="image-damaged", hint="get or make it again"
        ) from error
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


def _xz(stream: _Counted) -> Iterator[bytes]:
    """The content of xz streams one after the other (the .xz file format, 2)."""
    one: lzma.LZMADecompressor | None = None
    data = b""
    while True:
        if one is None or one.eof:
            data = (one.unused_data if one is not None else data).lstrip(b"\0")
            while not data:
                piece = stream.read(_BLOCK)  # small: what is behind a stream is copied with each of many tiny ones
                if not piece:
                    return
                data = piece.lstrip(b"\0")
            one = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        elif one.needs_input:
            data = stream.read(_BLOCK)
            if not data:
                raise EOFError("it ends early")
        yield one.decompress(data, _CHUNK)
        data = b""


def _gzip(stream: _Counted) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=stream) as plain:  # type: ignore[call-overload]  # only read() is called
        while data := plain.read(_CHUNK):
            yield data


def _zstd(stream: _Counted) -> Iterator[bytes]:
    """What the host's zstd makes of it, which takes windows of up to 128 MiB."""
    process = spawn([str(find_tool("zstd")), "-d", "-q", "-c"], stdin=b"", split=True)
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
            raise ValueError(said)
        thread.join()
        if failed:
            raise failed[0]
    finally:
        kill_group(process)


_PACKED: Mapping[bytes, Unpack] = {
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x1f\x8b": _gzip,
}
