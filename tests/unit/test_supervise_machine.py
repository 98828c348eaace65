"""The machine of a unit against a model of the world: whatever happens, in whatever order.

The model has the shim, its processes and the runner: it carries out an operation when a rule says so, rejects it, loses
the shim in the middle of it, or is killed and begins anew with what was on disk.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.parts.service import events, machine
from daemon.parts.service.events import Operation, Seen, Watch
from daemon.parts.service.life import Life, due, watches
from daemon.parts.service.load import parse_unit
from daemon.parts.service.machine import step
from daemon.parts.service.memory import Memory
from daemon.parts.service.order import Obstacle
from daemon.parts.service.shimstate import Extend, Phase, ProcessId, Watchdog
from daemon.parts.service.shimstate import State as ShimState
from daemon.parts.service.shimstate import Status as Said
from daemon.parts.service.states import RESTING, State, Then
from daemon.parts.service.timer import Clock
from daemon.parts.service.unit import Unit

S = State
LIMIT = "start-limit = { burst = 3, interval = '10m' }\n"
UNITS = {
    name: parse_unit(text, Path("x.toml"))
    for name, text in {
        "simple": f"[service]\ncommand = ['/bin/x']\n{LIMIT}",
        "always": f"[service]\ncommand = ['/bin/x']\nrestart = 'always'\nrestart-delay = 0\n{LIMIT}",
        "steps": f"[service]\ncommand = ['/bin/x']\npre-start = [['/bin/a'], ['/bin/b']]\n{LIMIT}",
        "oneshot": f"[service]\ncommand = ['/bin/x']\ntype = 'oneshot'\n{LIMIT}",
        "notify": f"[service]\ncommand = ['/bin/x']\ntype = 'notify'\nwatchdog = '5s'\n{LIMIT}",
        "forking": f"[service]\ncommand = ['/bin/x']\ntype = 'forking'\npid-file = '/run/x.pid'\n{LIMIT}",
        "asked": f"[service]\ncommand = ['/bin/x']\nstart-timeout = 0\n{LIMIT}[ready]\nhow = 'tcp:80'",
        "health": f"[service]\ncommand = ['/bin/x']\n{LIMIT}[health]\ntcp = 80\n",
        "report": f"[service]\ncommand = ['/bin/x']\n{LIMIT}[health]\ntcp = 80\naction = 'report'\n",
        "socket": f"[service]\ncommand = ['/bin/x']\n{LIMIT}[[socket]]\ntcp = 80\n",
        "timer": f"[service]\ncommand = ['/bin/x']\ntype = 'oneshot'\n{LIMIT}[timer]\nevery = '1m'\n",
        "milestone": "[ready]\nhow = 'tcp:80'\ntimeout = '10s'\n",
        "plain milestone": "[unit]\ndescription = 'x'\n",
    }.items()
}
IDLE = ShimState(
    unit="x", boot="b", shim=ProcessId(7, 7), phase=Phase.IDLE, main=ProcessId(0, 0), ready=False, stopped=False,
    populated=False, since=0.0, until=0.0, starts=0, code=-1, signal=0, oom=False, failure="", error=0, cgroup="",
    status="", dropped=0, lost=0,
)  # fmt: skip


class World:
    """What the machine is let loose on. orphans: processes of a shim that has gone are left; main: one of it runs."""

    def __init__(self, unit: Unit) -> None:
        self.now = 1000.0
        self.up = False
        self.shim: ShimState | None = None
        self.orphans = False
        self.shims = 0
        self.operation: Operation | None = None
        self.obstacle: Obstacle | None = None
        self.ends: list[str] = []
        self.life = Life("x", unit, "d", Memory(boot="b"), released=True)

    @property
    def state(self) -> State:
        return self.life.state

    def seen(self) -> Seen:
        return Seen(self.now, Clock(self.now, 1e9 + self.now), self.up, self.shim, self.obstacle)

    def send(self, event: events.Event) -> None:
        """One step, and what must hold of every step."""
        before = self.life
        self.life, actions = step(before, event, self.seen())
        for number, action in enumerate(actions):
            match action:
                case events.Cancel():
                    assert self.operation in (Operation.PASS, Operation.PREPARE)
                    self.operation = None
                case events.KeepEnd(end=end):
                    assert end.id not in self.ends
                    self.ends.append(end.id)
                case Operation():
                    assert self.operation is None
                    assert number == len(actions) - 1
                    self.operation = action
                    self.begins(action)
                    if action is Operation.LAUNCH and self.shim is not None and self.shim.populated:
                        what, until = before.progress.patience or ("", 0.0)  # what cannot be killed: the shim refuses
                        assert what == "left"
                        assert until <= self.now
        assert self.life.busy is self.operation
        again, more = step(self.life, events.Tick(), self.seen())
        assert self.state is S.BACKOFF or (again, more) == (self.life, [])  # it has settled
        at = due(self.life, self.seen())
        assert at is None or at > self.now or self.state is S.BACKOFF  # else the runner would turn without end
        for watch in watches(self.life, self.seen()):
            wanted = {Watch.SOCKETS: {S.LISTENING}, Watch.READY: {S.STARTING}, Watch.HEALTH: {S.RUNNING, S.UNHEALTHY}}
            assert self.state in wanted[watch]

    def begins(self, operation: Operation) -> None:
        """What must hold when an operation begins."""
        if operation is Operation.SPAWN:
            assert not self.up
            assert not self.orphans, "a shim is started while processes of the last one run"
        if operation is Operation.LAUNCH:
            assert self.up
            assert self.shim is not None
            assert self.state is S.STARTING
            assert self.life.memory.launch == self.shim.starts + 1  # it is written down before
        if operation is Operation.RELEASE:
            assert self.state in (*RESTING, S.STOPPING, S.SCHEDULED)

    def word(self, **changes: Any) -> None:
        """The shim's state is another one from now on."""
        assert self.shim is not None
        if changes.get("phase", self.shim.phase) is not self.shim.phase:
            changes["since"] = self.now
        self.shim = replace(self.shim, **changes)

    # -- the runner's operations ------------------------------------------------------------------------------------

    def carry_out(self) -> events.Event:
        """The pending operation as the runner does it; its outcome."""
        operation, self.operation = self.operation, None
        assert operation is not None
        if operation is Operation.SPAWN:
            self.shims += 1
            self.up, self.shim = True, replace(IDLE, shim=ProcessId(100 + self.shims, self.shims))
            return events.Done(fresh=True)
        if operation is Operation.KILL_LEFTOVERS:
            self.orphans = False
            if self.shim is not None and not self.up:
                code = self.shim.code if self.shim.phase is Phase.EXITED else -1
                self.word(phase=Phase.EXITED, populated=False, code=code)
            return events.Done()
        if operation is Operation.RELEASE:
            if self.up and self.shim is not None and not self.shim.populated:
                self.up = False
            return events.Done()
        if operation in (Operation.PASS, Operation.PREPARE):
            return events.Done()
        if not self.up or self.shim is None:
            return events.Rejected("shim-gone", "gone", hopeless=False)
        if operation is Operation.LAUNCH:
            if self.shim.populated:
                return events.Rejected("shim-busy", "busy", hopeless=False)
            starts = self.shim.starts + 1
            fresh: dict[str, Any] = {"code": -1, "signal": 0, "ready": False, "stopped": False, "until": 0.0}
            self.word(phase=Phase.STARTING, populated=True, starts=starts, **fresh)
        if operation is Operation.MARK_READY and self.shim.phase is Phase.STARTING:
            self.word(phase=Phase.RUNNING, ready=True)
        if operation is Operation.HALT and self.shim.phase in (Phase.STARTING, Phase.RUNNING):
            self.word(phase=Phase.STOPPING, stopped=True, until=self.life.stop_by(self.shim))
        return events.Done()

    # -- what processes and shims do ---------------------------------------------------------------------------------

    def exits(self, code: int, *, left: bool) -> None:
        """The main process ends."""
        assert self.shim is not None
        self.word(phase=Phase.EXITED, code=code, populated=left)
        self.send(events.ShimSaid(Said("")))

    def asks_for_time(self, seconds: float) -> None:
        """EXTEND_TIMEOUT_USEC=."""
        assert self.shim is not None
        self.word(until=max(self.shim.until, self.now + seconds))
        self.send(events.ShimSaid(Extend()))

    def die(self) -> None:
        """kill -9 of the shim; what it has started lives."""
        assert self.shim is not None
        self.orphans = self.shim.populated
        self.up = False
        self.send(events.Tick())

    def fair(self, *, ready: bool = True, rounds: int = 400) -> None:
        """Let everything that is asked for happen, for as long as anything does; processes obey and do not end."""
        for _ in range(rounds):
            if not self.goes_on(ready=ready):
                return
        raise AssertionError(f"no rest: {self.state} {self.operation} {self.shim}")

    def goes_on(self, *, ready: bool) -> bool:
        """The next thing that is to be expected happens; False: nothing."""
        shim = self.shim if self.up else None
        if self.operation is not None:
            self.send(self.carry_out())
        elif shim is not None and shim.phase is Phase.STOPPING:
            self.exits(0, left=False)
        elif shim is not None and shim.populated and shim.phase is Phase.EXITED:
            self.word(populated=False)
            self.send(events.Tick())
        elif ready and shim is not None and shim.phase is Phase.STARTING:
            self.word(phase=Phase.RUNNING, ready=True)
            self.send(events.Tick())
        elif ready and Watch.READY in watches(self.life, self.seen()):
            self.send(events.CheckPassed())
        elif self.state is S.STARTING and self.runs_to_its_end():
            self.exits(0, left=False)
        elif self.state in (S.STARTING, S.STOPPING, S.BACKOFF) and (at := due(self.life, self.seen())) is not None:
            self.now = max(self.now, at)
            self.send(events.Tick())
        else:
            return False
        return True

    def runs_to_its_end(self) -> bool:
        """Whether what runs is a pre-start command or a oneshot, which end by themselves."""
        service = self.life.unit.service
        if service is None or not self.life.runs(self.seen()):
            return False
        return service.type == "oneshot" or self.life.memory.step < len(service.pre_start)


class Machine(RuleBasedStateMachine):
    """All that can happen, in any order."""

    @initialize(name=st.sampled_from(sorted(UNITS)))
    def begin(self, name: str) -> None:
        self.world = World(UNITS[name])
        self.world.send(events.Begin())

    @rule(now=st.booleans())
    def start(self, now: bool) -> None:
        self.world.send(events.Begin(now))

    @rule(then=st.sampled_from(Then))
    def stop(self, then: Then) -> None:
        self.world.send(events.Stop(then, "s", "r"))

    @rule(event=st.sampled_from([
        events.Tick(), events.KillNow(), events.CheckPassed(), events.Connected(), events.HealthChanged("ill"),
        events.HealthChanged(None), events.ShimSaid(Watchdog(False)), events.ShimSaid(Watchdog(True)),
        events.Rejected("s", "r", hopeless=True, watch=True), events.Rejected("s", "r", hopeless=False, watch=True),
    ]))  # fmt: skip
    def happens(self, event: events.Event) -> None:
        self.world.send(event)

    @precondition(lambda self: self.world.up and self.world.shim.phase in (Phase.STARTING, Phase.STOPPING))
    @rule(seconds=st.sampled_from([0.5, 100.0]))
    def asks_for_time(self, seconds: float) -> None:
        self.world.asks_for_time(seconds)

    @rule(name=st.sampled_from(sorted(UNITS)))
    def redefine(self, name: str) -> None:
        self.world.send(events.Redefined(UNITS[name], name))

    @rule(seconds=st.sampled_from([0.01, 0.5, 6.0, 70.0, 4000.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.send(events.Tick())

    @rule(found=st.sampled_from([None, Obstacle("for a"), Obstacle("requires a", fatal=True)]))
    def neighbours(self, found: Obstacle | None) -> None:
        self.world.obstacle = found
        self.world.send(events.Tick())

    @precondition(lambda self: self.world.operation is not None)
    @rule(how=st.sampled_from(["done", "done", "done", "refused", "hopeless", "again"]))
    def outcome(self, how: str) -> None:
        world = self.world
        operation = world.operation
        if how == "done" or operation is Operation.KILL_LEFTOVERS:
            world.send(world.carry_out())
        elif how == "again" and world.up:
            world.operation = None
            world.send(events.Reconnected())
        else:
            world.operation = None
            world.send(events.Rejected("s", "r", hopeless=how == "hopeless"))

    @rule(times=st.integers(1, 6), ready=st.booleans())
    def goes_on(self, times: int, ready: bool) -> None:
        for _ in range(times):
            self.world.goes_on(ready=ready)

    @precondition(
        lambda self: self.world.up and self.world.shim.phase in (Phase.STARTING, Phase.RUNNING, Phase.STOPPING)
    )
    @rule(code=st.sampled_from([0, 1]), left=st.booleans())
    def ends(self, code: int, left: bool) -> None:
        self.world.exits(code, left=left)

    @precondition(lambda self: self.world.up and self.world.shim.phase is Phase.EXITED and self.world.shim.populated)
    @rule()
    def others_end(self) -> None:
        self.world.word(populated=False)
        self.world.send(events.Tick())

    @precondition(lambda self: self.world.up)
    @rule()
    def shim_dies(self) -> None:
        self.world.die()

    @rule(done=st.booleans())
    def daemon_dies(self, done: bool) -> None:
        """Another one goes on with what is on disk; the operation was done, or not."""
        world = self.world
        if world.operation is not None and done:
            world.carry_out()
        world.operation = None
        world.life = Life("x", world.life.unit, world.life.digest, world.life.memory, world.life.last_run)
        world.send(events.Tick())

    @invariant()
    def a_dead_shim_is_noticed(self) -> None:
        if hasattr(self, "world") and not self.world.up and self.world.operation is None:
            service = self.world.life.unit.service
            assert service is None or self.world.state not in (S.RUNNING, S.UNHEALTHY, S.LISTENING)

    def teardown(self) -> None:
        """Whatever has happened: a stop wins, and then a start ends."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.obstacle = None
        world.send(events.Stop())
        world.fair()
        assert world.state is S.INACTIVE
        assert world.life.released
        assert not world.orphans
        world.send(events.Begin())
        world.fair()
        assert world.state in (S.RUNNING, S.LISTENING, S.SCHEDULED, S.DONE, S.FAILED)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("name", sorted(UNITS.keys() - {"milestone"}))  # which is asked for ever
def test_a_start_that_never_gets_ready_ends(name: str):
    world = World(UNITS[name])
    world.send(events.Begin())
    world.fair(ready=False)
    waits = {"socket": S.LISTENING, "timer": S.SCHEDULED, "oneshot": S.DONE, "plain milestone": S.RUNNING}
    assert world.state is waits.get(name, S.FAILED)


def running(name: str) -> World:
    world = World(UNITS[name])
    world.send(events.Begin())
    world.fair()
    return world


def until_launched(world: World, starts: int) -> None:
    while world.shim is None or world.shim.starts < starts or world.operation is not None:
        assert world.goes_on(ready=False)


def test_what_a_pre_start_command_left_is_killed_before_the_next_step_also_when_the_shim_dies():
    world = World(UNITS["steps"])
    world.send(events.Begin())
    until_launched(world, 1)
    world.exits(0, left=True)
    world.now += machine.LINGER
    world.send(events.Tick())
    assert world.operation is Operation.HALT
    world.die()
    world.fair()
    assert world.state is S.RUNNING
    assert world.shims == 2


def test_an_end_is_kept_with_every_shim():
    world = running("always")
    for number in range(1, 3):
        world.exits(1, left=False)
        world.die()  # in backoff
        world.fair()
        assert len(world.ends) == number
    assert world.state is S.RUNNING


def test_tries_without_a_pause_are_steps_of_their_own():
    keys = "start-timeout = 0\nrestart-delay = 0\nstart-limit = { burst = 0 }"
    world = World(parse_unit(f"[service]\ncommand = ['/bin/x']\n{keys}", Path("x.toml")))
    world.send(events.Begin())
    for _ in range(10):
        assert world.state is S.BACKOFF
        world.send(events.Tick())
    world.send(events.Stop())
    assert world.state is S.INACTIVE


def test_a_stop_kills_what_a_dead_shim_has_left():
    world = running("simple")
    world.send(events.Stop())
    assert world.operation is Operation.HALT
    world.die()
    world.operation = None
    world.send(events.Rejected("shim-gone", "gone", hopeless=False))
    assert world.operation is Operation.KILL_LEFTOVERS
    world.fair()
    assert world.state is S.INACTIVE
    assert len(world.ends) == 1


def test_a_stop_does_not_wait_for_a_gate():
    world = World(UNITS["simple"])
    world.send(events.Begin())
    while world.operation is not Operation.PASS:
        world.goes_on(ready=True)
    world.send(events.Stop())
    assert world.operation is Operation.HALT
    world.fair()
    assert (world.state, world.ends) == (S.INACTIVE, [])


def test_a_start_gets_the_time_that_it_asks_for_and_never_less():
    world = World(UNITS["notify"])
    world.send(events.Begin())
    until_launched(world, 1)
    world.asks_for_time(1)
    assert due(world.life, world.seen()) == world.life.memory.began + 60
    world.asks_for_time(100)
    began, world.now = world.now, world.now + 99
    world.life = Life("x", world.life.unit, world.life.digest, world.life.memory)  # another daemon
    world.send(events.Tick())
    assert world.state is S.STARTING
    world.now = began + 100
    world.send(events.Tick())
    assert world.state is S.STOPPING


def test_a_stop_gets_the_time_that_it_asks_for_also_from_another_daemon():
    world = running("simple")
    world.send(events.Stop())
    world.send(world.carry_out())
    assert world.shim.until == world.now + 10
    world.asks_for_time(100)
    assert due(world.life, world.seen()) == world.shim.until + machine.KILL_PATIENCE
    world.now += 50
    world.life = Life("x", world.life.unit, world.life.digest, world.life.memory)
    world.send(events.Tick())
    assert world.operation is Operation.HALT
    assert world.life.stop_by(world.shim) == world.shim.until
    world.send(events.KillNow())
    assert world.life.stop_by(world.shim) == 0
