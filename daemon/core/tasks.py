"""Work that goes on for as long as the daemon runs: listening to events, looking at something now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from daemon.linux.log import log

FIRST, LONGEST = 1.0, 60.0  # seconds of the pause before work that failed is begun again


def background(name: str, work: Callable[[], Awaitable[None]], first: float = FIRST) -> asyncio.Task[None]:
    """A task that does `work` until it is cancelled. What ends by a surprise is logged and begun again.

    The pauses grow while it fails at once, up to a minute; what happened meanwhile is missed.
    """
    return asyncio.create_task(_forever(name, work, first), name=name)


async def _forever(name: str, work: Callable[[], Awaitable[None]], first: float) -> None:
    pause = first
    while True:
        began = time.monotonic()
        try:
            await work()
            problem = "it ended"
        except Exception as error:  # noqa: BLE001  # a defect of ours must not end it for good
            problem = f"{type(error).__name__}: {error}"
        if time.monotonic() - began > LONGEST:
            pause = first
        log("err", f"{name} is begun again in {pause:g} s: {problem}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST)
