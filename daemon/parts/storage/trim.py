"""Telling a disk which blocks are free (FITRIM, fstrim(8))."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from common.errors import RefusedError
from daemon.parts.storage.verdict import HealthError

_FITRIM = 0xC0185879  # linux/fs.h: _IOWR('X', 121, struct fstrim_range)
_RANGE = struct.Struct("=QQQ")  # start, length, shortest piece that is worth it, in bytes


def trim(path: Path) -> int:
    """Discard the free blocks of the file system at `path`; returns bytes. Takes seconds, on large disks minutes.

    Raises RefusedError `trim-unsupported`, HealthError `trim-failed`.
    """
    span = bytearray(_RANGE.pack(0, (1 << 64) - 1, 0))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _FITRIM, span)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            raise RefusedError(f"{path}: its disk or file system knows no trim", reason="trim-unsupported") from error
        raise HealthError(f"{path}: {error.strerror}", reason="trim-failed") from error
    return int(_RANGE.unpack(span)[1])
