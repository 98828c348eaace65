"""What must be done so that the interfaces become what network.toml says: a list of steps, computed without doing any.

The same file twice gives no step the second time. Links that the daemon makes carry an alias by which they are known as
its own, routes a protocol number; so nothing has to be remembered to take away what is no longer wanted. Addresses are
added before others go, so that a connection over an address that stays is never cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import RefusedError
from daemon.linux.rtnl import (
    BOOT,
    CONNECTED,
    IPV6_METRIC,
    LEASE,
    MAIN_TABLE,
    PROC,
    PROTOCOL,
    Address,
    Link,
    Route,
    Rtnl,
)
from daemon.parts.net.netfile import Interface, NetworkFile

ALIAS = "mixos:network.toml"
Step = tuple[str, ...]

# ipv6 → keys below /proc/sys/net/ipv6/conf/NAME (ip-sysctl): accept_ra 2 also listens while packets are forwarded
_IPV6 = {
    "auto": {"disable_ipv6": "0", "accept_ra": "2", "autoconf": "1"},
    "static": {"disable_ipv6": "0", "accept_ra": "0", "autoconf": "0"},
    "off": {"disable_ipv6": "1"},
}
_SYSCTL = [f"ipv6/conf/{{}}/{key}" for key in _IPV6["auto"]] + ["ipv4/conf/{}/promote_secondaries"]


@dataclass(frozen=True)
class Seen:
    """The kernel's side. sysctl: path below /proc/sys/net → value, of the interfaces that exist."""

    links: Mapping[str, Link] = field(default_factory=dict)
    addresses: Sequence[Address] = ()
    routes: Sequence[Route] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)


def look(rtnl: Rtnl, proc: Path = PROC) -> Seen:
    """Everything that a plan needs to know."""
    links = {name: _with_alias(link) for name, link in rtnl.links().items()}
    found = {}
    for name in links:
        for path in (pattern.format(name) for pattern in _SYSCTL):
            try:
                found[path] = (proc / path).read_text("ascii").strip()
            except OSError:
                continue  # no IPv6 on this host
    return Seen(links, rtnl.addresses(), rtnl.routes(), found)


def _with_alias(link: Link) -> Link:
    """One of ours that was cut off before it got its alias is ours all the same."""
    ours = link.made and not link.alias and link.kind in ("vlan", "bridge")
    return replace(link, alias=ALIAS) if ours else link


def plan(wanted: NetworkFile, before: NetworkFile, seen: Seen) -> list[Step]:
    """The steps from what is `seen` to what is `wanted`; `before` is what was in force, for what it leaves behind.

    Interfaces that are not there (yet) are left out. Raises RefusedError `net-conflict`.
    """
    _check_mtus(wanted, before, seen)
    return [
        *_unwanted(wanted, seen),
        *_released(wanted, before, seen),
        *_links(wanted, seen),
        *(step for name, entry in _upwards(wanted) for step in _interface(name, entry, wanted, before, seen)),
    ]


def _mtu(name: str, wanted: NetworkFile, before: NetworkFile, seen: Seen) -> int | None:
    """What it shall be; None: as it is. Where the file no longer says one: the usual one, of a VLAN at most that of
    what it lies on."""
    entry, was = managed(wanted).get(name), managed(before).get(name)
    if entry is None or entry.mtu is not None or was is None or was.mtu is None:
        return entry.mtu if entry else None
    parent = entry.vlan.parent if entry.vlan else ""
    link = seen.links.get(parent)
    return min(1500, _mtu(parent, wanted, before, seen) or (link.mtu if link else 1500))


def _check_mtus(wanted: NetworkFile, before: NetworkFile, seen: Seen) -> None:
    """A VLAN's MTU is at most that of what it lies on. Raises RefusedError `net-conflict`."""
    for name, entry in wanted.interface.items():
        parent = entry.vlan.parent if entry.vlan else ""
        link = seen.links.get(parent)
        most = _mtu(parent, wanted, before, seen) or (link.mtu if link else None)
        if parent and most and entry.mtu and entry.mtu > most:
            raise RefusedError(
                f"interface.{name}.mtu is {entry.mtu}, and {parent}, which it lies on, has {most}",
                reason="net-conflict",
                hint=f"mixctl net set {parent} mtu={entry.mtu}",
            )


def _upwards(wanted: NetworkFile) -> list[tuple[str, Interface]]:
    """What the file speaks of, VLANs behind what they lie on: their MTU is at most its."""

    def height(name: str) -> int:
        entry = wanted.interface.get(name)
        return 1 + height(entry.vlan.parent) if entry and entry.vlan else 0

    return sorted(managed(wanted).items(), key=lambda one: height(one[0]))


def managed(wanted: NetworkFile) -> dict[str, Interface]:
    """Every interface that the file speaks of: named ones, and ports of bridges that have no table of their own."""
    return {**{port: Interface(mode="none") for port in wanted.ports()}, **wanted.interface}


def missing(wanted: NetworkFile, seen: Seen) -> list[str]:
    """Interfaces that the file needs and that are not there."""
    there = set(seen.links) | {name for name, entry in wanted.interface.items() if entry.bridge}
    parents = {entry.vlan.parent for entry in wanted.interface.values() if entry.vlan}
    virtual = {name for name, entry in wanted.interface.items() if entry.vlan}
    return sorted(({*managed(wanted)} | parents) - there - virtual)


def _kind(entry: Interface) -> str:
    return "vlan" if entry.vlan else "bridge" if entry.bridge else ""


def _unwanted(wanted: NetworkFile, seen: Seen) -> Iterator[Step]:
    """Links of ours that are no longer in the file, or are there as something else."""
    for name, link in seen.links.items():
        entry = wanted.interface.get(name)
        if link.alias != ALIAS:
            if entry and _kind(entry) and link.kind != _kind(entry):
                raise RefusedError(
                    f"{name} is there already and is not a {_kind(entry)}",
                    reason="net-conflict",
                    hint="choose another name",
                )
        elif entry is None or not _same_link(entry, link, seen):
            yield ("delete-link", name)


def _same_link(entry: Interface, link: Link, seen: Seen) -> bool:
    if link.kind != _kind(entry):
        return False
    if entry.vlan is None:
        return True
    parent = seen.links.get(entry.vlan.parent)
    return parent is not None and (link.vlan, link.parent) == (entry.vlan.id, parent.index)


def _released(wanted: NetworkFile, before: NetworkFile, seen: Seen) -> Iterator[Step]:
    """Interfaces that the file does not name any more: what it had given them goes."""
    now = managed(wanted)
    for name, entry in managed(before).items():
        if name in now or name not in seen.links or _kind(entry):
            continue
        here = seen.links[name]
        masters = {link.index for link in seen.links.values() if link.alias == ALIAS}
        if here.master in masters:
            yield ("set-master", name, "")
        for route in seen.routes:
            if route.interface == name and route.protocol == PROTOCOL and route.table == MAIN_TABLE:
                yield _route_step("remove-route", route)
        own = {address.address for address in seen.addresses if address.index == here.index}
        yield from (("remove-address", name, address) for address in entry.addresses if address in own)
        if entry.mode == "dhcp":
            yield from _lease_routes(here, 0, seen)
        if entry.mtu:
            yield ("set-mtu", name, "1500")
        yield from _sysctl(name, {"disable_ipv6": "0", "accept_ra": "1", "autoconf": "1"}, seen)


def _links(wanted: NetworkFile, seen: Seen) -> Iterator[Step]:
    """Make bridges and VLANs, parents first."""
    kept = {
        name
        for name, link in seen.links.items()
        if link.alias != ALIAS or ((entry := wanted.interface.get(name)) is not None and _same_link(entry, link, seen))
    }
    there = set(kept)
    waiting = {name: entry for name, entry in wanted.interface.items() if _kind(entry) and name not in there}
    while waiting:
        ready = [name for name, entry in waiting.items() if entry.vlan is None or entry.vlan.parent in there]
        if not ready:
            return  # their parents are not there (yet)
        for name in ready:
            entry = waiting.pop(name)
            vlan = entry.vlan
            yield ("create-link", name, _kind(entry), vlan.parent if vlan else "", str(vlan.id) if vlan else "")
            there.add(name)


def _interface(name: str, entry: Interface, wanted: NetworkFile, before: NetworkFile, seen: Seen) -> Iterator[Step]:
    link = seen.links.get(name)
    if link is not None and link.alias == ALIAS and not _same_link(entry, link, seen):
        link = None  # is made anew
    if link is None and (not _kind(entry) or not _can_exist(entry, wanted, seen)):
        return
    mtu = _mtu(name, wanted, before, seen)
    changes = [("set-mtu", name, str(mtu))] if mtu is not None and (link is None or link.mtu != mtu) else []
    # With less than 1280 the kernel takes IPv6 away with all that was set: what goes, goes before, and comes after.
    back = link is None or (link.mtu < 1280 and bool(changes))
    switches = list(_sysctl(name, _IPV6[entry.ipv6], seen, new=back))
    if entry.ipv6 == "off":
        six = [*_routes(name, entry, seen, link), *_addresses(name, entry, seen, link)]
        yield from (step for step in six if ":" in step[2] and step[0].startswith("remove"))
        yield from (*switches, *changes)
        seen = _without_six(seen)
    else:
        yield from (*changes, *switches)
    yield from _shape(name, entry, wanted, seen, link)
    yield from _value(f"ipv4/conf/{name}/promote_secondaries", "1", seen, new=link is None)
    if link is None or not link.up:
        yield ("set-up", name)
    yield from _addresses(name, entry, seen, link)
    yield from _routes(name, entry, seen, link)


def _without_six(seen: Seen) -> Seen:
    """Once IPv6 is off."""
    addresses = [one for one in seen.addresses if ":" not in one.address]
    return replace(seen, addresses=addresses, routes=[one for one in seen.routes if ":" not in one.to])


def _can_exist(entry: Interface, wanted: NetworkFile, seen: Seen) -> bool:
    """Whether everything below a virtual interface is there or will be."""
    while entry.vlan is not None:
        below = wanted.interface.get(entry.vlan.parent)
        if below is None or not _kind(below):
            return entry.vlan.parent in seen.links
        entry = below
    return True


def _shape(name: str, entry: Interface, wanted: NetworkFile, seen: Seen, link: Link | None) -> Iterator[Step]:
    """Bridge properties, and whose port it is."""
    if entry.bridge and entry.bridge.stp != (link.stp if link else False):
        yield ("set-stp", name, "on" if entry.bridge.stp else "off")
    bridge = wanted.ports().get(name, "")
    now = next((other.name for other in seen.links.values() if link and link.master and other.index == link.master), "")
    if bridge != now:
        yield ("set-master", name, bridge)


def _sysctl(name: str, settings: Mapping[str, str], seen: Seen, new: bool = False) -> Iterator[Step]:
    for key, value in settings.items():
        yield from _value(f"ipv6/conf/{name}/{key}", value, seen, new)


def _value(path: str, value: str, seen: Seen, new: bool) -> Iterator[Step]:
    """A step when the value differs, or when the link is new and has who knows what."""
    if new or (path in seen.sysctl and seen.sysctl[path] != value):
        yield ("sysctl", path, value)


def _addresses(name: str, entry: Interface, seen: Seen, link: Link | None) -> Iterator[Step]:
    here = [address for address in seen.addresses if link and address.index == link.index]
    own = {address.address for address in here}
    yield from (("add-address", name, address) for address in entry.addresses if address not in own)
    for address in here:
        four = ":" not in address.address
        if address.address in entry.addresses or (four and entry.mode == "dhcp"):
            continue
        if four or (address.permanent and address.scope != 253):  # link-local ones are the kernel's
            yield ("remove-address", name, address.address)


def _routes(name: str, entry: Interface, seen: Seen, link: Link | None) -> Iterator[Step]:
    wanted = [(("::/0" if ":" in hop else "0.0.0.0/0"), hop, entry.metric) for hop in entry.gateways]
    wanted += [(route.to, route.via, route.metric) for route in entry.routes]
    wanted += [(f"{hop}/{128 if ':' in hop else 32}", "", entry.metric) for hop in entry.hops_alone()]
    routes = [Route(to, via, name, metric or (IPV6_METRIC if ":" in to else 0)) for to, via, metric in wanted]
    here = [route for route in seen.routes if link and route.interface == name and route.table == MAIN_TABLE]
    keys = set(map(_key, here))
    for route in sorted(routes, key=lambda route: route.via != ""):  # those that lead to gateways of others first
        if _key(route) not in keys:
            yield _route_step("add-route", route)
    keep = set(map(_key, routes))
    for route in here:
        lease = entry.mode == "dhcp" and ":" not in route.to and route.protocol in (BOOT, LEASE)
        if route.protocol in (PROTOCOL, BOOT, LEASE) and not lease and _key(route) not in keep:
            yield _route_step("remove-route", route)
    if link is not None and entry.mode == "dhcp":
        yield from _lease_routes(link, entry.metric, seen)


def _lease_routes(link: Link, metric: int, seen: Seen) -> Iterator[Step]:
    """Those of the lease that is there get the metric that later ones will have; 0: what the script `init/dhcp` takes
    by itself."""
    metric = metric or 100 + link.index
    main = (route for route in seen.routes if route.interface == link.name and route.table == MAIN_TABLE)
    wrong = [route for route in main if route.protocol == LEASE and ":" not in route.to and route.metric != metric]
    for route in sorted(wrong, key=lambda route: route.via != ""):
        yield _route_step("add-route", replace(route, metric=metric))
    yield from (_route_step("remove-route", route) for route in wrong)


def _key(route: Route) -> tuple[str, str, int]:
    return route.to, route.via, route.metric


def _route_step(what: str, route: Route) -> Step:
    return (what, route.interface, route.to, route.via, str(route.metric), str(route.protocol))


def replaced(steps: Iterable[Step], seen: Seen) -> list[Route]:
    """Routes that the kernel takes away for new ones, of the same destination and metric: those of other interfaces,
    and its own."""
    new = {(step[2], int(step[4])): step[1] for step in steps if step[0] == "add-route"}
    main = (route for route in seen.routes if route.table == MAIN_TABLE)
    return [
        route
        for route in main
        if (taker := new.get((route.to, route.metric))) and (taker != route.interface or route.protocol == CONNECTED)
    ]


def told(steps: Sequence[Step], seen: Seen) -> list[str]:
    """Steps for people, and what the kernel takes away for them unasked."""
    lost = [step for route in replaced(steps, seen) if (step := _route_step("remove-route", route)) not in steps]
    return [*map(describe, steps), *(f"{describe(step)}: a new one takes its place" for step in lost)]


def below(name: str, seen: Seen) -> set[str]:
    """What an interface lies on, itself included: parents of VLANs, ports of bridges."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        link = seen.links.get(waiting.pop())
        if link is not None and link.name not in found:
            found.add(link.name)
            under = link.parent if link.kind == "vlan" else 0
            waiting += [one.name for one in seen.links.values() if one.master == link.index or one.index == under]
    return found


def execute(step: Step, rtnl: Rtnl, proc: Path = PROC) -> None:
    """Do one step. Raises NetlinkError, OSError."""
    match step:
        case ("delete-link", name):
            rtnl.delete(name)
        case ("create-link", name, kind, parent, vlan):
            rtnl.create(kind, name, parent, int(vlan or 0))
            rtnl.change(name, alias=ALIAS)
        case ("set-mtu", name, mtu):
            rtnl.change(name, mtu=int(mtu))
        case ("set-stp", name, state):
            rtnl.change(name, stp=state == "on")
        case ("set-master", name, master):
            rtnl.change(name, master=master)
        case ("set-up", name):
            rtnl.change(name, up=True)
        case ("sysctl", path, value):
            if (proc / path).exists():
                (proc / path).write_text(value, encoding="ascii")
        case ("add-address", name, address):
            rtnl.add_address(name, address)
        case ("remove-address", name, address):
            rtnl.remove_address(name, address)
        case ("add-route", name, to, via, metric, protocol):
            rtnl.add_route(Route(to, via, name, int(metric), protocol=int(protocol)))
        case ("remove-route", name, to, via, metric, protocol):
            rtnl.remove_route(Route(to, via, name, int(metric), protocol=int(protocol)))
        case _:
            raise AssertionError(step)


def describe(step: Step) -> str:
    """A step for people."""
    words = step[0].replace("-", " ")
    if step[0].endswith("-route"):
        _, name, to, via, metric, _ = step
        return f"{words} {to}{f' via {via}' if via else ''} on {name}{f' metric {metric}' if metric != '0' else ''}"
    return " ".join([words, *(part or "none" for part in step[1:] if part or step[0] == "set-master")])
