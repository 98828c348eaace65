"""The part `update`: which image runs, whether it is good, what the loader starts next.

A start uses up one of those that the image has (`common.efi.entries`). When it is well, its entry gets them back: a new
one after everything has been well for a while, one that was good before as soon as the daemon's parts are up. A new
image that does not get well is restarted by the keeper (`daemon/native/keeper`), and has no starts left in the end:
then the loader takes the other one, and this part says there why. One behind which there is no other, only the rescue
entry, has its starts back as soon as the daemon's parts are up: a device that can be reached beats one that waits for
somebody to come.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from common.efi.entries import Entry
from common.errors import DiskError, MixosError, NotFoundError, RefusedError
from common.files import read_regular
from common.tomlfile import Strict
from daemon.core.figures import Finding
from daemon.core.manifest import function
from daemon.core.method import ADMINS, OPERATORS, PEOPLE, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.core.transfer import Accepts, Content
from daemon.linux import facts, programs
from daemon.linux.log import log
from daemon.parts.update.automatic import Automatic
from daemon.parts.update.boot import Boot, Disk, Image, look
from daemon.parts.update.data import Data
from daemon.parts.update.record import Blocked, Happened, Records, Trial
from daemon.parts.update.verdict import failures, panic_line

if TYPE_CHECKING:
    from common.settings.update import Update as UpdateSettings
    from daemon.parts.update.answers import (
        Changed,
        Checked,
        ConflictRow,
        HistoryRow,
        ImageRow,
        Progress,
        Repairing,
        State,
        Status,
    )
    from daemon.parts.update.taking import Taking

PAUSE = 2.0  # seconds between two looks at whether all is well
STABLE = 20.0  # seconds for which it must be, in a new image
_MAX_SETTINGS = 64 << 10  # bytes of update.toml
_WRITE = 65.0  # seconds that a method has for one start of the program that writes to disks
_MAX_PANIC = 1 << 20  # bytes of a kernel's last words


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
    """See the module. root: the tree to read from; slots, release: the programs (`daemon.slots`, `daemon.release`)."""

    name = "update"

    def __init__(
        self,
        context: Context,
        root: Path = facts.ROOT,
        slots: Sequence[str] = programs.SLOTS,
        release: Sequence[str] = programs.RELEASE,
        fetch: Sequence[str] = programs.FETCH,
        ask_init: Callable[[int], None] = lambda number: os.kill(1, number),
    ) -> None:
        self.context = context
        self.root = root
        self._slots, self._release, self._fetcher, self._ask_init = slots, release, fetch, ask_init
        self._taken: Taking | None = None
        self.checked: Checked | None = None
        self.trouble: str | None = None  # why what nobody waited for has failed
        self._background: asyncio.Task[None] | None = None
        self.records = Records(context.state / "update" / "record.json")
        self.data = Data(context, root)
        self.disk: Disk | None = None
        self.boot = Boot(None, None, (), None)
        self.problem: str | None = None  # what keeps the running image from being called good
        self._error: MixosError | None = None
        self._trial = context.run / "trial"  # see the keeper
        self._tasks: list[asyncio.Task[None]] = []
        self._settled = False  # whether it was called good in this boot, or left
        self._renewed = False  # whether it got its starts back in this boot without being called good
        self._turn = asyncio.Lock()  # for the disk and the record

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look at the disk, tell what failed before, and watch until this boot is called good."""
        await asyncio.to_thread(self._begin)
        self._watched()

    def _watched(self) -> None:
        """What runs is watched once it is known."""
        if not self._tasks and self.boot.running is not None and self.boot.running.entry.left is not None:
            self._tasks.append(background("update", self._watch))
            self._tasks.append(background("update channel", Automatic(self).run))

    async def stop(self) -> None:
        """Leave all as it is."""
        tasks = [*self._tasks, *([self._background] if self._background else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """What runs, what comes next, what is wrong."""
        running, following = self.boot.running, self.boot.next
        return {
            "running": _state(running),
            "next": following.version if following else None,
            "problem": self._error.message if self._error else self.problem,
            "staged": self.records.now.staged.version if self.records.now.staged else None,
        }

    def findings(self) -> Iterator[Finding]:
        """What is not well with the data since the version was changed."""
        return self.data.findings()

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
            Method("update.stop", "End what update.take has begun.", self._stop, OPERATORS, changes=True),
            Method(
                "update.apply",
                "Have the next boot start what was staged, and restart.",
                self._apply,
                OPERATORS,
                Apply,
                changes=True,
                seconds=300.0,
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
                "update.commit",
                "Call what runs good, without waiting.",
                self._commit_now,
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

    def _begin(self) -> None:
        self.records.load()
        self.data.look()
        try:
            self.disk = Disk.find(self.root)
            self._look()
        except MixosError as error:
            self._error = error
            log("err", f"update: {error.message}")
            return
        panic = self._panic()
        record = self.records.now
        if failed := failures(self.boot, record, panic):
            fell = [self.records.happened("failed", one.image.version, one.image.slot, one.reason) for one in failed]
            blocked = {
                (one.image.root_hash or b"").hex(): Blocked(version=one.image.version, reason=one.reason, at=fell[0].at)
                for one in failed
            }
            for one in failed:
                log("err", f"update: {one.image.version} failed {one.reason}")
                self.context.events.publish("update.failed", one.image.version, reason=one.reason)
            self.records.change(blocked={**record.blocked, **blocked}, history=self.records.history(*fell))
        running = self.boot.running
        if running is None:
            return
        if running.digest in self.records.now.given_up:  # the loader had nothing better
            self.records.change(given_up=tuple(one for one in self.records.now.given_up if one != running.digest))
        if not running.entry.good:
            self._started(running)

    def _started(self, image: Image) -> None:
        """A new image has come as far as this."""
        trial = self.records.now.trial
        boot = facts.text(self.root / "proc/sys/kernel/random/boot_id") or ""
        if trial is None or trial.root_hash != image.digest:
            trial = Trial(root_hash=image.digest, version=image.version)
        if boot not in trial.boots:
            self.records.change(trial=trial.model_copy(update={"boots": (*trial.boots, boot)[-8:]}))

    def _look(self) -> None:
        assert self.disk is not None
        self.disk = Disk.at(self.disk.path)
        self.boot = look(self.disk, facts.slot(self.root), self.root)

    def _panic(self) -> str | None:
        """Why the kernel died before, if it could leave that (pstore); what it left is then removed: the firmware's
        room for it is small."""
        found = None
        for path in sorted((self.root / "sys/fs/pstore").glob("dmesg-*")):
            with contextlib.suppress(OSError):
                with path.open("rb") as stream:
                    text = stream.read(_MAX_PANIC).decode("utf-8", "replace")
                found = panic_line(text) or found
                log("err", f"update: {path.name}: {panic_line(text) or 'the kernel left its last words'}")
                path.unlink()
        return found

    # -- is it good? -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        since: float | None = None
        while True:
            problem = self._unwell()
            if problem != self.problem:
                self.problem = problem
                async with self._turn:
                    await asyncio.to_thread(self._note, problem)
            since = None if problem else since or time.monotonic()
            new = self.boot.running is not None and not self.boot.running.entry.good
            try:
                if not self._settled and since is not None and time.monotonic() - since >= (STABLE if new else 0.0):
                    await self._commit()
                elif not self._settled and not self._renewed and self._parts_down() is None and self._is_last():
                    await self._renew()
            except (MixosError, OSError) as error:
                log("err", f"update: the starts of this version cannot be written: {error}")
            await asyncio.sleep(PAUSE)

    def _parts_down(self) -> str | None:
        return next((one.text for one in self.context.figures.findings() if one.check == "parts"), None)

    def _is_last(self) -> bool:
        """Whether the loader has nothing else to start, but the rescue entry."""
        return self.boot.other is None or self.boot.other.entry.bad

    async def _renew(self) -> None:
        """Give the running image the starts that it had. Raises MixosError, OSError."""
        async with self._turn:
            await asyncio.to_thread(self._look)
            running = self.boot.running
            if running is not None and not self._settled and self._is_last():
                if running.entry != running.entry.renewed():
                    await self._count(running.entry, running.entry.renewed())
                    await asyncio.to_thread(self._look)
                self._renewed = True

    def _unwell(self) -> str | None:
        """What keeps the running image from being called good."""
        running = self.boot.running
        assert running is not None
        if (down := self._parts_down()) is not None:
            return down
        for finding in self.context.figures.findings():
            if finding.state == "critical" and not running.entry.good:
                return finding.text
        record = self.records.now
        if not running.entry.good:
            if record.network and not _way_out(self.root):
                return "there is no way out of the network, and there was one before the update"
            if record.installed_in == facts.text(self.root / "proc/sys/kernel/random/boot_id"):
                return "the device was not restarted since it was installed"
        return None

    def _note(self, problem: str | None) -> None:
        trial, running = self.records.now.trial, self.boot.running
        if trial is not None and running is not None and trial.root_hash == running.digest:
            with contextlib.suppress(OSError):
                self.records.change(trial=trial.model_copy(update={"problem": problem}))

    async def _commit(self) -> None:
        async with self._turn:
            if not self._settled:
                await self._bless()
                self._settled = True

    async def _bless(self) -> None:
        """Give the running image its starts back. Raises MixosError, OSError."""
        await asyncio.to_thread(self._look)
        running = self.boot.running
        if running is None:
            raise NotFoundError("the loader has no entry for what runs", reason="update-entry")
        new = not running.entry.good
        if running.entry != running.entry.blessed():
            await self._count(running.entry, running.entry.blessed())
            await asyncio.to_thread(self._look)
        if new:
            happened = self.records.happened("committed", running.version, running.slot)
            floor = max(self.records.now.floor, int(facts.release(self.root).get("MIXOS_FLOOR", "0")))
            self.records.change(trial=None, floor=floor, history=self.records.history(happened))
            self.context.events.publish("update.committed", running.version, slot=running.slot)
            log("notice", f"update: {running.version} is good")
        self._trial.unlink(missing_ok=True)

    async def _count(self, old: Entry, new: Entry) -> None:
        """Have the counter of an entry written, by the program that may write to disks. Raises MixosError."""
        try:
            await programs.ended([*self._slots, "count", old.name, new.name])
        except MixosError as error:
            message = f"the starts of {old.name} were not written: {error.message}"
            raise DiskError(message, reason="update-count", retryable=error.retryable) from error

    # -- methods -----------------------------------------------------------------------------------------------------

    async def _status(self, _caller: Caller, _params: Nothing) -> Status:
        self._usable()
        async with self._turn:
            await asyncio.to_thread(self._look)
        record, following = self.records.now, self.boot.next
        return {
            "slot": self.boot.slot,
            "version": self.boot.running.version if self.boot.running else None,
            "state": _state(self.boot.running),
            "problem": self.problem,
            "deadline": self._deadline(),
            "next": following.version if following else None,
            "next-slot": following.slot if following else None,
            "images": [self._image(image) for image in self.boot.images],
            "blocked": {one.version: one.reason for one in record.blocked.values()},
            "floor": record.floor,
            "staged": record.staged.version if record.staged else None,
            "checked": self.checked,
            "trouble": self.trouble,
            "taking": cast("Progress | None", self._taken.progress if self._taken else None),
            "last": _happened(record.history[-1]) if record.history else None,
            "data-problem": self.data.problem(),
            "conflicts": [f"/{name}" for name in self.data.conflicts],
        }

    def _image(self, image: Image) -> ImageRow:
        blocked = self.records.now.blocked.get(image.digest)
        return {
            "version": image.version,
            "kernel": image.kernel,
            "slot": image.slot,
            "file": image.entry.name,
            "state": _state(image),
            "starts-left": image.entry.left,
            "starts-made": image.entry.done,
            "running": image is self.boot.running,
            "next": image is self.boot.next,
            "blocked": blocked.reason if blocked else None,
            "root-hash": image.digest or None,
        }

    async def _history(self, _caller: Caller, _params: Nothing) -> list[HistoryRow]:
        return [_happened(one) for one in reversed(self.records.now.history)]

    async def _stage(self, _caller: Caller, params: Stage) -> AsyncIterator[Progress]:
        self._usable()
        source = params.content.socket()
        try:
            async with aclosing(self._staged(source, params.again)) as steps:
                async for step in steps:
                    yield step
        finally:
            os.close(source)

    async def _fetch(self, _caller: Caller, params: Fetch) -> AsyncIterator[Progress]:
        async with aclosing(self._wanted(params)) as steps:
            async for step in steps:
                yield step

    async def _wanted(self, params: Fetch) -> AsyncGenerator[Progress]:
        again = params.again or params.url is None  # of what a channel offers the number decides, not the name
        async with aclosing(self.fetch(params.url or await self._offered(), again, params.rate)) as steps:
            async for step in steps:
                yield step

    async def _take(self, _caller: Caller, params: Fetch) -> bool:
        self._usable()
        if self._background is not None and not self._background.done():
            raise RefusedError("another release is being taken", reason="update-busy", retryable=True)
        self._background = asyncio.create_task(self._taken_alone(params), name="update take")
        return True

    async def _taken_alone(self, params: Fetch) -> None:
        """As `update.fetch`, with nobody who listens: events tell how it goes."""
        self.trouble = None
        try:
            async with aclosing(self._wanted(params)) as steps:
                async for _ in steps:
                    pass
        except (MixosError, OSError) as error:
            self.trouble = str(error)
            log("err", f"update: {error}")
            self.context.events.publish("update.not-staged", params.url or "", reason=self.trouble)

    async def _stop(self, _caller: Caller, _params: Nothing) -> bool:
        task = self._background
        if task is None or task.done():
            return False
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return True

    async def fetch(self, url: str, again: bool = False, rate: int | None = None) -> AsyncGenerator[Progress]:
        """Stage the bundle at an address. Raises what `Taking.stage` raises."""
        async with self._served("ranges", url, rate) as source, aclosing(self._staged(source, again)) as steps:
            async for step in steps:
                yield step

    async def _offered(self) -> str:
        """The URL of the bundle that the channel offers. Raises NotFoundError `update-no-offer`."""
        found = await self.check()
        offer, why = found["offer"], found["why"]
        if offer is None:
            words = f"{why['version']}: {why['why']}" if why else "the channel has nothing for such a device"
            raise NotFoundError(f"no release is offered to this device: {words}", reason="update-no-offer")
        return f"{found['channel']}/{offer['bundle']}"

    async def check(self) -> Checked:
        """Ask the channel, and keep what it said. Raises NotFoundError `update-no-channel`, TrustError, MixosError."""
        self._usable()
        channel = (await asyncio.to_thread(self.settings)).channel.rstrip("/")
        if not channel:
            hint = f'channel = "https://…" in {self.context.etc}/update.toml'
            raise NotFoundError("this device follows no channel", reason="update-no-channel", hint=hint)
        async with self._turn:
            await asyncio.to_thread(self._look)
        async with self._served("files", f"{channel}/") as source:
            found = await self._taking().check(self.boot, source)
        self.checked = cast("Checked", {"at": round(time.time(), 3), "channel": channel, **found})
        if found["offer"]:
            self.context.events.publish("update.offered", found["offer"]["version"])
        return self.checked

    async def _check(self, _caller: Caller, _params: Nothing) -> Checked:
        return await self.check()

    def settings(self) -> UpdateSettings:
        """`update.toml`. Raises SettingsError."""
        from common.settings.model import parse_update

        path = self.context.etc / "update.toml"
        try:
            return parse_update(read_regular(path, _MAX_SETTINGS), str(path))
        except FileNotFoundError:
            return parse_update(b"", str(path))

    @contextlib.asynccontextmanager
    async def _served(self, kind: Literal["ranges", "files"], url: str, rate: int | None = None) -> AsyncIterator[int]:
        """A socket at whose other end the web server's bytes are answered for."""
        from daemon.parts.update import fetching

        self._usable()
        told = await asyncio.to_thread(fetching.settings, self.context.etc)
        told |= {"url": url, "rate": rate, "proxy": await asyncio.to_thread(self._proxy, url)}
        async with fetching.fetching(kind, told, self._fetcher) as channel:
            yield channel

    def _proxy(self, url: str) -> str | None:
        found: Mapping[str, str] = function("proxies-for")(url, etc=self.context.etc)
        return next(iter(found.values()), None)

    async def _staged(self, source: int, again: bool) -> AsyncGenerator[Progress]:
        async with self._turn:
            await asyncio.to_thread(self._look)
        told = None
        async with aclosing(self._taking().stage(self.boot, source, again)) as steps:
            async for step in steps:
                yield cast("Progress", step)
                if step["step"] == "staged":
                    self.context.events.publish("update.staged", step["version"])
                elif told != (told := (step["step"], step["done"] * 20 // max(1, step["of"]))):  # each twentieth
                    self.context.events.publish("update.progress", step["version"], **_without_version(step))

    async def _examine(self, _caller: Caller, _params: Nothing) -> AsyncIterator[Repairing]:
        async with aclosing(self._taking().examine()) as steps:
            async for step in steps:
                yield cast("Repairing", step)

    async def _repair(self, caller: Caller, params: Repair) -> AsyncIterator[Repairing]:
        async with contextlib.AsyncExitStack() as stack:
            source = None
            if params.content is not None:
                source = params.content.socket()
                stack.callback(os.close, source)
            elif params.url is not None:
                source = await stack.enter_async_context(self._served("ranges", params.url, params.rate))
            if source is not None:
                self._usable()
                async with self._turn:
                    await asyncio.to_thread(self._look)
            steps = await stack.enter_async_context(aclosing(self._taking().repair(self.boot, source)))
            async for step in steps:
                if step["mended"]:
                    await self._repaired(caller.name, step)
                yield cast("Repairing", step)

    async def _repaired(self, who: str, step: Mapping[str, Any]) -> None:
        """Keep what was mended, and see the disk as it is now."""
        async with self._turn:
            version = step["version"] or facts.release(self.root).get("MIXOS_VERSION", "")
            happened = self.records.happened("repaired", version, None, f"by {who}: {', '.join(step['mended'])}"[:500])
            await asyncio.to_thread(self.records.change, history=self.records.history(happened))
            if self._error is None:
                await asyncio.to_thread(self._look)
            else:
                self._error = None
                await asyncio.to_thread(self._begin)
            self._watched()
        self.context.events.publish("update.repaired", version, mended=list(step["mended"]))

    async def _apply(self, caller: Caller, params: Apply) -> Changed:
        await self.apply(caller.name, params.restart)
        return self._changed()

    async def apply(self, who: str, restart: bool) -> None:
        """Have the next boot start what was staged. Raises what `Taking.seal` raises."""
        self._usable()
        async with self._turn:
            await asyncio.to_thread(self._look)
            boot = facts.text(self.root / "proc/sys/kernel/random/boot_id")
            self.records.change(installed_in=boot, network=_way_out(self.root), trial=None)
            staged = await self._taking().seal(self.boot)
            await asyncio.to_thread(self._look)
            if self.boot.next is None or self.boot.next.digest != staged.root_hash:
                await self._leave(staged.root_hash)
            happened = self.records.happened("installed", staged.version, staged.slot, f"by {who}")
            self.records.change(staged=None, history=self.records.history(happened))
            self._settled = True
        self.context.events.publish("update.installed", staged.version, slot=staged.slot)
        if restart:
            asyncio.get_running_loop().call_later(0.2, self._restart)  # the answer goes first

    async def _leave(self, new: str) -> None:
        """The loader starts the newest version: when that is not the one just installed, it must have none left."""
        running = self.boot.running
        if running is not None and not running.entry.bad:
            kept = (one for one in self.records.now.given_up if one not in (new, running.digest))
            self.records.change(given_up=(*kept, running.digest)[-8:])
            await self._count(running.entry, running.entry.given_up())
            await asyncio.to_thread(self._look)

    def _restart(self) -> None:
        log("notice", "update: asking init for a restart")
        self.context.events.publish("system.stopping", "reboot")
        self._ask_init(signal.SIGTERM)

    def _taking(self) -> Taking:
        from daemon.parts.update.taking import Taking

        if self._taken is None:
            self._taken = Taking(self.context, self.records, self.root, self._release, self._slots)
        return self._taken

    async def _commit_now(self, _caller: Caller, _params: Nothing) -> Changed:
        self._usable()
        if self.boot.running is not None and self.boot.running.digest in self.records.now.given_up:
            raise RefusedError("the next boot starts another version: it was left", reason="update-left")
        await self._commit()
        return self._changed()

    async def _rollback(self, caller: Caller, _params: Nothing) -> Changed:
        self._usable()
        async with self._turn:
            await self._go_back(caller.name)
            self._settled = True
        return self._changed()

    async def _go_back(self, who: str) -> None:
        """The other image first, then leave this one: a cut in between changes nothing or everything."""
        await asyncio.to_thread(self._look)
        running, other = self.boot.running, self.boot.other
        if other is None:
            raise RefusedError("there is no other image to go back to", reason="update-no-other")
        blocked = self.records.now.blocked.get(other.digest)
        if blocked is not None:
            raise RefusedError(
                f"{other.version} failed {blocked.reason}",
                reason="update-blocked",
                hint=f"mixctl update clear {other.version} lets it be started again",
            )
        given_up = () if running is None else (running.digest,)
        kept = [one for one in self.records.now.given_up if one != other.digest]
        version = running.version if running else ""
        happened = self.records.happened("rolled-back", version, self.boot.slot, f"by {who}")
        self.records.change(given_up=(*kept, *given_up)[-8:], history=self.records.history(happened))
        if other.entry.bad:
            await self._count(other.entry, other.entry.renewed())
        if running is not None and not running.entry.bad:
            await asyncio.to_thread(self.data.prepare_back, running.digest, running.version)
            await self._count(running.entry, running.entry.given_up())
        await asyncio.to_thread(self._look)
        following = self.boot.next.version if self.boot.next else ""
        self.context.events.publish("update.rolled-back", version, next=following)

    async def _clear(self, _caller: Caller, params: Version) -> Changed:
        self._usable()
        record = self.records.now
        kept = {digest: one for digest, one in record.blocked.items() if one.version != params.version}
        if kept == record.blocked:
            raise NotFoundError(f"{params.version} is not blocked", reason="update-not-blocked")
        happened = self.records.happened("cleared", params.version)
        async with self._turn:
            await asyncio.to_thread(self.records.change, blocked=kept, history=self.records.history(happened))
        return self._changed()

    @property
    def well(self) -> bool:
        """Whether what runs was called good, so that the other slot is free for a release."""
        return self.boot.running is not None and self.boot.running.entry.good and self._settled

    async def _conflicts(self, _caller: Caller, _params: Nothing) -> list[ConflictRow]:
        return await asyncio.to_thread(self.data.rows)

    async def _resolve(self, caller: Caller, params: Settled) -> list[str]:
        async with self._turn:
            await self.data.resolve(caller, params.file, params.take)
        return [f"/{name}" for name in self.data.conflicts]

    def _changed(self) -> Changed:
        following = self.boot.next
        return {"next": following.version if following else None, "next-slot": following.slot if following else None}

    def _usable(self) -> None:
        if self._error is not None:
            raise self._error

    def _deadline(self) -> float | None:
        found = facts.text(self._trial)
        up = facts.uptime(self.root)
        return None if found is None or not found.isdigit() or up is None else max(0.0, round(int(found) - up, 1))


def _without_version(step: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name != "version"}


def _state(image: Image | None) -> State:
    if image is None:
        return "empty"
    if image.entry.left is None:
        return "uncounted"
    if image.entry.bad:
        return "bad"
    return "good" if image.entry.good else "trial"


def _happened(one: Happened) -> HistoryRow:
    return {"at": one.at, "what": one.what, "version": one.version, "slot": one.slot, "reason": one.reason}


def _way_out(root: Path) -> bool:
    """Whether there is a default route (proc_pid_net(5); the flag is RTF_UP)."""
    four = [line.split() for line in (facts.text(root / "proc/net/route") or "").splitlines()[1:]]
    if any(words[1] == "00000000" and words[7] == "00000000" and int(words[3], 16) & 1 for words in four):
        return True
    six = [line.split() for line in (facts.text(root / "proc/net/ipv6_route") or "").splitlines()]
    return any(words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo" for words in six)
