"""Names of endpoints to addresses, beside everything else and with a limit on time.

The C library's resolver blocks, so it runs in a thread; one that hangs costs its thread until the library gives up
(musl: 5 s a try), never the daemon's time.
"""

from __future__ import annotations

import asyncio
import socket

from daemon.net.values import is_address, split_endpoint
from daemon.net.wireguard import Endpoint

SECONDS = 12.0


async def endpoint(text: str, current: Endpoint | None = None, seconds: float = SECONDS) -> Endpoint | None:
    """The address behind an endpoint; None when the name has none now. `current` stays when it is among the answers."""
    host, port = split_endpoint(text)
    if is_address(host):
        return Endpoint(host, port)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG)
    except (OSError, TimeoutError, UnicodeError):
        return None
    answers = [Endpoint(str(address[0]), port) for *_, address in found]
    return current if current in answers else answers[0] if answers else None
