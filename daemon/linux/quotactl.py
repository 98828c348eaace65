"""Project quotas of ext4, by system call: nothing of it is in Python's standard library.

quotactl_fd(2) needs a descriptor on the file system, so no device node; FS_IOC_FSSETXATTR (linux/fs.h) gives a file or
folder its project. A folder with FS_XFLAG_PROJINHERIT hands its project on to what is made in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from common.errors import MixosError, RefusedError
from daemon.linux import tree

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
    """Give a folder and everything in it a project; how many did not have it. Nothing that the unit puts there is
    followed.

    Raises RefusedError `quota-unsupported`, QuotaError `quota-too-many` (more than `limit` names, or too many levels of
    folders), `quota-failed`.
    """
    count = 0
    try:
        with contextlib.closing(tree.walk(top, limit)) as found:
            for one in found:
                if not one.entered:
                    raise tree.TooManyError
                if stat.S_ISREG(one.facts.st_mode) or stat.S_ISDIR(one.facts.st_mode):
                    count += _assign(one.name, one.folder, project)  # a link or pipe takes no blocks
    except tree.TooManyError as error:
        problem = f"more than {limit} names, or {tree.DEEPEST} levels of folders"
        raise QuotaError(f"{top} has {problem}", reason="quota-too-many") from error
    except OSError as error:
        raise _explained(top, error) from error
    return count


def _assign(name: str, folder: int, project: int) -> bool:
    """Whether it had another one."""
    try:
        descriptor = os.open(name, _FLAGS, dir_fd=folder)
    except OSError:
        return False  # it is gone, or has become something else
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            return False
        before, extent, extents, now, cow = _FSXATTR.unpack(_attributes(descriptor))
        flags = before
        if stat.S_ISDIR(kind):
            flags = before | _PROJINHERIT if project else before & ~_PROJINHERIT
        if (flags, project) == (before, now):
            return False
        fcntl.ioctl(descriptor, _FSSETXATTR, _FSXATTR.pack(flags, extent, extents, project, cow))
        return True
    finally:
        os.close(descriptor)


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
