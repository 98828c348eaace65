"""A daemon that kills itself.

`life` starts a manager on the folders of a test, does something to a unit, and waits until that is in a state. It kills
itself with SIGKILL at a given step: a moment right before or right after a deed that others can see (something is
written, a shim is started, connected to or told something, a cgroup is cleared).
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import traceback
from typing import Any

from daemon.core.part import Context
from daemon.parts.service.memory import History, Memory
from daemon.parts.service.part import Manager
from daemon.parts.service.shim import Shim
from daemon.parts.service.states import State
from tests.supervision import cgroup_root, places, reach
from tests.waiting import ended

DEEDS: tuple[tuple[type, str], ...] = (
    (Memory, "write"),
    (History, "write"),
    (Shim, "spawn"),
    (Shim, "connect"),
    (Shim, "_command"),
    (Manager, "clear"),
)


def die_at(last: int) -> None:
    """Arrange for the end of this process."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in DEEDS:
        real = inspect.getattr_static(owner, name)
        deed = real.__func__ if isinstance(real, classmethod) else real

        def counted(*given: Any, deed: Any = deed, **more: Any) -> Any:
            step()
            found = deed(*given, **more)
            step()
            return found

        async def counted_later(*given: Any, deed: Any = deed, **more: Any) -> Any:
            step()
            found = await deed(*given, **more)
            step()
            return found

        wrapper: Any = counted_later if inspect.iscoroutinefunction(deed) else counted
        setattr(owner, name, classmethod(wrapper) if isinstance(real, classmethod) else wrapper)


async def drive(place: Context, action: str, name: str, state: State) -> None:
    """What such a daemon does. action: "stop", "restart" or "none"."""
    manager = Manager(place, places=places(), cgroups=cgroup_root(place))
    await manager.start()
    if action == "stop":
        await manager.halt([name])
    elif action == "restart":
        await manager.restart([name])
    await reach(manager.services[name], state)
    await manager.stop()


def life(place: Context, step: int, action: str, name: str, state: State) -> bool:
    """One life, in a process of its own; whether it got to `state` instead of dying at `step` (0: never)."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at(step)
            asyncio.run(drive(place, action, name, state))
            os._exit(0)
        except BaseException:  # noqa: BLE001  # whatever it is, this process ends here
            traceback.print_exc()
            os._exit(1)
    status = ended(pid, 600)
    assert status in (0, -signal.SIGKILL), status
    return status == 0
