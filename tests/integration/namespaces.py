"""Network namespaces with real packets between them, for tests that run as root.

A socket belongs to the namespace that it was made in, wherever it is used: so sockets are made by a function that runs
`inside` a namespace, in a thread of its own, and everything else stays plain Python.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from buildsys.run import run
from tests.waiting import joined

Result = TypeVar("Result")
_NEWNET = 0x40000000


@dataclass(frozen=True)
class Space:
    """A namespace made with `ip netns add`."""

    name: str

    def ip(self, *words: str) -> None:
        run(["ip", "-n", self.name, *words])

    def inside(self, function: Callable[[], Result]) -> Result:
        """What `function` returns when it is called in a thread within this namespace."""
        found: list[Result] = []
        wrong: list[BaseException] = []

        def thread() -> None:
            try:
                descriptor = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(descriptor, _NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
                os.close(descriptor)
                found.append(function())
            except BaseException as error:  # noqa: BLE001  # handed to the caller
                wrong.append(error)

        worker = threading.Thread(target=thread)
        worker.start()
        joined(worker)
        if wrong:
            raise wrong[0]
        return found[0]

    def go(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Like `inside`, for asynchronous work."""

        async def awaited() -> Result:
            return await work()

        return self.inside(lambda: asyncio.run(awaited()))

    def listen(self, port: int, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET6) -> socket.socket:
        """A socket on every address of this namespace, both families."""

        def make() -> socket.socket:
            server = socket.socket(family, kind)
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind(("", port))
            if kind == socket.SOCK_STREAM:
                server.listen(4000)  # what a test does not accept stays in the queue
            server.settimeout(5)
            return server

        return self.inside(make)

    def connects(self, host: str, port: int, wait: float = 1.0, source: str = "") -> bool:
        """Whether a TCP connection is accepted; False when it is refused by a packet or unanswered for `wait` s."""

        def attempt() -> bool:
            try:
                origin = (source, 0) if source else None
                socket.create_connection((host, port), wait, origin).close()
            except OSError:
                return False
            return True

        return self.inside(attempt)

    def gets_through(self, host: str, port: int, server: socket.socket) -> bool:
        """Whether a UDP packet arrives at `server`, a socket elsewhere."""
        token = os.urandom(8)

        def send() -> None:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as channel:
                try:
                    channel.sendto(token, (host, port))
                except OSError:
                    return  # the kernel knows already that it is refused

        self.inside(send)
        server.settimeout(0.4)
        try:
            while True:
                if server.recv(100) == token:
                    return True
        except TimeoutError:
            return False

    def pings(self, host: str) -> bool:
        """Whether an echo request is answered (RFC 792, RFC 4443)."""
        six = ":" in host
        kind = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
        token = os.urandom(8)
        # type, code, checksum (the kernel's business for ICMPv6), then what is sent back
        body = struct.pack("!BBH", 128 if six else 8, 0, 0) + token
        body = body if six else struct.pack("!BBH", 8, 0, checksum(body)) + token

        def ask() -> bool:
            with socket.socket(kind[0], socket.SOCK_RAW, kind[1]) as channel:
                channel.settimeout(1)
                channel.sendto(body, (host, 0))
                try:
                    while True:
                        answer = channel.recv(200)[0 if six else 20 :]
                        if answer[0] == (129 if six else 0) and answer.endswith(token):
                            return True
                except TimeoutError:
                    return False

        return self.inside(ask)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextmanager
def spaces(*names: str) -> Iterator[list[Space]]:
    """Fresh namespaces with loopback up; removed afterwards."""
    made = [Space(f"{name}-{os.getpid()}") for name in names]
    try:
        for space in made:
            run(["ip", "netns", "add", space.name])
            space.ip("link", "set", "lo", "up")
        yield made
    finally:
        for space in made:
            if Path("/run/netns", space.name).exists():
                run(["ip", "netns", "delete", space.name])


def cable(one: Space, name: str, other: Space, there: str, addresses: dict[str, tuple[str, ...]]) -> None:
    """A veth pair between two namespaces, up, with `addresses` by interface (IPv6 at once, without detection)."""
    one.ip("link", "add", name, "type", "veth", "peer", "name", there, "netns", other.name)
    for space, interface in ((one, name), (other, there)):
        space.ip("link", "set", interface, "up")
        for address in addresses.get(interface, ()):
            more = ["nodad"] if ":" in address else []
            space.ip("address", "add", address, "dev", interface, *more)
