"""What a policy does with a packet for this device, told without a kernel: which zone it falls into, what decides.

The same order as the rules that `rules` writes; a test sends real packets and compares. `mixctl firewall test` asks
this, and so does every change, about the operator's own connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from daemon.parts.firewall.lists import merge, number
from daemon.parts.firewall.policy import Policy


class Packet(NamedTuple):
    """The first packet of a connection. interface: None when it is not known."""

    source: str
    protocol: str
    port: int
    interface: str | None = None


class Decision(NamedTuple):
    """action: accept, deny (silently), reject or forward. by: the entry of the file that decides. limit: as text."""

    action: str
    by: str
    zone: str | None = None
    limit: str | None = None
    to: str | None = None


def zone_of(policy: Policy, packet: Packet) -> str:
    """The zone a packet comes from: by source, by interface, by wildcard, else the default one."""
    zones = policy.config.zones
    for name, zone in zones.items():
        if zone.sources and _within(packet.source, zone.sources, policy):
            return name
    for wild in (False, True):
        for name, zone in zones.items():
            patterns = [pattern for pattern in zone.interfaces if pattern.endswith("*") == wild]
            if packet.interface is not None and any(fnmatchcase(packet.interface, pattern) for pattern in patterns):
                return name
    return policy.config.default_zone


def decide(policy: Policy, packet: Packet) -> Decision:
    """The decision about a packet that opens a connection to this device."""
    for name in policy.blocked():
        if policy.lists[name].holds(*number(packet.source)):
            return Decision("deny", f"lists.{name}")
    if packet.interface == "lo":
        return Decision("accept", "loopback")
    zone = zone_of(policy, packet)
    forwarded = _forwarded(policy, packet, zone)
    if forwarded:
        return forwarded
    for name, rule in policy.rules(zone, deny=True):
        if _hits(policy, packet, rule.service, rule.sources):
            action = "reject" if policy.config.reject or rule.action == "reject" else "deny"
            return Decision(action, f"rules.{name}", zone)
    for name, rule in policy.rules(zone, deny=False):
        if _hits(policy, packet, rule.service, rule.sources):
            return Decision("accept", f"rules.{name}", zone, _limit(policy, rule.service, rule.limit))
    for service in policy.config.zones[zone].allow:
        if _hits(policy, packet, service, ()):
            return Decision("accept", f"zones.{zone}: {service}", zone, _limit(policy, service, None))
    if policy.config.zones[zone].policy == "allow":
        return Decision("accept", f"zones.{zone}", zone)
    return Decision("reject" if policy.config.reject else "deny", "default", zone)


def admits(policy: Policy, packet: Packet) -> bool:
    """Whether a packet is accepted; with an unknown interface: whatever interface it comes in by."""
    if packet.interface is not None:
        return decide(policy, packet).action == "accept"
    # One name per zone stands for all interfaces; the empty one is in no zone.
    names = {interface.replace("*", "0") for zone in policy.config.zones.values() for interface in zone.interfaces}
    return all(decide(policy, packet._replace(interface=name)).action == "accept" for name in {"", *names})


def _forwarded(policy: Policy, packet: Packet, zone: str) -> Decision | None:
    for name, forward in policy.config.forwards.items():
        same_family = (":" in forward.to) == (":" in packet.source)
        if forward.zone == zone and same_family and _hits(policy, packet, forward.port, forward.sources):
            port = forward.to_port or packet.port
            to = f"[{forward.to}]:{port}" if ":" in forward.to else f"{forward.to}:{port}"
            return Decision("forward", f"forwards.{name}", zone, to=to)
    return None


def _limit(policy: Policy, service: str, own: str | None) -> str | None:
    found = policy.limit(service, own)
    return f"{found.rate}/{found.per} burst {found.burst}" if found else None


def _hits(policy: Policy, packet: Packet, service: str, sources: Sequence[str]) -> bool:
    ports = policy.ports(service)
    there = any(one.protocol == packet.protocol and one.first <= packet.port <= one.last for one in ports)
    return there and (not sources or _within(packet.source, sources, policy))


def _within(address: str, sources: Sequence[str], policy: Policy) -> bool:
    family, value = number(address)
    networks = merge(name for name in sources if not name.startswith("@"))
    named = [policy.lists[name[1:]] for name in sources if name.startswith("@")]
    return any(ranges.holds(family, value) for ranges in [networks, *named])
