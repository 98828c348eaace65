"""Links, addresses, routes and rules of the kernel, read and changed through rtnetlink.

Format: rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h, linux/fib_rules.h. Only what the daemon sets
or shows is decoded. Interfaces are named; their numbers are looked up at the moment of use.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from daemon.linux import netlink
from daemon.linux.netlink import NetlinkError, attribute, attributes, nested, number, string, text, u16, u32

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PROC = Path("/proc/sys/net")
PROTOCOL = 77  # rtm_protocol and FRA_PROTOCOL of what the daemon adds: its own are told from everybody else's by it
BOOT = 3  # RTPROT_BOOT: what `ip route add` says, so also the scripts of early boot
MAIN_TABLE = 254
CONNECTED = 2  # RTPROT_KERNEL: what it makes of an address
LEASE = 16  # RTPROT_DHCP: what a lease brought
IPV6_METRIC = 1024  # IP6_RT_PRIO_USER: what the kernel makes of a metric that is left out
PERMANENT = 0x80  # IFA_F_PERMANENT: set by somebody, not learnt from a router

_LINK, _ADDRESS, _ROUTE, _RULE = (16, 17, 18), (20, 21, 22), (24, 25, 26), (32, 33, 34)  # RTM_NEW*, DEL*, GET*
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr has the same layout
_UP = 0x1  # IFF_UP
_OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")


@dataclass(frozen=True)
class Link:
    """An interface. kind: "vlan", "bridge", "wireguard"…, "" for hardware; parent: index of what a VLAN lies on; made:
    by us. The kernel takes a group, but no alias, together with the link: one that was cut off before it got its alias
    is known by it."""

    index: int
    name: str
    kind: str
    up: bool
    state: str
    mtu: int
    mac: str
    alias: str
    master: int
    parent: int
    vlan: int
    stp: bool
    received: int
    sent: int
    made: bool = False


@dataclass(frozen=True)
class Address:
    """An address of an interface, with its prefix length ("192.0.2.10/24"). scope: 0 is global, 253 link."""

    index: int
    address: str
    permanent: bool
    scope: int


@dataclass(frozen=True, order=True)
class Route:
    """A unicast route. to: a network ("0.0.0.0/0"); via: "" for a network on the link."""

    to: str
    via: str
    interface: str
    metric: int
    table: int = MAIN_TABLE
    protocol: int = PROTOCOL


@dataclass(frozen=True, order=True)
class Rule:
    """A routing rule: packets (not) marked `mark`, or those for the network `to`, look into `table`, leaving out
    prefixes as short as `suppress`."""

    family: int
    priority: int
    table: int
    mark: int = 0
    inverted: bool = False
    suppress: int = -1
    protocol: int = PROTOCOL
    to: str = ""


def family_of(network: str) -> int:
    """AF_INET or AF_INET6, by an address or network."""
    return socket.AF_INET6 if ":" in network else socket.AF_INET


def packed(address: str) -> bytes:
    """An address without prefix as bytes."""
    return ipaddress.ip_address(address).packed


def decode_link(payload: bytes) -> Link:
    """RTM_NEWLINK. Raises NetlinkError `netlink-garbage`."""
    _, _, index, flags, _ = _unpack(_IFINFO, payload)
    found = dict(attributes(payload[_IFINFO.size :]))
    info = dict(attributes(found.get(18, b"")))
    kind = string(info.get(1, b""))
    data = dict(attributes(info.get(2, b""))) if kind in ("vlan", "bridge") else {}
    stats = found.get(23, b"")
    received, sent = struct.unpack_from("=QQ", stats, 16) if len(stats) >= 32 else (0, 0)
    state = number(found.get(16, b"\0"))
    return Link(
        index=index,
        name=string(found.get(3, b"")),
        kind=kind,
        up=bool(flags & _UP),
        state=_OPERSTATES[state] if state < len(_OPERSTATES) else "unknown",
        mtu=number(found.get(4, b"\0")),
        mac=found.get(1, b"").hex(":"),
        alias=string(found.get(20, b"")),
        master=number(found.get(10, b"\0")),
        parent=number(found.get(5, b"\0")),
        vlan=number(data.get(1, b"\0")) if kind == "vlan" else 0,
        stp=kind == "bridge" and number(data.get(5, b"\0")) != 0,
        received=received,
        sent=sent,
        made=number(found.get(27, b"\0")) == PROTOCOL,  # IFLA_GROUP
    )


def decode_address(payload: bytes) -> Address:
    """RTM_NEWADDR. Raises NetlinkError `netlink-garbage`."""
    _, length, flags, scope, index = _unpack(_IFADDR, payload)
    found = dict(attributes(payload[_IFADDR.size :]))
    # Of a point-to-point link IFA_ADDRESS is the other end, IFA_LOCAL ours; IPv6 has only IFA_ADDRESS.
    address = _address(found.get(2) or found.get(1, b""))
    flags = number(found[8]) if 8 in found else flags
    return Address(index, f"{address}/{length}", bool(flags & PERMANENT), scope)


def decode_route(payload: bytes, names: dict[int, str]) -> Route | None:
    """RTM_NEWROUTE; None for what is not a unicast route through one interface. Raises NetlinkError."""
    family, length, _, _, table, protocol, _, kind, _ = _unpack(_RTMSG, payload)
    found = dict(attributes(payload[_RTMSG.size :]))
    if kind != 1 or family not in (socket.AF_INET, socket.AF_INET6) or 4 not in found:  # RTN_UNICAST, RTA_OIF
        return None
    zero = bytes(4 if family == socket.AF_INET else 16)
    return Route(
        to=f"{_address(found.get(1, zero))}/{length}",
        via=_address(found[5]) if 5 in found else "",
        interface=names.get(number(found[4]), ""),
        metric=number(found.get(6, b"\0")),
        table=number(found[15]) if 15 in found else table,
        protocol=protocol,
    )


def _durable(payload: bytes) -> bytes:
    """A route's message without what changes by itself: how long ago it was used, and flags such as
    RTNH_F_LINKDOWN."""
    parts = [
        attribute(kind, data)
        for kind, data in attributes(payload[_RTMSG.size :])
        if kind != 12  # RTA_CACHEINFO
    ]
    return payload[: _RTMSG.size - 4] + bytes(4) + b"".join(parts)


def _through(payload: bytes, connected: bool) -> int:
    """The interface that a route which can be given back goes through; 0 for another one."""
    family, _, _, _, _, protocol, _, kind, flags = _unpack(_RTMSG, payload)
    made = protocol in ((9,) if connected else (CONNECTED, 9)) or flags & 0x200  # RTPROT_RA; RTM_F_CLONED
    if made or family not in (socket.AF_INET, socket.AF_INET6) or kind != 1:  # RTN_UNICAST
        return 0
    return number(dict(attributes(payload[_RTMSG.size :])).get(4, b"\0"))


def decode_rule(payload: bytes) -> Rule:
    """RTM_NEWRULE. Raises NetlinkError `netlink-garbage`."""
    family, length, _, _, table, _, _, _, flags = _unpack(_RTMSG, payload)
    found = dict(attributes(payload[_RTMSG.size :]))
    suppress = number(found.get(14, b"\xff\xff\xff\xff"))
    return Rule(
        family=family,
        priority=number(found.get(6, b"\0")),
        table=number(found[15]) if 15 in found else table,
        mark=number(found.get(10, b"\0")),
        inverted=bool(flags & 2),  # FIB_RULE_INVERT
        suppress=-1 if suppress == 0xFFFFFFFF else suppress,
        protocol=number(found.get(21, b"\0")),
        to=f"{_address(found[1])}/{length}" if 1 in found else "",
    )


def encode_link(kind: str, name: str, parent: int = 0, vlan: int = 0) -> bytes:
    """The request that makes a link of `kind`; with `vlan` on top of the link `parent`."""
    info = [text(1, kind)]
    if kind == "vlan":
        info.append(nested(2, [u16(1, vlan)]))
    below = u32(5, parent) if parent else b""
    return _IFINFO.pack(0, 0, 0, 0, 0) + text(3, name) + below + u32(27, PROTOCOL) + nested(18, info)


def encode_address(index: int, address: str) -> bytes:
    """The request that adds or removes an address ("192.0.2.10/24")."""
    bare, _, length = address.partition("/")
    data = packed(bare)
    family = family_of(bare)
    local = attribute(2, data) if family == socket.AF_INET else b""
    return _IFADDR.pack(family, int(length), PERMANENT, 0, index) + local + attribute(1, data)


def encode_route(route: Route, index: int) -> bytes:
    """The request that adds or removes a route through the interface `index`."""
    network, _, length = route.to.partition("/")
    scope = 0 if route.via or ":" in network else 253  # RT_SCOPE_UNIVERSE, RT_SCOPE_LINK
    table = route.table if route.table < 256 else 0
    parts = [attribute(1, packed(network))] if int(length) else []
    parts += [attribute(5, packed(route.via))] if route.via else []
    parts += [u32(4, index), u32(15, route.table)]
    parts += [u32(6, route.metric)] if route.metric else []
    head = _RTMSG.pack(family_of(network), int(length), 0, 0, table, route.protocol, scope, 1, 0)
    return head + b"".join(parts)


def encode_rule(rule: Rule) -> bytes:
    """The request that adds or removes a rule."""
    table = rule.table if rule.table < 256 else 0
    address, _, length = rule.to.partition("/")
    flags = 2 if rule.inverted else 0
    head = _RTMSG.pack(rule.family, int(length or 0), 0, 0, table, 0, 0, 1, flags)  # FR_ACT_TO_TBL
    parts = [u32(6, rule.priority), u32(15, rule.table), attribute(21, bytes([rule.protocol]))]
    parts += [attribute(1, packed(address))] if address else []
    parts += [u32(10, rule.mark)] if rule.mark else []
    parts += [u32(14, rule.suppress)] if rule.suppress >= 0 else []
    return head + b"".join(parts)


def _unpack(form: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) < form.size:
        raise netlink.garbage(f"a header of {len(payload)} bytes where {form.size} are needed")
    return form.unpack_from(payload)


def _address(data: bytes) -> str:
    if len(data) not in (4, 16):
        raise netlink.garbage(f"an address of {len(data)} bytes")
    return str(ipaddress.ip_address(data))


class Watch:
    """Tells when interfaces come, go or change; for an event loop, by `fileno`."""

    def __init__(self) -> None:
        self._socket = netlink.Socket(netlink.ROUTE, groups=1)  # RTMGRP_LINK

    def fileno(self) -> int:
        """Readable when there is something to `take`."""
        return self._socket.fileno()

    def take(self) -> set[str] | None:
        """The names that something happened to; None when it was too much: then to any."""
        found = {decode_link(part.payload).name for part in self._socket.news() if part.kind in _LINK[:2]}
        lost, self._socket.overrun = self._socket.overrun, False
        return None if lost else found

    def close(self) -> None:
        """Stop watching."""
        self._socket.close()


class Rtnl:
    """The kernel's network configuration, as seen and changed by one socket."""

    def __init__(self) -> None:
        self._socket = netlink.Socket(netlink.ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    def links(self) -> dict[str, Link]:
        """All interfaces by name."""
        found = (decode_link(message.payload) for message in self._socket.dump(_LINK[2], _IFINFO.pack(0, 0, 0, 0, 0)))
        return {link.name: link for link in found}

    def addresses(self) -> list[Address]:
        """All addresses."""
        return [decode_address(part.payload) for part in self._socket.dump(_ADDRESS[2], _IFADDR.pack(0, 0, 0, 0, 0))]

    def routes(self) -> list[Route]:
        """All unicast routes."""
        names = {link.index: link.name for link in self.links().values()}
        parts = self._socket.dump(_ROUTE[2], _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))
        return [route for part in parts if (route := decode_route(part.payload, names))]

    def raw_addresses(self, index: int) -> list[bytes]:
        """The kernel's own messages about the addresses of an interface, for `replay_address`."""
        parts = self._socket.dump(_ADDRESS[2], _IFADDR.pack(0, 0, 0, 0, 0))
        return [part.payload for part in parts if _unpack(_IFADDR, part.payload)[4] == index]

    def raw_routes(self, *, connected: bool = False) -> dict[int, list[bytes]]:
        """The kernel's own messages about unicast routes, for `replay_route`, by the interface that they go through;
        without those that it makes by itself from addresses (but for `connected`) and from what routers announce."""
        found: dict[int, list[bytes]] = {}
        for part in self._socket.dump(_ROUTE[2], _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
            index = _through(part.payload, connected)
            if index:
                found.setdefault(index, []).append(_durable(part.payload))
        return found

    def rules(self) -> list[Rule]:
        """All routing rules."""
        parts = self._socket.dump(_RULE[2], _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))
        return [decode_rule(part.payload) for part in parts]

    # -- changing ----------------------------------------------------------------------------------------------------

    def create(self, kind: str, name: str, parent: str = "", vlan: int = 0) -> None:
        """Make a virtual interface; it is down."""
        below = self.index(parent) if parent else 0
        self._socket.ask(_LINK[0], encode_link(kind, name, below, vlan), netlink.CREATE | netlink.EXCLUSIVE)

    def delete(self, name: str) -> None:
        """Remove a virtual interface; one that is gone stays gone: the kernel takes a VLAN along with its parent."""
        try:
            index = self.index(name)
        except NetlinkError:
            return
        self._unless((errno.ENODEV,), _LINK[1], _IFINFO.pack(0, 0, index, 0, 0))

    def change(
        self,
        name: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        master: str | None = None,
        alias: str | None = None,
        stp: bool | None = None,
    ) -> None:
        """Change what is given. master: the bridge it becomes a port of, "" for none."""
        parts: list[bytes] = []
        parts += [u32(4, mtu)] if mtu is not None else []
        parts += [u32(10, self.index(master) if master else 0)] if master is not None else []
        parts += [attribute(20, alias.encode())] if alias is not None else []
        if stp is not None:
            parts.append(nested(18, [text(1, "bridge"), nested(2, [u32(5, int(stp))])]))  # IFLA_BR_STP_STATE
        flags, mask = (0, 0) if up is None else (_UP if up else 0, _UP)
        self._socket.ask(_LINK[0], _IFINFO.pack(0, 0, self.index(name), flags, mask) + b"".join(parts))

    def add_address(self, name: str, address: str) -> None:
        """Give an interface an address; one that is there stays."""
        self._socket.ask(_ADDRESS[0], encode_address(self.index(name), address), netlink.CREATE | netlink.REPLACE)

    def remove_address(self, name: str, address: str) -> None:
        """Take an address away; one that is gone stays gone. From an interface whose MTU is too
        small for IPv6 the kernel takes all of that away (ENXIO)."""
        gone = (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)
        self._unless(gone, _ADDRESS[1], encode_address(self.index(name), address))

    def add_route(self, route: Route, *, replace: bool = True) -> None:
        """Add a route. One of the same destination, metric and table goes; without `replace` it stays, whosever it is,
        and NetlinkError with EEXIST is raised."""
        how = netlink.REPLACE if replace else netlink.EXCLUSIVE
        self._socket.ask(_ROUTE[0], encode_route(route, self.index(route.interface)), netlink.CREATE | how)

    def replay_address(self, name: str, payload: bytes) -> None:
        """Give an interface an address back, with its lifetime and flags; one that is there stays."""
        family, length, flags, scope, _ = _unpack(_IFADDR, payload)
        head = _IFADDR.pack(family, length, flags, scope, self.index(name))
        self._unless((errno.EEXIST,), _ADDRESS[0], head + payload[_IFADDR.size :], netlink.CREATE | netlink.EXCLUSIVE)

    def replay_route(self, name: str, payload: bytes) -> None:
        """Give a route back as it was (as `ip route restore` does); one that is there stays."""
        parts = [
            u32(4, self.index(name)) if kind == 4 else attribute(kind, data)
            for kind, data in attributes(payload[_RTMSG.size :])
        ]
        whole = payload[: _RTMSG.size] + b"".join(parts)
        self._unless((errno.EEXIST,), _ROUTE[0], whole, netlink.CREATE | netlink.EXCLUSIVE)

    def remove_raw_route(self, payload: bytes) -> None:
        """Remove a route that `raw_routes` gave."""
        self._unless((errno.ESRCH,), _ROUTE[1], payload)

    def remove_route(self, route: Route) -> None:
        """Remove a route; one that is gone stays gone."""
        self._unless((errno.ESRCH,), _ROUTE[1], encode_route(route, self.index(route.interface)))

    def add_rule(self, rule: Rule) -> None:
        """Add a rule."""
        self._socket.ask(_RULE[0], encode_rule(rule), netlink.CREATE | netlink.EXCLUSIVE)

    def remove_rule(self, rule: Rule) -> None:
        """Remove a rule; one that is gone stays gone."""
        self._unless((errno.ENOENT,), _RULE[1], encode_rule(rule))

    def index(self, name: str) -> int:
        """The number of an interface. Raises NetlinkError `net-interface` when there is none of that name."""
        try:
            return socket.if_nametoindex(name)
        except OSError as error:
            raise NetlinkError(f"there is no interface {name}", reason="net-interface", number=errno.ENODEV) from error

    def _unless(self, gone: Iterable[int], kind: int, payload: bytes, flags: int = 0) -> None:
        try:
            self._socket.ask(kind, payload, flags)
        except NetlinkError as error:
            if error.errno not in gone:
                raise
