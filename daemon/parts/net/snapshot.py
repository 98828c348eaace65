"""What interfaces were like before a change, whoever had made them so, and making them so again.

Addresses and routes are kept as the kernel's own messages, with all that they say (lifetimes, metrics, scopes), and are
given back as such, as `ip route save` and `restore` of iproute2 do. A snapshot is JSON: it lies in the journal.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from common.errors import MixosError
from daemon.linux.rtnl import PROTOCOL, Address, Route, Rtnl, decode_address, decode_route
from daemon.parts.net.plan import Seen, below, look

_LINK_LOCAL = 253  # scope of addresses that the kernel makes by itself


def take(rtnl: Rtnl, names: Iterable[str], seen: Seen) -> dict[str, Any]:
    """Interface → {mtu, above, up, stp, master, sysctl, addresses, routes}; those that are not there are left out.
    above: VLAN → MTU of those that lie on it, which the kernel lowers with it."""
    by_index = {link.index: link.name for link in seen.links.values()}
    routes = rtnl.raw_routes()
    lower = {link.name: below(link.name, seen) for link in seen.links.values() if link.kind == "vlan"}
    vlans = sorted(lower, key=lambda vlan: len(lower[vlan]))  # what lies on others comes after them
    return {
        name: {
            "mtu": seen.links[name].mtu,
            "above": {vlan: seen.links[vlan].mtu for vlan in vlans if name in lower[vlan] - {vlan}},
            "up": seen.links[name].up,
            "stp": seen.links[name].stp,
            "master": by_index.get(seen.links[name].master, ""),
            "sysctl": {path: value for path, value in seen.sysctl.items() if path.split("/")[2] == name},
            "addresses": [payload.hex() for payload in rtnl.raw_addresses(seen.links[name].index)],
            "routes": [payload.hex() for payload in routes.get(seen.links[name].index, ())],
        }
        for name in sorted(set(names) & seen.links.keys())
    }


def take_routes(rtnl: Rtnl, routes: Sequence[Route]) -> list[tuple[str, str]]:
    """Single routes, the kernel's own from addresses too, which it makes with an address and never again: (interface,
    message) of each."""
    names = {rtnl.index(name): name for name in {route.interface for route in routes}}
    there = rtnl.raw_routes(connected=True) if names else {}
    return [
        (name, payload.hex())
        for index, name in names.items()
        for payload in there.get(index, ())
        if decode_route(payload, names) in routes
    ]


def restore(snapshot: Mapping[str, Any], rtnl: Rtnl, proc: Path, single: Sequence[tuple[str, str]] = ()) -> None:
    """Make interfaces that are there what they were. single: what `take_routes` gave. Everything is tried; then raises
    the first NetlinkError, OSError, or MixosError `net-snapshot` for a snapshot that is damaged."""
    problems = []
    for work in _work(snapshot, rtnl, proc, single):
        try:
            work()
        except (MixosError, OSError) as error:
            problems.append(error)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            problems.append(MixosError(f"what was noted of the network is damaged: {error}", reason="net-snapshot"))
    if problems:
        raise problems[0]


def _work(
    snapshot: Mapping[str, Any], rtnl: Rtnl, proc: Path, single: Sequence[tuple[str, str]]
) -> Iterator[Callable[[], None]]:
    """The steps: links of all interfaces first, then addresses, then routes, those without a gateway before others."""
    seen = look(rtnl, proc)
    links = seen.links
    upwards = sorted(snapshot.keys() & links.keys(), key=lambda name: (len(below(name, seen)), name))
    there = {name: snapshot[name] for name in upwards}
    yield from (partial(_link, name, was, rtnl, proc) for name, was in there.items())
    yield from (partial(_addresses, name, was, rtnl) for name, was in there.items())
    routes_now = cache(rtnl.raw_routes)  # asked once, for all
    yield from (partial(_take_routes, name, was, rtnl, routes_now) for name, was in there.items())
    routes = [(name, bytes.fromhex(text)) for name, was in there.items() for text in was["routes"]]
    routes += [(name, bytes.fromhex(text)) for name, text in single if name in links]
    routes.sort(key=lambda one: one[1][6], reverse=True)  # rtm_scope: link (253) before universe (0)
    yield from (partial(rtnl.replay_route, name, payload) for name, payload in routes)


def _link(name: str, was: Mapping[str, Any], rtnl: Rtnl, proc: Path) -> None:
    now = rtnl.links()
    link = now[name]
    master = next((other.name for other in now.values() if link.master and other.index == link.master), "")
    if master != was["master"] and (not was["master"] or was["master"] in now):
        rtnl.change(name, master=str(was["master"]))
    for one, mtu in {name: was["mtu"], **was.get("above", {})}.items():
        if one in now and now[one].mtu != mtu:
            rtnl.change(one, mtu=int(mtu))
    for path, value in was["sysctl"].items():
        place = proc / path
        if path.split("/")[2] == name and ".." not in path and place.exists() and place.read_text().strip() != value:
            place.write_text(str(value), encoding="ascii")
    if link.kind == "bridge" and link.stp != was.get("stp", link.stp):
        rtnl.change(name, stp=bool(was["stp"]))
    if link.up != was["up"]:
        rtnl.change(name, up=bool(was["up"]))


def _addresses(name: str, was: Mapping[str, Any], rtnl: Rtnl) -> None:
    payloads = [bytes.fromhex(text) for text in was["addresses"]]
    kept = {decode_address(payload).address for payload in payloads}
    index = rtnl.index(name)
    here = [one for one in rtnl.addresses() if one.index == index]
    there = {one.address for one in here}
    again: list[bytes] = []
    for payload in payloads:
        found = decode_address(payload)
        # The first address of a network is its primary one, so those that stood behind a missing one come again.
        behind = _network(found) in {_network(decode_address(other)) for other in again}
        if found.scope != _LINK_LOCAL and (found.address not in there or behind):
            again.append(payload)
    for payload in again:
        rtnl.remove_address(name, decode_address(payload).address)
    for payload in again:
        rtnl.replay_address(name, payload)
    for one in here:
        if one.permanent and one.scope != _LINK_LOCAL and one.address not in kept:
            rtnl.remove_address(name, one.address)


def _network(address: Address) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_interface(address.address).network


def _take_routes(
    name: str, was: Mapping[str, Any], rtnl: Rtnl, routes: Callable[[], Mapping[int, Sequence[bytes]]]
) -> None:
    """Routes of ours that were not there go."""
    kept = {bytes.fromhex(text) for text in was["routes"]}
    for payload in routes().get(rtnl.index(name), ()):
        if payload[5] == PROTOCOL and payload not in kept:  # rtm_protocol
            rtnl.remove_raw_route(payload)
