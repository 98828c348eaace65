"""The part `update`: which image runs, whether it is good, what the loader starts next (`Starts`); and what is taken in
its place (`Releases`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from common.tomlfile import Strict
from daemon.core.figures import Finding
from daemon.core.method import ADMINS, OPERATORS, PEOPLE, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.core.transfer import Accepts, Content
from daemon.linux import facts, programs
from daemon.parts.update.automatic import Automatic
from daemon.parts.update.boot import Image
from daemon.parts.update.devicekey import DeviceKey
from daemon.parts.update.record import Happened
from daemon.parts.update.releases import Releases
from daemon.parts.update.secureboot import Additions
from daemon.parts.update.starts import Starts, state

if TYPE_CHECKING:
    from daemon.parts.update.answers import (
        Changed,
        Checked,
        ConflictRow,
        HistoryRow,
        ImageRow,
        Progress,
        PublicKey,
        Repairing,
        Status,
    )

_WRITE = 65.0  # seconds that a method has for one start of the program that writes to disks


class Version(Strict):
    """Parameters of `update.clear`."""

    version: Annotated[str, Field(max_length=63, description="the version that may be installed and started again")]


class Stage(Strict):
    """Parameters of `update.stage`."""

    content: Annotated[Content, Accepts(None, idle=None)] = Field(
        description="a socket at whose other end somebody answers for ranges of the bundle (docs/bundle.md)"
    )
    again: bool = Field(default=False, description="also a version that is not newer than what runs")


class Fetch(Strict):
    """Parameters of `update.fetch`."""

    url: Annotated[str, Field(max_length=2000, pattern=r"^https?://[!-?A-~]+$")] | None = Field(
        default=None,
        description="of a bundle, such as https://example.org/mixos-1.4.0.mixb; none: what the channel offers",
    )
    again: bool = Field(default=False, description="also a version that is not newer than what runs")
    rate: int | None = Field(default=None, ge=4096, description="bytes per second that are taken at most")


class Repair(Strict):
    """Parameters of `update.repair`."""

    content: Annotated[Content, Accepts(None, idle=None)] | None = Field(
        default=None,
        description="a socket at whose other end somebody answers for ranges of the bundle of the other slot; without "
        "it and without an address, what is on the disk must do",
    )
    url: Annotated[str, Field(max_length=2000, pattern=r"^https?://[!-?A-~]+$")] | None = Field(
        default=None, description="of that bundle"
    )
    rate: int | None = Field(default=None, ge=4096, description="bytes per second that are taken at most")


class Apply(Strict):
    """Parameters of `update.apply`."""

    restart: bool = Field(default=True, description="at once; else somebody restarts the device later")


class Settled(Strict):
    """Parameters of `update.resolve`."""

    file: Annotated[str, Field(max_length=255, description="its path")]
    take: Annotated[bool, Field(strict=True, description="the other content; otherwise the file stays as it is")] = (
        False
    )


class Update:
    """See the module. root: the tree to read from; slots, release, fetch, floor, firmware: the programs
    (`daemon.slots`, `daemon.release`, `daemon.fetch`, `daemon.floor`, `daemon.firmware`)."""

    name = "update"

    def __init__(
        self,
        context: Context,
        root: Path = facts.ROOT,
        slots: Sequence[str] = programs.SLOTS,
        release: Sequence[str] = programs.RELEASE,
        fetch: Sequence[str] = programs.FETCH,
        floor: Sequence[str] = programs.FLOOR,
        ask_init: Callable[[int], None] = lambda number: os.kill(1, number),
        firmware: Sequence[str] = programs.FIRMWARE,
    ) -> None:
        self.starts = Starts(context, root, slots, floor)
        self.releases = Releases(self.starts, release, slots, fetch, ask_init)
        self.additions = Additions(self.starts, firmware, lambda: self.releases.progress is not None)
        self._devicekey = DeviceKey(context.state)
        self._tasks: list[asyncio.Task[None]] = []
        self._floor: asyncio.Task[None] | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look at the disk, tell what failed before, and watch until this boot is called good."""
        await asyncio.to_thread(self.starts.begin)
        self._floor = background("update floor", self.starts.floor.run)
        self._watch()

    def _watch(self) -> None:
        """What runs is watched once it is known."""
        running = self.starts.boot.running
        if not self._tasks and running is not None and running.entry.left is not None:
            self._tasks.append(background("update", self.starts.watch))
            self._tasks.append(background("update channel", Automatic(self.releases).run))
            self._tasks.append(background("update firmware", self.additions.run))

    async def stop(self) -> None:
        """Leave all as it is."""
        tasks = [*self._tasks, self._floor] if self._floor else self._tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self.releases.stop(), return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """What runs, what comes next, what is wrong."""
        starts = self.starts
        running, following, staged = starts.boot.running, starts.boot.next, starts.records.now.staged
        return {
            "running": state(running),
            "next": following.version if following else None,
            "problem": starts.error.message if starts.error else starts.problem,
            "staged": staged.version if staged else None,
        }

    def findings(self) -> Iterator[Finding]:
        """What is not well since the version was changed, with the downgrade floor, and with firmware's databases."""
        yield from self.starts.findings()
        yield from self.starts.floor.findings()
        yield from self.additions.findings()

    def methods(self) -> Sequence[Method]:
        """What can be called."""
        return [
            Method("update.status", "What runs, and what the next boot starts.", self._status, PEOPLE),
            Method("update.history", "What happened to images, the newest first.", self._history, PEOPLE),
            Method(
                "update.check", "Ask the channel what it has for this device.", self._check, OPERATORS, seconds=300.0
            ),
            Method(
                "update.stage",
                "Verify a release and put it into the slot that does not run.",
                self._stage,
                OPERATORS,
                Stage,
                changes=True,
            ),
            Method(
                "update.fetch",
                "The same with a release that is on a web server.",
                self._fetch,
                OPERATORS,
                Fetch,
                changes=True,
            ),
            Method(
                "update.take",
                "Begin to stage a release that is on a web server; events and update.status tell how far it is.",
                self._take,
                OPERATORS,
                Fetch,
                changes=True,
            ),
            Method("update.stop", "End what is being staged, whoever began it.", self._stop, OPERATORS, changes=True),
            Method(
                "update.apply",
                "Have the next boot start what was staged, and restart.",
                self._apply,
                OPERATORS,
                Apply,
                changes=True,
                seconds=420.0,
            ),
            Method("update.examine", "Read the boot disk whole, and tell what is wrong.", self._examine, OPERATORS),
            Method(
                "update.repair",
                "Restore what is damaged on the boot disk; what runs stays what is started.",
                self._repair,
                OPERATORS,
                Repair,
                changes=True,
            ),
            Method(
                "update.key",
                "The key that releases are encrypted to for this device; made when there is none.",
                self._key,
                OPERATORS,
                changes=True,
                seconds=2 * _WRITE,
            ),
            Method(
                "update.commit",
                "Call what runs good, without waiting.",
                self._commit,
                ADMINS,
                changes=True,
                seconds=_WRITE,
            ),
            Method(
                "update.rollback",
                "Have the next boot start the other image.",
                self._rollback,
                OPERATORS,
                changes=True,
                seconds=2 * _WRITE,
            ),
            Method(
                "update.clear",
                "Let a version that failed be started again.",
                self._clear,
                OPERATORS,
                Version,
                changes=True,
            ),
            Method("update.conflicts", "Files of which two versions want different contents.", self._conflicts, ADMINS),
            Method(
                "update.resolve",
                "Settle which content a file has.",
                self._resolve,
                ADMINS,
                Settled,
                changes=True,
                seconds=2 * _WRITE,
            ),
        ]

    # -- what runs ---------------------------------------------------------------------------------------------------

    async def _status(self, _caller: Caller, _params: Nothing) -> Status:
        starts, releases = self.starts, self.releases
        await starts.looked()
        record, running, following = starts.records.now, starts.boot.running, starts.boot.next
        return {
            "slot": starts.boot.slot,
            "version": running.version if running else None,
            "state": state(running),
            "problem": starts.problem,
            "deadline": starts.deadline(),
            "next": following.version if following else None,
            "next-slot": following.slot if following else None,
            "images": [self._image(image) for image in starts.boot.images],
            "blocked": {one.version: one.reason for one in record.blocked.values()},
            "floor": starts.floor.now,
            "floor-in-tpm": starts.floor.in_tpm,
            "floor-problem": starts.floor.lost or starts.floor.problem,
            "staged": record.staged.version if record.staged else None,
            "checked": releases.checked,
            "trouble": releases.trouble,
            "taking": releases.progress,
            "last": _happened(record.history[-1]) if record.history else None,
            "data-problem": starts.data.problem(),
            "conflicts": [f"/{name}" for name in starts.data.conflicts],
            "firmware": self.additions.rows(),
        }

    def _image(self, image: Image) -> ImageRow:
        boot, blocked = self.starts.boot, self.starts.records.now.blocked.get(image.digest)
        return {
            "version": image.version,
            "kernel": image.kernel,
            "slot": image.slot,
            "file": image.entry.name,
            "state": state(image),
            "starts-left": image.entry.left,
            "starts-made": image.entry.done,
            "running": image is boot.running,
            "next": image is boot.next,
            "blocked": blocked.reason if blocked else None,
            "root-hash": image.digest or None,
        }

    async def _history(self, _caller: Caller, _params: Nothing) -> list[HistoryRow]:
        return [_happened(one) for one in reversed(self.starts.records.now.history)]

    async def _key(self, _caller: Caller, _params: Nothing) -> PublicKey:
        return {"key": await self._devicekey.public()}

    async def _commit(self, _caller: Caller, _params: Nothing) -> Changed:
        self.starts.refuse_left()
        await self.starts.commit()
        return self._changed()

    async def _rollback(self, caller: Caller, _params: Nothing) -> Changed:
        await self.starts.roll_back(caller.name)
        return self._changed()

    async def _clear(self, _caller: Caller, params: Version) -> Changed:
        await self.starts.clear(params.version)
        return self._changed()

    async def _conflicts(self, _caller: Caller, _params: Nothing) -> list[ConflictRow]:
        return await asyncio.to_thread(self.starts.data.rows)

    async def _resolve(self, caller: Caller, params: Settled) -> list[str]:
        async with self.starts.turn:
            await self.starts.data.resolve(caller, params.file, params.take)
        return [f"/{name}" for name in self.starts.data.conflicts]

    def _changed(self) -> Changed:
        following = self.starts.boot.next
        return {"next": following.version if following else None, "next-slot": following.slot if following else None}

    # -- what is taken -----------------------------------------------------------------------------------------------

    async def _check(self, _caller: Caller, _params: Nothing) -> Checked:
        return await self.releases.check()

    async def _stage(self, _caller: Caller, params: Stage) -> AsyncIterator[Progress]:
        source = params.content.socket()
        try:
            async with aclosing(self.releases.staged(source, params.again)) as steps:
                async for step in steps:
                    yield step
        finally:
            os.close(source)

    async def _fetch(self, _caller: Caller, params: Fetch) -> AsyncIterator[Progress]:
        async with aclosing(self.releases.wanted(params.url, params.again, params.rate)) as steps:
            async for step in steps:
                yield step

    async def _take(self, _caller: Caller, params: Fetch) -> bool:
        self.releases.take(params.url, params.again, params.rate)
        return True

    async def _stop(self, _caller: Caller, _params: Nothing) -> bool:
        return await self.releases.stop()

    async def _apply(self, caller: Caller, params: Apply) -> Changed:
        await self.releases.apply(caller.name, params.restart)
        return self._changed()

    async def _examine(self, _caller: Caller, _params: Nothing) -> AsyncIterator[Repairing]:
        async with aclosing(self.releases.examine()) as steps:
            async for step in steps:
                yield step

    async def _repair(self, caller: Caller, params: Repair) -> AsyncIterator[Repairing]:
        async with AsyncExitStack() as stack:
            source = None
            if params.content is not None:
                source = params.content.socket()
                stack.callback(os.close, source)
            elif params.url is not None:
                served = self.releases.served("ranges", params.url, params.rate)
                source = await stack.enter_async_context(served)
            steps = await stack.enter_async_context(aclosing(self.releases.repair(caller.name, source)))
            async for step in steps:
                self._watch()  # now that what runs may be known
                yield step


def _happened(one: Happened) -> HistoryRow:
    return {"at": one.at, "what": one.what, "version": one.version, "slot": one.slot, "reason": one.reason}
