"""Waits of tests: each has a deadline, which says nothing about how long a thing takes."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PATIENCE = 30.0  # seconds


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something holds that nobody tells us about. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


async def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """The same among coroutines. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def joined(*threads: threading.Thread) -> None:
    """Wait for the end of threads. Raises AssertionError."""
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def ended(pid: int, seconds: float = PATIENCE) -> int:
    """The exit code of a child, or minus the signal. Raises AssertionError."""
    descriptor = os.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], seconds)[0], f"process {pid} never ended"
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def processes(words: str) -> Iterable[int]:
    """Processes whose command line contains these words."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words.encode() in path.read_bytes():
                yield int(path.parent.name)
        except OSError:
            continue  # it has just gone
