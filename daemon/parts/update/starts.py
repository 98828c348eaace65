"""Which image runs, whether it is good, and what the loader starts next.

A start uses up one of those that the image has (`common.efi.entries`). When it is well, its entry gets them back: a new
one after everything has been well for a while, one that was good before as soon as the daemon's parts are up. A new
image that does not get well is restarted by the keeper (`daemon/native/keeper`), and has no starts left in the end:
then the loader takes the other one, and it is told there why. One behind which there is no other, only the rescue
entry, has its starts back as soon as the daemon's parts are up: a device that can be reached beats one that waits for
somebody to come.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from common.efi.entries import Entry
from common.errors import DiskError, MixosError, NotFoundError, RefusedError
from daemon.core.figures import Finding
from daemon.core.part import Context
from daemon.linux import facts, programs
from daemon.linux.log import log
from daemon.parts.update.boot import Boot, Disk, Image, look
from daemon.parts.update.data import Data
from daemon.parts.update.ending import ending
from daemon.parts.update.floor import Floor
from daemon.parts.update.record import Blocked, Records, Trial
from daemon.parts.update.verdict import failures

if TYPE_CHECKING:
    from daemon.parts.update.answers import State

PAUSE = 2.0  # seconds between two looks at whether all is well
STABLE = 20.0  # seconds for which it must be, in a new image
_PLACE = 600.0  # seconds for some 100 MiB that are read and written


class Starts:
    """root: the tree to read from; slots, floor: the programs (`daemon.slots`, `daemon.floor`).

    boot: what `look` found last; records: what is kept; data: the device's own, between two versions; problem: what
    keeps the running image from being called good; error: why nothing is known of the disk; stale: why the rescue entry
    and the loader are not those that came with it; turn: for the disk and the record; floor: below which nothing is
    installed.
    """

    def __init__(self, context: Context, root: Path, slots: Sequence[str], floor: Sequence[str]) -> None:
        self.context, self.root, self._slots = context, root, slots
        self.records = Records(context.state / "update" / "record.json")
        self.data = Data(context, root)
        self.boot = Boot(None, None, (), None)
        self.problem: str | None = None
        self.error: MixosError | None = None
        self.stale: MixosError | None = None
        self.turn = asyncio.Lock()
        self.floor = Floor(root, self.records, self.turn, self._good, floor)
        self.settled = False  # whether it was called good in this boot, or left
        self._renewed = False  # whether it got its starts back in this boot without being called good
        self._placed = False  # whether that was tried in this boot
        self._disk: Disk | None = None
        self._trial = context.run / "trial"  # see the keeper

    def begin(self) -> None:
        """Look at the disk, tell what failed before."""
        self.records.load()
        self.data.look()
        try:
            self._disk = Disk.find(self.root)
            self.look()
        except MixosError as error:
            self.error = error
            log("err", f"update: {error.message}")
            return
        ended = self._ended()
        record = self.records.now
        if failed := failures(self.boot, record, ended):
            fell = [self.records.happened("failed", one.image.version, one.image.slot, one.reason) for one in failed]
            blocked = {
                one.image.digest: Blocked(version=one.image.version, reason=one.reason, at=fell[0].at) for one in failed
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

    async def looked(self) -> None:
        """Look, in turn. Raises MixosError."""
        self.usable()
        async with self.turn:
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """See the disk as it is now. Raises MixosError, OSError."""
        assert self._disk is not None
        self._disk = Disk.at(self._disk.path)
        self.boot = look(self._disk, facts.slot(self.root), self.root)

    def _ended(self) -> str | None:
        """How the boot before this one ended. What its kernel left is then removed: the firmware's room is small."""
        found = ending(self.root)
        if found.words or found.kept:
            log("err", f"update: the boot before this one: {found.words or 'its kernel left its last words'}")
        for path in found.kept:
            try:
                path.unlink()
            except OSError as error:
                log("err", f"update: {path.name} stays, and may be taken for the reason of a later failure: {error}")
        return found.words

    def usable(self) -> None:
        """Raise why nothing is known of the disk, if that is so."""
        if self.error is not None:
            raise self.error

    def deadline(self) -> float | None:
        """Seconds until the keeper restarts the device, None when it will not."""
        found = facts.text(self._trial)
        up = facts.uptime(self.root)
        return None if found is None or not found.isdigit() or up is None else max(0.0, round(int(found) - up, 1))

    def _good(self) -> bool:
        return self.boot.running is not None and self.boot.running.entry.good

    @property
    def well(self) -> bool:
        """Whether what runs was called good, so that the other slot is free for a release."""
        return self._good() and self.settled

    # -- is it good? -------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Call what runs good when it is, for as long as the daemon runs."""
        since: float | None = None
        while True:
            problem = self._unwell()
            if problem != self.problem:
                self.problem = problem
                async with self.turn:
                    await asyncio.to_thread(self._note, problem)
            since = None if problem else since or time.monotonic()
            new = self.boot.running is not None and not self.boot.running.entry.good
            try:
                if not self.settled and since is not None and time.monotonic() - since >= (STABLE if new else 0.0):
                    await self.commit()
                elif not self.settled and not self._renewed and self._parts_down() is None and self._is_last():
                    await self._renew()
                if self.well and not self._placed:
                    self._placed = True
                    await self._place()
            except (MixosError, OSError) as error:
                log("err", f"update: the starts of this version cannot be written: {error}")
            await asyncio.sleep(PAUSE)

    async def _place(self) -> None:
        """Have what came with the running image for the EFI system partitions put there, now that it is good. What
        fails is a finding, and is tried again at the next start."""
        written: list[str] = []
        try:
            async with asyncio.timeout(_PLACE), aclosing(programs.lines([*self._slots, "renew"])) as heard:
                async for line in heard:
                    written = line.get("written", [])
        except TimeoutError:
            self.stale = MixosError(f"not done within {_PLACE:g} s", reason="program-timeout")
        except MixosError as error:
            self.stale = error
        if self.stale is not None:
            log("err", f"update: rescue entry and loader are not renewed: {self.stale.message}")
        for path in written:
            log("notice", f"update: {path} is that of this version")

    def findings(self) -> Iterator[Finding]:
        """See `daemon.core.figures`."""
        if self.stale is not None:
            text = f"rescue entry and loader are not those of this version: {self.stale.message}"
            yield Finding("boot-files", "warning", text[:300])
        yield from self.data.findings()

    def _parts_down(self) -> str | None:
        return next((one.text for one in self.context.figures.findings() if one.check == "parts"), None)

    def _is_last(self) -> bool:
        """Whether the loader has nothing else to start, but the rescue entry."""
        return self.boot.other is None or self.boot.other.entry.bad

    async def _renew(self) -> None:
        """Give the running image the starts that it had. Raises MixosError, OSError."""
        async with self.turn:
            await asyncio.to_thread(self.look)
            running = self.boot.running
            if running is not None and not self.settled and self._is_last():
                if running.entry != running.entry.renewed():
                    await self._count(running.entry, running.entry.renewed())
                    await asyncio.to_thread(self.look)
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
            if record.network and not way_out(self.root):
                return "there is no way out of the network, and there was one before the update"
            if record.installed_in == facts.text(self.root / "proc/sys/kernel/random/boot_id"):
                return "the device was not restarted since it was installed"
        return None

    def _note(self, problem: str | None) -> None:
        trial, running = self.records.now.trial, self.boot.running
        if trial is not None and running is not None and trial.root_hash == running.digest:
            with contextlib.suppress(OSError):
                self.records.change(trial=trial.model_copy(update={"problem": problem}))

    def refuse_left(self) -> None:
        """Raise RefusedError `update-left` when the next boot starts another version because somebody left this one."""
        self.usable()
        if self.boot.running is not None and self.boot.running.digest in self.records.now.given_up:
            raise RefusedError("the next boot starts another version: it was left", reason="update-left")

    async def commit(self) -> None:
        """Call what runs good. Raises NotFoundError `update-entry`, DiskError, OSError."""
        async with self.turn:
            if not self.settled:
                await self._bless()
                self.settled = True

    async def _bless(self) -> None:
        """Give the running image its starts back. Raises MixosError, OSError."""
        await asyncio.to_thread(self.look)
        running = self.boot.running
        if running is None:
            raise NotFoundError("the loader has no entry for what runs", reason="update-entry")
        new = not running.entry.good
        if running.entry != running.entry.blessed():
            await self._count(running.entry, running.entry.blessed())
            await asyncio.to_thread(self.look)
        if new:
            happened = self.records.happened("committed", running.version, running.slot)
            self.records.change(trial=None, floor=self.floor.here, history=self.records.history(happened))
            self.context.events.publish("update.committed", running.version, slot=running.slot)
            log("notice", f"update: {running.version} is good")
        self._trial.unlink(missing_ok=True)
        self.floor.keep()

    async def _count(self, old: Entry, new: Entry) -> None:
        """Have the counter of an entry written, by the program that may write to disks. Raises MixosError."""
        try:
            await programs.ended([*self._slots, "count", old.name, new.name])
        except MixosError as error:
            message = f"the starts of {old.name} were not written: {error.message}"
            raise DiskError(message, reason="update-count", retryable=error.retryable) from error

    # -- another one -------------------------------------------------------------------------------------------------

    async def roll_back(self, who: str) -> None:
        """Have the next boot start the other image.

        Raises RefusedError `update-no-other`, `update-blocked`; DiskError.
        """
        self.usable()
        async with self.turn:
            await self._go_back(who)
            self.settled = True

    async def clear(self, version: str) -> None:
        """Let a version that failed be started again. Raises NotFoundError `update-not-blocked`."""
        self.usable()
        record = self.records.now
        kept = {digest: one for digest, one in record.blocked.items() if one.version != version}
        if kept == record.blocked:
            raise NotFoundError(f"{version} is not blocked", reason="update-not-blocked")
        happened = self.records.happened("cleared", version)
        async with self.turn:
            await asyncio.to_thread(self.records.change, blocked=kept, history=self.records.history(happened))

    async def _go_back(self, who: str) -> None:
        """The other image first, then leave this one: a cut in between changes nothing or everything."""
        await asyncio.to_thread(self.look)
        running, other = self.boot.running, self.boot.other
        if other is None:
            raise RefusedError("there is no other image to go back to", reason="update-no-other")
        boot = facts.text(self.root / "proc/sys/kernel/random/boot_id")
        if running is not None and not other.entry.good and self.records.now.installed_in == boot:
            await self._take_back(running, other, who)
            return
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
        await asyncio.to_thread(self.look)
        following = self.boot.next.version if self.boot.next else ""
        self.context.events.publish("update.rolled-back", version, next=following)

    async def _take_back(self, running: Image, other: Image, who: str) -> None:
        """What was installed since the start is not started: what runs stays. Again changes nothing."""
        given_up = [one for one in self.records.now.given_up if one not in (running.digest, other.digest)]
        happened = self.records.happened("rolled-back", other.version, other.slot, f"by {who}")
        self.records.change(given_up=(*given_up, other.digest)[-8:], history=self.records.history(happened))
        if running.entry.bad:
            await self._count(running.entry, running.entry.renewed())
        if not other.entry.bad:
            await self._count(other.entry, other.entry.given_up())
        await asyncio.to_thread(self.look)
        following = self.boot.next.version if self.boot.next else ""
        self.context.events.publish("update.rolled-back", other.version, next=following)

    async def leave(self, new: str) -> None:
        """The loader starts the newest version: when that is not the one just installed, it must have none left."""
        running = self.boot.running
        if running is not None and not running.entry.bad:
            kept = (one for one in self.records.now.given_up if one not in (new, running.digest))
            self.records.change(given_up=(*kept, running.digest)[-8:])
            await self._count(running.entry, running.entry.given_up())
            await asyncio.to_thread(self.look)


def state(image: Image | None) -> State:
    """Of an image, in a word."""
    if image is None:
        return "empty"
    if image.entry.left is None:
        return "uncounted"
    if image.entry.bad:
        return "bad"
    return "good" if image.entry.good else "trial"


def way_out(root: Path) -> str:
    """The interface of the default route that is up (proc_pid_net(5); the flag is RTF_UP), the one with the least
    metric; "" when there is none, or only one that refuses or drops what comes: it has no interface (IPv4), or the
    loopback one."""
    rows = [line.split() for line in (facts.text(root / "proc/net/route") or "").splitlines()[1:]]
    rows = [row for row in rows if row[0] != "*" and int(row[3], 16) & 1]
    four = [(int(row[6]), row[0]) for row in rows if row[1] == row[7] == "00000000"]
    rows = [line.split() for line in (facts.text(root / "proc/net/ipv6_route") or "").splitlines()]
    six = [(int(row[5], 16), row[9]) for row in rows if row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo"]
    return min(four or six, default=(0, ""))[1]
