"""What the end of a service means, and what comes next. Pure.

Restart policy, in the order in which it decides: a unit that cannot work (no program, a permanent exit code, a program
that went into the background) has failed; one whose start limit is used up too; for all others `restart` says. What has
failed is not tried again; a timer starts it all the same when its time comes.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from common.values import signal_name
from daemon.parts.service.backoff import Attempts
from daemon.parts.service.states import State
from daemon.parts.service.unit import Service, Unit

_HOPELESS = {errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EPERM}


@dataclass(frozen=True)
class Outcome:
    """How a process ended. code, signal, oom, failure, error: as in shim.State; ran: seconds since it was begun; ready:
    whether it got ready before; step: None for the service itself, else the number of its pre-start command; leftover:
    whether it left processes behind; cause: (slug, reason) when we ended it for that."""

    code: int
    signal: int
    oom: bool = False
    failure: str = ""
    error: int = 0
    ran: float = 0.0
    ready: bool = True
    step: int | None = None
    leftover: bool = False
    cause: tuple[str, str] | None = None


@dataclass(frozen=True)
class Verdict:
    """good: nothing went wrong; final: another try would end the same way; slug, reason: why (empty when good)."""

    good: bool
    final: bool = False
    slug: str = ""
    reason: str = ""


def verdict(unit: Unit, outcome: Outcome) -> Verdict:
    """What an end means."""
    service = unit.service
    assert service is not None
    where = "" if outcome.step is None else f"pre-start command {outcome.step + 1}: "
    if outcome.oom:
        limit = f", its limit is {unit.limits.memory >> 10} KiB" if unit.limits.memory else ""
        return Verdict(False, False, "service-oom", f"{where}out of memory{limit}")
    if outcome.cause is not None:
        return Verdict(False, False, *outcome.cause)
    if outcome.failure:
        problem = f"{where}cannot be started ({outcome.failure}: {os.strerror(outcome.error)})"
        return Verdict(False, outcome.error in _HOPELESS, "service-exec", problem)
    if outcome.signal:
        return Verdict(False, False, "service-signal", f"{where}ended by {signal_name(outcome.signal)}")
    if outcome.code < 0:
        return Verdict(False, False, "service-lost", "its shim was killed: how it ended is unknown")
    if outcome.code > 0:
        final = outcome.code in service.permanent_failure
        return Verdict(False, final, "service-exit", f"{where}exit code {outcome.code}" + (", permanent" * final))
    if outcome.leftover and service.type in ("simple", "notify") and outcome.ran < service.stable_time:
        reason = "went into the background: let it run in the foreground (an option of most programs)"
        return Verdict(False, True, "service-daemonised", f'{reason}, or say type = "forking"')
    if service.type == "notify" and not outcome.ready and outcome.step is None:
        return Verdict(False, False, "service-not-ready", "ended before it was ready")
    if service.type == "forking" and not outcome.ready and outcome.step is None:
        return Verdict(
            False, False, "service-not-ready", 'left no process in the background, as type = "forking" should'
        )
    return Verdict(True)


def following(unit: Unit, result: Verdict, attempts: Attempts, now: float) -> State:
    """The state after an end. `attempts` includes this one; now: monotonic seconds."""
    service = unit.service
    assert service is not None
    again = service.restarts == "always" or (service.restarts == "on-failure" and not result.good)
    if again and not result.final and not (result.good and (unit.timer or unit.socket)):
        if not attempts.exhausted(now, service):
            return State.BACKOFF
        if not unit.timer:
            return State.FAILED
    if unit.timer:
        return State.SCHEDULED
    if unit.socket and result.good:
        return State.LISTENING
    return State.DONE if result.good else State.FAILED


MILESTONE = Service(command=("/milestone",))  # the policy of units without [service]: only its delays count
