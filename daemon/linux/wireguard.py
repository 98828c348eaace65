"""WireGuard devices: what the kernel says about one, and the messages that turn it into what is wanted.

Format: linux/wireguard.h (generic netlink family "wireguard", version 1). A device with many peers comes in several
messages; a peer whose allowed IPs do not fit is continued in the next one under the same key. Changes go the same way:
several messages of bounded size, a long peer continued. Only differences are sent, so a peer that stays as it is keeps
its session and loses no packet.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from common import addresses
from daemon.linux import netlink
from daemon.linux.netlink import attribute, attributes, garbage, nested, number, string, text, u8, u16, u32

FAMILY = "wireguard"
STALE_SECONDS = 180  # REJECT_AFTER_TIME: a session older than this carries nothing
_STEP = 5  # seconds that a clock may be set back without making a handshake doubtful
MAX_PEERS = 10_000
MAX_ALLOWED = 100_000  # allowed IPs of all peers of one device

_GET, _SET = 0, 1  # WG_CMD_*
_HEAD = netlink.GENERIC_HEADER.pack(_SET, 1, 0)
_REMOVE, _REPLACE_ALLOWED, _UPDATE_ONLY = 1, 2, 4  # WGPEER_F_*
_SIZE = 24 << 10  # bytes of peers in one message; the length of an attribute has 16 bits
_TIME = struct.Struct("=qq")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Endpoint(NamedTuple):
    """Where a peer is reached: an address, not a name."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Peer:
    """A peer. handshake: seconds since 1970 of the last one, 0 for never; the counters are the kernel's to say.

    `endpoint` None means: unknown, or leave it as it is.
    """

    public: bytes
    allowed: frozenset[Network] = frozenset()
    endpoint: Endpoint | None = None
    keepalive: int = 0
    preshared: bytes = bytes(32)
    handshake: int = 0
    received: int = 0
    sent: int = 0

    def __repr__(self) -> str:
        return f"Peer({self.public.hex()[:8]}, {self.endpoint}, {len(self.allowed)} allowed)"  # no secret in a log


@dataclass(frozen=True)
class Device:
    """A WireGuard interface: 32-byte keys (zeros: none), UDP port (0: the kernel chooses), mark of outgoing packets."""

    name: str
    private: bytes = bytes(32)
    public: bytes = bytes(32)
    port: int = 0
    mark: int = 0
    peers: tuple[Peer, ...] = ()

    def __repr__(self) -> str:
        return f"Device({self.name}, port {self.port}, {len(self.peers)} peers)"


def stale(handshake: int, now: float) -> bool:
    """Whether the session of a handshake is over, both in seconds since 1970. One in the future says nothing: the clock
    was set back."""
    return not -_STEP <= now - handshake <= STALE_SECONDS


# -- reading ---------------------------------------------------------------------------------------------------------


def decode(name: str, payloads: Iterable[bytes]) -> Device:
    """The device in the messages of one dump. Raises NetlinkError `netlink-garbage`."""
    device = Device(name)
    peers: dict[bytes, Peer] = {}
    allowed = 0
    for payload in payloads:
        for kind, data in attributes(payload[netlink.GENERIC_HEADER.size :]):
            if kind == 2:
                device = replace(device, name=string(data))
            elif kind == 3:
                device = replace(device, private=_key(data))
            elif kind == 4:
                device = replace(device, public=_key(data))
            elif kind == 6:
                device = replace(device, port=number(data))
            elif kind == 7:
                device = replace(device, mark=number(data))
            elif kind == 8:
                for _, item in attributes(data):
                    peer = _decode_peer(item)
                    allowed += len(peer.allowed)
                    old = peers.get(peer.public)
                    # A continued peer repeats its key, and has nothing but the rest of its allowed IPs.
                    peers[peer.public] = replace(old, allowed=old.allowed | peer.allowed) if old else peer
                    if len(peers) > MAX_PEERS or allowed > MAX_ALLOWED:
                        raise garbage(f"{name} has too many peers")
    return replace(device, peers=tuple(peers.values()))


def _decode_peer(data: bytes) -> Peer:
    found = dict(attributes(data))
    seconds = _TIME.unpack(found[6])[0] if len(found.get(6, b"")) == _TIME.size else 0
    return Peer(
        public=_key(found.get(1, b"")),
        allowed=frozenset(_decode_allowed(item) for _, item in attributes(found.get(9, b""))),
        endpoint=_decode_endpoint(found[4]) if 4 in found else None,
        keepalive=number(found.get(5, b"\0")),
        preshared=_key(found[2]) if 2 in found else bytes(32),
        handshake=max(0, seconds),
        received=number(found.get(7, b"\0")),
        sent=number(found.get(8, b"\0")),
    )


def _key(data: bytes) -> bytes:
    if len(data) != 32:
        raise garbage(f"a key of {len(data)} bytes")
    return data


def _decode_allowed(data: bytes) -> Network:
    found = dict(attributes(data))
    address, length = found.get(2, b""), number(found.get(3, b"\xff"))
    if len(address) not in (4, 16) or length > 8 * len(address):
        raise garbage("an allowed IP that is none")
    return addresses.network((address, length), strict=False)


def _decode_endpoint(data: bytes) -> Endpoint:
    """struct sockaddr_in or sockaddr_in6: family in host order, port in network order."""
    family = struct.unpack_from("=H", data)[0] if len(data) >= 2 else 0
    if family == socket.AF_INET and len(data) >= 16:
        return Endpoint(socket.inet_ntop(family, data[4:8]), struct.unpack_from("!H", data, 2)[0])
    if family == socket.AF_INET6 and len(data) >= 28:
        scope = struct.unpack_from("=I", data, 24)[0]
        address = socket.inet_ntop(family, data[8:24])
        return Endpoint(f"{address}%{scope}" if scope else address, struct.unpack_from("!H", data, 2)[0])
    raise garbage("an endpoint that is none")


# -- changing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What one peer is told: None leaves a property as it is. `allowed` replaces the whole set."""

    public: bytes
    flags: int = 0
    preshared: bytes | None = None
    endpoint: Endpoint | None = None
    keepalive: int | None = None
    allowed: tuple[Network, ...] | None = None


def difference(wanted: Device, actual: Device) -> list[Change]:
    """What must be said so that `actual` has the peers of `wanted`; empty when nothing differs.

    Removals come first: their allowed IPs are free then. An endpoint is set for new peers and where none is known;
    otherwise the peer may have roamed, and only the caller (`move`) knows that it should be told a new one.
    """
    here = {peer.public: peer for peer in actual.peers}
    keep = {peer.public for peer in wanted.peers}
    changes = [Change(key, _REMOVE | _UPDATE_ONLY) for key in here if key not in keep]
    for peer in wanted.peers:
        old = here.get(peer.public)
        allowed = tuple(sorted(peer.allowed, key=_order))
        if old is None:
            changes.append(Change(peer.public, 0, peer.preshared, peer.endpoint, peer.keepalive, allowed))
            continue
        change = Change(
            peer.public,
            _UPDATE_ONLY,
            peer.preshared if peer.preshared != old.preshared else None,
            peer.endpoint if old.endpoint is None else None,
            peer.keepalive if peer.keepalive != old.keepalive else None,
            allowed if peer.allowed != old.allowed else None,
        )
        if change != Change(peer.public, _UPDATE_ONLY):
            changes.append(change)
    return changes


def move(public: bytes, endpoint: Endpoint) -> Change:
    """Tell a peer that exists where its other end is now."""
    return Change(public, _UPDATE_ONLY, endpoint=endpoint)


def encode(wanted: Device, actual: Device | None, changes: Iterable[Change]) -> list[bytes]:
    """The payloads of WG_CMD_SET_DEVICE messages: device attributes that differ from `actual`, then `changes`.

    actual None: leave the device's own attributes alone. Empty when nothing is to be said.
    """
    own: list[bytes] = []
    if actual is not None:
        own += [attribute(3, wanted.private)] if wanted.private != actual.private else []
        own += [u16(6, wanted.port)] if wanted.port not in (0, actual.port) else []
        own += [u32(7, wanted.mark)] if wanted.mark != actual.mark else []
    head = _HEAD + text(2, wanted.name)
    groups = list(_groups(part for change in changes for part in _encode_change(change)))
    if not groups:
        return [head + b"".join(own)] if own else []
    first, *rest = (nested(8, group) for group in groups)
    return [head + b"".join(own) + first, *(head + group for group in rest)]


def _encode_change(change: Change) -> Iterator[bytes]:
    """A peer as one attribute, or as several when it has many allowed IPs; the later ones only add to the first."""
    parts = [attribute(1, change.public)]
    flags = change.flags | (_REPLACE_ALLOWED if change.allowed is not None else 0)
    parts += [attribute(2, change.preshared)] if change.preshared is not None else []
    parts += [u32(3, flags)] if flags else []
    parts += [attribute(4, encode_endpoint(change.endpoint))] if change.endpoint is not None else []
    parts += [u16(5, change.keepalive)] if change.keepalive is not None else []
    for group in list(_groups(map(_encode_allowed, change.allowed or ()), _SIZE // 2)) or [[]]:
        parts += [nested(9, group)] if group else []
        yield nested(0, parts)
        parts = [attribute(1, change.public), u32(3, _UPDATE_ONLY)]


def _groups(parts: Iterable[bytes], size: int = _SIZE) -> Iterator[list[bytes]]:
    """`parts` in order, in groups of at most `size` bytes."""
    group: list[bytes] = []
    used = 0
    for part in parts:
        if group and used + len(part) > size:
            yield group
            group, used = [], 0
        group.append(part)
        used += len(part)
    if group:
        yield group


def _encode_allowed(network: Network) -> bytes:
    family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
    return nested(0, [u16(1, family), attribute(2, network.network_address.packed), u8(3, network.prefixlen)])


def encode_endpoint(endpoint: Endpoint) -> bytes:
    """struct sockaddr_in or sockaddr_in6 (ip(7), ipv6(7)); an IPv6 zone is a number here."""
    bare, _, zone = endpoint.address.partition("%")
    if ":" in bare:
        head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", endpoint.port, 0)
        return head + socket.inet_pton(socket.AF_INET6, bare) + struct.pack("=I", int(zone or 0))
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", endpoint.port) + socket.inet_aton(bare) + bytes(8)


def _order(network: Network) -> tuple[int, bytes, int]:
    return network.version, network.network_address.packed, network.prefixlen


class WireGuard:
    """The kernel's WireGuard, over one generic netlink socket. Raises NetlinkError `netlink-family` without it."""

    def __init__(self) -> None:
        self._socket = netlink.Socket(netlink.GENERIC)
        try:
            self._family = self._socket.family(FAMILY)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> WireGuard:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, name: str) -> Device:
        """The device as it is, all parts merged. Raises NetlinkError."""
        request = netlink.GENERIC_HEADER.pack(_GET, 1, 0) + text(2, name)
        return decode(name, (message.payload for message in self._socket.dump(self._family, request)))

    def apply(self, wanted: Device) -> list[Change]:
        """Make the device and its peers what is wanted; what had to be changed. Raises NetlinkError."""
        actual = self.get(wanted.name)
        changes = difference(wanted, actual)
        self._send(encode(wanted, actual, changes))
        return changes

    def tell(self, name: str, changes: Iterable[Change]) -> None:
        """Change some peers and nothing else. Raises NetlinkError."""
        self._send(encode(Device(name), None, changes))

    def _send(self, payloads: Iterable[bytes]) -> None:
        for payload in payloads:
            self._socket.ask(self._family, payload)
