"""After configuration files were put back (undo, restore): the methods that put them in force are called.

The calls are made for whoever asked for the files, so a rule that would shut them out is refused as if they had called
it themselves, and the audit has their name. What fails stays as it was; the log and an event `config.refused` say why.
"""

from __future__ import annotations

import asyncio
import os
import time

from common.errors import MixosError
from daemon.core.dispatch import Dispatcher
from daemon.core.events import Bus
from daemon.core.manifest import methods_for
from daemon.core.method import Caller, Role
from daemon.core.parts import START_SECONDS
from daemon.linux.log import log


async def follow(dispatcher: Dispatcher, events: Bus) -> None:
    """Until cancelled. `config.restored` names the files, and who wanted them, from where."""
    async for event in events.listen("config.restored"):
        name = f"{event.data['who']}, {event.subject}"
        caller = Caller(Role.ADMIN, 0, 0, os.getpid(), name, event.data["origin"])
        for method in methods_for(event.data["files"]):
            await _apply(dispatcher, events, caller, method)


async def _apply(dispatcher: Dispatcher, events: Bus, caller: Caller, method: str) -> None:
    """Call one method; tell what came of it."""
    try:
        await _call(dispatcher, caller, method)
    except MixosError as error:
        log("err", f"{method}: the configuration that was put back is not in force: {error.message}")
        events.publish("config.refused", method, reason=error.reason, message=error.message)
    else:
        events.publish("config.applied", method)


async def _call(dispatcher: Dispatcher, caller: Caller, method: str) -> None:
    """Call it when its part is up: one that is starting may have read the files already."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            await dispatcher.call(caller, dispatcher.prepare(caller, method, {}))
        except MixosError as error:
            if error.reason != "part-starting" or time.monotonic() > deadline:
                raise
        else:
            return
        await asyncio.sleep(0.5)
