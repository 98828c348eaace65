"""A daemon that kills itself: `python -m tests.supervise_driver FOLDER SHIM STEP WHEN ACTION UNIT STATE`.

It starts a manager on the folders of a test, does ACTION ("start", "stop", "none") to UNIT, and waits until UNIT is in
STATE. At the STEPth time that a unit's memory is written (each decision and each change of state is), it kills itself
with SIGKILL: WHEN is "before" or "after" the writing. STEP 0: never. It ends with 0 when STATE was reached.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from daemon.part import Context
from daemon.supervise.manager import Manager
from daemon.supervise.memory import Memory
from daemon.supervise.prepare import Places
from daemon.supervise.states import State
from tests.supervision import cgroup_root, reach


def context(base: Path) -> Context:
    """The folders of a test, as `tests.supervision.folders` makes them."""
    return Context(base / "run/mixos", base / "lib/mixos", base / "etc", base / "usr", base / "log")


def die_at(step: int, when: str) -> None:
    """Arrange for the end of this process."""
    count, write = 0, Memory.write

    def counted(self: Memory, folder: Path) -> None:
        nonlocal count
        count += 1
        if count == step and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, folder)
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Memory.write = counted  # type: ignore[method-assign]


async def drive(base: Path, shim: Path, action: str, name: str, state: State) -> None:
    """One life of the daemon."""
    place = context(base)
    manager = Manager(place, places=Places(shim=shim), cgroups=cgroup_root(place))
    await manager.start()
    if action == "start":
        manager.begin([name])
    elif action == "stop":
        await manager.halt([name])
    elif action == "restart":
        await manager.restart([name])
    await reach(manager.services[name], state)
    await manager.stop()


if __name__ == "__main__":
    base_, shim_, step_, when_, action_, name_, state_ = sys.argv[1:]
    die_at(int(step_), when_)
    asyncio.run(drive(Path(base_), Path(shim_), action_, name_, State(state_)))
