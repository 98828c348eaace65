"""The connection that a caller came by, as far as it is known: a change should not cut it unasked.

An established connection survives most changes; what must still be possible is the next one, from the same place.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from common import addresses

_SSH = 22


class Connection(NamedTuple):
    """peer: the caller's address; local: ours, "" when unknown; port: ours; interface: where it comes in, None when
    unknown. It is what the caller's environment says: who lies about it endangers their own connection only."""

    peer: str
    local: str = ""
    port: int = _SSH
    interface: str | None = None


def connection(text: str) -> Connection | None:
    """From SSH_CONNECTION (ssh(1)): "PEER PORT LOCAL PORT"; PEER alone will do. None for anything else."""
    words = text.split()
    peer = _address(words[0]) if words else None
    if peer is None:
        return None
    local = _address(words[2]) if len(words) == 4 else None
    port = words[3] if len(words) == 4 else ""
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    at = local[0] if local else ""
    return Connection(peer[0], at, number if 0 < number < 65536 else _SSH, peer[1] or interface_of(at))


def _address(text: str) -> tuple[str, str | None] | None:
    """(address, interface behind `%`); an IPv4 address within IPv6 as the kernel's rules see it."""
    plain, _, interface = text.partition("%")
    try:
        address = addresses.address(plain)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return (str(address.ipv4_mapped), None) if address.ipv4_mapped else (str(address), interface or None)
    return str(address), None


def interface_of(address: str) -> str | None:
    """The interface that has an address now."""
    if not address:
        return None
    from daemon.linux.rtnl import Rtnl

    with Rtnl() as rtnl:
        names = {link.index: link.name for link in rtnl.links().values()}
        return next(
            (names.get(one.index) for one in rtnl.addresses() if one.address.partition("/")[0] == address), None
        )
