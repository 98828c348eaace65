"""Parameters of the firewall's methods, as clients send them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from common.tomlfile import Strict
from daemon.core.change.applier import Wish
from daemon.core.transfer import Accepts, Content
from daemon.parts.firewall.lists import MAX_BYTES
from daemon.parts.firewall.values import Address, Interface, LimitText, Name, Network, PortRange, ServiceRef, Source

Flag = Annotated[bool, Field(strict=True)]
Some = Annotated[tuple[Source, ...], Field(max_length=64)]
Dotted = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z][a-z0-9.-]{0,63}$")]

_SERVICE = "its name, such as ssh, or ports such as tcp/8080 and udp/5000-5010"
_ZONE = "the zone where it comes from, such as wan; none: anywhere"
_FROM = "networks, and lists as @name; none: anybody"
_NAME = "of the entry, in small letters, digits and -; none: one is made up"


class Apply(Wish):
    """Nothing but how."""


class Reset(Wish):
    """Nothing but how."""


class Allow(Wish):
    """Permit a service, by zone, source and rate."""

    service: ServiceRef = Field(description=_SERVICE)
    zone: Name | None = Field(default=None, description=_ZONE)
    sources: Some = Field(default=(), alias="from", description=_FROM)
    limit: LimitText | None = Field(default=None, description="new connections of each source, such as 10/minute")
    name: Name | None = Field(default=None, description=_NAME)


class Deny(Wish):
    """Refuse a service, by zone and source."""

    service: ServiceRef = Field(description=_SERVICE)
    zone: Name | None = Field(default=None, description=_ZONE)
    sources: Some = Field(default=(), alias="from", description=_FROM)
    reject: Flag = Field(default=False, description="with an answer")
    name: Name | None = Field(default=None, description=_NAME)


class Remove(Wish):
    """Remove a rule, forward, nat entry or list."""

    name: Dotted = Field(description="of the entry; rules.web where web alone is ambiguous")


class ForwardPort(Wish):
    """Send a port on to another host."""

    zone: Name = Field(description="the zone where it comes from, such as wan")
    port: PortRange = Field(description="what arrives here, such as tcp/80")
    to: Address = Field(description="the other host")
    to_port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = Field(
        default=None, description="the port there; none: the same"
    )
    sources: Some = Field(default=(), alias="from", description=_FROM)
    name: Name | None = Field(default=None, description=_NAME)


class Translate(Wish):
    """Route from zone to zone."""

    source: Name = Field(alias="from", description="the zone of those who begin connections, such as lan")
    to: Name = Field(description="the zone of those who answer, such as wan")
    masquerade: Flag = Field(default=True, description="connections leave with this device's address")
    name: Name | None = Field(default=None, description=_NAME)


class EditZone(Wish):
    """Make or change a zone: lists are added to it, or taken from it with `take`."""

    name: Name = Field(description="of the zone, in small letters, digits and -")
    interfaces: Annotated[tuple[Interface, ...], Field(max_length=64)] = Field(
        default=(), description="whose packets belong to it; eth* for all whose names begin so"
    )
    sources: Annotated[tuple[Network, ...], Field(max_length=64)] = Field(
        default=(), description="networks whose packets belong to it"
    )
    allow: Annotated[tuple[ServiceRef, ...], Field(max_length=64)] = Field(
        default=(), description="services that are permitted"
    )
    policy: Literal["deny", "allow"] | None = Field(default=None, description="what becomes of everything else")
    take: Flag = Field(default=False, description="take these from the zone instead of adding them")
    default: Flag = Field(default=False, description="make it the zone of all packets that belong to no other")


class Block(Wish):
    """Add addresses to a list that is blocked, or take them off it."""

    addresses: Annotated[tuple[Annotated[str, StringConstraints(max_length=100)], ...], Field(max_length=2000)] = Field(
        default=(), description="addresses and networks"
    )
    content: Annotated[Content, Accepts(MAX_BYTES)] | None = Field(
        default=None, description="more of them, as in a list's file"
    )
    list: Name = Field(default="blocked", description="of the list, in small letters, digits and -")
    take: Flag = Field(default=False, description="take them off it")


class Probe(Strict):
    """A packet to ask about."""

    port: ServiceRef = Field(description=_SERVICE)
    source: Address | None = Field(default=None, alias="from", description="the address that it comes from")
    interface: Interface | None = Field(default=None, description="the interface that it comes in by")
