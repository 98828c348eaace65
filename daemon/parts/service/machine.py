"""The life of a unit as a pure machine: what happens → the next state, and what is to be done.

    life, actions = step(life, event, seen)

Nothing here reads a clock or touches anything: each event comes with what is seen at that moment (the time, the newest
state of the shim, what the unit waits for). The runner (`service`) writes `life.memory` down before it carries out the
actions, one `Operation` at a time, and tells the outcome as the next event. `watches` and `due` say what the runner
must look out for meanwhile.

Each state looks how far things are and asks for the next operation that is missing. So a daemon that takes over from
one that was killed at any moment gives the machine the memory and the shim's state, and things go on where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from daemon.parts.service import judge
from daemon.parts.service.backoff import Attempts
from daemon.parts.service.events import (
    Action,
    Begin,
    Cancel,
    CheckPassed,
    Connected,
    Done,
    Event,
    Forget,
    HealthChanged,
    KeepEnd,
    KeepRun,
    KillGroup,
    KillNow,
    Log,
    Operation,
    Reconnected,
    Redefined,
    Rejected,
    Seen,
    ShimSaid,
    StateChanged,
    Stop,
)
from daemon.parts.service.life import Life, Progress, asks, retry_at, until_run
from daemon.parts.service.memory import End, Memory
from daemon.parts.service.shimstate import Phase, Watchdog
from daemon.parts.service.states import RESTING, TRANSITIONS, State, Then
from daemon.parts.service.unit import Service

KILL_PATIENCE = 5.0  # seconds for a SIGKILL to be obeyed
LINGER = 0.3  # seconds that its other processes may outlive the main one before they are ended


def step(life: Life, event: Event, seen: Seen) -> tuple[Life, list[Action]]:
    """One event. The actions are in the order in which they are carried out; an operation is the last one."""
    turn = _Turn(life, seen)
    turn.hear(event)
    turn.settle()
    return turn.life, turn.actions


class _Turn:
    """One step on its way. The handlers of states return the operation that is missing; None: wait, or look again when
    they have changed something."""

    def __init__(self, life: Life, seen: Seen) -> None:
        self.life = life
        self.seen = seen
        self.actions: list[Action] = []
        self._retried = self._waited = False

    # -- small steps -------------------------------------------------------------------------------------------------

    def remember(self, **changes: Any) -> None:
        """Change what is kept."""
        self.life = replace(self.life, memory=self.life.memory.model_copy(update=changes))

    def progress(self, **changes: Any) -> None:
        """Change how far the state is."""
        self.life = replace(self.life, progress=replace(self.life.progress, **changes))

    def say(self, level: str, text: str) -> None:
        """Tell the system log."""
        self.actions.append(Log(level, f"unit {self.life.name}: {text}"))

    def to(self, state: State, slug: str = "", reason: str = "", **changes: Any) -> None:
        """Enter a state that may follow the present one."""
        old = self.life.state
        assert state in TRANSITIONS[old], f"{self.life.name}: {old} → {state}"
        self.remember(state=state, since=self.seen.now, slug=slug, reason=reason, **changes)
        if {state, old} != {State.RUNNING, State.UNHEALTHY}:  # these two are one, but for what the check says
            self.life = replace(self.life, progress=Progress())
        if self.life.busy in (Operation.PASS, Operation.PREPARE):
            self.life = replace(self.life, busy=None)
            self.actions.append(Cancel())
        self._retried |= state is State.BACKOFF
        self.actions.append(StateChanged(state, old, slug, reason))

    def attempt(self, **changes: Any) -> None:
        """Enter `starting` with a fresh attempt."""
        life, now = self.life, self.seen.now
        changes |= {"step": 0, "launch": 0, "began": now, "digest": life.digest, "then": Then.JUDGE}
        self.to(State.STARTING, attempts=life.memory.attempts.started(now, life.policy), **changes)

    def expired(self, what: str, seconds: float) -> bool:
        """Whether this was waited for long enough; the waiting begins when it is asked first."""
        patience = self.life.progress.patience
        if patience is None or patience[0] != what:
            patience = (what, self.seen.now + seconds)
            self.progress(patience=patience)
        self._waited = True
        return self.seen.now >= patience[1]

    # -- events ------------------------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        """Take up what has happened."""
        match event:
            case Begin(now=now):
                self._begin(now)
            case Stop():
                self._stop(event)
            case Forget():
                self._forget()
            case KillNow() if self.life.state is State.STOPPING:
                self.progress(kill_now=True)
            case Redefined(unit=unit, digest=digest):
                self.life = replace(self.life, unit=unit, digest=digest)
                self.progress(open=False, prepared=False, passed=False)
            case ShimSaid(event=Watchdog(trigger=trigger)):
                cause = ("service-watchdog", "said itself that it does not work (WATCHDOG=trigger)")
                self.progress(pinged=self.seen.now, cause=cause if trigger else self.life.progress.cause)
            case CheckPassed():
                self.progress(found=True)
            case Connected():
                self.progress(connected=True)
            case HealthChanged(problem=problem):
                self._checked(problem)
            case Done() | Reconnected():
                self._outcome(event)
            case Rejected():
                self._refused(event)

    def _begin(self, now: bool) -> None:
        memory, clock = self.life.memory, self.seen.clock
        if memory.state in RESTING:  # all of before is forgotten
            fresh = Memory(boot=memory.boot, state=memory.state, armed_boot=clock.boot, armed_wall=clock.wall)
            self.life = replace(self.life, memory=fresh)
            self.to(State.WAITING)
        elif memory.state is State.STOPPING:
            self.remember(then=Then.RESTART)
        elif memory.state is State.BACKOFF:
            self.to(State.WAITING, attempts=Attempts())
        elif now and memory.state in (State.LISTENING, State.SCHEDULED):
            self.attempt()
        else:
            self._forget()

    def _forget(self) -> None:
        if self.life.state is State.FAILED:
            self.to(State.INACTIVE)
        elif self.life.failed:
            self.remember(slug="", reason="")

    def _stop(self, event: Stop) -> None:
        state = self.life.state
        if state in RESTING:
            if event.then is Then.INACTIVE and state is not State.INACTIVE:
                self.to(State.INACTIVE)
        elif state is State.STOPPING:
            self.remember(then=event.then)
        else:
            self.to(State.STOPPING, event.slug, event.reason, then=event.then)

    def _checked(self, problem: str | None) -> None:
        state, question = self.life.state, self.life.unit.health
        if question is None or state not in (State.RUNNING, State.UNHEALTHY):
            return  # it is being stopped since a moment ago
        if problem is not None and question.action == "restart":
            self.progress(cause=("service-unhealthy", problem))
        elif problem is not None and state is State.RUNNING:
            self.to(State.UNHEALTHY, "service-unhealthy", problem)
        elif problem is None and state is State.UNHEALTHY:
            self.to(State.RUNNING)

    def _outcome(self, event: Done | Reconnected) -> None:
        operation = self.life.busy
        self.life = replace(self.life, busy=None)
        if isinstance(event, Reconnected):
            self.progress(asked=0, marked=False)
            return
        match operation:
            case Operation.SPAWN:
                self.progress(open=False, prepared=event.fresh)
                self.remember(launch=0)
            case Operation.SOCKETS:
                self.progress(open=True)
            case Operation.PREPARE:
                self.progress(prepared=True, passed=True)
            case Operation.PASS:
                self.progress(passed=True)
            case Operation.KILL_LEFTOVERS:
                self.progress(leftovers_killed=True)
            case Operation.RELEASE:
                self.life = replace(self.life, released=True)

    def _refused(self, event: Rejected) -> None:
        """Something around it did not work. While it runs that is like a failure of its own, and tried again; if that
        would not help, or there is nothing to try again, it has failed."""
        operation, state = None if event.watch else self.life.busy, self.life.state
        if not event.watch:
            self.life = replace(self.life, busy=None)
        if operation is Operation.RELEASE:
            self.life = replace(self.life, released=True)  # what is left is in the log
        elif operation is Operation.KILL_LEFTOVERS:
            self.progress(leftovers_killed=True)
        elif state in RESTING or state is State.STOPPING:
            pass  # what was wanted before it was stopped
        elif event.hopeless or state not in (State.STARTING, State.RUNNING, State.UNHEALTHY):
            self.say("err", event.reason)
            if self.seen.shim is not None and self.seen.shim.populated:
                self.to(State.STOPPING, event.slug, event.reason, then=Then.FAIL)
            else:
                later = state is State.STARTING and self.life.unit.timer is not None
                self.to(State.SCHEDULED if later else State.FAILED, event.slug, event.reason)
        elif self.seen.up or operation is Operation.SPAWN:  # else its shim has gone, which is judged for itself
            self.say("warning", event.reason)
            self.to(State.STOPPING, event.slug, event.reason, then=Then.RETRY)

    # -- states ------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Go on until something must be done or waited for."""
        while True:
            before, self._waited = self.life, False
            self._late()
            if self.life.busy is not None:
                return
            operation = _HANDLERS[self.life.state](self)
            if self.life.progress.patience is not None and not self._waited:
                self.progress(patience=None)
            if operation is not None:
                released = operation is not Operation.SPAWN and self.life.released
                self.life = replace(self.life, busy=operation, released=released)
                self.actions.append(operation)
            elif self.life is before:
                return

    def _late(self) -> None:
        """A start has its time, whatever is being done."""
        life = self.life
        start_by = life.start_by(self.seen) if life.state is State.STARTING else None
        if start_by is None or self.seen.now < start_by:
            return
        service = life.unit.service
        if life.memory.launch and service is not None and life.ended(self.seen):
            return
        limit = round(start_by - life.memory.began, 1)
        reason = f"not {'done' if service and service.type == 'oneshot' else 'ready'} within {limit:g} s"
        if service is None:
            self.to(State.BACKOFF, "service-not-ready", reason, attempts=life.memory.attempts.ended(0.0, life.policy))
        else:
            self.to(State.STOPPING, "service-not-ready", reason, then=Then.RETRY)

    def resting(self) -> Operation | None:
        """Nothing goes on."""
        return None if self.life.released else Operation.RELEASE

    def waiting(self) -> Operation | None:
        """Until the units that come first are up, or have ended, or cannot come."""
        obstacle, unit = self.seen.obstacle, self.life.unit
        if obstacle is not None:
            if obstacle.fatal:
                self.to(State.FAILED, "service-dependency", obstacle.reason)
            elif obstacle.reason != self.life.memory.reason:
                self.remember(reason=obstacle.reason)
        elif unit.timer is not None:
            self.to(State.SCHEDULED)
        elif unit.socket:
            if operation := self._sockets():  # before others believe that it listens
                return operation
            self.to(State.LISTENING)
            self.progress(open=True)
        else:
            self.attempt()
        return None

    def _sockets(self) -> Operation | None:
        """A shim that holds its sockets; nothing is left of what the last one had begun."""
        if not self.seen.up:
            shim = self.seen.shim
            begun = shim is not None and (shim.populated or shim.phase not in (Phase.IDLE, Phase.EXITED))
            return Operation.KILL_LEFTOVERS if begun and not self.life.progress.leftovers_killed else Operation.SPAWN
        return Operation.SOCKETS if self.life.unit.socket and not self.life.progress.open else None

    def scheduled(self) -> Operation | None:
        """Until the timer is due."""
        one = self.life.unit.timer
        if one is None:
            self.attempt()  # the new definition has none
        elif not self.life.released:
            return Operation.RELEASE
        elif until_run(self.life, one, self.seen) <= 0:
            clock = self.seen.clock
            self.life = replace(self.life, last_run=clock.wall)
            self.actions.append(KeepRun(clock.wall))
            self.attempt(run_boot=clock.boot)
        return None

    def listening(self) -> Operation | None:
        """Until somebody connects."""
        if operation := self._sockets():
            return operation
        if self.life.progress.connected:
            if self.life.memory.attempts.exhausted(self.seen.now, self.life.policy):
                self.to(State.FAILED, "start-limit", "started too often: does it take what comes in by its sockets?")
            else:
                self.attempt()
        return None

    def backoff(self) -> Operation | None:
        """Until it is time for the next try; at the earliest in the next step, so that none is without end."""
        if not self._retried and self.seen.now >= retry_at(self.life):
            self.attempt(restarts=self.life.memory.restarts + 1)
        return None

    def starting(self) -> Operation | None:
        """Pre-start commands one after the other, then the service itself, until it is ready."""
        life, seen, service = self.life, self.seen, self.life.unit.service
        if service is None:
            if life.progress.found or not asks(life.unit):
                self.to(State.RUNNING)
            return None
        if life.memory.launch and life.ended(seen):
            return self._step_ended(service)
        if not life.runs(seen):
            return self._launch()
        if service.type == "oneshot" or life.memory.step < len(service.pre_start):
            return None
        if seen.shim is not None and seen.shim.phase is Phase.RUNNING:
            self.to(State.RUNNING)
        elif life.progress.found and not life.progress.marked:
            self.progress(marked=True)
            return Operation.MARK_READY
        return None

    def _launch(self) -> Operation | None:
        """Begin the present step: a shim, its sockets, nothing that an earlier step has left behind, the gates."""
        if operation := self._sockets():
            return operation
        shim = self.seen.shim
        assert shim is not None
        if shim.populated:
            if not self.life.progress.asked:
                self.progress(asked=2, kill_now=True)
                return Operation.HALT
            if not self.expired("left", KILL_PATIENCE):
                return None
        if not self.life.progress.passed:
            return Operation.PASS if self.life.progress.prepared else Operation.PREPARE
        self.progress(passed=False, prepared=False)
        self.remember(launch=shim.starts + 1, recorded=shim.starts)
        return Operation.LAUNCH

    def _step_ended(self, service: Service) -> Operation | None:
        """The next step, when a pre-start command has ended well."""
        memory, shim = self.life.memory, self.seen.shim
        if memory.step >= len(service.pre_start) or not self.seen.up or shim is None or shim.code != 0:
            return self._conclude()
        if shim.populated and not self.expired("linger", LINGER):
            return None
        self.remember(step=memory.step + 1, launch=0)
        self.progress(patience=None, asked=0, kill_now=False)
        return None

    def running(self) -> Operation | None:
        """Until it ends, or must be ended because its health or its watchdog says so."""
        life, now, patience = self.life, self.seen.now, self.life.policy.watchdog
        if life.unit.service is None:
            return None  # a milestone stays until it is stopped
        if life.ended(self.seen):
            return self._conclude()
        if life.progress.pinged is None:
            self.progress(pinged=now)
        elif life.progress.cause is not None:
            self.to(State.STOPPING, *life.progress.cause, then=Then.RETRY)
        elif patience is not None and now >= life.progress.pinged + patience:
            reason = f"gave no sign of life for {patience:g} s"
            self.to(State.STOPPING, "service-watchdog", reason, then=Then.RETRY)
        return None

    def stopping(self) -> Operation | None:
        """Stop signal, patience, SIGKILL; then what was decided to come after it."""
        life, memory, progress = self.life, self.life.memory, self.life.progress
        if self.seen.up and self.seen.shim is not None:
            wanted = 2 if progress.kill_now else 1
            if progress.asked < wanted:
                self.progress(asked=wanted)
                return Operation.HALT
            if self.seen.shim.populated and not progress.cleared:
                deadline = self.seen.shim.until  # a later one is another wait
                if not self.expired(f"stop {deadline}", max(0.0, deadline - self.seen.now) + KILL_PATIENCE):
                    return None
                self.say("err", "processes are left that cannot be killed")
                self.progress(cleared=True)
                self.actions.append(KillGroup())
        elif self._lost():
            return Operation.KILL_LEFTOVERS
        if memory.then in (Then.JUDGE, Then.RETRY):
            cause = (memory.slug, memory.reason) if memory.then is Then.RETRY else None
            self._judge(leftover=memory.slug == "service-leftover", cause=cause)
            return None
        self._record(judge.Verdict(True, slug="service-stopped", reason="stopped"))
        if (memory.then is not Then.RESTART or life.stale) and not life.released:
            return Operation.RELEASE  # whoever hears that it has stopped may want its port; or it has other sockets now
        if memory.then is Then.RESTART:
            self.to(State.WAITING, attempts=Attempts(), launch=0)
        else:
            self.to(State.FAILED if memory.then is Then.FAIL else State.INACTIVE, memory.slug, memory.reason)
        return None

    # -- how a run ends ----------------------------------------------------------------------------------------------

    def _conclude(self) -> Operation | None:
        """It has ended by itself: see that nothing is left of it, then judge."""
        shim = self.seen.shim
        if not self.seen.up:
            if self._lost():
                return Operation.KILL_LEFTOVERS
        elif shim is not None and shim.populated:
            if self.expired("linger", LINGER):
                reason = "its main process has ended, others are left and are ended now"
                self.to(State.STOPPING, "service-leftover", reason, then=Then.JUDGE)
            return None
        self._judge()
        return None

    def _lost(self) -> bool:
        """Whether the shim went away before it said that all had ended."""
        shim = self.seen.shim
        if shim is None or not self.life.memory.launch or self.life.progress.leftovers_killed:
            return False
        return shim.phase is not Phase.EXITED or shim.populated

    def _judge(self, *, leftover: bool = False, cause: tuple[str, str] | None = None) -> None:
        """Decide what comes after this end."""
        memory, shim, unit = self.life.memory, self.seen.shim, self.life.unit
        if unit.service is None:
            self.to(State.FAILED, "service-internal", "it is no service any more")
            return
        if not memory.launch or (shim is not None and shim.starts < memory.launch):
            shim = None  # it never came to a process
        outcome = judge.Outcome(
            code=-1 if shim is None else shim.code,
            signal=0 if shim is None else shim.signal,
            oom=shim is not None and shim.oom,
            failure="" if shim is None else shim.failure,
            error=0 if shim is None else shim.error,
            ran=self._ran(),
            ready=self.seen.shim is not None and self.seen.shim.ready,
            step=memory.step if memory.step < len(unit.service.pre_start) else None,
            leftover=leftover,
            cause=cause,
        )
        result = judge.verdict(unit, outcome)
        self._record(result)
        attempts = memory.attempts if result.good else memory.attempts.ended(outcome.ran, unit.service)
        state = judge.following(unit, result, attempts, self.seen.now)
        slug, reason = result.slug, result.reason
        failed = state is State.FAILED or (state is State.SCHEDULED and not result.good)
        if failed and not result.final and unit.service.restarts != "no":
            slug, reason = "start-limit", f"started {unit.service.start_limit.burst} times; the last time: {reason}"
        self.to(state, slug, reason, attempts=Attempts() if state is State.SCHEDULED else attempts)

    def _ran(self) -> float:
        """Seconds from the begin of the attempt to its end."""
        shim = self.seen.shim
        end = shim.since if shim is not None and shim.phase is Phase.EXITED else self.seen.now
        return max(0.0, end - self.life.memory.began)

    def _record(self, result: judge.Verdict) -> None:
        """Let this end be kept, once."""
        memory, shim = self.life.memory, self.seen.shim
        if shim is None or not memory.launch or memory.recorded >= memory.launch or shim.starts < memory.launch:
            return
        end = End(
            id=f"{shim.boot}:{shim.shim.pid}.{shim.shim.start_time}:{memory.launch}",
            at=self.seen.clock.wall,
            ran=round(self._ran(), 3),
            code=shim.code,
            signal=shim.signal,
            oom=shim.oom,
            reason=result.reason,
            slug=result.slug,
        )
        self.remember(recorded=memory.launch)
        self.actions.append(KeepEnd(end))


_HANDLERS: Mapping[State, Callable[[_Turn], Operation | None]] = {
    State.INACTIVE: _Turn.resting,
    State.WAITING: _Turn.waiting,
    State.LISTENING: _Turn.listening,
    State.SCHEDULED: _Turn.scheduled,
    State.STARTING: _Turn.starting,
    State.RUNNING: _Turn.running,
    State.UNHEALTHY: _Turn.running,
    State.STOPPING: _Turn.stopping,
    State.BACKOFF: _Turn.backoff,
    State.FAILED: _Turn.resting,
    State.DONE: _Turn.resting,
}
assert set(_HANDLERS) == set(State)
