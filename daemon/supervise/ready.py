"""Finding out from outside whether a service is ready: does its port accept, does its check succeed.

Readiness that a service tells (a descriptor, NOTIFY_SOCKET) is heard by its shim; this is for those that do not tell.
"""

from __future__ import annotations

import asyncio

from daemon.errors import DeviceError
from daemon.process import capture
from daemon.supervise.unit import Ready
from daemon.supervise.values import Address

TRY = 5.0  # seconds that one try may take


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


async def succeeds(argv: tuple[str, ...], seconds: float) -> str | None:
    """Run a check once; None when its status is 0, else what went wrong."""
    try:
        found = await capture(argv, seconds=seconds, limit=64 << 10)
    except DeviceError as error:
        return error.message
    if found.status == 0:
        return None
    said = (found.err or found.out).decode("utf-8", "replace").strip().splitlines()
    return f"{argv[0]} ended with status {found.status}" + (f": {said[-1]:.200}" if said else "")


async def get_ready(ready: Ready) -> None:
    """Try until the service is ready; the caller sets the time limit. Returns at once when nothing is to be asked."""
    while True:
        problem = None
        if ready.endpoint is not None:
            problem = await accepts(ready.endpoint, TRY)
        elif ready.command is not None:
            problem = await succeeds(ready.command, TRY)
        if problem is None:
            return
        await asyncio.sleep(ready.interval)
