"""Killing what a service left behind when neither a cgroup nor its shim can do it any more.

The service began a session of its own (setsid(2)), whose number is that of its first process; a process keeps its
session unless it begins another. So this finds all that did not want to get away; a cgroup finds those too.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from daemon.parts.service.shim import ProcessId


def kill(main: ProcessId) -> bool:
    """SIGKILL the process and its session; whether any of them was still there."""
    found = list(session(main)) if main.pid else []
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            process = os.pidfd_open(pid)  # another one may have its number by now: asked again
            try:
                if _belongs(pid, main):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)
    return bool(found)


def session(main: ProcessId) -> Iterator[int]:
    """The process, if it is still that one, and the processes of its session that are not older than it.

    proc_pid_stat(5): behind the name in parentheses, field 3 is the state, 6 the session, 22 the start time.
    """
    for path in Path("/proc").glob("[0-9]*"):
        if _belongs(int(path.name), main):
            yield int(path.name)


def _belongs(pid: int, main: ProcessId) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False  # it has ended
    state, sid, began = fields[0], int(fields[3]), int(fields[19])
    if state in (b"Z", b"X") or pid == os.getpid():
        return False
    return began == main.start_time if pid == main.pid else sid == main.pid and began >= main.start_time
