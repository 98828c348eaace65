"""JSON-RPC on a Unix socket: connections, their limits, calls in order, streams beside them.

A connection answers one call after the other; streams run beside the calls and share the connection's pipe. Nothing is
written before the client has taken most of what was written earlier, so a client costs at most one answer of memory;
one that leaves an answer unread for `Limits.slow` seconds is dropped, with the reason as its last line.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import select
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

from common.errors import MixosError, RefusedError
from daemon.core import rpc
from daemon.core.dispatch import Call, Dispatcher
from daemon.core.limits import Bucket, Limits
from daemon.core.method import Caller, Role
from daemon.core.peer import ACCOUNTS, credentials, identify
from daemon.linux.log import log


def listen(path: Path, group: str | None) -> socket.socket:
    """The listening socket, mode 0660 for `group`, or for our account alone. Only the holder of the lock may call this:
    it replaces the path."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    old = os.umask(0o177)  # nobody else gets in between bind and chown
    try:
        server.bind(os.fspath(path))
    finally:
        os.umask(old)
    if group is not None:
        with contextlib.suppress(KeyError):  # without the group the socket stays root's: closed, not open
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(0o660)
    return server


class Server:
    """Serves a dispatcher's methods to the connections of one socket."""

    def __init__(
        self, dispatcher: Dispatcher, accounts: Mapping[int, Role] = ACCOUNTS, limits: Limits | None = None
    ) -> None:
        self.dispatcher = dispatcher
        self.limits = limits or Limits()
        self._accounts = accounts
        self._open: dict[int, int] = {}  # uid → connections
        self._tasks: set[asyncio.Task[None]] = set()
        self._complaints = Bucket(0.2, 20.0)  # lines of the log that clients can cause

    async def serve(self, path: Path, group: str | None, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end what is open."""
        backlog = self.limits.connections
        server = await asyncio.start_unix_server(
            self._accept, sock=listen(path, group), limit=rpc.MAX_LINE, backlog=backlog
        )
        log("info", f"listening on {path}")
        try:
            await stop.wait()
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from accept to close."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        who = credentials(writer.get_extra_info("socket"))
        refusal = self._admit(who.uid)
        try:
            caller = refusal or identify(who, self._accounts)
            if not isinstance(caller, Caller):
                caller = caller or RefusedError("this account has no role here", reason="role-none")
                self.complain(f"{who}: {caller.reason}")
                writer.write(rpc.encode_error(None, caller))
            else:
                await Connection(self, reader, writer, caller).converse()
        except (OSError, asyncio.CancelledError):  # TimeoutError, too
            pass  # the client went away or stopped reading: nothing is owed to it; or the daemon ends
        finally:
            try:
                await self._close(writer)
            finally:
                self._tasks.discard(task)
                if refusal is None:
                    self._open[who.uid] -= 1
                    if not self._open[who.uid]:
                        del self._open[who.uid]

    def _admit(self, uid: int) -> MixosError | None:
        """Count a client of this account, or say why it is one too many. Who is refused does not count: a flood of one
        account must not keep the others out."""
        limit = self.limits.per_admin if self._accounts.get(uid) is Role.ADMIN else self.limits.per_uid
        mine = self._open.get(uid, 0)
        if sum(self._open.values()) < self.limits.connections and mine < limit:
            self._open[uid] = mine + 1
            return None
        return rpc.failure(
            "too many connections", code=rpc.INTERNAL_ERROR, reason="rpc-busy", hint="close some", retryable=True
        )

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        """Close, with a little time for the last words to be read."""
        writer.close()
        try:
            async with asyncio.timeout(self.limits.linger):
                await writer.wait_closed()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    def complain(self, text: str) -> None:
        """Log what a client did wrong; of a flood only some."""
        if self._complaints.take():
            log("warning", text)


class Connection:
    """The conversation with one client that has a role."""

    def __init__(
        self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._caller = caller
        self._limits = server.limits
        self._bucket = Bucket(self._limits.rate, self._limits.burst)
        self._data = bytearray()
        self._writing = asyncio.Lock()
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._last_stream = 0
        self._over = False
        self._watch: asyncio.TimerHandle  # for the other end, while it waits for an answer

    async def converse(self) -> None:
        """Answer line after line until the client closes, idles too long, does not read, or sends garbage."""
        try:
            while (line := await self._line()) is not None:
                if delay := self._bucket.delay():
                    await asyncio.sleep(delay)
                try:
                    request = rpc.decode_request(line)
                except rpc.GarbageError as error:
                    self._server.complain(f"garbage from {self._caller.name}, pid {self._caller.pid}: {error.reason}")
                    self._writer.write(rpc.encode_error(None, error))
                    return
                await self._answer(request)
        finally:
            self._over = True
            streams = list(self._streams.values())
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    async def _line(self) -> bytes | None:
        """The next line; None when there will be none. What is too long comes as such, for the decoder to refuse."""
        deadline = asyncio.get_running_loop().time() + self._limits.idle
        while (end := self._data.find(b"\n")) < 0:
            if len(self._data) >= rpc.MAX_LINE:
                return bytes(rpc.MAX_LINE + 1)
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await self._reader.read(rpc.MAX_LINE)
            except TimeoutError:
                if self._data or not self._streams:
                    return None
                deadline += self._limits.idle  # who listens to a stream need not speak
                continue
            if not chunk:
                return None
            self._data += chunk
        line = bytes(self._data[: end + 1])
        del self._data[: end + 1]
        return line

    async def _answer(self, request: rpc.Request) -> None:
        """Make the call and write its answer; a defect becomes an internal error, never the daemon's end."""
        try:
            if request.method == rpc.CANCEL:
                line = rpc.encode_result(request.id, self._cancel(request.params))
            else:
                call = self._server.dispatcher.prepare(self._caller, request.method, request.params)
                if call.method.stream:
                    await self._start(request, call)
                    return
                line = rpc.encode_result(request.id, await self._result(call))
        except MixosError as error:
            line = rpc.encode_error(request.id, error)
        if not request.notification:
            await self._send(line)

    async def _result(self, call: Call) -> object:
        """The answer of a call. What changes something is finished, whoever waits for it; a question that nobody waits
        for any more is given up, and the connection with it."""
        if call.method.changes:
            return await self._server.dispatcher.call(self._caller, call)
        task = asyncio.current_task()
        assert task is not None
        self._look_later(task)
        try:
            return await self._server.dispatcher.call(self._caller, call)
        finally:
            self._watch.cancel()

    def _look_later(self, task: asyncio.Task[Any]) -> None:
        self._watch = asyncio.get_running_loop().call_later(self._limits.look, self._look, task)

    def _look(self, task: asyncio.Task[Any]) -> None:
        if self._writer.is_closing() or _hung_up(self._writer.get_extra_info("socket").fileno()):
            task.cancel()
        else:
            self._look_later(task)

    async def _start(self, request: rpc.Request, call: Call) -> None:
        """Answer with a stream's number and begin to send its items."""
        if len(self._streams) >= self._limits.streams:
            raise RefusedError(f"{self._limits.streams} streams are open already", reason="stream-limit")
        self._last_stream += 1
        number = self._last_stream
        await self._send(rpc.encode_result(request.id, {"stream": number}))
        items = self._server.dispatcher.stream(self._caller, call)
        self._streams[number] = asyncio.create_task(self._pump(number, items))

    def _cancel(self, params: Mapping[str, Any]) -> bool:
        """End a stream: whether it was open. Its `stream.end` follows."""
        number = params.get("stream")
        task = self._streams.get(number) if isinstance(number, int) else None
        return task is not None and task.cancel()

    async def _pump(self, number: int, items: AsyncIterator[object]) -> None:
        """Send a stream's items and its end."""
        failure: MixosError | None = None
        try:
            async for item in items:
                await self._write(rpc.encode_item(number, item))  # a pager waits for its reader, and the stream for it
                await asyncio.sleep(0)  # a handler that never waits must not keep the others waiting
        except MixosError as error:
            failure = error
        except asyncio.CancelledError:
            pass  # by the client, or because the connection ends: then the last line goes nowhere
        except OSError:
            return
        finally:
            with contextlib.suppress(MixosError):
                await cast(Any, items).aclose()
            self._streams.pop(number, None)
        if not self._over:  # else nobody listens any more, and who has stopped reading would hold up our end
            with contextlib.suppress(OSError):
                await self._send(rpc.encode_end(number, failure))

    async def _write(self, line: bytes) -> None:
        """Write when the client has taken what was there."""
        async with self._writing:
            self._writer.write(line)
            await self._writer.drain()

    async def _send(self, line: bytes) -> None:
        """Write an answer, which must be read soon. Raises TimeoutError, after which the connection ends."""
        try:
            async with asyncio.timeout(self._limits.slow):
                await self._write(line)
        except TimeoutError:
            self._drop()
            raise

    def _drop(self) -> None:
        """The client does not read: say so at the end of what it has not read, and hang up."""
        if self._writer.transport.is_closing():
            return
        self._server.complain(f"{self._caller.name}, pid {self._caller.pid} does not read its answers: dropped")
        slow = RefusedError("answers were not read in time", reason="rpc-slow")
        for number in self._streams:
            self._writer.write(rpc.encode_end(number, slow))
        if not self._streams:
            self._writer.write(rpc.encode_error(None, slow))
        self._writer.close()
        self._reader.feed_eof()  # ends the conversation, which may be waiting for a line


def _hung_up(descriptor: int) -> bool:
    """Whether the other end is closed. One that only has nothing more to say (shutdown(2)) may still be listening."""
    found = select.poll()
    found.register(descriptor, 0)  # POLLHUP is always told (poll(2))
    return bool(found.poll(0))
