"""Project quotas of ext4, by system call: nothing of it is in Python's standard library.

quotactl_fd(2) needs a descriptor on the file system, so no device node; FS_IOC_FSSETXATTR (linux/fs.h) gives a file or
folder its project. A folder with FS_XFLAG_PROJINHERIT hands its project on to what is made in it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import MixosError, RefusedError

_SYS_QUOTACTL_FD = 443  # the same on all architectures: asm-generic/unistd.h
_PRJQUOTA = 2
_Q_QUOTAON, _Q_GETQUOTA, _Q_SETQUOTA = 0x800002, 0x800007, 0x800008
_BLIMITS, _SPACE = 1, 2  # dqb_valid
_DQBLK = struct.Struct("=8QI4x")  # struct if_dqblk, linux/quota.h
_UNIT = 1024  # bytes: limits count in these, the space in use in bytes
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_FSXATTR = struct.Struct("=IIIII8x")  # struct fsxattr: flags, extent size, extents, project, cow extent size
_PROJINHERIT = 0x200
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class QuotaError(MixosError):
    """A quota cannot be set or read."""

    exit_code = 8


@dataclass(frozen=True)
class Usage:
    """Of one project, in bytes. limit: None without one; files: how many it has."""

    used: int
    limit: int | None
    files: int


def enforce(folder: Path) -> None:
    """Let the file system of `folder` enforce project quotas; it only counts unless it was mounted with `prjquota`.

    Raises RefusedError `quota-unsupported`: the file system was made without the feature.
    """
    try:
        _quotactl(folder, _Q_QUOTAON, 0, None)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EEXIST):  # those mean: it does already
            raise _explained(folder, error) from error


def get(folder: Path, project: int) -> Usage:
    """What a project uses. Raises RefusedError `quota-unsupported`, QuotaError `quota-failed`."""
    block = ctypes.create_string_buffer(_DQBLK.size)
    try:
        _quotactl(folder, _Q_GETQUOTA, project, block)
    except OSError as error:
        raise _explained(folder, error) from error
    return decode(block.raw)


def put(folder: Path, project: int, limit: int | None) -> None:
    """Set (None: take away) a project's limit in bytes. Raises like `get`."""
    try:
        _quotactl(folder, _Q_SETQUOTA, project, ctypes.create_string_buffer(encode(limit), _DQBLK.size))
    except OSError as error:
        raise _explained(folder, error) from error


def encode(limit: int | None) -> bytes:
    """struct if_dqblk with hard and soft limit; 0 means none, so a limit is at least one block."""
    blocks = 0 if limit is None else max(1, -(-limit // _UNIT))
    return _DQBLK.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _BLIMITS)


def decode(block: bytes) -> Usage:
    """What the kernel told."""
    hard, _, used, _, _, files, *_ = _DQBLK.unpack(block)
    return Usage(used, hard * _UNIT or None, files)


def project_of(folder: Path) -> int:
    """The project of a file or folder; 0 is none. Raises RefusedError `quota-unsupported`."""
    try:
        descriptor = os.open(folder, _FLAGS)
        try:
            return int(_FSXATTR.unpack(_attributes(descriptor))[3])
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _explained(folder, error) from error


def assign(top: Path, project: int, limit: int = 500_000) -> int:
    """Give a folder and everything in it a project; how many names. Nothing that the unit puts there is followed.

    Raises RefusedError `quota-unsupported`, QuotaError `quota-too-many` (more than `limit` names), `quota-failed`.
    """
    count = 0
    try:
        for descriptor in _below(top):
            _assign(descriptor, project)
            count += 1
            if count > limit:
                raise QuotaError(f"{top} has more than {limit} names", reason="quota-too-many")
    except OSError as error:
        raise _explained(top, error) from error
    return count


def _below(top: Path) -> Iterator[int]:
    """An open descriptor of each folder, then of the files in it; it is closed when the next one is taken."""
    for _, _, names, folder in os.fwalk(top, follow_symlinks=False):
        yield folder
        for name in names:
            try:
                if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    continue  # a link or pipe takes no blocks; opening a device could do harm
                descriptor = os.open(name, _FLAGS, dir_fd=folder)
            except OSError:
                continue  # it is gone, or has become something else
            try:
                yield descriptor
            finally:
                os.close(descriptor)


def _assign(descriptor: int, project: int) -> None:
    flags, extent, extents, _, cow = _FSXATTR.unpack(_attributes(descriptor))
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        flags = flags | _PROJINHERIT if project else flags & ~_PROJINHERIT
    fcntl.ioctl(descriptor, _FSSETXATTR, _FSXATTR.pack(flags, extent, extents, project, cow))


def _attributes(descriptor: int) -> bytes:
    return bytes(fcntl.ioctl(descriptor, _FSGETXATTR, bytes(_FSXATTR.size)))


def _quotactl(folder: Path, command: int, project: int, block: ctypes.Array[ctypes.c_char] | None) -> None:
    """quotactl_fd(2). Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        code = ctypes.c_uint(command << 8 | _PRJQUOTA)
        number = ctypes.c_long(_SYS_QUOTACTL_FD)
        if library.syscall(number, ctypes.c_int(descriptor), code, ctypes.c_uint(project), block) != 0:
            found = ctypes.get_errno()
            raise OSError(found, os.strerror(found))
    finally:
        os.close(descriptor)


def _unsupported(error: OSError) -> bool:
    return error.errno in (errno.ENOSYS, errno.ESRCH, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOTBLK)


def _explained(folder: Path, error: OSError) -> MixosError:
    if _unsupported(error):
        return RefusedError(
            f"{folder} is on a file system without project quotas",
            reason="quota-unsupported",
            hint="ext4 has them when it was made with -O project,quota; tune2fs adds them while it is not mounted",
        )
    return QuotaError(f"{folder}: {error.strerror}", reason="quota-failed")
