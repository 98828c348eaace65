"""Whose connection a change must not cut: the caller's SSH connection, as a packet to ask the policy about.

An established connection survives new rules; what must still be possible is the next one, from the same place.
"""

from __future__ import annotations

import ipaddress

from daemon.core.method import Caller
from daemon.parts.firewall.decide import Packet

_SSH = 22


def connection(caller: Caller, text: str | None) -> Packet | None:
    """The first packet of the caller's next login; None when they are at the device itself.

    text: SSH_CONNECTION ("peer port local port"), which a client sends along; else the caller's recorded origin.
    A client that lies about it endangers its own connection, nothing else.
    """
    words = (text or "").split()
    if len(words) == 4 and words[3].isascii() and words[3].isdigit() and 0 < int(words[3][:6]) < 65536:
        peer = _address(words[0])
        local = _address(words[2])
        if peer:
            interface = peer[1] or (_interface_of(local[0]) if local else None)
            return Packet(peer[0], "tcp", int(words[3]), interface)
    kind, origin, *_ = *caller.origin.split(), "", ""  # "ssh ADDRESS (claimed)", "local (claimed)": daemon.core.peer
    peer = _address(origin) if kind == "ssh" else None
    return Packet(peer[0], "tcp", _SSH, peer[1]) if peer else None


def _address(text: str) -> tuple[str, str | None] | None:
    """(address, interface behind `%`); an IPv4 address within IPv6 as the kernel's rules see it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped:
            return str(mapped), None
        plain, _, interface = str(address).partition("%")
        return plain, interface or None
    return str(address), None


def _interface_of(address: str) -> str | None:
    """The interface that has an address now."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return str(name)
    return None
