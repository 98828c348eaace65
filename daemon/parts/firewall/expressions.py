"""Expressions of nftables as libnftables' JSON has them (libnftables-json(5)): matches, alternatives, verdicts.

What several values of different kinds can meet (IPv4 and IPv6, TCP and UDP) is a sequence of alternatives: each a list
of expressions that goes into a rule of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from daemon.parts.firewall.lists import Ranges, merge
from daemon.parts.firewall.values import Ports

Json = dict[str, Any]

ACCEPT: list[Json] = [{"counter": None}, {"accept": None}]
DROP: list[Json] = [{"counter": None}, {"drop": None}]
REJECT: Json = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}


def match(left: Json, right: object, op: str = "==") -> Json:
    """A comparison."""
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str) -> Json:
    """A fact about the packet that is not in it."""
    return {"meta": {"key": key}}


def ct(key: str) -> Json:
    """A fact of connection tracking."""
    return {"ct": {"key": key}}


def field(protocol: str, name: str) -> Json:
    """A field of a header."""
    return {"payload": {"protocol": protocol, "field": name}}


def any_of(values: Sequence[object]) -> object:
    """The right side of a match with any of the values."""
    return values[0] if len(values) == 1 else {"set": list(values)}


def state(*states: str) -> Json:
    """Whether the connection is in one of the states."""
    return match(ct("state"), list(states), "in")


def goto(chain: str) -> list[Json]:
    """Go on in another chain, for good."""
    return [{"goto": {"target": chain}}]


def address(text: str) -> object:
    """An address, prefix or range as JSON has it."""
    if "-" in text:
        return {"range": text.split("-")}
    host, slash, length = text.partition("/")
    return {"prefix": {"addr": host, "len": int(length)}} if slash else host


def addresses(networks: Sequence[str], side: str) -> Iterator[list[Json]]:
    """Alternatives that together match any of the networks: at most one per family. Merged, since sets of nftables
    must not overlap."""
    ranges: Ranges = merge(networks)
    for family, protocol in ((4, "ip"), (6, "ip6")):
        values = [address(text) for text in ranges.texts(family)]
        if values:
            yield [match(field(protocol, side), any_of(values))]


def sources(names: Sequence[str]) -> Iterator[list[Json]]:
    """Alternatives that match a rule's `from`: networks and lists; nothing said matches everything."""
    if not names:
        yield []
    networks = [name for name in names if not name.startswith("@")]
    yield from addresses(networks, "saddr")
    for name in names:
        if name.startswith("@"):
            yield [match(field("ip", "saddr"), f"@list-{name[1:]}-v4")]
            yield [match(field("ip6", "saddr"), f"@list-{name[1:]}-v6")]


def fits(alternative: list[Json], version: str) -> bool:
    """Whether an alternative can match packets of an IP version ("4", "6"): nft refuses rules that contradict it."""
    other = {"4": "ip6", "6": "ip"}[version]
    return not any(one["match"]["left"].get("payload", {}).get("protocol") == other for one in alternative)


def ports(wanted: Iterable[Ports]) -> Iterator[list[Json]]:
    """Alternatives that match the ports: one per protocol."""
    spans = list(wanted)
    for protocol in ("tcp", "udp"):
        merged = _merged_ports([(one.first, one.last) for one in spans if one.protocol == protocol])
        values = [first if first == last else {"range": [first, last]} for first, last in merged]
        if values:
            yield [match(field(protocol, "dport"), any_of(values))]


def _merged_ports(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result
