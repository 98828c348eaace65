"""The life of a unit: one handler per state, each ending by entering the next one.

A handler may be entered anew at any time: after a restart of the daemon, after a change of the definition. So it first
looks how far things are (`Memory.launch` against `State.starts` of the shim: was this step begun; the shim's phase: has
it ended) and does only what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import ConfigError, MixosError, NotFoundError, RefusedError
from daemon.linux.log import log
from daemon.parts.service import ending, health, prepare, ready, sockets, timer
from daemon.parts.service.service import Service
from daemon.parts.service.shim import Phase, Shim, ShimError
from daemon.parts.service.states import RESTING, State, Then

_PID_FILE = 0.1  # seconds between two looks at a PID file


async def live(service: Service, previous: asyncio.Task[None] | None) -> None:
    """Run handlers until the unit rests. previous: the task that did so until now; it is cancelled already."""
    if previous is not None:
        await asyncio.wait([previous])
    while (handler := _HANDLERS.get(service.state)) is not None:
        try:
            await handler(service)
        except (ConfigError, NotFoundError, RefusedError) as error:
            _give_up(service, error.reason, error.message)
        except MixosError as error:
            if error.reason == "shim-gone" and not service.gone and await service.regain():
                continue  # only the connection was lost
            _trouble(service, error.reason, error.message)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not leave a unit in no state
            log("err", f"unit {service.name}: {type(error).__name__}: {error}")
            _give_up(service, "service-internal", "internal error, see the log")
    await service.release()


def _give_up(service: Service, slug: str, reason: str) -> None:
    """It cannot go on, and trying again would not help."""
    log("err", f"unit {service.name}: {reason}")
    if service.state is State.STOPPING and not service.gone:
        service.gone = True  # nobody to talk to: what is left is killed, see _lost
    elif service.populated and service.state is not State.STOPPING:
        service.to(State.STOPPING, slug, reason, then=Then.FAIL)
    else:
        service.to(State.FAILED, slug, reason)


def _trouble(service: Service, slug: str, reason: str) -> None:
    """Something around it did not work (its shim, a socket): tried again while it runs, like a failure of its own."""
    if service.state not in (State.STARTING, State.RUNNING, State.UNHEALTHY):
        _give_up(service, slug, reason)
    elif not service.gone:  # else the handler, run once more, sees to that
        log("warning", f"unit {service.name}: {reason}")
        service.to(State.STOPPING, slug, reason, then=Then.RETRY)


def _ended(service: Service) -> bool:
    """Whether the step that was begun has ended."""
    known = service.known
    if service.shim is None or service.gone:
        return True
    return known is not None and known.starts >= service.memory.launch and known.phase is Phase.EXITED


# -- before it runs --------------------------------------------------------------------------------------------------


async def _waiting(service: Service) -> None:
    """Until the units that come first are up, or have ended, or cannot come."""
    house = service.house
    required = set(service.unit.unit.requires)
    for name in sorted(house.graph.ups.get(service.name, ())):
        other, must = house.services[name], name in required
        if not _settled(other, must):
            service.because(f"for {name}")
            await other.until(lambda other=other, must=must: _settled(other, must))  # type: ignore[misc]
        if name in required and not other.up:
            service.to(State.FAILED, "service-dependency", f"requires {name}, which is {other.state}")
            return
    for name in sorted(house.graph.ends.get(service.name, ())):
        other = house.services[name]
        if other.active:
            service.because(f"for the end of {name}")
            await other.until(lambda other=other: not other.active)  # type: ignore[misc]
    for name in sorted(house.graph.rivals.get(service.name, ())):
        other = house.services[name]
        if other.active:
            service.because(f"until {name} has stopped")
            await other.until(lambda other=other: not other.active)  # type: ignore[misc]
    if service.unit.timer is not None:
        service.to(State.SCHEDULED)
    elif service.unit.socket:
        sockets.close(await _sockets(service, await service.held()))  # before others believe that it listens
        service.to(State.LISTENING)
    else:
        service.attempt()


def _settled(other: Service, must: bool) -> bool:
    """Whether there is nothing more to wait for. One that only orders us keeps us waiting for its first try alone."""
    if other.name in other.house.pausing:
        return False
    return other.up or not other.active or (other.state is State.BACKOFF and not must)


async def _scheduled(service: Service) -> None:
    """Until the timer is due."""
    await service.release()
    while True:
        unit, memory, now = service.unit, service.memory, service.clock()
        if unit.timer is None:
            service.attempt()  # the new definition has none
            return
        armed = timer.Clock(memory.armed_boot, memory.armed_wall)
        runs = timer.Runs(armed, memory.run_boot, service.history.last_run)
        left = timer.remaining(unit.timer, runs, now)
        if left <= 0:
            service.history = service.history.ran(now.wall)
            service.history.write(service.history_path)
            service.attempt(run_boot=now.boot)
            return
        await asyncio.sleep(min(left, timer.GLANCE))


async def _listening(service: Service) -> None:
    """Until somebody connects."""
    shim = await service.held()
    descriptors = await _sockets(service, shim)
    try:
        knock = asyncio.ensure_future(sockets.connection(descriptors))
        try:
            await _first(service, knock, lambda: service.gone)
        finally:
            await _cancelled(knock)
    finally:
        sockets.close(descriptors)
    if service.gone:
        return  # the shim was killed, and its sockets with it: once more, with a new one
    if service.memory.attempts.exhausted(time.monotonic(), service.policy):
        service.to(State.FAILED, "start-limit", "started too often: does it accept its connections?")
        return
    service.attempt()


async def _sockets(service: Service, shim: Shim) -> list[int]:
    """Our copies of its sockets; those that the shim does not hold yet are opened and given to it."""
    held = await service.chore(shim.fds())
    names = [one.name for one in service.unit.socket]
    copies = [descriptor for name, descriptor in held if name in names]
    sockets.close([descriptor for name, descriptor in held if name not in names])
    try:
        for wanted in service.unit.socket:
            if wanted.name not in [name for name, _ in held]:
                channel = sockets.open_socket(wanted)
                copies.append(channel.detach())
                await service.chore(shim.store(wanted.name, copies[-1]))
    except BaseException:
        sockets.close(copies)
        raise
    return copies


async def _backoff(service: Service) -> None:
    """Until it is time for the next try."""
    delay = service.memory.attempts.delay(service.policy)
    await asyncio.sleep(max(0.0, service.memory.since + delay - time.monotonic()))
    service.attempt(restarts=service.memory.restarts + 1)


# -- while it runs ---------------------------------------------------------------------------------------------------


async def _starting(service: Service) -> None:
    """Pre-start commands one after the other, then the service itself, until it is ready."""
    unit = service.unit
    limit = unit.service.ready_timeout if unit.service else unit.readiness.timeout
    left = None if limit is None else max(0.0, service.memory.began + limit - time.monotonic())
    try:
        async with asyncio.timeout(left) as service.limit:
            if unit.service is None:
                await ready.get_ready(unit.readiness, ready.Asker)
                service.to(State.RUNNING)
                return
            if not await _steps(service, len(unit.service.pre_start)):
                await ending.conclude(service)
                return
            await _get_ready(service)
    except TimeoutError:
        reason = f"not {'done' if unit.service and unit.service.type == 'oneshot' else 'ready'} within {limit:g} s"
        if unit.service is None:
            attempts = service.memory.attempts.ended(0.0, service.policy)
            service.to(State.BACKOFF, "service-not-ready", reason, attempts=attempts)
            return
        service.to(State.STOPPING, "service-not-ready", reason, then=Then.RETRY)
        return
    finally:
        service.limit = None
    if _ended(service):
        await ending.conclude(service)
        return
    service.to(State.RUNNING)


async def _steps(service: Service, last: int) -> bool:
    """Run the pre-start commands and begin the last step; False when one of them failed."""
    while True:
        await _launch(service)
        if service.memory.step >= last:
            return True
        await service.until(lambda: _ended(service))
        known = service.known
        if service.gone or known is None or known.code != 0:
            return False
        if known.populated:
            await service.until(lambda: service.gone or not service.populated, ending.LINGER)
        service.remember(step=service.memory.step + 1, launch=0)


async def _launch(service: Service) -> None:
    """Begin the present step, unless that was done already."""
    if service.memory.launch and (service.shim is None or service.gone):
        return  # begun, and its shim is gone
    service.prepared = None
    shim = await service.held()
    if service.memory.launch and shim.state.starts >= service.memory.launch:
        return
    if service.unit.socket:
        sockets.close(await _sockets(service, shim))
    if shim.state.populated:  # what an earlier step or start has left behind
        await service.chore(shim.stop(0))
        await service.until(lambda: service.gone or not service.populated, ending.KILL_PATIENCE)
    # A shim that was started a moment ago has what it needs; one that waited, or ran another step, gets it anew.
    made = service.prepared
    fresh = made is not None and made[0] is service.unit and made[1] == service.memory.step
    spec = None if fresh else service.specify()
    await service.house.context.gates.pass_through(service.house.context, service.name)
    if service.unit.service is not None and service.unit.service.pid_file is not None:
        with contextlib.suppress(OSError):  # many programs do not start where there is one
            Path(service.unit.service.pid_file).unlink()
    service.remember(launch=shim.state.starts + 1)
    await service.chore(shim.start(spec))


async def _get_ready(service: Service) -> None:
    """Until it is ready or has ended."""
    unit = service.unit
    assert unit.service is not None
    if unit.service.type == "oneshot":
        await service.until(lambda: _ended(service))
        return
    if unit.readiness.endpoint or unit.readiness.command or unit.service.pid_file:
        asking = asyncio.ensure_future(_found_out(service))
        try:
            await _first(service, asking, lambda: _ended(service))
        finally:
            await _cancelled(asking)
        if not _ended(service) and service.shim is not None:
            await service.chore(service.shim.mark_ready())

    def settled() -> bool:
        known = service.known
        return _ended(service) or (known is not None and known.phase is Phase.RUNNING)

    await service.until(settled)


async def _found_out(service: Service) -> None:
    """Until it is ready, for services that do not tell their shim."""
    unit = service.unit
    assert unit.service is not None
    if unit.service.pid_file is not None:
        await _main_found(service, Path(unit.service.pid_file))
    await ready.get_ready(unit.readiness, _asker(service))


async def _main_found(service: Service, path: Path) -> None:
    """Until its PID file names a process that it has left in the background; any other number is an old one."""
    while True:
        pid = ready.process_in(path)
        if pid is not None and service.shim is not None:
            try:
                await service.chore(service.shim.become_main(pid))
            except ShimError as error:
                if error.reason != "shim-stranger":
                    raise
            else:
                return
        await asyncio.sleep(_PID_FILE)


async def _running(service: Service) -> None:
    """Until it ends, or must be ended because its health or its watchdog says so."""
    if service.unit.service is None:
        await asyncio.get_running_loop().create_future()  # a milestone stays until it is stopped
    service.sentence, service.pinged = None, time.monotonic()
    guards = [asyncio.ensure_future(one) for one in (_guard(service, _health), _guard(service, _watchdog))]
    try:
        await service.until(lambda: _ended(service) or service.sentence is not None)
    finally:
        for guard in guards:
            await _cancelled(guard)
    if _ended(service) or service.sentence is None:
        await ending.conclude(service)
        return
    slug, reason = service.sentence
    service.to(State.STOPPING, slug, reason, then=Then.RETRY)


async def _guard(service: Service, watch: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    """Watch it as long as it runs; what goes wrong in that is said, and costs the service nothing."""
    try:
        await watch(service)
    except Exception as error:  # noqa: BLE001  # a defect of ours
        log("err", f"{service.name} is not watched any more: {type(error).__name__}: {error}")


async def _health(service: Service) -> None:
    """Keep `running` and `unhealthy` apart; sentence it when the unit says so."""
    question = service.unit.health
    if question is None:
        return
    async for problem in health.watch(question, _asker(service), sick=service.state is State.UNHEALTHY):
        if service.state not in (State.RUNNING, State.UNHEALTHY):
            return  # it is being stopped since a moment ago
        if problem is None:
            service.to(State.RUNNING)
        elif question.action == "restart":
            service.condemn("service-unhealthy", problem)
        else:
            service.to(State.UNHEALTHY, "service-unhealthy", problem)


async def _watchdog(service: Service) -> None:
    """Sentence it when it has not said for too long that it lives."""
    patience = service.policy.watchdog
    while patience is not None:
        left = service.pinged + patience - time.monotonic()
        if left <= 0:
            service.condemn("service-watchdog", f"gave no sign of life for {patience:g} s")
            return
        await asyncio.sleep(left)


def _asker(service: Service) -> Callable[[], ready.Asker]:
    """What the checks of the service run with."""
    assert service.unit.service is not None
    house, group = service.house, service.known.cgroup if service.known is not None else ""
    return partial(prepare.asker, service.name, service.unit.service, house.context, house.places, group)


# -- small things ----------------------------------------------------------------------------------------------------


async def _first(service: Service, work: asyncio.Future[Any], other: Callable[[], bool]) -> None:
    """Until `work` is done (its exception is raised) or `other` holds."""
    watch = asyncio.ensure_future(service.until(other))
    try:
        await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancelled(watch)
    if work.done() and not work.cancelled():
        work.result()


async def _cancelled(work: asyncio.Future[Any]) -> None:
    """Cancel and wait until that is done."""
    work.cancel()
    await asyncio.wait([work])


_HANDLERS: Mapping[State, Callable[[Service], Coroutine[Any, Any, None]]] = {
    State.WAITING: _waiting,
    State.SCHEDULED: _scheduled,
    State.LISTENING: _listening,
    State.BACKOFF: _backoff,
    State.STARTING: _starting,
    State.RUNNING: _running,
    State.UNHEALTHY: _running,
    State.STOPPING: ending.stopping,
}
assert set(_HANDLERS) == set(State) - RESTING
