"""What clients can call about units. Looking is for everybody, running them for operators, and what decides which
programs root runs (reading unit files anew, enabling) for administrators alone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field, WithJsonSchema

from common.errors import MixosError
from common.tomlfile import Strict
from common.values import Name, SignalNumber, signal_name
from daemon.core.method import ADMINS, OPERATORS, PEOPLE, Caller, Method
from daemon.parts.service import timer
from daemon.parts.service.logs import Present, Query, Reader, Record
from daemon.parts.service.service import Service
from daemon.parts.service.states import RESTING, State

if TYPE_CHECKING:
    from daemon.core.answers import JsonObject
    from daemon.parts.service.answers import (
        Disabled,
        Enabled,
        End,
        Facts,
        Graph,
        Killed,
        Line,
        Problems,
        Reloaded,
        Reset,
        Rows,
        Signal,
        Stopped,
        Unit,
        Units,
        Usage,
    )
    from daemon.parts.service.part import Manager

WAIT = 30.0  # seconds that a call waits for what it asked for
LONGEST = 600.0
MOMENT = 0.5  # seconds for which a service without readiness is watched before it is called running
_BATCH = 500  # records that are read at once


class ServiceError(MixosError):
    """A unit that was to be started has failed; `reason` is the unit's own (`service-exit`, `program-missing`, ...)."""

    exit_code = 9


class One(Strict):
    """Parameters: one unit."""

    name: Name = Field(description="the unit, such as hello")


class These(Strict):
    """Parameters: units, at least one."""

    names: tuple[Name, ...] = Field(min_length=1, max_length=100, description="the units, such as hello")


class Several(These):
    """Parameters: units, and how long to wait for them."""

    wait: float = Field(default=WAIT, ge=0, le=LONGEST, description="seconds to wait for what becomes of them")


class Start(Several):
    """Parameters of a start."""

    now: bool = Field(default=False, description="run units with a timer or sockets at once")


class Shutdown(Strict):
    """Parameters of a shutdown."""

    seconds: float = Field(
        default=20, ge=0, le=LONGEST - 10, description="for all units together; what is left then is killed"
    )


class Kill(One):
    """Parameters: a unit and a signal."""

    signal: Annotated[SignalNumber, WithJsonSchema({"type": "string"})] = Field(
        default=signal.SIGTERM, description="the signal's name, with or without SIG, or its number; RTMIN+1 too"
    )
    everyone: bool = Field(default=False, description="to all processes of the unit, not just to the main one")


class Some(Strict):
    """Parameters: units, or all."""

    names: tuple[Name, ...] = Field(default=(), max_length=100, description="the units, such as hello; none: all")


class Log(Some):
    """Parameters: which lines."""

    since: float | None = Field(default=None, description="from then on, in seconds since 1970")
    until: float | None = Field(default=None, description="up to then, in seconds since 1970")
    last: int | None = Field(default=None, ge=0, le=100_000, description="only so many, the newest ones")
    boot: str = Field(
        default="", pattern=r"^([0-9a-f-]{0,36}|current)$", description="the beginning of a boot id, or current"
    )
    contains: str = Field(default="", max_length=200, description="only lines with this text")
    follow: bool = Field(default=False, description="go on with what comes")


def methods(manager: Manager) -> Sequence[Method]:
    """The methods of the part."""
    calls = _Calls(manager)
    return (
        Method("service.list", "All units and their states.", calls.list, PEOPLE),
        Method("service.show", "Every fact about one unit.", calls.show, PEOPLE, One),
        Method("service.graph", "What depends on what, as text and for Graphviz.", calls.graph, PEOPLE, Some),
        Method("service.check", "Read all unit files and say what is wrong.", calls.check, PEOPLE, seconds=30),
        Method("service.logs", "What services said.", calls.logs, PEOPLE, Log),
        Method("service.start", "Start units.", calls.start, OPERATORS, Start, changes=True, seconds=LONGEST),
        Method("service.stop", "Stop units, and what requires them.", calls.stop, OPERATORS, Several, True, LONGEST),
        Method("service.restart", "Stop and start units.", calls.restart, OPERATORS, Several, True, LONGEST),
        Method("service.kill", "Send a signal to a unit's processes.", calls.kill, OPERATORS, Kill, changes=True),
        Method("service.reset", "Forget that units have failed.", calls.reset, OPERATORS, Some, changes=True),
        Method("service.enable", "Start units at boot.", calls.enable, ADMINS, These, changes=True),
        Method("service.disable", "Do not start units at boot.", calls.disable, ADMINS, These, changes=True),
        Method("service.shutdown", "Stop all: the device goes down.", calls.shutdown, ADMINS, Shutdown, True, LONGEST),
        Method("service.reload", "Apply changed unit files.", calls.reload, ADMINS, changes=True, seconds=LONGEST),
    )


class _Calls:
    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    def services(self, names: Sequence[str]) -> list[Service]:
        known = self.manager.graph.known
        return [self.manager.services[known(name)] for name in names or sorted(self.manager.services)]

    async def list(self, _caller: Caller, _params: Strict) -> Units:
        rows = [row(self.manager, service) for service in self.services(())]
        broken = {name: text for name, text in self.manager.loaded.broken.items() if name not in self.manager.services}
        return {"units": rows, "broken": broken}

    async def show(self, _caller: Caller, params: One) -> Facts:
        (service,) = self.services([params.name])
        await service.refresh()
        return facts(self.manager, service)

    async def graph(self, _caller: Caller, params: Some) -> Graph:
        graph = self.manager.graph
        order = graph.start(params.names or [name for name in graph.units if self.manager.is_enabled(name)])
        return {
            "text": graph.text(params.names),
            "dot": graph.dot(),
            "order": [list(step) for step in order.steps],
            "missing": list(order.missing),
        }

    async def check(self, _caller: Caller, _params: Strict) -> Problems:
        return self.manager.check()

    async def start(self, _caller: Caller, params: Start) -> Rows:
        self.manager.begin(params.names, now=params.now)
        return await self.settled(params)

    async def restart(self, _caller: Caller, params: Several) -> Rows:
        names = [one.name for one in self.services(params.names)]
        task = self.manager.background(self.manager.restart(names))
        await asyncio.wait([task], timeout=params.wait)
        if task.done():
            task.result()
        return await self.settled(params)

    async def settled(self, params: Several) -> Rows:
        """Wait until it is known what became of a start. Raises ServiceError when one has failed, or tries again."""
        services = self.services(params.names)
        await asyncio.gather(*(_settle(one, params.wait) for one in services))
        for one in services:
            if one.failed or one.state is State.BACKOFF:
                raise ServiceError(
                    f"{one.name}: {one.memory.reason}" + (", will be tried again" * (one.state is State.BACKOFF)),
                    reason=one.memory.slug or "service-failed",
                    hint=f"'mixctl service logs {one.name}' shows what it said",
                )
        return [row(self.manager, one) for one in services]

    async def stop(self, _caller: Caller, params: Several) -> Stopped:
        services = self.services(params.names)
        task = self.manager.background(self.manager.halt(params.names))
        await asyncio.wait([task], timeout=params.wait)
        return {
            "stopped": list(task.result()) if task.done() else [],
            "units": [row(self.manager, one) for one in services],
        }

    async def kill(self, _caller: Caller, params: Kill) -> Signal:
        await self.services([params.name])[0].kill(params.signal, everyone=params.everyone)
        return {"signal": signal_name(params.signal)}

    async def reset(self, _caller: Caller, params: Some) -> Reset:
        failed = [one for one in self.services(params.names) if one.failed]
        for one in failed:
            one.forget()
        return {"reset": [one.name for one in failed]}

    async def enable(self, _caller: Caller, params: These) -> Enabled:
        self.manager.set_enabled(params.names, True)
        return {"enabled": list(params.names)}

    async def disable(self, _caller: Caller, params: These) -> Disabled:
        self.manager.set_enabled(params.names, False)
        return {"disabled": list(params.names)}

    async def reload(self, _caller: Caller, _params: Strict) -> Reloaded:
        changes, loaded = await self.manager.reload(), self.manager.loaded
        return {**changes, "messages": dict(loaded.broken), "missing": dict(loaded.missing)}

    async def shutdown(self, _caller: Caller, params: Shutdown) -> Killed:
        return {"killed": list(await self.manager.shutdown(params.seconds))}

    async def logs(self, _caller: Caller, params: Log) -> AsyncIterator[Line]:
        reader = Reader(self.manager.context.log / "units", Present.now(self.manager.boot))
        kept = reader.units()
        query = Query(
            units=tuple(name if name in kept else self.manager.graph.known(name) for name in params.names),
            since=None if params.since is None else int(params.since * 1e9),
            until=None if params.until is None else int(params.until * 1e9),
            boot=self.manager.boot[:8] if params.boot == "current" else params.boot[:8],
            contains=params.contains,
            last=params.last,
        )
        if params.follow:
            async for record in reader.follow(query):
                yield cast("Line", record.as_json())
            return
        records = reader.read(query)
        while batch := await asyncio.to_thread(_take, records):
            for record in batch:
                yield cast("Line", record.as_json())


async def _settle(service: Service, seconds: float) -> None:
    """Wait until the unit is up, or rests, or failed its first try."""
    ends = (State.BACKOFF, *RESTING)
    await service.until(lambda: service.up or service.state in ends, seconds)
    if service.state is State.RUNNING and service.unit.readiness.how == "started":
        # It does not tell when it is ready: most that cannot work end at once.
        await service.until(lambda: service.state is not State.RUNNING, min(seconds, MOMENT))


def _take(records: Any) -> list[Record]:
    return list(islice(records, _BATCH))


def row(manager: Manager, service: Service) -> Unit:
    """One unit in a list. since: seconds since 1970; memory: bytes or None; pid: 0 when there is no process."""
    known = service.known
    running = known is not None and service.populated
    return {
        "name": service.name,
        "description": service.unit.unit.description,
        "state": service.state.value,
        "since": _since(service),
        "reason": service.memory.reason,
        "slug": service.memory.slug,
        "pid": known.main.pid if known is not None and running else 0,
        "memory": manager.usage(service.name).get("memory") if running else None,
        "restarts": service.memory.restarts,
        "enabled": manager.is_enabled(service.name),
        "stale": service.stale,
        "broken": manager.loaded.broken.get(service.name),
    }


def _since(service: Service) -> float:
    """When it entered its state, by the present setting of the clock: it may have been set since then."""
    began = service.memory.since
    return time.time() - (time.monotonic() - began) if began else 0.0


def facts(manager: Manager, service: Service) -> Facts:
    """All there is to know about a unit."""
    known, graph, name = service.known, manager.graph, service.name
    missing = service.unenforced or manager.not_enforced(service.definition)
    return {
        **row(manager, service),
        "file": str(service.definition.path),
        "definition": _definition(service),
        "first": {"up": sorted(graph.ups[name]), "ended": sorted(graph.ends[name])},
        "needed_by": sorted(graph.needed_by[name]),
        "excludes": sorted(graph.rivals[name]),
        "shim": known.shim.pid if known is not None and service.shim is not None else 0,
        "cgroup": known.cgroup if known is not None else "",
        "status": known.status if known is not None else "",
        "log": {
            "folder": str(manager.context.log / "units" / name),
            "dropped": known.dropped if known is not None else 0,
            "lost": known.lost if known is not None else 0,
        },
        "usage": cast("Usage", manager.usage(name)),
        "missing": manager.loaded.missing.get(name),
        "not_enforced": sorted(missing),
        "next_run": _next_run(service),
        "last_run": service.history.last_run,
        "ends": [cast("End", end.model_dump()) for end in reversed(service.history.ends)],
    }


def _definition(service: Service) -> JsonObject:
    """What the unit says, but for the values of its variables: they may be secret."""
    found = service.unit.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if "environment" in found.get("service", {}):
        found["service"]["environment"] = sorted(found["service"]["environment"])
    return found


def _next_run(service: Service) -> float | None:
    """When its timer starts it, in seconds since 1970."""
    if service.state is not State.SCHEDULED or service.unit.timer is None:
        return None
    memory = service.memory
    runs = timer.Runs(timer.Clock(memory.armed_boot, memory.armed_wall), memory.run_boot, service.history.last_run)
    left = timer.remaining(service.unit.timer, runs, service.clock())
    return None if left == float("inf") else time.time() + left
