"""Finding out from outside whether a service is ready: does its port accept, does its check succeed.

Readiness that a service tells (a descriptor, NOTIFY_SOCKET) is heard by its shim; this is for those that do not tell.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import MixosError
from common.files import read_regular
from common.values import Address
from daemon.linux.process import Runner, capture
from daemon.parts.service.unit import Ready

TRY = 5.0  # seconds that one try may take


@dataclass(frozen=True)
class Asker:
    """What a check's program runs with: the account, the control group and the variables of the unit, or (None, of a
    milestone) our own."""

    runner: Runner | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


async def accepts(address: Address, seconds: float) -> str | None:
    """Connect once; None when it worked, else what went wrong."""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(*address)
    except TimeoutError:
        return f"port {address.port}: no answer within {seconds:g} s"
    except OSError as error:
        return f"port {address.port}: {error.strerror or 'refused'}"
    writer.close()
    return None


async def succeeds(argv: tuple[str, ...], seconds: float, who: Callable[[], Asker]) -> str | None:
    """Run a check once; None when its status is 0, else what went wrong. `who` may raise MixosError."""
    try:
        asker = who()
        with _group(asker.runner) as runner:
            found = await capture(argv, seconds=seconds, limit=64 << 10, extra=asker.environment, runner=runner)
    except MixosError as error:
        return error.message
    if found.status == 0:
        return None
    said = (found.err or found.out).decode("utf-8", "replace").strip().splitlines()
    return f"{argv[0]} ended with status {found.status}" + (f": {said[-1]:.200}" if said else "")


@contextlib.contextmanager
def _group(runner: Runner | None) -> Iterator[Runner | None]:
    """The check runs in a group of its own below the unit's: within its limits, and killed with it."""
    if runner is None or runner.cgroup is None:
        yield runner
        return
    group = runner.cgroup / "check"
    with contextlib.suppress(OSError):  # else it cannot be started, which is said then
        group.mkdir(exist_ok=True)
    try:
        yield replace(runner, cgroup=group)
    finally:
        with contextlib.suppress(OSError):  # something of it is left: it ends with the unit
            group.rmdir()


async def get_ready(ready: Ready, who: Callable[[], Asker]) -> None:
    """Try until the service is ready; the caller sets the time limit. Returns at once when nothing is to be asked."""
    while True:
        problem = None
        if ready.endpoint is not None:
            problem = await accepts(ready.endpoint, TRY)
        elif ready.command is not None:
            problem = await succeeds(ready.command, TRY, who)
        if problem is None:
            return
        await asyncio.sleep(ready.interval)


def process_in(path: Path) -> int | None:
    """The number in a PID file; None while there is no such file, or nothing else than one number in it.

    It is the service's own: not waited for when it is a pipe, and not believed.
    """
    try:
        text = read_regular(path, 32).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and len(text) < 10 else None
