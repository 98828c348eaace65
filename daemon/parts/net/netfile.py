"""`/etc/mixos/network.toml`: what the interfaces shall be like. The model, and what of it makes no sense together.

    dns = ["192.0.2.53"]                     # used instead of what leases say
    [interface.eth0]
    mode = "static"                          # "dhcp" (default), "static", "none" (up, without IPv4)
    addresses = ["192.0.2.10/24", "2001:db8::10/64"]
    gateways = ["192.0.2.1"]                 # at most one of each family
    [interface.lan]
    bridge = { ports = ["eth1", "eth2"] }
    [interface.office]
    vlan = { parent = "lan", id = 20 }
    [[interface.office.routes]]
    to = "10.0.0.0/8"
    via = "192.0.2.254"

An interface that the file does not name is left to the scripts of early boot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from common import addresses
from common.netvalues import (
    HostAddress,
    HostName,
    InterfaceAddress,
    InterfaceName,
    NetworkText,
    interface_name,
    resolver_fits,
)
from common.tomlfile import Strict
from daemon.linux.rtnl import IPV6_METRIC

MAX_INTERFACES = 256
Metric = Annotated[int, Field(ge=0, lt=2**32, strict=True)]


class RouteEntry(Strict):
    """A route besides the gateways."""

    to: NetworkText
    via: HostAddress | Literal[""] = ""
    metric: Metric = 0

    @model_validator(mode="after")
    def _same_family(self) -> RouteEntry:
        if self.via and (":" in self.via) != (":" in self.to):
            raise ValueError(f"{self.via} cannot lead to {self.to}: one is IPv4, the other IPv6")
        return self


class Vlan(Strict):
    """IEEE 802.1Q on top of another interface."""

    parent: InterfaceName
    id: Annotated[int, Field(ge=1, le=4094, strict=True)]


class Bridge(Strict):
    """A software switch; its ports have no addresses of their own."""

    ports: tuple[InterfaceName, ...] = ()
    stp: bool = False


class Interface(Strict):
    """One interface. ipv6: "auto" (router advertisements), "static" (only `addresses`), "off"."""

    mode: Literal["dhcp", "static", "none"] = "dhcp"
    addresses: Annotated[tuple[InterfaceAddress, ...], Field(max_length=64)] = ()
    gateways: tuple[HostAddress, ...] = ()
    metric: Metric = 0
    dns: Annotated[tuple[HostAddress, ...], Field(max_length=8)] = ()
    search: Annotated[tuple[HostName, ...], Field(max_length=8)] = ()
    mtu: Annotated[int, Field(ge=68, le=65535, strict=True)] | None = None
    ipv6: Literal["auto", "static", "off"] = "auto"
    vlan: Vlan | None = None
    bridge: Bridge | None = None
    routes: Annotated[tuple[RouteEntry, ...], Field(max_length=1024)] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Interface:
        if self.vlan and self.bridge:
            raise ValueError("an interface is a VLAN or a bridge, not both")
        four = [address for address in self.addresses if ":" not in address]
        if self.mode == "static" and not self.addresses:
            raise ValueError('mode = "static" needs addresses = ["192.0.2.10/24"]')
        if self.mode != "static" and four:
            raise ValueError(f'{four[0]} needs mode = "static"')
        if self.ipv6 == "off" and len(four) < len(self.addresses):
            raise ValueError('an IPv6 address needs ipv6 = "auto" or "static"')
        if self.mtu is not None and self.mtu < 1280 and self.ipv6 != "off":
            raise ValueError('IPv6 needs an mtu of 1280 (RFC 8200); or say ipv6 = "off"')
        if self.metric and self.mode != "dhcp" and not self.gateways:
            raise ValueError("metric is that of gateways and of leases: there is neither")
        _check_gateways(self)
        return self

    def hops_alone(self) -> list[str]:
        """Gateways in no network of the interface: on its link by themselves, as beside an address with /32 or /128."""
        on_link = [addresses.interface(address).network for address in self.addresses]
        on_link += [addresses.network(route.to) for route in self.routes if not route.via]
        hops = ((hop, addresses.address(hop)) for hop in self.gateways)
        return [text for text, hop in hops if not hop.is_link_local and not any(hop in net for net in on_link)]


def _check_gateways(interface: Interface) -> None:
    """A gateway is in a network of the interface, and there is one of each family. Raises ValueError."""
    if any(count > 1 for count in Counter(":" in hop for hop in interface.gateways).values()):
        raise ValueError("one gateway for IPv4 and one for IPv6; others are routes")
    networks = [addresses.interface(address) for address in interface.addresses]
    for hop in map(addresses.address, interface.gateways):
        if hop.version == 4 and interface.mode == "dhcp":
            raise ValueError(f'the gateway {hop} needs mode = "static": a lease brings its own')
        if any(hop == own.ip for own in networks):
            raise ValueError(f"the gateway {hop} is the interface's own address")
    alone = {own.version for own in networks if own.network.num_addresses == 1}
    for text in interface.hops_alone():
        if (6 if ":" in text else 4) not in alone:
            own = f"{text}/{128 if ':' in text else 32}"
            hint = f"on its link it is by a route to {own}"
            raise ValueError(f"the gateway {text} is in no network of this interface; {hint}")


class NetworkFile(Strict):
    """The whole file."""

    dns: Annotated[tuple[HostAddress, ...], Field(max_length=8)] = ()
    search: Annotated[tuple[HostName, ...], Field(max_length=8)] = ()
    interface: dict[str, Interface] = Field(default_factory=dict, max_length=MAX_INTERFACES)

    @field_validator("interface")
    @classmethod
    def _names(cls, value: dict[str, Interface]) -> dict[str, Interface]:
        for name in value:
            interface_name(name)
        return value

    @model_validator(mode="after")
    def _names_are_used(self) -> NetworkFile:
        resolver_fits(*self.names())
        return self

    @model_validator(mode="after")
    def _is_a_tree(self) -> NetworkFile:
        ports = self.ports()
        for name, bridge in ports.items():
            entry = self.interface.get(name)
            if entry and (entry.mode != "none" or entry.addresses):
                raise ValueError(f'interface.{name} is a port of {bridge}: say mode = "none", without addresses')
        for name in self.interface:
            seen = [name]
            while below := self.below(seen[-1], ports):
                if below in seen:
                    raise ValueError(f"these lie on top of each other: {' → '.join([*seen, below])}")
                seen.append(below)
        used = Counter((entry.vlan.parent, entry.vlan.id) for entry in self.interface.values() if entry.vlan)
        for (parent, ident), count in used.items():
            if count > 1:
                raise ValueError(f"VLAN {ident} on {parent} is there twice")
        for (to, metric), count in Counter(self._destinations()).items():
            if count > 1:
                text = f"there are two ways to {to} with the metric {metric}: which one is used?"
                raise ValueError(f"{text} The kernel keeps one; give the other another metric")
        addresses = Counter(address for entry in self.interface.values() for address in entry.addresses)
        for address, count in addresses.items():
            if count > 1:
                raise ValueError(f"the address {address} is there twice")
        return self

    def _destinations(self) -> Iterator[tuple[str, int]]:
        """Network and metric of each route, those of gateways and of leases with a metric of the file included."""
        for entry in self.interface.values():
            found = [("::/0" if ":" in hop else "0.0.0.0/0", entry.metric) for hop in entry.gateways]
            found += [(route.to, route.metric) for route in entry.routes]
            found += [("0.0.0.0/0", entry.metric)] if entry.mode == "dhcp" and entry.metric else []
            yield from ((to, metric or (IPV6_METRIC if ":" in to else 0)) for to, metric in found)

    def names(self) -> tuple[list[str], list[str]]:
        """Name servers and search domains: those of the file, else those of all its interfaces together."""
        entries = self.interface.values()
        servers = self.dns or [server for entry in entries for server in entry.dns]
        search = self.search or [name for entry in entries for name in entry.search]
        return list(dict.fromkeys(servers)), list(dict.fromkeys(search))

    def ports(self) -> dict[str, str]:
        """Port → its bridge. Raises ValueError when a port has two."""
        found: dict[str, str] = {}
        for name, entry in self.interface.items():
            for port in entry.bridge.ports if entry.bridge else ():
                if port in found:
                    raise ValueError(f"{port} is a port of {found[port]} and of {name}")
                found[port] = name
        return found

    def below(self, name: str, ports: dict[str, str]) -> str | None:
        """What must not lie on top of `name`: the parent of a VLAN, the bridge of a port."""
        entry = self.interface.get(name)
        return entry.vlan.parent if entry and entry.vlan else ports.get(name)
