"""The proxy over real sockets: what passes arrives byte for byte, what does not leaves an event and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from daemon.core.events import Bus, Event
from daemon.core.part import Context
from daemon.linux.sandbox.policy import Policy
from daemon.linux.sandbox.proxy_rules import Address, Rules, parse_address
from daemon.parts.sandbox.proxy import Limits, Proxy, serving
from daemon.parts.sandbox.proxy_reach import Upstream, _connect, direct
from daemon.parts.sandbox.run import Runner
from tests.clienthello import extended, hello, named

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
TARGET = "a.test"


class Recorder(Bus):
    """Keeps what is published."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Event] = []

    def publish(self, topic: str, subject: str, **data: Any) -> None:
        self.seen.append(Event(topic, subject, 0.0, data))

    @property
    def reasons(self) -> list[str]:
        return [str(event.data["reason"]) for event in self.seen]


@dataclass
class Server:
    """The far end: answers with `says` (None: the same) whenever something arrives, and keeps what came."""

    says: bytes | None = b"served"
    first: bytes = b""  # said at once
    got: list[bytes] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.got.append(b"")
        number = len(self.got) - 1
        writer.write(self.first)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.got[number] += data
                writer.write(data if self.says is None else self.says)
                await writer.drain()
        writer.close()


@dataclass
class Stage:
    """A proxy that serves, and what it talks to."""

    path: Path
    proxy: Proxy
    server: Server
    events: Recorder

    async def open(self) -> Streams:
        return await asyncio.open_unix_connection(str(self.path))

    async def say(self, *data: bytes, end: bool = False) -> bytes:
        """Everything that comes back for some bytes, until the proxy closes or says nothing for a while."""
        reader, writer = await self.open()
        got = b""
        with contextlib.suppress(OSError):
            for one in data:
                writer.write(one)
                await writer.drain()
                await asyncio.sleep(0.02)
            if end:
                writer.write_eof()
            with contextlib.suppress(TimeoutError):
                while chunk := await asyncio.wait_for(reader.read(65536), 0.5):
                    got += chunk
        writer.close()
        return got

    async def connect(self, host: str = TARGET, port: int | None = None) -> Streams:
        """A tunnel, open."""
        reader, writer = await self.open()
        writer.write(f"CONNECT {host}:{port or self.server.port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return reader, writer


def lookup(names: Mapping[str, str]) -> Callable[[str], Awaitable[Sequence[Address]]]:
    """A resolver that knows these names: addresses separated by blanks."""

    async def ask(host: str) -> Sequence[Address]:
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [found for text in names[host].split() if (found := parse_address(text)) is not None]

    return ask


@contextlib.asynccontextmanager
async def stage(
    folder: Path,
    *entries: str,
    names: Mapping[str, str] | None = None,
    server: Server | None = None,
    limits: Limits | None = None,
    tls: bool = False,
    proxies: Upstream | str = direct,
    ask: Callable[[str], Awaitable[Sequence[Address]]] | None = None,
) -> AsyncIterator[Stage]:
    """A server on loopback and a proxy that allows it. PORT in texts is the server's port; tls: that is a TLS port.

    entries: more of the list; proxies: the device's own proxy for everything, or the function that says which.
    """
    far = server or Server()
    listening = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    far.port = listening.sockets[0].getsockname()[1]
    allowed = [text.replace("PORT", str(far.port)) for text in (f"{TARGET}:PORT", "127.0.0.1:PORT", *entries)]
    known = {TARGET: "127.0.0.1", **(names or {})}
    events = Recorder()
    bounds = limits or Limits(tls_ports=frozenset({far.port} if tls else ()))
    upstream = always(proxies.replace("PORT", str(far.port))) if isinstance(proxies, str) else proxies
    proxy = Proxy("box", Rules(allowed), events, upstream=upstream, lookup=ask or lookup(known), limits=bounds)
    async with listening, serving(folder / "p", proxy) as path:
        yield Stage(path, proxy, far, events)


def always(url: str) -> Upstream:
    async def upstream(target: str) -> Mapping[str, str]:
        return {target.partition(":")[0]: url}

    return upstream


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def play(act: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine; it must not hang."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await act()

    asyncio.run(bounded())


def get(url: str, host: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {url} HTTP/1.1", f"Host: {host}", *more, "", ""]).encode()


# -- what passes -------------------------------------------------------------------------------------------------------


def test_a_tunnel_carries_every_byte_both_ways(tmp_path: Path) -> None:
    payload = os.urandom(300_000)

    async def act() -> None:
        async with stage(tmp_path, server=Server(says=None)) as on:
            reader, writer = await on.connect()
            writer.write(payload)
            writer.write_eof()
            assert await reader.read(-1) == payload
            writer.close()
            assert on.proxy.facts() == {"granted": 1, "denied": 0, "bytes": 2 * len(payload)}
            assert on.events.seen == []

    play(act)


def test_a_server_may_speak_first(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path, server=Server(first=b"220 hello\r\n")) as on:
            reader, writer = await on.connect()
            assert await reader.readline() == b"220 hello\r\n"
            writer.write(b"QUIT\r\n")
            assert await reader.read(100) == b"served"
            writer.close()

    play(act)


def test_a_plain_request_arrives_as_one_request(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path, server=Server(says=b"HTTP/1.1 200 OK\r\n\r\n")) as on:
            host = f"{TARGET}:{on.server.port}"
            answer = await on.say(get(f"http://{host}/x?y", host, "Proxy-Connection: keep-alive", "Accept: a"))
            assert answer == b"HTTP/1.1 200 OK\r\n\r\n"
            wanted = f"GET /x?y HTTP/1.1\r\nHost: {host}\r\naccept: a\r\nConnection: close\r\n\r\n"
            assert on.server.got == [wanted.encode()]

    play(act)


@pytest.mark.parametrize(
    ("framing", "body"),
    [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")],
)
def test_bodies_pass(tmp_path: Path, framing: str, body: bytes) -> None:
    async def act() -> None:
        async with stage(tmp_path, server=Server(says=b"")) as on:
            host = f"{TARGET}:{on.server.port}"
            head = get(f"http://{host}/", host, framing)
            await on.say(head + body[:3], body[3:], end=True)
            assert on.server.got[0].endswith(b"\r\n\r\n" + body)
            assert on.events.seen == []

    play(act)


def test_socks_5(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path) as on:
            port = on.server.port.to_bytes(2, "big")
            for address in (b"\x03\x06a.test", b"\x03\x09127.0.0.1", b"\x01\x7f\x00\x00\x01"):
                answer = await on.say(b"\x05\x02\x01\x00", b"\x05\x01\x00" + address + port, b"hi")
                assert answer == b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6) + b"served"
            assert on.server.got == [b"hi"] * 3
            assert on.proxy.granted == 3

    play(act)


@pytest.mark.parametrize("data", [hello(TARGET), hello("A.Test"), extended(named(b"a.test."))])
def test_a_handshake_for_the_right_server(tmp_path: Path, data: bytes) -> None:
    async def act() -> None:
        async with stage(tmp_path) as on:
            reader, writer = await on.connect()
            for at in range(0, len(data), 100):
                writer.write(data[at : at + 100])
                await writer.drain()
                await asyncio.sleep(0)
            assert (await reader.read(100)).startswith(b"served")
            writer.close()
            assert on.server.got[0] == data

    play(act)


def test_an_address_has_no_name_in_its_handshake(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path) as on:
            reader, writer = await on.connect("127.0.0.1")
            writer.write(hello(None))
            assert await reader.read(100) == b"served"
            writer.close()

    play(act)


# -- what does not -----------------------------------------------------------------------------------------------------

NAMES = {
    "loop.test": "127.0.0.1", "link.test": "169.254.169.254", "lan.test": "192.168.7.7", "six.test": "::1",
    "mapped.test": "::ffff:127.0.0.1", "mixed.test": "93.184.216.34 127.0.0.1", "nat64.test": "64:ff9b::a9fe:a9fe",
}  # fmt: skip


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("evil.test", 443, "name-denied"),
        ("a.test", 22, "port-denied"),
        ("a.test.evil.test", 443, "name-denied"),
        ("127.0.0.2", 443, "address-denied"),
        ("127.0.0.1", 443, "port-denied"),
        ("169.254.169.254", 80, "address-denied"),
        ("[::1]", 443, "address-denied"),
        ("[::ffff:127.0.0.2]", 443, "address-denied"),
        ("2130706433", 443, "name-invalid"),
        ("0x7f.1", 443, "name-invalid"),
        ("017700000001", 443, "name-invalid"),
        ("a.test%00.evil.test", 443, "name-invalid"),
        *((host, 443, "answer-denied") for host in NAMES),
    ],
)
def test_targets_that_are_refused(tmp_path: Path, host: str, port: int, reason: str) -> None:
    """By CONNECT, by a plain request and by SOCKS: the same reason, and an event with it."""

    async def act() -> None:
        async with stage(tmp_path, *(f"{name}:443" for name in NAMES), names=NAMES) as on:
            place = f"{host}:{port}"
            answer = await on.say(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
            assert answer.split()[1] == (b"400" if reason == "name-invalid" else b"403")
            assert reason.encode() in answer
            answer = await on.say(get(f"http://{place}/", place))
            assert answer.split()[1] in (b"400", b"403")
            name = host.strip("[]").encode()
            request = b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big")
            assert (await on.say(b"\x05\x01\x00", request))[:4] == b"\x05\x00\x05\x02"
            assert on.events.reasons == [reason] * 3
            assert {event.topic for event in on.events.seen} == {"sandbox.denied"}
            assert {event.subject for event in on.events.seen} == {"box"}
            assert on.server.got == []
            assert on.proxy.facts() == {"granted": 0, "denied": 3, "bytes": 0}

    play(act)


def test_the_address_that_was_checked_is_the_one_that_is_used(tmp_path: Path) -> None:
    """A name server that answers differently each time is asked once."""
    answers = iter(["127.0.0.1", "127.0.0.2"])

    async def ask(_: str) -> Sequence[Address]:
        found = parse_address(next(answers))
        assert found is not None
        return [found]

    async def act() -> None:
        async with stage(tmp_path, ask=ask) as on:
            _, writer = await on.connect()
            writer.close()
            answer = await on.say(f"CONNECT {TARGET}:{on.server.port} HTTP/1.1\r\nHost: {TARGET}\r\n\r\n".encode())
            assert b"answer-denied" in answer

    play(act)


@pytest.mark.parametrize(
    ("data", "tls", "reason"),
    [
        (hello("evil.test"), True, "sni-mismatch"),
        (hello("evil.test"), False, "sni-mismatch"),
        (hello(None), True, "sni-missing"),
        (extended(named(b"a.test", b"evil.test")), True, "not-tls"),
        (b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", True, "not-tls"),
        (b"\x16\x03\x01\x00\x05hello", False, "not-tls"),
        (hello()[:50], True, "not-tls"),
    ],
    ids=["other-tls", "other", "nameless", "two-names", "http", "garbage", "cut-off"],
)
def test_tunnels_are_for_the_server_that_was_named(tmp_path: Path, data: bytes, tls: bool, reason: str) -> None:
    async def act() -> None:
        async with stage(tmp_path, tls=tls) as on:
            reader, writer = await on.connect()
            writer.write(data)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert on.events.reasons == [reason]
            assert b"".join(on.server.got) == b""

    play(act)


def test_a_machine_without_ipv6_takes_the_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = socket.socket

    def no_six(family: int, *more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "")
        return plain(family, *more)

    async def act() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setattr(socket, "socket", no_six)
            addresses = [ipaddress.IPv6Address("::1"), ipaddress.IPv4Address("127.0.0.1")]
            with await _connect(addresses, server.getsockname()[1], "both") as link:
                assert link.socket.family == socket.AF_INET

    asyncio.run(act())


def test_a_handshake_in_many_pieces_is_refused(tmp_path: Path) -> None:
    """Each piece makes it be read anew: whoever dribbles would keep the daemon busy."""

    async def act() -> None:
        async with stage(tmp_path, tls=True) as on:
            reader, writer = await on.connect()
            with contextlib.suppress(ConnectionError):
                for byte in hello(TARGET)[:100]:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.002)
                assert await reader.read() == b""
            writer.close()
            assert on.events.reasons == ["not-tls"]

    play(act)


def test_a_tunnel_to_an_address_names_no_other_server(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path) as on:
            reader, writer = await on.connect("127.0.0.1")
            writer.write(hello("evil.test"))
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert on.events.reasons == ["sni-mismatch"]

    play(act)


@pytest.mark.parametrize(
    ("more", "behind"),
    [
        ((), b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"),
        (("Content-Length: 2",), b"xxGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"),
        (("Transfer-Encoding: chunked",), b"0\r\n\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"),
        (("Transfer-Encoding: chunked",), b"1\r\nxGET / HTTP/1.1\r\n"),
        (("Transfer-Encoding: chunked",), b"1;x\r\nx\r\n0\r\n\r\n"),
        (("Transfer-Encoding: chunked",), b"0\r\nTrailer: x\r\n\r\n"),
    ],
)
def test_no_second_request_hides_behind_the_first(tmp_path: Path, more: tuple[str, ...], behind: bytes) -> None:
    async def act() -> None:
        async with stage(tmp_path, server=Server(says=b"")) as on:
            host = f"{TARGET}:{on.server.port}"
            await on.say(get(f"http://{host}/", host, *more) + behind)
            assert on.events.reasons == ["framing"]
            assert b"evil" not in b"".join(on.server.got)
            assert sum(one.count(b"GET") for one in on.server.got) == 1

    play(act)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x05\x01\x02", b"\x05\xff"),  # a password
        (b"\x05\x01\x00\x05\x02\x00\x03\x06a.test\x01\xbb", b"\x05\x00\x05\x07"),  # BIND
        (b"\x05\x01\x00\x05\x03\x00\x03\x06a.test\x01\xbb", b"\x05\x00\x05\x07"),  # UDP
    ],
)
def test_what_of_socks_is_not_served(tmp_path: Path, data: bytes, code: bytes) -> None:
    async def act() -> None:
        async with stage(tmp_path) as on:
            assert (await on.say(data))[: len(code)] == code
            assert on.server.got == []

    play(act)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00" + bytes(512), b"\x04\x01\x00\x50", bytes(100), b"get / x\r\n\r\n"]
)
def test_other_protocols_are_refused_at_once(tmp_path: Path, data: bytes) -> None:
    async def act() -> None:
        async with stage(tmp_path) as on:
            assert (await on.say(data)).startswith(b"HTTP/1.1 400 ")
            assert on.events.reasons == ["malformed"]

    play(act)


def test_a_name_without_an_address_is_no_offence(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path, "gone.test:443") as on:
            answer = await on.say(b"CONNECT gone.test:443 HTTP/1.1\r\nHost: gone.test\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b"unresolved" in answer
            assert on.events.seen == []

    play(act)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_program_in_a_loop_does_not_fill_the_log(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path) as on:
            for _ in range(60):
                _, writer = await on.open()
                writer.write(b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n")
                writer.close()
            await until(lambda: on.proxy.denied == 60)
        told = [event for event in on.events.seen if event.data["reason"] != "more"]
        assert 20 <= len(told) < 30
        assert len(told) + sum(event.data["more"] for event in on.events.seen) == 60

    play(act)


def test_only_so_many_at_once(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path, limits=Limits(connections=2)) as on:
            opened = [await on.connect() for _ in range(2)]
            waiting = asyncio.create_task(on.connect())
            for _ in range(500):  # all of it is in this loop: had it been let in, it would be through by now
                await asyncio.sleep(0)
            assert not waiting.done()
            opened[0][1].close()
            opened.append(await waiting)
            for _, writer in opened:
                writer.close()

    play(act)


@pytest.mark.parametrize("start", [b"", b"CONNECT a.test", b"\x05\x01", b"\x05\x01\x00\x05\x01"])
def test_who_says_nothing_or_half_of_it_is_dropped(tmp_path: Path, start: bytes) -> None:
    async def act() -> None:
        async with stage(tmp_path, limits=Limits(opening=0.1)) as on:
            reader, writer = await on.open()
            writer.write(start)
            assert await reader.read() in (b"", b"\x05\x00")
            writer.close()

    play(act)


def test_an_idle_tunnel_ends(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path, limits=Limits(idle=0.1)) as on:
            reader, writer = await on.connect()
            assert await reader.read() == b""
            writer.close()

    play(act)


def test_the_bytes_are_counted(tmp_path: Path) -> None:
    async def act() -> None:
        async with stage(tmp_path, server=Server(says=b""), limits=Limits(moved=100_000)) as on:
            _, writer = await on.connect()
            with contextlib.suppress(ConnectionError):
                for _ in range(20):
                    writer.write(bytes(50_000))
                    await writer.drain()
            writer.close()
            await until(lambda: on.events.seen != [])
            assert on.events.reasons == ["bytes"]
            assert sum(map(len, on.server.got)) <= 100_000

    play(act)


def test_nothing_is_left(tmp_path: Path) -> None:
    """Descriptors, tasks, the socket; the folder stays, closed to others."""

    async def act() -> None:
        before = len(os.listdir("/proc/self/fd"))
        async with stage(tmp_path) as on:
            assert stat.S_IMODE(on.path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(on.path.stat().st_mode) == 0o666
            opened = [await on.connect() for _ in range(5)]
        for reader, writer in opened:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert not on.path.exists()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    play(act)


# -- through the device's own proxy ------------------------------------------------------------------------------------


def test_tunnels_through_another_proxy(tmp_path: Path) -> None:
    async def act() -> None:
        far = Server(says=b"", first=b"HTTP/1.1 200 yes\r\n\r\nhello")
        async with stage(tmp_path, "inside.test:22", server=far, proxies="http://me:p%40ss@127.0.0.1:PORT") as on:
            reader, writer = await on.connect("inside.test", 22)  # a name that cannot be resolved here
            assert await reader.read(100) == b"hello"
            writer.close()
            word = b"Proxy-Authorization: Basic bWU6cEBzcw=="
            wanted = b"CONNECT inside.test:22 HTTP/1.1\r\nHost: inside.test:22\r\n" + word + b"\r\n\r\n"
            await until(lambda: far.got == [wanted])
            answer = await on.say(b"CONNECT evil.test:22 HTTP/1.1\r\nHost: evil.test\r\n\r\n")
            assert b"name-denied" in answer
            assert len(far.got) == 1

    play(act)


def test_plain_requests_through_another_proxy(tmp_path: Path) -> None:
    async def act() -> None:
        far = Server(says=b"HTTP/1.1 200 OK\r\n\r\n")
        async with stage(tmp_path, "inside.test:80", server=far, proxies="http://127.0.0.1:PORT") as on:
            assert (await on.say(get("http://inside.test/x", "inside.test"))).startswith(b"HTTP/1.1 200 ")
            assert on.server.got[0].startswith(b"GET http://inside.test/x HTTP/1.1\r\nHost: inside.test\r\n")

    play(act)


def test_socks_through_another_proxy(tmp_path: Path) -> None:
    async def act() -> None:
        far = Server(says=b"", first=b"\x05\x02\x01\x00\x05\x00\x00\x03\x01x\x00\x00hello")
        async with stage(tmp_path, "inside.test:443", server=far, proxies="socks5h://me:pass@127.0.0.1:PORT") as on:
            reader, writer = await on.connect("inside.test", 443)
            assert await reader.read(100) == b"hello"
            writer.close()
            wanted = b"\x05\x01\x02" + b"\x01\x02me\x04pass" + b"\x05\x01\x00\x03\x0binside.test\x01\xbb"
            await until(lambda: far.got == [wanted])

    play(act)


@pytest.mark.parametrize(
    ("url", "first"),
    [
        ("http://127.0.0.1:PORT", b"HTTP/1.1 407 no\r\n\r\n"),
        ("http://127.0.0.1:PORT", b"nonsense\r\n\r\n"),
        ("socks5://127.0.0.1:PORT", b"\x05\xff"),
        ("socks5://127.0.0.1:PORT", b"\x05\x00\x05\x02\x00\x01"),
        ("https://127.0.0.1:PORT", b""),
        ("http://127.0.0.1:PORT", b"HTTP/1.1\r\n\r\n"),
        ("", b""),
    ],
)
def test_when_the_other_proxy_fails_nothing_goes_past_it(tmp_path: Path, url: str, first: bytes) -> None:
    """ "": the setting is broken."""

    def broken(_: str) -> Mapping[str, str]:
        raise ConfigError("broken", reason="config-syntax")

    async def act() -> None:
        async with stage(tmp_path, server=Server(says=b"", first=first), proxies=url or broken) as on:
            answer = await on.say(f"CONNECT a.test:{on.server.port} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b"upstream" in answer

    play(act)


def test_a_surprise_ends_one_connection_only(tmp_path: Path) -> None:
    surprises: list[Mapping[str, str]] = []

    async def surprising(_: str) -> Mapping[str, str]:
        return surprises.pop()

    async def act() -> None:
        async with stage(tmp_path, server=Server(says=b""), proxies=surprising) as on:
            call = f"CONNECT a.test:{on.server.port} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode()
            assert await on.say(call) == b""
            surprises.append({})
            assert (await on.say(call)).startswith(b"HTTP/1.1 200 ")

    play(act)


def test_a_sandbox_gets_a_proxy_in_a_process_of_its_own(tmp_path: Path):
    """What is allowed passes, what is not is told under the name of the sandbox, and the process ends with it."""
    context = Context(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, cgroups=tmp_path / "none", shared=False)
    runner = Runner(context, None)

    async def main() -> tuple[bytes, bytes, Event]:
        far = Server()
        async with await asyncio.start_server(far.serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            wanted = Policy.model_validate({"network": "proxy", "allow": [f"127.0.0.1:{port}"]})
            events = context.events.listen("sandbox.")
            heard = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)

            async def get(path: str, to: int) -> bytes:
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(f"CONNECT 127.0.0.1:{to} HTTP/1.1\r\nHost: 127.0.0.1:{to}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                writer.close()
                return head

            async with runner._way_out("box-1", wanted) as policy:
                path = str(policy.proxy_socket)
                allowed, denied = await get(path, port), await get(path, 1)
                event = await heard
            assert not os.path.exists(path)
            assert context.forks._server == 0
            return allowed, denied, event

    allowed, denied, event = asyncio.run(main())
    assert (allowed[:12], denied[:12]) == (b"HTTP/1.1 200", b"HTTP/1.1 403")
    assert (event.topic, event.subject) == ("sandbox.denied", "box-1")
    assert (event.data["host"], event.data["port"]) == ("127.0.0.1", 1)
    assert set(event.data) == {"host", "port", "reason", "more"}
