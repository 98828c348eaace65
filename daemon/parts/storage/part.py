"""The part `storage`: disks, space, quotas, health.

Beside answering it looks at two things by itself: how full the data partition is (each minute, one system call) and how
the disks are and whether units' files are still in their quotas (each hour); it publishes `storage.full`,
`storage.space` and `storage.health` when that changes, `storage.quota` when files were brought back.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field, field_validator

from common.errors import MixosError, RefusedError
from common.tomlfile import Strict
from common.values import size as parse_size
from daemon.core.method import ADMINS, OPERATORS, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.linux import mounts
from daemon.linux.facts import ROOT
from daemon.linux.log import log
from daemon.parts.storage import disks, health, usage
from daemon.parts.storage.claims import unit as claimed
from daemon.parts.storage.quota import MAX_LIMIT, Quotas
from daemon.parts.storage.trim import trim
from daemon.parts.storage.verdict import STATES

if TYPE_CHECKING:
    from daemon.parts.storage.answers import Breakdown, Disk, FileSystem, Health, Quota, Trimmed, Usage

FULL, ROOM = 90.0, 85.0  # percent: the event, and the end of it
_MINUTE, _HOUR = 60.0, 3600.0
_PATIENCE = 20.0  # seconds that the start waits for quotas
_FRESH = 60.0  # seconds for which a walk over the files serves


class Ask(Strict):
    """Parameters of `storage.usage`."""

    fresh: bool = Field(default=False, description="count again, even when it was done within the last minute")


class Limit(Strict):
    """Parameters of `storage.quota`."""

    unit: Annotated[str, Field(max_length=48, description="the unit")]
    size: Annotated[str | None, Field(max_length=20, description="bytes, or with K, M, G, T; none: no limit")] = None

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None and not 0 < parse_size(value) <= MAX_LIMIT:
            raise ValueError("must be a size such as 200M, not zero and at most 1048576T")
        return value

    @property
    def bytes(self) -> int | None:
        """The size as a number."""
        return None if self.size is None else parse_size(self.size)


class Storage:
    """See the module. data: where the data partition is mounted; root: the tree to read /sys and /proc from."""

    name = "storage"

    def __init__(self, context: Context, data: Path = Path("/data"), root: Path = ROOT) -> None:
        self.context = context
        self.data = data
        self.root = root
        self.quotas = Quotas(context)
        self.problems: Mapping[str, str] = {}  # unit → why its limit is not in force
        self._states: dict[str, str] = {}  # disk → health
        self._full = False
        self._errors: tuple[bool, int] = (False, 0)  # of the data file system: whether it is read-only, how many
        self._enforcing: asyncio.Task[None] | None = None
        self._usage: tuple[float, Breakdown] | None = None
        self._counting = asyncio.Lock()
        self._asking: asyncio.Future[list[Health]] | None = None
        self._tasks: Sequence[asyncio.Task[None]] = ()

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return [
            Method("storage.disks", "Disks and partitions.", self._disks),
            Method("storage.usage", "File systems, and what fills the data partition.", self._use, params=Ask),
            Method("storage.quotas", "Limits of what units keep.", self._quotas),
            Method("storage.quota", "Limit what a unit keeps.", self._quota, ADMINS, Limit, changes=True, seconds=60.0),
            Method("storage.health", "Health of the disks.", self._health, seconds=30.0),
            Method("storage.trim", "Discard free blocks.", self._trim, OPERATORS, changes=True, seconds=600.0),
        ]

    async def start(self) -> None:
        """Put the quotas in force, begin to watch."""
        enforcing = self._enforcing = asyncio.create_task(self._enforce())
        self._tasks = [
            enforcing,
            background("storage-restores", self._follow_restores),
            background("storage", self._watch),
        ]
        await asyncio.wait([enforcing], timeout=_PATIENCE)  # many files may be left to give their project
        self.context.gates.open(self.name, self.gate)

    async def gate(self, unit: str) -> None:
        """Before a unit runs its limit is in force. Raises RefusedError `quota-not-in-force`."""
        if (
            self._enforcing is not None
            and not self._enforcing.done()
            and await asyncio.to_thread(claimed, self.context, unit)
        ):
            await asyncio.wait([self._enforcing])
        reason = self.problems.get(unit) or self.problems.get("*")
        if reason is not None:
            raise RefusedError(
                f"{unit}: the limit of what it keeps is not in force ({reason})",
                reason="quota-not-in-force",
                hint="mixctl storage quota shows limits, sets and takes them away",
            )

    async def stop(self) -> None:
        """Stop watching; quotas stay in force."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _enforce(self) -> None:
        try:
            self.problems = await asyncio.to_thread(self.quotas.restore)
        except MixosError as error:
            self.problems = {"*": error.reason}
        for unit, reason in self.problems.items():
            log("warning", f"storage: the limit of {unit} is not in force ({reason})")

    async def _follow_restores(self) -> None:
        """A restored state directory is a new one, without a project."""
        async for _ in self.context.events.listen("backup.restored"):
            await self._enforce()

    def status(self) -> Mapping[str, Any]:
        """How full the data partition is; disks that are not well; limits that are not in force."""
        bad = {name: state for name, state in self._states.items() if state in ("warning", "failing")}
        read_only, errors = self._errors
        return {
            "data-percent": self._percent(),
            "data-read-only": read_only,
            "data-errors": errors,
            "disks": bad,
            "quota-problems": dict(self.problems),
        }

    # -- methods -----------------------------------------------------------------------------------------------------

    async def _disks(self, _: Caller, __: Nothing) -> list[Disk]:
        return await asyncio.to_thread(disks.disks, self.root)

    async def _use(self, _: Caller, params: Ask) -> Usage:
        table = mounts.mounts(self.root)
        return {
            "filesystems": cast("list[FileSystem]", mounts.file_systems(table, self.root)),
            "data": await self._breakdown(params.fresh, table),
        }

    async def _breakdown(self, fresh: bool, table: list[mounts.Mount]) -> Breakdown | None:
        """One walk at a time; whoever comes meanwhile gets its result."""
        if not self.data.is_dir():
            return None
        asked = time.monotonic()
        async with self._counting:
            if self._usage is None or self._usage[0] < asked - (0 if fresh else _FRESH):
                lib = mounts.backing(self.context.state.parent, table)
                logs = mounts.backing(self.context.log.parent, table)
                found = await asyncio.to_thread(usage.breakdown, self.data, lib, logs)
                self._usage = time.monotonic(), found
            return {**self._usage[1], "age": round(time.monotonic() - self._usage[0], 1)}

    async def _quotas(self, _: Caller, __: Nothing) -> list[Quota]:
        return await asyncio.to_thread(self.quotas.rows)

    async def _quota(self, _: Caller, params: Limit) -> Quota:
        row = await asyncio.to_thread(self.quotas.set, params.unit, params.bytes)
        self.problems = {unit: reason for unit, reason in self.problems.items() if unit != params.unit}
        return row

    async def _health(self, _: Caller, __: Nothing) -> list[Health]:
        return await self._examine()

    async def _trim(self, _: Caller, __: Nothing) -> Trimmed:
        return {"path": os.fspath(self.data), "bytes": await asyncio.to_thread(trim, self.data)}

    # -- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        due = 0.0
        while True:
            try:
                self._look()
                if time.monotonic() >= due:
                    due = time.monotonic() + _HOUR
                    await asyncio.wait([asyncio.ensure_future(self._examine())], timeout=_MINUTE)  # a disk may hang
                    await self._gather()
            except Exception as error:  # noqa: BLE001  # the next look may succeed; watching must go on
                log("warning", f"storage: {type(error).__name__}: {error}")
            await asyncio.sleep(_MINUTE)

    async def _gather(self) -> None:
        """What a unit has taken out of its quota is brought back, and told."""
        for unit, count in (await asyncio.to_thread(self.quotas.gather)).items():
            self.context.events.publish("storage.quota", unit, files=count)
            log("warning", f"storage: {count} files of {unit} had left its quota")

    async def _examine(self) -> list[Health]:
        """Ask the disks, and tell what changed. Whoever comes meanwhile gets the same answer: a disk that hangs holds
        one thread, however often it is asked."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(asyncio.to_thread(health.health, self.root))
        rows = await asyncio.shield(self._asking)
        self._judge(rows)
        return rows

    def _percent(self) -> float | None:
        try:
            space = os.statvfs(self.data)
        except OSError:
            return None
        usable = space.f_blocks - space.f_bfree + space.f_bavail
        return round(100 * (space.f_blocks - space.f_bfree) / usable, 1) if usable else None

    def _look(self) -> None:
        """Tell of errors of the data file system; when it becomes full, and when there is room again."""
        found = mounts.errors(self.data, self.root)
        if found > self._errors:
            self.context.events.publish(
                "storage.errors", os.fspath(self.data), **{"read-only": found[0]}, errors=found[1]
            )
            log("err", f"storage: {self.data} has errors ({found[1]})" + ", nothing is written any more" * found[0])
        self._errors = found
        percent = self._percent()
        if percent is None:
            return
        if not self._full and percent > FULL:
            self._full = True
            self.context.events.publish("storage.full", os.fspath(self.data), percent=percent)
            log("warning", f"storage: {self.data} is {percent:g} % full")
        elif self._full and percent < ROOM:
            self._full = False
            self.context.events.publish("storage.space", os.fspath(self.data), percent=percent)

    def _judge(self, rows: Sequence[Health]) -> None:
        """Tell of disks whose state changed to or from a bad one."""
        for row in rows:
            name, state = row["name"], row["state"]
            before, self._states[name] = self._states.get(name, "unknown"), state
            if state != before and max(map(STATES.index, (state, before))) >= STATES.index("warning"):
                findings = [one["slug"] for one in row["findings"]]
                self.context.events.publish("storage.health", name, state=state, before=before, findings=findings)
                log("warning", f"storage: disk {name}: {before} -> {state} ({', '.join(findings) or 'nothing found'})")
