"""JSON-RPC on a Unix socket: connections, their limits, calls in order, streams beside them.

A connection answers one call after the other; streams run beside the calls and share the connection's pipe. Nothing is
written before the client has taken what was written earlier, so a client costs at most one answer of memory;
one that leaves an answer unread for `Limits.slow` seconds is dropped, with the reason as its last line. Descriptors may
come with a call (`daemon.core.transfer`); all of them are closed when the call is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import select
import socket
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from common.errors import MixosError, RefusedError
from daemon.core import rpc
from daemon.core.dispatch import Call, Dispatcher
from daemon.core.limits import Bucket, Limits
from daemon.core.method import Caller, Role
from daemon.core.peer import ACCOUNTS, credentials, identify
from daemon.core.transfer import Descriptors, unfit
from daemon.doors.channel import Channel, TruncatedError, close
from daemon.linux.log import log
from daemon.linux.ready import readable

_TOO_MANY = f"at most {rpc.MAX_DESCRIPTORS} descriptors come with a line, of files that mixosd may read"
_PAUSE = 1.0  # seconds until the next try when no connection can be accepted


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
        with listen(path, group) as server:
            server.listen(self.limits.connections)
            log("info", f"listening on {path}")
            accepting = asyncio.create_task(self._accept(server))
            try:
                await stop.wait()
            finally:
                for task in (accepting, *self._tasks):
                    task.cancel()
                await asyncio.gather(accepting, *self._tasks, return_exceptions=True)
                path.unlink(missing_ok=True)

    async def _accept(self, server: socket.socket) -> None:
        """Clients as they come, each in a task of its own."""
        while True:
            await readable(server.fileno())
            try:
                connection, _ = server.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:  # no descriptor is left, or no memory
                self.complain(f"no connection can be accepted: {error}")
                await asyncio.sleep(_PAUSE)
                continue
            task = asyncio.create_task(self._attend(Channel(connection)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attend(self, channel: Channel) -> None:
        """One client, from accept to close."""
        who = credentials(channel.socket)
        refusal = self._admit(who.uid)
        try:
            caller = refusal or identify(who, self._accounts)
            if not isinstance(caller, Caller):
                caller = caller or RefusedError("this account has no role here", reason="role-none")
                self.complain(f"{who}: {caller.reason}")
                channel.write(rpc.encode_error(None, caller))
            else:
                await Connection(self, channel, caller).converse()
        except (OSError, asyncio.CancelledError):  # TimeoutError, too
            pass  # the client went away or stopped reading: nothing is owed to it; or the daemon ends
        finally:
            try:
                await channel.close(self.limits.linger)
            finally:
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

    def complain(self, text: str) -> None:
        """Log what a client did wrong; of a flood only some."""
        if self._complaints.take():
            log("warning", text)


class Connection:
    """The conversation with one client that has a role."""

    def __init__(self, server: Server, channel: Channel, caller: Caller) -> None:
        self._server = server
        self._channel = channel
        self._caller = caller
        self._limits = server.limits
        self._bucket = Bucket(self._limits.rate, self._limits.burst)
        self._data = bytearray()
        self._read = 0  # bytes that lines were made of
        self._handed: deque[tuple[int, int]] = deque()  # descriptors, and how many bytes were there after the read
        self._writing = asyncio.Lock()
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._last_stream = 0
        self._over = False
        self._watch: asyncio.TimerHandle  # for the other end, while it waits for an answer

    async def converse(self) -> None:
        """Answer line after line until the client closes, idles too long, does not read, or sends garbage."""
        try:
            while (line := await self._line()) is not None:
                descriptors = self._descriptors()
                try:
                    if delay := self._bucket.delay():
                        await asyncio.sleep(delay)
                    await self._answer(rpc.decode_request(line), descriptors)
                finally:
                    descriptors.close()
        except (rpc.GarbageError, RefusedError) as error:
            self._server.complain(f"garbage from {self._caller.name}, pid {self._caller.pid}: {error.reason}")
            self._channel.write(rpc.encode_error(None, error))
        finally:
            self._over = True
            close([number for _, number in self._handed])
            streams = list(self._streams.values())
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    async def _line(self) -> bytes | None:
        """The next line; None when there will be none. What is too long comes as such, for the decoder to refuse.

        Raises RefusedError `transfer-descriptors` when more descriptors come than a line may have.
        """
        deadline = asyncio.get_running_loop().time() + self._limits.idle
        while (end := self._data.find(b"\n")) < 0:
            if len(self._data) >= rpc.MAX_LINE:
                return bytes(rpc.MAX_LINE + 1)
            try:
                async with asyncio.timeout_at(deadline):
                    chunk, numbers = await self._channel.receive()
            except TimeoutError:
                if self._data or not self._streams:
                    return None
                deadline += self._limits.idle  # who listens to a stream need not speak
                continue
            except TruncatedError:
                raise unfit(_TOO_MANY) from None
            self._data += chunk
            self._handed += [(self._read + len(self._data), number) for number in numbers]
            if len(self._handed) > 2 * rpc.MAX_DESCRIPTORS:  # of this line, and of one that began in the same read
                raise unfit(_TOO_MANY)
            if not chunk:  # half-closed: what came before is a call, though its newline did not
                self._data += b"\n" if self._data else b""
                if not self._data:
                    return None
        line = bytes(self._data[: end + 1])
        del self._data[: end + 1]
        self._read += len(line)
        return line

    def _descriptors(self) -> Descriptors:
        """Those of the line that was read last: the reads that brought them ended in it."""
        found: list[int] = []
        while self._handed and self._handed[0][0] <= self._read:
            found.append(self._handed.popleft()[1])
        return Descriptors(found)

    async def _answer(self, request: rpc.Request, descriptors: Descriptors) -> None:
        """Make the call and write its answer; a defect becomes an internal error, never the daemon's end."""
        try:
            if request.method == rpc.CANCEL:
                descriptors.finish()
                line = rpc.encode_result(request.id, self._cancel(request.params))
            else:
                call = self._server.dispatcher.prepare(self._caller, request.method, request.params, descriptors)
                if call.method.stream:
                    await self._start(request, call)
                    return
                line = rpc.encode_result(request.id, await self._result(request, call))
        except MixosError as error:
            line = rpc.encode_error(request.id, error)
        if not request.notification:
            await self._send(line)

    async def _result(self, request: rpc.Request, call: Call) -> object:
        """The answer of a call. What changes something is finished, whoever waits for it, once all of its content is
        here; anything else that nobody waits for any more is given up, and the connection with it."""
        if call.method.changes and not call.contents:
            return await self._server.dispatcher.call(self._caller, call)
        task = asyncio.current_task()
        assert task is not None
        self._look_later(task, request, call)
        try:
            return await self._server.dispatcher.call(self._caller, call)
        finally:
            self._watch.cancel()

    def _look_later(self, task: asyncio.Task[Any], request: rpc.Request, call: Call) -> None:
        self._watch = asyncio.get_running_loop().call_later(self._limits.look, self._look, task, request, call)

    def _look(self, task: asyncio.Task[Any], request: rpc.Request, call: Call) -> None:
        unfinished = [one for one in call.contents if not one.ended]
        if call.method.changes and not unfinished:
            return
        if self._channel.broken or _hung_up(self._channel.socket.fileno()):
            task.cancel()
            return
        if unfinished and request.id is not None and not self._channel.unsent:
            first = unfinished[0]
            self._channel.write(rpc.encode_progress(request.id, first.taken, first.size))
        self._look_later(task, request, call)

    async def _start(self, request: rpc.Request, call: Call) -> None:
        """Answer with a stream's number and begin to send its items."""
        if len(self._streams) >= self._limits.streams:
            call.close()
            raise RefusedError(f"{self._limits.streams} streams are open already", reason="stream-limit")
        self._last_stream += 1
        number = self._last_stream
        with contextlib.ExitStack() as undo:
            undo.callback(call.close)
            await self._send(rpc.encode_result(request.id, {"stream": number}))
            undo.pop_all()
        self._streams[number] = asyncio.create_task(self._pump(number, call))

    def _cancel(self, params: Mapping[str, Any]) -> bool:
        """End a stream: whether it was open. Its `stream.end` follows."""
        number = params.get("stream")
        task = self._streams.get(number) if isinstance(number, int) else None
        return task is not None and task.cancel()

    async def _pump(self, number: int, call: Call) -> None:
        """Send a stream's items and its end."""
        failure: MixosError | None = None
        items = self._server.dispatcher.stream(self._caller, call)
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
            call.close()
            self._streams.pop(number, None)
        if not self._over:  # else nobody listens any more, and who has stopped reading would hold up our end
            with contextlib.suppress(OSError):
                await self._send(rpc.encode_end(number, failure))

    async def _write(self, line: bytes) -> None:
        """Write when the client has taken what was there."""
        async with self._writing:
            self._channel.write(line)
            await self._channel.drain()

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
        if self._over:
            return
        self._over = True
        self._server.complain(f"{self._caller.name}, pid {self._caller.pid} does not read its answers: dropped")
        slow = RefusedError("answers were not read in time", reason="rpc-slow")
        for number in self._streams:
            self._channel.write(rpc.encode_end(number, slow))
        if not self._streams:
            self._channel.write(rpc.encode_error(None, slow))
        self._channel.finish()  # ends the conversation, which may be waiting for a line


def _hung_up(descriptor: int) -> bool:
    """Whether the other end is closed. One that only has nothing more to say (shutdown(2)) may still be listening."""
    found = select.poll()
    found.register(descriptor, 0)  # POLLHUP is always told (poll(2))
    return bool(found.poll(0))
