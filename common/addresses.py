"""Addresses and networks in text from outside: as `ipaddress` reads them, but never with a zone.

Behind the `%` of an IPv6 address Python takes anything, line ends and shell characters included, and writes it again.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def address(value: str | bytes) -> Address:
    """An address; bytes: packed. Raises ValueError."""
    _zoneless(value)
    return ipaddress.ip_address(value)


def interface(value: str) -> Interface:
    """An address with its prefix length, or alone. Raises ValueError."""
    _zoneless(value)
    return ipaddress.ip_interface(value)


def network(value: str | tuple[str | bytes | int, int], *, strict: bool = True) -> Network:
    """A network, or an address alone. Raises ValueError, when `strict` also for bits behind the prefix."""
    _zoneless(value[0] if isinstance(value, tuple) else value)
    return ipaddress.ip_network(value, strict=strict)


def _zoneless(value: str | bytes | int) -> None:
    if isinstance(value, str) and "%" in value:
        raise ValueError(f"{value[:80]!r} names a zone, which is not taken here")
