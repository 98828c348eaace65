"""The filtering proxy of one sandbox: HTTP CONNECT, plain HTTP and SOCKS 5 on a Unix socket, for listed targets only.

It is the only way out of a sandbox whose network is "proxy": that one's network namespace has a loopback, on which the
launcher's bridge (daemon/native/sandbox/bridge.c) joins each connection with one to this socket. What is checked:

    who      the name and port, or the address and port, are on the list              proxy_rules.py
    where    no name leads to the device, its neighbours or a metadata service        proxy_rules.py, proxy_reach.py
    what     one strictly read request for each connection, its Host field agrees     proxy_http.py
    to whom  a TLS handshake in a tunnel names the server that was asked for          proxy_tls.py

Everything that is refused becomes an event `sandbox.denied` (subject: the sandbox; host, port, reason, and `more`: how
many were left out since the last one, because a program in a loop must not fill the log).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UnreachableError
from daemon.core.events import Bus
from daemon.core.limits import Bucket
from daemon.linux.log import log
from daemon.linux.sandbox.proxy_rules import DeniedError, Rules, Target, name
from daemon.parts.sandbox import proxy_http as http
from daemon.parts.sandbox.proxy_link import CHUNK, Link
from daemon.parts.sandbox.proxy_reach import Lookup, Reach, Resolver, Upstream, direct
from daemon.parts.sandbox.proxy_tls import HANDSHAKE, client_hello
from daemon.parts.sandbox.sockets import listen

# What a client did wrong, rather than where it wanted to go.
_ITS_FAULT = frozenset({"malformed", "framing", "name-invalid", "host-mismatch"})


@dataclass(frozen=True)
class Limits:
    """Bounds of one sandbox. Times in seconds; moved: bytes in both directions of all connections together."""

    connections: int = 64  # at once; the next ones wait in the kernel's queue
    opening: float = 10.0  # until a request is complete
    connect: float = 20.0  # to resolve and reach a target
    idle: float = 300.0  # without a byte in either direction
    pieces: int = 64  # in which a ClientHello may arrive
    moved: int = 8 << 30
    tls_ports: frozenset[int] = frozenset({443})  # where a tunnel must begin with TLS


class Proxy:
    """Serves one sandbox. name: what events call it."""

    def __init__(
        self,
        name: str,
        rules: Rules,
        events: Bus,
        *,
        upstream: Upstream = direct,
        lookup: Lookup | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self.moved = self.granted = self.denied = 0
        self._events = events
        self._resolver = Resolver()
        self._reach = Reach(rules, lookup or self._resolver, upstream, self.limits.connect)
        self._complaints = Bucket(1.0, 20.0)
        self._hidden = 0

    def facts(self) -> dict[str, Any]:
        """What happened so far: connections granted, connections denied, bytes moved."""
        return {"granted": self.granted, "denied": self.denied, "bytes": self.moved}

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled; then all connections end."""
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(self.limits.connections)
        listener.setblocking(False)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await slots.acquire()
                    try:
                        stream, _ = await loop.sock_accept(listener)
                    except OSError:  # the process has no descriptors left: others' connections will end
                        slots.release()
                        await asyncio.sleep(0.1)
                        continue
                    tasks.create_task(self._serve(stream)).add_done_callback(lambda _: slots.release())
        finally:
            self._resolver.close()
            self._tell(None)

    # -- one connection ------------------------------------------------------------------------------------------------

    async def _serve(self, stream: socket.socket) -> None:
        with Link(stream) as client:
            try:
                async with asyncio.timeout(self.limits.opening):
                    start = await client.fill()
                if start:
                    await (self._socks if client.data[0] == http.SOCKS else self._http)(client)
            except* DeniedError as group:
                for error in group.exceptions:
                    assert isinstance(error, DeniedError)
                    self._deny(error)
            except* (OSError, EOFError):
                pass  # one side went away, or neither said anything for too long
            except* Exception as group:  # noqa: BLE001  # a defect of ours must not end the others
                log("err", f"the proxy of {self.name}: {group.exceptions[0]!r:.200}")

    async def _http(self, client: Link) -> None:
        try:
            if not client.data[:1].isupper():
                raise DeniedError("this is neither HTTP nor SOCKS 5", reason="malformed")
            async with asyncio.timeout(self.limits.opening):
                found = http.request(await client.until(http.END, http.MAX_HEAD))
            tunnel = found.head.method == "CONNECT"
            link, proxy = await self._reach.open(found.to, "tunnel" if tunnel else "http")
        except DeniedError as error:
            self._deny(error)
            status, words = (400, "Bad Request") if error.reason in _ITS_FAULT else (403, "Forbidden")
            await client.send(http.answer(status, words, f"{error.reason}: {error.message}"))
            return
        except UnreachableError as error:
            await client.send(http.answer(502, "Bad Gateway", f"{error.reason}: {error.message}"))
            return
        with link:
            self.granted += 1
            if tunnel:
                await client.send(b"HTTP/1.1 200 Connection established" + http.END)
                await self._tunnel(client, link, found.to)
            else:
                await self._exchange(client, link, http.forward(found, to_proxy=proxy), found.length)

    async def _socks(self, client: Link) -> None:
        async with asyncio.timeout(self.limits.opening):
            methods = await client.take((await client.take(2))[1])
            if 0 not in methods:
                await client.send(http.NOTHING_ACCEPTED)
                return
            await client.send(http.NO_AUTHENTICATION)
            start = await client.take(5)
            data = start + await client.take(http.socks_length(start) - 5)
        try:
            to = http.socks_target(data)
            link, _ = await self._reach.open(to, "tunnel")
        except DeniedError as error:
            self._deny(error)
            code = http.NO_COMMAND if error.reason == "command" else http.DENIED
            await client.send(http.socks_answer(code))
            return
        except UnreachableError:
            await client.send(http.socks_answer(http.UNREACHABLE))
            return
        with link:
            self.granted += 1
            await client.send(http.socks_answer(http.GRANTED))
            await self._tunnel(client, link, to)

    # -- bytes ---------------------------------------------------------------------------------------------------------

    async def _tunnel(self, client: Link, server: Link, to: Target) -> None:
        """Both directions until both have ended. What the client sends first is looked at before it is passed on."""

        async def up() -> None:
            await self._check_opening(client, to)
            await self._pump(client, server, clock)

        async with asyncio.timeout(self.limits.idle) as clock, asyncio.TaskGroup() as tasks:
            tasks.create_task(up())
            tasks.create_task(self._pump(server, client, clock))

    async def _check_opening(self, client: Link, to: Target) -> None:
        """A tunnel to a TLS port must begin with TLS. Elsewhere the server may speak first, and in anything, but when
        the client begins with TLS, that must be right."""
        must = to.port in self.limits.tls_ports
        pieces = 0
        while client.data or await client.fill():
            if not must and client.data[0] != HANDSHAKE:
                return
            hello = client_hello(client.data)
            if hello is not None:
                _check_name(hello.name, to)
                return
            pieces += 1  # each is read from the start, so many small ones would cost much
            if pieces > self.limits.pieces or not await client.fill():
                raise DeniedError("the handshake breaks off", reason="not-tls", host=to.host, port=to.port)

    async def _exchange(self, client: Link, server: Link, head: bytes, length: int | None) -> None:
        """One request and its answer, which ends when the server closes: that was asked of it."""

        async def up() -> None:
            await self._move(server, head, clock)
            await (self._chunks(client, server, clock) if length is None else self._body(client, server, length, clock))
            if await client.some():
                raise DeniedError("a second request on a connection for one", reason="framing")

        async with asyncio.timeout(self.limits.idle) as clock, asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(up())
            await self._pump(server, client, clock)
            sending.cancel()

    async def _body(self, client: Link, server: Link, length: int, clock: asyncio.Timeout) -> None:
        """Exactly so many bytes."""
        while length:
            data = await client.some(min(length, CHUNK))
            if not data:
                raise EOFError("the body is cut short")
            length -= len(data)
            await self._move(server, data, clock)

    async def _chunks(self, client: Link, server: Link, clock: asyncio.Timeout) -> None:
        """Chunks up to the last, without trailers (RFC 9112, 7.1)."""
        while True:
            line = await client.until(b"\r\n", 20)
            size = http.chunk_size(line)
            await self._move(server, line, clock)
            await self._body(client, server, size, clock)
            if await client.take(2) != b"\r\n":
                raise DeniedError("a chunk of the body does not end where it should", reason="framing")
            await self._move(server, b"\r\n", clock)
            if size == 0:
                return

    async def _pump(self, source: Link, sink: Link, clock: asyncio.Timeout) -> None:
        while data := await source.some():
            await self._move(sink, data, clock)
        sink.finish()

    async def _move(self, sink: Link, data: bytes, clock: asyncio.Timeout) -> None:
        self.moved += len(data)
        if self.moved > self.limits.moved:
            raise DeniedError("the sandbox has moved as many bytes as it may", reason="bytes")
        await sink.send(data)
        clock.reschedule(asyncio.get_running_loop().time() + self.limits.idle)

    # -- what is told --------------------------------------------------------------------------------------------------

    def _deny(self, error: DeniedError) -> None:
        self.denied += 1
        if self._complaints.take():
            self._tell(error)
        else:
            self._hidden += 1

    def _tell(self, error: DeniedError | None) -> None:
        """None: at the end, what was left out."""
        host, port, reason = (error.host, error.port, error.reason) if error else ("", 0, "more")
        if error or self._hidden:
            self._events.publish("sandbox.denied", self.name, host=host, port=port, reason=reason, more=self._hidden)
            self._hidden = 0


def _check_name(said: str | None, to: Target) -> None:
    """Addresses are no names for TLS (RFC 6066, 3), so to an address none is said."""
    if said is None:
        if to.address is None:
            raise DeniedError("the handshake names no server", reason="sni-missing", host=to.host, port=to.port)
        return
    host = name(said)
    if to.address is not None or host != to.host:
        message = f"the handshake names {host}, the tunnel is for {to.host}"
        raise DeniedError(message, reason="sni-mismatch", host=host, port=to.port)


@contextlib.asynccontextmanager
async def serving(folder: Path, proxy: Proxy) -> AsyncIterator[Path]:
    """Serve on a socket in `folder`, which nobody else may enter: its path, for `Policy.proxy_socket`."""
    path = folder / f"{proxy.name}.sock"
    with listen(path) as listener:
        task = asyncio.create_task(proxy.serve(listener))
        try:
            yield path
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            path.unlink(missing_ok=True)
