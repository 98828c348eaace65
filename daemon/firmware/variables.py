"""Secure Boot's databases as efivarfs has them: whether they count, what they hold, how something is added."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.efi import siglist
from common.efi.additions import Addition
from common.efi.siglist import Signature
from common.errors import RefusedError

EFIVARS = "sys/firmware/efi/efivars"
_GETFLAGS, _SETFLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10  # linux/fs.h: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
_NEWNS, _REMOUNT = 0x20000, 0x20 | 0x2 | 0x4 | 0x8  # linux/sched.h; linux/mount.h: with nosuid, nodev, noexec
_WORDS = {  # linux/drivers/firmware/efi: efi_status_to_err
    errno.EACCES: "it knows no key that has signed this (EFI_SECURITY_VIOLATION)",
    errno.ENOSPC: "it has no room left for variables (EFI_OUT_OF_RESOURCES)",
    errno.EROFS: "its variables cannot be written (EFI_WRITE_PROTECTED)",
}


def enforced(root: Path) -> bool:
    """Whether Secure Boot is on. Raises OSError."""
    return _read(root, "SecureBoot", "PK") == b"\1"


def refusal(image: bytes, root: Path) -> str | None:
    """Why firmware would not start an image; None: it starts it, or Secure Boot is off. Raises OSError."""
    if not enforced(root):
        return None
    return siglist.refusal(image, _read(root, "db", "db"), _read(root, "dbx", "dbx"))


def databases(root: Path) -> dict[str, tuple[Signature, ...]]:
    """What they hold, by name. Raises SignatureListError, OSError."""
    return {name: siglist.read(_read(root, name, name)) for name in siglist.VARIABLES}


def _read(root: Path, name: str, like: str) -> bytes:
    """What a variable holds, nothing when it is not there. like: a database that has the same vendor."""
    try:
        data = _path(root, name, like).read_bytes()
    except FileNotFoundError:
        return b""
    return data[4:]  # behind four bytes of attributes


def _path(root: Path, name: str, like: str) -> Path:
    return root / EFIVARS / f"{name}-{siglist.VARIABLES[like]}"


# -- writing -----------------------------------------------------------------------------------------------------------


def unlock(root: Path) -> None:
    """Have this process, and no other one, write to efivarfs. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    point = os.fsencode(root / EFIVARS)
    if libc.unshare(_NEWNS) or libc.mount(None, point, None, _REMOUNT, None):  # the mount of all others stays as it is
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(point))


def add(root: Path, one: Addition) -> None:
    """Have firmware append to a database. Raises RefusedError `firmware-refused`, also when it says that it did and
    did not; SignatureListError, OSError."""
    path = _path(root, one.variable, one.variable)
    with _changeable(path):
        try:
            set_variable(path, siglist.written(one.data, append=True))
        except OSError as error:
            why = _WORDS.get(error.errno or 0, f"it answers {errno.errorcode.get(error.errno or 0, error.errno)}")
            raise _refused(one, why) from error
    if one.missing(databases(root)):
        raise _refused(one, "it says that it has taken it, and has not")


def set_variable(path: Path, data: bytes) -> None:
    """One write(2) is one SetVariable(): a cut of power leaves the old value or the new one. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _refused(one: Addition, why: str) -> RefusedError:
    return RefusedError(f"firmware does not take {one.name}: {why}", reason="firmware-refused")


@contextmanager
def _changeable(path: Path) -> Iterator[None]:
    """Without the mark that keeps a variable from being changed by accident (efivarfs, "immutable")."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        flags = _flags(descriptor)
        if flags & _IMMUTABLE:
            _set_flags(descriptor, flags & ~_IMMUTABLE)
        try:
            yield
        finally:
            if flags & _IMMUTABLE:
                _set_flags(descriptor, flags)
    finally:
        os.close(descriptor)


def _flags(descriptor: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(descriptor, _GETFLAGS, struct.pack("i", 0)))[0])
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return 0
        raise


def _set_flags(descriptor: int, flags: int) -> None:
    fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("i", flags))
