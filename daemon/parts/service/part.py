"""Supervision as a part of the daemon: all units together.

Services belong to their shims, not to us: `start` takes over what is running, `stop` leaves it running, `shutdown`
alone ends it. What people ask for goes through the graph here, and then to the units one by one.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import ConfigError, MixosError, RefusedError
from common.files import write_atomically
from common.tomlfile import Strict
from common.tomlfile import load as load_toml
from daemon.core.figures import Family, Finding
from daemon.core.method import Method
from daemon.core.part import Context
from daemon.linux.cgroup import CONTROLLERS, CgroupError, Tree
from daemon.linux.log import log
from daemon.parts.service import prepare
from daemon.parts.service.graph import Graph, Plan
from daemon.parts.service.load import MAX_UNITS, Definition, LastGood, Loaded, load, passed_over
from daemon.parts.service.machine import KILL_PATIENCE
from daemon.parts.service.order import Obstacle, obstacle
from daemon.parts.service.prepare import Places
from daemon.parts.service.service import Service
from daemon.parts.service.shim import Shim, ShimError
from daemon.parts.service.states import PROCESS, State, Then

if TYPE_CHECKING:
    from daemon.parts.service.answers import Changes, Problem

Result = TypeVar("Result")
SPAWNING = 8  # shims that are started at the same time
ENABLED = "enabled.toml"
_NAMED = 5  # units of a finding that are named
_REFUSED = 20  # files that are named by a reload
_KEYS = {  # of [limits], by file of the cgroup
    "memory.max": "memory", "memory.high": "memory-high", "memory.swap.max": "swap", "pids.max": "pids",
    "cpu.max": "cpu", "cpu.weight": "cpu-weight", "io.weight": "io-weight", "io.max": "io-max",
}  # fmt: skip


class Enabled(Strict):
    """/etc/mixos/enabled.toml, written by `mixctl service enable|disable`: what differs from the units' `enabled`."""

    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()


class Manager:
    """The part `service`. See `Supervisor` for what the services use of it."""

    name = "service"

    def __init__(self, context: Context, *, places: Places | None = None, cgroups: Path | None = None) -> None:
        self.context = context
        self.places = places or Places(
            context.libexec / "shim", context.libexec / "sandbox", partial(prepare.shared, context.run / "proxy.env")
        )
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.graph = Graph({})
        self.services: dict[str, Service] = {}
        self.loaded = Loaded()
        self.enabled = Enabled()
        self.spawning = asyncio.Semaphore(SPAWNING)
        self.pausing: set[str] = set()  # about to be restarted: nobody may build on them, even if they are still up
        self.closing = False  # the device goes down
        self.missing: tuple[str, ...] = ()  # cgroup controllers that this host does not give
        self.no_cgroups = ""  # why there are none at all
        self._tree = Tree(cgroups or context.cgroups)
        self._shims = ""
        self._last_good = LastGood(context.state / "units")
        self._keeping: asyncio.Task[None] | None = None  # of the accepted texts
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- a part of the daemon ------------------------------------------------------------------------------------------

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        from daemon.parts.service.methods import methods

        return methods(self)

    async def start(self) -> None:
        """Read the units, take over what an earlier daemon left, start what is enabled and never was started."""
        (self.context.run / "units").mkdir(parents=True, exist_ok=True, mode=0o755)
        (self.context.log / "units").mkdir(parents=True, exist_ok=True, mode=0o750)
        self._prepare_cgroups()
        previous = self._last_good.read(self.local)
        loaded = load(self.folders, previous)
        kept = {name: one for name, one in previous.items() if name not in loaded.units and self._has_shim(name)}
        gone = {
            name: f"{one.path}: the file is gone; 'mixctl service reload' stops the unit" for name, one in kept.items()
        }
        self._use(Loaded({**loaded.units, **kept}, {**loaded.broken, **gone}, loaded.missing))
        await asyncio.gather(*map(self._put_away, self._strays()))
        self._keeping = asyncio.create_task(self._keep(self.loaded, None))  # no unit waits for the disk
        adopted = await asyncio.gather(*(service.adopt() for service in self.services.values()))
        for name, known in zip(self.services, adopted, strict=True):
            try:
                if not known and self.is_enabled(name):
                    self.begin([name])
            except MixosError as error:
                log("err", f"unit {name} is not started: {error.message}")
        for service, known in zip(self.services.values(), adopted, strict=True):
            if known:  # by now all are: they look at each other
                service.wake()

    async def stop(self) -> None:
        """The daemon ends, the services go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(service.leave() for service in self.services.values()))
        if self._keeping is not None:
            await self._keeping

    def status(self) -> Mapping[str, Any]:
        """How many units are in which state, which have failed, what is wrong."""
        states = [service.state for service in self.services.values()]
        return {
            "units": {state.value: states.count(state) for state in State if state in states},
            "failed": sorted(name for name, one in self.services.items() if one.failed),
            "unhealthy": sorted(name for name, one in self.services.items() if one.state is State.UNHEALTHY),
            "broken": sorted(self.loaded.broken),
            "missing_controllers": list(self.missing),
            "no_cgroups": self.no_cgroups,
        }

    def figures(self) -> Iterable[Family]:
        """The state of each unit, and how often it was started again by itself."""
        units = self.services.items()
        states = [({"unit": name, "state": one.state.value}, 1.0) for name, one in units]
        restarts = [({"unit": name}, one.memory.restarts) for name, one in units]
        yield Family("mixos_unit_state", "gauge", "Units: the state that each is in.", states)
        yield Family("mixos_unit_restarts_total", "counter", "Units: starts without being asked to.", restarts)

    def findings(self) -> Iterable[Finding]:
        """Units that are not well."""
        units = self.services.items()
        found = {
            "failed": [name for name, one in units if one.failed],
            "unhealthy": [name for name, one in units if one.state is State.UNHEALTHY],
            "started again and again": [name for name, one in units if one.state is State.BACKOFF],
            "broken": list(self.loaded.broken),
        }
        for what, names in found.items():
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                yield Finding("units", "warning", f"{what}: {', '.join(sorted(names)[:_NAMED])}{more}")
        for name, one in units:
            if (
                one.unit.unit.required_for_health
                and (not one.up or one.state is State.UNHEALTHY)
                and one.state is not State.SCHEDULED
            ):
                yield Finding("required", "critical", f"{name} is required for health, and is {one.state.value}")

    # -- what people ask for -------------------------------------------------------------------------------------------

    def begin(self, names: Iterable[str], *, now: bool = False) -> Plan:
        """Start `names` and what comes along; returns at once. Raises what `Graph.start` does, or `shutting-down`."""
        names = tuple(names)
        plan = self._plan(names)
        rivals = [name for name in plan.stops if self.services[name].active]
        if rivals:
            self.background(self.halt(rivals))
        for name in plan.names:
            self.services[name].begin(now=now and name in names)
        return plan

    def _plan(self, names: Iterable[str]) -> Plan:
        if self.closing:
            raise RefusedError("the device is going down", reason="shutting-down")
        return self.graph.start(names)

    async def halt(self, names: Iterable[str]) -> tuple[str, ...]:
        """Stop `names` and what requires them, in order; returns when all have ended, with those that were active."""
        order = self.graph.stop(names)
        active = tuple(name for name in order if self.services[name].active)
        await self._take_down(active, Then.INACTIVE)
        for name in order:
            if not self.services[name].active:
                self.services[name].stop()  # one that has failed is inactive from now on
        return active

    async def restart(self, names: Iterable[str]) -> None:
        """Stop `names` and what requires them, then start all that was active, and `names`; returns when all ended."""
        names = tuple(names)
        self._plan(names)  # what cannot start is not stopped either
        order = [name for name in self.graph.stop(names) if self.services[name].active]
        self.pausing |= set(order)
        try:
            await self._take_down(order, Then.RESTART)
        finally:
            self._resume(order)
        self.begin(names)

    async def _take_down(self, order: Collection[str], then: Then) -> None:
        """Stop units that are active, each after those that come after it."""

        async def one(name: str) -> None:
            for other in order:
                if name in self.graph.first(other):
                    later = self.services[other]
                    await later.until(lambda later=later: later.state not in PROCESS)  # type: ignore[misc]
            service = self.services[name]
            service.stop(then)
            self._resume([name])
            await service.until(lambda: service.state is not State.STOPPING)

        await asyncio.gather(*map(one, order))

    def _resume(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.pausing:
                self.pausing.discard(name)
                self._wake_followers(name)

    async def shutdown(self, deadline: float) -> tuple[str, ...]:
        """The device ends: stop everything in order, `deadline` seconds at most, then kill. Returns what was killed."""
        self.closing = True
        active = [name for name, one in self.services.items() if one.active]
        ended = asyncio.ensure_future(self._take_down(active, Then.INACTIVE))
        await asyncio.wait([ended], timeout=deadline)
        late = tuple(name for name in active if self.services[name].state in PROCESS)
        for name in late:
            log("warning", f"unit {name}: killed, the time for the shutdown is over")
            self.services[name].stop()
            self.services[name].kill_now()
        await asyncio.wait([ended], timeout=KILL_PATIENCE)
        ended.cancel()
        return late

    async def reload(self) -> Changes:
        """Read all files again and apply what differs: {added, changed, removed, restarted, broken: names, refused}.

        A broken file changes nothing. A running service is restarted only when its process would be another one.
        """
        previous = {name: one.definition for name, one in self.services.items()}
        loaded, broken = load(self.folders, previous), self.loaded.broken
        removed = sorted(previous.keys() - loaded.units.keys())
        if removed:
            await self.halt(removed)
        for name in removed:
            await self.services[name].leave()
        changed = sorted(
            name for name, one in loaded.units.items() if name in previous and previous[name].unit != one.unit
        )
        added = sorted(loaded.units.keys() - previous.keys())
        self._use(loaded)
        self._keeping = asyncio.create_task(self._keep(self.loaded, self._keeping))
        await asyncio.shield(self._keeping)
        stale = sorted(name for name in changed if self.services[name].stale)
        if stale:
            await self.restart(stale)
        self.context.events.publish("service.reloaded", "", changed=changed, added=added, removed=removed)
        return {
            "added": added,
            "changed": changed,
            "removed": removed,
            "restarted": stale,
            "broken": sorted(loaded.broken),
            "refused": {name: loaded.broken[name] for name in sorted(loaded.broken.keys() - broken.keys())[:_REFUSED]},
        }

    def is_enabled(self, name: str) -> bool:
        """Whether it is started at boot."""
        if name in self.enabled.disable:
            return False
        return name in self.enabled.enable or self.services[name].unit.unit.enabled

    def set_enabled(self, names: Iterable[str], on: bool) -> None:
        """Start these at boot, or do not; takes effect at the next boot. Raises like `Graph.known`."""
        names = {self.graph.known(name) for name in names}
        enable, disable = set(self.enabled.enable) - names, set(self.enabled.disable) - names
        differ = {name for name in names if self.services[name].unit.unit.enabled != on}
        (enable if on else disable).update(differ)
        enabled = Enabled(enable=tuple(sorted(enable)), disable=tuple(sorted(disable)))
        lines = [
            f"{key} = {json.dumps(names)}\n" for key, names in enabled.model_dump().items()
        ]  # TOML writes them alike
        write_atomically(self.context.etc / ENABLED, "".join(lines).encode())
        self.enabled = enabled

    def check(self) -> list[Problem]:
        """What is wrong with the files as they are now, and with what they name: [{unit, level, reason, message}].

        level: "error" (not in force, or cannot start) or "warning" (units that it names and does not require are not
        there, limits that this host does not enforce, a file that is not read as a unit).
        """
        loaded = load(self.folders, {})
        found: list[Problem] = [
            {"unit": name, "level": "error", "reason": "unit-broken", "message": message}
            for name, message in sorted(loaded.broken.items())
        ]
        found += [
            {"unit": name, "level": "warning", "reason": "unit-missing", "message": message}
            for name, message in sorted(loaded.missing.items())
        ]
        for folder in self.folders:
            for name in passed_over(folder)[:MAX_UNITS]:
                message = f"{folder / name}: not read: the name of a unit's file ends in .toml"
                found.append({"unit": name, "level": "warning", "reason": "unit-not-read", "message": message})
        for name, one in sorted(loaded.units.items()):
            try:
                prepare.check(one.unit, self.context, self.places)
            except MixosError as error:
                found.append({"unit": name, "level": "error", "reason": error.reason, "message": error.message})
            if missing := self.not_enforced(one):
                message = f"this host does not enforce {', '.join(missing)}"
                found.append({"unit": name, "level": "warning", "reason": "limits-missing", "message": message})
        return found

    # -- what services need (Supervisor) -------------------------------------------------------------------------------

    def confine(self, service: Service) -> tuple[str, str, tuple[str, ...]]:
        """See Supervisor. Raises CgroupError, ConfigError `unit-device`."""
        limits = prepare.group_limits(service.unit.limits)
        if self.no_cgroups:
            return "", "", self.not_enforced(service.definition)
        leaf = self._tree.leaf(service.name)
        missing = leaf.limit(limits)
        return os.fspath(leaf.path), self._shims, tuple(_KEYS[name] for name in missing if name in _KEYS)

    def not_enforced(self, definition: Definition) -> tuple[str, ...]:
        """The limits that the unit asks for and this host has no controller for."""
        limits = definition.unit.limits
        missing = CONTROLLERS if self.no_cgroups else self.missing
        asked = [key for key in _KEYS.values() if getattr(limits, key.replace("-", "_"))]
        return tuple(key for key in asked if ("memory" if key == "swap" else key.partition("-")[0]) in missing)

    def clear(self, name: str, *, remove: bool) -> bool:
        """See Supervisor."""
        if self.no_cgroups or not (self._tree.root / name).is_dir():
            return True
        leaf = self._tree.leaf(name)
        try:
            if leaf.populated():
                leaf.kill()
                return False
            if remove:
                leaf.remove()
        except CgroupError as error:
            log("warning", f"unit {name}: {error.message}")
            return False
        return True

    def obstacle(self, name: str) -> Obstacle | None:
        """See Supervisor."""
        return obstacle(name, self.graph, self.services, self.pausing)

    def changed(self, service: Service, old: State) -> None:
        """See Supervisor. What follows from it for others happens right after, not in the middle of a step."""
        loop = asyncio.get_running_loop()
        if self.graph.followers.get(service.name):
            loop.call_soon(self._wake_followers, service.name)
        if service.failed and service.state is not old:
            log("err", f"unit {service.name} has failed: {service.memory.reason}")
            loop.call_soon(self._has_failed, service, service.state)

    def _wake_followers(self, name: str) -> None:
        for other in self.graph.followers.get(name, ()):
            if self.services[other].state is State.WAITING:
                self.services[other].wake()

    def _has_failed(self, service: Service, state: State) -> None:
        """What requires a unit that has failed cannot go on, unless its timer does; what is meant for its failure
        starts."""
        for name in sorted(self.graph.needed_by.get(service.name, ())) if state is State.FAILED else ():
            other = self.services[name]
            if other.active and other.state is not State.WAITING:  # who waits sees it itself
                other.stop(Then.FAIL, "service-dependency", f"requires {service.name}, which has failed")
        for name in service.unit.unit.on_failure:
            try:
                self.begin([name])
            except MixosError as error:
                log("err", f"unit {name} is not started: {error.message}")

    def usage(self, name: str) -> dict[str, Any]:
        """What its processes use: memory in bytes and so on, None where the controller is missing."""
        if self.no_cgroups or not (self._tree.root / name).is_dir():
            return {}
        try:
            found = self._tree.leaf(name).usage()
        except CgroupError:
            return {}
        return {**vars(found), "pressure": dict(found.pressure)}

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def local(self) -> Path:
        """The folder of the local unit files."""
        return self.context.etc / "units"

    @property
    def folders(self) -> tuple[Path, Path]:
        """Where unit files are, the replacing folder last."""
        return self.context.lib / "units", self.local

    def _prepare_cgroups(self) -> None:
        try:
            self.missing = self._tree.prepare()
            self._shims = os.fspath(self._tree.own("shims").path)
        except CgroupError as error:
            self.no_cgroups = error.message
            log("warning", f"no unit has limits: {error.message}")
        if self.missing:
            log("warning", f"cgroup controllers are missing: {' '.join(self.missing)}")

    def _use(self, loaded: Loaded) -> None:
        """Let these definitions be in force."""
        for name, message in loaded.broken.items():
            log("err", f"unit {name}: {message}")
        for name, message in loaded.missing.items():
            log("warning", f"unit {name}: {message}")
        graph = Graph({name: one.unit for name, one in loaded.units.items()}, loaded.broken)
        services = {name: self.services.get(name) or Service(one, self) for name, one in loaded.units.items()}
        self.loaded, self.graph, self.services = loaded, graph, services
        for name, one in loaded.units.items():
            services[name].redefine(one)
        for service in services.values():
            if service.state is State.WAITING:  # perhaps for what is not there any more
                service.wake()
        path = self.context.etc / ENABLED
        try:
            self.enabled = load_toml(path, Enabled) if path.exists() else Enabled()
        except ConfigError as error:
            log("err", error.message)
            self.loaded = Loaded(loaded.units, {**loaded.broken, ENABLED: error.message}, loaded.missing)

    async def _keep(self, loaded: Loaded, before: asyncio.Task[None] | None) -> None:
        """Keep the texts of the local units. Until that is done the files themselves have them."""
        if before is not None:
            await before
        texts = {name: one for name, one in loaded.units.items() if one.path.parent == self.local}
        await asyncio.to_thread(self._last_good.write, texts)

    def _has_shim(self, name: str) -> bool:
        return (self.context.run / "units" / name / "control").exists()

    def _strays(self) -> list[Path]:
        """Runtime folders of units that nobody knows any more, with a shim."""
        folders = (self.context.run / "units").iterdir()
        return [path for path in folders if path.name not in self.services and (path / "control").exists()]

    async def _put_away(self, folder: Path) -> None:
        """End a service whose unit is not known, not even from an earlier text."""
        log("warning", f"unit {folder.name} is unknown: what runs of it is ended")
        try:
            shim = await Shim.connect(folder)
            await shim.stop(0)
            async for _ in shim.events():
                if not shim.state.populated:
                    break
            await shim.quit()
            shim.close()
        except ShimError as error:
            log("warning", f"unit {folder.name}: {error.message}")
        self.clear(folder.name, remove=True)

    def background(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Do something beside everything else, whoever waits for it or not."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
