"""The price of a supervised service, and how soon one that was killed runs again: the shim beside s6 and runit.

All supervise the same static program, SERVICES times, with the restart policy that they ship with. The memory of s6 and
runit is measured without and with their loggers, since the shim writes the log, too. Their supervisors start a dead
service by themselves; our shim tells mixosd, which decides: the daemon's time is in the figure, its memory in `scale`.
"""

from __future__ import annotations

import os
import select
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

from buildsys.project import Project
from buildsys.run import find_tool, run, spawn
from common.errors import HostError
from tests.bench import memory, mixosd
from tests.bench.figures import Figure, table
from tests.hostpackages import ROOT

SERVICES = 20
SETTLED = 2.0  # seconds that a service has run when it is killed for the first time
PATIENCE = 30.0
MEMORY = f"memory for each supervised service, {SERVICES} services"
RESTART = f"kill -9 of a service → its new process runs, median of {SERVICES}"

Supervised = Callable[[Path, Path], AbstractContextManager[Callable[[], list[int]]]]


class Bell:
    """Hears services begin (see service.c)."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fifo = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # a reader that is its own writer never sees an end
        self._data = b""

    def wait(self) -> tuple[int, int]:
        """Process and time (nanoseconds, CLOCK_MONOTONIC) of the next one. Raises HostError when none comes."""
        while b"\n" not in self._data:
            if not select.select([self._fifo], [], [], PATIENCE)[0]:
                raise HostError("a service did not come up", reason="bench-service")
            self._data += os.read(self._fifo, 4096)
        line, _, self._data = self._data.partition(b"\n")
        pid, began = map(int, line.split())
        return pid, began

    def restart(self, pid: int) -> tuple[int, float]:
        """Kill a service: its next process, and the milliseconds until that began."""
        killed = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        successor, began = self.wait()
        return successor, (began - killed) / 1e6

    def close(self) -> None:
        """Stop listening."""
        os.close(self._fifo)


def figures() -> list[Figure]:
    """All of them, memory first."""
    late = "at once, but a second after a start that was less than a second ago"
    found: list[Figure] = []
    for name, supervised, each in (
        ("shim, which also writes the log", ours, 1),
        ("s6-supervise", s6, 1),
        ("2 s6-supervise, s6-log", partial(s6, logged=True), 3),
        ("runsv", runit, 1),
        ("runsv, svlogd", partial(runit, logged=True), 2),
    ):
        with _started(supervised) as (supervisors, _, _):
            if len(supervisors) != each * SERVICES:
                raise HostError(f"{name}: {len(supervisors)} processes supervise", reason="bench-service")
            found += _memory(name, supervisors)
    for name, supervised, how in (
        ("mixosd and shim", ours, "as shipped: after 100 ms, doubled by each failure in a row"),
        ("mixosd and shim, restart-delay = 0", partial(ours, more="restart-delay = 0\n"), "at once"),
        ("s6-supervise", s6, "as shipped: a second later"),
        ("runsv", runit, f"as shipped: {late}"),
    ):
        with _started(supervised) as (_, bell, pids):
            found += _restarts(name, bell, pids, how)
    return found


@contextmanager
def _started(supervised: Supervised) -> Iterator[tuple[list[int], Bell, list[int]]]:
    """All services have run for a while: their supervisors, what hears them, they themselves."""
    with tempfile.TemporaryDirectory(prefix="mixos-bench-", dir="/var/tmp") as folder:
        place = Path(folder)
        program = place / "service"
        run(["gcc", "-std=gnu11", "-O2", "-static", "-o", program, Path(__file__).with_name("service.c")], timeout=120)
        bell = Bell(place / "told")
        try:
            with supervised(place, program) as supervisors:
                pids = [bell.wait()[0] for _ in range(SERVICES)]
                time.sleep(SETTLED)
                yield supervisors(), bell, pids
        finally:
            bell.close()


def _memory(name: str, supervisors: Sequence[int]) -> list[Figure]:
    kinds = {"private": memory.private, "PSS": memory.proportional, "page tables": memory.page_tables}
    return [
        Figure(MEMORY, f"{name}: {kind}", round(sum(map(size, supervisors)) / SERVICES, 1), "KiB")
        for kind, size in kinds.items()
    ]


def _restarts(name: str, bell: Bell, pids: Sequence[int], how: str) -> list[Figure]:
    """Each service is killed twice: after it has run for a while, and as soon as it runs again."""
    settled, young = [], []
    for pid in pids:
        successor, first = bell.restart(pid)
        _, second = bell.restart(successor)
        settled.append(first)
        young.append(second)
    return [
        Figure(
            RESTART, f"{name}: {when}", round(statistics.median(times), 1), "ms", note=f"{how}; worst {max(times):.0f}"
        )
        for when, times in ((f"had run {SETTLED:g} s", settled), ("had just begun", young))
    ]


# -- the supervisors: context managers that give a function which finds the supervising processes --------------------


@contextmanager
def ours(place: Path, program: Path, *, more: str = "") -> Iterator[Callable[[], list[int]]]:
    """mixosd, with a shim for each service; more: keys of its [service]."""
    with mixosd.folders() as context:
        for number in range(SERVICES):
            text = f"[service]\ncommand = ['{program}']\nworking-directory = '{place}'\n{more}"
            mixosd.unit(context, f"s{number}", text)
        process = mixosd.begin(context, mixosd.SUPERVISION)
        try:
            yield lambda: mixosd.shims(context)
        finally:
            mixosd.end(process)


@contextmanager
def s6(place: Path, program: Path, *, logged: bool = False) -> Iterator[Callable[[], list[int]]]:
    """s6-svscan; with a logger s6 has two supervisors for each service."""
    scan = _service_folders(place, program, "s6-log n3 s1000000 ./main" if logged else "")
    with _tree(
        [str(find_tool("s6-svscan")), str(scan)], find_tool("s6-svscan").parent, ("s6-supervise", "s6-log")
    ) as found:
        yield found


@contextmanager
def runit(place: Path, program: Path, *, logged: bool = False) -> Iterator[Callable[[], list[int]]]:
    """runsvdir; its runsv supervises service and logger."""
    scan, programs = _service_folders(place, program, "svlogd ./main" if logged else ""), _runit()
    with _tree([str(programs / "runsvdir"), str(scan)], programs, ("runsv", "svlogd")) as found:
        yield found


def _service_folders(place: Path, program: Path, logger: str) -> Path:
    """A folder of SERVICES service folders as s6 and runit both understand them."""
    scan = place / "scan"
    for number in range(SERVICES):
        service = scan / f"s{number}"
        service.mkdir(parents=True)
        (service / "run").symlink_to(program)
        (service / "told").symlink_to(place / "told")
        if logger:
            (service / "log/main").mkdir(parents=True)
            path = service / "log/run"
            path.write_text(f"#!/bin/sh\nexec {logger}\n")
            path.chmod(0o755)
    return scan


@contextmanager
def _tree(argv: list[str], programs: Path, names: Sequence[str]) -> Iterator[Callable[[], list[int]]]:
    """A supervision tree; at the end all of it is killed."""
    with tempfile.TemporaryFile() as log:
        process = spawn(argv, env={"PATH": f"{programs}:/usr/bin:/bin"}, log=log)
        root = psutil.Process(process.pid)
        try:
            yield lambda: [one.pid for one in root.children(recursive=True) if one.name() in names]
        finally:
            _fell(root)
            process.wait()


def _fell(process: psutil.Process) -> None:
    """Kill a process and all below it, from the top: one that stands still starts nothing again."""
    with suppress(psutil.NoSuchProcess):
        process.suspend()
        below = process.children()
        process.kill()
        for child in below:
            _fell(child)


def _runit() -> Path:
    """The folder of runit's programs, unpacked: installing the package would change the host's own services."""
    home = Project.at(ROOT).cache / "bench" / "runit"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="runit-", dir=home.parent) as folder:
            run(["apt-get", "download", "runit"], cwd=Path(folder), inherit=("*_proxy",), timeout=300)
            (package,) = Path(folder).glob("runit_*.deb")
            tree = Path(folder) / "tree"
            run(["dpkg-deb", "-x", package, tree])
            tree.rename(home)
    return home / "usr/bin"


if __name__ == "__main__":
    print(table(figures()))
