"""Whom a sandbox may talk to, and which addresses no name may stand for.

    api.example.org           port 443
    api.example.org:80,443    these ports
    *.example.org:8000-8099   every name below example.org, not example.org itself
    192.0.2.0/24:22           addresses; they may be asked for as such, and listed names may stand for them
    [2001:db8::/32]:443

Whatever is not listed is refused. A listed name may stand for any public address. For an address of another kind
(loopback, link-local, private, ...) it takes a network that lies within that kind, so `0.0.0.0/0` does not open
127.0.0.1; for one of the device's own it takes exactly this address.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from common import addresses
from common.errors import RefusedError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DEFAULT_PORT = 443
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# The last label has a letter: what ends in a number is an IPv4 address in one of its odd spellings (127.1, 0x7f.1).
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?=[a-z0-9_-]*[a-z_-])(?!0x[0-9a-f]*$){_LABEL}")

# Not public. IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890), 192.88.99.0/24 (RFC 7526), and
# 168.63.129.16, at which a large cloud's machines find their host.
SPECIAL: tuple[Network, ...] = tuple(
    addresses.network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        # all of IPv6 but 2000::/3, and what of that is not for hosts
        "::/8", "100::/8", "200::/7", "400::/6", "800::/5", "1000::/4", "4000::/2", "8000::/1",
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is really meant


# What bind(2) says: no such address here; one that is incomplete without an interface; no IPv6 on this machine.
_NOT_OWN = (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT)


class DeniedError(RefusedError):
    """The sandbox may not do this; `host` and `port` as far as they are known ("" and 0 when not)."""

    def __init__(self, message: str, *, reason: str, host: str = "", port: int = 0) -> None:
        super().__init__(message, reason=reason)
        self.host = host
        self.port = port


class Target(NamedTuple):
    """Where a client wants to go. host: lower case, no final dot; address: when the host is one."""

    host: str
    port: int
    address: Address | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def target(host: str, port: int) -> Target:
    """A host as a client wrote it. Raises DeniedError `name-invalid`."""
    if not 0 < port < 65536:
        raise DeniedError("there is no such port", reason="name-invalid", host=printable(host))
    address = parse_address(host)
    if address is not None:
        return Target(str(address), port, address)
    return Target(name(host), port)


def name(text: str) -> str:
    """The one spelling of a DNS name (RFC 1123, with underscores). Raises DeniedError `name-invalid`."""
    lower = text.removesuffix(".").lower() if text.isascii() else ""
    if len(lower) > 253 or not _NAME.fullmatch(lower):
        raise DeniedError("this is not the name of a host", reason="name-invalid", host=printable(text))
    return lower


def parse_address(text: str) -> Address | None:
    """An address in its plain spelling; an IPv4 address in IPv6 clothes (::ffff:192.0.2.1) becomes what it is."""
    try:
        found = addresses.address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        return None if found.scope_id else found.ipv4_mapped or found
    return found


def printable(text: str) -> str:
    """Whatever a client sent, for a log: at most 100 characters, each of them visible."""
    return "".join(sign if "!" <= sign <= "~" else "?" for sign in text[:100])


def special(address: Address) -> Network | None:
    """The kind of address that is not public, if this is one."""
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address in _NAT64):
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    return next((network for network in SPECIAL if address in network), None)


def is_own(address: Address) -> bool:
    """Whether the device itself has this address: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        return error.errno not in _NOT_OWN  # if the question cannot be asked, it is better to believe so
    return True


@dataclass(frozen=True)
class Rule:
    """One entry. Either `name` (with a leading dot: whatever ends in it) or `network`."""

    name: str
    network: Network | None
    ports: tuple[range, ...]

    def opens(self, port: int) -> bool:
        """Whether this port is listed."""
        return any(port in ports for ports in self.ports)

    def names(self, host: str) -> bool:
        """Whether this entry is about this name."""
        return host == self.name if not self.name.startswith(".") else host.endswith(self.name)

    def holds(self, address: Address, kind: Network | None, own: bool) -> bool:
        """Whether this entry lists this address, which is of this special kind and perhaps the device's own."""
        network = self.network
        if network is None or address.version != network.version or address not in network:
            return False
        if own:
            return network.prefixlen == network.max_prefixlen
        if kind is None:
            return True
        outer = kind if kind.version == network.version else _NAT64
        return network.subnet_of(outer)  # type: ignore[arg-type]


def rule(text: str) -> Rule:
    """An entry of an allow list. Raises ValueError that says what is wrong with it."""
    host, ports = _split(text)
    if host.startswith("*."):
        if "." not in host[2:]:
            raise ValueError(f"{text!r} would allow a whole top-level domain")
        return Rule("." + _plain_name(host[2:], text), None, ports)
    try:
        network = addresses.network(host)
    except ValueError as error:
        if "/" in host or ":" in host:
            raise ValueError(f"{text!r}: {error}") from error
        return Rule(_plain_name(host, text), None, ports)
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        raise ValueError(f"{text!r} is an IPv4 network; write it as one")
    return Rule("", network, ports)


def _plain_name(host: str, text: str) -> str:
    try:
        return name(host)
    except DeniedError as error:
        raise ValueError(f"{text!r} is not a host name, an address or a network, perhaps with :PORTS") from error


def _split(text: str) -> tuple[str, tuple[range, ...]]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: an IPv6 address stands in brackets, such as [2001:db8::1]:443")
        return host, _ports(rest[1:], text) if rest else (range(DEFAULT_PORT, DEFAULT_PORT + 1),)
    if text.count(":") > 1:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, such as [2001:db8::1]:443")
    host, colon, rest = text.partition(":")
    return host, _ports(rest, text) if colon else (range(DEFAULT_PORT, DEFAULT_PORT + 1),)


def _ports(text: str, whole: str) -> tuple[range, ...]:
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last < 65536:
            raise ValueError(f"{whole!r}: ports are written as 443, 80,443 or 8000-8099")
        found.append(range(first, last + 1))
    return tuple(found)


class Rules:
    """An allow list in force."""

    def __init__(self, entries: Iterable[str], own: Callable[[Address], bool] = is_own) -> None:
        """Raises ValueError for the first entry that is none."""
        self._rules = tuple(rule(text) for text in entries)
        self._own = own

    def check(self, wanted: Target) -> None:
        """Raises DeniedError `name-denied`, `address-denied` or `port-denied` for what is not listed."""
        address = wanted.address
        if address is None:
            about = [one for one in self._rules if one.network is None and one.names(wanted.host)]
        else:
            kind, own = special(address), self._own(address)
            about = [one for one in self._rules if one.holds(address, kind, own)]
        if not about:
            word = "name" if address is None else "address"
            raise _denied(wanted, f"{wanted.host} is not on the list", f"{word}-denied")
        if not any(one.opens(wanted.port) for one in about):
            raise _denied(wanted, f"port {wanted.port} of {wanted.host} is not on the list", "port-denied")

    def check_answer(self, wanted: Target, address: Address) -> None:
        """An address that the name stands for. Raises DeniedError `answer-denied`."""
        kind, own = special(address), self._own(address)
        if kind is None and not own:
            return
        if not any(one.holds(address, kind, own) and one.opens(wanted.port) for one in self._rules):
            what = "the device itself" if own else f"{address}, in {kind}"
            raise _denied(wanted, f"{wanted.host} stands for {what}", "answer-denied")


def _denied(wanted: Target, message: str, reason: str) -> DeniedError:
    return DeniedError(message, reason=reason, host=wanted.host, port=wanted.port)
