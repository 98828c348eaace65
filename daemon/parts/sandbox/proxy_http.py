"""What clients of a proxy say in HTTP and SOCKS, read strictly: bytes in, frozen values out, no I/O.

One meaning for every byte, or a refusal. Whatever two programs could read in two ways (a bare line feed, a folded
line, two lengths, a space before a colon) is how a request is hidden inside another one, so none of it passes. Sources:
RFC 9110 and 9112 (HTTP), RFC 1928 (SOCKS 5).
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from daemon.linux.sandbox.proxy_rules import DeniedError, Target, target

MAX_HEAD = 16 << 10  # bytes of a request line and its fields
MAX_FIELDS = 100
MAX_LENGTH = 1 << 50  # of a body, in bytes; how much really passes is the proxy's limit
END = b"\r\n\r\n"

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE = re.compile(rf"({_TOKEN}) ([!-~]+) HTTP/1\.([01])", re.ASCII)
_FIELD = re.compile(rf"({_TOKEN}):[ \t]*((?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*")
_URL = re.compile(r"http://([^/?#]*)([^#]*)", re.ASCII)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})\r\n")
# About one connection, not about the message (RFC 9110, 7.6.1), or for the proxy, or said anew by `forward`.
_OURS = frozenset((
    "host", "connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te",
    "trailer", "upgrade", "transfer-encoding", "content-length",
))  # fmt: skip


class Head(NamedTuple):
    """A request up to its empty line. version: the digit behind HTTP/1. ; fields: names in lower case, in order."""

    method: str
    target: str
    version: int
    fields: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        """The values of a field."""
        return [value for field, value in self.fields if field == name]


class Request(NamedTuple):
    """A request that may be made, if its target may be reached. path: "" for CONNECT. length: bytes of the body that
    follows, None when it is in chunks."""

    head: Head
    to: Target
    path: str
    length: int | None


def _malformed(message: str, reason: str = "malformed") -> DeniedError:
    return DeniedError(message, reason=reason)


def request(data: bytes) -> Request:
    """A request of a client, from its first byte to the end of its empty line.

    Raises DeniedError `malformed`, `framing` (two ways to say where the body ends), `host-mismatch`, `name-invalid`.
    """
    head = parse_head(data)
    length = _framing(head)
    if head.method == "CONNECT":
        to, path = authority(head.target, None), ""
        if length != 0:
            raise _malformed("CONNECT has no body", "framing")
    else:
        match = _URL.fullmatch(head.target)
        if match is None:
            raise _malformed("a request to a proxy names its target in full, as http://HOST/")
        to, path = authority(match[1], 80), match[2] or "/"
        path = path if path.startswith("/") else "/" + path
    _check_host(head, to)
    return Request(head, to, path, length)


def parse_head(data: bytes) -> Head:
    """Raises DeniedError `malformed`."""
    if len(data) > MAX_HEAD or not data.endswith(END):
        raise _malformed("the request's head is too long or not complete")
    first, *lines = data[: -len(END)].decode("latin-1").split("\r\n")
    match = _LINE.fullmatch(first)
    if match is None or len(lines) > MAX_FIELDS:
        raise _malformed("this is not a request of HTTP/1.1")
    fields = [_FIELD.fullmatch(line) for line in lines]
    pairs = tuple((field[1].lower(), field[2]) for field in fields if field is not None)
    if len(pairs) != len(lines):
        raise _malformed("a field of the request is malformed")
    return Head(match[1], match[2], int(match[3]), pairs)


def authority(text: str, port: int | None) -> Target:
    """`HOST:PORT`, the port optional when there is a default. Raises DeniedError `malformed` or `name-invalid`."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\\]+)(?::([0-9]{1,5}))?", text, re.ASCII)
    if match is None or (match[2] is None and port is None):
        raise _malformed("a target is HOST:PORT, without an account")
    host = match[1]
    if host.startswith("["):
        found = target(host[1:-1], int(match[2] or port or 0))
        if ":" not in host:
            raise _malformed("only an IPv6 address stands in brackets")
        return found
    return target(host, int(match[2] or port or 0))


def _check_host(head: Head, to: Target) -> None:
    """The field must agree with the target: a server may go by either (RFC 9112, 3.2.2)."""
    hosts = head.all("host")
    if len(hosts) > 1 or (head.version == 1 and not hosts):
        raise DeniedError("one Host field is needed", reason="host-mismatch", host=to.host, port=to.port)
    for text in hosts:
        said = authority(text, to.port if head.method == "CONNECT" else 80)
        if said != to:
            message = f"the Host field says {said}, the target is {to}"
            raise DeniedError(message, reason="host-mismatch", host=said.host, port=said.port)


def _framing(head: Head) -> int | None:
    """Length of the body; None: chunks (RFC 9112, 6.3, without what it tolerates)."""
    lengths, codings = head.all("content-length"), head.all("transfer-encoding")
    if codings:
        if lengths or head.version == 0 or [coding.lower() for coding in codings] != ["chunked"]:
            raise _malformed("the body's end is not clear", "framing")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,16}", lengths[0], re.ASCII) or int(lengths[0]) > MAX_LENGTH:
        raise _malformed("the body's length is not clear", "framing")
    return int(lengths[0])


def forward(found: Request, *, to_proxy: str | None = None) -> bytes:
    """The head as the server gets it: written anew from what was understood, one request for this connection.

    to_proxy: the next hop is a proxy too; this is its `Proxy-Authorization`, "" for none.
    """
    head, host = found.head, str(found.to).removesuffix(":80")
    dropped = {word.strip().lower() for value in head.all("connection") for word in value.split(",")} | _OURS
    path = found.path if to_proxy is None else f"http://{host}{found.path}"
    lines = [f"{head.method} {path} HTTP/1.{head.version}", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in head.fields if name not in dropped]
    if found.length is None:
        lines.append("Transfer-Encoding: chunked")
    elif found.length or head.all("content-length"):
        lines.append(f"Content-Length: {found.length}")
    if to_proxy:
        lines.append(f"Proxy-Authorization: {to_proxy}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


def chunk_size(line: bytes) -> int:
    """The size of a chunk, from its line with CR LF; no extensions. Raises DeniedError `framing`."""
    match = _CHUNK.fullmatch(line)
    if match is None:
        raise _malformed("a chunk of the body is malformed", "framing")
    return int(match[1], 16)


def answer(status: int, words: str, text: str) -> bytes:
    """The proxy's own answer to a request that it does not make."""
    body = (text + "\n").encode("ascii", "replace")
    head = f"HTTP/1.1 {status} {words}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
    return head.encode() + END + body


# -- SOCKS 5 -----------------------------------------------------------------------------------------------------------

SOCKS = 5
NO_AUTHENTICATION, NOTHING_ACCEPTED = b"\x05\x00", b"\x05\xff"
GRANTED, DENIED, UNREACHABLE, NO_COMMAND, NO_ADDRESS_TYPE = 0, 2, 4, 7, 8
_IPV4, _NAME, _IPV6 = 1, 3, 4


def socks_length(start: bytes) -> int:
    """How long a request is, from its first five bytes. Raises DeniedError `malformed`."""
    lengths = {_IPV4: 10, _NAME: 7 + start[4], _IPV6: 22}
    if start[0] != SOCKS or start[2] != 0 or start[3] not in lengths:
        raise _malformed("this is not a request of SOCKS 5")
    return lengths[start[3]]


def socks_target(data: bytes) -> Target:
    """The target of a whole request. Raises DeniedError `malformed`, `command` (not CONNECT) or `name-invalid`."""
    if len(data) < 7 or len(data) != socks_length(data):
        raise _malformed("this is not a whole request of SOCKS 5")
    port = int.from_bytes(data[-2:], "big")
    if data[3] == _NAME:
        found = target(data[5:-2].decode("latin-1"), port)
    else:
        number = data[4:-2]
        found = target(str(IPv4Address(number) if data[3] == _IPV4 else IPv6Address(number)), port)
    if data[1] != 1:
        raise DeniedError("only CONNECT is served", reason="command", host=found.host, port=found.port)
    return found


def socks_answer(code: int) -> bytes:
    """The answer to a request. It names no address: that of our socket is nobody's business inside."""
    return bytes((SOCKS, code, 0, _IPV4, 0, 0, 0, 0, 0, 0))
