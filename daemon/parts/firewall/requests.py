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


class Apply(Wish):
    """Nothing but how."""


class Reset(Wish):
    """Nothing but how."""


class Allow(Wish):
    """Permit a service, by zone, source and rate."""

    service: ServiceRef
    zone: Name | None = None
    sources: Some = Field(default=(), alias="from")
    limit: LimitText | None = None
    name: Name | None = None


class Deny(Wish):
    """Refuse a service, by zone and source."""

    service: ServiceRef
    zone: Name | None = None
    sources: Some = Field(default=(), alias="from")
    reject: Flag = False
    name: Name | None = None


class Remove(Wish):
    """Remove a rule, forward, nat entry or list; `rules.web` where the name alone is ambiguous."""

    name: Dotted


class ForwardPort(Wish):
    """Send a port on to another host."""

    zone: Name
    port: PortRange
    to: Address
    to_port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None
    sources: Some = Field(default=(), alias="from")
    name: Name | None = None


class Translate(Wish):
    """Route from zone to zone."""

    source: Name = Field(alias="from")
    to: Name
    masquerade: Flag = True
    name: Name | None = None


class EditZone(Wish):
    """Make or change a zone: lists are added to it, or taken from it with `take`."""

    name: Name
    interfaces: Annotated[tuple[Interface, ...], Field(max_length=64)] = ()
    sources: Annotated[tuple[Network, ...], Field(max_length=64)] = ()
    allow: Annotated[tuple[ServiceRef, ...], Field(max_length=64)] = ()
    policy: Literal["deny", "allow"] | None = None
    take: Flag = False
    default: Flag = False


class Block(Wish):
    """Add addresses to a list that is blocked, or take them off it. content: more of them, as a list's file."""

    addresses: Annotated[tuple[Annotated[str, StringConstraints(max_length=100)], ...], Field(max_length=2000)] = ()
    content: Annotated[Content, Accepts(MAX_BYTES)] | None = None
    list: Name = "blocked"
    take: Flag = False


class Probe(Strict):
    """A packet to ask about."""

    port: ServiceRef
    source: Address | None = Field(default=None, alias="from")
    interface: Interface | None = None
