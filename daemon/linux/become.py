"""What a process gives up before it reads what others have sent: account, capabilities, AppArmor profile, files.

All of it cannot be taken back (capabilities(7), prctl(2), apparmor(7)). The order matters: a profile is entered by the
account that the process has in the end, since the kernel wants the file of the profile opened with the credentials that
write to it; and before no_new_privs, which would allow only a profile that is a subset of the one before.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterable, Set
from pathlib import Path

_PDEATHSIG, _SET_DUMPABLE, _SET_NAME, _CAPBSET_READ, _CAPBSET_DROP = 1, 4, 15, 23, 24  # linux/prctl.h
LINUX_IMMUTABLE = 9  # linux/capability.h
_NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
_CURRENT = "/proc/self/attr/apparmor/current"


def has_apparmor() -> bool:
    """Whether the kernel enforces AppArmor profiles: then a process that should have one runs only in it."""
    try:
        return _ENABLED.read_text().strip() == "Y"
    except OSError:
        return False


def become(account: tuple[int, int] | None, profile: str | None, parent: int) -> None:
    """Drop all capabilities, take the account (user id, group id; None: keep ours) and the AppArmor profile (None: keep
    it), gain nothing by execve(2) any more, be no core dump, and end when the thread that made us does.

    parent: its process, which must still be there. Raises OSError; then the process must end.
    """
    root = os.geteuid() == 0
    if root:
        _forget_capabilities()
        if account is not None:
            os.setgroups([])
            os.setresgid(account[1], account[1], account[1])
            os.setresuid(account[0], account[0], account[0])
        else:
            _drop_capabilities()
    _prctl(_CAP_AMBIENT, _CLEAR_ALL)
    if profile is not None:
        _prctl(_SET_DUMPABLE, 1)  # files below /proc/self are root's otherwise
        _enter(profile)
    _prctl(_NO_NEW_PRIVS, 1)
    _prctl(_SET_DUMPABLE, 0)
    _prctl(_PDEATHSIG, signal.SIGKILL)  # last: a change of account forgets it
    if os.getppid() != parent:
        raise ProcessLookupError("who started this process has ended")


def keep_capabilities(kept: Set[int]) -> None:
    """Drop all capabilities but these (linux/capability.h), for good, and gain nothing by execve(2) any more. Only root
    has some. Raises OSError."""
    if os.geteuid() == 0:
        _forget_capabilities()
        _drop_capabilities(kept)
    _prctl(_CAP_AMBIENT, _CLEAR_ALL)
    _prctl(_NO_NEW_PRIVS, 1)
    _prctl(_SET_DUMPABLE, 0)


def stay_alone() -> None:
    """No further process or thread of ours, once the account is not root: when this one is killed, nobody is left who
    has what it was given (RLIMIT_NPROC, setrlimit(2))."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def rename(name: str) -> None:
    """The name that ps and top show, cut to 15 bytes."""
    _prctl(_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def keep_only(descriptors: Iterable[int]) -> None:
    """Close all descriptors but these and 0, 1, 2."""
    low = 3
    for one in sorted({*descriptors} - {0, 1, 2}):
        os.closerange(low, one)
        low = one + 1
    os.closerange(low, max(map(int, os.listdir("/proc/self/fd"))) + 1)


def _forget_capabilities() -> None:
    """None can come back: the bounding set is emptied, which takes CAP_SETPCAP and so comes first."""
    for number in range(64):
        if _libc().prctl(_CAPBSET_READ, number, 0, 0, 0) != 1:
            if number > 40:  # linux/capability.h: CAP_CHECKPOINT_RESTORE, the last one of Linux 5.9
                return
            continue
        _prctl(_CAPBSET_DROP, number)


def _drop_capabilities(kept: Set[int] = frozenset()) -> None:
    """Of a process that stays root. kept: below 32."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    mask = sum(1 << number for number in kept)
    if _libc().capset(header, (ctypes.c_uint32 * 6)(mask, mask)) != 0:  # effective, permitted; of the first 32
        raise OSError(ctypes.get_errno(), "capset")


def _enter(profile: str) -> None:
    descriptor = os.open(_CURRENT, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"changeprofile {profile}".encode())
    finally:
        os.close(descriptor)
    if Path(_CURRENT).read_text().split()[0] != profile:
        raise PermissionError(f"the AppArmor profile {profile} is not in force")


def _prctl(option: int, value: int | ctypes.c_char_p) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
