"""A policy as commands of libnftables' JSON (libnftables-json(5)): one document that replaces one table in one go.

Way of a packet for this device: blocked lists, known connections, what IP itself needs, then the chain of its zone:
denials, permissions, the zone's policy. `add`+`delete`+`add` of the table makes the first command valid whether the
table is there or not, and the kernel applies all of a document or nothing of it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable

from daemon.parts.firewall.expressions import (
    ACCEPT,
    DROP,
    REJECT,
    Json,
    address,
    addresses,
    any_of,
    ct,
    field,
    fits,
    goto,
    match,
    meta,
    ports,
    sources,
    state,
)
from daemon.parts.firewall.lists import Ranges
from daemon.parts.firewall.policy import Policy
from daemon.parts.firewall.values import Limit, Ports

FAMILY, TABLE = "inet", "mixos"
_IN: Json = {"family": FAMILY, "table": TABLE}
ROUTED = 1 << 28  # bit of the connection mark: this connection leaves with our address
LOG_PREFIX = "mixos drop: "
SOURCES = 65535  # sources that one limit remembers at the most

# RFC 4890 section 4.4: neighbour discovery (only from the link: RFC 4861 wants hop limit 255), multicast listeners.
_NEIGHBOURS = ["nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert"]
_LISTENERS = ["mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report"]
_ERRORS4 = ["destination-unreachable", "time-exceeded", "parameter-problem"]  # path MTU discovery: RFC 1191
_ERRORS6 = ["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"]


def document(policy: Policy) -> bytes:
    """What `nft -j -f -` takes to put the policy into force."""
    table = {"family": FAMILY, "name": TABLE}
    head = [{"add": {"table": table}}, {"delete": {"table": table}}, {"add": {"table": table}}]
    builder = _Builder(policy)
    body = builder.build()
    return json.dumps({"nftables": [*head, *builder.sets, *body]}, separators=(",", ":")).encode()


def clearing() -> bytes:
    """What takes the table away: everything is let through."""
    table = {"family": FAMILY, "name": TABLE}
    return json.dumps({"nftables": [{"add": {"table": table}}, {"delete": {"table": table}}]}).encode()


def list_sets(policy: Policy) -> list[str]:
    """The names of the kernel's sets that hold the lists."""
    return [f"list-{name}-v{family}" for name in policy.config.lists for family in (4, 6)]


class _Builder:
    """Builds the commands of one table. `sets` is filled on the way: limits bring theirs along."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.config = policy.config
        self.sets: list[Json] = []
        self.out: list[Json] = []
        self.numbers = itertools.count(1)

    def build(self) -> list[Json]:
        for name, ranges in self.policy.lists.items():
            self._list(name, ranges)
        self._base("input", "filter", "input", 0, "drop")
        self._base("forward", "filter", "forward", 0, "drop")
        self._base("dnat", "nat", "prerouting", -100, "accept")
        self._base("snat", "nat", "postrouting", 100, "accept")
        self._chain("refuse")
        for zone in self.config.zones:
            self._chain(f"in-{zone}")
            if self._routes_from(zone):
                self._chain(f"from-{zone}")
            if self._forwards_of(zone):
                self._chain(f"to-{zone}")
        self._input()
        self._forward()
        self._nat()
        self._refuse()
        for zone in self.config.zones:
            self._zone(zone)
        return self.out

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _base(self, name: str, kind: str, hook: str, priority: int, policy: str) -> None:
        chain = {**_IN, "name": name, "type": kind, "hook": hook, "prio": priority, "policy": policy}
        self.out.append({"add": {"chain": chain}})

    def _chain(self, name: str) -> None:
        self.out.append({"add": {"chain": {**_IN, "name": name}}})

    def _rule(self, chain: str, *expressions: Json, why: str = "") -> None:
        rule = {**_IN, "chain": chain, "expr": list(expressions), **({"comment": why} if why else {})}
        self.out.append({"add": {"rule": rule}})

    def _set(self, name: str, kind: str, **more: object) -> None:
        self.sets.append({"add": {"set": {**_IN, "name": name, "type": kind, **more}}})

    def _list(self, name: str, ranges: Ranges) -> None:
        for family, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
            elements = [address(text) for text in ranges.texts(family)]
            more = {"elem": elements} if elements else {}
            self._set(f"list-{name}-v{family}", kind, flags=["interval"], **more)

    def _blocks(self, chain: str) -> None:
        for name in self.policy.blocked():
            for family, protocol in ((4, "ip"), (6, "ip6")):
                blocked = match(field(protocol, "saddr"), f"@list-{name}-v{family}")
                self._rule(chain, blocked, *DROP, why=f"lists.{name}")

    def _dispatch(self, chain: str, incoming: bool, verdict: Callable[[str], list[Json]], default: list[Json]) -> None:
        """Send each zone's packets to its verdict: by source network first, then interface, then wildcard, then rest.

        A zone without an own verdict (an empty list) takes `default`, so that it still shadows what comes later.
        """
        key, side = ("iifname", "saddr") if incoming else ("oifname", "daddr")
        zones = self.config.zones
        for name, zone in zones.items():
            for alternative in addresses(zone.sources, side) if zone.sources else ():
                self._rule(chain, *alternative, *(verdict(name) or default))
        for wild in (False, True):
            for name, zone in zones.items():
                names = [interface for interface in zone.interfaces if interface.endswith("*") == wild]
                for group in [[one] for one in names] if wild else [names] if names else []:
                    self._rule(chain, match(meta(key), any_of(group)), *(verdict(name) or default))
        self._rule(chain, *(verdict(self.config.default_zone) or default))

    # -- input -------------------------------------------------------------------------------------------------------

    def _input(self) -> None:
        add = self._rule
        self._blocks("input")
        add("input", state("established", "related"), *ACCEPT, why="established")
        add("input", match(meta("iifname"), "lo"), {"accept": None})
        hops = match(field("ip6", "hoplimit"), 255)
        add("input", match(field("icmpv6", "type"), {"set": _NEIGHBOURS}), hops, {"accept": None})
        local = match(field("ip6", "saddr"), {"prefix": {"addr": "fe80::", "len": 10}})
        add("input", match(field("icmpv6", "type"), {"set": _LISTENERS}), local, {"accept": None})
        add("input", state("invalid"), *DROP, why="invalid")
        add("input", match(field("icmp", "type"), {"set": _ERRORS4}), {"accept": None})
        add("input", match(field("icmpv6", "type"), {"set": _ERRORS6}), {"accept": None})
        add("input", match(field("ip", "protocol"), "igmp"), {"accept": None})
        dhcp4 = [match(field("udp", "sport"), 67), match(field("udp", "dport"), 68)]
        add("input", match(meta("nfproto"), "ipv4"), *dhcp4, {"accept": None}, why="dhcp")
        dhcp6 = [match(field("udp", "sport"), 547), match(field("udp", "dport"), 546)]  # RFC 8415: from the link
        add("input", local, *dhcp6, {"accept": None}, why="dhcp")
        if self.config.ping:
            slow = {"limit": {"rate": 50, "per": "second", "burst": 50}}
            for protocol in ("icmp", "icmpv6"):
                add("input", match(field(protocol, "type"), "echo-request"), slow, *ACCEPT, why="ping")
        self._dispatch("input", True, lambda zone: goto(f"in-{zone}"), goto("refuse"))

    def _zone(self, name: str) -> None:
        chain, zone = f"in-{name}", self.config.zones[name]
        for title, rule in self.policy.rules(name, deny=True):
            reject = self.config.reject or rule.action == "reject"
            last = REJECT if reject else {"drop": None}
            for where in sources(rule.sources):
                for what in ports(self.policy.ports(rule.service)):
                    self._rule(chain, *where, *what, {"counter": None}, last, why=f"rules.{title}")
        for title, rule in self.policy.rules(name, deny=False):
            limit = self.policy.limit(rule.service, rule.limit)
            for where in sources(rule.sources):
                self._allow(chain, where, self.policy.ports(rule.service), limit, f"rules.{title}")
        for service in zone.allow:
            self._allow(chain, [], self.policy.ports(service), self.policy.limit(service), f"zones.{name}: {service}")
        if zone.policy == "allow":
            self._rule(chain, *ACCEPT, why=f"zones.{name}")
        else:
            self._rule(chain, *goto("refuse"))

    def _allow(self, chain: str, where: list[Json], open_: Iterable[Ports], limit: Limit | None, why: str) -> None:
        for what in ports(open_):
            if limit:
                self._limit(chain, [*where, *what], limit, why)
            self._rule(chain, *where, *what, *ACCEPT, why=why)

    def _limit(self, chain: str, what: list[Json], limit: Limit, why: str) -> None:
        """Drop what a source does too often. IPv6 sources count by /64: one host has all addresses of such a network.

        When the set is full, a new source is not limited: better than shutting out whoever comes after an attacker.
        """
        rate = {"limit": {"rate": limit.rate, "per": limit.per, "burst": limit.burst, "inv": True}}
        index = next(self.numbers)
        by_net = {"&": [field("ip6", "saddr"), "ffff:ffff:ffff:ffff::"]}
        for version, kind, key in (("4", "ipv4_addr", field("ip", "saddr")), ("6", "ipv6_addr", by_net)):
            if not fits(what, version):
                continue
            name = f"limit-{index}-v{version}"
            # nft adds the flag "dynamic" itself when a rule updates a set; the JSON of version 1.0 has no word for it.
            self._set(name, kind, size=SOURCES, flags=["timeout"], timeout=limit.seconds)
            protocol = match(meta("nfproto"), f"ipv{version}")
            update = {"set": {"op": "update", "elem": key, "set": f"@{name}", "stmt": [rate]}}
            self._rule(chain, protocol, *what, update, *DROP, why=f"{why} limit")

    def _refuse(self) -> None:
        if self.config.log:
            slow = {"limit": {"rate": 10, "per": "minute", "burst": 10}}
            self._rule("refuse", slow, {"log": {"prefix": LOG_PREFIX}})
        self._rule("refuse", {"counter": None}, REJECT if self.config.reject else {"drop": None}, why="denied")

    # -- what passes through -----------------------------------------------------------------------------------------

    def _routes_from(self, zone: str) -> dict[str, bool]:
        """Where connections from a zone may go: zone → whether they are masqueraded."""
        return {nat.to: nat.masquerade for nat in self.config.nat.values() if nat.source == zone}

    def _forwards_of(self, zone: str) -> list[str]:
        return [name for name, forward in self.config.forwards.items() if forward.zone == zone]

    def _forward(self) -> None:
        self._blocks("forward")
        self._rule("forward", state("established", "related"), *ACCEPT, why="established")
        self._rule("forward", state("invalid"), *DROP, why="invalid")
        self._rule("forward", match(ct("status"), "dnat", "in"), *ACCEPT, why="forwarded")
        routed = {zone: goto(f"from-{zone}") for zone in self.config.zones if self._routes_from(zone)}
        self._dispatch("forward", True, lambda zone: routed.get(zone, []), goto("refuse"))
        mark = {"mangle": {"key": ct("mark"), "value": {"|": [ct("mark"), ROUTED]}}}
        for zone in routed:
            to = self._routes_from(zone)

            def verdict(name: str, to: dict[str, bool] = to) -> list[Json]:
                if name not in to:
                    return []
                return [mark, *ACCEPT] if to[name] else ACCEPT

            self._dispatch(f"from-{zone}", False, verdict, goto("refuse"))

    def _nat(self) -> None:
        marked = match({"&": [ct("mark"), ROUTED]}, ROUTED)
        self._rule("snat", marked, {"counter": None}, {"masquerade": None}, why="masquerade")
        if not self.config.forwards:
            return
        # Only what is for this device itself: what it routes for others keeps its way.
        foreign = match({"fib": {"result": "type", "flags": ["daddr"]}}, "local", "!=")
        self._rule("dnat", foreign, {"accept": None})
        targets = {zone: goto(f"to-{zone}") for zone in self.config.zones if self._forwards_of(zone)}
        self._dispatch("dnat", True, lambda zone: targets.get(zone, []), [{"accept": None}])
        for zone in self.config.zones:
            for title in self._forwards_of(zone):
                self._port_forward(f"to-{zone}", title)

    def _port_forward(self, chain: str, title: str) -> None:
        forward = self.config.forwards[title]
        version = "6" if ":" in forward.to else "4"
        target: Json = {"family": "ip6" if version == "6" else "ip", "addr": forward.to}
        if forward.to_port is not None:
            target["port"] = forward.to_port
        protocol = match(meta("nfproto"), f"ipv{version}")
        for where in sources(forward.sources):
            for what in ports(self.policy.ports(forward.port)) if fits(where, version) else ():
                self._rule(chain, protocol, *where, *what, {"counter": None}, {"dnat": target}, why=f"forwards.{title}")
