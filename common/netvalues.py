"""Values in network files, checked and written one way: names, addresses, networks, host names, endpoints."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Annotated

from pydantic import AfterValidator

from common import addresses, wireguard
from common.values import host_and_port

# IFNAMSIZ is 16 with the final NUL. No blank, slash or shell character: names become files and words of scripts.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
_RESERVED = frozenset({"lo", "all", "default"})  # the loopback; folders below /proc/sys/net/ipv4/conf
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
MAX_SERVERS = 3  # name servers that are asked
_MAX_LINE = 254  # of resolv.conf, in bytes
_PEER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def interface_name(text: str) -> str:
    """A name that an interface can have and that is safe as a file's name. Raises ValueError."""
    if not _NAME.fullmatch(text) or ".." in text or text in _RESERVED:
        raise ValueError(f"{text!r} is not a name for an interface: at most 15 letters, digits and . _ -")
    return text


def peer_name(text: str) -> str:
    """What a peer is called. Raises ValueError."""
    if not is_peer_name(text):
        raise ValueError(f"{text!r} is not a name for a peer: at most 32 letters, digits and _ -")
    return text


def is_peer_name(text: str) -> bool:
    """Whether a peer can be called so."""
    return bool(_PEER.fullmatch(text))


def host_address(text: str) -> str:
    """The address of one host, without prefix or zone. Raises ValueError."""
    try:
        address = plain(addresses.address(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IP address") from error
    problem = None if address.is_loopback else addresses.host_problem(address)
    if problem:
        raise ValueError(f"{text!r} {problem}")
    return str(address)


def interface_address(text: str) -> str:
    """An address with its prefix length, as an interface has it. Raises ValueError."""
    try:
        address = addresses.interface(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an address with prefix length, such as 192.0.2.10/24") from error
    if "/" not in text:
        raise ValueError(f"{text!r} needs its prefix length, such as {text}/{24 if address.version == 4 else 64}")
    problem = addresses.host_problem(address.ip, address.network)
    if plain(address.ip) != address.ip or problem:
        raise ValueError(f"{text!r} {problem or 'is not the address of a host'}")
    return str(address)


def plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address within IPv6 (::ffff:192.0.2.1, as programs log it) as what it is: no packet carries it so."""
    return (address.version == 6 and address.ipv4_mapped) or address


def network(text: str) -> str:
    """A network ("default" and "default6" stand for everything). Raises ValueError when host bits are set."""
    return str(ip_network({"default": "0.0.0.0/0", "default6": "::/0"}.get(text, text)))


def ip_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address or a network. Raises ValueError, with the network that was meant when host bits are set."""
    try:
        found = addresses.network(text)
        if plain(found.network_address) != found.network_address and found.prefixlen >= 96:
            return addresses.network(f"{plain(found.network_address)}/{found.prefixlen - 96}")
        return found
    except ValueError as error:
        try:
            near = addresses.network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text[:80]!r} is not a network, such as 192.0.2.0/24") from error
        raise ValueError(f"{text!r} has host bits set; its network is {near}") from error


def host_name(text: str) -> str:
    """A DNS name. Raises ValueError."""
    if len(text) > 253 or not _HOST.fullmatch(text):
        raise ValueError(f"{text!r} is not a host name")
    return text


def resolver_fits(servers: Collection[str], search: Collection[str]) -> None:
    """Whether the C library uses all of it: musl asks three servers and ignores a line of 255 bytes and more
    (src/network/resolvconf.c). Raises ValueError."""
    if len(set(servers)) > MAX_SERVERS:
        raise ValueError(f"{len(set(servers))} name servers: at most {MAX_SERVERS} are asked")
    if len(" ".join(["search", *dict.fromkeys(search)])) > _MAX_LINE:
        raise ValueError(f"the search domains have more than {_MAX_LINE - len('search ')} characters together")


def endpoint(text: str) -> str:
    """`host:port`, `address:port` or `[address]:port`. Raises ValueError."""
    host, port = split_endpoint(text)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def with_port(text: str, port: int) -> str:
    """An endpoint, from one or from a host alone, which gets `port`. Raises ValueError."""
    try:
        address = addresses.address(text)
    except ValueError:
        return endpoint(text if ":" in text else f"{text}:{port}")
    return endpoint(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")


def split_endpoint(text: str) -> tuple[str, int]:
    """Host and port of an endpoint. Raises ValueError."""
    host, port = host_and_port(text)
    return (host_address(host) if is_address(host) else host_name(host)), port


def is_address(host: str) -> bool:
    """Whether an endpoint's host needs no name server."""
    return ":" in host or bool(re.fullmatch(r"[0-9.]+", host))


def _public_key(text: str) -> str:
    try:
        return wireguard.encode(wireguard.decode(text))
    except wireguard.KeyProblem as error:
        raise ValueError(error.message) from error


InterfaceName = Annotated[str, AfterValidator(interface_name)]
PeerName = Annotated[str, AfterValidator(peer_name)]
HostAddress = Annotated[str, AfterValidator(host_address)]
InterfaceAddress = Annotated[str, AfterValidator(interface_address)]
NetworkText = Annotated[str, AfterValidator(network)]
HostName = Annotated[str, AfterValidator(host_name)]
EndpointText = Annotated[str, AfterValidator(endpoint)]
PublicKey = Annotated[str, AfterValidator(_public_key)]
