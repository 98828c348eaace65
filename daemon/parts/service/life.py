"""The state of a unit's machine, and what follows from it for the runner: what to look out for, when to look again."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.parts.service import judge, timer
from daemon.parts.service.events import Operation, Seen, Watch
from daemon.parts.service.memory import Memory
from daemon.parts.service.shimstate import Phase
from daemon.parts.service.shimstate import State as ShimState
from daemon.parts.service.states import RESTING, State
from daemon.parts.service.unit import Service, Timer, Unit


@dataclass(frozen=True)
class Progress:
    """How far the present state is; begins anew with each state, and is not kept on disk.

    patience: (what is waited for, until when); pinged: when it last said that it lives; asked: 1: it was told to stop,
    2: to be killed at once; cause: (slug, reason) for which it is ended.
    """

    patience: tuple[str, float] | None = None
    pinged: float | None = None
    cause: tuple[str, str] | None = None
    prepared: bool = False  # the shim has what this step needs
    passed: bool = False  # the gates
    open: bool = False  # the shim holds its sockets
    connected: bool = False
    found: bool = False
    marked: bool = False  # the shim was told that it is ready
    asked: int = 0
    kill_now: bool = False
    cleared: bool = False
    leftovers_killed: bool = False


@dataclass(frozen=True)
class Life:
    """A unit. memory: what is kept on disk; last_run: see timer.Runs; busy: what is being done; released: nothing of it
    is left, neither shim nor cgroup."""

    name: str
    unit: Unit
    digest: str
    memory: Memory
    last_run: float | None = None
    progress: Progress = Progress()
    busy: Operation | None = None
    released: bool = False

    @property
    def state(self) -> State:
        """Where it is."""
        return self.memory.state

    @property
    def failed(self) -> bool:
        """Whether its last run ended badly and is not tried again; its timer may start another one."""
        return self.state is State.FAILED or (self.state is State.SCHEDULED and self.memory.slug != "")

    @property
    def policy(self) -> Service:
        """Its [service]; milestones have delays only."""
        return self.unit.service or judge.MILESTONE

    @property
    def stale(self) -> bool:
        """Whether its process runs with an older definition."""
        memory = self.memory
        return memory.launch > 0 and self.state not in RESTING and memory.digest not in ("", self.digest)

    def stop_by(self, shim: ShimState | None) -> float:
        """While it is stopping: when it is killed. A shim that stops it already knows what it has asked for."""
        told = shim.until if shim is not None and shim.stopped else 0.0
        return 0.0 if self.progress.kill_now else max(self.memory.since + self.policy.stop_timeout, told)

    def start_by(self, seen: Seen) -> float | None:
        """While it is starting: when it must be ready (a oneshot: done)."""
        limit = self.unit.service.ready_timeout if self.unit.service else self.unit.readiness.timeout
        asked = seen.shim.until if seen.shim is not None and self.runs(seen) else 0.0
        return None if limit is None else max(self.memory.began + limit, asked)

    def ended(self, seen: Seen) -> bool:
        """Whether the step that was begun has ended."""
        if not seen.up or seen.shim is None:
            return True
        return seen.shim.starts >= self.memory.launch and seen.shim.phase is Phase.EXITED

    def runs(self, seen: Seen) -> bool:
        """Whether the present step was begun and has not ended."""
        begun = self.memory.launch > 0 and seen.shim is not None and seen.shim.starts >= self.memory.launch
        return begun and not self.ended(seen)


def watches(life: Life, seen: Seen) -> frozenset[Watch]:
    """What to look out for now."""
    service, progress = life.unit.service, life.progress
    if life.state is State.LISTENING and seen.up and progress.open and not progress.connected:
        return frozenset({Watch.SOCKETS})
    if life.state is State.STARTING and not progress.found:
        main = service is None or (life.memory.step >= len(service.pre_start) and life.runs(seen))
        return frozenset({Watch.READY} if main and asks(life.unit) else ())
    if life.state in (State.RUNNING, State.UNHEALTHY) and service is not None and life.unit.health is not None:
        return frozenset({Watch.HEALTH})
    return frozenset()


def due(life: Life, seen: Seen) -> float | None:
    """When to look again, in CLOCK_MONOTONIC seconds; None: only when something happens."""
    if life.state is State.BACKOFF:
        return retry_at(life)
    found = [life.progress.patience[1]] if life.progress.patience else []
    match life.state:
        case State.STARTING if (start_by := life.start_by(seen)) is not None:
            found.append(start_by)
        case State.RUNNING | State.UNHEALTHY if life.policy.watchdog is not None and life.progress.pinged is not None:
            found.append(life.progress.pinged + life.policy.watchdog)
        case State.SCHEDULED if life.unit.timer is not None:
            found.append(seen.now + min(until_run(life, life.unit.timer, seen), timer.GLANCE))
    return min((at for at in found if at > seen.now), default=None)  # what was due before was seen to in this step


def asks(unit: Unit) -> bool:
    """Whether we must find out that it is ready, since nobody tells."""
    asked = unit.readiness.endpoint is not None or unit.readiness.command is not None
    return asked or (unit.service is not None and unit.service.pid_file is not None)


def retry_at(life: Life) -> float:
    """While it waits to be tried again: when that is."""
    return life.memory.since + life.memory.attempts.delay(life.policy)


def until_run(life: Life, one: Timer, seen: Seen) -> float:
    """Seconds until the timer is due."""
    memory = life.memory
    armed = timer.Clock(memory.armed_boot, memory.armed_wall)
    return timer.remaining(one, timer.Runs(armed, memory.run_boot, life.last_run), seen.clock)
