"""The server's name in the first message of a TLS connection, as far as it can be seen from outside.

A tunnel that was asked for as `CONNECT api.example.org:443` must not carry a handshake for another server of the same
address. So the ClientHello is read, from one or several records, strictly and within bounds (RFC 8446, 4.1.2 and 5.1;
RFC 6066, 3), before a byte of it is passed on. What comes later is encrypted, and so is the inner name where a server
uses Encrypted Client Hello: then only the outer name is checked.
"""

from __future__ import annotations

from typing import NamedTuple

from daemon.linux.sandbox.proxy_rules import DeniedError

MAX_HELLO = 16 << 10  # bytes of all records of the message
HANDSHAKE = 22  # content type of a record
_CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 1, 0, 0


class Hello(NamedTuple):
    """What a ClientHello says; name: as it was sent, None when it names no server."""

    name: str | None


def client_hello(data: bytes) -> Hello | None:
    """Read the beginning of a stream; None when there is too little of it yet.

    Raises DeniedError `not-tls` (another protocol, another message, malformed, too long).
    """
    message = bytearray()
    at = 0
    while at < len(data):
        head = data[at : at + 5]
        if head[0] != HANDSHAKE or (len(head) > 1 and head[1] != 3):
            raise _not_tls("the tunnel does not begin with a TLS handshake")
        if len(head) < 5:
            return None
        length = int.from_bytes(head[3:5], "big")
        if not 0 < length <= MAX_HELLO:
            raise _not_tls("a record of the handshake is empty or too long")
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if message and message[0] != _CLIENT_HELLO:
            raise _not_tls("the handshake does not begin with a ClientHello")
        if len(message) >= 4:
            size = int.from_bytes(message[1:4], "big")
            if size > MAX_HELLO:
                raise _not_tls("the ClientHello is too long")
            if len(message) >= 4 + size:
                return Hello(_server_name(bytes(message[4 : 4 + size])))
    if len(data) > 2 * MAX_HELLO:  # records of one byte each
        raise _not_tls("the ClientHello is cut into too many pieces")
    return None


def _not_tls(message: str) -> DeniedError:
    return DeniedError(message, reason="not-tls")


class _Reader:
    """Vectors with a length in front, as TLS writes them. Raises DeniedError when there is less than was said."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise _not_tls("the ClientHello is cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    def more(self) -> bool:
        return self.at < len(self.data)


def _server_name(body: bytes) -> str | None:
    """From the body of a ClientHello."""
    reader = _Reader(body)
    reader.take(2 + 32)  # version, random
    session, ciphers, compressions = reader.vector(1), reader.vector(2), reader.vector(1)
    if len(session) > 32 or not ciphers or len(ciphers) % 2 or not compressions:
        raise _not_tls("the ClientHello is malformed")
    if not reader.more():  # before extensions were invented
        return None
    extensions = _Reader(reader.vector(2))
    if reader.more():
        raise _not_tls("the ClientHello goes on behind its extensions")
    seen: dict[int, bytes] = {}
    while extensions.more():
        kind, value = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise _not_tls("the ClientHello has an extension twice")
        seen[kind] = value
    return _host_name(seen[_SERVER_NAME]) if _SERVER_NAME in seen else None


def _host_name(extension: bytes) -> str:
    """The only entry of a ServerNameList."""
    outer = _Reader(extension)
    entries = _Reader(outer.vector(2))
    kind, name = entries.number(1), entries.vector(2)
    if kind != _HOST_NAME or not name or entries.more() or outer.more():
        raise _not_tls("the ClientHello does not name exactly one server")
    return name.decode("latin-1")
