"""Lists of addresses: thousands of lines to a few merged ranges per family, as an interval set of nftables wants them.

A line is an address, a network, or a range `first-last`; `#` and `;` start a comment. Numbers, not address objects: a
list of a hundred thousand lines must cost little on a small board.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.errors import ConfigError
from common.lines import split_lines
from common.text import decoded

MAX_ADDRESSES = 200_000  # of all lists together
MAX_BYTES = 8 << 20  # of one file

Range = tuple[int, int]


class Ranges(NamedTuple):
    """Addresses as sorted ranges that neither overlap nor touch, both ends included."""

    v4: tuple[Range, ...]
    v6: tuple[Range, ...]

    def holds(self, family: int, address: int) -> bool:
        """Whether an address (as a number, family 4 or 6) is in it."""
        return any(first <= address <= last for first, last in (self.v4 if family == 4 else self.v6))

    def texts(self, family: int) -> Iterator[str]:
        """The ranges as text: `192.0.2.1`, `192.0.2.0/24`, or `192.0.2.1-192.0.2.5`."""
        bits = 32 if family == 4 else 128
        for first, last in self.v4 if family == 4 else self.v6:
            size = last - first + 1
            if size == 1:
                yield _text(first, bits)
            elif size & (size - 1) == 0 and first % size == 0 and size < 1 << bits:
                yield f"{_text(first, bits)}/{bits - size.bit_length() + 1}"
            else:
                yield f"{_text(first, bits)}-{_text(last, bits)}"


def number(text: str) -> tuple[int, int]:
    """(family, address as a number). Raises ValueError."""
    family, kind = (6, socket.AF_INET6) if ":" in text else (4, socket.AF_INET)
    try:
        return family, int.from_bytes(socket.inet_pton(kind, text), "big")
    except (OSError, UnicodeError):
        raise ValueError(f"{text[:80]!r} is not an IP address") from None


def span(text: str) -> tuple[int, int, int]:
    """(family, first, last) of an address, a network without host bits, or a range. IPv4 within IPv6 (::ffff:192.0.2.1)
    is IPv4: no packet carries it so. Raises ValueError."""
    family, first, last = _span(text)
    if family == 6 and first >> 32 == last >> 32 == 0xFFFF:
        return 4, first & 0xFFFFFFFF, last & 0xFFFFFFFF
    return family, first, last


def _span(text: str) -> tuple[int, int, int]:
    if "-" in text:
        (family, first), (other, last) = (number(part.strip()) for part in text.split("-", 1))
        if family != other or first > last:
            raise ValueError(f"{text[:80]!r} is not a range: the lower address goes first")
        return family, first, last
    address, slash, length = text.partition("/")
    family, first = number(address)
    bits = 32 if family == 4 else 128
    if not slash:
        return family, first, first
    if not (length.isascii() and length.isdigit() and len(length) < 4 and 1 <= int(length) <= bits):
        raise ValueError(f"{text[:80]!r}: a network's length is 1 to {bits}")
    host = (1 << bits - int(length)) - 1
    if first & host:
        raise ValueError(f"{text[:80]!r} has host bits set")
    return family, first, first | host


def merge(texts: Iterable[str]) -> Ranges:
    """Ranges of many texts. Raises ValueError for the first that is wrong."""
    found: dict[int, list[Range]] = {4: [], 6: []}
    for text in texts:
        family, first, last = span(text)
        found[family].append((first, last))
    return Ranges(_merged(found[4]), _merged(found[6]))


def lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number, entry) of a list's text, comments left out."""
    for index, line in enumerate(split_lines(text), 1):
        entry = line.partition("#")[0].partition(";")[0].strip()
        if entry:
            yield index, entry


def entries(data: bytes) -> tuple[str, ...]:
    """The entries of a list that somebody sends. Raises ConfigError `config-encoding`, `firewall-list` with the lines
    that are wrong, or when there is nothing in it."""
    text = decoded(data, "the list")
    if wrong := [f"line {line}: {message}" for line, message in problems(text)]:
        raise ConfigError("\n".join(wrong), reason="firewall-list")
    found = tuple(entry for _, entry in lines(text))
    if not found:  # what should have made it has failed
        raise ConfigError("there is no address in it", reason="firewall-list")
    return found


def problems(text: str, most: int = 20) -> Iterator[tuple[int, str]]:
    """(line number, what is wrong) for the first `most` wrong lines."""
    for index, entry in lines(text):
        try:
            span(entry)
        except ValueError as error:
            yield index, str(error)
            most -= 1
            if most == 0:
                return


def _merged(ranges: list[Range]) -> tuple[Range, ...]:
    result: list[Range] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return tuple(result)


def _text(address: int, bits: int) -> str:
    return socket.inet_ntop(socket.AF_INET if bits == 32 else socket.AF_INET6, address.to_bytes(bits // 8, "big"))
