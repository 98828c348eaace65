"""Bytes of netlink: against another implementation (pyroute2), and against garbage. VLANs, which hosts often lack."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from common.tomlfile import parse
from daemon.linux import netlink, rtnl
from daemon.linux.netlink import Message, NetlinkError, Socket
from daemon.linux.rtnl import Address, Link, Route, Rule
from daemon.parts.net import plan
from daemon.parts.net.netfile import NetworkFile
from daemon.parts.net.plan import ALIAS, Seen


def read(kind: Any, payload: bytes) -> Any:
    """What pyroute2 reads in a payload of ours."""
    found = kind(struct.pack("=IHHII", 16 + len(payload), 16, 5, 1, 0) + payload)
    found.decode()
    return found


# -- what we write ---------------------------------------------------------------------------------------------------


def test_a_vlan() -> None:
    found = read(ifinfmsg, rtnl.encode_link("vlan", "office", 7, 20))
    assert found.get_attr("IFLA_IFNAME") == "office"
    assert found.get_attr("IFLA_LINK") == 7
    info = found.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "vlan"
    assert info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_VLAN_ID") == 20


@pytest.mark.parametrize("address", ["192.0.2.10/24", "2001:db8::10/64"])
def test_an_address(address: str) -> None:
    found = read(ifaddrmsg, rtnl.encode_address(3, address))
    assert f"{found.get_attr('IFA_ADDRESS')}/{found['prefixlen']}" == address
    assert (found["index"], found["family"]) == (3, 10 if ":" in address else 2)


def test_a_route() -> None:
    found = read(rtmsg, rtnl.encode_route(Route("198.51.100.0/24", "192.0.2.1", "eth0", 50, table=51820), 3))
    assert (found.get_attr("RTA_DST"), found["dst_len"]) == ("198.51.100.0", 24)
    assert (found.get_attr("RTA_GATEWAY"), found.get_attr("RTA_OIF")) == ("192.0.2.1", 3)
    assert (found.get_attr("RTA_PRIORITY"), found.get_attr("RTA_TABLE")) == (50, 51820)
    assert (found["proto"], found["type"], found["scope"]) == (rtnl.PROTOCOL, 1, 0)


def test_a_rule() -> None:
    found = read(fibmsg, rtnl.encode_rule(Rule(10, 32765, 51820, mark=51820, inverted=True)))
    assert (found["family"], found["action"], found["flags"]) == (10, 1, 2)
    assert (found.get_attr("FRA_FWMARK"), found.get_attr("FRA_TABLE")) == (51820, 51820)
    assert found.get_attr("FRA_PRIORITY") == 32765


# -- what we read ----------------------------------------------------------------------------------------------------


def test_what_we_write_we_read() -> None:
    route = Route("2001:db8::/32", "2001:db8::1", "eth0", 1024, table=51820)
    assert rtnl.decode_route(rtnl.encode_route(route, 3), {3: "eth0"}) == route
    rule = Rule(2, 5, 254, suppress=0)
    assert rtnl.decode_rule(rtnl.encode_rule(rule)) == rule
    assert rtnl.decode_address(rtnl.encode_address(3, "192.0.2.10/24")) == Address(3, "192.0.2.10/24", True, 0)
    link = rtnl.decode_link(rtnl.encode_link("vlan", "office", 7, 20))
    assert (link.name, link.kind, link.parent, link.vlan) == ("office", "vlan", 7, 20)


DECODERS: list[Callable[[bytes], object]] = [
    rtnl.decode_link,
    rtnl.decode_address,
    rtnl.decode_rule,
    lambda data: rtnl.decode_route(data, {}),
    lambda data: list(netlink.messages(data)),
    lambda data: list(netlink.attributes(data)),
    lambda data: netlink.failure(Message(2, 0x200, 1, data)),
]
WHOLE = [
    rtnl.encode_link("vlan", "office", 7, 20),
    rtnl.encode_address(3, "2001:db8::10/64"),
    rtnl.encode_rule(Rule(2, 5, 254, suppress=0)),
    rtnl.encode_route(Route("198.51.100.0/24", "192.0.2.1", "eth0", 50), 3),
]


def verdict(decode: Callable[[bytes], object], data: bytes) -> str:
    try:
        decode(data)
    except NetlinkError as error:
        return error.reason
    return "read"


@given(st.sampled_from(DECODERS), st.binary(max_size=200))
@settings(max_examples=400, deadline=None)
def test_garbage(decode: Callable[[bytes], object], data: bytes) -> None:
    assert verdict(decode, data) in ("read", "netlink-garbage")


@given(st.sampled_from(list(zip(DECODERS, WHOLE, strict=False))), st.data())
@settings(max_examples=400, deadline=None)
def test_bent_messages(case: tuple[Callable[[bytes], object], bytes], data: st.DataObject) -> None:
    decode, whole = case
    bent = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    assert verdict(decode, bytes(bent[: data.draw(st.integers(0, len(bent)))])) in ("read", "netlink-garbage")


def test_an_answer_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "MAX_ANSWER", 100)
    with Socket(netlink.ROUTE) as channel, pytest.raises(NetlinkError) as caught:
        channel.dump(18, struct.pack("=BxHiII", 0, 0, 0, 0, 0))
    assert caught.value.reason == "netlink-garbage"


@pytest.mark.parametrize(("code", "reason"), [(0, ""), (-90, "netlink-refused")])
def test_a_dump_that_the_kernel_breaks_off_is_not_taken_for_the_whole(code: int, reason: str) -> None:
    """The end mark of a dump carries the error that ended it."""

    class Kernel:
        def sendto(self, data: bytes, _: object) -> None:
            part = netlink.encode(20, netlink.MULTI, 1, bytes(8))
            self.answers = [part, netlink.encode(3, netlink.MULTI, 1, struct.pack("=i", code))]

        def recvmsg(self, _: int) -> tuple[bytes, list[object], int, tuple[int, int]]:
            return self.answers.pop(0), [], 0, (0, 0)

    with Socket(netlink.ROUTE) as channel:
        channel.close()
        channel._socket = Kernel()  # type: ignore[assignment]
        try:
            assert [one.kind for one in channel.dump(22, bytes(8))] == [20]
            assert reason == ""
        except NetlinkError as error:
            assert error.reason == reason  # noqa: PT017
        channel._socket = socket.socket()


def test_a_family_that_is_not_there() -> None:
    with Socket(netlink.GENERIC) as channel:
        assert channel.family("nlctrl") == 16
        with pytest.raises(NetlinkError) as caught:
            channel.family("no-such-family")
    assert caught.value.reason == "netlink-family"


# -- plans that need kinds of links which this host may lack ---------------------------------------------------------


def link(index: int, name: str, kind: str = "", **more: Any) -> Link:
    values = {"up": True, "state": "up", "mtu": 1500, "mac": "", "alias": "", "master": 0, "parent": 0, "vlan": 0}
    return Link(index, name, kind, **{**values, "stp": False, "received": 0, "sent": 0, **more})


VLANS = """
[interface.lan]
bridge = { ports = ["eth0"] }
mode = "none"
[interface.office]
vlan = { parent = "lan", id = 20 }
"""


def steps(text: str, links: list[Link], before: str = "") -> list[tuple[str, ...]]:
    wanted, old = (parse(part, Path("network.toml"), NetworkFile) for part in (text, before))
    return [step for step in plan.plan(wanted, old, Seen({one.name: one for one in links})) if step[0] != "sysctl"]


def test_parents_are_made_before_what_lies_on_them() -> None:
    made = [step for step in steps(VLANS, [link(2, "eth0")]) if step[0] == "create-link"]
    assert made == [("create-link", "lan", "bridge", "", ""), ("create-link", "office", "vlan", "lan", "20")]


def test_what_a_vlan_lies_on_gets_its_mtu_first() -> None:
    """The kernel refuses a VLAN an MTU larger than that of its parent; the file may name them in any order."""
    text = '[interface.office]\nmtu = 9000\nvlan = { parent = "eth0", id = 20 }\n[interface.eth0]\nmtu = 9000\n'
    there = [link(2, "eth0"), link(6, "office", "vlan", alias=ALIAS, parent=2, vlan=20)]
    assert steps(text, there) == [("set-mtu", "eth0", "9000"), ("set-mtu", "office", "9000")]


def test_a_vlan_that_is_as_it_should_be_is_left_alone() -> None:
    bridge = link(5, "lan", "bridge", alias=ALIAS)
    there = [link(2, "eth0", master=5), bridge, link(6, "office", "vlan", alias=ALIAS, parent=5, vlan=20)]
    assert steps(VLANS, there) == []


@pytest.mark.parametrize("wrong", [{"vlan": 21}, {"parent": 2}])
def test_a_vlan_of_another_number_or_parent_is_made_anew(wrong: dict[str, int]) -> None:
    office = link(6, "office", "vlan", alias=ALIAS, **{"parent": 5, "vlan": 20, **wrong})
    there = [link(2, "eth0", master=5), link(5, "lan", "bridge", alias=ALIAS), office]
    assert steps(VLANS, there)[:2] == [
        ("delete-link", "office"),
        ("create-link", "office", "vlan", "lan", "20"),
    ]


def test_a_vlan_waits_for_its_parent() -> None:
    text = "[interface.office]\nvlan = { parent = 'eth9', id = 20 }\n"
    assert steps(text, [link(2, "eth0")]) == []
    assert plan.missing(parse(text, Path("x"), NetworkFile), Seen({"eth0": link(2, "eth0")})) == ["eth9"]
