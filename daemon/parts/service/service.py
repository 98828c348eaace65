"""One unit over time: its state, what was decided, its shim. Here is what others may ask; how it lives is in `life`.

The state is written down before the deed that it announces, and each state's handler in `life` begins by looking how
far things are. So a new daemon reads the state, runs the same handler, and goes on where the old one was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from common.errors import MixosError, RefusedError
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.parts.service import judge, prepare, sockets
from daemon.parts.service.backoff import Attempts
from daemon.parts.service.graph import Graph
from daemon.parts.service.load import Definition
from daemon.parts.service.memory import History, Memory, guess
from daemon.parts.service.prepare import Places
from daemon.parts.service.shim import Extend, Gone, Shim, ShimError, Watchdog, load_state
from daemon.parts.service.shim import State as ShimState
from daemon.parts.service.spec import Spec
from daemon.parts.service.states import RESTING, TRANSITIONS, UP, State, Then
from daemon.parts.service.timer import Clock
from daemon.parts.service.unit import Service as Policy
from daemon.parts.service.unit import Unit

Result = TypeVar("Result")
_APPLIED_LIVE = {  # changes of these need no restart of the process
    "restart", "restart_delay", "restart_delay_max", "stable_time", "start_limit", "permanent_failure", "stop_timeout",
    "start_timeout",
}  # fmt: skip


class House(Protocol):
    """What a service needs from the manager."""

    context: Context
    places: Places
    boot: str
    graph: Graph
    crowd: asyncio.Semaphore  # how many shims are being started at the same time
    pausing: set[str]  # about to be restarted: nobody may build on them, even if they are still up

    @property
    def services(self) -> Mapping[str, Service]:
        """All units."""

    def confine(self, service: Service) -> tuple[str, str, tuple[str, ...]]:
        """Make its cgroup and set its limits: folders for the service and its shim ("" without cgroups), and the limits
        that this host does not enforce."""

    def clear(self, name: str, *, remove: bool) -> bool:
        """Kill what is left in its cgroup; remove the empty group. Whether nothing is left."""

    def changed(self, service: Service, old: State) -> None:
        """It is in another state now."""


class Service:
    """A unit that the manager knows."""

    def __init__(self, definition: Definition, house: House) -> None:
        self.name = definition.name
        self.definition = definition
        self.house = house
        self.folder = house.context.run / "units" / self.name
        self.memory = Memory(boot=house.boot)
        self.history = History.read(self.history_path)
        self.shim: Shim | None = None
        self.gone = False  # the shim went away by itself
        self.last: ShimState | None = None  # what is known of a shim that is gone
        self.unenforced: tuple[str, ...] = ()
        self.sentence: tuple[str, str] | None = None  # (slug, reason) for which it is being ended
        self.pinged = 0.0  # when it last said that it lives (watchdog)
        self.limit: asyncio.Timeout | None = None  # of the start
        self.clock: Callable[[], Clock] = Clock.now
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self.chores = asyncio.Lock()
        # The unit and step that the shim was made ready for when it was started; for whoever starts them right away.
        self.prepared: tuple[Unit, int] | None = None

    # -- facts -------------------------------------------------------------------------------------------------------

    @property
    def unit(self) -> Unit:
        """The definition in force."""
        return self.definition.unit

    @property
    def policy(self) -> Policy:
        """Its [service]; milestones have delays only."""
        return self.unit.service or judge.MILESTONE

    @property
    def state(self) -> State:
        """Where it is."""
        return self.memory.state

    @property
    def active(self) -> bool:
        """Whether something is going on."""
        return self.state not in RESTING

    @property
    def up(self) -> bool:
        """Whether others may build on it."""
        oneshot = self.unit.service is not None and self.unit.service.type == "oneshot"
        return self.state in UP or (oneshot and self.state is State.DONE)

    @property
    def known(self) -> ShimState | None:
        """The newest word of its shim."""
        return self.shim.state if self.shim is not None and not self.gone else self.last

    @property
    def populated(self) -> bool:
        """Whether a process of it is left, as far as is known."""
        return self.known is not None and self.known.populated

    @property
    def digest(self) -> str:
        """Of what a running process was started with: when it differs, only a restart applies the change."""
        unit = self.unit
        service = unit.service.model_dump_json(exclude=_APPLIED_LIVE) if unit.service else ""
        sockets = "".join(one.model_dump_json() for one in unit.socket)
        return hashlib.sha256(f"{service}{sockets}{unit.readiness.how}{unit.logs}".encode()).hexdigest()[:16]

    @property
    def stale(self) -> bool:
        """Whether its process runs with an older definition."""
        return self.memory.launch > 0 and self.active and self.memory.digest not in ("", self.digest)

    @property
    def history_path(self) -> Path:
        """Where its history is kept."""
        return self.house.context.state / "services" / f"{self.name}.json"

    async def until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `condition` holds, looked at whenever something happens here; False after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._wake.clear()
                    await self._wake.wait()
                return True
        return condition()

    # -- commands ----------------------------------------------------------------------------------------------------

    def begin(self, *, now: bool = False) -> None:
        """Start; if it waits to be tried again, at once. now: do not wait for its timer or for a connection."""
        if self.state in RESTING:  # all of before is forgotten
            clock = self.clock()
            self.memory = Memory(boot=self.memory.boot, state=self.state, armed_boot=clock.boot, armed_wall=clock.wall)
            self.to(State.WAITING)
        elif self.state is State.STOPPING:
            self.remember(then=Then.RESTART)
            return
        elif self.state is State.BACKOFF:
            self.to(State.WAITING, attempts=Attempts())
        elif now and self.state in (State.LISTENING, State.SCHEDULED):
            self.attempt()
        else:
            return
        self.live()

    def stop(self, then: Then = Then.INACTIVE, slug: str = "", reason: str = "") -> None:
        """Begin to stop; `then` says what comes after."""
        if self.state in RESTING:
            if then is Then.INACTIVE and self.state is not State.INACTIVE:
                self.to(State.INACTIVE)
        elif self.state is State.STOPPING:
            self.remember(then=then)
        else:
            self.to(State.STOPPING, slug, reason, then=then)
            self.live()

    async def kill(self, number: int, *, everyone: bool) -> None:
        """Send a signal. Raises RefusedError `service-not-running`, ShimError."""
        if self.shim is None or self.gone or not self.shim.state.populated:
            raise RefusedError(f"{self.name} has no process", reason="service-not-running")
        await self.chore(self.shim.signal(number, everyone=everyone))

    def condemn(self, slug: str, reason: str) -> None:
        """It must be ended, and counts as failed, for this reason."""
        self.sentence = (slug, reason)
        self._wake.set()

    async def end_now(self) -> None:
        """While it is stopping: no more patience."""
        with contextlib.suppress(ShimError):
            if self.shim is not None and not self.gone:
                await self.chore(self.shim.stop(0))

    def redefine(self, definition: Definition) -> None:
        """Another definition holds: timers, checks, limits and policy from now on, the rest from the next start on."""
        old, self.definition = self.definition, definition
        if not self.active or old.unit == definition.unit:
            return
        if self.unit.service is not None and self.state in (State.STARTING, State.RUNNING, State.UNHEALTHY):
            try:
                self.unenforced = self.house.confine(self)[2]
            except MixosError as error:
                log("err", f"unit {self.name}: {error.message}")
        self.live()

    # -- the shim ----------------------------------------------------------------------------------------------------

    async def held(self) -> Shim:
        """The shim; started when there is none. Raises ShimError and what `prepare.specification` raises."""
        return await self.chore(self._hold())

    async def _hold(self) -> Shim:
        if self.shim is not None and not self.gone:
            return self.shim
        self._forget()
        unit, step = self.unit, self.memory.step
        spec = self.specify()
        async with self.house.crowd:
            try:
                shim = await Shim.spawn(self.house.places.shim, self.folder, spec)
                self.prepared = unit, step
            except ShimError as error:
                if error.reason != "shim-running":
                    raise
                shim = await Shim.connect(self.folder)  # one that a daemon before us had just started
        self.remember(launch=0, recorded=shim.state.starts)
        self._take(shim)
        return shim

    def specify(self) -> Spec:
        """What the shim needs for the present step; the cgroup is made, and limits are put in force.

        Raises CgroupError and what `prepare.specification` raises.
        """
        group, shims, self.unenforced = self.house.confine(self)
        house = self.house
        return prepare.specification(
            self.name, self.unit, house.context, house.places, step=self.memory.step, group=group, shims=shims
        )

    async def release(self) -> None:
        """Nothing runs any more: end the shim, remove the cgroup."""
        await self.chore(self._release())

    async def _release(self) -> None:
        shim = self.shim
        if shim is not None and not self.gone:
            self.last = shim.state
            try:
                await shim.quit()
            except ShimError as error:
                if error.reason != "shim-gone":
                    log("warning", f"unit {self.name}: its shim stays: {error.message}")
                    return
        self._forget()
        sockets.remove_files(self.unit.socket)
        self.house.clear(self.name, remove=True)

    async def chore(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something to the shim that must not be left half done, even if who asked for it is cancelled."""

        async def alone() -> Result:
            async with self.chores:
                return await work

        task = asyncio.create_task(alone())
        task.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # somebody may not be there to hear it
        return await asyncio.shield(task)

    def _take(self, shim: Shim) -> None:
        self.shim, self.gone = shim, False
        self._pump = asyncio.create_task(self._listen(shim))

    async def _listen(self, shim: Shim) -> None:
        """Hear what the shim says. Its state says most; what else there is, is kept here."""
        async for event in shim.events():
            match event:
                case Watchdog(trigger=trigger):
                    self.pinged = time.monotonic()
                    if trigger:
                        self.sentence = ("service-watchdog", "said itself that it does not work (WATCHDOG=trigger)")
                case Extend(seconds=seconds) if self.limit is not None:
                    self.limit.reschedule(asyncio.get_running_loop().time() + seconds)
                case Gone():
                    await self.regain(shim)
            self._wake.set()

    async def regain(self, lost: Shim | None = None) -> bool:
        """The connection to the shim (`lost`, or the present one) has gone: connect again. False: the shim has gone."""
        return await self.chore(self._regain(lost or self.shim))

    async def _regain(self, lost: Shim | None) -> bool:
        if lost is None or lost is not self.shim:
            return self.shim is not None and not self.gone  # somebody was quicker
        try:
            shim = await Shim.connect(self.folder)
        except ShimError:
            self.gone, self.last = True, lost.state
        else:
            self._take(shim)
        self._wake.set()
        return not self.gone

    def _forget(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
        if self.shim is not None:
            self.shim.close()
        self.shim = self._pump = None
        self.gone = False

    async def refresh(self) -> None:
        """Let the shim tell what it only counts, if there is one."""
        with contextlib.suppress(ShimError):
            if self.shim is not None and not self.gone:
                await self.chore(self.shim.refresh())

    # -- adoption and bookkeeping ------------------------------------------------------------------------------------

    async def adopt(self) -> bool:
        """Take over what an earlier daemon of this boot left; False: it never had to do with this unit."""
        memory = Memory.read(self.folder, self.house.boot)
        state = load_state(self.folder)
        self.last = state if state is not None and state.boot == self.house.boot else None
        with contextlib.suppress(ShimError):
            self._take(await Shim.connect(self.folder))
        if memory is None and self.shim is None and self.last is None:
            return False
        steps = len(self.unit.service.pre_start) if self.unit.service else 0
        self.memory = memory or guess(self.known, steps, self.house.boot)
        if self.active and self.unit.service is not None:
            with contextlib.suppress(MixosError):
                self.unenforced = self.house.confine(self)[2]
        self.live()
        return True

    def live(self) -> None:
        """Let the handler of the present state run, instead of the one that is running now."""
        from daemon.parts.service.life import live

        previous = self._task
        if previous is not None:
            previous.cancel()
        self._task = asyncio.create_task(live(self, previous))

    async def leave(self) -> None:
        """The daemon ends: let go of everything, touch nothing."""
        tasks = [task for task in (self._task, self._pump) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.shim is not None:
            self.shim.close()

    def remember(self, **changes: Any) -> None:
        """Change the note of this unit, on disk first."""
        memory = self.memory.model_copy(update=changes)
        memory.write(self.folder)
        self.memory = memory

    def to(self, state: State, slug: str = "", reason: str = "", **changes: Any) -> None:
        """Enter a state that may follow the present one, and tell everybody."""
        old = self.state
        assert state in TRANSITIONS[old], f"{self.name}: {old} → {state}"
        self.remember(state=state, since=time.monotonic(), slug=slug, reason=reason, **changes)
        self._wake.set()
        self.house.context.events.publish("service.state", self.name, state=state, old=old, slug=slug, reason=reason)
        self.house.changed(self, old)

    def attempt(self, **changes: Any) -> None:
        """Enter `starting` with a fresh attempt."""
        now = time.monotonic()
        attempts = self.memory.attempts.started(now, self.policy)
        self.to(
            State.STARTING,
            step=0,
            launch=0,
            began=now,
            attempts=attempts,
            digest=self.digest,
            then=Then.JUDGE,
            **changes,
        )

    def wake(self) -> None:
        """Let those who wait in `until` look again."""
        self._wake.set()

    def because(self, reason: str) -> None:
        """Say what it is waiting for."""
        if reason != self.memory.reason:
            self.remember(reason=reason)
