"""Writing files so that power loss, `kill -9` and full disks leave the old or the new content, nothing between."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import HostError

_CHUNK = 8 << 20


def cache_root() -> Path:
    """MIXOS_CACHE, or mixos/ below the user's cache folder (XDG base directory specification).

    Raises HostError (folder-unknown) when neither is known.
    """
    named = named_folder("MIXOS_CACHE")
    if named is not None:
        return named
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "mixos"
    except RuntimeError as error:
        hint = "set MIXOS_CACHE or HOME"
        raise HostError("this user has no home folder for a cache", reason="folder-unknown", hint=hint) from error


def named_folder(variable: str) -> Path | None:
    """The folder that an environment variable names, if it is set. Raises HostError (folder-unknown)."""
    named = os.environ.get(variable)
    try:
        return Path(named).expanduser().absolute() if named else None
    except RuntimeError as error:
        raise HostError(f"{variable}={named}: {error}", reason="folder-unknown") from error


def atomic_write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`: new file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = os.fspath(path), None  # of which a full disk knows nothing
        raise
    sync_folder(path.parent)


@contextmanager
def exclusive(path: Path, blocked: Callable[[], None]) -> Iterator[int]:
    """Hold the lock file `path`, whose descriptor is given; `blocked` is called, also to raise, while another has it.

    Others than the owner and the group cannot take it. A process that inherits the descriptor keeps it locked.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                blocked()
                time.sleep(0.2)
        yield lock
    finally:
        os.close(lock)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file without writing its holes; `target` appears under its name only when it is complete.

    Raises HostError when the disk is full. Holes are found with SEEK_DATA/SEEK_HOLE (lseek(2)).
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with source.open("rb", buffering=0) as reader, temporary.open("wb", buffering=0) as writer:
            size = os.fstat(reader.fileno()).st_size
            writer.truncate(size)
            for start, end in data_ranges(reader.fileno(), size):
                os.lseek(reader.fileno(), start, os.SEEK_SET)
                os.lseek(writer.fileno(), start, os.SEEK_SET)
                left = end - start
                while left:
                    moved = os.sendfile(writer.fileno(), reader.fileno(), None, min(left, _CHUNK))
                    if moved == 0:
                        raise HostError(f"{source} became shorter while it was copied", reason="copy-short")
                    left -= moved
            os.fsync(writer.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HostError(
            f"cannot write {target}: {error.strerror}", reason="write-failed", hint="is the disk full?"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def data_ranges(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The (start, end) ranges of a file that hold data."""
    ranges: list[tuple[int, int]] = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # only a hole is left; anything else must not pass for one
                raise
            break
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        ranges.append((start, offset))
    return ranges


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder and all in it, also folders that forbid reading or writing; missing is fine."""

    def retry(function: Callable[..., Any], name: str, error: BaseException) -> None:
        if isinstance(error, FileNotFoundError):
            return
        if not isinstance(error, PermissionError):
            raise error
        if Path(name) != path:
            Path(name).parent.chmod(stat.S_IRWXU)
        if not Path(name).is_symlink():
            Path(name).chmod(stat.S_IRWXU)
        if function in (os.unlink, os.rmdir):
            function(name)
        else:  # the folder could not be opened or listed, so nothing below it was removed yet
            remove_tree(Path(name))

    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        if sys.version_info >= (3, 12):
            shutil.rmtree(path, onexc=retry)
        else:
            shutil.rmtree(path, onerror=lambda function, name, info: retry(function, name, info[1]))
