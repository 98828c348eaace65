"""What a device does by itself about releases, as its `update.toml` says (`common.settings.update`).

The channel is asked a few times a day, at times that differ from device to device, and always just before something is
done: what was paused or withdrawn meanwhile is neither fetched nor applied. An offer is fetched, and what was staged is
applied, when that is allowed; what a person asks for goes by the part's methods and is not held back.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING

from common.errors import MixosError
from daemon.linux.log import log
from daemon.parts.update.identity import identity
from daemon.parts.update.starts import way_out

if TYPE_CHECKING:
    from common.settings.update import Update as Settings
    from daemon.parts.update.releases import Releases

TICK = 60.0  # seconds between two looks at the settings and the time
EVERY = 6 * 3600.0  # seconds between two questions to the channel
AGAIN = 900.0  # seconds after one that failed, doubled up to EVERY
FRESH = 900.0  # seconds for which an answer is one to act on
BY = "the schedule"


class Automatic:
    """Asks for what a person would."""

    def __init__(self, releases: Releases) -> None:
        self._releases, self._starts = releases, releases.starts
        self._due: float | None = None  # when the channel is asked next
        self._asked: float | None = None  # when it last answered
        self._not_before, self._pause = 0.0, AGAIN  # after something failed
        self._said: set[str] = set()  # what was logged since then: once each

    async def run(self) -> None:
        """For as long as the daemon runs."""
        while True:
            await asyncio.sleep(TICK)
            if time.monotonic() >= self._not_before:
                await self._turn()

    async def _turn(self) -> None:
        try:
            settings = await asyncio.to_thread(self._releases.settings)
            if settings.channel and self._starts.well:
                await self._step(settings)
                self._releases.trouble = None
            self._pause = AGAIN
        except (MixosError, OSError) as error:
            self._releases.trouble = str(error)
            self._log("err", str(error))
            self._not_before, self._pause = time.monotonic() + self._pause, min(2 * self._pause, EVERY)

    async def _step(self, settings: Settings) -> None:
        now, share = time.monotonic(), await asyncio.to_thread(self._share)
        if self._due is None:
            self._due = now + share * 600  # not all at once when the power is back
        wanted = self._fetches(settings) or self._applies(settings)
        if now >= self._due or (wanted and not self._fresh(now)):
            await self._releases.check()
            self._asked, self._due = now, now + EVERY * (0.9 + share / 5)
            self._said.clear()
        if self._fresh(now):
            await self._fetch(settings)
            await self._apply(settings)

    def _fresh(self, now: float) -> bool:
        return self._asked is not None and now - self._asked < FRESH

    def _fetches(self, settings: Settings) -> bool:
        """Whether the last offer is one to be fetched now."""
        found, staged, running = self._releases.checked, self._starts.records.now.staged, self._starts.boot.running
        if found is None or found["offer"] is None or running is None or running.entry.bad:  # bad: it was left
            return False
        offer = found["offer"]
        there = {image.digest for image in self._starts.boot.images} | ({staged.root_hash} if staged else set())
        if offer["root-hash"] in there:  # staged, or waiting for a restart, or somebody went back from it
            return False
        held = settings.no_fetch(datetime.now(), way_out(self._starts.root), offer["transfer"])  # local time
        if held is not None:
            self._log("notice", f"{offer['version']} is offered, and not fetched now: {held}")
        return held is None

    def _applies(self, settings: Settings) -> bool:
        """Whether something is staged that may be applied now."""
        return self._starts.records.now.staged is not None and settings.no_apply(datetime.now()) in (None, "reboot")

    async def _fetch(self, settings: Settings) -> None:
        found = self._releases.checked
        if found is None or found["offer"] is None or not self._fetches(settings):
            return
        address = f"{found['channel']}/{found['offer']['bundle']}"
        async with aclosing(self._releases.fetch(address, again=True)) as steps:  # newer by its number
            async for _ in steps:
                pass

    async def _apply(self, settings: Settings) -> None:
        staged, found = self._starts.records.now.staged, self._releases.checked
        if staged is None or found is None or not self._applies(settings):
            return
        row = next((one for one in found["candidates"] if one["version"] == staged.version), None)
        if row is None or row["reason"] is not None:
            why = "the channel does not offer it" if row is None else row["why"]
            self._log("notice", f"{staged.version} is staged, and not applied by itself: {why}")
            return
        await self._releases.apply(BY, restart=settings.no_apply(datetime.now()) is None)

    def _share(self) -> float:
        """0 to 1, another one on each device."""
        seed = identity(self._starts.context.state / "update")
        return hashlib.sha256(f"mixos check\0{seed}".encode()).digest()[0] / 256

    def _log(self, level: str, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log(level, f"update: {text}")
