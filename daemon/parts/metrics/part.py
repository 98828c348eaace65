"""The part `metrics` of the daemon: methods, the hour's record, the Prometheus endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from common import values
from common.errors import ConfigError, MixosError
from common.tomlfile import Strict
from daemon.core.method import ADMINS, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.worker.worker import Worker
from daemon.linux.log import log
from daemon.parts.metrics import cgroups, config, ring
from daemon.parts.metrics.figures import busiest, figures
from daemon.parts.metrics.health import health
from daemon.parts.metrics.manifest import MANIFEST
from daemon.parts.metrics.processes import processes, unit_of
from daemon.parts.metrics.sample import Sample, take

if TYPE_CHECKING:
    from daemon.parts.metrics.answers import EndpointState, Health, History, Now, Text, Tops

_LEASE = 3600.0  # seconds for which the hour goes on being recorded after somebody asked
_FRESH = 1.0  # seconds for which a sample serves several questions


class Window(Strict):
    """Parameters of what is measured."""

    seconds: float = Field(
        0.5, ge=0.1, le=10.0, description="over how long rates are measured; the answer takes as long"
    )


class Top(Window):
    """Which processes, and how many."""

    sort: Literal["cpu", "memory", "pid", "name"] = Field("cpu", description="what comes first")
    count: int = Field(20, ge=0, le=500, description="the most that are wanted")


class Period(Strict):
    """How much of the record."""

    minutes: float = Field(60.0, gt=0, le=60.0, description="so far back")


class Metrics:
    """See the package. groups: the cgroup above those of the units."""

    name = "metrics"

    def __init__(self, context: Context, groups: Path = cgroups.ROOT) -> None:
        self.context = context
        self.groups = groups
        self.config = config.Config()
        self.problem: str | None = None  # what is wrong with the configuration, for status
        self._ring = ring.Ring()
        self._wanted_until = 0.0  # monotonic
        self._recorder: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None
        self._endpoint: Worker | None = None
        self._last: Sample | None = None

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return [
            Method("metrics.now", "Figures of the machine and its units, now.", self._now, params=Window, seconds=15.0),
            Method("metrics.top", "The same with the busiest processes.", self._top, params=Top, seconds=15.0),
            Method("metrics.history", "The last hour in steps of ten seconds.", self._history, params=Period),
            Method("metrics.health", "Whether the machine is well, and what is not.", self._health),
            Method("metrics.prometheus", "The figures as Prometheus text.", self._prometheus),
            Method("metrics.reload", "Read metrics.toml again.", self._reload, ADMINS, changes=True),
        ]

    async def start(self) -> None:
        """Read the configuration; a wrong one leaves the endpoint off and is told in the status."""
        try:
            await self._apply(config.read(self.context.etc))
        except MixosError as error:
            self.problem = error.message
            log("err", f"metrics: {error.message}")

    async def stop(self) -> None:
        """End the endpoint and the record."""
        await self._close()
        if self._recorder is not None:
            self._recorder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recorder
            self._recorder = None

    def status(self) -> Mapping[str, Any]:
        """Health with its findings, where the endpoint listens, whether the hour is being recorded."""
        return {
            "health": self._found(),
            "endpoint": self.config.prometheus.listen if self._endpoint is not None else None,
            "process": self._endpoint.status() if self._endpoint is not None else None,
            "recording": self._recorder is not None,
            "problem": self.problem,
        }

    # -- methods -----------------------------------------------------------------------------------------------------

    async def _now(self, _: Caller, params: Window) -> Now:
        self._record()
        before = take(self.groups)
        await asyncio.sleep(params.seconds)
        return figures(before, take(self.groups))

    async def _top(self, _: Caller, params: Top) -> Tops:
        before, then = take(self.groups), await processes()
        await asyncio.sleep(params.seconds)
        after, now = take(self.groups), await processes()
        rows = busiest(then, now, after.at - before.at, params.sort, params.count)
        return {
            **figures(before, after),
            "processes": [{**row, "unit": unit_of(row["pid"])} for row in rows],
            "process-count": len(now),
        }

    async def _history(self, _: Caller, params: Period) -> History:
        self._record()
        return {
            "step": ring.STEP,
            "columns": list(ring.COLUMNS),
            "rows": self._ring.since(time.time() - 60 * params.minutes),
        }

    async def _health(self, _: Caller, __: Nothing) -> Health:
        return self._found()

    async def _prometheus(self, _: Caller, __: Nothing) -> Text:
        return self._document()

    async def _reload(self, _: Caller, __: Nothing) -> EndpointState:
        try:
            await self._apply(config.read(self.context.etc))
        except MixosError as error:
            self.problem = error.message
            raise
        return {"endpoint": self.config.prometheus.listen if self._endpoint is not None else None}

    # -- work --------------------------------------------------------------------------------------------------------

    async def _apply(self, wanted: config.Config) -> None:
        """Make `wanted` true. Raises ConfigError `metrics-listen`, everything then being as it was."""
        listens = self._endpoint is not None
        if wanted.prometheus.enable != listens or wanted.prometheus.listen != self.config.prometheus.listen:
            await self._move(wanted.prometheus.listen if wanted.prometheus.enable else None)
        self.config, self.problem = wanted, None
        if wanted.history == "always":
            self._record()

    async def _move(self, address: str | None) -> None:
        """Listen there, and not where it was. Raises ConfigError `metrics-listen`, everything then being as it was."""
        before = self.config.prometheus.listen if self._endpoint is not None else None
        await self._close()  # first: both may have the same port
        try:
            if address:
                self._open(address)
        except ConfigError:
            if before:
                with contextlib.suppress(ConfigError):
                    self._open(before)
            raise

    def _open(self, address: str) -> None:
        """Listen here, where a port below 1024 may be had, and serve in a process that may nothing."""
        from daemon.parts.metrics.http import listen

        try:
            self._listener = listen(*values.address(address))
        except OSError as error:
            raise ConfigError(
                f"{self.context.etc}/metrics.toml: cannot listen on {address}: {error.strerror}",
                reason="metrics-listen",
                hint="is the port taken?",
            ) from error
        handlers = {"document": self._told}
        self._endpoint = Worker.of(self.context, MANIFEST, files=[self._listener], handlers=handlers)
        self._endpoint.begin()

    async def _close(self) -> None:
        if self._endpoint is not None:
            await self._endpoint.stop()
            self._endpoint = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _told(self, _: object) -> object:
        return self._document()

    def _document(self) -> str:
        from daemon.linux.facts import release
        from daemon.parts.metrics.exposition import text

        return text(self._sample(), release(), self.config.prometheus.units, self.context.figures)

    def _found(self) -> Health:
        return health(self._sample(), self.context.figures.findings())

    def _sample(self) -> Sample:
        """A sample that is at most a second old: however often it is asked for, the machine is not read more often."""
        if self._last is None or time.monotonic() - self._last.at > _FRESH:
            self._last = take(self.groups)
        return self._last

    def _record(self) -> None:
        """Record from now on, for an hour more."""
        self._wanted_until = time.monotonic() + _LEASE
        if self._recorder is None:
            self._recorder = asyncio.get_running_loop().create_task(self._keep_recording())

    async def _keep_recording(self) -> None:
        before: Sample | None = None
        while self.config.history == "always" or time.monotonic() < self._wanted_until:
            try:
                after = take(self.groups)
                if before is not None:
                    self._ring.add(ring.row_of(figures(before, after)))
                before = after
            except Exception as error:  # noqa: BLE001  # a row is missing then; the next one may be had
                log("warning", f"metrics: {type(error).__name__}: {error}")
            await asyncio.sleep(ring.STEP)
        self._recorder = None
