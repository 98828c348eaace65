"""What people and the schedule do about releases: ask the channel, stage one, apply it, mend the disk."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

from common.errors import MixosError, NotFoundError, RefusedError
from common.files import read_regular
from daemon.core.manifest import function
from daemon.linux import facts
from daemon.linux.log import log
from daemon.parts.update.starts import Starts, way_out

if TYPE_CHECKING:
    from common.settings.update import Update as UpdateSettings
    from daemon.parts.update.answers import Checked, Progress, Repairing
    from daemon.parts.update.taking import Taking

_MAX_SETTINGS = 64 << 10  # bytes of update.toml


class Releases:
    """starts: what runs; release, slots, fetch: the programs (`daemon.release`, `daemon.slots`, `daemon.fetch`).

    checked: what the channel said last; trouble: why what nobody waited for has failed.
    """

    def __init__(
        self,
        starts: Starts,
        release: Sequence[str],
        slots: Sequence[str],
        fetch: Sequence[str],
        ask_init: Callable[[int], None],
    ) -> None:
        self.starts, self._context = starts, starts.context
        self._programs, self._fetcher, self._ask_init = (release, slots), fetch, ask_init
        self.checked: Checked | None = None
        self.trouble: str | None = None
        self._background: asyncio.Task[None] | None = None
        self._staging = 0
        self._ended = asyncio.Event()  # set: what is being staged is wanted no more

    @cached_property
    def _taking(self) -> Taking:
        from daemon.parts.update.taking import Taking

        starts, (release, slots) = self.starts, self._programs
        return Taking(starts.context, starts.records, starts.root, release, slots)

    @property
    def progress(self) -> Progress | None:
        """Of what is being staged."""
        return cast("Progress | None", self._taking.progress) if "_taking" in self.__dict__ else None

    # -- the channel ---------------------------------------------------------------------------------------------------

    def settings(self) -> UpdateSettings:
        """`update.toml`. Raises SettingsError."""
        from common.settings.model import parse_update

        path = self._context.etc / "update.toml"
        try:
            return parse_update(read_regular(path, _MAX_SETTINGS), str(path))
        except FileNotFoundError:
            return parse_update(b"", str(path))

    async def check(self) -> Checked:
        """Ask the channel, and keep what it said. Raises NotFoundError `update-no-channel`, TrustError, MixosError."""
        channel = (await asyncio.to_thread(self.settings)).channel.rstrip("/")
        if not channel:
            hint = f'channel = "https://…" in {self._context.etc}/update.toml'
            raise NotFoundError("this device follows no channel", reason="update-no-channel", hint=hint)
        await self.starts.looked()
        async with self.served("files", f"{channel}/") as source:
            found = await self._taking.check(self.starts.boot, source)
        self.checked = cast("Checked", {"at": round(time.time(), 3), "channel": channel, **found})
        if found["offer"]:
            self._context.events.publish("update.offered", found["offer"]["version"])
        return self.checked

    async def _offered(self) -> str:
        """The URL of the bundle that the channel offers. Raises NotFoundError `update-no-offer`."""
        found = await self.check()
        offer, why = found["offer"], found["why"]
        if offer is None:
            words = f"{why['version']}: {why['why']}" if why else "the channel has nothing for such a device"
            raise NotFoundError(f"no release is offered to this device: {words}", reason="update-no-offer")
        return f"{found['channel']}/{offer['bundle']}"

    # -- taking one ----------------------------------------------------------------------------------------------------

    async def wanted(self, url: str | None, again: bool, rate: int | None) -> AsyncGenerator[Progress]:
        """Stage the bundle at an address, or (None) what the channel offers. Raises NotFoundError `update-no-offer`;
        what `check` and `fetch` raise."""
        again = again or url is None  # of what a channel offers the number decides, not the name
        async with aclosing(self.fetch(url or await self._offered(), again, rate)) as steps:
            async for step in steps:
                yield step

    async def fetch(self, url: str, again: bool = False, rate: int | None = None) -> AsyncGenerator[Progress]:
        """Stage the bundle at an address. Raises what `Taking.stage` raises."""
        async with self.served("ranges", url, rate) as source, aclosing(self.staged(source, again)) as steps:
            async for step in steps:
                yield step

    async def staged(self, source: int, again: bool) -> AsyncGenerator[Progress]:
        """Stage what a socket gives. again: also a version that is not newer than what runs. Raises what
        `Taking.stage` raises."""
        await self.starts.looked()
        told = None
        async with self._under_way(), aclosing(self._taking.stage(self.starts.boot, source, again)) as steps:
            while (step := await self._next(steps)) is not None:
                yield cast("Progress", step)
                if step["step"] == "staged":
                    self._context.events.publish("update.staged", step["version"])
                elif told != (told := (step["step"], step["done"] * 20 // max(1, step["of"]))):  # each twentieth
                    more = {name: value for name, value in step.items() if name != "version"}
                    self._context.events.publish("update.progress", step["version"], **more)

    def take(self, url: str | None, again: bool, rate: int | None) -> None:
        """Begin to do as `wanted` does, with nobody who listens: events tell how it goes.

        Raises RefusedError `update-busy`.
        """
        self.starts.usable()
        if self._background is not None and not self._background.done():
            raise RefusedError("another release is being taken", reason="update-busy", retryable=True)
        self._background = asyncio.create_task(self._taken_alone(url, again, rate), name="update take")

    async def _taken_alone(self, url: str | None, again: bool, rate: int | None) -> None:
        self.trouble = None
        try:
            async with aclosing(self.wanted(url, again, rate)) as steps:
                async for _ in steps:
                    pass
        except (MixosError, OSError) as error:
            self.trouble = str(error)
            log("err", f"update: {error}")
            self._context.events.publish("update.not-staged", url or "", reason=self.trouble)

    @contextlib.asynccontextmanager
    async def _under_way(self) -> AsyncIterator[None]:
        self._ended.clear()
        self._staging += 1
        try:
            yield
        finally:
            self._staging -= 1

    async def _next(self, steps: AsyncGenerator[dict[str, Any]]) -> dict[str, Any] | None:
        """The next one, None at the end. Raises RefusedError `update-stopped` when somebody ends it meanwhile."""
        step, ended = asyncio.ensure_future(anext(steps, None)), asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((step, ended), return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                return step.result()
            raise RefusedError("somebody has ended this", reason="update-stopped", retryable=True)
        finally:
            step.cancel()
            ended.cancel()
            await asyncio.gather(step, ended, return_exceptions=True)

    async def stop(self) -> bool:
        """End what is being staged, whoever began it, and what `take` has begun; whether there was something."""
        task, staging = self._background, self._staging > 0
        self._ended.set()
        if task is None or task.done():
            return staging
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return True

    @contextlib.asynccontextmanager
    async def served(self, kind: Literal["ranges", "files"], url: str, rate: int | None = None) -> AsyncIterator[int]:
        """A socket at whose other end the web server's bytes are answered for."""
        from daemon.parts.update import fetching

        self.starts.usable()
        told = await asyncio.to_thread(fetching.settings, self._context.etc)
        told |= {"url": url, "rate": rate, "proxy": await asyncio.to_thread(self._proxy, url)}
        async with fetching.fetching(kind, told, self._fetcher) as channel:
            yield channel

    def _proxy(self, url: str) -> str | None:
        found: Mapping[str, str] = function("proxies-for")(url, etc=self._context.etc)
        return next(iter(found.values()), None)

    # -- the disk ------------------------------------------------------------------------------------------------------

    async def examine(self) -> AsyncGenerator[Repairing]:
        """Read the boot disk whole. Raises what `Taking.examine` raises."""
        async with aclosing(self._taking.examine()) as steps:
            async for step in steps:
                yield cast("Repairing", step)

    async def repair(self, who: str, source: int | None) -> AsyncGenerator[Repairing]:
        """Restore what is damaged on the boot disk. source: a socket where the bundle of the other slot comes from.
        Raises what `Taking.repair` raises."""
        if source is not None:
            await self.starts.looked()
        async with aclosing(self._taking.repair(self.starts.boot, source)) as steps:
            async for step in steps:
                if step["mended"]:
                    await self._repaired(who, step)
                yield cast("Repairing", step)

    async def _repaired(self, who: str, step: Mapping[str, Any]) -> None:
        """Keep what was mended, and see the disk as it is now."""
        starts = self.starts
        async with starts.turn:
            version = step["version"] or facts.release(starts.root).get("MIXOS_VERSION", "")
            what = f"by {who}: {', '.join(step['mended'])}"[:500]
            happened = starts.records.happened("repaired", version, None, what)
            await asyncio.to_thread(starts.records.change, history=starts.records.history(happened))
            if starts.error is None:
                await asyncio.to_thread(starts.look)
            else:
                starts.error = None
                await asyncio.to_thread(starts.begin)
        self._context.events.publish("update.repaired", version, mended=list(step["mended"]))

    async def apply(self, who: str, restart: bool) -> None:
        """Have the next boot start what was staged. Raises what `Taking.seal` raises."""
        starts, records = self.starts, self.starts.records
        starts.usable()
        async with starts.turn:
            await asyncio.to_thread(starts.look)
            boot = facts.text(starts.root / "proc/sys/kernel/random/boot_id")
            records.change(installed_in=boot, network=bool(way_out(starts.root)), trial=None)
            staged = await self._taking.seal(starts.boot)
            await asyncio.to_thread(starts.look)
            if starts.boot.next is None or starts.boot.next.digest != staged.root_hash:
                await starts.leave(staged.root_hash)
            happened = records.happened("installed", staged.version, staged.slot, f"by {who}")
            records.change(staged=None, history=records.history(happened))
            starts.settled = True
        self._context.events.publish("update.installed", staged.version, slot=staged.slot)
        if restart:
            asyncio.get_running_loop().call_later(0.2, self._restart)  # the answer goes first

    def _restart(self) -> None:
        log("notice", "update: asking init for a restart")
        self._context.events.publish("system.stopping", "reboot")
        self._ask_init(signal.SIGTERM)
