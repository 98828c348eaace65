"""`/etc/mixos/vpn.toml`: WireGuard interfaces and their peers. Secrets are not in it but in `keys.Store`.

[interface.wg0]
addresses = ["10.8.0.1/24"]
port = 51820
endpoint = "vpn.example.org:51820"       # how clients reach this device
[interface.wg0.peer.laptop]
public-key = "4qh4UzGyx8HwTw3bTY6hDAYxhIMHTX4Ogz9rV2R5Aic="
allowed-ips = ["10.8.0.2/32"]
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from common.addresses import Network
from common.addresses import network as network_of
from common.netvalues import (
    EndpointText,
    HostAddress,
    HostName,
    InterfaceAddress,
    NetworkText,
    PublicKey,
    interface_name,
    peer_name,
    resolver_fits,
)
from common.tomlfile import Strict
from daemon.linux.wireguard import MAX_ALLOWED

_WIDE = 8  # bits of a prefix
Port = Annotated[int, Field(ge=0, le=65535, strict=True)]
Seconds = Annotated[int, Field(ge=0, le=65535, strict=True)]


class PeerEntry(Strict):
    """A peer. psk: a preshared key is kept for it; kept-key: its private key is kept here, by choice."""

    public_key: PublicKey
    allowed_ips: Annotated[tuple[NetworkText, ...], Field(max_length=4096)] = ()
    endpoint: EndpointText | None = None
    keepalive: Seconds = 0
    psk: bool = False
    kept_key: bool = False


class Tunnel(Strict):
    """A WireGuard interface. up: whether it is brought up at start; routes: whether allowed IPs become routes.

    dns, search: used while it is up. client-dns, client-routes: what the configurations of clients say.
    """

    addresses: Annotated[tuple[InterfaceAddress, ...], Field(max_length=16)] = ()
    port: Port = 0
    endpoint: EndpointText | None = None
    dns: Annotated[tuple[HostAddress, ...], Field(max_length=8)] = ()
    search: Annotated[tuple[HostName, ...], Field(max_length=8)] = ()
    mtu: Annotated[int, Field(ge=576, le=65535, strict=True)] = 1420
    mark: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    up: bool = True
    routes: bool = True
    client_dns: Annotated[tuple[HostAddress, ...], Field(max_length=8)] = ()
    client_routes: tuple[NetworkText, ...] = ()
    peer: dict[str, PeerEntry] = Field(default_factory=dict, max_length=10_000)

    @field_validator("peer")
    @classmethod
    def _names(cls, value: dict[str, PeerEntry]) -> dict[str, PeerEntry]:
        for name in value:
            peer_name(name)
        return value

    @model_validator(mode="after")
    def _names_are_used(self) -> Tunnel:
        resolver_fits(self.dns, self.search)
        resolver_fits(self.client_dns, ())
        return self

    @model_validator(mode="after")
    def _is_unambiguous(self) -> Tunnel:
        keys = Counter(peer.public_key for peer in self.peer.values())
        for name, peer in self.peer.items():
            if keys[peer.public_key] > 1:
                raise ValueError(f"the public key of peer {name} is there twice")
        allowed = Counter(network for peer in self.peer.values() for network in peer.allowed_ips)
        if allowed.total() > MAX_ALLOWED:
            raise ValueError(f"the peers are allowed more than {MAX_ALLOWED} networks")
        for network, count in allowed.items():
            if count > 1:
                raise ValueError(f"{network} is allowed for two peers; WireGuard sends a packet to one")
        return self

    @property
    def everything(self) -> frozenset[Network]:
        """The networks that become routes and are all of IPv4 or of IPv6 together: 0.0.0.0/0 or, as some files have it,
        0.0.0.0/1 and 128.0.0.0/1. What lies within one of them is not among them; pieces smaller than /8 are none."""
        found: list[Network] = []
        texts = (text for peer in self.peer.values() for text in peer.allowed_ips) if self.routes else ()
        networks = [network_of(text) for text in texts if int(text.rpartition("/")[2]) <= _WIDE]
        for version in (4, 6):
            widest: list[Network] = []
            for network in sorted((each for each in networks if each.version == version), key=_place):
                if not widest or not network.subnet_of(widest[-1]):  # type: ignore[arg-type]  # of one version
                    widest.append(network)
            if sum(each.num_addresses for each in widest) == 2 ** (32 if version == 4 else 128):  # they do not overlap
                found += widest
        return frozenset(found)

    @property
    def takes_everything(self) -> bool:
        """Whether all traffic goes into it, so that the tunnel's own packets need a way around it."""
        return bool(self.everything)


def _place(network: Network) -> tuple[int, int]:
    """Sorts networks by where they begin, the widest of several first."""
    return int(network.network_address), network.prefixlen


class VpnFile(Strict):
    """The whole file."""

    interface: dict[str, Tunnel] = Field(default_factory=dict, max_length=64)

    @field_validator("interface")
    @classmethod
    def _names(cls, value: dict[str, Tunnel]) -> dict[str, Tunnel]:
        for name in value:
            interface_name(name)
        ports = Counter(tunnel.port for tunnel in value.values() if tunnel.port)
        if twice := [port for port, count in ports.items() if count > 1]:
            raise ValueError(f"two interfaces listen on port {twice[0]}")
        kept = {f"{name}.{title}" for name, tunnel in value.items() for title in tunnel.peer}
        if same := sorted(kept & value.keys()):  # tunnel.own_key, tunnel.peer_key
            raise ValueError(f"the keys of interface {same[0]} and of the peer would be one file")
        greedy = [name for name, tunnel in value.items() if tunnel.up and tunnel.takes_everything]
        if len(greedy) > 1:
            raise ValueError(
                f"{' and '.join(greedy[:2])} are up and take all traffic, which one can: 'mixctl vpn down {greedy[0]}'"
            )
        return value
