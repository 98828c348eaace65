"""The one door through which the device's Python code starts other programs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from daemon.errors import DeviceError

_ENVIRONMENT = {"PATH": "/usr/bin:/usr/sbin", "LC_ALL": "C.UTF-8"}


def run(argv: Sequence[str], *, allow: Sequence[int] = (0,)) -> int:
    """Run a program to its end, output to our own; returns its status.

    argv[0] is an absolute path. Raises DeviceError `program-missing` or `program-failed` (status not in `allow`).
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    try:
        pid = os.posix_spawn(argv[0], list(argv), _ENVIRONMENT, file_actions=[null])
    except OSError as error:
        raise DeviceError(f"{argv[0]} cannot be started: {error.strerror}", reason="program-missing") from error
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in allow:
        raise DeviceError(f"{' '.join(argv)} ended with status {status}", reason="program-failed")
    return status
