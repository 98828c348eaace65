"""The codec of WireGuard against bytes, another implementation (pyroute2), and a model of what the kernel does."""

from __future__ import annotations

import base64
import ipaddress
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import wgmsg

from common import addresses
from daemon.linux import netlink, wireguard
from daemon.linux.netlink import NetlinkError, attribute, nested, text, u8, u16
from daemon.linux.wireguard import Change, Device, Endpoint, Peer

ONE, TWO, SECRET = bytes([1]) * 32, bytes([2]) * 32, bytes([9]) * 32

# A whole WG_CMD_SET_DEVICE as linux/wireguard.h describes it, written down by hand (little-endian).
GOLDEN_ENDPOINT = bytes.fromhex("0200ca6cc0000207" + "00" * 8)
GOLDEN = bytes.fromhex(
    "01010000"  # WG_CMD_SET_DEVICE, version 1
    "0800020077673000"  # IFNAME "wg0"
    "24000300"
    + "09"
    * 32  # PRIVATE_KEY
    + "060006006cca0000"  # LISTEN_PORT 51820
    "080007006cca0000"  # FWMARK 51820
    "70000880"  # PEERS, nested, 112 bytes
    "6c000080"  # the first, nested, 108 bytes
    "24000100"
    + "01"
    * 32  # PUBLIC_KEY
    + "0800030002000000"  # FLAGS: replace allowed IPs
    "14000400"
    + "0200ca6cc0000207"
    + "00" * 8  # ENDPOINT 192.0.2.7:51820
    + "0600050019000000"  # PERSISTENT_KEEPALIVE_INTERVAL 25
    "20000980"  # ALLOWEDIPS, nested, 32 bytes
    "1c000080"  # the first, nested, 28 bytes
    "0600010002000000"  # FAMILY AF_INET
    "080002000a000000"  # IPADDR 10.0.0.0
    "0500030008000000"  # CIDR_MASK 8
)


def message(payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), 31, 5, 1, 0) + payload


def understood(payload: bytes) -> Any:
    """What pyroute2 reads in a message of ours."""
    found = wgmsg(message(payload))
    found.decode()
    return found


def test_golden_bytes() -> None:
    peer = Peer(ONE, frozenset({addresses.network("10.0.0.0/8")}), Endpoint("192.0.2.7", 51820), 25)
    wanted = Device("wg0", SECRET, port=51820, mark=51820, peers=(peer,))
    changes = [Change(ONE, 0, None, peer.endpoint, 25, (ipaddress.IPv4Network("10.0.0.0/8"),))]
    (payload,) = wireguard.encode(wanted, Device("wg0"), changes)
    assert payload == GOLDEN


def test_endpoints_are_sockaddrs() -> None:
    assert wireguard.encode_endpoint(Endpoint("192.0.2.7", 51820)) == GOLDEN_ENDPOINT
    six = bytes.fromhex("0a00ca6c00000000" + "fe80" + "00" * 13 + "01" + "03000000")
    assert wireguard.encode_endpoint(Endpoint("fe80::1%3", 51820)) == six


def test_another_implementation_reads_the_same() -> None:
    networks = {addresses.network("10.8.0.2/32"), addresses.network("2001:db8::/64")}
    peer = Peer(ONE, frozenset(networks), Endpoint("2001:db8::5", 7), 25, preshared=TWO)
    wanted = Device("wg0", SECRET, port=7, mark=9, peers=(peer,))
    (payload,) = wireguard.encode(wanted, Device("wg0"), wireguard.difference(wanted, Device("wg0")))
    found = understood(payload)
    assert found.get_attr("WGDEVICE_A_IFNAME") == "wg0"
    assert base64.b64decode(found.get_attr("WGDEVICE_A_PRIVATE_KEY")) == SECRET
    assert (found.get_attr("WGDEVICE_A_LISTEN_PORT"), found.get_attr("WGDEVICE_A_FWMARK")) == (7, 9)
    (one,) = found.get_attr("WGDEVICE_A_PEERS")
    assert base64.b64decode(one.get_attr("WGPEER_A_PUBLIC_KEY")) == ONE
    assert base64.b64decode(one.get_attr("WGPEER_A_PRESHARED_KEY")) == TWO
    assert one.get_attr("WGPEER_A_ENDPOINT")["addr"] == "2001:db8::5"
    assert one.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    assert {ip["addr"] for ip in one.get_attr("WGPEER_A_ALLOWEDIPS")} == {str(network) for network in networks}


def test_we_read_what_another_implementation_writes() -> None:
    given = wgmsg()
    given["cmd"], given["version"] = 0, 1
    peer = {
        "attrs": [
            ["WGPEER_A_PUBLIC_KEY", {"value": base64.b64encode(ONE)}],
            ["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 25],
            ["WGPEER_A_RX_BYTES", 2**40],
            ["WGPEER_A_ENDPOINT", {"addr": "192.0.2.7", "port": 51820, "family": 2}],
        ]
    }
    given["attrs"] = [["WGDEVICE_A_IFNAME", "wg0"], ["WGDEVICE_A_LISTEN_PORT", 7], ["WGDEVICE_A_PEERS", [peer]]]
    given["header"]["type"] = 31
    given.encode()
    (got,) = netlink.messages(bytes(given.data))
    device = wireguard.decode("", [got.payload])
    assert (device.name, device.port) == ("wg0", 7)
    assert device.peers == (Peer(ONE, endpoint=Endpoint("192.0.2.7", 51820), keepalive=25, received=2**40),)


# -- merged dumps ----------------------------------------------------------------------------------------------------


def told(device: Device, peers: Iterable[tuple[bytes, list[str]]], first: bool) -> bytes:
    """One message of a dump as the kernel writes it (wg_get_device_dump): device attributes only in the first."""
    own = [text(2, device.name), attribute(4, device.public), u16(6, device.port)] if first else []
    items = []
    for key, networks in peers:
        allowed = [
            nested(0, [u16(1, 10 if n.version == 6 else 2), attribute(2, n.network_address.packed), u8(3, n.prefixlen)])
            for n in map(addresses.network, networks)
        ]
        items.append(nested(0, [attribute(1, key), *([nested(9, allowed)] if allowed else [])]))
    return struct.pack("=BBH", 0, 1, 0) + b"".join(own) + nested(8, items)


def test_peers_that_are_split_over_messages_are_merged() -> None:
    device = Device("wg0", public=TWO, port=7)
    parts = [
        told(device, [(ONE, ["10.0.0.0/8"]), (TWO, ["10.1.0.1/32"])], True),
        told(device, [(TWO, ["10.1.0.2/32", "2001:db8::1/128"])], False),
        told(device, [(TWO, ["10.1.0.3/32"]), (SECRET, [])], False),
    ]
    found = wireguard.decode("wg0", parts)
    assert (found.public, found.port) == (TWO, 7)
    assert [len(peer.allowed) for peer in found.peers] == [1, 4, 0]


def verdict(data: bytes) -> str:
    try:
        return type(wireguard.decode("wg0", [data])).__name__.lower()
    except NetlinkError as error:
        return error.reason


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_garbage_from_below_is_an_error_or_a_device(data: bytes) -> None:
    assert verdict(data) in ("device", "netlink-garbage")


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_bent_dump_is_an_error_or_a_device(data: st.DataObject) -> None:
    whole = bytearray(told(Device("wg0"), [(ONE, ["10.0.0.0/8", "2001:db8::/64"]), (TWO, [])], True))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert verdict(bytes(whole[: data.draw(st.integers(0, len(whole)))])) in ("device", "netlink-garbage")


def test_too_many_allowed_ips_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wireguard, "MAX_ALLOWED", 10)
    part = told(Device("wg0"), [(ONE, [f"10.0.0.{n}/32" for n in range(11)])], True)
    with pytest.raises(NetlinkError) as caught:
        wireguard.decode("wg0", [part])
    assert caught.value.reason == "netlink-garbage"


# -- changes ---------------------------------------------------------------------------------------------------------


class Model:
    """What wg_set_device does with messages (drivers/net/wireguard/netlink.c), read by another implementation.

    `touched` has the keys of peers that were mentioned: their sessions may be disturbed, all others must not be.
    """

    def __init__(self, device: Device) -> None:
        self.peers = {peer.public: peer for peer in device.peers}
        self.touched: set[bytes] = set()

    def take(self, payload: bytes) -> None:
        assert len(payload) < 65536
        for item in understood(payload).get_attr("WGDEVICE_A_PEERS") or ():
            self.peer(item)

    def peer(self, item: Any) -> None:
        key = base64.b64decode(item.get_attr("WGPEER_A_PUBLIC_KEY"))
        flags = item.get_attr("WGPEER_A_FLAGS") or 0
        self.touched.add(key)
        if flags & 1:
            self.peers.pop(key, None)
            return
        if key not in self.peers:
            if flags & 4:
                return
            self.peers[key] = Peer(key)
        values: dict[str, Any] = {}
        if flags & 2:
            values["allowed"] = frozenset()
        if (keepalive := item.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL")) is not None:
            values["keepalive"] = keepalive
        if (preshared := item.get_attr("WGPEER_A_PRESHARED_KEY")) is not None:
            values["preshared"] = base64.b64decode(preshared)
        if (endpoint := item.get_attr("WGPEER_A_ENDPOINT")) is not None:
            values["endpoint"] = Endpoint(endpoint["addr"], endpoint["port"])
        self.peers[key] = replace(self.peers[key], **values)
        for network in item.get_attr("WGPEER_A_ALLOWEDIPS") or ():
            self.allow(key, addresses.network(network["addr"]))

    def allow(self, key: bytes, network: Any) -> None:
        """An allowed IP belongs to one peer: giving it to another takes it away."""
        for other, peer in self.peers.items():
            if (other == key) != (network in peer.allowed):
                self.peers[other] = replace(peer, allowed=peer.allowed ^ {network})


NETWORKS = [addresses.network(f"10.0.{n}.0/24") for n in range(8)] + [addresses.network("2001:db8::/64")]


@st.composite
def devices(draw: st.DrawFn) -> Device:
    """Devices over few keys and networks, so that two of them have much in common."""
    owners = draw(st.lists(st.integers(0, 5), min_size=len(NETWORKS), max_size=len(NETWORKS)))
    numbers = draw(st.sets(st.integers(1, 5)))
    peers = [
        Peer(
            bytes([n]) * 32,
            frozenset(network for network, owner in zip(NETWORKS, owners, strict=True) if owner == n),
            draw(st.sampled_from([None, Endpoint("192.0.2.1", 1), Endpoint("2001:db8::1", 2)])),
            draw(st.sampled_from([0, 25])),
            draw(st.sampled_from([bytes(32), SECRET])),
        )
        for n in numbers
    ]
    return Device("wg0", SECRET, peers=tuple(peers))


@given(devices(), devices())
@settings(max_examples=150, deadline=None)
def test_a_difference_leads_to_what_is_wanted_and_touches_nothing_else(wanted: Device, actual: Device) -> None:
    model = Model(actual)
    changes = wireguard.difference(wanted, actual)
    for payload in wireguard.encode(wanted, actual, changes):
        model.take(payload)
    assert model.peers.keys() == {peer.public for peer in wanted.peers}
    before = {peer.public: peer for peer in actual.peers}
    for peer in wanted.peers:
        got, old = model.peers[peer.public], before.get(peer.public)
        assert (got.allowed, got.keepalive, got.preshared) == (peer.allowed, peer.keepalive, peer.preshared)
        assert got.endpoint == (old.endpoint if old and old.endpoint else peer.endpoint)
        if old and (old.allowed, old.keepalive, old.preshared) == (peer.allowed, peer.keepalive, peer.preshared):
            assert peer.public not in model.touched or old.endpoint is None
    assert wireguard.difference(wanted, Device("wg0", SECRET, peers=tuple(model.peers.values()))) == []


def test_many_peers_and_a_peer_with_many_networks_are_sent_in_parts() -> None:
    def large() -> Iterator[Peer]:
        everywhere = frozenset(addresses.network((0x0B000000 + n, 32)) for n in range(1500))
        yield Peer(SECRET, everywhere, keepalive=25)
        for n in range(1, 400):
            yield Peer(struct.pack(">I", n) * 8, frozenset({addresses.network((0x0A000000 + n, 32))}))

    wanted = Device("wg0", ONE, peers=tuple(large()))
    payloads = wireguard.encode(wanted, Device("wg0"), wireguard.difference(wanted, Device("wg0")))
    assert len(payloads) > 3
    model = Model(Device("wg0"))
    for payload in payloads:
        model.take(payload)
    assert model.peers == {peer.public: peer for peer in wanted.peers}


def test_nothing_to_say_is_no_message() -> None:
    device = Device("wg0", SECRET, port=5, peers=(Peer(ONE),))
    assert wireguard.encode(device, device, wireguard.difference(device, device)) == []


def test_no_secret_shows() -> None:
    peer = Peer(ONE, preshared=SECRET)
    shown = repr(peer) + repr(Device("wg0", SECRET, peers=(peer,)))
    assert SECRET.hex() not in shown
    assert repr(SECRET) not in shown
