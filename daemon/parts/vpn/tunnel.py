"""WireGuard interfaces of vpn.toml and the kernel: what one shall be, bringing it up, taking it down.

A tunnel is a link, a WireGuard device with peers, addresses, and routes for what its peers are allowed to send. When a
peer is allowed everything, the tunnel's own packets must not go into the tunnel: they carry a mark, all others look
into a table of their own first, except for routes that are more special than the default (as wg-quick(8) does it).
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import addresses
from common.errors import RefusedError
from common.netvalues import is_address, split_endpoint
from daemon.linux import wireguard
from daemon.linux.netlink import NetlinkError
from daemon.linux.rtnl import IPV6_METRIC, MAIN_TABLE, PROC, PROTOCOL, Address, Link, Route, Rtnl, Rule, family_of
from daemon.linux.wireguard import Device, Endpoint, Network, Peer, WireGuard
from daemon.parts.vpn import keys
from daemon.parts.vpn.keys import Store
from daemon.parts.vpn.model import Tunnel

ALIAS = "mixos:vpn.toml"
MARK = 51820  # of the packets of a tunnel that takes everything and names no mark itself
TABLE = 51820  # the routing table of the tunnel that takes everything; at most one does
_PRIORITY = 32764  # in front of the rule for the main table, 32766
_DISCARD = 9  # the port that nobody answers on (RFC 863)
_SRC_VALID_MARK = "ipv4/conf/all/src_valid_mark"


def own_key(name: str) -> str:
    """The store's name of a tunnel's private key."""
    return f"{name}.key"


def peer_psk(name: str, peer: str) -> str:
    """The store's name of a preshared key."""
    return f"{name}.{peer}.psk"


def peer_key(name: str, peer: str) -> str:
    """The store's name of a private key that is kept for a peer."""
    return f"{name}.{peer}.key"


def mark_of(tunnel: Tunnel) -> int:
    """The mark of the tunnel's own packets; 0 for none."""
    return tunnel.mark or (MARK if tunnel.takes_everything else 0)


def device(name: str, tunnel: Tunnel, store: Store, endpoints: Mapping[str, Endpoint | None]) -> Device:
    """The WireGuard device that the kernel shall have. endpoints: peer → its address, as far as it is known.

    Raises NotFoundError `vpn-secret-missing`, KeyProblem.
    """
    peers = [
        Peer(
            public=keys.decode(entry.public_key),
            allowed=frozenset(addresses.network(network) for network in entry.allowed_ips),
            endpoint=endpoints.get(title),
            keepalive=entry.keepalive,
            preshared=store.read(peer_psk(name, title)) if entry.psk else bytes(32),
        )
        for title, entry in tunnel.peer.items()
    ]
    private = keys.clamp(store.read(own_key(name)))
    return Device(name, private, port=tunnel.port, mark=mark_of(tunnel), peers=tuple(peers))


def routes(name: str, tunnel: Tunnel) -> set[Route]:
    """The routes into the tunnel: allowed networks, but for those that an address of the interface already leads to."""
    if not tunnel.routes:
        return set()
    own = [addresses.interface(address).network for address in tunnel.addresses]
    everything = tunnel.everything
    found = set()
    for network in _allowed(tunnel):
        if any(network.version == other.version and network.subnet_of(other) for other in own):  # type: ignore[arg-type]
            continue
        table = TABLE if network in everything else MAIN_TABLE
        found.add(Route(str(network), "", name, IPV6_METRIC if network.version == 6 else 0, table))
    return found


def rules(tunnels: Iterable[Tunnel]) -> set[Rule]:
    """The rules that all tunnels together need."""
    found = set()
    for tunnel in tunnels:
        for network in tunnel.everything:
            family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
            found.add(Rule(family, _PRIORITY, MAIN_TABLE, suppress=0))
            found.add(Rule(family, _PRIORITY + 1, TABLE, mark=mark_of(tunnel), inverted=True))
    return found


def warnings(tunnel: Tunnel) -> list[str]:
    """What is hardly meant: a peer whose packets would go into the tunnel that they carry. Where it takes everything
    they stay outside; names are not looked up."""
    everything = tunnel.everything
    inside = [network for network in _allowed(tunnel) if network not in everything] if tunnel.routes else []
    found = []
    for title, peer in tunnel.peer.items():
        host = split_endpoint(peer.endpoint)[0] if peer.endpoint else ""
        if is_address(host):
            found += [
                f"the endpoint of {title} is in {each}, which leads into the tunnel itself"
                for each in inside
                if addresses.address(host) in each
            ]
    return found


def servers(tunnel: Tunnel, dead: Collection[str]) -> tuple[str, ...]:
    """The tunnel's name servers but those behind one of the peers `dead`."""
    return tuple(server for server in tunnel.dns if _behind(tunnel, server) not in dead)


def _behind(tunnel: Tunnel, address: str) -> str | None:
    """The peer that packets to an address go to: the one with the most special network (wg(8)); None: to none."""
    host = addresses.address(address)
    parts = ((addresses.network(text), title) for title, peer in tunnel.peer.items() for text in peer.allowed_ips)
    found = [(network.prefixlen, title) for network, title in parts if host in network]
    return max(found)[1] if found else None


def knock(name: str, addresses: Iterable[str]) -> None:
    """Give a tunnel something to send to addresses behind it, so that it shakes hands once it can."""
    for address in addresses:
        with contextlib.suppress(OSError), socket.socket(family_of(address), socket.SOCK_DGRAM) as channel:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
            channel.setblocking(False)
            channel.sendto(b"", (address, _DISCARD))


def _allowed(tunnel: Tunnel) -> Iterator[Network]:
    return (addresses.network(network) for peer in tunnel.peer.values() for network in peer.allowed_ips)


@dataclass
class Kernel:
    """The sockets to the kernel."""

    rtnl: Rtnl
    wireguard: WireGuard
    proc: Path = PROC

    def bring_up(self, tunnel: Tunnel, wanted: Device) -> None:
        """Make the interface what it shall be; what is so already is not touched.

        Raises NetlinkError, RefusedError `vpn-name` (an interface of another kind), and what `set_up` raises.
        """
        name = wanted.name
        link = self.rtnl.links().get(name)
        if link is not None and link.kind != "wireguard":
            raise RefusedError(
                f"{name} is there already and is not a WireGuard interface", reason="vpn-name", hint="rename the tunnel"
            )
        if link is None:
            self.rtnl.create("wireguard", name)
        if link is None or link.alias != ALIAS:
            self.rtnl.change(name, alias=ALIAS)
        self.wireguard.apply(wanted)
        set_up(self.rtnl, name, tunnel, self.proc)


def set_rules(rtnl: Rtnl, tunnels: Iterable[Tunnel], past: Iterable[str] = (), proc: Path = PROC) -> None:
    """Have exactly the rules that `tunnels` need, and such that lead to the addresses `past` outside of them; rules of
    others are not touched. Raises NetlinkError, OSError."""
    wanted = rules(tunnels)
    if wanted:
        wanted |= {Rule(family_of(each), _PRIORITY - 1, MAIN_TABLE, to=each) for each in _hosts(past)}
    here = {rule for rule in rtnl.rules() if rule.protocol == PROTOCOL}
    if wanted and (proc / _SRC_VALID_MARK).exists():
        # Replies carry no mark when the reverse path is checked (ip-sysctl, rp_filter).
        (proc / _SRC_VALID_MARK).write_text("1", encoding="ascii")
    for rule in sorted(wanted - here):
        rtnl.add_rule(rule)
    for rule in here - wanted:
        rtnl.remove_rule(rule)


def _hosts(texts: Iterable[str]) -> Iterator[str]:
    """Addresses as networks of one; what is on a link or in this device anyway is left out, and what is no address."""
    for text in texts:
        with contextlib.suppress(ValueError):
            address = addresses.address(text)
            if not address.is_link_local and not address.is_loopback:
                yield f"{address}/{address.max_prefixlen}"


def set_up(rtnl: Rtnl, name: str, tunnel: Tunnel, proc: Path = PROC) -> None:
    """MTU, IPv6, addresses, link state and routes of a tunnel's interface; differences only.

    Raises NetlinkError, OSError, and RefusedError `vpn-route` rather than take over the route of another interface: it
    may be the network that somebody is logged in from.
    """
    link = rtnl.links()[name]
    if link.mtu != tunnel.mtu:
        rtnl.change(name, mtu=tunnel.mtu)
    leads = routes(name, tunnel)
    six = proc / "ipv6/conf" / name / "disable_ipv6"
    if any(":" in each for each in (*tunnel.addresses, *(route.to for route in leads))) and six.exists():
        six.write_text("0\n", encoding="ascii")  # here it is wanted, whatever the default of interfaces is
    here = {address.address for address in rtnl.addresses() if _fixed(address, link)}
    for address in tunnel.addresses:
        if address not in here:
            rtnl.add_address(name, address)
    for address in here - set(tunnel.addresses):
        rtnl.remove_address(name, address)
    if not link.up:
        rtnl.change(name, up=True)
    _set_routes(rtnl, name, leads)


def _set_routes(rtnl: Rtnl, name: str, wanted: set[Route]) -> None:
    routes = rtnl.routes()
    there = {route for route in routes if route.interface == name}
    for route in there - wanted:
        if route.protocol == PROTOCOL:
            rtnl.remove_route(route)
    for route in sorted(wanted - {replace(route, protocol=PROTOCOL) for route in there}):
        try:
            rtnl.add_route(route, replace=False)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            same = (route.to, route.metric, route.table)
            others = [each.interface for each in routes if (each.to, each.metric, each.table) == same]
            raise RefusedError(
                f"{route.to} is reached through {others[0] if others else 'another interface'} already",
                reason="vpn-route",
                hint="take it out of the peer's allowed-ips, or say routes = false and add a route of your own",
            ) from error


def _fixed(address: Address, link: Link) -> bool:
    return address.index == link.index and address.permanent and address.scope != 253


def choose(answers: Sequence[Endpoint], told: Endpoint | None, peer: Peer | None, failing: bool) -> Endpoint | None:
    """Which of the addresses behind a name a peer gets: the one it was `told`, or has, while the name leads there.

    failing: we send and nothing answers; then the next one has its turn. None: the name leads nowhere now.
    """
    at = peer.endpoint if peer else None
    current = next((one for one in (told, at) if one in answers), None)
    if current is None:
        return answers[0] if answers else None
    return answers[(answers.index(current) + 1) % len(answers)] if failing and at == current else current


def to_move(actual: Device, wanted: Device, told: Mapping[bytes, Endpoint], now: float) -> list[wireguard.Change]:
    """Peers whose endpoint must be set: the file says another one than they were `told`, or they do not answer there.

    A peer that shook hands lately is left where it is, since it may have roamed.
    """
    here = {peer.public: peer for peer in actual.peers}
    changes = []
    for peer in wanted.peers:
        old = here.get(peer.public)
        if peer.endpoint is None or old is None or old.endpoint == peer.endpoint:
            continue
        if wireguard.stale(old.handshake, now) or told.get(peer.public, peer.endpoint) != peer.endpoint:
            changes.append(wireguard.move(peer.public, peer.endpoint))
    return changes
