"""Names of endpoints to addresses, beside everything else and with a limit on time.

The C library's resolver blocks, so it runs in threads of its own: one that hangs costs its thread until the library
gives up (musl: 5 s a try), never the daemon's time, nor the threads that write files.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from common.netvalues import is_address, split_endpoint
from daemon.linux.wireguard import Endpoint
from daemon.parts.vpn.model import PeerEntry, Tunnel

SECONDS = 12.0


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, "vpn-names")


def has_name(peer: PeerEntry) -> bool:
    """Whether a peer's endpoint needs a name server."""
    return peer.endpoint is not None and not is_address(split_endpoint(peer.endpoint)[0])


async def endpoints(wanted: Mapping[str, Tunnel], names: bool) -> dict[str, dict[str, list[Endpoint]]]:
    """Interface → peer → its addresses, looked up beside each other. names: also endpoints that are names."""
    jobs = [
        (name, title, endpoint(peer.endpoint))
        for name, entry in wanted.items()
        for title, peer in entry.peer.items()
        if peer.endpoint and (names or not has_name(peer))
    ]
    answers = await asyncio.gather(*(job for _, _, job in jobs))
    found: dict[str, dict[str, list[Endpoint]]] = {name: {} for name in wanted}
    for (name, title, _), answer in zip(jobs, answers, strict=True):
        found[name][title] = answer
    return found


async def endpoint(text: str, seconds: float = SECONDS) -> list[Endpoint]:
    """The addresses behind an endpoint, as the system prefers them; none when the name has none now."""
    host, port = split_endpoint(text)
    if is_address(host):
        return [Endpoint(host, port)]
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG)
    try:
        async with asyncio.timeout(seconds):
            found = await asyncio.get_running_loop().run_in_executor(_threads(), look_up)
    except (OSError, TimeoutError, UnicodeError):
        return []
    return list(dict.fromkeys(Endpoint(str(address[0]), port) for *_, address in found))
