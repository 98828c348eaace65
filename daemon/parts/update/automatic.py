"""What a device does by itself about releases, as its `update.toml` says (`common.settings.update`).

The channel is asked a few times a day, at times that differ from device to device. An offer is fetched, and what was
staged is applied, when that is allowed; what a person asks for goes by the part's methods and is not held back.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING

from common.errors import MixosError
from daemon.linux import facts
from daemon.linux.log import log

if TYPE_CHECKING:
    from common.settings.update import Update as Settings
    from daemon.parts.update.part import Update

TICK = 60.0  # seconds between two looks at the settings and the time
EVERY = 6 * 3600.0  # seconds between two questions to the channel
AGAIN = 900.0  # seconds after one that failed, doubled up to EVERY
BY = "the schedule"


class Automatic:
    """Runs beside the part, and calls it as a person would."""

    def __init__(self, part: Update) -> None:
        self._part = part
        self._due: float | None = None
        self._pause = AGAIN
        self._said: str | None = None  # what was logged last: once each

    async def run(self) -> None:
        """For as long as the daemon runs."""
        while True:
            await asyncio.sleep(TICK)
            try:
                settings = await asyncio.to_thread(self._part.settings)
                if settings.channel and self._part.well:
                    await self._step(settings)
            except MixosError as error:
                self._log("err", error.message)

    async def _step(self, settings: Settings) -> None:
        now = time.monotonic()
        if self._due is None:
            self._due = now + self._share() * 600  # not all at once when the power is back
        if now >= self._due:
            self._due = now + self._pause
            self._pause = min(2 * self._pause, EVERY)
            await self._part.check()
            self._due, self._pause = now + EVERY * (0.9 + self._share() / 5), AGAIN
        await self._fetch(settings)
        await self._apply(settings)

    async def _fetch(self, settings: Settings) -> None:
        found, staged = self._part.checked, self._part.records.now.staged
        if found is None or found["offer"] is None:
            return
        offer = found["offer"]
        there = {image.digest for image in self._part.boot.images} | ({staged.root_hash} if staged else set())
        if offer["root-hash"] in there:  # staged, or waiting for a restart, or somebody went back from it
            return
        held = settings.no_fetch(datetime.now(), self._interface(), offer["transfer"])  # local time
        if held is not None:
            self._log("notice", f"{offer['version']} is offered, and not fetched now: {held}")
            return
        async with aclosing(self._part.fetch(f"{found['channel']}/{offer['bundle']}")) as steps:
            async for _ in steps:
                pass

    async def _apply(self, settings: Settings) -> None:
        if self._part.records.now.staged is None:
            return
        held = settings.no_apply(datetime.now())  # local time
        if held in (None, "reboot"):
            await self._part.apply(BY, restart=held is None)

    def _share(self) -> float:
        """0 to 1, another one on each device."""
        seed = facts.text(self._part.root / "etc/machine-id") or ""
        return hashlib.sha256(f"mixos check\0{seed}".encode()).digest()[0] / 256

    def _interface(self) -> str:
        """Of the way out (proc_pid_net(5)), "" without one."""
        for line in (facts.text(self._part.root / "proc/net/route") or "").splitlines()[1:]:
            words = line.split()
            if words[1] == "00000000" and words[7] == "00000000":
                return words[0]
        return ""

    def _log(self, level: str, text: str) -> None:
        if text != self._said:
            self._said = text
            log(level, f"update: {text}")
