"""Interfaces for real: in network namespaces of this host, looked at with `ip`, which knows nothing of our codec."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from buildsys.run import run
from common.errors import MixosError
from common.tomlfile import parse
from daemon.core.change import record
from daemon.core.change.applier import View, Wish
from daemon.core.part import Context
from daemon.linux.netlink import Message, NetlinkError, Socket
from daemon.linux.rtnl import MAIN_TABLE, Link, Route, Rtnl, Rule
from daemon.linux.wireguard import Change, Device, Endpoint
from daemon.parts.config.part import Config, Put
from daemon.parts.net import engine as part_engine
from daemon.parts.net import part
from daemon.parts.net.part import Set
from daemon.parts.net.plan import Seen, below
from daemon.parts.vpn import engine as vpn_engine
from daemon.parts.vpn import keys, resolve, tunnel, wgquick
from daemon.parts.vpn import part as part_of_vpn
from daemon.parts.vpn.model import Tunnel, VpnFile
from daemon.parts.vpn.part import Vpn
from daemon.parts.vpn.requests import AddPeer, ChangeInterface, ChangePeer, Import, Init, OfInterface, OfPeer, Rotate
from tests.integration.boxes import CALLER, NOTHING, Box, addresses, cable, ip, routes

pytestmark = pytest.mark.usefixtures("namespace")


def links() -> set[str]:
    return {row["ifname"] for row in ip("link")}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


STATIC = """
dns = ["192.0.2.53"]
[interface.eth0]
mode = "static"
addresses = ["192.0.2.10/24", "2001:db8::10/64"]
gateways = ["192.0.2.1", "2001:db8::1"]
mtu = 1400
ipv6 = "static"
[[interface.eth0.routes]]
to = "198.51.100.0/24"
via = "192.0.2.254"
metric = 50
"""


# -- rtnetlink -------------------------------------------------------------------------------------------------------


def test_what_we_read_is_what_ip_says() -> None:
    cable()
    run(["ip", "link", "add", "br0", "type", "bridge", "stp_state", "1"])
    run(["ip", "link", "set", "eth0", "master", "br0", "mtu", "1300", "alias", "hällo"])
    with Rtnl() as rtnl:
        found = rtnl.links()
    told = {row["ifname"]: row for row in ip("-details", "link")}
    assert found.keys() == told.keys()
    for name, link in found.items():
        row = told[name]
        kind = row.get("linkinfo", {}).get("info_kind", "")
        assert (link.index, link.mac, link.mtu, link.kind) == (row["ifindex"], row["address"], row["mtu"], kind)
        assert link.up == ("UP" in row["flags"])
        assert link.state.upper() == row["operstate"]
    assert found["eth0"].master == found["br0"].index
    assert found["eth0"].alias == "hällo"
    assert found["br0"].stp


def test_addresses_and_routes_arrive(box: Box) -> None:
    cable()
    with Rtnl() as rtnl:
        rtnl.change("eth0", up=True)
        rtnl.add_address("eth0", "192.0.2.10/24")
        rtnl.add_address("eth0", "192.0.2.10/24")  # twice is once
        rtnl.add_address("eth0", "2001:db8::10/64")
        wanted = [
            Route("0.0.0.0/0", "192.0.2.1", "eth0", 7),
            Route("198.51.100.0/24", "", "eth0", 0),
            Route("2001:db8:1::/48", "2001:db8::1", "eth0", 1024),
            Route("203.0.113.0/24", "192.0.2.2", "eth0", 0, table=51820),
        ]
        for route in wanted:
            rtnl.add_route(route)
        assert set(wanted) <= set(rtnl.routes())
        assert addresses("eth0") == {"192.0.2.10/24", "2001:db8::10/64"}
        assert routes() == {("default", "192.0.2.1", "eth0"), ("198.51.100.0/24", "", "eth0")}
        assert ip("route", "show", "table", "51820")[0]["dst"] == "203.0.113.0/24"
        for route in wanted:
            rtnl.remove_route(route)
            rtnl.remove_route(route)  # gone is gone
        rtnl.remove_address("eth0", "192.0.2.10/24")
        rtnl.remove_address("eth0", "192.0.2.10/24")
    assert routes() == set()
    assert addresses("eth0") == {"2001:db8::10/64"}


def test_rules_are_what_wg_quick_makes() -> None:
    with Rtnl() as rtnl:
        rules = [Rule(family, 32764, MAIN_TABLE, suppress=0) for family in (2, 10)]
        rules += [Rule(family, 32765, 51820, mark=51820, inverted=True) for family in (2, 10)]
        for rule in rules:
            rtnl.add_rule(rule)
        assert set(rules) <= set(rtnl.rules())
        told = ip("rule")
        assert {"priority": 32764, "src": "all", "table": "main", "suppress_prefixlen": 0}.items() <= told[1].items()
        assert {"not": None, "fwmark": "0xca6c", "table": "51820"}.items() <= told[2].items()
        for rule in rules:
            rtnl.remove_rule(rule)
            rtnl.remove_rule(rule)
        assert not [rule for rule in rtnl.rules() if rule in rules]


def test_the_kernel_says_why() -> None:
    cable()
    with Rtnl() as rtnl, pytest.raises(NetlinkError) as caught:
        rtnl.add_route(Route("0.0.0.0/0", "192.0.2.1", "eth0", 0))
    assert caught.value.reason == "netlink-refused"
    assert caught.value.errno
    with Rtnl() as rtnl, pytest.raises(NetlinkError) as caught:
        rtnl.change("absent", up=True)
    assert caught.value.reason == "net-interface"


def test_a_large_dump_is_complete() -> None:
    cable()
    batch = "".join(f"address add 10.{n >> 8}.{n & 255}.1/32 dev eth0\n" for n in range(3000))
    run(["ip", "-batch", "-"], stdin=batch.encode())
    with Rtnl() as rtnl:
        assert sum(address.address.endswith("/32") for address in rtnl.addresses()) == 3000


# -- network.toml ----------------------------------------------------------------------------------------------------


def test_static_set_up_and_again_nothing_to_do(box: Box) -> None:
    async def scenario() -> None:
        cable()
        first = await box.apply(STATIC)
        assert first["steps"]
        assert addresses("eth0") == {"192.0.2.10/24", "2001:db8::10/64"}
        assert routes() == {("default", "192.0.2.1", "eth0"), ("198.51.100.0/24", "192.0.2.254", "eth0")}
        assert routes("-6") == {("default", "2001:db8::1", "eth0")}
        assert ip("link", "show", "eth0")[0]["mtu"] == 1400
        assert Path("/proc/sys/net/ipv6/conf/eth0/accept_ra").read_text() == "0\n"
        assert box.resolv() == "nameserver 192.0.2.53\n"
        assert (await box.apply(STATIC))["steps"] == []
        # The daemon of a later boot finds the same.
        again = Box(box.context.etc.parent)
        await again.part.start()
        assert (await again.part.check(CALLER, NOTHING))["steps"] == []
        await again.part.stop()

    asyncio.run(scenario())


def test_a_new_address_replaces_the_old_one_in_its_network(box: Box) -> None:
    """The kernel takes secondary addresses away with their primary one, unless told otherwise."""

    async def scenario() -> None:
        cable()
        await box.apply('[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.10/24"]\ngateways = ["192.0.2.1"]\n')
        await box.apply('[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.11/24"]\ngateways = ["192.0.2.1"]\n')
        assert addresses("eth0") == {"192.0.2.11/24"}
        assert routes() == {("default", "192.0.2.1", "eth0")}

    asyncio.run(scenario())


BRIDGE = """
[interface.lan]
mode = "static"
addresses = ["192.0.2.1/24"]
bridge = { ports = ["eth0", "eth1"], stp = true }
"""


def test_bridge_with_ports_comes_and_goes(box: Box) -> None:
    async def scenario() -> None:
        cable("eth0", "far0")
        cable("eth1", "far1")
        run(["ip", "address", "add", "198.51.100.1/24", "dev", "eth0"])
        await box.apply(BRIDGE)
        ports = {row["ifname"] for row in ip("link", "show", "master", "lan")}
        assert ports == {"eth0", "eth1"}
        assert addresses("lan") == {"192.0.2.1/24"}
        assert addresses("eth0") == set()  # a port has no address of its own
        assert ip("-details", "link", "show", "lan")[0]["linkinfo"]["info_data"]["stp_state"] == 1
        await box.apply(BRIDGE.replace(', "eth1"', "").replace("true", "false"))
        assert {row["ifname"] for row in ip("link", "show", "master", "lan")} == {"eth0"}
        await box.apply("")
        assert "lan" not in links()
        assert "eth0" in links()

    asyncio.run(scenario())


def test_an_interface_that_the_file_does_not_name_is_left_alone(box: Box) -> None:
    async def scenario() -> None:
        cable("eth0", "far0")
        cable("eth1", "far1")
        run(["ip", "link", "set", "eth1", "up", "mtu", "1280"])
        run(["ip", "address", "add", "198.51.100.1/24", "dev", "eth1"])
        run(["ip", "link", "add", "theirs", "type", "bridge"])
        before = ip("address", "show", "dev", "eth1")
        await box.part.start()  # no network.toml at all
        await box.apply(STATIC)
        await box.apply("")
        await box.part.stop()
        assert ip("address", "show", "dev", "eth1") == before
        assert "theirs" in links()
        assert addresses("eth0") == set()
        assert ip("link", "show", "eth0")[0]["mtu"] == 1500

    asyncio.run(scenario())


def test_a_name_that_is_taken_is_a_conflict_before_anything_changes(box: Box) -> None:
    async def scenario() -> None:
        cable("eth0", "far0")
        cable("lan", "far1")
        before = ip("address")
        with pytest.raises(MixosError) as caught:
            await box.apply(BRIDGE + STATIC)
        assert caught.value.reason in ("net-conflict", "config-value")
        with pytest.raises(MixosError) as caught:
            await box.apply(BRIDGE)
        assert caught.value.reason == "net-conflict"
        assert ip("address") == before

    asyncio.run(scenario())


def test_what_fails_half_way_is_undone(box: Box) -> None:
    """The last route leads to a gateway that nobody can reach: the kernel refuses it after the address was added."""

    async def scenario() -> None:
        cable("eth0", "far0")
        cable("eth1", "far1")
        await box.apply(STATIC)
        bad = STATIC.replace("192.0.2.10/24", "192.0.2.20/24") + BRIDGE.replace("192.0.2.1/24", "10.0.0.1/24").replace(
            '"eth0", "eth1"', '"eth1"'
        )
        with pytest.raises(MixosError) as caught:
            await box.apply(bad + '[[interface.lan.routes]]\nto = "203.0.113.0/24"\nvia = "172.16.0.1"\n')
        assert caught.value.reason == "netlink-refused"
        assert addresses("eth0") == {"192.0.2.10/24", "2001:db8::10/64"}
        assert ("default", "192.0.2.1", "eth0") in routes()
        assert "lan" not in links()
        assert not list((box.context.run / "net").glob("eth1.want"))

    asyncio.run(scenario())


def test_an_interface_that_comes_later_is_set_up(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "SETTLE_SECONDS", 0.05)

    async def scenario() -> None:
        box.file.write_text(STATIC)
        await box.part.start()
        assert (await box.part.report(CALLER, NOTHING))["missing"] == ["eth0"]
        cable()
        for _ in range(200):
            await asyncio.sleep(0.05)
            if addresses("eth0") == {"192.0.2.10/24", "2001:db8::10/64"} and len(routes()) == 2:
                break
        assert routes() == {("default", "192.0.2.1", "eth0"), ("198.51.100.0/24", "192.0.2.254", "eth0")}
        await box.part.stop()

    asyncio.run(scenario())


def test_an_interface_that_comes_with_many_others_is_set_up(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops what it would tell of it when we have not read what it told of the others."""
    monkeypatch.setattr(part, "SETTLE_SECONDS", 0.05)

    async def scenario() -> None:
        box.file.write_text(STATIC)
        await box.part.start()
        lines = [f"link add d{n} type veth peer name p{n}\nlink set d{n} up\nlink set p{n} up\n" for n in range(30)]
        run(["ip", "-batch", "-"], stdin="".join(lines).encode())
        cable()
        for _ in range(200):
            await asyncio.sleep(0.05)
            if "192.0.2.10/24" in addresses("eth0"):
                break
        assert "192.0.2.10/24" in addresses("eth0")
        await box.part.stop()

    asyncio.run(scenario())


def test_set_changes_the_file_and_nothing_else(box: Box) -> None:
    async def scenario() -> None:
        cable()
        await box.apply("# mine\n" + STATIC)
        done: Any = await box.part.set(CALLER, Set(name="eth0", values={"mtu": 1300, "metric": 5}))
        assert box.file.read_text().startswith("# mine\n")
        assert len(done["steps"]) >= 1
        assert ip("link", "show", "eth0")[0]["mtu"] == 1400
        with pytest.raises(MixosError) as caught:
            await box.part.set(CALLER, Set(name="eth0", values={"mtu": 1}))
        assert caught.value.reason == "config-value"
        assert "1300" in box.file.read_text()

    asyncio.run(scenario())


# -- trial -----------------------------------------------------------------------------------------------------------

OTHER = STATIC.replace("192.0.2.10/24", "192.0.2.99/24")


def test_not_confirmed_is_undone(box: Box) -> None:
    async def scenario() -> None:
        cable()
        await box.apply(STATIC)
        ended = asyncio.ensure_future(anext(box.context.events.listen("net.reverted")))
        await asyncio.sleep(0)
        await box.apply(OTHER, confirm=1)
        assert "192.0.2.99/24" in addresses("eth0")
        with pytest.raises(MixosError) as caught:
            await box.apply(OTHER)
        assert caught.value.reason == "change-pending"
        await asyncio.wait_for(ended, 30)
        assert addresses("eth0") == {"192.0.2.10/24", "2001:db8::10/64"}
        with pytest.raises(MixosError) as caught:
            await box.part.confirm(CALLER, NOTHING)
        assert caught.value.reason == "change-nothing"

    asyncio.run(scenario())


def everything() -> list[str]:
    """Links, addresses and routes, but for what the kernel makes by itself of the others, in its own time."""
    links = [(row["ifname"], row["mtu"], row.get("master"), "UP" in row["flags"]) for row in ip("link")]
    found = [
        (row["ifname"], {key: value for key, value in one.items() if not key.endswith("_life_time")})
        for row in ip("address")
        for one in row["addr_info"]
        if one["scope"] != "link" and row["ifname"] != "lo"
    ]
    for one in (one for _, one in found):
        one.pop("tentative", None)
    rows = [*ip("route", "show", "table", "all"), *ip("-6", "route", "show", "table", "all")]
    others = [{**row, "flags": []} for row in rows if row.get("protocol") != "kernel"]
    return sorted(json.dumps(one, sort_keys=True) for one in (*links, *found, *others))


def made_by_others() -> None:
    """What an administrator and a lease have put on eth0: addresses with lifetimes, routes with all they can have."""
    cable("eth0", "far0")
    cable("eth1", "far1")
    for words in (
        "ip link set eth0 mtu 1480 up",
        "ip link set eth1 up",
        "ip address add 203.0.113.5/24 dev eth0 valid_lft 3600 preferred_lft 1800",
        "ip address add 203.0.113.6/24 dev eth0 label eth0:two",
        "ip address add 2001:db8:7::5/64 dev eth0 nodad",
        "ip route add default via 203.0.113.1 dev eth0 metric 102 proto dhcp",
        "ip route add 198.51.100.0/24 via 203.0.113.2 dev eth0 proto boot mtu lock 1300 advmss 1200",
        "ip route add 198.51.101.0/24 dev eth0 scope link src 203.0.113.6 table 100",
        "ip -6 route add 2001:db8:9::/48 via 2001:db8:7::1 dev eth0 metric 77 proto static",
    ):
        run(words.split())


@pytest.mark.parametrize("how", ["revert", "fails", "restart", "deadline"])
@pytest.mark.parametrize(
    "tried",
    [
        '[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.10/24"]\ngateways = ["192.0.2.1"]\nmtu = 1400\n',
        '[interface.br]\nmode = "static"\naddresses = ["192.0.2.10/24"]\nbridge = { ports = ["eth0", "eth1"] }\n',
        '[interface.eth0]\nmode = "none"\nipv6 = "off"\n[interface.eth1]\nmode = "none"\nmtu = 1300\n',
    ],
    ids=["static", "bridge", "off"],
)
def test_what_others_had_made_is_back(box: Box, monkeypatch: pytest.MonkeyPatch, how: str, tried: str) -> None:
    async def scenario() -> None:
        made_by_others()
        before = everything()
        if how == "fails":
            real, done = part_engine.execute, []

            def execute(*words: Any) -> None:
                done.append(words)
                if len(done) == 4:
                    raise OSError(errno.EIO, "broken")
                real(*words)

            with monkeypatch.context() as patch:
                patch.setattr(part_engine, "execute", execute)
                with pytest.raises(OSError, match="broken"):
                    await box.apply(tried, confirm=600)
        else:
            await box.apply(tried, confirm=600)
            assert everything() != before
        if how == "revert":
            await box.part.revert(CALLER, NOTHING)
        if how in ("restart", "deadline"):
            await box.context.changes.stop()
            if how == "deadline":
                now = record.boottime()
                monkeypatch.setattr(record, "boottime", lambda: now + 700)
            again = Box(box.context.etc.parent)
            await again.part.start()
            if how == "restart":
                assert again.part.status()["file"] == "trial"
                await again.part.revert(CALLER, NOTHING)
            await again.part.stop()
        assert everything() == before

    asyncio.run(scenario())


def test_an_mtu_that_is_too_small_for_ipv6_and_back(box: Box) -> None:
    """The kernel takes everything of IPv6 away before we do, and brings it back without what others had added."""

    def there() -> list[str]:
        rows = ip("-6", "route", "show", "table", "all", "dev", "eth0")
        found = [row["dst"] for row in rows]
        return sorted(found + [one["local"] for row in ip("-6", "address", "show", "eth0") for one in row["addr_info"]])

    async def scenario() -> None:
        made_by_others()
        before = there()
        await box.apply('[interface.eth0]\nmode = "none"\nipv6 = "off"\nmtu = 600\n', confirm=600)
        assert there() == []
        await box.part.revert(CALLER, NOTHING)
        for _ in range(100):
            if there() == before:
                break
            await asyncio.sleep(0.1)  # for the kernel's own addresses
        assert there() == before

    asyncio.run(scenario())


# wanted: static /32 with off-link gateway
@pytest.mark.parametrize(
    ("own", "hop"), [("192.0.2.9/32", "198.51.100.1"), ("2001:db8::9/128", "2001:db8:1::1")], ids=["ipv4", "ipv6"]
)
def test_a_single_address_has_its_gateway_on_the_link(box: Box, own: str, hop: str) -> None:
    text = f'[interface.eth0]\nmode = "static"\naddresses = ["{own}"]\ngateways = ["{hop}"]\n'

    async def scenario() -> None:
        cable()
        for metric in ("", "metric = 7\n"):
            await box.apply(text + metric)
            assert {(hop, "", "eth0"), ("default", hop, "eth0")} <= routes("-6" if ":" in hop else "-4")
            assert (await box.part.check(CALLER, NOTHING))["steps"] == []
        await box.apply('[interface.eth0]\nmode = "none"\n')
        assert not [one for one in routes("-6" if ":" in hop else "-4") if one[0] != "fe80::/64"]

    asyncio.run(scenario())


# case: N15
@pytest.mark.parametrize("how", ["works", "fails", "revert"])
def test_ipv6_goes_with_an_mtu_that_is_too_small_for_it(box: Box, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The kernel takes addresses, routes and switches of IPv6 away by itself: what is done to them comes before."""
    six = 'addresses = ["192.0.2.10/24", "2001:db8::10/64"]\ngateways = ["2001:db8::1"]\nipv6 = "static"\n'
    more = '[[interface.eth0.routes]]\nto = "2001:db8:5::/48"\nvia = "2001:db8::2"\n'
    start = f'[interface.eth0]\nmode = "static"\n{six}{more}'
    tiny = '[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.10/24"]\nipv6 = "off"\nmtu = 1200\n'
    if how == "fails":
        tiny += '[[interface.eth0.routes]]\nto = "198.51.100.0/24"\nvia = "172.16.0.1"\n'

    async def scenario() -> None:
        cable()
        await box.apply(start)
        before, routes_before = everything(), routes("-6")
        assert ("2001:db8:5::/48", "2001:db8::2", "eth0") in routes_before
        if how == "fails":
            with pytest.raises(MixosError) as caught:
                await box.apply(tiny)
            assert caught.value.reason == "netlink-refused"
        else:
            await box.apply(tiny, confirm=600 if how == "revert" else 0)
            assert addresses("eth0") == {"192.0.2.10/24"}
            assert (await box.part.check(CALLER, NOTHING))["steps"] == []
            if how == "works":
                await box.apply(start)  # and the way back, with IPv6 from nothing
            else:
                await box.part.revert(CALLER, NOTHING)
        assert everything() == before
        assert addresses("eth0") == {"192.0.2.10/24", "2001:db8::10/64"}
        assert not box.part.engine.plan(box.part.engine.config, box.part.engine.config)[1]

    asyncio.run(scenario())


REMOTE = CALLER._replace(origin="ssh 192.0.2.77 (claimed)")


@pytest.mark.parametrize(
    ("connection", "text", "seconds"),
    [
        ("192.0.2.77 50000 192.0.2.10 22", OTHER, 60),  # its own address goes
        ("192.0.2.77 50000 192.0.2.10 22", STATIC.replace('"192.0.2.10/24"', '"192.0.2.10/24", "192.0.2.11/24"'), None),
        ("192.0.2.77 50000 198.51.100.9 22", OTHER, None),  # comes in by another interface
        ("", OTHER, 60),  # from somewhere, nobody knows by which interface
        ("", STATIC, None),  # nothing is done
    ],
)
def test_what_could_cut_the_caller_off_is_on_trial(box: Box, connection: str, text: str, seconds: int | None) -> None:
    async def scenario() -> None:
        cable("eth0", "far0")
        cable("eth1", "far1")
        run(["ip", "address", "add", "198.51.100.9/24", "dev", "eth1"])
        await box.apply(STATIC)
        box.file.write_text(text)
        answer = await box.part.apply(REMOTE._replace(connection=connection), Wish())
        assert answer["confirm"] == seconds
        await box.context.changes.stop()

    asyncio.run(scenario())


PORT = '[interface.lan]\nmode = "static"\naddresses = ["192.0.2.10/24"]\nbridge = { ports = [%s] }\n'
WAY_OUT = '[interface.eth1]\nmode = "static"\naddresses = ["192.0.2.10/24"]\ngateways = ["192.0.2.1"]\n'


@pytest.mark.parametrize(
    ("peer", "local", "first", "then"),
    [
        ("192.0.2.77", "192.0.2.10", PORT % '"eth1"', PORT % ""),  # the bridge has no way to the link any more
        ("203.0.113.77", "198.51.100.9", "", WAY_OUT),  # answers would leave by another way
    ],
    ids=["port", "route"],
)
def test_what_cuts_off_without_touching_the_interface_is_on_trial(
    box: Box, peer: str, local: str, first: str, then: str
) -> None:
    async def scenario() -> None:
        cable("eth0", "far0")
        cable("eth1", "far1")
        for words in ("address add 198.51.100.9/24 dev eth0", "link set eth0 up", "route add default via 198.51.100.1"):
            run(["ip", *words.split()])
        await box.apply(first)
        box.file.write_text(then)
        answer = await box.part.apply(REMOTE._replace(connection=f"{peer} 50000 {local} 22"), Wish())
        assert answer["confirm"] == 60
        await box.context.changes.stop()

    asyncio.run(scenario())


def test_below_an_interface_is_what_carries_it() -> None:
    """This host's kernel may have no VLANs."""

    def link(index: int, name: str, kind: str = "", **others: int) -> Link:
        values: dict[str, Any] = {"up": True, "state": "up", "mtu": 1500, "mac": "", "alias": "", "vlan": 0}
        values |= {"stp": False, "received": 0, "sent": 0, "master": 0, "parent": 0, **others}
        return Link(index=index, name=name, kind=kind, **values)

    links = [link(1, "eth0", "veth", master=3, parent=2), link(2, "far0", "veth", parent=1), link(3, "lan", "bridge")]
    seen = Seen({one.name: one for one in [*links, link(4, "office", "vlan", parent=3)]})
    assert below("office", seen) == {"office", "lan", "eth0"}
    assert below("far0", seen) == {"far0"}
    assert below("gone", seen) == set()


def kernels() -> set[tuple[str, str, int, str, str]]:
    """Routes of the main tables, the kernel's own included; without those of links, which come in their own time."""
    rows = [*ip("route", "show"), *ip("-6", "route", "show")]
    found = {
        (row["dst"], row.get("gateway", ""), row.get("metric", 0), row["dev"], row.get("prefsrc", ""))
        for row in rows
        if row["dst"] != "fe80::/64"
    }
    assert found
    return found


# case: N1
@pytest.mark.parametrize("how", ["revert", "restart", "fails"])
@pytest.mark.parametrize(
    ("mode", "own", "to", "via"),
    [
        ("static", "198.51.100.5/24", "203.0.113.0/24", "198.51.100.1"),
        ("none", "2001:db8:1::5/64", "2001:db8:7::/64", "2001:db8:1::1"),
    ],
    ids=["ipv4", "ipv6"],
)
def test_a_connected_route_that_a_new_one_replaces_comes_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, how: str, mode: str, own: str, to: str, via: str
) -> None:
    """That of an interface that the file does not name, where its address came by itself."""
    metric = 256 if ":" in to else 0  # IP6_RT_PRIO_ADDRCONF
    text = f'[interface.lan]\nmode = "{mode}"\naddresses = ["{own}"]\nbridge = {{}}\n'
    text += f'[[interface.lan.routes]]\nto = "{to}"\nvia = "{via}"\nmetric = {metric}\n'

    async def scenario() -> None:
        made_by_others()
        before, all_before = kernels(), everything()
        if how == "fails":
            real = part_engine.execute

            def execute(*words: Any) -> None:
                real(*words)
                if words[0][0] == "add-route":
                    raise OSError(errno.EIO, "broken")

            monkeypatch.setattr(part_engine, "execute", execute)
            with pytest.raises(OSError, match="broken"):
                await box.apply(text)
        else:
            await box.apply(text, confirm=600)
            assert (to, via, metric, "lan", "") in kernels()
        if how == "revert":
            await box.part.revert(CALLER, NOTHING)
        if how == "restart":
            await box.context.changes.stop()
            now = record.boottime()
            monkeypatch.setattr(record, "boottime", lambda: now + 700)
            again = Box(box.context.etc.parent)
            await again.part.start()
            await again.part.stop()
        assert kernels() == before
        assert everything() == all_before

    asyncio.run(scenario())


# case: N2
def test_the_way_out_of_an_interface_that_the_file_does_not_name_comes_back(box: Box) -> None:
    """The kernel has one route for a destination and a metric: a new one takes the place of anybody's."""

    async def scenario() -> None:
        made_by_others()
        run(["ip", "route", "add", "default", "via", "203.0.113.2", "dev", "eth0", "proto", "boot"])
        before = everything()
        box.file.write_text(WAY_OUT)
        checked = (await box.part.check(CALLER, NOTHING))["steps"]
        done = (await box.apply(WAY_OUT, confirm=600))["steps"]
        assert [sum("via 203.0.113.2 on eth0" in step for step in steps) for steps in (checked, done)] == [1, 1]
        assert ("default", "203.0.113.2", "eth0") not in routes()
        await box.part.revert(CALLER, NOTHING)
        assert everything() == before

    asyncio.run(scenario())


def test_whoever_goes_away_half_way_stops_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call ends by its time-out: what nobody was told of is complete all the same, and on trial."""

    async def scenario() -> None:
        cable()
        await box.apply(STATIC)
        hand_over = box.part.engine._hand_over

        async def slow(*words: Any) -> None:
            await asyncio.sleep(0.3)
            await hand_over(*words)

        monkeypatch.setattr(box.part.engine, "_hand_over", slow)
        ended = asyncio.ensure_future(anext(box.context.events.listen("net.reverted")))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await box.apply(STATIC.replace("192.0.2.10", "192.0.2.11"), confirm=1)
        await asyncio.wait_for(ended, 30)
        assert "192.0.2.10/24" in addresses("eth0")
        assert "192.0.2.11/24" not in addresses("eth0")
        assert box.part._differs()

    asyncio.run(scenario())


def test_a_full_disk_keeps_nobody_out(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be recorded is not confirmed, and what is not confirmed goes back."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario() -> None:
        cable()
        await box.apply(STATIC)
        with monkeypatch.context() as patch:
            patch.setattr(record, "write_atomically", full)
            with pytest.raises(MixosError) as caught:
                await box.apply(STATIC.replace("192.0.2.10", "192.0.2.11"), confirm=60)
            assert caught.value.reason == "change-journal"
            assert "192.0.2.10/24" in addresses("eth0")
        ended = asyncio.ensure_future(anext(box.context.events.listen("net.reverted")))
        await asyncio.sleep(0)
        await box.apply(STATIC.replace("192.0.2.10", "192.0.2.11"), confirm=1)
        with monkeypatch.context() as patch:
            patch.setattr(record, "write_atomically", full)
            with pytest.raises(MixosError) as caught:
                await box.part.confirm(CALLER, NOTHING)
            assert caught.value.reason == "change-journal"
            await asyncio.wait_for(ended, 30)
        assert "192.0.2.10/24" in addresses("eth0")
        again = Box(box.context.etc.parent)
        await again.part.start()
        assert "192.0.2.10/24" in addresses("eth0")
        await again.part.stop()

    asyncio.run(scenario())


def test_a_name_that_somebody_took_later_is_a_problem_and_no_crash(box: Box) -> None:
    async def scenario() -> None:
        cable()
        await box.apply('[interface.lan]\nmode = "none"\nbridge = { ports = ["eth0"] }\n')
        run(["ip", "link", "del", "lan"])
        cable("lan", "far1")
        await box.part._settle()
        assert box.part.engine.problem is not None
        assert box.part.engine.problem.reason == "net-conflict"

    asyncio.run(scenario())


def test_what_people_write_while_their_file_is_on_trial(box: Box) -> None:
    """`net.set` is refused, since the file is not what is in force; an edit by hand is in the history."""
    tried = STATIC.replace("mtu = 1400", "mtu = 1380")

    async def scenario() -> None:
        cable()
        await box.apply(STATIC)
        config = Config(box.context)
        await config.start()
        try:
            put = Put.model_validate({"path": "network.toml", "text": tried, "confirm": 600})
            await config.put(CALLER, put)
            with pytest.raises(MixosError) as caught:
                await box.part.set(CALLER, Set(name="eth0", values={"metric": 7}))
            assert caught.value.reason == "change-pending"
            box.file.write_text(STATIC + "# by hand\n")
            await box.part.confirm(CALLER, NOTHING)
            assert box.file.read_text() == tried
            config.record("root", "net confirm")
            newest, before = (config.history.get(number) for number in (0, -1))
            assert (newest.who, before.who) == ("root", "by hand")
            assert "# by hand" in config.history.content(before.files["network.toml"][0]).decode()
        finally:
            await config.stop()

    asyncio.run(scenario())


def test_the_kernel_is_asked_for_all_routes_once(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router has a great many of them, and the loop stands still meanwhile."""
    asked: list[None] = []
    real = Rtnl.raw_routes

    def counted(self: Rtnl) -> dict[int, list[bytes]]:
        asked.append(None)
        return real(self)

    monkeypatch.setattr(Rtnl, "raw_routes", counted)

    async def scenario() -> None:
        for number in range(4):
            cable(f"eth{number}", f"far{number}")
        tables = [f'[interface.eth{n}]\nmode = "static"\naddresses = ["192.0.{n}.10/24"]\n' for n in range(4)]
        await box.apply("".join(tables), confirm=600)
        assert len(asked) == 1
        await box.part.revert(CALLER, NOTHING)
        assert len(asked) == 2

    asyncio.run(scenario())


def test_the_loop_never_waits_for_the_kernel(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes come by the hundred thousand: what reads, plans and does them is in other threads."""
    asked: set[int] = set()
    real = Socket._exchange

    def exchange(self: Socket, kind: int, flags: int, payload: bytes) -> list[Message]:
        asked.add(threading.get_ident())
        return real(self, kind, flags, payload)

    monkeypatch.setattr(Socket, "_exchange", exchange)

    async def scenario() -> None:
        cable()
        await box.part.start()
        try:
            await box.apply(STATIC, confirm=600)
            run(["ip", "link", "set", "eth0", "down"])
            await box.part._settle()
            await box.part.revert(CALLER, NOTHING)
            await box.part.report(CALLER, NOTHING)
            await box.part.show(CALLER, part.Named(name="eth0"))
            await box.part.check(CALLER, NOTHING)
            await box.part.set(CALLER, Set(name="eth0", values={"metric": 7}))
        finally:
            await box.part.stop()
        assert asked
        assert threading.get_ident() not in asked

    asyncio.run(scenario())


def test_a_link_that_was_cut_off_before_it_was_marked_goes(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(self: Rtnl, name: str, **others: Any) -> None:
        if "alias" in others:
            raise OSError(errno.EIO, "cut off")
        real(self, name, **others)

    real = Rtnl.change

    async def scenario() -> None:
        cable()
        await box.apply("")
        with monkeypatch.context() as patch:
            patch.setattr(Rtnl, "change", change)
            with pytest.raises(OSError, match="cut off"):
                await box.apply('[interface.br]\nmode = "none"\nbridge = { ports = ["eth0"] }\n')
        assert links() == {"lo", "eth0", "far0"}

    asyncio.run(scenario())


def test_a_bridge_of_somebody_else_keeps_its_spanning_tree(box: Box) -> None:
    def stp() -> int:
        found: int = ip("-details", "link", "show", "br0")[0]["linkinfo"]["info_data"]["stp_state"]
        return found

    async def scenario() -> None:
        cable()
        run(["ip", "link", "add", "br0", "up", "type", "bridge", "stp_state", "1"])
        await box.apply('[interface.br0]\nmode = "none"\nbridge = { ports = ["eth0"] }\n', confirm=600)
        assert stp() == 0
        await box.part.revert(CALLER, NOTHING)
        assert stp() == 1
        assert "br0" in links()

    asyncio.run(scenario())


def test_confirmed_stays(box: Box) -> None:
    async def scenario() -> None:
        cable()
        await box.apply(STATIC)
        await box.apply(OTHER, confirm=60)
        await box.part.confirm(CALLER, NOTHING)
        again = Box(box.context.etc.parent)
        await again.part.start()
        assert again.part.status()["file"] == "ok"
        await again.part.stop()
        assert addresses("eth0") == {"192.0.2.99/24", "2001:db8::10/64"}

    asyncio.run(scenario())


def test_a_reboot_during_a_trial_ends_it(box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario() -> None:
        cable("eth0", "far0")
        cable("eth1", "far1")
        await box.apply(STATIC)
        extra = '[interface.eth1]\nmode = "static"\naddresses = ["198.51.100.9/24"]\n'
        await box.apply(OTHER + extra, confirm=600)
        assert addresses("eth1") == {"198.51.100.9/24"}
        await box.context.changes.stop()
        (tmp_path / "boot_id").write_text("another\n")
        monkeypatch.setattr(record, "BOOT_ID", tmp_path / "boot_id")
        run(["ip", "address", "flush", "dev", "eth0"])
        run(["ip", "address", "flush", "dev", "eth1"])
        for round_ in range(2):  # and it stays refused: the file still says it
            again = Box(box.context.etc.parent)
            await again.part.start()
            assert again.part.status()["file"] == "reverted", round_
            assert addresses("eth0") == {"192.0.2.10/24", "2001:db8::10/64"}
            assert addresses("eth1") == set()
            await again.part.stop()
        box.file.write_text(OTHER + "# looked at again\n")
        again = Box(box.context.etc.parent)
        await again.part.start()
        assert again.part.status()["file"] == "ok"
        assert addresses("eth0") == {"192.0.2.99/24", "2001:db8::10/64"}
        await again.part.stop()

    asyncio.run(scenario())


def test_a_broken_file_leaves_the_last_good_one_in_force(box: Box) -> None:
    async def scenario() -> None:
        cable()
        await box.apply(STATIC)
        box.file.write_text(STATIC + "nonsense")
        again = Box(box.context.etc.parent)
        await again.part.start()
        assert again.part.status()["file"] == "error"
        assert addresses("eth0") == {"192.0.2.10/24", "2001:db8::10/64"}
        await again.part.stop()

    asyncio.run(scenario())


# -- VPN: everything but the kernel's WireGuard, which build hosts often lack (the booted image is tested with it) ----

ONE = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
CLIENT = f"""
[interface.wg0]
addresses = ["10.5.0.2/32", "fd00:5::2/64"]
mtu = 1380
[interface.wg0.peer.provider]
public-key = "{ONE}"
allowed-ips = ["0.0.0.0/0", "::/0", "198.51.100.0/24", "fd00:5::/64"]
"""


def test_a_tunnels_addresses_routes_and_rules_come_and_go(tmp_path: Path) -> None:
    """On a link of another kind: what lies around the WireGuard device is the same."""
    entry = parse(CLIENT, tmp_path / "vpn.toml", VpnFile).interface["wg0"]
    cable("wg0", "far0")
    with Rtnl() as rtnl:
        for _ in range(2):  # the second time nothing is left to do, and nothing fails
            tunnel.set_up(rtnl, "wg0", entry)
            tunnel.set_rules(rtnl, [entry])
        assert addresses("wg0") == {"10.5.0.2/32", "fd00:5::2/64"}
        assert routes() == {("198.51.100.0/24", "", "wg0")}
        assert [row["dst"] for row in ip("route", "show", "table", "51820")] == ["default"]
        assert [row["dst"] for row in ip("-6", "route", "show", "table", "51820")] == ["default"]
        assert ip("link", "show", "wg0")[0]["mtu"] == 1380
        for family in ("-4", "-6"):
            told = [row for row in ip(family, "rule") if row["priority"] in (32764, 32765)]
            assert [row.get("suppress_prefixlen") for row in told] == [0, None]
            assert told[1]["fwmark"] == "0xca6c"
        assert Path("/proc/sys/net/ipv4/conf/all/src_valid_mark").read_text() == "1\n"
        fewer = parse(CLIENT.replace('"0.0.0.0/0", "::/0", ', ""), tmp_path / "vpn.toml", VpnFile).interface["wg0"]
        tunnel.set_up(rtnl, "wg0", fewer)
        tunnel.set_rules(rtnl, [fewer])
        assert ip("route", "show", "table", "all", "default") == []
        assert {row["priority"] for row in ip("rule")} == {0, 32766, 32767}


def test_a_tunnel_takes_everything_in_two_halves(tmp_path: Path) -> None:
    """As files for other systems have it: its own packets, which carry the mark, stay outside."""
    halves = CLIENT.replace('"0.0.0.0/0", "::/0"', '"0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"')
    entry = parse(halves, tmp_path / "vpn.toml", VpnFile).interface["wg0"]
    assert tunnel.mark_of(entry) == 51820
    cable()
    cable("wg0", "far1")
    for words in ("address add 192.0.2.5/24 dev eth0", "link set eth0 up", "route add default via 192.0.2.1"):
        run(["ip", *words.split()])
    with Rtnl() as rtnl:
        tunnel.set_up(rtnl, "wg0", entry)
        tunnel.set_rules(rtnl, [entry])
    ways = {"203.0.113.1": "wg0", "203.0.113.1 mark 51820": "eth0", "192.0.2.9": "eth0", "198.51.100.1": "wg0"}
    for target, way in ways.items():
        assert [route["dev"] for route in ip("route", "get", *target.split())] == [way]
    assert {route["dst"] for route in ip("-6", "route", "show", "table", "51820")} == {"::/1", "8000::/1"}


def test_a_tunnel_has_the_ipv6_that_it_asks_for(tmp_path: Path) -> None:
    """Also where interfaces begin without, as kernel settings of many servers have it."""
    for name in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    entry = parse(CLIENT, tmp_path / "vpn.toml", VpnFile).interface["wg0"]
    cable("wg0", "far0")
    with Rtnl() as rtnl:
        for _ in range(2):
            tunnel.set_up(rtnl, "wg0", entry)
    assert addresses("wg0") == {"10.5.0.2/32", "fd00:5::2/64"}
    assert [row["dst"] for row in ip("-6", "route", "show", "table", "51820")] == ["default"]
    assert Path("/proc/sys/net/ipv6/conf/far0/disable_ipv6").read_text() == "1\n"


def test_a_tunnel_takes_no_route_from_another_interface(tmp_path: Path) -> None:
    """A peer that is allowed the local network must not cut off whoever is logged in from there."""
    text = CLIENT.replace('"0.0.0.0/0", "::/0", "198.51.100.0/24"', '"192.0.2.0/24", "2001:db8:5::/64"')
    entry = parse(text, tmp_path / "vpn.toml", VpnFile).interface["wg0"]
    cable()
    cable("wg0", "far1")
    run(["ip", "address", "add", "192.0.2.5/24", "dev", "eth0"])
    run(["ip", "link", "set", "eth0", "up"])
    before = ip("route", "show", "dev", "eth0")
    with Rtnl() as rtnl:
        with pytest.raises(MixosError) as caught:
            tunnel.set_up(rtnl, "wg0", entry)
        assert caught.value.reason == "vpn-route"
        assert ip("route", "show", "dev", "eth0") == before
        device = Device("eth0")
        with pytest.raises(MixosError) as caught:
            tunnel.Kernel(rtnl, cast(Any, None)).bring_up(entry, device)
        assert caught.value.reason == "vpn-name"
        # what somebody else led into the tunnel already is no conflict
        run(["ip", "address", "del", "192.0.2.5/24", "dev", "eth0"])
        run(["ip", "route", "add", "192.0.2.0/24", "dev", "wg0"])
        tunnel.set_up(rtnl, "wg0", entry)
        assert ("192.0.2.0/24", "", "wg0") in routes()
        assert ("2001:db8:5::/64", "", "wg0") in routes("-6")


@pytest.fixture
def vpn(tmp_path: Path) -> Vpn:
    folders = {name: tmp_path / name for name in ("run", "state", "etc", "lib", "log")}
    return Vpn(Context(**folders))


def test_commands_of_the_vpn_end_to_end(vpn: Vpn, tmp_path: Path) -> None:
    """init, two peers, rotate, remove, import, delete: what the answers, the file and the secrets say."""

    async def scenario() -> None:
        await vpn.start()
        made = await vpn.init(
            CALLER, Init.model_validate({"endpoint": "vpn.example.org", "addresses": ["10.8.0.1/24"]})
        )
        first = await vpn.add(CALLER, AddPeer.model_validate({"peer": "laptop", "psk": True, "keep-key": True}))
        client = wgquick.parse(first["config"])
        assert client.addresses == ("10.8.0.2/32",)
        assert keys.encode(client.peers[0].public) == made["public-key"]
        assert client.peers[0].endpoint == "vpn.example.org:51820"
        again = await vpn.show(CALLER, OfPeer.model_validate({"peer": "laptop"}))
        assert again["config"] == first["config"]
        second = await vpn.add(CALLER, AddPeer.model_validate({"peer": "office", "public-key": ONE}))
        assert "PrivateKey = " not in second["config"].replace("# PrivateKey = ", "")
        for params, reason in (
            ({"peer": "laptop"}, "vpn-exists"),
            ({"peer": "x", "public-key": "nonsense"}, "vpn-key"),
            ({"peer": "x", "public-key": made["public-key"]}, "vpn-key-own"),
            ({"peer": "x", "public-key": ONE}, "config-value"),
        ):
            with pytest.raises(MixosError) as caught:
                await vpn.add(CALLER, AddPeer.model_validate(params))
            assert caught.value.reason == reason
        with pytest.raises(MixosError) as caught:
            await vpn.show(CALLER, OfPeer.model_validate({"peer": "office"}))
        assert caught.value.reason == "vpn-key-not-kept"

        before = (tmp_path / "state/vpn/wg0.laptop.psk").read_text()
        rotated = await vpn.rotate(CALLER, Rotate.model_validate({"peer": "laptop"}))
        after = (tmp_path / "state/vpn/wg0.laptop.psk").read_text()
        assert after != before
        assert after.strip() in rotated["configs"]["laptop"]
        own = await vpn.rotate(CALLER, Rotate())
        assert own["public-key"] != made["public-key"]
        assert set(own["configs"]) == {"laptop", "office"}
        assert all(own["public-key"] in text for text in own["configs"].values())
        new = await vpn.rotate(CALLER, Rotate.model_validate({"peer": "laptop", "key": True}))
        private = wgquick.parse(new["configs"]["laptop"]).private
        told = await vpn.report(CALLER, NOTHING)
        rows = {row["name"]: row for row in told["interfaces"][0]["peers"]}
        assert rows["laptop"]["public-key"] == keys.encode(await keys.public_of(private))
        assert rows["office"]["state"] in ("never", "down")
        for secret in (tmp_path / "state/vpn").iterdir():
            assert secret.read_text().strip() not in json.dumps(told) + vpn.engine.config.file.read_text()
            assert secret.read_text().strip() not in (await vpn.export(CALLER, OfInterface()))["config"]

        text = "[Interface]\nPrivateKey = " + keys.encode(private) + "\nAddress = 10.99.0.2/32\nDNS = 10.99.0.1\n"
        given = Import.model_validate({"name": "wg1", "text": text})
        assert keys.encode(private) not in given.model_dump_json()
        await vpn.bring_in(CALLER, given)
        with pytest.raises(MixosError) as caught:
            await vpn.down(CALLER, ChangeInterface())
        assert caught.value.reason == "vpn-which"
        await vpn.down(CALLER, ChangeInterface.model_validate({"interface": "wg1"}))
        assert vpn.engine.config.tunnel("wg1")[1].up is False
        await vpn.delete(CALLER, ChangeInterface.model_validate({"interface": "wg1"}))
        await vpn.remove(CALLER, ChangePeer.model_validate({"peer": "laptop"}))
        assert {path.name for path in (tmp_path / "state/vpn").iterdir()} == {"wg0.key"}
        await vpn.stop()

    asyncio.run(scenario())


# case: N16
def test_what_cannot_be_shown_is_not_made(vpn: Vpn) -> None:
    """A key that is told once would be lost with a configuration that is too large for a code."""
    network = tuple(f"10.{n}.0.0/16" for n in range(200))

    async def scenario() -> None:
        await vpn.start()
        await vpn.init(CALLER, Init.model_validate({"addresses": ["10.201.0.1/24"], "client-routes": network}))
        limit = {"config-bytes": 2953}
        await vpn.add(CALLER, AddPeer.model_validate({"peer": "old", "keep-key": True}))
        before = vpn.engine.config.everything()
        for work, params, values in (
            (vpn.add, AddPeer, {"peer": "phone"}),
            (vpn.rotate, Rotate, {"peer": "old", "key": True}),
            (vpn.rotate, Rotate, {"peer": "old"}),
            (vpn.rotate, Rotate, {}),
        ):
            with pytest.raises(MixosError) as caught:
                await cast(Any, work)(CALLER, params.model_validate({**values, **limit}))
            assert caught.value.reason == "vpn-config-size"
            assert vpn.engine.config.everything() == before
        await vpn.stop()

    asyncio.run(scenario())


def test_name_servers_of_an_import_that_are_not_asked_are_told(vpn: Vpn) -> None:
    text = PROVIDER.replace("DNS = 10.90.0.53", "DNS = 1.1.1.1, 1.0.0.1, 8.8.8.8, 8.8.4.4") + "0.0.0.0/0"

    async def scenario() -> None:
        await vpn.start()
        answer = await vpn.bring_in(CALLER, Import.model_validate({"name": "wgp", "text": text}))
        assert "8.8.4.4" in answer["warnings"][0]
        assert vpn.engine.config.tunnel("wgp")[1].dns == ("1.1.1.1", "1.0.0.1", "8.8.8.8")
        await vpn.stop()

    asyncio.run(scenario())


def test_peers_that_are_added_at_once_get_addresses_of_their_own(vpn: Vpn) -> None:
    async def scenario() -> None:
        await vpn.start()
        await vpn.init(CALLER, Init.model_validate({"addresses": ["10.8.0.1/24"]}))
        adds = [vpn.add(CALLER, AddPeer.model_validate({"peer": f"p{number}"})) for number in range(3)]
        assert len(await asyncio.gather(*adds)) == 3
        peers = vpn.engine.config.tunnel("wg0")[1].peer.values()
        assert {peer.allowed_ips for peer in peers} == {("10.8.0.2/32",), ("10.8.0.3/32",), ("10.8.0.4/32",)}
        await vpn.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("origin", "connection", "seconds"),
    [
        ("local", "", None),
        ("ssh 192.0.2.77", "192.0.2.77 50000 192.0.2.5 22", None),  # its network is on the link
        ("ssh 203.0.113.9", "203.0.113.9 50000 192.0.2.5 22", 60),  # answers would go into the tunnel
    ],
)
def test_a_tunnel_that_takes_everything_is_on_trial(
    vpn: Vpn, origin: str, connection: str, seconds: int | None
) -> None:
    text = f"[Interface]\nPrivateKey = {'A' * 42}E=\nAddress = 10.99.0.2/32\n\n[Peer]\nPublicKey = {'C' * 42}E=\n"
    text += "AllowedIPs = 0.0.0.0/0\nEndpoint = 192.0.2.2:9\n"

    async def scenario() -> None:
        cable()
        for words in ("address add 192.0.2.5/24 dev eth0", "link set eth0 up", "route add default via 192.0.2.1"):
            run(["ip", *words.split()])
        await vpn.start()
        caller = CALLER._replace(origin=origin, connection=connection)
        answer = await vpn.bring_in(caller, Import.model_validate({"name": "wgall", "text": text}))
        assert answer["confirm"] == seconds
        if seconds:
            with pytest.raises(MixosError) as caught:
                await vpn.delete(caller, ChangeInterface.model_validate({"interface": "wgall"}))
            assert caught.value.reason == "change-pending"
        await vpn.context.changes.stop()
        await vpn.stop()

    asyncio.run(scenario())


def test_an_undo_waits_for_no_name(vpn: Vpn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is undone may be why nobody answers for it; other parts go back behind it."""
    text = f"[Interface]\nPrivateKey = {'A' * 42}E=\nAddress = 10.99.0.2/32\n\n[Peer]\nPublicKey = {'C' * 42}E=\n"
    text += "AllowedIPs = 10.99.0.0/24\nEndpoint = vpn.example.org:9\n"
    asked: list[str] = []

    async def nobody(name: str, *_: object) -> list[Any]:
        asked.append(name)
        await asyncio.sleep(5)
        return []

    async def scenario() -> None:
        await vpn.start()
        with monkeypatch.context() as patch:
            patch.setattr(resolve, "SECONDS", 0.1)
            await vpn.bring_in(CALLER, Import.model_validate({"name": "wgn", "text": text}))
        monkeypatch.setattr(resolve, "endpoint", nobody)
        await vpn.delete(CALLER, ChangeInterface.model_validate({"interface": "wgn", "confirm": 600}))
        async with asyncio.timeout(2):
            await vpn.context.changes.revert(vpn.context.changes.find("vpn"), "by hand")
        assert vpn.engine.config.tunnel("wgn")[1].up
        await asyncio.sleep(0.1)
        assert vpn.engine.up == set() or asked == ["vpn.example.org:9"]  # a kernel without WireGuard has none up
        await vpn.stop()

    asyncio.run(scenario())


class Wires:
    """WireGuard devices for a kernel that has none: what was asked for, and handshakes as a test says."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}

    def __call__(self) -> Wires:
        return self

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def get(self, name: str) -> Device:
        return self.devices[name]

    def tell(self, name: str, changes: list[Change]) -> None:
        for change in changes:
            self.peer(name, change.public, endpoint=change.endpoint)

    def bring_up(self, kernel: tunnel.Kernel, entry: Tunnel, wanted: Device) -> None:
        """In place of `tunnel.Kernel.bring_up`: on a link of another kind."""
        if wanted.name not in links():
            cable(wanted.name, f"far-{wanted.name}")
            self.devices[wanted.name] = wanted
        tunnel.set_up(kernel.rtnl, wanted.name, entry)

    def peer(self, name: str, public: bytes, **values: Any) -> None:
        device = self.devices[name]
        peers = tuple(replace(peer, **values) if peer.public == public else peer for peer in device.peers)
        self.devices[name] = replace(device, peers=peers)


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Wires:
    made = Wires()
    monkeypatch.setattr(vpn_engine, "WireGuard", made)
    monkeypatch.setattr(vpn_engine.Engine, "device", lambda _, name: made.devices.get(name))
    monkeypatch.setattr(tunnel.Kernel, "bring_up", lambda kernel, *rest: made.bring_up(kernel, *rest))
    return made


# case: N20
def test_a_tunnel_that_is_half_up_is_down(vpn: Vpn, wires: Wires) -> None:
    """The device is there, and somebody else has the route: status, problem and the answer tell one story."""

    async def scenario() -> None:
        cable()
        for words in ("address add 10.90.0.5/16 dev eth0", "link set eth0 up"):
            run(["ip", *words.split()])
        await vpn.start()
        made = await vpn.bring_in(CALLER, Import.model_validate({"name": "wgp", "text": PROVIDER + "10.90.0.0/16"}))
        (row,) = (await vpn.report(CALLER, NOTHING))["interfaces"]
        assert (made["state"], row["state"], row["wanted"]) == ("down", "down", "up")
        assert made["problem"] == row["problem"] is not None
        assert [peer["state"] for peer in row["peers"]] == ["down"]
        await vpn.stop()

    asyncio.run(scenario())


PROVIDER = f"[Interface]\nPrivateKey = {'A' * 42}E=\nAddress = 10.99.0.2/32\nDNS = 10.90.0.53\n\n[Peer]\n"
PROVIDER += f"PublicKey = {ONE}\nEndpoint = vpn.example.org:9\nAllowedIPs = "


# case: N3
@pytest.mark.parametrize("allowed", ["10.90.0.0/16", "0.0.0.0/0"])
def test_the_name_of_an_endpoint_is_not_asked_of_a_server_behind_it(
    vpn: Vpn, wires: Wires, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    """A boot, a peer that falls silent and moves, and one that answers again."""
    public, answers, seen = keys.decode(ONE), ["192.0.2.9"], []
    context = vpn.context

    def servers() -> list[str]:
        return vpn.engine.names.servers()

    async def look_up(_: str, __: float = 0) -> list[Endpoint]:
        past = [row["dst"] for row in ip("rule") if "dst" in row]
        seen.append((*servers(), *past))
        return [Endpoint(answers[0], 9)] if answers else []

    async def scenario() -> None:
        monkeypatch.setattr(resolve, "endpoint", look_up)
        monkeypatch.setattr(part_of_vpn, "TICK_SECONDS", 3600.0)
        (context.run / "net").mkdir(parents=True)
        (context.run / "net/eth0.dns").write_text("nameserver 192.0.2.53\n")
        await vpn.start()
        await vpn.bring_in(CALLER, Import.model_validate({"name": "wgp", "text": PROVIDER + allowed}))
        await vpn.stop()
        run(["ip", "link", "delete", "wgp"])
        wires.devices.clear()
        seen.clear()

        again = Vpn(context)  # the next boot
        context.changes._appliers.clear()
        await again.engine.apply(await again.engine.prepare(View(context.changes.places, {}), None, False), print)
        assert servers() == ["192.0.2.53"]
        await again.engine.look_again()
        everything = ("192.0.2.53",) if allowed == "0.0.0.0/0" else ()
        assert seen == [("192.0.2.53", *everything)]
        assert servers() == ["10.90.0.53"]
        assert not [row for row in ip("rule") if "dst" in row]

        wires.peer("wgp", public, handshake=int(time.time()), endpoint=Endpoint("192.0.2.9", 9))
        await again.engine.look_again()
        assert len(seen) == 1
        wires.peer("wgp", public, handshake=1, sent=100)  # idle for long: nothing is wrong with that
        answers.clear()  # nobody behind the tunnel answers, whatever is asked
        for _ in range(3):
            await again.engine.look_again()
            assert servers() == ["10.90.0.53"]
        for sent in (200, 300):
            wires.peer("wgp", public, sent=sent)
            await again.engine.look_again()
        assert servers() == ["192.0.2.53"]
        answers.append("192.0.2.10")
        await again.engine.look_again()
        assert seen[-1] == ("192.0.2.53", *everything)
        assert wires.devices["wgp"].peers[0].endpoint == Endpoint("192.0.2.10", 9)
        wires.peer("wgp", public, handshake=int(time.time()))
        await again.engine.look_again()
        assert servers() == ["10.90.0.53"]

    asyncio.run(scenario())


def test_a_broken_file_is_reported_once(vpn: Vpn) -> None:
    async def scenario() -> list[str]:
        vpn.context.etc.mkdir()
        vpn.engine.config.file.write_text("broken [")
        told: list[str] = []
        vpn.context.events.publish = lambda topic, *_, **__: told.append(topic)  # type: ignore[method-assign, assignment]
        await vpn.start()
        await vpn.engine.look_again()
        assert vpn.engine.file_problem is not None
        vpn.engine.config.file.write_text("")
        await vpn.apply(CALLER, Wish())
        assert vpn.engine.file_problem is None
        await vpn.stop()
        return told

    assert asyncio.run(scenario()) == ["vpn.problem", "change.made", "vpn.changed"]


def test_what_keeps_a_tunnel_down_is_said(vpn: Vpn, tmp_path: Path) -> None:
    async def scenario() -> None:
        vpn.context.etc.mkdir()
        vpn.engine.config.file.write_text(CLIENT)
        await vpn.start()
        assert set(vpn.status()["problems"]) == {"wg0"}  # no private key, or no WireGuard at all
        assert vpn.status()["up"] == []
        vpn.engine.config.file.write_text(CLIENT + "nonsense")
        with pytest.raises(MixosError) as caught:
            await vpn.apply(CALLER, Wish())
        assert caught.value.reason == "config-syntax"
        await vpn.stop()

    asyncio.run(scenario())


def test_a_crash_leaves_no_name_servers_of_a_tunnel_behind(vpn: Vpn) -> None:
    (vpn.context.run / "net/dns.vpn").mkdir(parents=True)
    (vpn.context.run / "net/dns.vpn/wg0").write_text("nameserver 10.8.0.1\n")
    (vpn.context.run / "net/eth0.dns").write_text("nameserver 192.0.2.1\n")
    (vpn.context.run / "dns").mkdir(exist_ok=True)
    (vpn.context.run / "dns/resolv.conf").write_text("nameserver 10.8.0.1\n")

    async def scenario() -> None:
        await vpn.start()
        assert (vpn.context.run / "dns/resolv.conf").read_text() == "nameserver 192.0.2.1\n"
        await vpn.stop()

    asyncio.run(scenario())


# -- what people see -------------------------------------------------------------------------------------------------


def test_answers_can_be_shown(box: Box, vpn: Vpn) -> None:
    """Every name of the answer is in the text."""
    from daemon.parts.net import verbs as net_cli
    from daemon.parts.vpn import verbs as vpn_cli

    async def scenario() -> None:
        cable()
        applied = await box.apply(STATIC + "[interface.eth7]\n")
        assert len(net_cli._steps(applied).splitlines()) == len(applied["steps"]) + 1
        status = net_cli._status(await box.part.report(CALLER, NOTHING))
        for word in ("eth0", "far0", "eth7", "192.0.2.10/24", "192.0.2.53"):
            assert word in status
        shown = net_cli._one(await box.part.show(CALLER, part.Named(name="eth0")))
        assert "198.51.100.0/24 via 192.0.2.254 metric 50" in shown
        assert net_cli._time(await box.part.time(CALLER, NOTHING))
        await vpn.start()
        await vpn.init(CALLER, Init())
        added = await vpn.add(CALLER, AddPeer(peer="phone"))
        text = vpn_cli._status(await vpn.report(CALLER, NOTHING))
        for word in ("wg0", "phone", "51820"):
            assert word in text
        assert added["config"].startswith("[Interface]\nPrivateKey = ")

    asyncio.run(scenario())


def test_a_configuration_as_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    from daemon.parts.vpn.verbs import _print_config

    _print_config("[Interface]\n" * 10, True)
    lines = capsys.readouterr().out.splitlines()
    assert len({len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines}) == 1
    assert len(lines) > 15
    with pytest.raises(MixosError) as caught:
        _print_config("x" * 5000, True)
    assert caught.value.reason == "vpn-qr-size"


@pytest.mark.parametrize("group", ["net", "vpn"])
def test_every_command_has_an_example(group: str) -> None:
    from importlib import import_module

    command = getattr(import_module(f"daemon.parts.{group}.verbs"), group)
    for one in [command, *command.commands.values()]:
        assert "Example:" in (one.help or "")
