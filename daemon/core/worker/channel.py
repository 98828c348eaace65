"""What goes between mixosd and the process of a part: frames of JSON on a pair of sockets, the same in both directions.

A frame is a length (4 bytes, big-endian) and a JSON object of that length:

    {"id": 1, "call": NAME, "params": …}      answered by {"id": 1, "result": …} or {"id": 1, "error": …}
    {"id": 2, "stream": NAME, "params": …}    and {"id": 2, "next": true}, answered by {"id": 2, "item": …}, or as above
    {"id": 2, "cancel": true}                 nobody waits for it any more
    {"tell": NAME, "params": …}               not answered

Errors are those of JSON-RPC (`daemon.core.rpc.error_object`). Neither end believes the other: a frame has a limit, so
has the number of calls at once, and whoever sends what is no frame, or reads nothing, is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

from common.errors import MixosError, UnreachableError
from daemon.core import rpc
from daemon.core.limits import Bucket
from daemon.linux.log import log

MAX_FRAME = rpc.MAX_ANSWER + (64 << 10)  # bytes
MAX_UNREAD = 2 * MAX_FRAME  # bytes that the other end may leave unread
MAX_CALLS = 128  # of the other end, at once
RATE, BURST = 2000.0, 8000.0  # frames per second, of 2 KiB each, that mixosd reads; what comes faster waits
_REASON = re.compile(r"[a-z][a-z0-9-]{0,63}")

Handler = Callable[[Any], Awaitable[object] | AsyncIterator[object]]


class GarbageError(Exception):
    """The other end sent what is no frame, or does not read what is sent to it: it must be cut off."""


def gone(name: str) -> MixosError:
    """The error of a call to a process that is not there, or ended before it answered."""
    return UnreachableError(
        f"the process of {name} is not running",
        reason="process-gone",
        hint="it is started again by itself; mixctl status says more",
        retryable=True,
    )


class Channel:
    """One end. name: what errors call the other end; handlers: what it may call; told: gets what it tells."""

    def __init__(
        self,
        name: str,
        stream: socket.socket,
        handlers: Mapping[str, Handler],
        told: Callable[[str, Any], None],
        rate: float = RATE,
    ) -> None:
        self.name = name
        self._socket = stream
        self._handlers = handlers
        self._told = told
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, AsyncIterator[object]] = {}
        self._bucket = Bucket(rate, BURST)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Be ready to call and to `run`."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)

    async def run(self) -> None:
        """Serve until the other end has gone. Raises GarbageError when it must go."""
        assert self._reader is not None
        try:
            while (frame := await self._read(self._reader)) is not None:
                self._take(frame)
        except OSError:
            pass  # the same as an end
        finally:
            await self._end()

    async def call(self, name: str, params: Any = None, seconds: float | None = None) -> Any:
        """The answer. Raises MixosError as the other end does, `process-gone`, `process-answer`; TimeoutError."""
        number = next(self._numbers)
        async with asyncio.timeout(seconds):
            return await self._ask(number, {"call": name, "params": params})

    async def stream(self, name: str, params: Any = None) -> AsyncGenerator[Any]:
        """The items; the next one is asked for when it is wanted. Raises like `call`."""
        number = next(self._numbers)
        try:
            self._send({"id": number, "stream": name, "params": params})
            while (found := await self._ask(number, {"next": True}, item=True)) is not None:
                yield found[0]
        finally:
            self._send({"id": number, "cancel": True})

    def tell(self, name: str, params: Any) -> None:
        """Say something; whether it is heard is not known."""
        self._send({"tell": name, "params": params})

    def close(self) -> None:
        """Let the other end see the end."""
        if self._writer is not None:
            self._writer.close()

    # -- out -----------------------------------------------------------------------------------------------------------

    async def _ask(self, number: int, frame: Mapping[str, Any], item: bool = False) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send({"id": number, **frame})
            answer = await future
        except asyncio.CancelledError:
            self._send({"id": number, "cancel": True})
            raise
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise _error(answer["error"])
        if item:
            return (answer["item"],) if "item" in answer else None
        return answer.get("result")

    def _send(self, frame: Mapping[str, Any]) -> None:
        writer = self._writer
        if writer is None or writer.is_closing():
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(gone(self.name))
            return
        writer.write(encode(frame))
        if writer.transport.get_write_buffer_size() > MAX_UNREAD:
            log("err", f"{self.name} does not read what it is sent")
            writer.transport.abort()

    # -- in ------------------------------------------------------------------------------------------------------------

    async def _read(self, reader: asyncio.StreamReader) -> dict[str, Any] | None:
        try:
            length = int.from_bytes(await reader.readexactly(4), "big")
            if not 0 < length <= MAX_FRAME:
                raise GarbageError(f"a frame of {length} bytes")
            if delay := self._bucket.delay(1 + length / 2048):
                await asyncio.sleep(delay)
            found = json.loads(await reader.readexactly(length))
        except asyncio.IncompleteReadError:
            return None
        except (ValueError, RecursionError) as error:
            raise GarbageError(f"no JSON: {error}") from error
        if not isinstance(found, dict):
            raise GarbageError("no object")
        return found

    def _take(self, frame: dict[str, Any]) -> None:
        """One frame. Raises GarbageError."""
        name, number = frame.get("tell"), frame.get("id")
        if isinstance(name, str):
            self._told(name, frame.get("params"))
            return
        if type(number) is not int or not 0 < number < 1 << 53:
            raise GarbageError("a frame without a number")
        if isinstance(call := frame.get("call"), str):
            self._begin(number, self._answer(number, call, frame.get("params")))
        elif isinstance(stream := frame.get("stream"), str):
            self._open(number, stream, frame.get("params"))
        elif "next" in frame:
            self._begin(number, self._next(number))
        elif "cancel" in frame:
            self._cancel(number)
        elif frame.keys() & {"result", "error", "item"}:
            future = self._waiting.get(number)
            if future is not None and not future.done():  # else nobody waits any more
                future.set_result(frame)
        else:
            raise GarbageError("a frame of no kind")

    def _begin(self, number: int, work: Any) -> None:
        if number in self._tasks or len(self._tasks) >= MAX_CALLS:
            work.close()
            raise GarbageError("a number twice, or too many calls at once")
        task = self._tasks[number] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    def _open(self, number: int, name: str, params: Any) -> None:
        if number in self._streams or len(self._streams) >= MAX_CALLS:
            raise GarbageError("a number twice, or too many streams at once")
        if not inspect.isasyncgenfunction(self._handlers.get(name)):  # its parameters would be kept for nothing
            raise GarbageError(f"there is no stream {name[:64]!r}")
        self._streams[number] = self._items(name, params)

    async def _items(self, name: str, params: Any) -> AsyncIterator[object]:
        items = cast(AsyncIterator[object], self._handler(name)(params))
        async with contextlib.aclosing(cast(Any, items)):
            async for item in items:
                yield item

    def _cancel(self, number: int) -> None:
        if task := self._tasks.get(number):
            task.cancel()
        if items := self._streams.pop(number, None):
            closing = asyncio.create_task(_close(items, task))
            self._tasks[-number] = closing
            closing.add_done_callback(lambda _: self._tasks.pop(-number, None))

    def _handler(self, name: str) -> Handler:
        handler = self._handlers.get(name)
        if handler is None:
            raise MixosError(f"there is no {name[:64]!r} to call", reason="process-call")
        return handler

    async def _answer(self, number: int, name: str, params: Any) -> None:
        await self._reply(number, "result", lambda: cast(Awaitable[object], self._handler(name)(params)))

    async def _next(self, number: int) -> None:
        items = self._streams.get(number)

        async def step() -> object:
            if items is None:
                raise MixosError("there is no such stream", reason="process-call")
            return await anext(items)

        await self._reply(number, "item", step)

    async def _reply(self, number: int, kind: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do it and send what came of it; a defect becomes an internal error. Who does not read gets no more work."""
        with contextlib.suppress(OSError):
            assert self._writer is not None
            await self._writer.drain()
        try:
            line = encode({"id": number, kind: await work()})
        except StopAsyncIteration:
            self._streams.pop(number, None)
            line = encode({"id": number, "result": None})
        except MixosError as error:
            line = encode({"id": number, "error": rpc.error_object(error)})
        except Exception as error:  # noqa: BLE001  # the boundary: logged, and answered without details
            log("err", f"{self.name}: {type(error).__name__}: {error}")
            failure = rpc.failure("internal error, see the log", code=rpc.INTERNAL_ERROR, reason="rpc-internal")
            line = encode({"id": number, "error": rpc.error_object(failure)})
        self._tasks.pop(number, None)  # before the answer, after which the number may be used again
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(line)
            with contextlib.suppress(OSError):
                await self._writer.drain()

    async def _end(self) -> None:
        assert self._writer is not None
        self._writer.transport.abort()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for items in self._streams.values():
            await _close(items, None)
        self._streams.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(gone(self.name))


async def _close(items: AsyncIterator[object], running: asyncio.Task[None] | None) -> None:
    if running is not None:
        await asyncio.gather(running, return_exceptions=True)  # an iterator that runs cannot be closed
    with contextlib.suppress(Exception):
        await cast(Any, items).aclose()


def encode(frame: Mapping[str, Any]) -> bytes:
    """The bytes of a frame. Raises RpcError `rpc-answer`, `rpc-answer-too-long` for what cannot be said."""
    try:
        data = json.dumps(frame, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
            "utf-8", "backslashreplace"
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise rpc.failure(f"not to be said in JSON: {error}", code=rpc.INTERNAL_ERROR, reason="rpc-answer") from error
    if len(data) > MAX_FRAME:
        raise rpc.failure(f"more than {MAX_FRAME} bytes", code=rpc.INTERNAL_ERROR, reason="rpc-answer-too-long")
    return len(data).to_bytes(4, "big") + data


def _error(found: Any) -> MixosError:
    """The other end's error; what is not one gets a reason of its own."""
    if isinstance(found, dict):
        error = rpc.error_in(found)
        if _REASON.fullmatch(error.reason) and len(error.message) <= 10_000 and len(error.hint or "") <= 1000:
            return error
    return rpc.failure("the answer is no answer", code=rpc.INTERNAL_ERROR, reason="process-answer")
