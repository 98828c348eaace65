"""Files that survive a power cut whole: written beside, made durable, renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

_LINKS = 40  # that are followed one after the other; as many as the kernel does (MAXSYMLINKS)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`: afterwards, or after a crash at any moment, it has the old content or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    write_durably(temporary, data, mode)
    temporary.rename(path)
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by `data` in one go, as whoever reads it sees it, also when we are killed. A power cut may lose
    it: for what counts until the next boot only."""
    temporary = path.with_name(f".{path.name}.new")
    _write(temporary, data, mode, durable=False)
    temporary.rename(path)


def write_all(folder: Path, files: Mapping[str, bytes], mode: int) -> None:
    """`write_atomically` for many files of a folder: each has its old content or the new one after a crash.

    The disk is waited for once, not once for each.
    """
    written = {name: folder / f".{name}.new" for name in files}
    for name, temporary in written.items():
        _write(temporary, files[name], mode, durable=False)
    for temporary in written.values():
        _sync(temporary, os.O_RDONLY)
    for name, temporary in written.items():
        temporary.rename(folder / name)
    if written:
        sync_folder(folder)


def write_durably(path: Path, data: bytes, mode: int) -> None:
    """Create or truncate `path`, write everything, fsync. The mode is set whatever the umask."""
    _write(path, data, mode, durable=True)


def _write(path: Path, data: bytes, mode: int, *, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        rest = memoryview(data)
        while rest:
            rest = rest[stream.write(rest) :]
        os.fchmod(descriptor, mode)
        if durable:
            os.fsync(descriptor)


def read_regular(path: Path, most: int = -1) -> bytes:
    """The content of a file, its first `most` bytes. Raises OSError, also for what is no file: a pipe would be waited
    for, and a device has no end. Nor is a lease waited for (fcntl(2)), which a file's owner can take again and again.
    Links are followed as `open_place` does: whoever else may write a folder must not have us read what they cannot."""
    place = open_place(path)  # an open device might do something
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, "not a file", os.fspath(path))
        descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read(most)
    finally:
        os.close(place)


def open_place(path: Path, *, make: bool = False, settled: bool = False) -> int:
    """A descriptor (O_PATH) of what is at `path`; make: folders that are missing are made, mode 0755.

    A link is followed, also on the way, if root or we have made it. Others may change folders of theirs on the way at
    any moment; what is done through the descriptor is done where this came by. settled: for what the kernel does by
    path only, nothing on the way is in a folder where others could put something else in its place. Raises OSError.
    """
    waiting, links = list(reversed(path.parts)), 0
    place = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        while waiting:
            name = waiting.pop()
            folder = os.fstat(place)
            if settled and name != "/" and _changed_by_others(folder) and not _sticky(folder):
                raise OSError(errno.EPERM, "others can change a folder on the way", os.fspath(path))
            inner = _step(name, place, make=make)
            found = os.fstat(inner)
            if settled and _sticky(folder) and found.st_uid not in (0, os.geteuid()):
                os.close(inner)
                raise OSError(errno.EPERM, "something of others is on the way", os.fspath(path))
            if not stat.S_ISLNK(found.st_mode):
                os.close(place)
                place = inner
                continue
            try:
                links += 1
                if links > _LINKS or found.st_uid not in (0, os.geteuid()):
                    raise OSError(errno.ELOOP, "a link that is not followed", os.fspath(path))
                waiting += reversed(Path(os.readlink("", dir_fd=inner)).parts)
            finally:
                os.close(inner)
    except BaseException:
        os.close(place)
        raise
    return place


def _changed_by_others(folder: os.stat_result) -> bool:
    """Whether others than root and we, and our group, may make, rename and remove names in it."""
    if folder.st_uid not in (0, os.geteuid()):
        return True
    group = folder.st_mode & stat.S_IWGRP and folder.st_gid not in (0, os.getegid())
    return bool(group or folder.st_mode & stat.S_IWOTH)


def _sticky(folder: os.stat_result) -> bool:
    """Whether names in it belong to whoever made them, as in /tmp; its own owner is above that."""
    return bool(folder.st_mode & stat.S_ISVTX) and folder.st_uid in (0, os.geteuid())


def _step(name: str, place: int, *, make: bool) -> int:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=place)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=place)
    return os.open(name, flags, dir_fd=place)


@contextlib.contextmanager
def folder_of(path: Path, *, make: bool = False, settled: bool = False) -> Iterator[int]:
    """The folder of `path` for `dir_fd`, found as `open_place` does: what is made, renamed or removed in it by its last
    name is nowhere else. Raises OSError."""
    folder = open_place(path.parent, make=make, settled=settled)
    try:
        yield folder
    finally:
        os.close(folder)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
