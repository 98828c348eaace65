"""The process that answers for this device's name. It has nothing but the network, and no privileges.

While there is no network it waits, and whenever addresses change it starts over with the new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Awaitable, Mapping
from typing import Any

from common.errors import MixosError
from daemon.core.tasks import background
from daemon.core.worker.channel import Handler
from daemon.core.worker.child import Host
from daemon.linux.log import log
from daemon.parts.mdns.responder import Responder, network, watch_addresses

_QUIET = 0.5  # seconds that addresses must rest before they are used
_CHECK = 60.0  # seconds after which we ask whether our name is still ours alone
_AGAIN = 5.0  # seconds after which a failed start is tried again


class Mdns:
    """wanted: `hostname`, `interfaces`, `services`; responder: does it; problem: why it is not done."""

    def __init__(self, host: Host) -> None:
        self.wanted: Mapping[str, Any] = host.settings
        self.announced: Mapping[str, Any] | None = None
        self.responder: Responder | None = None  # there is one when there is a network
        self.problem: str | None = None
        self.conflicts = 0
        self.wake = asyncio.Event()
        self._watch: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """What the part asks."""
        return {"want": self.want, "status": self.told, "browse": self.browse}

    async def start(self) -> None:
        """Begin; what the network does is waited for."""
        self._watch = watch_addresses(self.wake.set)
        self._task = background("mdns", self.run)

    async def stop(self) -> None:
        """Say goodbye."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch)
            self._watch.close()
        await self.silence()

    def status(self) -> Mapping[str, Any]:
        """Why it is not done, if so."""
        return {"problem": self.problem}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.wake.clear()
            again = await self.update()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(again):
                    await self.wake.wait()
            await asyncio.sleep(_QUIET)

    def conflict(self) -> None:
        """Another device has our name: probe again."""
        if self.problem is None:
            self.conflicts += 1
            self.problem = "conflict"
            self.wake.set()

    async def update(self) -> float | None:
        """Make what is announced what is wanted; returns seconds after which to look again, None: when something
        changes."""
        wanted = self.wanted
        place = network(wanted["interfaces"])
        now = self.responder
        kept = now is not None and now.place == place and self.problem is None and self._same_name(wanted)
        if now is not None and kept:
            if self.announced == wanted:
                now.check()
                return _CHECK
            return await self._announce(now.change(wanted["services"]), wanted)
        await self.silence()
        if self.problem == "conflict":  # the other one probes again, too: whoever comes first has the name
            await asyncio.sleep(random.uniform(0, min(30, 3 * self.conflicts)))
        self.problem = None
        if not place.choice:
            return None  # no network yet
        self.responder = Responder(place, self.conflict)
        again = await self._announce(self.responder.announce(wanted["hostname"], wanted["services"]), wanted)
        if self.responder.owned and self.responder.host != wanted["hostname"]:
            log(
                "notice",
                f"mdns: {wanted['hostname']}.local is another device's; this one is {self.responder.host}.local",
            )
        return again

    def _same_name(self, wanted: Mapping[str, Any]) -> bool:
        return self.announced is not None and self.announced["hostname"] == wanted["hostname"]

    async def _announce(self, work: Awaitable[None], wanted: Mapping[str, Any]) -> float:
        self.announced = wanted
        try:
            await work
        except Exception as error:  # noqa: BLE001  # whatever the network does to us, we try again
            self.problem = f"{type(error).__name__}: {error}"[:200]
            log("warning", f"mdns: {self.problem}")
            return _AGAIN
        return _CHECK

    async def silence(self) -> None:
        """Say goodbye, if anything was said."""
        responder, self.responder = self.responder, None
        if responder is not None:
            with contextlib.suppress(OSError):
                await responder.close()

    # -- questions of the part -----------------------------------------------------------------------------------------

    async def want(self, wanted: Any) -> object:
        """From now on announce this."""
        self.wanted = wanted
        self.wake.set()
        return {}

    async def told(self, _: Any) -> object:
        """The names in use, and what is wrong."""
        names = self.responder.status() if self.responder and self.responder.owned else {}
        wanted = f"{self.wanted['hostname']}.local"
        return {"wanted": wanted, "conflicts": self.conflicts, "problem": self.problem, **names}

    async def browse(self, question: Any) -> object:
        """[type or None, seconds] → the types, or the services of a type. Raises MixosError `mdns-no-network`,
        `mdns-browse`."""
        kind, seconds = question
        responder = self.responder
        if responder is None:
            raise MixosError("there is no network", reason="mdns-no-network", retryable=True)
        try:
            if kind is None:
                return {"types": await responder.types(seconds)}
            services, skipped = await responder.browse(kind, seconds)
            return {"services": services, "skipped": skipped}
        except Exception as error:  # a name that zeroconf refuses, a network that went away
            log("warning", f"mdns: browse: {type(error).__name__}: {error}")
            raise MixosError("the network could not be asked", reason="mdns-browse", retryable=True) from error
