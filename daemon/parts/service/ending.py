"""How a unit's run ends: by itself, because it was stopped, because its shim was killed; and what is made of that."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

from daemon.linux.log import log
from daemon.parts.service import judge, leftovers
from daemon.parts.service.backoff import Attempts
from daemon.parts.service.memory import End
from daemon.parts.service.service import Service
from daemon.parts.service.shim import Phase, ShimError
from daemon.parts.service.states import State, Then

KILL_PATIENCE = 5.0  # seconds for a SIGKILL to be obeyed
LINGER = 0.3  # seconds that its other processes may outlive the main one before they are ended


async def conclude(service: Service) -> None:
    """It has ended by itself: see that nothing is left of it, then judge."""
    if service.shim is None or service.gone:
        await _lost(service)
    elif not await service.until(lambda: service.gone or not service.populated, LINGER):
        reason = "its main process has ended, others are left and are ended now"
        service.to(State.STOPPING, "service-leftover", reason, then=Then.JUDGE)
        return
    _judge(service)


async def stopping(service: Service) -> None:
    """Stop signal, patience, SIGKILL; then what was decided to come after it."""
    memory, patience = service.memory, service.policy.stop_timeout
    async with service.chores:
        pass  # a shim that is just being started: it must be known before it can be stopped
    if service.shim is not None and not service.gone:
        with contextlib.suppress(ShimError):
            await service.chore(service.shim.stop(max(0.0, memory.since + patience - time.monotonic())))
        if not await service.until(lambda: service.gone or not service.populated, patience + KILL_PATIENCE):
            log("err", f"unit {service.name}: processes are left that cannot be killed")
            service.house.clear(service.name, remove=False)
    if service.shim is None or service.gone:
        await _lost(service)
    then = service.memory.then  # it may have been decided anew
    if then in (Then.JUDGE, Then.RETRY):
        leftover = memory.slug == "service-leftover"
        cause = (memory.slug, memory.reason) if then is Then.RETRY else None
        _judge(service, leftover=leftover, cause=cause)
        return
    _record(service, judge.Verdict(True, slug="service-stopped", reason="stopped"))
    if then is not Then.RESTART or service.stale:
        await service.release()  # whoever hears that it has stopped may want its port; or it has other sockets now
        then = service.memory.then
    if then is Then.RESTART:
        service.to(State.WAITING, attempts=Attempts(), launch=0, recorded=0)
    elif then is Then.FAIL:
        service.to(State.FAILED, memory.slug, memory.reason)
    else:
        service.to(State.INACTIVE, memory.slug, memory.reason)


async def _lost(service: Service) -> None:
    """There is no shim. What its state file says is all there is to know; what is left of the service is killed."""
    known = service.last
    if known is None or not service.memory.launch:
        return
    if known.phase is not Phase.EXITED or known.populated:
        log("err", f"unit {service.name}: its shim was killed")
        deadline = time.monotonic() + KILL_PATIENCE
        while not service.house.clear(service.name, remove=False) or leftovers.kill(known.main):
            if time.monotonic() > deadline:
                log("err", f"unit {service.name}: processes are left that cannot be killed")
                break
            await asyncio.sleep(0.05)
    code = known.code if known.phase is Phase.EXITED else -1
    service.last = replace(known, phase=Phase.EXITED, populated=False, code=code)


def _judge(service: Service, *, leftover: bool = False, cause: tuple[str, str] | None = None) -> None:
    """Decide what comes after this end."""
    memory, known, unit = service.memory, service.known, service.unit
    if unit.service is None:
        service.to(State.FAILED, "service-internal", "it is no service any more")
        return
    fresh = known is None or known.starts < memory.launch or not memory.launch  # it never came to a process
    outcome = judge.Outcome(
        code=-1 if known is None or fresh else known.code,
        signal=0 if known is None or fresh else known.signal,
        oom=known is not None and not fresh and known.oom,
        failure="" if known is None or fresh else known.failure,
        error=0 if known is None or fresh else known.error,
        ran=_ran(service),
        ready=known is not None and known.ready,
        step=memory.step if memory.step < len(unit.service.pre_start) else None,
        leftover=leftover,
        cause=cause,
    )
    result = judge.verdict(unit, outcome)
    _record(service, result)
    attempts = memory.attempts.ended(outcome.ran, unit.service) if not result.good else memory.attempts
    state = judge.following(unit, result, attempts, time.monotonic())
    slug, reason = result.slug, result.reason
    if state is State.FAILED and not result.final and unit.service.restarts != "no":
        slug, reason = "start-limit", f"started {unit.service.start_limit.burst} times; the last time: {reason}"
    service.to(state, slug, reason, attempts=attempts)


def _ran(service: Service) -> float:
    """Seconds from the begin of the attempt to its end."""
    known = service.known
    end = known.since if known is not None and known.phase is Phase.EXITED else time.monotonic()
    return max(0.0, end - service.memory.began)


def _record(service: Service, result: judge.Verdict) -> None:
    """Keep this end in the history, once, and tell it."""
    memory, known = service.memory, service.known
    if known is None or not memory.launch or memory.recorded >= memory.launch or known.starts < memory.launch:
        return
    end = End(
        id=f"{known.boot}:{known.shim.pid}.{known.shim.start_time}:{memory.launch}",
        at=time.time(),
        ran=round(_ran(service), 3),
        code=known.code,
        signal=known.signal,
        oom=known.oom,
        reason=result.reason,
        slug=result.slug,
    )
    service.history = service.history.ended(end)
    service.history.write(service.history_path)
    service.remember(recorded=memory.launch)
    events = service.house.context.events
    events.publish("service.exited", service.name, code=known.code, signal=known.signal, oom=known.oom)
    if known.oom:
        log("err", f"unit {service.name}: out of memory")
        events.publish("service.oom", service.name, limit=service.unit.limits.memory)
