"""What the image adds to Secure Boot's databases in the firmware of this machine: one addition in each boot.

It is added once what runs was called good, nothing is staged, and the loader starts the same again; the program that
does it (`daemon.firmware`) adds nothing after which something on this machine would not start. That one is under way is
kept before: a cut of power leaves the old or the new value, and the next boot sees which. One that firmware refuses, or
over which the machine restarts twice, is told once, and tried again by another version only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from common.efi import additions
from common.errors import MixosError
from common.safe import one_line
from daemon.core.figures import Finding
from daemon.linux import facts, programs
from daemon.linux.log import log
from daemon.parts.update.record import Adding, Refused, What
from daemon.parts.update.starts import Starts

if TYPE_CHECKING:
    from daemon.parts.update.answers import AdditionRow

Variable = Literal["db", "dbx", "KEK"]
TICK = 10.0  # seconds between two looks at whether one may be added
TRIES = 2  # boots in which the machine may restart over one


@dataclass(frozen=True)
class Brought:
    """An addition of the image. there: the database holds it; against: why it must not be added."""

    name: str
    variable: Variable
    digest: str
    there: bool
    against: str | None

    @classmethod
    def read(cls, found: Any) -> Brought:
        """From what the program says. Raises ValueError."""
        try:
            against = None if found["against"] is None else one_line(found["against"], 500)
            name, variable, digest = (one_line(found[name], 80) for name in ("name", "variable", "digest"))
            if variable not in additions.SIGNED_BY:
                raise ValueError("an addition to no database")
            return cls(name, cast("Variable", variable), digest, found["there"] is True, against)
        except (TypeError, KeyError) as error:
            raise ValueError("an addition without words") from error


class Additions:
    """starts: what runs; firmware: the program; busy: whether a release is being taken.

    done: set once nothing is left to do in this boot.
    """

    def __init__(self, starts: Starts, firmware: Sequence[str], busy: Callable[[], bool]) -> None:
        self._starts, self._firmware, self._busy = starts, firmware, busy
        self._brought: tuple[Brought, ...] = ()
        self._problem: str | None = None
        self.done = asyncio.Event()

    async def run(self) -> None:
        """For as long as the daemon runs."""
        if await asyncio.to_thread((self._starts.root / additions.FOLDER.relative_to("/")).is_dir):
            try:
                await self._one()
            except (MixosError, OSError, ValueError) as error:
                self._problem = one_line(str(error), 300)
                log("err", f"update: {error}")
        self.done.set()
        await asyncio.Event().wait()

    async def _one(self) -> None:
        """Have one added, when that may be, if one waits. Raises MixosError, OSError, ValueError."""
        await self._look()
        while (one := self._next()) is not None:
            async with self._starts.turn:
                free = await asyncio.to_thread(self._free)
            if free:
                await self._add(one)
                await self._look()
            await asyncio.sleep(TICK)

    async def _look(self) -> None:
        """Ask which there are, and settle what was under way."""
        found: list[Brought] = []
        async with aclosing(programs.lines([*self._firmware, "look"])) as heard:
            async for line in heard:
                found += [Brought.read(one) for one in line.get("additions", ())]
        self._brought = tuple(found)
        if (adding := self._starts.records.now.adding) is not None:
            await self._settle(adding, next((one for one in found if one.digest == adding.digest), None))

    async def _settle(self, adding: Adding, one: Brought | None) -> None:
        if one is None:  # of another version, or Secure Boot was switched off
            await self._keep(adding=None)
        elif one.there:
            await self._told("firmware-changed", one, None, adding=None)
        elif adding.tries >= TRIES:
            await self._refused(one, f"it was begun {TRIES} times, and did not come to an end")

    def _next(self) -> Brought | None:
        """The one that is added in this boot, if one is."""
        if self._starts.records.now.added_in == self._boot():
            return None
        waiting = (one for one in self._brought if not one.there and one.against is None)
        return next((one for one in waiting if self._why_refused(one) is None), None)

    def _free(self) -> bool:
        """Whether nothing else is under way that has to do with what starts. Raises MixosError, OSError."""
        starts = self._starts
        if not starts.well or starts.records.now.staged is not None or self._busy():
            return False
        starts.look()
        return starts.boot.running is not None and starts.boot.next is starts.boot.running

    async def _add(self, one: Brought) -> None:
        """Raises what the program tells but that firmware refuses; MixosError, OSError."""
        before = self._starts.records.now.adding
        tries = before.tries + 1 if before is not None and before.digest == one.digest else 1
        await self._keep(added_in=self._boot(), adding=Adding(digest=one.digest, tries=tries))
        try:
            await programs.ended([*self._firmware, "add", one.name])
        except MixosError as error:
            if error.reason == "firmware-refused":
                await self._refused(one, error.message)
                return
            if error.reason == "slots-busy":  # a release is being taken: later
                await self._keep(adding=before, added_in=None)
                return
            if not error.reason.startswith("program-"):  # the program has ended in order: nothing is under way
                await self._keep(adding=None)
            raise

    async def _refused(self, one: Brought, reason: str) -> None:
        record, running = self._starts.records.now, self._running()
        kept = {digest: found for digest, found in record.refused.items() if found.by == running}
        kept[one.digest] = Refused(by=running, reason=reason)
        await self._told("firmware-refused", one, reason, adding=None, refused=kept)

    async def _told(self, what: What, one: Brought, reason: str | None, **values: object) -> None:
        """For the history and for who listens, once."""
        running, records = self._starts.boot.running, self._starts.records
        text = f"{one.name}: {reason}" if reason else one.name
        happened = records.happened(what, running.version if running else "", None, text)
        await self._keep(history=records.history(happened), **values)
        self._starts.context.events.publish(f"update.{what}", one.name, database=one.variable, reason=reason)
        log("err" if reason else "notice", f"update: {what}: {text}")

    async def _keep(self, **values: object) -> None:
        await asyncio.to_thread(self._starts.records.change, **values)

    def _running(self) -> str:
        running = self._starts.boot.running
        return running.digest if running else ""

    def _boot(self) -> str | None:
        return facts.text(self._starts.root / "proc/sys/kernel/random/boot_id")

    def _why_refused(self, one: Brought) -> str | None:
        found = self._starts.records.now.refused.get(one.digest)
        return found.reason if found is not None and found.by == self._running() else None

    # -- for people ----------------------------------------------------------------------------------------------------

    def rows(self) -> list[AdditionRow]:
        """Those that are not there."""
        return [self._row(one) for one in self._brought if not one.there]

    def _row(self, one: Brought) -> AdditionRow:
        refused = self._why_refused(one)
        return {
            "name": one.name,
            "database": one.variable,
            "state": "held" if one.against else "refused" if refused else "waits",
            "why": one.against or refused,
        }

    def findings(self) -> Iterator[Finding]:
        """See `daemon.core.figures`."""
        if self._problem:
            yield Finding("firmware", "warning", f"nothing is added to Secure Boot's databases: {self._problem}")
        for row in self.rows():
            if row["why"]:
                yield Finding("firmware", "warning", f"{row['name']} is not added: {row['why']}"[:300])
