"""firewall.toml as a model. What a name refers to is checked in `policy`, where all names are known.

default-zone = "lan"
[zones.lan]
allow = ["ssh", "mdns"]
[zones.vpn]
interfaces = ["wg*"]
allow = ["ssh", "tcp/8080"]
[rules.office]
service = "ssh"
zone = "wan"
from = ["198.51.100.0/24"]
[forwards.web]
zone = "wan"
port = "tcp/8080"
to = "192.0.2.10"
to-port = 80
[nat.home]
from = "lan"
to = "wan"
[lists.spam]
file = "spam.txt"
[units.web]
outgoing = ["dns", "https"]
[services.app]
ports = ["tcp/8443"]
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.tomlfile import Strict
from daemon.parts.firewall.values import (
    Address,
    FileName,
    Interface,
    LimitText,
    Name,
    Network,
    PortRange,
    ServiceRef,
    Source,
    UnitName,
)

Sources = Annotated[tuple[Source, ...], Field(max_length=256)]
Networks = Annotated[tuple[Network, ...], Field(max_length=256)]
Services = Annotated[tuple[ServiceRef, ...], Field(max_length=128)]


class Service(Strict):
    """What a service's name stands for. limit: new connections per source, where a rule says nothing else."""

    ports: Annotated[tuple[PortRange, ...], Field(min_length=1, max_length=32)]
    limit: LimitText | None = None
    summary: str = ""


class Zone(Strict):
    """Where packets come from: by interface, or by source network (looked at first, since it is the narrower)."""

    interfaces: Annotated[tuple[Interface, ...], Field(max_length=64)] = ()
    sources: Networks = ()
    allow: Services = ()
    policy: Literal["deny", "allow"] = "deny"


class Rule(Strict):
    """One exception. Denials of a zone are looked at before its permissions, so their order never matters."""

    service: ServiceRef
    action: Literal["allow", "deny", "reject"] = "allow"
    zone: Name | None = None
    sources: Sources = Field(default=(), alias="from")
    limit: LimitText | None = None


class Forward(Strict):
    """What arrives at `port` of this device from `zone` goes on to another host; to-port: there, default the same."""

    zone: Name
    port: PortRange
    to: Address
    to_port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None
    sources: Sources = Field(default=(), alias="from")


class Nat(Strict):
    """Connections from one zone into another are routed; masquerade: they leave with this device's address."""

    source: Name = Field(alias="from")
    to: Name
    masquerade: Annotated[bool, Field(strict=True)] = True


class AddressList(Strict):
    """Addresses by name: `block`ed everywhere, or only a source (`@name`) for rules. file: in /etc/mixos/lists."""

    addresses: Annotated[tuple[Network, ...], Field(max_length=1000)] = ()
    file: FileName | None = None
    block: Annotated[bool, Field(strict=True)] = True


class Unit(Strict):
    """What the processes of a unit may open connections to; answers always pass. `any` stands for every port."""

    outgoing: Services = ()
    to: Networks = ()
    loopback: Annotated[bool, Field(strict=True)] = True


class Config(Strict):
    """The whole file. log: denied packets go to the kernel log, at most ten a minute; reject: deny with an answer."""

    default_zone: Name = "lan"
    ping: Annotated[bool, Field(strict=True)] = True
    log: Annotated[bool, Field(strict=True)] = True
    reject: Annotated[bool, Field(strict=True)] = False
    zones: dict[Name, Zone] = Field(default_factory=dict, max_length=32)
    rules: dict[Name, Rule] = Field(default_factory=dict, max_length=500)
    forwards: dict[Name, Forward] = Field(default_factory=dict, max_length=200)
    nat: dict[Name, Nat] = Field(default_factory=dict, max_length=64)
    lists: dict[Name, AddressList] = Field(default_factory=dict, max_length=32)
    units: dict[UnitName, Unit] = Field(default_factory=dict, max_length=200)
    services: dict[Name, Service] = Field(default_factory=dict, max_length=200)
