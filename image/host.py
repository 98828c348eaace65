"""Files and devices on the host: opening, copying, and saying which one an error of a format is about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import FormatError, ImageError


@contextmanager
def image_errors(what: object) -> Iterator[None]:
    """Say which file or device a FormatError is about."""
    try:
        yield
    except FormatError as error:
        raise ImageError(f"{what}: {error.message}", reason=error.reason) from error


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """A descriptor of `path`, closed at the end. Raises ImageError when it cannot be opened."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
    except OSError as error:
        raise ImageError(f"cannot open {path}: {error.strerror}", reason="cannot-open") from error
    try:
        yield fd
    finally:
        os.close(fd)


def copy_range(source: int, target: int, start: int, end: int, to: int) -> None:
    """Copy bytes start..end of one file to offset `to` of another, in the kernel, sharing extents where it can."""
    while start < end:
        try:
            done = os.copy_file_range(source, target, end - start, start, to)
        except OSError:  # EXDEV, EOPNOTSUPP, EINVAL: file systems that cannot; plain copy below
            chunk = os.pread(source, min(1 << 20, end - start), start)
            done = os.pwrite(target, chunk, to)
        if done == 0:
            raise ImageError(f"the source ended {end - start} bytes early", reason="short-read")
        start += done
        to += done
