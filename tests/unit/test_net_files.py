"""network.toml, edits of TOML, name servers, the hand-over with early boot, trials: files only."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildsys.run import run
from common import netvalues as values
from common import toml
from common.errors import MixosError, RefusedError
from common.tomledit import remove_table, set_keys
from common.tomlfile import parse
from daemon.core.change.applier import View
from daemon.core.change.record import Record, boot_id, boottime
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.linux.nameservers import Names
from daemon.linux.rtnl import BOOT, Link, Route, Rtnl
from daemon.parts.net import snapshot, timesync
from daemon.parts.net.handover import EarlyBoot
from daemon.parts.net.migrate import migrate
from daemon.parts.net.netfile import NetworkFile
from daemon.parts.net.part import Interfaces, Set
from daemon.parts.net.plan import Seen, describe, look, plan, told
from tests.waiting import ended, until

ROOT = Path(__file__).resolve().parents[2]
INIT = ROOT / "rootfs/skeleton/usr/lib/mixos/init"


def network(text: str) -> NetworkFile:
    return parse(text, Path("network.toml"), NetworkFile)


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vpn.example.org:51820", "vpn.example.org:51820"),
        ("192.0.2.1:1", "192.0.2.1:1"),
        ("[2001:DB8::1]:65535", "[2001:db8::1]:65535"),
    ],
)
def test_endpoints(text: str, expected: str) -> None:
    assert values.endpoint(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        "host:0",
        "host:65536",
        "2001:db8::1:5",
        "[host]:5",
        ":5",
        "a b:5",
        "1.2.3:5",
        "h:٣",
        "[::]:5",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        values.endpoint(text)


def test_a_host_gets_the_port() -> None:
    hosts = ("vpn.example.org", "192.0.2.1", "2001:db8::1", "[2001:db8::1]:7", "h:7")
    expected = ["vpn.example.org:5", "192.0.2.1:5", "[2001:db8::1]:5", "[2001:db8::1]:7", "h:7"]
    assert [values.with_port(host, 5) for host in hosts] == expected


@pytest.mark.parametrize("name", ["eth0", "eth0.20", "br-lan", "a" * 15, "0vpn"])
def test_interface_names(name: str) -> None:
    assert values.interface_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "lo", "all", "default", ".", "..", "a/b", "a b", "-x", "a" * 16, "ä", "a..b", "$x"]
)
def test_what_is_no_interface_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        values.interface_name(name)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_checks_of_values_only_raise_value_errors(text: str) -> None:
    checks = (values.endpoint, values.network, values.interface_address, values.host_address, values.host_name)
    for check in checks:
        try:
            assert check(check(text)) == check(text)
        except ValueError:
            continue


# -- network.toml ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[interface.eth0]\nmode = "statc"', "config-value"),
        ('[interface.eth0]\nmode = "static"', "config-value"),
        ('[interface.eth0]\nadresses = ["192.0.2.1/24"]', "config-unknown-key"),
        ('[interface.eth0]\naddresses = ["192.0.2.1/24"]', "config-value"),
        ('[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.1"]', "config-value"),
        (
            '[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.1/24"]\ngateways = ["198.51.100.1"]',
            "config-value",
        ),
        ('[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.1/24"]\ngateways = ["192.0.2.1"]', "config-value"),
        ('[interface.eth0]\ngateways = ["192.0.2.1"]', "config-value"),
        ('[interface.eth0]\nipv6 = "off"\naddresses = ["2001:db8::1/64"]', "config-value"),
        ("[interface.eth0]\nmtu = 1000", "config-value"),
        ("[interface.lo]\nmtu = 1500", "config-value"),
        ("[interface.v]\nvlan = { parent = 'v', id = 5 }", "config-value"),
        ("[interface.v]\nvlan = { parent = 'eth0', id = 0 }", "config-value"),
        ("[interface.v]\nvlan = { parent = 'eth0' }", "config-missing-key"),
        ("[interface.b]\nbridge = { ports = ['b'] }", "config-value"),
        ("[interface.b]\nbridge = { ports = ['v'] }\n[interface.v]\nvlan = { parent = 'b', id = 5 }", "config-value"),
        ("[interface.b]\nbridge = { ports = ['e'] }\n[interface.c]\nbridge = { ports = ['e'] }", "config-value"),
        ("[interface.b]\nbridge = { ports = ['e'] }\n[interface.e]\nmode = 'dhcp'", "config-value"),
        ("[interface.b]\nbridge = {}\nvlan = { parent = 'e', id = 5 }", "config-value"),
        ("[[interface.e.routes]]\nto = '10.0.0.1/8'", "config-value"),
        ("[[interface.e.routes]]\nto = '10.0.0.0/8'\nvia = '2001:db8::1'", "config-value"),
        ("interface = 5", "config-value"),
        ("[interface.eth0", "config-syntax"),
    ],
)
def test_mistakes_are_found(text: str, reason: str) -> None:
    with pytest.raises(MixosError) as caught:
        network(text)
    assert caught.value.reason == reason
    assert caught.value.exit_code == 3


def test_two_default_routes_of_one_metric_are_a_mistake() -> None:
    one = '[interface.{0}]\nmode = "static"\naddresses = ["192.0.{1}.2/24"]\ngateways = ["192.0.{1}.1"]\nmetric = {2}\n'
    network(one.format("a", 2, 0) + one.format("b", 3, 10))
    with pytest.raises(MixosError) as caught:
        network(one.format("a", 2, 0) + one.format("b", 3, 0))
    assert caught.value.reason == "config-value"


def test_a_misspelt_key_below_a_name_that_the_user_chose() -> None:
    with pytest.raises(MixosError) as caught:
        network('[interface.eth0]\nadresses = ["192.0.2.1/24"]\n')
    assert caught.value.message.endswith(":2:1: unknown key 'interface.eth0.adresses'; did you mean 'addresses'?")


# wanted: static /32 with off-link gateway
@pytest.mark.parametrize(
    ("addresses", "hop", "fits"),
    [
        ('"192.0.2.9/32"', "198.51.100.1", True),
        ('"192.0.2.9/32", "203.0.113.9/24"', "203.0.113.1", True),
        ('"192.0.2.9/31"', "198.51.100.1", False),
        ('"192.0.2.9/32"', "192.0.2.9", False),
        ('"192.0.2.9/24", "2001:db8::9/128"', "198.51.100.1", False),
        ('"2001:db8::9/128"', "2001:db8:1::1", True),
    ],
)
def test_a_gateway_beside_a_single_address(addresses: str, hop: str, fits: bool) -> None:
    text = f'[interface.a]\nmode = "static"\naddresses = [{addresses}]\ngateways = ["{hop}"]'
    if fits:
        assert network(text).interface["a"].hops_alone() == ([] if hop.startswith("203") else [hop])
        return
    with pytest.raises(MixosError) as caught:
        network(text)
    assert caught.value.reason == "config-value"


# case: N23
@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("routes = [{ to = '10.0.0.0/8', via = '192.0.2.1' }, { to = '10.0.0.0/8', via = '192.0.2.2' }]", False),
        ("routes = [{ to = '10.0.0.0/8', via = '192.0.2.1' }, { to = '10.0.0.0/8', via = '192.0.2.1' }]", False),
        (
            "routes = [{ to = '10.0.0.0/8', via = '192.0.2.1' }, { to = '10.0.0.0/8', via = '192.0.2.2', metric = 5 }]",
            True,
        ),
        (
            "routes = [{ to = '2001:db8:5::/48', via = '2001:db8::1' }, { to = '2001:db8:5::/48', metric = 1024 }]",
            False,
        ),
        ("metric = 7\nroutes = [{ to = 'default', via = '192.0.2.1', metric = 7 }]", False),
        ("routes = [{ to = '10.0.0.0/8' }]\n[interface.b]\nroutes = [{ to = '10.0.0.0/8', via = '192.0.2.1' }]", False),
        ("metric = 7\n[interface.b]\nmetric = 7", False),
        ("[interface.b]", True),
    ],
)
def test_one_destination_by_two_ways_is_a_mistake(text: str, fits: bool) -> None:
    """The kernel keeps one of them; each time that the file is applied the other would take its place."""
    if fits:
        network(f"[interface.a]\n{text}")
        return
    with pytest.raises(MixosError) as caught:
        network(f"[interface.a]\n{text}")
    assert caught.value.reason == "config-value"


# -- editing ---------------------------------------------------------------------------------------------------------

FILE = """# top
dns = ["192.0.2.53"]  # theirs

[interface.eth0]  # the cable
mode = "static"
addresses = [
    "192.0.2.1/24",  # old
    "2001:db8::1/64",
]
mtu = 1500

# the other one
[interface."eth0.5"]
vlan = { parent = "eth0", id = 5 }
"""


def test_an_edit_leaves_everything_else() -> None:
    text = set_keys(FILE, ["interface", "eth0"], {"addresses": ["192.0.2.9/24"], "mtu": None, "metric": 7})
    assert text == FILE.replace(
        'addresses = [\n    "192.0.2.1/24",  # old\n    "2001:db8::1/64",\n]\nmtu = 1500\n',
        'addresses = ["192.0.2.9/24"]\n',
    ).replace("# the cable\n", "# the cable\nmetric = 7\n")


def test_a_new_table_is_appended_and_removed_again() -> None:
    text = set_keys(FILE, ["interface", "br.1"], {"mode": "none", "odd": 'a"b\\\n\x7f'})
    assert text.startswith(FILE)
    assert toml.loads(text)["interface"]["br.1"] == {"mode": "none", "odd": 'a"b\\\n\x7f'}
    assert remove_table(text, ["interface", "br.1"]) == FILE


def test_root_keys() -> None:
    assert toml.loads(set_keys(FILE, [], {"dns": None, "search": ["a"]}))["search"] == ["a"]


# case: N4
def test_a_table_goes_with_the_comments_above_it_and_no_others() -> None:
    text = "# the file\n[a]\nx = 1\n\n# about b\n# more\n[b]\ny = 1\n# about c\n[c]\nz = 1\n"
    assert remove_table(text, ["b"]) == "# the file\n[a]\nx = 1\n\n# about c\n[c]\nz = 1\n"
    assert remove_table(text, ["a"]) == "# the file\n# about b\n# more\n[b]\ny = 1\n# about c\n[c]\nz = 1\n"
    assert remove_table('[a]\nx = """\n# no comment"""\n[b]\n', ["b"]) == '[a]\nx = """\n# no comment"""\n'


def test_a_table_goes_with_those_below_it() -> None:
    text = "[a]\nx = 1\n[a.b]\ny = 1\n[a.b.c]\nz = 1\n# about d\n[a.d]\nw = 1\n"
    assert toml.loads(remove_table(text, ["a", "b"])) == {"a": {"x": 1, "d": {"w": 1}}}


@pytest.mark.parametrize(
    "text", ["interface = { eth0 = { mtu = 1 } }\n", "interface.eth0.mtu = 1\n", "[interface]\neth0.mtu = 1\n"]
)
def test_what_cannot_be_edited_is_refused(text: str) -> None:
    with pytest.raises(MixosError) as caught:
        set_keys(text, ["interface", "eth0"], {"metric": 2})
    assert caught.value.reason == "config-edit"


KEYS = st.sampled_from(["a", "b-c", "d e", "x.y"])
LEAVES = st.one_of(st.integers(0, 9), st.booleans(), st.text(max_size=5), st.lists(st.text(max_size=3), max_size=3))


@given(
    st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=3), st.dictionaries(KEYS, LEAVES, max_size=3)), max_size=4)
)
@settings(max_examples=40, deadline=None)
def test_edits_mean_what_they_say(edits: list[tuple[list[str], dict[str, Any]]]) -> None:
    text, meant = "# note\n", {}
    for table, entries in edits:
        try:
            text = set_keys(text, table, entries)
        except MixosError as error:
            assert error.reason == "config-edit"  # noqa: PT017  # either refused or exact
            continue
        inner: dict[str, Any] = meant
        for name in table:
            inner = inner.setdefault(name, {})
        inner.update(entries)
        assert toml.loads(text) == meant
        assert text.startswith("# note\n")


# -- name servers ----------------------------------------------------------------------------------------------------

CONTRIBUTIONS = {
    "dns.vpn/wg0": "nameserver 10.8.0.1\n",
    "dns.vpn/wg1": "search corp\nnameserver 10.9.0.1\n",
    "dns.file": "search example.org\nnameserver 192.0.2.53\n",
    "configured.dns": "nameserver 192.0.2.54\n",
    "br0.dns": "nameserver 192.0.2.55\n",
    "eth0.dns": "search lan\nnameserver 192.0.2.56\n",
    "search.file": "search example.net\n",
    "br0.lease": "192.0.2.9/24 3600 107 0\n",
    "eth0.lease": "192.0.2.9/24 3600 102 0\n",
    "br0.want": "dhcp\nmetric 50\nmtu\n",
}


@pytest.mark.parametrize(
    "mask", [0, 1, 3, 4, 7, 8, 12, 16, 24, 32, 48, 63, 64, 65, 68, 72, 80, 96, 127, 176, 304, 432, 944]
)
def test_daemon_and_script_write_the_same_resolv_conf(tmp_path: Path, mask: int) -> None:
    (tmp_path / "net/dns.vpn").mkdir(parents=True)
    for number, (name, text) in enumerate(CONTRIBUTIONS.items()):
        if mask >> number & 1:
            (tmp_path / "net" / name).write_text(text)
    names = Names(tmp_path)
    names.refresh()
    ours = (tmp_path / "dns/resolv.conf").read_text()
    assert not names.refresh()
    script = tmp_path / "dhcp"
    script.write_text((INIT / "dhcp").read_text().replace("/run/mixos", str(tmp_path)))
    run(["/bin/sh", script, "resolv"])
    assert (tmp_path / "dns/resolv.conf").read_text() == ours


# case: N14
@pytest.mark.parametrize(
    ("first", "second", "wins"),
    [
        ("103 0", "102 0", "eth1"),
        ("103 0\nmetric 50", "102 0", "eth0"),
        ("102 1", "103 0", "eth1"),  # without a router
        ("102 0\nbare", "103 1", "eth1"),  # without servers
        ("102 0\nbare", "103 1\nbare", "eth0"),
        ("102 0\ncut", "103 1", "eth1"),  # its cable is out
        ("102 0\ncut", "103 0\nbare", "eth0"),
    ],
)
def test_one_lease_is_asked_for_names(tmp_path: Path, first: str, second: str, wins: str) -> None:
    (tmp_path / "net").mkdir()
    for number, text in enumerate((first, second)):
        lease, _, more = text.partition("\n")
        (tmp_path / f"net/eth{number}.lease").write_text(f"192.0.2.9/24 3600 {lease}\n")
        server = "" if more == "bare" else f"nameserver 192.0.2.{number}\n"
        (tmp_path / f"net/eth{number}.dns").write_text(f"search eth{number}\n{server}")
        if more == "cut":
            (tmp_path / f"net/eth{number}.cut").touch()
        if more.startswith("metric"):
            (tmp_path / f"net/eth{number}.want").write_text(f"dhcp\n{more}\n")
    assert Names(tmp_path).compute().startswith(f"search {wins}\n")
    assert Names(tmp_path).compute().count("nameserver") == (0 if "bare" in first and "bare" in second else 1)
    script = tmp_path / "dhcp"
    script.write_text((INIT / "dhcp").read_text().replace("/run/mixos", str(tmp_path)))
    run(["/bin/sh", script, "resolv"])
    assert (tmp_path / "dns/resolv.conf").read_text() == Names(tmp_path).compute()


# case: N14
@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('dns = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]', True),
        ('dns = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]', False),
        ('[interface.a]\ndns = ["192.0.2.1", "192.0.2.2"]\n[interface.b]\ndns = ["192.0.2.2", "192.0.2.3"]', True),
        ('[interface.a]\ndns = ["192.0.2.1", "192.0.2.2"]\n[interface.b]\ndns = ["192.0.2.4", "192.0.2.3"]', False),
        (f'search = ["{"a" * 60}.example", "{"b" * 60}.example", "{"c" * 60}.example"]', True),
        (f'search = ["{"a" * 60}.example", "{"b" * 60}.example", "{"c" * 60}.example", "{"d" * 60}.example"]', False),
    ],
)
def test_what_the_c_library_would_drop_is_refused(text: str, fits: bool) -> None:
    if fits:
        servers, search = network(text).names()
        assert len(servers) <= 3
        assert len(" ".join(["search", *search])) < 255
        return
    with pytest.raises(MixosError) as caught:
        network(text)
    assert caught.value.reason == "config-value"


def test_an_abbreviation_begins_a_message_as_it_is_written() -> None:
    with pytest.raises(MixosError) as caught:
        network("[interface.eth0]\nmtu = 576\n")
    assert "IPv6" in caught.value.message


def test_a_gateway_beside_the_network_is_on_the_link_by_a_route() -> None:
    text = '[interface.eth0]\nmode = "static"\naddresses = ["2001:db8:1:1::5/64"]\ngateways = ["2001:db8:1:ff::1"]\n'
    with pytest.raises(MixosError) as caught:
        network(text)
    assert "2001:db8:1:ff::1/128" in caught.value.message  # what to do
    found = network(f'{text}[[interface.eth0.routes]]\nto = "2001:db8:1:ff::1/128"\n')
    assert found.interface["eth0"].hops_alone() == []


def test_search_domains_alone_leave_the_name_servers_of_a_lease(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/eth0.dns").write_text("search lan\nnameserver 192.0.2.1\n")
    names = Names(tmp_path)
    names.set_file([], ["example.org"])
    # of several search lines the last one counts (resolv.conf(5))
    assert (tmp_path / "dns/resolv.conf").read_text() == "search lan\nnameserver 192.0.2.1\nsearch example.org\n"
    names.set_vpn({"wg0": (["10.8.0.1"], [])})
    assert (tmp_path / "dns/resolv.conf").read_text() == "nameserver 10.8.0.1\n"
    names.set_vpn({})
    names.set_file(["192.0.2.53"], ["example.org"])
    assert (tmp_path / "dns/resolv.conf").read_text() == "search example.org\nnameserver 192.0.2.53\n"
    names.set_file([], [])
    assert (tmp_path / "dns/resolv.conf").read_text() == "search lan\nnameserver 192.0.2.1\n"


def test_a_contribution_that_ends_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/eth0.dns").write_text("nameserver 192.0.2.1\n")
    names = Names(tmp_path)
    names.refresh()
    names.set_vpn({"wg0": (["10.8.0.1"], ["corp"]), "wg1": (["10.9.0.1"], [])})
    assert names.servers() == ["10.8.0.1", "10.9.0.1"]
    # The daemon dies here; the next one knows only what the files say, and what shall be.
    again = Names(tmp_path)
    again.set_vpn({"wg1": (["10.9.0.1"], [])})
    assert again.servers() == ["10.9.0.1"]
    again.set_vpn({})
    assert again.servers() == ["192.0.2.1"]
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["dns.vpn", "eth0.dns"]


# case: N6
def test_leases_are_asked_for_what_is_used_of_them() -> None:
    """NTP servers, routers, masks, name servers and the domain are asked for by BusyBox itself."""
    asked = re.findall(r" -O (\w+)", (INIT / "network").read_text().replace('"', " "))
    used = (INIT / "dhcp").read_text()
    assert set(asked) == {"mtu", "search", "staticroutes", "msstaticroutes"}
    assert all(f"${option}" in used or f"${{{option}" in used for option in asked)


# case: N6
def test_ntpd_asks_the_servers_of_leases_too(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "ntp.conf").write_text("# note\nserver pool.example\n")
    script, ntpd = tmp_path / "ntp", tmp_path / "ntpd"
    ntpd.write_text('#!/bin/sh\necho asked "$@"\n')
    ntpd.chmod(0o755)
    text = (INIT / "ntp").read_text().replace("/run/mixos", str(tmp_path)).replace("/usr/sbin/ntpd", str(ntpd))
    script.write_text(text.replace("/etc/ntp.conf", str(tmp_path / "ntp.conf")))
    assert run(["/bin/sh", script]).text == "asked -n"  # it reads its own file
    (tmp_path / "net/eth0.ntp").write_text("192.0.2.123\n")
    assert run(["/bin/sh", script]).text == "asked -n -p 192.0.2.123 -p pool.example"
    assert timesync.status(tmp_path, tmp_path / "net")["servers"] == ["192.0.2.123", "pool.example"]


# case: N12
@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("[interface.eth0]\nmetric = 50", True),
        (
            '[interface.eth0]\nmode = "none"\naddresses = ["2001:db8::9/64"]\ngateways = ["2001:db8::1"]\nmetric = 50',
            True,
        ),
        ('[interface.eth0]\nmode = "none"\nmetric = 50', False),
        ('[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.9/24"]\nmetric = 50', False),
    ],
)
def test_a_metric_of_nothing_is_a_mistake(text: str, fits: bool) -> None:
    if fits:
        network(text)
        return
    with pytest.raises(MixosError) as caught:
        network(text)
    assert caught.value.reason == "config-value"


# -- hand-over -------------------------------------------------------------------------------------------------------


@pytest.fixture
def early(tmp_path: Path) -> EarlyBoot:
    (tmp_path / "net").mkdir()
    return EarlyBoot(tmp_path / "net", tmp_path / "network.conf")


def client(early: EarlyBoot, tmp_path: Path, name: str) -> int:
    """A process that looks like a DHCP client of the script, with the files that the script keeps."""
    program = tmp_path / "udhcpc"
    if not program.exists():
        shutil.copy("/bin/sleep", program)
    pid = os.posix_spawn(program, ["udhcpc", "300"], {})
    # the spawn returns a moment before the kernel has set the new name
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "udhcpc\n")
    (early.folder / f"{name}.pid").write_text(f"{pid}\n")
    (early.folder / f"{name}.started").touch()
    return pid


def test_a_claim_ends_the_client_and_waits_for_the_script(early: EarlyBoot, tmp_path: Path) -> None:
    async def script(pid: int) -> None:
        await asyncio.to_thread(os.waitpid, pid, 0)
        assert (early.folder / "eth0.want").read_text() == "none\n"  # or it would start another one
        (early.folder / "eth0.started").unlink()

    async def scenario() -> None:
        pid = client(early, tmp_path, "eth0")
        await asyncio.gather(early.claim("eth0", False), script(pid))
        assert not (early.folder / "eth0.started").exists()
        assert early.claimed() == {"eth0"}

    asyncio.run(scenario())


def test_a_client_that_is_wanted_goes_on(early: EarlyBoot, tmp_path: Path) -> None:
    async def scenario() -> None:
        pid = client(early, tmp_path, "eth0")
        await early.claim("eth0", True)
        await early.release("eth0")
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert (early.folder / "eth0.started").exists()
        assert early.claimed() == set()
        os.kill(pid, 9)
        ended(pid)

    asyncio.run(scenario())


def test_a_foreign_process_is_never_ended(early: EarlyBoot) -> None:
    """A pid file from before: its number belongs to somebody else now."""
    (early.folder / "eth0.pid").write_text(f"{os.getpid()}\n")
    asyncio.run(early.claim("eth0", False))
    (early.folder / "eth0.pid").write_text("nonsense")
    asyncio.run(early.claim("eth0", False))
    assert (early.folder / "eth0.want").read_text() == "none\n"


def test_the_script_is_woken(early: EarlyBoot) -> None:
    early.wake()  # nobody there: nothing happens
    os.mkfifo(early.folder / "wake")
    early.wake()
    reader = os.open(early.folder / "wake", os.O_RDONLY | os.O_NONBLOCK)
    early.wake()
    assert os.read(reader, 10) == b"\n"
    os.close(reader)


# -- what an undo gives back -----------------------------------------------------------------------------------------


class Stack:
    """A kernel with links alone, where a VLAN's MTU is at most that of what it lies on."""

    def __init__(self, *links: Link) -> None:
        self.there = {link.name: link for link in links}

    def links(self) -> dict[str, Link]:
        return dict(self.there)

    def addresses(self) -> list[Any]:
        return []

    routes = addresses

    def raw_routes(self) -> dict[int, list[bytes]]:
        return {}

    def raw_addresses(self, _: int) -> list[bytes]:
        return []

    def index(self, name: str) -> int:
        return self.there[name].index

    def change(self, name: str, mtu: int) -> None:
        link = self.there[name]
        assert mtu <= min((one.mtu for one in self.there.values() if one.index == link.parent), default=mtu)
        self.there[name] = replace(link, mtu=mtu)
        for one in list(self.there.values()):
            if one.parent == link.index and one.mtu > mtu:
                self.change(one.name, mtu)


def test_vlans_of_others_get_their_mtu_back(tmp_path: Path) -> None:
    """The kernel lowers it with that of what they lie on; everything else of them is not ours to touch."""

    def link(name: str, index: int, mtu: int, parent: int = 0) -> Link:
        kind = "vlan" if parent else ""
        return Link(index, name, kind, True, "up", mtu, "", "", 0, parent, parent, False, 0, 0)

    kernel = Stack(link("a", 4, 1400, 3), link("b", 3, 1450, 1), link("eth0", 1, 1500), link("eth1", 2, 1500))
    before, rtnl = dict(kernel.there), cast("Rtnl", kernel)
    noted = snapshot.take(rtnl, ["eth0"], look(rtnl, tmp_path))
    assert noted.keys() == {"eth0"}
    kernel.change("eth0", 1280)
    kernel.change("eth1", 1280)
    snapshot.restore(json.loads(json.dumps(noted)), rtnl, tmp_path)
    assert kernel.there == {**before, "eth1": replace(before["eth1"], mtu=1280)}


# case: N22
@pytest.mark.parametrize(
    ("text", "now", "fits"),
    [
        ("", 1500, False),
        ("", 9000, True),
        ("[interface.eth0]\nmtu = 9000", 1500, True),
        ("[interface.eth0]\nmtu = 1500", 9000, False),
        ("", None, True),  # it is not there yet
        ("[interface.eth0]\nmtu = 1500", None, False),
    ],
)
def test_a_vlan_has_no_larger_packets_than_what_it_lies_on(text: str, now: int | None, fits: bool) -> None:
    wanted = network(f"{text}\n[interface.v]\nmtu = 9000\nvlan = {{ parent = 'eth0', id = 5 }}")
    link = Link(1, "eth0", "", True, "up", now or 0, "", "", 0, 0, 0, False, 0, 0)
    seen = Seen({"eth0": link} if now else {})
    if fits:
        plan(wanted, NetworkFile(), seen)
        return
    with pytest.raises(RefusedError) as caught:
        plan(wanted, NetworkFile(), seen)
    assert caught.value.reason == "net-conflict"


def test_a_route_that_a_new_one_replaces_is_told() -> None:
    """The kernel takes it away without a word; one that goes anyway is told once."""
    lan, wan = (Route("0.0.0.0/0", f"192.0.{n}.1", f"eth{n}", 0, protocol=BOOT) for n in (0, 1))
    new = ("add-route", "eth0", "0.0.0.0/0", "192.0.0.254", "0", "77")
    gone = ("remove-route", "eth1", "0.0.0.0/0", "192.0.1.1", "0", str(BOOT))
    seen = Seen(routes=[lan, wan])
    assert told([], seen) == []
    assert "eth1" in told([new], seen)[1]
    assert told([new, gone], seen) == [describe(new), describe(gone)]


# -- what version 0.1 kept -------------------------------------------------------------------------------------------


def kept(tmp_path: Path, **files: str) -> Context:
    context = Context(*(tmp_path / name for name in ("run", "state", "etc", "lib", "log")))
    (context.state / "net").mkdir(parents=True)
    context.etc.mkdir()
    for name, text in files.items():
        (context.state / "net" / name.replace("_", ".")).write_text(text)
    return context


def memory(context: Context) -> tuple[Any, bool]:
    changes = context.changes
    return changes.memory.good("net"), changes.memory.refused("net", View(changes.places))


def test_what_was_confirmed_is_taken_over(tmp_path: Path) -> None:
    context = kept(tmp_path, applied_toml="dns = []\n")
    (context.etc / "network.toml").write_text("dns = []\n")
    migrate(context)
    assert memory(context) == ({"etc/mixos/network.toml": b"dns = []\n"}, False)
    assert not (context.state / "net").exists()
    migrate(context)


@pytest.mark.parametrize("state", ["trial", "reverted"])
def test_what_was_not_confirmed_stays_refused(tmp_path: Path, state: str) -> None:
    text = 'dns = ["192.0.2.1"]\n'
    digest = hashlib.sha256(text.encode()).hexdigest()
    record = {"state": state, "text": text} if state == "trial" else {"state": state, "refused": digest}
    context = kept(tmp_path, trial_json=json.dumps(record), applied_toml="")
    (context.etc / "network.toml").write_text(text)
    migrate(context)
    assert memory(context) == ({"etc/mixos/network.toml": b""}, True)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"state": 7, "text": []}'])
def test_a_damaged_record_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    context = kept(tmp_path, trial_json=text)
    (context.etc / "network.toml").write_text("x = 1\n")
    migrate(context)
    assert memory(context) == (None, False)


def test_the_file_is_not_edited_while_another_one_is_on_trial(tmp_path: Path) -> None:
    """Confirming that one would put it in place of this one."""
    context = Context(*(tmp_path / name for name in ("run", "var/lib/mixos", "etc/mixos", "lib", "log")))
    record = Record("1", "trial", "ada", "local", "net apply", boot_id(), ("net",), boottime() + 600)
    context.changes.waiting["1"] = record
    part = Interfaces(context)
    with pytest.raises(RefusedError) as caught:
        asyncio.run(part.set(Caller(Role.ADMIN, 0, 0, 1, "eve", "local"), Set(values={"dns": ["192.0.2.1"]})))
    assert caught.value.reason == "change-pending"
    assert not part.engine.file.exists()
