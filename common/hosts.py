"""Which addresses a host can have. Standard library only: the first boot reads this, too."""

from __future__ import annotations

import ipaddress


def host_problem(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None,
) -> str | None:
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
