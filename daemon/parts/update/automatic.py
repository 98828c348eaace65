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
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import MixosError
from daemon.linux import facts
from daemon.linux.log import log
from daemon.parts.update.identity import identity

if TYPE_CHECKING:
    from common.settings.update import Update as Settings
    from daemon.parts.update.part import Update

TICK = 60.0  # seconds between two looks at the settings and the time
EVERY = 6 * 3600.0  # seconds between two questions to the channel
AGAIN = 900.0  # seconds after one that failed, doubled up to EVERY
FRESH = 900.0  # seconds for which an answer is one to act on
BY = "the schedule"


class Automatic:
    """Runs beside the part, and calls it as a person would."""

    def __init__(self, part: Update) -> None:
        self._part = part
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
            settings = await asyncio.to_thread(self._part.settings)
            if settings.channel and self._part.well:
                await self._step(settings)
                self._part.trouble = None
            self._pause = AGAIN
        except (MixosError, OSError) as error:
            self._part.trouble = str(error)
            self._log("err", str(error))
            self._not_before, self._pause = time.monotonic() + self._pause, min(2 * self._pause, EVERY)

    async def _step(self, settings: Settings) -> None:
        now, share = time.monotonic(), await asyncio.to_thread(self._share)
        if self._due is None:
            self._due = now + share * 600  # not all at once when the power is back
        wanted = self._fetches(settings) or self._applies(settings)
        if now >= self._due or (wanted and not self._fresh(now)):
            await self._part.check()
            self._asked, self._due = now, now + EVERY * (0.9 + share / 5)
            self._said.clear()
        if self._fresh(now):
            await self._fetch(settings)
            await self._apply(settings)

    def _fresh(self, now: float) -> bool:
        return self._asked is not None and now - self._asked < FRESH

    def _fetches(self, settings: Settings) -> bool:
        """Whether the last offer is one to be fetched now."""
        found, staged, running = self._part.checked, self._part.records.now.staged, self._part.boot.running
        if found is None or found["offer"] is None or running is None or running.entry.bad:  # bad: it was left
            return False
        offer = found["offer"]
        there = {image.digest for image in self._part.boot.images} | ({staged.root_hash} if staged else set())
        if offer["root-hash"] in there:  # staged, or waiting for a restart, or somebody went back from it
            return False
        held = settings.no_fetch(datetime.now(), way_out(self._part.root), offer["transfer"])  # local time
        if held is not None:
            self._log("notice", f"{offer['version']} is offered, and not fetched now: {held}")
        return held is None

    def _applies(self, settings: Settings) -> bool:
        """Whether something is staged that may be applied now."""
        return self._part.records.now.staged is not None and settings.no_apply(datetime.now()) in (None, "reboot")

    async def _fetch(self, settings: Settings) -> None:
        found = self._part.checked
        if found is None or found["offer"] is None or not self._fetches(settings):
            return
        address = f"{found['channel']}/{found['offer']['bundle']}"
        async with aclosing(self._part.fetch(address, again=True)) as steps:  # newer by its number
            async for _ in steps:
                pass

    async def _apply(self, settings: Settings) -> None:
        staged, found = self._part.records.now.staged, self._part.checked
        if staged is None or found is None or not self._applies(settings):
            return
        row = next((one for one in found["candidates"] if one["version"] == staged.version), None)
        if row is None or row["reason"] is not None:
            why = "the channel does not offer it" if row is None else row["why"]
            self._log("notice", f"{staged.version} is staged, and not applied by itself: {why}")
            return
        await self._part.apply(BY, restart=settings.no_apply(datetime.now()) is None)

    def _share(self) -> float:
        """0 to 1, another one on each device."""
        seed = identity(self._part.context.state / "update")
        return hashlib.sha256(f"mixos check\0{seed}".encode()).digest()[0] / 256

    def _log(self, level: str, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log(level, f"update: {text}")


def way_out(root: Path) -> str:
    """The interface of the default route (proc_pid_net(5)), the one with the least metric; "" when there is none, or
    only one that refuses or drops what comes: it has no interface (IPv4), or the loopback one."""
    rows = [line.split() for line in (facts.text(root / "proc/net/route") or "").splitlines()[1:]]
    four = [(int(row[6]), row[0]) for row in rows if row[1] == row[7] == "00000000" and row[0] != "*"]
    rows = [line.split() for line in (facts.text(root / "proc/net/ipv6_route") or "").splitlines()]
    six = [(int(row[5], 16), row[9]) for row in rows if row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo"]
    return min(four or six, default=(0, ""))[1]
