"""The small values of firewall files: networks, ports, limits, interfaces. Text in, normalised text or numbers out.

Every function raises ValueError with a message that pydantic's error can carry to the line where the value stands.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, StringConstraints

from common.netvalues import host_address, ip_network

Protocol = Literal["tcp", "udp"]

_PORTS = re.compile(r"(tcp|udp)/([0-9]{1,5})(?:-([0-9]{1,5}))?")
_LONGEST = 366 * 86400  # the kernel takes about 500 years
_LIMIT = re.compile(r"([0-9]{1,6})/(second|minute|hour|day)(?: burst ([0-9]{1,6}))?")
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,14}\*?")  # IFNAMSIZ is 16 with the final NUL
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


class Ports(NamedTuple):
    """A range of ports of one protocol, both ends included."""

    protocol: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.protocol}/{self.first}" + (f"-{self.last}" if self.last > self.first else "")


class Limit(NamedTuple):
    """`rate` new connections per `per`, each source by itself; `burst` more may come at once."""

    rate: int
    per: str
    burst: int

    @property
    def seconds(self) -> int:
        """After how many silent seconds a source need not be remembered."""
        return max(60, 2 * _SECONDS[self.per] * (1 + self.burst // self.rate))


def parse_ports(text: str) -> Ports:
    """`tcp/22` or `udp/5000-5010`."""
    found = _PORTS.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a port such as tcp/22 or udp/5000-5010")
    first, last = int(found[2]), int(found[3] or found[2])
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{text!r}: ports are 1 to 65535, the lower one first")
    return Ports(found[1], first, last)


def parse_limit(text: str) -> Limit:
    """`10/minute`, `10/minute burst 20`; without burst: 5, as nft has it."""
    found = _LIMIT.fullmatch(text)
    if not found or int(found[1]) == 0:
        raise ValueError(f"{text!r} is not a limit such as '10/minute' or '10/minute burst 20'")
    limit = Limit(int(found[1]), found[2], int(found[3]) if found[3] else 5)
    if limit.seconds > _LONGEST:
        raise ValueError(f"{text!r}: each source would be remembered for {limit.seconds // _SECONDS['day']} days")
    return limit


def parse_network(text: str) -> str:
    """An address or network, normalised: host addresses without `/32`. Host bits must be zero."""
    network = ip_network(text.strip())
    if "%" in text:
        raise ValueError(f"{text!r}: an address with an interface (%) cannot be a source")
    if network.prefixlen == 0:
        raise ValueError(f"{text!r} is everyone, which is what leaving it out means")
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def parse_address(text: str) -> str:
    """One address of another host, normalised."""
    address = host_address(text)
    if ipaddress.ip_address(address).is_loopback:
        raise ValueError(f"{text!r} is not the address of another host")
    return address


def _source(text: str) -> str:
    """A network or the name of a list, `@name`."""
    if text.startswith("@"):
        if not re.fullmatch(r"@[a-z][a-z0-9-]{0,23}", text):
            raise ValueError(f"{text!r} is not the name of a list, such as @office")
        return text
    return parse_network(text)


def _ports(text: str) -> str:
    return str(parse_ports(text))


def _service(text: str) -> str:
    """A service's name, or ports written out."""
    if "/" in text:
        return _ports(text)
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,23}", text):
        raise ValueError(f"{text[:60]!r} is neither a service such as ssh nor a port such as tcp/22")
    return text


def _limit(text: str) -> str:
    parse_limit(text)
    return text


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text) or text == "lo":
        raise ValueError(f"{text[:40]!r} is not an interface such as eth0, or wg* for all whose names begin so")
    return text


Name = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z][a-z0-9-]{0,23}$")]
UnitName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
FileName = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Network = Annotated[str, AfterValidator(parse_network)]
Address = Annotated[str, AfterValidator(parse_address)]
Source = Annotated[str, AfterValidator(_source)]
PortRange = Annotated[str, AfterValidator(_ports)]
ServiceRef = Annotated[str, AfterValidator(_service)]
LimitText = Annotated[str, AfterValidator(_limit)]
Interface = Annotated[str, AfterValidator(_interface)]
