"""Configurations for the other side of a tunnel: what a client's WireGuard must be told to reach this device."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable

from common.errors import RefusedError
from daemon.linux.wireguard import Network
from daemon.parts.vpn import keys, wgquick
from daemon.parts.vpn.model import PeerEntry, Tunnel
from daemon.parts.vpn.wgquick import Quick, QuickPeer

_TRIES = 64
_NO_KEY = "# PrivateKey = the one that belongs to the public key in use; it never was on this device"


def random_networks(taken: Iterable[str]) -> tuple[str, str]:
    """Addresses for a new tunnel: a /24 below 10/8 that overlaps nothing in `taken`, and a ULA /64 (RFC 4193)."""
    used = [ipaddress.ip_interface(address).network for address in taken if ":" not in address]
    for _ in range(_TRIES):
        network = ipaddress.ip_network((bytes([10, secrets.randbelow(256), secrets.randbelow(256), 0]), 24))
        if not any(network.overlaps(other) for other in used):
            break
    else:
        raise RefusedError("no private network is free", reason="vpn-address", hint="name one with --address")
    unique = ipaddress.IPv6Address(b"\xfd" + secrets.token_bytes(7) + bytes(7) + b"\x01")
    return f"{network[1]}/24", f"{unique}/64"


def allowed(tunnel: Tunnel, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Allowed IPs of a new peer: what is wanted, and addresses in the tunnel when none of that is one: a peer with a
    network behind it needs them, too. Raises what `next_addresses` raises."""
    if wanted and (_inside(tunnel, wanted) or not tunnel.addresses):
        return wanted
    return (*next_addresses(tunnel, wanted), *wanted)


def _inside(tunnel: Tunnel, allowed_ips: Iterable[str]) -> tuple[str, ...]:
    """Those that are one address in a network of the tunnel."""
    own = [ipaddress.ip_interface(address).network for address in tunnel.addresses]
    hosts = [(text, ipaddress.ip_network(text)) for text in allowed_ips]
    return tuple(
        text for text, host in hosts if host.num_addresses == 1 and any(host.network_address in each for each in own)
    )


def next_addresses(tunnel: Tunnel, beside: Iterable[str] = ()) -> tuple[str, ...]:
    """A free address for a new peer in each network of the tunnel, as allowed IPs, in none of the networks `beside`.
    Raises RefusedError `vpn-full`, `vpn-address`."""
    networks = [ipaddress.ip_network(item) for peer in tunnel.peer.values() for item in peer.allowed_ips]
    networks += map(ipaddress.ip_network, beside)
    found = []
    for address in map(ipaddress.ip_interface, tunnel.addresses):
        free = _free(address, networks)
        if free is None:
            raise RefusedError(
                f"{address.network} has no free address", reason="vpn-full", hint="name some with --allowed-ips"
            )
        found.append(f"{free}/{free.max_prefixlen}")
    if not found:
        raise RefusedError("the interface has no addresses to give", reason="vpn-address", hint="use --allowed-ips")
    return tuple(found)


def _free(
    own: ipaddress.IPv4Interface | ipaddress.IPv6Interface, networks: Iterable[Network]
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The lowest host of the interface's network that is not `own` and in no peer's part of it."""
    base, bits = int(own.network[0]), own.max_prefixlen
    parts = [each for each in networks if each.version == own.version and each.prefixlen > own.network.prefixlen]
    taken = sorted([(int(own.ip), int(own.ip)), *((int(each[0]), int(each[-1])) for each in parts)])
    free = base + 1
    for first, last in taken:
        if first > free:
            break
        free = max(free, last + 1)
    end = base + own.network.num_addresses - (1 if bits == 32 else 0)  # IPv4: the last one is broadcast
    return type(own.ip)(free) if free < end else None


def client(tunnel: Tunnel, entry: PeerEntry, public: bytes, private: bytes | None, preshared: bytes | None) -> str:
    """The client's file for wg-quick. public: this device's key; private: the client's, None when it has its own."""
    hosts = tuple(network for network in entry.allowed_ips if network.endswith(("/32", "/128")))
    own = _inside(tunnel, hosts) or hosts
    networks = [str(ipaddress.ip_interface(address).network) for address in tunnel.addresses]
    server = _server(tunnel, entry, public, preshared, tunnel.client_routes or tuple(networks))
    quick = Quick(private or bytes(32), own, dns=tunnel.client_dns, mtu=_mtu(tunnel), peers=(server,))
    return wgquick.write(quick, f"PrivateKey = {keys.encode(private)}" if private else _NO_KEY) + _hole(tunnel)


def section(tunnel: Tunnel, entry: PeerEntry, public: bytes, preshared: bytes | None) -> str:
    """The [Peer] section alone, for a client that keeps its [Interface]."""
    networks = [str(ipaddress.ip_interface(address).network) for address in tunnel.addresses]
    server = _server(tunnel, entry, public, preshared, tunnel.client_routes or tuple(networks))
    text = wgquick.write(Quick(bytes(32), peers=(server,)), "")
    return text[text.index("[Peer]") :] + _hole(tunnel)


def _server(
    tunnel: Tunnel, entry: PeerEntry, public: bytes, preshared: bytes | None, allowed: tuple[str, ...]
) -> QuickPeer:
    return QuickPeer(public, "", preshared, allowed, tunnel.endpoint, entry.keepalive)


def _mtu(tunnel: Tunnel) -> int:
    return tunnel.mtu if tunnel.mtu != Tunnel.model_fields["mtu"].default else 0


def _hole(tunnel: Tunnel) -> str:
    return "" if tunnel.endpoint else "# Endpoint = HOST:PORT   (this device knows no endpoint for itself)\n"


def export(tunnel: Tunnel) -> str:
    """This device's own side for wg-quick, without any secret."""
    peers = tuple(
        QuickPeer(keys.decode(entry.public_key), title, None, entry.allowed_ips, entry.endpoint, entry.keepalive)
        for title, entry in tunnel.peer.items()
    )
    quick = Quick(
        bytes(32),
        tunnel.addresses,
        tunnel.port,
        tunnel.mark,
        tunnel.dns,
        tunnel.search,
        tunnel.mtu,
        tunnel.routes,
        peers,
    )
    secret = [title for title, entry in tunnel.peer.items() if entry.psk]
    note = f"# PresharedKey of {', '.join(secret)}: kept on the device\n" if secret else ""
    return wgquick.write(quick, "# PrivateKey: kept on the device") + note
