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
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def session(main: ProcessId) -> Iterator[int]:
    """The process, if it is still that one, and the processes of its session that are not older than it.

    proc_pid_stat(5): behind the name in parentheses, field 3 is the state, 6 the session, 22 the start time.
    """
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it has ended
        pid, state, sid, began = int(path.parent.name), fields[0], int(fields[3]), int(fields[19])
        if state in (b"Z", b"X") or pid == os.getpid():
            continue
        ours = began == main.start_time if pid == main.pid else sid == main.pid and began >= main.start_time
        if ours:
            yield pid
