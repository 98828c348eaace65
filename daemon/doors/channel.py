"""One connection of a Unix socket, in the event loop: bytes in with the descriptors that came with them, bytes out.

Not asyncio's streams: those read with recv(2), which throws descriptors away.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from daemon.core import rpc
from daemon.linux import foreign


class TruncatedError(Exception):
    """More descriptors came than there is room for, or the kernel did not let us have them."""


class Channel:
    """Owns the socket. It reads at most one piece ahead; writing never waits, `drain` does."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.unsent = bytearray()
        self.broken = False  # nothing more reaches the other end
        self._last = False
        self._sent = asyncio.Event()
        self._sent.set()
        self._loop = asyncio.get_running_loop()
        self._reading = False  # whether the loop watches for what comes
        self._came = asyncio.Event()  # there is a piece, or an error
        self._piece: tuple[bytes, list[int]] | None = None
        self._error: OSError | TruncatedError | None = None
        connection.setblocking(False)

    async def receive(self) -> tuple[bytes, list[int]]:
        """At most `rpc.MAX_LINE` bytes, none at the end, and descriptors, which are the caller's from now on.

        The kernel ends a read behind the message that descriptors came with. Raises OSError, TruncatedError.
        """
        if not self._reading:
            self._loop.add_reader(self.socket.fileno(), self._read)
            self._reading = True
        await self._came.wait()
        if self._piece is None:
            assert self._error is not None
            raise self._error
        piece, self._piece = self._piece, None
        self._came.clear()
        return piece

    def _read(self) -> None:
        if self._came.is_set():  # nobody wants it yet
            self._stop()
            return
        try:
            data, numbers, truncated = foreign.receive(self.socket, rpc.MAX_LINE)
        except BlockingIOError:
            return
        except OSError as error:
            self._error = error
        else:
            if truncated or len(numbers) > rpc.MAX_DESCRIPTORS:
                close(numbers)
                self._error = TruncatedError()
            else:
                self._piece = data, numbers
        self._came.set()

    def _stop(self) -> None:
        if self._reading:
            self._loop.remove_reader(self.socket.fileno())
            self._reading = False

    def write(self, data: bytes) -> None:
        """Send soon what was not sent yet, and this."""
        if self.broken or self._last:
            return
        self.unsent += data
        if self._sent.is_set():
            self._sent.clear()
            self._send()
            if self.unsent:
                self._loop.add_writer(self.socket.fileno(), self._continue)

    def finish(self) -> None:
        """Neither read nor write more than was written."""
        self._last = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RD)

    async def drain(self) -> None:
        """Wait until the kernel has taken everything. Raises BrokenPipeError when nobody can read it any more."""
        await self._sent.wait()
        if self.broken:
            raise BrokenPipeError

    async def close(self, seconds: float) -> None:
        """Close, with so much time for the last words to be read."""
        try:
            async with asyncio.timeout(seconds):
                await self._sent.wait()
        except TimeoutError:
            pass
        finally:
            self._stop()
            if self._piece is not None:
                close(self._piece[1])
            if not self._sent.is_set():
                self._loop.remove_writer(self.socket.fileno())
            foreign.close(self.socket)

    def _continue(self) -> None:
        self._send()
        if not self.unsent:
            self._loop.remove_writer(self.socket.fileno())

    def _send(self) -> None:
        try:
            del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
            self.unsent.clear()
        if not self.unsent:
            self._sent.set()


def close(descriptors: list[int]) -> None:
    """Close them all."""
    while descriptors:
        foreign.release(descriptors.pop())
