"""The daemon goes, the services stay; and what happens when shims are killed, or the device goes down."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildsys.run import run
from daemon.part import Context
from daemon.supervise.memory import History
from daemon.supervise.states import State
from tests.native import native
from tests.supervision import (
    PATIENCE,
    QUICK,
    SLEEP,
    alive,
    ends,
    eventually,
    folders,
    lines,
    managed,
    reach,
    shell,
    unit,
)

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
S = State


@pytest.fixture
def place() -> Iterator[Context]:
    with folders() as context:
        yield context


def test_a_hundred_services_are_started_taken_over_and_stopped(place: Context):
    names = [f"s{number}" for number in range(100)]
    for number, name in enumerate(names):
        about = f"requires = ['s{number - 1}']" if number % 10 else ""
        unit(place, name, shell(SLEEP, unit_=f"enabled = true\n{about}"))

    async def main() -> None:
        async with managed(place, leave=True) as manager:
            for name in names:
                await reach(manager.services[name], S.RUNNING)
            before = {name: one.known and one.known.main for name, one in manager.services.items()}
        async with managed(place) as manager:
            for name in names:
                await reach(manager.services[name], S.RUNNING)
            assert {name: one.known and one.known.main for name, one in manager.services.items()} == before
            assert all(one.memory.restarts == 0 for one in manager.services.values())
            await manager.halt(["s0"])
            assert sum(one.active for one in manager.services.values()) == 90
        assert [ends(place, name) for name in names] == [[(-1, 15)]] * 100

    asyncio.run(main())


def driver(place: Context, step: int, when: str, action: str, name: str, state: State) -> int:
    """One life of a daemon of its own (see tests/supervise_driver.py); its status."""
    base = place.run.parents[1]
    argv = [sys.executable, "-m", "tests.supervise_driver", base, native("shim"), str(step), when, action, name, state]
    return run(argv, cwd=ROOT, allow=(0, -signal.SIGKILL), timeout=120, env={"PYTHONPATH": str(ROOT)}).status


LIVES = {
    # script, keys, [ready], state that is reached, (code, signal) of the ends, runs of the service
    "fails": (
        "exit 7",
        "restart = 'no'\npre-start = [['/bin/sh', '-c', 'echo >>$OUT.pre']]",
        "",
        S.FAILED,
        [(7, 0)],
        1,
    ),
    "retries": (f"test $(wc -l <$OUT) = 1 && exit 5; echo >&3; {SLEEP}", QUICK, "fd:3", S.RUNNING, [(5, 0)], 2),
    "oneshot": ("exit 0", "type = 'oneshot'", "", S.DONE, [(0, 0)], 1),
}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_kill_9_at_every_step_of_a_start_loses_no_end_and_repeats_nothing(life: str, when: str):
    script, more, ready, state, expected, runs = LIVES[life]
    died, step = True, 0
    while died:
        step += 1
        with folders() as place:
            out = place.log / "runs"
            keys = f"environment = {{ OUT = '{out}' }}\n{more}"
            kind = "oneshot" if "oneshot" in more else "simple"
            keys = keys.replace("type = 'oneshot'", "")
            rest = f"[ready]\nhow = '{ready}'" if ready else ""
            unit(place, "x", shell(f"echo >>$OUT; {script}", kind=kind, more=keys, unit_="enabled = true", rest=rest))
            died = driver(place, step, when, "none", "x", state) != 0
            assert driver(place, 0, "", "none", "x", state) == 0  # the next daemon goes on
            assert ends(place, "x") == expected, step
            assert lines(out) == runs, step
            assert not (place.log / "runs.pre").exists() or lines(place.log / "runs.pre") == 1
    assert step > 4


@pytest.mark.parametrize("action", ["stop", "restart"])
def test_kill_9_at_every_step_of_a_stop(action: str):
    died, step = True, 0
    while died:
        step += 1
        with folders() as place:
            unit(place, "x", shell(SLEEP, unit_="enabled = true"))
            assert driver(place, 0, "", "none", "x", S.RUNNING) == 0
            last = S.INACTIVE if action == "stop" else S.RUNNING
            died = driver(place, step, "after", action, "x", last) != 0
            assert driver(place, 0, "", "none", "x", last) == 0
            assert ends(place, "x") == [(-1, 15)], step
    assert step > 2


def test_a_daemon_that_comes_back_leaves_alone_what_was_stopped_and_what_has_failed(place: Context):
    unit(place, "stopped", shell(SLEEP, unit_="enabled = true"))
    unit(place, "failed", shell("exit 1", more="restart = 'no'", unit_="enabled = true"))

    async def main() -> None:
        async with managed(place, leave=True) as manager:
            await reach(manager.services["stopped"], S.RUNNING)
            await reach(manager.services["failed"], S.FAILED)
            await manager.halt(["stopped"])
        async with managed(place) as manager:
            assert manager.services["stopped"].state is S.INACTIVE
            assert manager.services["failed"].state is S.FAILED
            assert manager.services["failed"].memory.slug == "service-exit"

    asyncio.run(main())


@pytest.mark.parametrize("while_away", [False, True])
def test_kill_9_of_a_shim_ends_what_is_left_and_starts_it_again(place: Context, while_away: bool):
    pids = place.log / "pids"
    unit(place, "x", shell(f"echo $$ >>{pids}; sleep 1000 & wait", more=QUICK))

    async def main() -> None:
        async with managed(place, leave=while_away) as manager:
            manager.begin(["x"])
            x = await reach(manager.services["x"], S.RUNNING)
            await eventually(lambda: lines(pids) == 1)
            assert x.known is not None
            shim = x.known.shim.pid
            if not while_away:
                os.kill(shim, signal.SIGKILL)
                await eventually(lambda: lines(pids) == 2)
        if while_away:
            os.kill(shim, signal.SIGKILL)
            async with managed(place) as manager:
                await reach(manager.services["x"], S.RUNNING)
                await eventually(lambda: lines(pids) == 2)
        first = int(pids.read_text().split()[0])
        assert not alive(first)
        history = History.read(place.state / "services" / "x.json")
        assert history.ends[0].slug == "service-lost"

    asyncio.run(main())


def test_a_shutdown_has_a_deadline(place: Context):
    unit(place, "deaf", shell("trap '' TERM; echo >&3; while :; do sleep 1; done", more="stop-timeout = '1h'",
                              rest="[ready]\nhow = 'fd:3'"))  # fmt: skip
    unit(place, "needs", shell(SLEEP, unit_="requires = ['deaf']"))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["needs"])
            await reach(manager.services["needs"], S.RUNNING)
            before = time.monotonic()
            assert await manager.shutdown(0.5) == ("deaf",)
            assert time.monotonic() - before < PATIENCE  # not an hour
            assert ends(place, "deaf") == [(-1, 9)]
            assert ends(place, "needs") == [(-1, 15)]

    asyncio.run(main())
