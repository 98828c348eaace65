"""firewall.toml: what is read, what is refused and where; lists; what a policy decides."""

from __future__ import annotations

import contextlib
import ipaddress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.netvalues import host_address, interface_address, ip_network
from daemon.core.change.applier import View
from daemon.core.change.files import Trees
from daemon.parts.firewall import lists
from daemon.parts.firewall.decide import Packet, admits, decide, zone_of
from daemon.parts.firewall.policy import Policy, Source, default_text, read_source, resolve, shipped_services
from daemon.parts.firewall.values import Limit, Ports, parse_limit, parse_network, parse_ports

PATH = Path("firewall.toml")
BASE = '[zones.lan]\nallow = ["ssh"]\n'


def policy(text: str, **files: str) -> Policy:
    return resolve(Source(text, files), PATH)


def refusal(text: str, **files: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        policy(text, **files)
    return caught.value


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ports"),
    [("tcp/22", Ports("tcp", 22, 22)), ("udp/5000-5010", Ports("udp", 5000, 5010)), ("tcp/1-65535", ("tcp", 1, 65535))],
)
def test_ports(text, ports):
    assert parse_ports(text) == ports
    assert str(parse_ports(text)) == text


@pytest.mark.parametrize("text", ["22", "tcp/0", "tcp/65536", "tcp/9-8", "sctp/1", "tcp/22 ", "tcp/٢", "tcp/", ""])
def test_what_is_no_port(text):
    with pytest.raises(ValueError):
        parse_ports(text)


def test_limits():
    assert parse_limit("10/minute") == Limit(10, "minute", 5)
    assert parse_limit("3/hour burst 20") == Limit(3, "hour", 20)
    # A source is remembered until its allowance is whole again, else forgetting would be a gift.
    assert parse_limit("3/hour burst 20").seconds >= 3600 * 20 / 3
    for text in ("0/minute", "10", "10/week", "10/minute burst", "-1/minute", "10/minute  burst 2"):
        with pytest.raises(ValueError):
            parse_limit(text)


# case: N22
def test_a_source_is_remembered_for_a_year_at_most():
    """The kernel's own limit would be told in its words."""
    for text in ("1/day burst 182", "999/hour burst 999999"):
        assert parse_limit(text).seconds <= 366 * 86400
    for text in ("1/day burst 183", "1/day burst 999999", "1/hour burst 999999"):
        with pytest.raises(ValueError):
            parse_limit(text)


@pytest.mark.parametrize("text", ["192.0.2.1/24", "0.0.0.0/0", "::/0", "300.1.1.1", "fe80::1%eth0", "", "1.2.3", "@x"])
def test_what_is_no_network(text):
    with pytest.raises(ValueError):
        parse_network(text)


def test_networks_are_normalised():
    assert parse_network("2001:DB8:0::/48") == "2001:db8::/48"
    assert parse_network("192.0.2.7/32") == "192.0.2.7"


# case: N18
@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("::ffff:cb00:7109/128", "203.0.113.9"),
        ("2001:db8::ffff:203.0.113.9", "2001:db8::ffff:cb00:7109"),
    ],
)
def test_ipv4_within_ipv6_is_ipv4(text, plain):
    """No packet has such an address, so a rule for it would never match."""
    assert parse_network(text) == plain
    assert lists.span(text) == lists.span(plain)
    if "/" not in text:
        assert host_address(text) == plain
        assert lists.span(f"{text}-{text}") == lists.span(plain)


# case: N18
def test_ipv4_within_ipv6_is_no_address_of_an_interface():
    with pytest.raises(ValueError):
        interface_address("::ffff:192.0.2.1/120")


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_default_lets_one_log_in_and_find_the_device_but_nothing_else():
    default = policy(default_text())
    for interface in ("eth0", "enp3s0", "wg0"):
        assert admits(default, Packet("203.0.113.9", "tcp", 22, interface))
        assert decide(default, Packet("203.0.113.9", "tcp", 80, interface)).action == "deny"
    assert admits(default, Packet("192.0.2.7", "udp", 5353, "eth0"))
    assert not admits(default, Packet("192.0.2.7", "udp", 5353, "wg0"))


def test_all_shipped_services_have_ports():
    known = shipped_services()
    assert {"ssh", "mdns", "https", "dns", "wireguard"} <= set(known)
    assert known["ssh"].limit


@pytest.mark.parametrize(
    ("text", "reason", "where"),
    [
        ("default-zone = 'wan'\n" + BASE, "firewall-reference", "firewall.toml:1:"),
        (BASE + "[rules.a]\nservice = 'shh'\n", "firewall-reference", "firewall.toml:4:"),
        (BASE + "[rules.a]\nservice = 'ssh'\nzone = 'x'\n", "firewall-reference", "firewall.toml:5:"),
        (BASE + "[rules.a]\nservice = 'ssh'\nfrom = ['@x']\n", "firewall-reference", "firewall.toml:5:"),
        (
            BASE + "[rules.a]\nservice='ssh'\naction='deny'\nlimit='1/second'\n",
            "firewall-reference",
            "firewall.toml:6:",
        ),
        (BASE + "[nat.a]\nfrom = 'lan'\nto = 'x'\n", "firewall-reference", "firewall.toml:5:"),
        (BASE + "interfaces=['e']\n[zones.b]\ninterfaces=['e']\n", "firewall-reference", "firewall.toml:5:"),
        (BASE + "[forwards.a]\nzone='lan'\nport='tcp/1-2'\nto='192.0.2.1'\nto-port=1\n", "firewall-reference", ":7:"),
        (BASE + "[units.a]\noutgoing=['x']\n", "firewall-reference", "firewall.toml:4:"),
        (BASE + "[rules.a]\nservise = 'ssh'\n", "config-unknown-key", "firewall.toml:4:"),
        (BASE + "[rules.a]\n", "config-missing-key", "firewall.toml:3:"),
        (BASE + "[rules.a]\nservice = 'tcp/99999'\n", "config-value", "firewall.toml:4:"),
        (BASE + "[rules.a]\nservice = 22\n", "config-value", "firewall.toml:4:"),
        (BASE + "[rules.'x y']\nservice = 'ssh'\n", "config-value", "firewall.toml"),
        (BASE + "[zones.b]\ninterfaces = ['e*h']\n", "config-value", "firewall.toml:4:"),
        (BASE + "[zones.b]\ninterfaces = ['e\" drop']\n", "config-value", "firewall.toml:4:"),
        (BASE + "[forwards.a]\nzone='lan'\nport='tcp/1'\nto='127.0.0.1'\n", "config-value", "firewall.toml:6:"),
        (BASE + "[lists.a]\nfile = '../shadow'\n", "config-value", "firewall.toml:4:"),
        ("ping = 'yes'\n" + BASE, "config-value", "firewall.toml:1:"),
        ("[zones.lan", "config-syntax", "firewall.toml"),
    ],
)
def test_mistakes_have_a_reason_and_a_place(text, reason, where):
    error = refusal(text)
    assert error.reason == reason
    assert where in error.message


def test_all_mistakes_are_told_at_once():
    error = refusal(BASE + "[rules.a]\nservice='x'\n[rules.b]\nservice='y'\n")
    assert error.message.count("firewall.toml:") == 2


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        policy(text)


def test_a_missing_file_means_the_default(tmp_path):
    assert read_source(View(Trees(tmp_path))).text == default_text()


# -- lists -----------------------------------------------------------------------------------------------------------


def test_a_list_is_merged():
    text = "192.0.2.0/25\n192.0.2.128/25  # the rest\n; nothing\n198.51.100.1-198.51.100.3\n198.51.100.2\n2001:db8::1\n"
    ranges = policy(BASE + "[lists.a]\nfile='a.txt'\naddresses=['203.0.113.5']\n", **{"a.txt": text}).lists["a"]
    assert list(ranges.texts(4)) == ["192.0.2.0/24", "198.51.100.1-198.51.100.3", "203.0.113.5"]
    assert list(ranges.texts(6)) == ["2001:db8::1"]


def test_a_wrong_line_of_a_list_is_named():
    error = refusal(BASE + "[lists.a]\nfile='a.txt'\n", **{"a.txt": "192.0.2.1\n192.0.2.1/24\nx\n"})
    assert error.reason == "firewall-list"
    assert "a.txt:2:" in error.message
    assert "a.txt:3:" in error.message


def test_too_many_addresses_are_refused(monkeypatch):
    monkeypatch.setattr(lists, "MAX_ADDRESSES", 2)
    assert refusal(BASE + "[lists.a]\naddresses=['1.1.1.1','1.1.1.2','1.1.1.3']\n").reason == "firewall-too-many"


networks = st.one_of(
    st.ip_addresses().map(str),
    st.tuples(st.ip_addresses(v=4), st.integers(1, 32)).map(lambda x: str(ipaddress.ip_network(x, strict=False))),
    st.tuples(st.ip_addresses(v=6), st.integers(1, 128)).map(lambda x: str(ipaddress.ip_network(x, strict=False))),
)


@settings(deadline=None)
@given(st.lists(networks, max_size=20))
def test_merging_keeps_exactly_the_addresses(texts):
    found = lists.merge(texts)
    for family, ranges in ((4, found.v4), (6, found.v6)):
        parsed = [network for network in map(ip_network, texts) if network.version == family]
        wanted = list(ipaddress.collapse_addresses(parsed))
        assert sum(last - first + 1 for first, last in ranges) == sum(one.num_addresses for one in wanted)
        assert all(found.holds(family, int(one[0])) and found.holds(family, int(one[-1])) for one in wanted)
        assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))
    assert lists.merge([*found.texts(4), *found.texts(6)]) == found


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_line_is_a_span_or_a_value_error(text):
    try:
        family, first, last = lists.span(text)
    except ValueError:
        return
    assert family in (4, 6)
    assert first <= last


# -- decisions -------------------------------------------------------------------------------------------------------

ZONES = """
default-zone = "wan"
[zones.wan]
[zones.vpn]
interfaces = ["wg*"]
allow = ["ssh"]
[zones.office]
interfaces = ["wg7"]
allow = ["http"]
[zones.lab]
sources = ["192.0.2.0/24", "2001:db8::/64"]
policy = "allow"
[rules.no]
action = "reject"
service = "ssh"
from = ["192.0.2.66"]
[rules.list]
service = "tcp/9000-9010"
zone = "wan"
from = ["@known"]
limit = "1/hour"
[forwards.cam]
zone = "wan"
port = "udp/554"
to = "192.0.2.8"
to-port = 555
[lists.known]
addresses = ["203.0.113.0/24"]
block = false
[lists.bad]
addresses = ["203.0.113.13"]
"""


def test_zones_by_source_then_interface_then_wildcard():
    found = policy(ZONES)
    assert zone_of(found, Packet("192.0.2.5", "tcp", 1, "wg7")) == "lab"
    assert zone_of(found, Packet("203.0.113.1", "tcp", 1, "wg7")) == "office"
    assert zone_of(found, Packet("203.0.113.1", "tcp", 1, "wg70")) == "vpn"
    assert zone_of(found, Packet("203.0.113.1", "tcp", 1, "eth0")) == "wan"


@pytest.mark.parametrize(
    ("packet", "action", "by"),
    [
        (Packet("192.0.2.5", "tcp", 22, "eth0"), "accept", "zones.lab"),
        (Packet("192.0.2.66", "tcp", 22, "eth0"), "reject", "rules.no"),
        (Packet("203.0.113.1", "tcp", 9005, "eth0"), "accept", "rules.list"),
        (Packet("203.0.113.13", "tcp", 9005, "eth0"), "deny", "lists.bad"),
        (Packet("198.51.100.1", "tcp", 9005, "eth0"), "deny", "default"),
        (Packet("203.0.113.1", "udp", 554, "eth0"), "forward", "forwards.cam"),
        (Packet("2001:db8:1::1", "udp", 554, "eth0"), "deny", "default"),
        (Packet("203.0.113.1", "tcp", 22, "wg1"), "accept", "zones.vpn: ssh"),
        (Packet("203.0.113.1", "tcp", 22, "lo"), "accept", "loopback"),
    ],
)
def test_decisions(packet, action, by):
    found = decide(policy(ZONES), packet)
    assert (found.action, found.by) == (action, by)


def test_an_unknown_interface_must_be_good_for_every_interface():
    assert admits(policy(ZONES), Packet("192.0.2.5", "tcp", 22))
    assert not admits(policy(ZONES), Packet("203.0.113.1", "tcp", 22))
