"""Content of a call that does not fit into its line: a backup, a list of addresses, the input of a command.

A method declares it once, in the model of its parameters:

    content: Annotated[Content, Accepts(1 << 30)]

On the wire such a parameter is either a number, the place among the descriptors that came with the call (unix(7),
SCM_RIGHTS), or a text, the id of a transfer that came in pieces (`daemon.core.spool`). The handler reads it without
knowing which: `data` and `copy` in the event loop, `read` in a thread. It changes nothing before it has read to the
end: until then, a caller who leaves ends the call.

A descriptor stays the caller's file: its offset and its flags, which the caller shares, are left alone; files are read
with pread(2), from the offset where they stood up to the size that they had; pipes and sockets are read without ever
waiting in a system call, since another process may take the bytes first. Nothing is mapped: a mapped file that is
truncated kills who reads it. Accepted are regular files and, where the method allows, pipes and stream sockets.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar, cast, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from common.errors import MixosError, RefusedError
from common.tomlfile import Strict
from common.units import size as in_words
from daemon.core.peer import credentials
from daemon.core.rpc import MAX_DESCRIPTORS
from daemon.linux import foreign
from daemon.linux.ready import readable, writable

MAX_ID = 64  # characters
PIECE = 256 << 10  # bytes that are read at a time
_STREAMS = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
_LOOK = 0.5  # seconds after which a thread that waits looks whether its content was closed
T = TypeVar("T")


class Descriptors:
    """The descriptors that came with one call, in their order. Each has one owner; `close` closes what nobody took."""

    def __init__(self, numbers: Sequence[int] = ()) -> None:
        self._left = dict(enumerate(numbers))

    def take(self, index: int) -> int:
        """The descriptor, which is the caller's from now on. Raises RefusedError `transfer-descriptors`."""
        if index not in self._left:
            raise unfit(f"descriptor {index} did not come with the call, or is named twice")
        return self._left.pop(index)

    def finish(self) -> None:
        """Raises RefusedError `transfer-descriptors` when the call did not name every descriptor."""
        if self._left:
            raise unfit(f"{len(self._left)} descriptors came that the call does not name")

    def close(self) -> None:
        """Close what is left."""
        while self._left:
            foreign.release(self._left.popitem()[1])


def unfit(message: str) -> RefusedError:
    """The error for descriptors that are not those of the call."""
    hint = f"send the line and the descriptors that it names, {MAX_DESCRIPTORS} at most, in one sendmsg(2)"
    return RefusedError(message, reason="transfer-descriptors", hint=hint)


class Accepts(NamedTuple):
    """How a method takes a content.

    most: bytes, None for any number; streams: whether a pipe or a socket will do, which has no size and cannot be read
    twice; idle: seconds that one may give nothing, None for any time.
    """

    most: int | None
    streams: bool = True
    idle: float | None = 60.0

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        given = core_schema.union_schema(
            [
                core_schema.int_schema(ge=0, lt=MAX_DESCRIPTORS, strict=True),
                core_schema.str_schema(min_length=1, max_length=MAX_ID, strict=True),
            ]
        )
        told = core_schema.plain_serializer_function_ser_schema(Content.told)
        return core_schema.no_info_after_validator_function(
            lambda value: Content(value, self), given, serialization=told
        )

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        meaning = "the number of a descriptor that comes with the call, or the id of a transfer"
        return {"type": ["integer", "string"], "format": "content", "description": meaning}


class Source(Protocol):
    """Where the bytes of a content come from. `kind` is a word for people; size: bytes, None when that is not known."""

    kind: str
    size: int | None
    descriptor: int

    def pull(self, count: int) -> bytes | None:
        """Up to `count` bytes; b"" at the end, None while there are none. Raises OSError, MixosError."""

    def close(self) -> None:
        """Close the descriptor."""


class _File:
    kind = "file"

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self._at = os.lseek(descriptor, 0, os.SEEK_CUR)
        self.size: int | None = max(0, size - self._at)
        self._end = self._at + self.size

    def pull(self, count: int) -> bytes | None:
        # Not beyond the size: files of /proc have none, and some answer what root may read and the caller may not.
        data = os.pread(self.descriptor, min(count, self._end - self._at), self._at)
        if not data and self._at < self._end:
            raise RefusedError("the file became shorter while it was read", reason="transfer-changed", retryable=True)
        self._at += len(data)
        return data

    def close(self) -> None:
        os.close(self.descriptor)


class _Pipe:
    kind = "pipe"
    size: int | None = None

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._out, self._in = os.pipe2(os.O_CLOEXEC)  # empty but within `pull`

    def pull(self, count: int) -> bytes | None:
        """By way of a pipe of ours: read(2) would wait, unless O_NONBLOCK were set for the writers as well."""
        moved = self.move(self._in, count)
        return os.read(self._out, moved) if moved else None if moved is None else b""

    def move(self, to: int, count: int) -> int | None:
        """Up to `count` bytes into another pipe that has room: how many, 0 at the end, None while there are none."""
        try:
            return os.splice(self.descriptor, to, count, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return None

    def close(self) -> None:
        for descriptor in (self.descriptor, self._out, self._in):
            os.close(descriptor)


class _Socket:
    kind = "socket"
    size: int | None = None

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self.descriptor = descriptor

    def pull(self, count: int) -> bytes | None:
        try:
            data, numbers, _ = foreign.receive(self._socket, count, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        for number in numbers:
            foreign.release(number)
        return data

    def close(self) -> None:
        foreign.release(self._socket.detach())


def source(descriptor: int, streams: bool) -> Source:
    """What can be read safely from a descriptor of somebody else, which is the source's from now on; when it is
    refused, it is closed. Raises RefusedError `transfer-kind`."""
    try:
        facts, flags = os.fstat(descriptor), fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if flags & os.O_PATH or flags & (os.O_WRONLY | os.O_RDWR) not in (os.O_RDONLY, os.O_RDWR):
            raise _wrong_kind("a file that is open for reading", "open it for reading")
        if stat.S_ISREG(facts.st_mode):
            return _File(descriptor, facts.st_size)
        if streams and stat.S_ISFIFO(facts.st_mode):
            return _Pipe(descriptor)
        if streams and stat.S_ISSOCK(facts.st_mode) and _is_connected(descriptor):
            return _Socket(descriptor)
        if streams:
            raise _wrong_kind("a regular file, a pipe or a socket", "anything else can be read through a pipe")
        raise _wrong_kind("a regular file", "write it into a file first")
    except BaseException:
        foreign.release(descriptor)
        raise


def _is_connected(descriptor: int) -> bool:
    """Whether it is a stream socket with another end, which is not ours: if a caller's connection to us were the
    content, we would hold it open ourselves, and not see the caller leave."""
    with socket.socket(fileno=os.dup(descriptor)) as one, suppress(OSError):
        one.getpeername()
        ours = one.family == socket.AF_UNIX and credentials(one).pid == os.getpid()
        return one.family in _STREAMS and one.type == socket.SOCK_STREAM and not ours
    return False


def _wrong_kind(wanted: str, hint: str) -> RefusedError:
    return RefusedError(f"this cannot be read: {wanted} is wanted", reason="transfer-kind", hint=hint)


class Content:
    """What a caller hands over to be read. given: as on the wire; taken: bytes that were read so far.

    Whatever reads raises RefusedError `transfer-idle`, `transfer-too-big`, `transfer-changed`, `transfer-gone` (it was
    closed, because the caller left or the call ended), MixosError `transfer-io`.
    """

    def __init__(self, given: int | str, accepts: Accepts) -> None:
        self.given = given
        self.accepts = accepts
        self.taken = 0
        self.ended = False  # whether everything was read
        self._source: Source | None = None
        self._lock = threading.Lock()  # of the three that follow
        self._closed = False
        self._reading = False

    @property
    def size(self) -> int | None:
        """Bytes in all; None when that is not known."""
        return self._source.size if self._source else None

    def told(self) -> dict[str, Any]:
        """What the audit keeps of it."""
        return {"kind": self._source.kind if self._source else "none", "bytes": self.size}

    def attach(self, descriptor: int) -> None:
        """Read from here. Takes the descriptor. Raises RefusedError `transfer-kind`, `transfer-too-big`."""
        self._source = source(descriptor, self.accepts.streams)
        self._limit(self._source.size or 0)

    def socket(self) -> int:
        """A descriptor of our own for the socket that it is, for a program that talks with the other end by itself.
        Raises RefusedError `transfer-kind`, `transfer-gone`."""
        if not isinstance(self._source, _Socket):
            raise _wrong_kind("a socket", "this is not a content to be read to its end: see the method's description")
        return self._reads(lambda one: os.dup(one.descriptor))

    def close(self) -> None:
        """Read no more. A thread that is reading ends, by an error if there was more."""
        with self._lock:
            closing, self._closed = not self._closed and not self._reading, True
        if closing and self._source:
            self._source.close()

    def read(self, count: int) -> bytes:
        """1 to `count` bytes, b"" at the end. For a thread: it waits."""
        if self.ended:
            return b""
        late = None if self.accepts.idle is None else time.monotonic() + self.accepts.idle
        while (data := self._reads(lambda one: one.pull(count))) is None:
            if late is not None and time.monotonic() > late:
                raise self._idle()
            self._reads(lambda one: _poll(one.descriptor))
        return self._counted(data)

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, at most `PIECE` bytes at a time."""
        while not self.ended:
            if self.size is not None:  # a file: its disk may be slow
                data = await asyncio.to_thread(self.read, PIECE)
            else:
                pulled = self._reads(lambda one: one.pull(PIECE))
                if pulled is None:
                    await self._ready()
                    continue
                data = self._counted(pulled)
            if data:
                yield data

    async def data(self) -> bytes:
        """All of it at once: for what is limited to a few MiB."""
        found = bytearray()
        async for piece in self.pieces():
            found += piece
        return bytes(found)

    async def copy(self, to: int) -> None:
        """Write all of it into a pipe of ours that does not block. What comes from a pipe does not pass through this
        process (splice(2)). Raises BrokenPipeError when nobody reads any more."""
        if not isinstance(self._source, _Pipe):
            async for piece in self.pieces():
                await write(to, piece)
            return
        while not self.ended:
            await writable(to)
            moved = self._reads(lambda one: cast(_Pipe, one).move(to, PIECE))
            if moved is None:
                await self._ready()
            else:
                self._count(moved)

    def _reads(self, step: Callable[[Source], T]) -> T:
        """Do one step with the source, which is not closed before its end."""
        with self._lock:
            if self._closed or self._source is None:
                raise RefusedError("the call of this content is over", reason="transfer-gone")
            self._reading = True
        try:
            return step(self._source)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise MixosError(f"the content cannot be read: {error.strerror}", reason="transfer-io") from error
        finally:
            with self._lock:
                self._reading, closed = False, self._closed
            if closed:
                self._source.close()

    async def _ready(self) -> None:
        assert self._source is not None
        try:
            async with asyncio.timeout(self.accepts.idle):
                await readable(self._source.descriptor)
        except TimeoutError as error:
            raise self._idle() from error

    def _idle(self) -> RefusedError:
        return RefusedError(f"nothing came for {self.accepts.idle:g} s", reason="transfer-idle", retryable=True)

    def _counted(self, data: bytes) -> bytes:
        self._count(len(data))
        return data

    def _count(self, count: int) -> None:
        self.taken += count
        self.ended = not count or self.taken == self.size
        self._limit(self.taken)

    def _limit(self, size: int) -> None:
        if self.accepts.most is not None and size > self.accepts.most:
            raise RefusedError(f"it has more than {in_words(self.accepts.most)}", reason="transfer-too-big")


def _poll(descriptor: int) -> None:
    found = select.poll()
    found.register(descriptor, select.POLLIN)
    found.poll(_LOOK * 1000)


async def write(to: int, data: bytes) -> None:
    """Write all of it into a pipe that does not block. Raises BrokenPipeError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(to, view) :]
        except BlockingIOError:
            await writable(to)


def contents(params: Strict) -> Iterator[Content]:
    """The contents among the parameters of a call: a content is a parameter itself, not a part of one."""
    return (value for value in params.__dict__.values() if isinstance(value, Content))


def accepted(model: type[Strict]) -> Mapping[str, Accepts]:
    """Name on the wire → how it is taken, of the parameters of a model that are content."""
    fields = {one.alias or name: _accepts((*one.metadata, one.annotation)) for name, one in model.model_fields.items()}
    return {name: found for name, found in fields.items() if found is not None}


def _accepts(types: Sequence[Any]) -> Accepts | None:
    """The first one in annotations, however deep."""
    for one in types:
        found = one if isinstance(one, Accepts) else _accepts(get_args(one))
        if found is not None:
            return found
    return None
