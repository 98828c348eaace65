"""A connection to a server, directly or through a proxy, in which every wait has an end.

Proxies: by absolute URI or CONNECT (RFC 9112 section 3.2.2, RFC 9110 section 9.3.6), SOCKS5 with names looked up by the
proxy (RFC 1928, RFC 1929). TLS is in a module of its own (`tls`), which costs 3 MiB and is loaded when it is needed.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import re
import select
import socket
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, unquote

from common.errors import MixosError

CHUNK = 64 << 10  # bytes that are taken from a socket at once
BUFFER = 208 << 10  # bytes under way at most: with them a line of 100 ms gives 2 MB/s, and of a jump no more is in vain
MAX_HEAD = 16 << 10  # bytes of a head of HTTP
MAX_ADDRESSES = 8
END = b"\r\n\r\n"
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


class SourceError(MixosError):
    """Where a bundle or a file is, it cannot be had from now. docs/updates.md lists the reasons.

    passing: asking again, for what is missing, may help at once; retryable: or later; after: seconds that the server
    wants to be left alone.
    """

    exit_code = 10

    def __init__(
        self, message: str, reason: str, *, passing: bool = True, retryable: bool = False, after: float = 0.0
    ) -> None:
        super().__init__(message, reason=reason, retryable=passing or retryable)
        self.passing = passing
        self.after = after


class Limits(NamedTuple):
    """Seconds, bytes and times; what they mean is said where they are checked."""

    address: float = 5.0  # to reach one of several addresses
    reach: float = 30.0  # to reach any of them, and to agree on TLS, and with a proxy: each
    answer: float = 30.0  # from a request to the end of its answer's head
    trip: float = 5.0  # of that are no slowness, but the way there and back
    silence: float = 30.0  # without a byte of a body
    slow: float = 60.0  # of waiting, over which a body comes with
    least: int = 1024  # bytes per second in the mean
    attempts: int = 8  # that fail one after the other, before `progress` bytes came
    progress: int = 16 << 10
    total: int = 1000  # attempts that fail, of one process
    pause: float = 1.0  # before the second attempt in a row; it doubles each time
    longest: float = 60.0  # of these pauses
    after: float = 300.0  # that a server may have us wait; more is said to who asked


class Layer(Protocol):
    """Bytes both ways. until: of time.monotonic(). Each raises OSError, TimeoutError; SourceError in TLS."""

    def send(self, data: bytes, until: float) -> None:
        """All of it."""

    def receive(self, most: int, until: float) -> bytes:
        """At least one, at most so many; none: the other end has closed."""

    def idle(self) -> bool:
        """Whether nothing has come that was not received, not even an end."""

    def close(self) -> None:
        """At once."""


Wrap = Callable[[Layer, str, float], Layer]  # TLS over a layer, with a server of that name, until then


class Plain:
    """A TCP connection."""

    def __init__(self, host: str, port: int, limits: Limits) -> None:
        """Connect to the first address that answers. Raises OSError."""
        end = time.monotonic() + limits.reach
        failed: OSError = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        for family, kind, protocol, _, address in _addresses(host, port):
            with contextlib.ExitStack() as stack:
                self._socket = stack.enter_context(socket.socket(family, kind, protocol))
                self._socket.setblocking(False)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                try:
                    self._connect(address, min(end, time.monotonic() + limits.address))
                except OSError as error:
                    failed = error
                    continue
                stack.pop_all()
                return
        raise failed

    def _connect(self, address: tuple[object, ...], until: float) -> None:
        error = self._socket.connect_ex(address)
        if error == errno.EINPROGRESS:
            self._wait(select.POLLOUT, until)
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))

    def _wait(self, event: int, until: float) -> None:
        poller = select.poll()
        poller.register(self._socket, event)
        if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def send(self, data: bytes, until: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(select.POLLOUT, until)
            with contextlib.suppress(BlockingIOError):
                view = view[self._socket.send(view) :]

    def receive(self, most: int, until: float) -> bytes:
        while True:
            self._wait(select.POLLIN, until)
            with contextlib.suppress(BlockingIOError):
                return self._socket.recv(most)

    def idle(self) -> bool:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return not poller.poll(0)

    def close(self) -> None:
        self._socket.close()


class Connection:
    """A layer with what was received from it and not yet read."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self._data = b""

    def send(self, data: bytes, until: float) -> None:
        """See Layer."""
        self.layer.send(data, until)

    def some(self, most: int, until: float) -> bytes:
        """See Layer.receive."""
        data = self._data or self.layer.receive(min(CHUNK, max(most, 4096)), until)
        self._data = data[most:]
        return data[:most]

    def exactly(self, size: int, until: float) -> bytes:
        """So many. Raises ConnectionError when they end before."""
        data = b""
        while len(data) < size:
            data += self._more(size - len(data), until)
        return data

    def through(self, mark: bytes, most: int, until: float) -> bytes:
        """All up to a mark and with it. Raises SourceError when that is more than so many; ConnectionError."""
        data = b""
        while (at := data.find(mark)) < 0:
            if len(data) >= most:
                raise SourceError("the server's answer does not end where it should", "source-answer")
            data += self._more(CHUNK, until)
        self._data = data[at + len(mark) :] + self._data
        if at + len(mark) > most:
            raise SourceError("the server's answer does not end where it should", "source-answer")
        return data[: at + len(mark)]

    def _more(self, most: int, until: float) -> bytes:
        data = self.some(most, until)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the server has ended the connection")
        return data

    def idle(self) -> bool:
        """Whether it can be used for something new."""
        return not self._data and self.layer.idle()

    def close(self) -> None:
        """At once."""
        self.layer.close()


_Address = tuple[int, int, int, str, tuple[object, ...]]  # as socket.getaddrinfo has them


def _addresses(host: str, port: int) -> list[_Address]:
    """Of both families by turns: one may lead nowhere, however many it has (RFC 8305, section 4)."""
    found = _resolved(host, port)
    same = [one for one in found if one[0] == found[0][0]]
    others = [one for one in found if one[0] != found[0][0]]
    return [one for pair in zip_longest(same, others) for one in pair if one is not None][:MAX_ADDRESSES]


def _resolved(host: str, port: int) -> Sequence[_Address]:
    try:  # a text would load IDNA: 1 MiB
        return socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise SourceError(f"the name {host} is not found", "source-unreachable") from error


def connect(to: SplitResult, proxy: SplitResult | None, wrap: Wrap, limits: Limits) -> Connection:
    """A connection on which requests to a server can be made; with an http proxy and an http server, to that proxy.

    to, proxy: URLs with a host. Raises OSError; SourceError `source-unreachable`, `source-proxy`, `source-tls`.
    """
    host, port = str(to.hostname), to.port or PORTS[to.scheme]
    first = proxy or to
    try:
        layer: Layer = Plain(str(first.hostname), first.port or PORTS[first.scheme], limits)
    except OSError as error:
        raise SourceError(f"{first.hostname} cannot be reached: {error.strerror}", "source-unreachable") from error
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: layer.close())
        until = time.monotonic() + limits.reach
        if proxy is not None:
            if proxy.scheme == "https":
                layer = wrap(layer, str(proxy.hostname), until)
            if proxy.scheme.startswith("socks"):
                _socks(Connection(layer), host, port, proxy, until)
            elif to.scheme == "https":
                _tunnel(Connection(layer), host, port, proxy, until)
        if to.scheme == "https":
            layer = wrap(layer, host, time.monotonic() + limits.reach)
        stack.pop_all()
    return Connection(layer)


def _tunnel(link: Connection, host: str, port: int, proxy: SplitResult, until: float) -> None:
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    word = basic(proxy.username, proxy.password)
    more = f"Proxy-Authorization: {word}\r\n" if word else ""
    link.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: mixos\r\n{more}\r\n".encode("latin-1"), until)
    head = link.through(END, MAX_HEAD, until)
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})[ \r]", head)
    if status is None or not status[1].startswith(b"2") or not link.idle():
        words = f"answers {status[1].decode()}" if status else "does not speak HTTP"
        passing = status is not None and status[1].startswith(b"5")
        raise SourceError(f"the proxy {words} when it is to connect to {host}", "source-proxy", passing=passing)


def _socks(link: Connection, host: str, port: int, proxy: SplitResult, until: float) -> None:
    method = b"\x02" if proxy.username is not None else b"\x00"
    link.send(b"\x05\x01" + method, until)
    if link.exactly(2, until) != b"\x05" + method:
        raise SourceError("the proxy wants another way to log in", "source-proxy", passing=False)
    if proxy.username is not None:
        user, password = (unquote(word or "").encode()[:255] for word in (proxy.username, proxy.password))
        link.send(bytes((1, len(user))) + user + bytes((len(password),)) + password, until)
        if link.exactly(2, until)[1] != 0:
            raise SourceError("the proxy does not accept user and password", "source-proxy", passing=False)
    link.send(b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big"), until)
    answer = link.exactly(4, until)
    if answer[:2] != b"\x05\x00":
        raise SourceError(f"the proxy does not connect to {host} (SOCKS {answer[1]})", "source-proxy")
    size = {1: 4, 4: 16}.get(answer[3])
    link.exactly((size if size is not None else link.exactly(1, until)[0]) + 2, until)


def _socks_address(host: str) -> bytes:
    for kind, family in ((1, socket.AF_INET), (4, socket.AF_INET6)):
        with contextlib.suppress(OSError):
            return bytes((kind,)) + socket.inet_pton(family, host)
    return bytes((3, len(host))) + host.encode("ascii")


def basic(user: str | None, password: str | None) -> str | None:
    """The value of Authorization for a user (RFC 7617); both as they stand in a URL."""
    if user is None:
        return None
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return "Basic " + base64.b64encode(pair).decode()
