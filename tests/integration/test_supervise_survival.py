"""The daemon goes, the services stay; and what happens when shims are killed, or the device goes down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from daemon.core.part import Context
from daemon.parts.service.memory import FILE, History
from daemon.parts.service.states import State
from tests.native import native
from tests.supervise_driver import life
from tests.supervision import (
    QUICK,
    SLEEP,
    alive,
    ends,
    folders,
    lines,
    managed,
    reach,
    shell,
    unit,
)
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.integration
S = State


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


def lived(place: Context, name: str) -> None:
    """Write the unit of a life."""
    script, more, ready, *_ = LIVES[name]
    keys = f"environment = {{ OUT = '{place.log / 'runs'}' }}\n{more}".replace("type = 'oneshot'", "")
    kind = "oneshot" if "oneshot" in more else "simple"
    rest = f"[ready]\nhow = '{ready}'" if ready else ""
    unit(place, "x", shell(f"echo >>$OUT; {script}", kind=kind, more=keys, unit_="enabled = true", rest=rest))


def check_life(place: Context, name: str, step: int) -> None:
    """Every end is known, nothing was run twice."""
    assert ends(place, "x") == LIVES[name][4], step
    assert lines(place.log / "runs") == LIVES[name][5], step
    assert not (place.log / "runs.pre").exists() or lines(place.log / "runs.pre") == 1


@pytest.mark.parametrize("name", LIVES)
def test_kill_9_at_every_step_of_a_start_loses_no_end_and_repeats_nothing(name: str):
    state, died, step = LIVES[name][3], True, 0
    while died:
        step += 1
        with folders() as place:
            lived(place, name)
            died = not life(place, step, "none", "x", state)
            assert life(place, 0, "none", "x", state)  # the next daemon goes on
            check_life(place, name, step)
    assert step > 12


@pytest.mark.parametrize("first", [7, 11])  # the first daemon has started a shim, or told it to start the service
def test_kill_9_at_every_step_of_an_adoption(first: int):
    died, step = True, 0
    while died:
        step += 1
        with folders() as place:
            lived(place, "retries")
            assert not life(place, first, "none", "x", S.RUNNING)
            died = not life(place, step, "none", "x", S.RUNNING)
            assert life(place, 0, "none", "x", S.RUNNING)
            check_life(place, "retries", step)
    assert step > 12


@pytest.mark.parametrize("action", ["stop", "restart"])
def test_kill_9_at_every_step_of_a_stop(action: str):
    died, step = True, 0
    while died:
        step += 1
        with folders() as place:
            unit(place, "x", shell(SLEEP, unit_="enabled = true"))
            assert life(place, 0, "none", "x", S.RUNNING)
            last = S.INACTIVE if action == "stop" else S.RUNNING
            died = not life(place, step, action, "x", last)
            memory = json.loads((place.run / "units/x" / FILE).read_bytes())
            begun = not died or ends(place, "x") or memory["state"] != S.RUNNING  # else nobody knows of it any more
            assert life(place, 0, "none" if begun else action, "x", last)
            assert ends(place, "x") == [(-1, 15)], step
    assert step > 6


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


def test_units_that_wait_for_each_other_are_taken_over(place: Context):
    """The one that waits has no shim, and so is known before the one that it requires."""
    flag = place.log / "flag"
    ready = "[ready]\nhow = 'fd:3'"
    slow = f"until test -e {flag}; do sleep 0.05; done; echo >&3; {SLEEP}"
    unit(place, "slow", shell(slow, unit_="enabled = true", rest=ready))
    for number in range(5):
        about = f"enabled = true\nrequires = ['{f'w{number - 1}' if number else 'slow'}']"
        unit(place, f"w{number}", shell(SLEEP, unit_=about))

    async def main() -> None:
        async with managed(place, leave=True) as manager:
            await eventually(lambda: manager.services["slow"].populated)
            assert manager.services["w4"].state is S.WAITING
        async with managed(place) as manager:
            assert manager.services["w4"].memory.reason == "for w3"
            flag.touch()
            await reach(manager.services["w4"], S.RUNNING)

    asyncio.run(main())


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
def test_a_note_that_is_damaged_costs_no_service(place: Context, damage: bytes):
    unit(place, "x", shell(SLEEP))

    async def main() -> None:
        async with managed(place, leave=True) as manager:
            manager.begin(["x"])
            x = await reach(manager.services["x"], S.RUNNING)
            await eventually(lambda: x.known and x.known.main.pid)
            before = x.known and x.known.main
        (place.run / "units/x" / FILE).write_bytes(damage)
        async with managed(place) as manager:
            x = await reach(manager.services["x"], S.RUNNING)
            assert (x.known and x.known.main) == before
            await manager.halt(["x"])
        assert ends(place, "x") == [(-1, 15)]

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


def halting(place: Context, step: str) -> Path:
    """A shim that stops itself at a step; only the first one does."""
    path = place.log / "shim"
    flag, program = place.log / "first", native("shim", "-DTEST_HOOKS")
    path.write_text(f'#!/bin/sh\nmkdir {flag} 2>/dev/null && export MIXOS_SHIM_STOP_AT={step}\nexec {program} "$@"\n')
    path.chmod(0o755)
    return path


def with_text(file: str, text: str) -> list[int]:
    """Processes that have a text in their command line or their environment."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{file}"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def standing(place: Context) -> list[int]:
    """Shims that stand still."""
    shims = with_text("cmdline", str(place.run / "units"))
    return [pid for pid in shims if alive(pid, "T")]


SHIM_STEPS = [
    "listening", "state-written", "before-send", "prepared", "log-open", "spawned", "started", "exit-seen",
    "exit-drained", "exit-logged", "exit-state",
]  # fmt: skip


@pytest.mark.parametrize("step", SHIM_STEPS)
def test_kill_9_of_a_shim_at_every_step_of_its_own(place: Context, step: str):
    out = place.log / "runs"
    keys = f"environment = {{ OUT = '{out}' }}\n{QUICK}"
    unit(place, "x", shell(f"echo >>$OUT; test $(wc -l <$OUT) = 1 && exit 5; {SLEEP}", more=keys))

    async def main() -> None:
        async with managed(place, shim=halting(place, step)) as manager:
            manager.begin(["x"])
            await eventually(lambda: standing(place))
            for pid in standing(place):
                os.kill(pid, signal.SIGKILL)
            x = manager.services["x"]
            await eventually(lambda: lines(out) == 2 and x.state is S.RUNNING and x.known and x.known.main.pid)
            assert x.known is not None
            main = x.known.main.pid
            await eventually(lambda: with_text("environ", f"OUT={out}") == [main])  # its `wc` goes by itself
        assert with_text("environ", f"OUT={out}") == []

    asyncio.run(main())


def test_kill_9_of_a_shim_that_is_stopping_its_service(place: Context):
    unit(place, "x", shell(SLEEP, more=f"environment = {{ OUT = '{place.log}' }}"))

    async def main() -> None:
        async with managed(place, shim=halting(place, "stopping")) as manager:
            manager.begin(["x"])
            await reach(manager.services["x"], S.RUNNING)
            stop = manager.background(manager.halt(["x"]))
            await eventually(lambda: standing(place))
            for pid in standing(place):
                os.kill(pid, signal.SIGKILL)
            await stop
            assert manager.services["x"].state is S.INACTIVE
            assert with_text("environ", f"OUT={place.log}") == []

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
