"""Run a plan: what waits longest for others goes first, as many at once as there are tokens; Ctrl-C stops all."""

from __future__ import annotations

import contextlib
import heapq
import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from buildsys.events import ActionFinished, BuildPlanned, Note
from buildsys.execute import DamagedInput, Executor, Stopped
from buildsys.graph import Action, Plan
from buildsys.store import Result
from common.errors import BuildError, MixosError

MAX_REPAIRS = 10  # damaged objects in one build before we stop believing in the disk

STOP_SECONDS = 10.0  # for killed actions to clean up; the next build removes what is left then

Outcome = Result | BaseException


@dataclass
class _State:
    plan: Plan
    executor: Executor
    priority: Mapping[str, float]
    waiting: dict[str, set[str]]
    dependents: dict[str, list[str]]
    ready: list[tuple[float, str]] = field(default_factory=list)
    active: int = 0
    repairing: set[str] = field(default_factory=set)
    repairs: int = 0
    failure: BaseException | None = None


def build(plan: Plan, targets: Iterable[str], executor: Executor) -> dict[str, Result]:
    """Bring all targets up to date; returns the results by action name.

    After a failure nothing new starts, what runs is finished, and the first error is raised. KeyboardInterrupt (and any
    error of the scheduler's own) kills what runs.
    """
    order = plan.order(targets)
    durations = {name: _expected_seconds(plan.actions[name], executor) for name in order}
    executor.sink(BuildPlanned(len(order)))
    state = _State(plan, executor, _critical_path(plan, order, durations), *_edges(plan, order))
    for name in order:
        if not state.waiting[name]:
            heapq.heappush(state.ready, (-state.priority[name], name))
    done: queue.Queue[tuple[str, Outcome]] = queue.Queue()
    wake_read, wake_write = os.pipe()
    try:
        _loop(state, done, wake_read, wake_write)
    except BaseException:
        executor.stop()
        _drain(state, done)
        raise
    finally:
        if not state.active:  # else a thread that could not be stopped would write into somebody else's file
            os.close(wake_read)
            os.close(wake_write)
    if state.failure is not None:
        raise state.failure
    return executor.results


def _drain(state: _State, done: queue.Queue[tuple[str, Outcome]]) -> None:
    """Wait until what was stopped has cleaned up; not for ever, a connection may hang."""
    end = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(queue.Empty):
        while state.active:
            done.get(timeout=max(0.0, end - time.monotonic()))
            state.active -= 1


def _loop(state: _State, done: queue.Queue[tuple[str, Outcome]], wake_read: int, wake_write: int) -> None:
    """Start what is ready while tokens last; take in what finished; until nothing runs and nothing can start."""
    executor = state.executor
    while state.active or (state.ready and state.failure is None):
        while state.ready and state.failure is None:
            action = state.plan.actions[state.ready[0][1]]
            try:
                cached = executor.lookup(action)
            except MixosError as error:  # a missing tool, an unreadable input: what runs may finish
                heapq.heappop(state.ready)
                _take(state, action.name, error)
                continue
            if cached is not None:
                heapq.heappop(state.ready)
                executor.sink(ActionFinished(action.name, "cached", 0.0))
                _complete(state, action.name, cached)
                continue
            if not state.active:
                executor.jobserver.refill()  # a make that was killed may have taken tokens with it
            if not executor.jobserver.acquire(wake_read, 0.5):
                break
            heapq.heappop(state.ready)
            state.active += 1
            threading.Thread(target=_work, args=(executor, action, done, wake_write), daemon=True).start()
        if not state.active:
            continue
        try:
            name, outcome = done.get(timeout=0.5 if state.ready and state.failure is None else None)
        except queue.Empty:
            continue
        os.read(wake_read, 1)
        state.active -= 1
        executor.jobserver.release()
        _take(state, name, outcome)


def _work(executor: Executor, action: Action, done: queue.Queue[tuple[str, Outcome]], wake: int) -> None:
    outcome: Outcome
    try:
        outcome = executor.execute(action)
    except BaseException as error:  # noqa: BLE001 - carried to the main thread and raised there
        outcome = error
    done.put((action.name, outcome))
    os.write(wake, b"!")


def _take(state: _State, name: str, outcome: Outcome) -> None:
    if isinstance(outcome, Result):
        _complete(state, name, outcome)
    elif isinstance(outcome, DamagedInput) and state.failure is None:
        _repair(state, name, outcome)
    elif not isinstance(outcome, Stopped) and state.failure is None:
        state.failure = outcome


def _complete(state: _State, name: str, result: Result) -> None:
    state.executor.results[name] = result
    state.repairing.discard(name)
    for dependent in state.dependents[name]:
        if name not in state.waiting[dependent]:
            continue  # it has run, or runs, with an earlier copy of a repaired output
        state.waiting[dependent].discard(name)
        if not state.waiting[dependent]:
            heapq.heappush(state.ready, (-state.priority[dependent], dependent))


def _repair(state: _State, name: str, damage: DamagedInput) -> None:
    """Queue the action whose stored output was damaged, and let `name` wait for it again."""
    state.repairs += 1
    state.executor.sink(Note("warning", str(damage)))
    if state.repairs > MAX_REPAIRS:
        state.failure = BuildError(
            f"{state.repairs} stored objects were damaged",
            reason="store-damaged",
            hint="check the disk: 'mixos cache verify'",
        )
        return
    state.waiting[name].add(damage.action)
    if damage.action not in state.repairing:
        state.repairing.add(damage.action)
        heapq.heappush(state.ready, (-state.priority[damage.action], damage.action))


def _edges(plan: Plan, order: list[str]) -> tuple[dict[str, set[str]], dict[str, list[str]]]:
    waiting = {name: set(plan.actions[name].dependencies) for name in order}
    dependents: dict[str, list[str]] = {name: [] for name in order}
    for name in order:
        for dependency in plan.actions[name].dependencies:
            dependents[dependency].append(name)
    return waiting, dependents


def _expected_seconds(action: Action, executor: Executor) -> float:
    latest = executor.store.latest(action.name)
    return latest.seconds if latest is not None else action.seconds


def _critical_path(plan: Plan, order: list[str], durations: Mapping[str, float]) -> dict[str, float]:
    """Seconds from the start of each action to the end of the plan along the longest way."""
    length: dict[str, float] = {}
    dependents = _edges(plan, order)[1]
    for name in reversed(order):
        length[name] = durations[name] + max((length[item] for item in dependents[name]), default=0.0)
    return length
