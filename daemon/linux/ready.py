"""Waiting in the event loop until a descriptor can be read or written, whatever its own flags say.

Unlike asyncio's transports this reads nothing and leaves O_NONBLOCK alone, which another process may share.
"""

from __future__ import annotations

import asyncio


async def readable(descriptor: int) -> None:
    """Return when a read would not wait: there is data, the end, or an error. Raises PermissionError for what epoll(7)
    does not take, such as a regular file. One task at a time may wait for a descriptor."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(descriptor, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def writable(descriptor: int) -> None:
    """Return when there is room, or nobody reads any more. Raises like `readable`."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(descriptor, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
