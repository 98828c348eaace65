"""Allow lists: what an entry opens, and that nothing else is open."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import addresses
from daemon.linux.sandbox.proxy_rules import (
    Address,
    DeniedError,
    Rules,
    is_own,
    name,
    parse_address,
    printable,
    rule,
    special,
    target,
)

PUBLIC = "8.8.8.8"


def rules(*entries: str, own: Sequence[str] = ()) -> Rules:
    mine = {addresses.address(text) for text in own}
    return Rules(entries, lambda address: address in mine)


def asked(found: Rules, host: str, port: int = 443) -> str:
    """What becomes of a request: "ok", or the reason."""
    try:
        found.check(target(host, port))
    except DeniedError as error:
        return error.reason
    return "ok"


def answered(found: Rules, host: str, answer: str, port: int = 443) -> str:
    """What becomes of a name that stands for an address."""
    try:
        found.check_answer(target(host, port), address(answer))
    except DeniedError as error:
        return error.reason
    return "ok"


def address(text: str) -> Address:
    found = parse_address(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("entry", "host", "port", "outcome"),
    [
        ("api.example.org", "api.example.org", 443, "ok"),
        ("api.example.org", "API.Example.ORG.", 443, "ok"),
        ("api.example.org", "api.example.org", 80, "port-denied"),
        ("api.example.org:80,8443", "api.example.org", 8443, "ok"),
        ("api.example.org:80,8443", "api.example.org", 443, "port-denied"),
        ("api.example.org:8000-8099", "api.example.org", 8099, "ok"),
        ("api.example.org:8000-8099", "api.example.org", 8100, "port-denied"),
        ("example.org", "api.example.org", 443, "name-denied"),
        ("*.example.org", "api.example.org", 443, "ok"),
        ("*.example.org", "a.b.example.org", 443, "ok"),
        ("*.example.org", "example.org", 443, "name-denied"),
        ("*.example.org", "evilexample.org", 443, "name-denied"),
        ("*.example.org", "api.example.org.evil.test", 443, "name-denied"),
        ("api.example.org", "8.8.8.8", 443, "address-denied"),
        ("8.8.8.8", "8.8.8.8", 443, "ok"),
        ("8.8.8.0/24:53", "8.8.8.8", 53, "ok"),
        ("8.8.8.0/24:53", "::ffff:8.8.8.8", 53, "ok"),
        ("8.8.8.0/24:53", "8.8.9.8", 53, "address-denied"),
        ("[2606:4700::/32]:443", "2606:4700::1111", 443, "ok"),
        ("[2606:4700::1]", "2606:4700::2", 443, "address-denied"),
        ("0.0.0.0/0", "8.8.8.8", 443, "ok"),
        ("0.0.0.0/0", "127.0.0.1", 443, "address-denied"),
        ("0.0.0.0/0", "169.254.169.254", 443, "address-denied"),
        ("[::/0]", "::1", 443, "address-denied"),
        ("[::/0]", "fd00::1", 443, "address-denied"),
        ("[::/0]", "64:ff9b::7f00:1", 443, "address-denied"),
        ("[::/0]", "64:ff9b::808:808", 443, "ok"),
        ("[64:ff9b::a00:0/104]", "64:ff9b::a00:1", 443, "ok"),
        ("127.0.0.0/8", "127.0.0.1", 443, "ok"),
        ("10.1.0.0/16", "10.1.2.3", 443, "ok"),
        ("10.1.0.0/16", "10.2.2.3", 443, "address-denied"),
    ],
)
def test_what_an_entry_opens(entry: str, host: str, port: int, outcome: str) -> None:
    assert asked(rules(entry), host, port) == outcome


@pytest.mark.parametrize(
    ("number", "own"), [(errno.EADDRNOTAVAIL, False), (errno.EAFNOSUPPORT, False), (errno.EMFILE, True)]
)
def test_an_address_is_ours_when_the_kernel_does_not_say_no(
    monkeypatch: pytest.MonkeyPatch, number: int, own: bool
) -> None:
    """A machine without IPv6 can have no IPv6 address; one that cannot be asked may have any."""

    def fail(*_: object) -> socket.socket:
        raise OSError(number, "")

    assert is_own(addresses.address("127.0.0.1"))
    monkeypatch.setattr(socket, "socket", fail)
    assert is_own(addresses.address("2606:4700::1")) is own


def test_the_devices_own_addresses_must_be_named_one_by_one() -> None:
    own = ("8.8.8.8", "10.1.2.3", "127.0.0.1")
    for entries in (("0.0.0.0/0",), ("10.0.0.0/8", "8.8.8.0/24", "127.0.0.0/8")):
        assert {asked(rules(*entries, own=own), host) for host in own} == {"address-denied"}
    assert {asked(rules(*own, own=own), host) for host in own} == {"ok"}


PRIVATE = """
    127.0.0.1 127.255.255.254 0.0.0.0 10.0.0.1 100.64.0.1 169.254.169.254 172.31.0.1 192.168.1.1 198.18.0.1 224.0.0.1
    168.63.129.16 255.255.255.255 ::1 :: ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 fe80::1 fc00::1 fd12::1 ff02::1
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2001::1 2002:7f00:1::1 2001:db8::1 3fff::1 4000::1
"""


@pytest.mark.parametrize("answer", PRIVATE.split())
def test_no_name_stands_for_an_address_that_is_not_public(answer: str) -> None:
    assert special(addresses.address(answer)) is not None
    for others in ((), ("0.0.0.0/0", "[::/0]"), ("8.8.0.0/16",)):
        assert answered(rules("a.test", *others), "a.test", answer) == "answer-denied"


@pytest.mark.parametrize("answer", [PUBLIC, "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_names_stand_for_public_addresses(answer: str) -> None:
    assert answered(rules("a.test"), "a.test", answer) == "ok"
    assert answered(rules("a.test", own=[str(address(answer))]), "a.test", answer) == "answer-denied"


def test_a_name_may_stand_for_a_private_address_that_is_listed_with_its_port() -> None:
    found = rules("a.test:443,80", "10.0.0.0/8:443")
    assert answered(found, "a.test", "10.9.9.9", 443) == "ok"
    assert answered(found, "a.test", "10.9.9.9", 80) == "answer-denied"
    assert answered(found, "a.test", "192.168.0.1", 443) == "answer-denied"


NEITHER = """
    a..test .a.test a-.test -a.test 127.1 0x7f.1 0x7f000001 2130706433 0177.0.0.1 127.0.0.1.. 1.2.3.4.5 a.0x1 a.1 a_b.1
    a.test%00 a/b a@b a:b [::1] fe80::1%eth0 ex\u00e4mple.org a\u3002test
"""
LONG = ("a" * 64 + ".test", "a." * 127 + "test")


@pytest.mark.parametrize("text", [*NEITHER.split(), "", ".", "a test", "a\0.test", "a\n.test", *LONG])
def test_what_is_neither_name_nor_address(text: str) -> None:
    assert asked(rules("*.a.test", "0.0.0.0/0", "[::/0]"), text) == "name-invalid"


NO_ENTRY = """
    * *. *.org a.*.org **.a.org a.org: a.org:0 a.org:65536 a.org:2-1 a.org:x a.org:1, ::1 [::1 [::1]443 [127.0.0.1]:443
    10.0.0.1/8 10.0.0.0/33 https://a.org a.org/x a.org:443:1 [::ffff:10.0.0.0/104]:443 127.1 user@a.org
    a.org:\u0664\u0664\u0663
"""


@pytest.mark.parametrize("text", ["", "a b.org", *NO_ENTRY.split()])
def test_entries_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        rule(text)


def test_the_own_addresses_are_the_kernels() -> None:
    found = Rules(["127.0.0.0/8", "127.0.0.1:80"])
    assert asked(found, "127.0.0.1", 443) == "port-denied"  # named by the second entry only
    assert asked(found, "127.0.0.1", 80) == "ok"


@given(st.text())
def test_any_text_is_a_name_an_address_or_refused(text: str) -> None:
    try:
        found = target(text, 443)
    except DeniedError as error:
        assert (error.reason, error.host) == ("name-invalid", printable(text))  # noqa: PT017  # or it is one
        assert error.host.isascii()  # noqa: PT017
        return
    assert found == target(found.host, 443)
    assert found.host == printable(found.host) or len(found.host) > 100
    if found.address is None:
        assert name(found.host) == found.host


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "::ffff:{}", "64:ff9b::{}"]))
def test_ipv4_is_judged_the_same_in_every_dress(number: int, dress: str) -> None:
    plain = ipaddress.IPv4Address(number)
    assert special(address(dress.format(plain))) == special(plain)


@given(st.ip_addresses(), st.sampled_from(PRIVATE.split()), st.integers(0, 32))
def test_a_wide_network_opens_nothing_special(inside: Address, private: str, length: int) -> None:
    """Only a network within the kind of address opens it, whatever else it contains."""
    wanted = address(private)
    width = length if inside.version == 4 else 4 * length
    network = addresses.network((inside, width), strict=False)
    if getattr(network.network_address, "ipv4_mapped", None):
        return
    kind = special(wanted)
    assert kind is not None
    text = f"[{network}]" if network.version == 6 else str(network)
    allowed = asked(rules(text), private) == "ok"
    assert not allowed or network.subnet_of(
        kind if kind.version == network.version else addresses.network("64:ff9b::/96")
    )
