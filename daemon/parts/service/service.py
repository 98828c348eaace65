"""The runner of a unit: gives its machine what happens, and carries out what the machine asks for.

The memory is on disk before an operation that it announces begins; an end is in the history before the memory says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from common.errors import ConfigError, MixosError, NotFoundError, RefusedError
from common.files import folder_of
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.parts.service import events, leftovers, machine, prepare, ready, sockets
from daemon.parts.service.events import Event, Operation, Seen, Tick, Watch
from daemon.parts.service.life import Life, due, watches
from daemon.parts.service.link import Link
from daemon.parts.service.load import Definition
from daemon.parts.service.memory import History, Memory, guess
from daemon.parts.service.order import Obstacle
from daemon.parts.service.prepare import Places
from daemon.parts.service.shim import Event as ShimEvent
from daemon.parts.service.shim import Shim, ShimError
from daemon.parts.service.shim import State as ShimState
from daemon.parts.service.spec import Spec
from daemon.parts.service.states import RESTING, UP, State, Then
from daemon.parts.service.timer import Clock
from daemon.parts.service.unit import Service as Policy
from daemon.parts.service.unit import Unit
from daemon.parts.service.watch import watch

_APPLIED_LIVE = {  # changes of these need no restart of the process
    "restart", "restart_delay", "restart_delay_max", "stable_time", "start_limit", "permanent_failure", "stop_timeout",
    "start_timeout",
}  # fmt: skip


class Supervisor(Protocol):
    """What a unit needs from the manager of all units."""

    context: Context
    places: Places
    boot: str
    spawning: asyncio.Semaphore  # so many shims are started at the same time

    def obstacle(self, name: str) -> Obstacle | None:
        """What the unit has to wait for."""

    def confine(self, service: Service) -> tuple[str, str, tuple[str, ...]]:
        """Make its cgroup and set its limits: folders for the service and its shim ("" without cgroups), and the limits
        that this host does not enforce."""

    def clear(self, name: str, *, remove: bool) -> bool:
        """Kill what is left in its cgroup; remove the empty group. Whether nothing is left."""

    def changed(self, service: Service, old: State) -> None:
        """It is in another state now."""


class Service:
    """A unit that the manager knows."""

    def __init__(self, definition: Definition, supervisor: Supervisor) -> None:
        self.name = definition.name
        self.definition = definition
        self.supervisor = supervisor
        self.folder = supervisor.context.run / "units" / self.name
        self.history = History.read(self.history_path)
        self.unenforced: tuple[str, ...] = ()
        self.clock: Callable[[], Clock] = Clock.now
        self.link = Link(self.folder, self._heard)
        self.listening: tuple[int, ...] = ()
        self._life = Life(
            self.name, definition.unit, _digest(definition.unit), Memory(boot=supervisor.boot),
            self.history.last_run, released=True,
        )  # fmt: skip
        self._spec: Spec | None = None  # for the next start, when the shim has something older
        self._events: list[Event] = []
        self._busy = False
        self._left = False
        self._operation: asyncio.Task[None] | None = None
        self._watches: dict[Watch, asyncio.Task[None]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at: float | None = None
        self._changed = asyncio.Event()

    # -- facts -------------------------------------------------------------------------------------------------------

    @property
    def unit(self) -> Unit:
        """The definition in force."""
        return self.definition.unit

    @property
    def policy(self) -> Policy:
        """Its [service]; milestones have delays only."""
        return self._life.policy

    @property
    def memory(self) -> Memory:
        """What is kept of it."""
        return self._life.memory

    @property
    def state(self) -> State:
        """Where it is."""
        return self._life.memory.state

    @property
    def active(self) -> bool:
        """Whether something is going on."""
        return self.state not in RESTING

    @property
    def failed(self) -> bool:
        """Whether its last run ended badly and is not tried again."""
        return self._life.failed

    @property
    def up(self) -> bool:
        """Whether others may build on it."""
        oneshot = self.unit.service is not None and self.unit.service.type == "oneshot"
        return self.state in UP or (oneshot and self.state is State.DONE)

    @property
    def shim(self) -> Shim | None:
        """Its shim, if there is one."""
        return self.link.shim

    @property
    def known(self) -> ShimState | None:
        """The newest word of its shim, or the last one of a shim that has gone."""
        return self.link.state

    @property
    def populated(self) -> bool:
        """Whether a process of it is left, as far as is known."""
        return self.known is not None and self.known.populated

    @property
    def stale(self) -> bool:
        """Whether its process runs with an older definition."""
        return self._life.stale

    @property
    def history_path(self) -> Path:
        """Where its history is kept."""
        return self.supervisor.context.state / "services" / f"{self.name}.json"

    async def until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `condition` holds, looked at whenever something happens here; False after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
                return True
        return condition()

    # -- commands ----------------------------------------------------------------------------------------------------

    def begin(self, *, now: bool = False) -> None:
        """Start; if it waits to be tried again, at once. now: do not wait for its timer or for a connection."""
        self.send(events.Begin(now))

    def stop(self, then: Then = Then.INACTIVE, slug: str = "", reason: str = "") -> None:
        """Begin to stop; `then` says what comes after."""
        self.send(events.Stop(then, slug, reason))

    def forget(self) -> None:
        """That its last run has failed."""
        self.send(events.Forget())

    def kill_now(self) -> None:
        """While it is stopping: no more patience."""
        self.send(events.KillNow())

    def wake(self) -> None:
        """Something that it waits for may have changed: look again."""
        self.send(Tick())

    async def kill(self, number: int, *, everyone: bool) -> None:
        """Send a signal. Raises RefusedError `service-not-running`, ShimError."""
        if self.shim is None or not self.populated:
            raise RefusedError(f"{self.name} has no process", reason="service-not-running")
        await self.link.command(lambda shim: shim.signal(number, everyone=everyone))

    async def refresh(self) -> None:
        """Let the shim tell what it only counts, if there is one."""
        with contextlib.suppress(ShimError):
            await self.link.command(lambda shim: shim.refresh())

    def redefine(self, definition: Definition) -> None:
        """Another definition holds: timers, checks, limits and policy from now on, the rest from the next start on."""
        old, self.definition = self.definition, definition
        if old.unit == definition.unit:
            return
        if self.unit.service is not None and self.state in (State.STARTING, State.RUNNING, State.UNHEALTHY):
            try:
                self.unenforced = self.supervisor.confine(self)[2]
            except MixosError as error:
                log("err", f"unit {self.name}: {error.message}")
        self._end_watches(self._watches)  # they go by the old one
        self.send(events.Redefined(self.unit, _digest(self.unit)))

    async def adopt(self) -> bool:
        """Take over what an earlier daemon of this boot left; False: it never had to do with this unit.

        It goes on with `wake`, when all units have been taken over.
        """
        memory = Memory.read(self.folder, self.supervisor.boot)
        if not await self.link.adopt(self.supervisor.boot) and memory is None:
            return False
        steps = len(self.unit.service.pre_start) if self.unit.service else 0
        memory = memory or guess(self.known, steps, self.supervisor.boot)
        self._life = Life(self.name, self.unit, self._life.digest, memory, self.history.last_run)
        if self.active and self.unit.service is not None:
            with contextlib.suppress(MixosError):
                self.unenforced = self.supervisor.confine(self)[2]
        return True

    async def leave(self) -> None:
        """The daemon ends: let go of everything, touch nothing."""
        self._left = True
        tasks = [*self._watches.values(), *([self._operation] if self._operation else [])]
        self._end_watches(self._watches)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._operation is not None:
            self._operation.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close_sockets()
        self.link.close()

    # -- the machine -------------------------------------------------------------------------------------------------

    def send(self, event: Event) -> None:
        """Let the machine know; what it asks for is begun when this returns."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events and not self._left:
                self._advance(self._events.pop(0))
        finally:
            self._busy = False
        self._changed.set()

    def _heard(self, event: ShimEvent) -> None:
        self.send(events.ShimSaid(event))

    def _seen(self) -> Seen:
        link = self.link
        return Seen(
            time.monotonic(), self.clock(), link.shim is not None, link.state, self.supervisor.obstacle(self.name)
        )

    def _advance(self, event: Event) -> None:
        seen, old = self._seen(), self._life
        life, actions = machine.step(old, event, seen)
        for action in actions:
            match action:
                case events.KeepEnd(end=end):
                    self.history = self.history.ended(end)
                    self.history.write(self.history_path)
                case events.KeepRun(at=at):
                    self.history = self.history.ran(at)
                    self.history.write(self.history_path)
        self._life = life
        if life.memory is not old.memory and life.memory != old.memory:
            life.memory.write(self.folder)
        for action in actions:
            self._act(action)
        if life.state not in (State.WAITING, State.LISTENING):
            self._close_sockets()
        self._look_out(seen)

    def _act(self, action: events.Action) -> None:
        publish = self.supervisor.context.events.publish
        match action:
            case events.KeepEnd(end=end):
                publish("service.exited", self.name, code=end.code, signal=end.signal, oom=end.oom)
                if end.oom:
                    log("err", f"unit {self.name}: out of memory")
                    publish("service.oom", self.name, limit=self.unit.limits.memory)
            case events.StateChanged(state=state, old=old, slug=slug, reason=reason):
                publish("service.state", self.name, state=state, old=old, slug=slug, reason=reason)
                self.supervisor.changed(self, old)
            case events.Log(level=level, text=text):
                log(level, text)
            case events.KillGroup():
                self.supervisor.clear(self.name, remove=False)
            case events.Cancel() if self._operation is not None:
                self._operation.cancel()
            case Operation():
                self._operation = asyncio.create_task(self._carry_out(action))

    def _look_out(self, seen: Seen) -> None:
        """Watch what the machine wants to know, and wake it when something is due."""
        wanted = watches(self._life, seen)
        self._end_watches(self._watches.keys() - wanted)
        for what in wanted - self._watches.keys():
            self._watches[what] = asyncio.create_task(self._watch(what))
        at = due(self._life, seen)
        if at == self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = None, at
        if at is not None:
            self._alarm = asyncio.get_running_loop().call_at(at, self._ring)  # its clock is CLOCK_MONOTONIC, too

    def _ring(self) -> None:
        self._alarm = self._alarm_at = None
        self.send(Tick())

    def _end_watches(self, which: Any) -> None:
        for what in tuple(which):
            self._watches.pop(what).cancel()

    async def _watch(self, what: Watch) -> None:
        """What goes wrong with a check of its health is said, and costs it nothing; all else is a failure."""
        outcome: Event
        try:
            await watch(what, self)
            return
        except MixosError as error:
            outcome = await self._failed(error, watch=True)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not leave a unit in no state
            outcome = self._defect(error, watch=True)
        if what is Watch.HEALTH:
            log("err", f"unit {self.name} is not watched any more")
            return
        del self._watches[what]
        self.send(outcome)

    # -- operations -------------------------------------------------------------------------------------------------

    async def _carry_out(self, operation: Operation) -> None:
        outcome: Event
        try:
            outcome = events.Done(bool(await self._operations[operation](self)))
        except MixosError as error:
            outcome = await self._failed(error)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not leave a unit in no state
            outcome = self._defect(error)
        self.send(outcome)

    async def _failed(self, error: MixosError, *, watch: bool = False) -> Event:
        """What an error means for the machine."""
        if error.reason == "shim-gone" and self.shim is not None and await self.link.regain(self.shim):
            return Tick() if watch else events.Reconnected()
        hopeless = isinstance(error, ConfigError | NotFoundError | RefusedError)
        return events.Rejected(error.reason, error.message, hopeless, watch)

    def _defect(self, error: Exception, *, watch: bool = False) -> Event:
        log("err", f"unit {self.name}: {type(error).__name__}: {error}")
        return events.Rejected("service-internal", "internal error, see the log", watch=watch)

    async def _spawn(self) -> bool:
        async with self.supervisor.spawning:
            return await self.link.spawn(self.supervisor.places.shim, self.specify())

    def specify(self) -> Spec:
        """What the shim needs for the present step; the cgroup is made, and limits are put in force.

        Raises CgroupError and what `prepare.specification` raises.
        """
        supervisor, self._spec = self.supervisor, None
        group, shims, self.unenforced = supervisor.confine(self)
        return prepare.specification(
            self.name, self.unit, supervisor.context, supervisor.places, step=self.memory.step, group=group, shims=shims
        )

    async def _open_sockets(self) -> None:
        """Open those that the shim does not hold yet, and give them to it; we keep copies to wait for connections."""
        self._close_sockets()
        held = await self.link.command(lambda shim: shim.fds())
        names = [one.name for one in self.unit.socket]
        sockets.close([descriptor for name, descriptor in held if name not in names])
        copies = [descriptor for name, descriptor in held if name in names]
        try:
            for wanted in self.unit.socket:
                if wanted.name not in [name for name, _ in held]:
                    copies.append(sockets.open_socket(wanted).detach())
                    await self.link.command(partial(Shim.store, name=wanted.name, descriptor=copies[-1]))
        except BaseException:
            sockets.close(copies)
            raise
        self.listening = tuple(copies)

    def _close_sockets(self) -> None:
        copies, self.listening = self.listening, ()
        sockets.close(copies)

    async def _prepare(self) -> None:
        self._spec = self.specify()
        await self._pass()

    async def _pass(self) -> None:
        context = self.supervisor.context
        await context.gates.pass_through(context, self.name)

    async def _launch(self) -> None:
        spec, self._spec = self._spec, None
        service = self.unit.service
        if service is not None and service.pid_file is not None:
            path = Path(service.pid_file)
            with (
                contextlib.suppress(OSError),
                folder_of(path) as folder,
            ):  # many programs do not start where there is one
                os.unlink(path.name, dir_fd=folder)
        await self.link.command(lambda shim: shim.start(spec))

    async def _halt(self) -> None:
        await self.link.command(lambda shim: shim.stop(max(0.0, self._life.stop_by(shim.state) - time.monotonic())))

    async def _mark_ready(self) -> None:
        await self.link.command(lambda shim: shim.mark_ready())

    async def _kill_leftovers(self) -> None:
        """Its cgroup has all of it; without one, what did not want to get away is found by its session."""
        known = self.known
        if known is None:
            return
        log("err", f"unit {self.name}: its shim was killed")
        deadline = time.monotonic() + machine.KILL_PATIENCE
        while not self.supervisor.clear(self.name, remove=False) or leftovers.kill(known.main):
            if time.monotonic() > deadline:
                log("err", f"unit {self.name}: processes are left that cannot be killed")
                break
            await asyncio.sleep(0.05)
        self.link.leftovers_killed()

    async def _release(self) -> None:
        try:
            await self.link.quit()
        except ShimError as error:
            log("warning", f"unit {self.name}: its shim stays: {error.message}")
            return
        sockets.remove_files(self.unit.socket)
        self.supervisor.clear(self.name, remove=True)

    _operations: Mapping[Operation, Callable[[Service], Coroutine[Any, Any, object]]] = {
        Operation.SPAWN: _spawn,
        Operation.SOCKETS: _open_sockets,
        Operation.PREPARE: _prepare,
        Operation.PASS: _pass,
        Operation.LAUNCH: _launch,
        Operation.HALT: _halt,
        Operation.MARK_READY: _mark_ready,
        Operation.KILL_LEFTOVERS: _kill_leftovers,
        Operation.RELEASE: _release,
    }

    def asker(self) -> Callable[[], ready.Asker]:
        """What its checks run with."""
        service, supervisor = self.unit.service, self.supervisor
        if service is None:
            return ready.Asker
        group = self.known.cgroup if self.known is not None else ""
        return partial(prepare.asker, self.name, service, supervisor.context, supervisor.places, group)


def _digest(unit: Unit) -> str:
    """Of what a process is started with: when it differs, only a restart applies the change."""
    service = unit.service.model_dump_json(exclude=_APPLIED_LIVE) if unit.service else ""
    opened = "".join(one.model_dump_json() for one in unit.socket)
    return hashlib.sha256(f"{service}{opened}{unit.readiness.how}{unit.logs}".encode()).hexdigest()[:16]
