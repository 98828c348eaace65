"""One connection of the proxy: little memory, nothing read that nobody asked for.

Sockets are used directly instead of through asyncio's streams: those read ahead, up to some hundred kilobytes for each
connection, and a sandbox may open as many as it is allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Self

CHUNK = 16 << 10  # bytes read at once


class Link:
    """A stream socket. data: what was read and not taken yet."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self.socket = stream
        self.data = b""
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    async def fill(self) -> bool:
        """Read some more; whether there was any."""
        chunk = await self._loop.sock_recv(self.socket, CHUNK)
        self.data += chunk
        return bool(chunk)

    async def take(self, size: int) -> bytes:
        """Exactly so many bytes. Raises EOFError."""
        while len(self.data) < size:
            if not await self.fill():
                raise EOFError("the connection ended early")
        return self._cut(size)

    async def until(self, end: bytes, limit: int) -> bytes:
        """Everything up to `end`, with it; `limit` bytes without it when it does not come. Raises EOFError."""
        looked = 0
        while (found := self.data.find(end, looked)) < 0:
            if len(self.data) > limit:
                return self._cut(limit)
            looked = max(0, len(self.data) - len(end))
            if not await self.fill():
                raise EOFError("the connection ended early")
        return self._cut(found + len(end))

    async def some(self, most: int = CHUNK) -> bytes:
        """What is there, or comes next: at least one byte; none at the end."""
        if not self.data:
            await self.fill()
        return self._cut(most)

    def _cut(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    async def send(self, data: bytes) -> None:
        """Write all of it; returns when the kernel has it."""
        await self._loop.sock_sendall(self.socket, data)

    def finish(self) -> None:
        """No more will be sent; the other direction goes on."""
        with contextlib.suppress(OSError):  # the other side is gone already, which the next read says
            self.socket.shutdown(socket.SHUT_WR)
