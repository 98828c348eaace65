"""Files that survive a power cut whole: written beside, made durable, renamed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
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
    for, and a device has no end. A link is followed if root or we have made it: whoever else may write a folder must
    not have us read what they cannot."""
    for _ in range(_LINKS):
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # an open device might do something
        try:
            found = os.fstat(place)
            if stat.S_ISREG(found.st_mode):
                with Path(f"/proc/self/fd/{place}").open("rb") as stream:
                    return stream.read(most)
            if not stat.S_ISLNK(found.st_mode):
                raise OSError(errno.EINVAL, "not a file", os.fspath(path))
            if found.st_uid not in (0, os.geteuid()):
                break
            path = path.parent / os.readlink("", dir_fd=place)
        finally:
            os.close(place)
    raise OSError(errno.ELOOP, "a link that is not followed", os.fspath(path))


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
