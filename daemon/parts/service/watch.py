"""What is looked out for while a unit starts, listens or runs: whether it is ready, well, or wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from daemon.parts.service import health, ready, sockets
from daemon.parts.service.events import CheckPassed, Connected, Event, HealthChanged, Watch
from daemon.parts.service.link import Link
from daemon.parts.service.shim import Shim, ShimError
from daemon.parts.service.states import State
from daemon.parts.service.unit import Unit

_PID_FILE = 0.1  # seconds between two looks at a PID file


class Watched(Protocol):
    """The unit: what checks run with, and who is told."""

    link: Link
    listening: tuple[int, ...]  # our copies of its sockets

    @property
    def unit(self) -> Unit:
        """The definition in force."""

    @property
    def state(self) -> State:
        """Where it is."""

    def asker(self) -> Callable[[], ready.Asker]:
        """What its checks run with."""

    def send(self, event: Event) -> None:
        """Tell it."""


async def watch(what: Watch, unit: Watched) -> None:
    """Until it has happened, or for as long as it is wanted. Raises what the shim and the checks raise."""
    match what:
        case Watch.READY:
            await _until_ready(unit)
            unit.send(CheckPassed())
        case Watch.HEALTH:
            assert unit.unit.health is not None
            async for problem in health.watch(unit.unit.health, unit.asker(), sick=unit.state is State.UNHEALTHY):
                unit.send(HealthChanged(problem))
        case Watch.SOCKETS:
            await sockets.connection(unit.listening)
            unit.send(Connected())


async def _until_ready(unit: Watched) -> None:
    """Until it is ready, for services that do not tell their shim, and for milestones."""
    service = unit.unit.service
    if service is not None and service.pid_file is not None:
        await _main_found(unit.link, Path(service.pid_file))
    await ready.get_ready(unit.unit.readiness, unit.asker())


async def _main_found(link: Link, path: Path) -> None:
    """Until its PID file names a process that it has left in the background; any other number is an old one."""
    while True:
        pid = ready.process_in(path)
        if pid is not None:
            try:
                await link.command(partial(Shim.become_main, pid=pid))
            except ShimError as error:
                if error.reason != "shim-stranger":
                    raise
            else:
                return
        await asyncio.sleep(_PID_FILE)
