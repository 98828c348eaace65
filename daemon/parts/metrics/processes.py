"""Processes, from /proc/PID/stat alone (proc(5)): a small file each. Arguments are not read, they may hold secrets."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TURN = 50  # processes after which others get their turn
_CGROUP = "0::/mixos/"


class Process(NamedTuple):
    """cpu: seconds so far; memory: resident bytes; start: ticks after boot, which with pid tells a process for good."""

    pid: int
    name: str
    state: str
    cpu: float
    threads: int
    start: int
    memory: int
    uid: int


async def processes(proc: Path = Path("/proc")) -> dict[tuple[int, int], Process]:
    """Every process by pid and start."""
    found: dict[tuple[int, int], Process] = {}
    names = [name for name in os.listdir(proc) if name.isdecimal()]
    for count, name in enumerate(names, 1):
        process = _read(f"{proc}/{name}")
        if process is not None:
            found[process.pid, process.start] = process
        if count % _TURN == 0:
            await asyncio.sleep(0)
    return found


def _read(folder: str) -> Process | None:
    """One process; None when it ended meanwhile."""
    try:
        descriptor = os.open(f"{folder}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data, uid = os.read(descriptor, 4096), os.fstat(descriptor).st_uid
        finally:
            os.close(descriptor)
        # The name, in parentheses, may hold anything; behind the last one are fields 3 and up.
        head, _, tail = data.rpartition(b") ")
        number, _, name = head.partition(b" (")
        fields = tail.split()
        return Process(
            pid=int(number),
            name=name.decode("utf-8", "replace"),
            state=fields[0].decode("ascii", "replace"),
            cpu=(int(fields[11]) + int(fields[12])) / _TICKS,
            threads=int(fields[17]),
            start=int(fields[19]),
            memory=int(fields[21]) * _PAGE,
            uid=uid,
        )
    except (OSError, ValueError, IndexError):
        return None


def unit_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The unit whose cgroup a process is in (cgroups(7), /proc/PID/cgroup)."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.removeprefix(_CGROUP).partition("/")[0] for line in lines if line.startswith(_CGROUP)), None)
