"""For tests of supervision: a manager with folders of its own, units from text, and a look at what runs.

The folders are below /dev/shm: short names (a Unix socket's has 108 bytes), and no disk to wait for.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from daemon.core.events import Event
from daemon.core.part import Context, cgroups
from daemon.parts.service.memory import History
from daemon.parts.service.part import Manager
from daemon.parts.service.prepare import Places
from daemon.parts.service.service import Service
from daemon.parts.service.states import State
from tests.native import native
from tests.waiting import PATIENCE

SLEEP = "exec sleep 1000"  # a script for `shell`
QUICK = "restart-delay = '10ms'\nrestart-delay-max = '20ms'\n"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="other accounts need root")


@contextmanager
def folders() -> Iterator[Context]:
    """A place for one manager; at the end whatever shims are left there are killed."""
    base = Path(tempfile.mkdtemp(prefix="mx", dir="/dev/shm"))
    context = Context(base / "run/mixos", base / "lib/mixos", base / "etc", base / "usr", base / "log")
    for folder in (context.run, context.state, context.etc / "units", context.lib / "units", context.log):
        folder.mkdir(parents=True)
    try:
        yield context
    finally:
        sweep(context)
        shutil.rmtree(base, ignore_errors=True)


def sweep(context: Context) -> None:
    """Kill what a test left behind: shims of this context, their services, their cgroups."""
    from daemon.parts.service import leftovers
    from daemon.parts.service.shim import load_state

    for folder in (context.run / "units").glob("*"):
        state = load_state(folder)
        if state is not None:
            leftovers.kill(state.shim)
            leftovers.kill(state.main)
    root = cgroup_root(context)
    if root.is_dir():
        for leaf in sorted(root.rglob("*"), reverse=True):
            if leaf.name == "cgroup.kill":
                leaf.write_text("1")
        for leaf in (one for one in sorted(root.rglob("*"), reverse=True) if one.is_dir()):
            remove_group(leaf)
        remove_group(root)


def remove_group(path: Path) -> None:
    """A cgroup can be removed a moment after its last process has gone."""
    import time

    for _ in range(200):
        try:
            path.rmdir()
        except OSError:
            time.sleep(0.01)
        else:
            return


def cgroup_root(context: Context) -> Path:
    """A group of its own for each context."""
    return cgroups().with_name(f"mixos-test-{context.run.parents[1].name}")


def places(shim: Path | None = None) -> Places:
    """The programs, compiled here."""
    return Places(shim=shim or native("shim"), launcher=native("sandbox"))


def unit(context: Context, name: str, text: str, *, shipped: bool = False) -> Path:
    """Write a unit file."""
    path = (context.lib if shipped else context.etc) / "units" / f"{name}.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def shell(script: str, *, kind: str = "simple", more: str = "", unit_: str = "", rest: str = "") -> str:
    """The text of a unit that runs a shell script."""
    return f"[unit]\n{unit_}\n[service]\ncommand = ['/bin/sh', '-c', '''{script}''']\ntype = '{kind}'\n{more}\n{rest}\n"


@asynccontextmanager
async def managed(context: Context, *, leave: bool = False, shim: Path | None = None) -> AsyncIterator[Manager]:
    """A started manager; at the end it shuts everything down, or (leave) just lets go of it."""
    manager = Manager(context, places=places(shim), cgroups=cgroup_root(context))
    await manager.start()
    try:
        yield manager
    finally:
        if not leave:
            await manager.shutdown(5.0)
        await manager.stop()


async def reach(service: Service, *states: State) -> Service:
    """Wait until a unit is in one of these states."""
    assert await service.until(lambda: service.state in states, PATIENCE), (service.state, service.memory.reason)
    return service


class Heard:
    """Events of a context, kept from the first moment on."""

    def __init__(self, context: Context, prefix: str = "service.") -> None:
        self.events: list[Event] = []
        self._source = context.events.listen(prefix)
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for event in self._source:
            self.events.append(event)

    def states(self, name: str) -> list[str]:
        """The states that a unit went through."""
        return [
            event.data["state"] for event in self.events if event.topic == "service.state" and event.subject == name
        ]

    def close(self) -> None:
        """Stop listening."""
        self._task.cancel()


def alive(pid: int, states: str = "RSDTtI") -> bool:
    """Whether there is such a process, in one of these states (proc_pid_stat(5)); by default any but a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in states
    except OSError:
        return False


def ends(context: Context, name: str) -> list[tuple[int, int]]:
    """(code, signal) of each end in the history of a unit."""
    history = History.read(context.state / "services" / f"{name}.json")
    return [(end.code, end.signal) for end in history.ends]


def lines(path: Path) -> int:
    """How many lines a file has; 0 when there is none."""
    return len(path.read_text().splitlines()) if path.exists() else 0
