"""Addresses and networks in text from outside: as `ipaddress` reads them, but never with a zone.

Behind the `%` of an IPv6 address Python takes anything, line ends and shell characters included, and writes it again.
Standard library only: the first boot reads this, too.
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


def host_problem(address: Address, network: Network | None = None) -> str | None:
    """Why an address, in its network if that is known, cannot be a host's; None when it can (RFC 6890, RFC 4291)."""
    if address.is_multicast:
        return "is a multicast address"
    if address.is_unspecified or address.is_loopback:
        return "is not the address of a host"
    if address.version == 4 and (address.is_reserved or int(address) >> 24 == 0):
        return "is in a range that no host may use"
    if network is None or network.prefixlen >= network.max_prefixlen - 1:
        return None
    if address == network.network_address:
        return f"is the network itself; hosts begin with {network.network_address + 1}"
    if address.version == 4 and address == network.broadcast_address:
        return "is the broadcast address of its network"
    return None


def _zoneless(value: str | bytes | int) -> None:
    if isinstance(value, str) and "%" in value:
        raise ValueError(f"{value[:80]!r} names a zone, which is not taken here")
