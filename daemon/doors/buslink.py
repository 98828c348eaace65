"""dbus-next's connection to a bus, without what would let the bus or one of its clients hold up the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any, cast

from dbus_next._private.constants import LITTLE_ENDIAN
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import MessageType, NameFlag, RequestNameReply

from daemon.core import rpc
from daemon.doors import interface as names

_IN_A_ROW = 8  # messages that are read before others have their turn


class Reader(Unmarshaller):
    """dbus-next's, without what keeps the daemon busy for seconds: the arguments of a call that are longer than a
    request on the socket may be are not looked at. Such a call has a signature and no body."""

    def _unmarshall(self) -> None:
        read = cast(Any, self).read
        self.offset = 0
        read(16, prefetch=True)
        # D-Bus Specification, "Message Format": byte order, type, flags, version, length of the body, serial, of fields
        order = "<" if self.buf[0] == LITTLE_ENDIAN else ">"
        kind, body, fields = struct.unpack_from(f"{order}xBxxI4xI", self.buf)
        if kind == MessageType.METHOD_CALL.value and body > rpc.MAX_LINE:
            read(16 + fields + -fields % 8 + body, prefetch=True)
            struct.pack_into(f"{order}I", self.buf, 4, 0)
        cast(Any, super())._unmarshall()


class Bus(MessageBus):
    """dbus-next's connection with a socket that is connected already, and a handshake that notices its end."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        super().__init__(bus_address="unix:path=/")

    def _setup_socket(self) -> None:
        self._sock = self._channel
        self._stream = self._sock.makefile("rwb")
        self._fd = self._sock.fileno()

    def _create_unmarshaller(self) -> Unmarshaller:
        reader: Unmarshaller = cast(Any, Reader)(self._stream)
        return reader

    def _message_reader(self) -> None:
        """Some messages, then it is the others' turn: dbus-next's own goes on as long as anybody sends."""
        try:
            for _ in range(_IN_A_ROW):
                if not self._unmarshaller.unmarshall():
                    return
                cast(Any, self)._on_message(self._unmarshaller.message)
                self._unmarshaller = self._create_unmarshaller()
        except Exception as error:  # noqa: BLE001  # the end of the bus, or nonsense from it: `gone` returns
            cast(Any, self)._finalize(error)
            return
        self._loop.call_soon(self._message_reader)  # some may be in our buffer, of which the socket says nothing

    async def _auth_readline(self) -> str:
        """A line of the handshake. dbus-next's own loops for ever, without a pause, when the bus hangs up in it."""
        data = b""
        while not data.endswith(b"\r\n"):
            byte = await self._loop.sock_recv(self._sock, 1)
            if not byte or len(data) > 1000:
                raise ConnectionError(0, "the bus hung up during the handshake")
            data += byte
        return data[:-2].decode("ascii", "replace")

    async def gone(self) -> None:
        """Return when the connection has ended, whatever ended it."""
        with contextlib.suppress(Exception):
            await cast(Any, self).wait_for_disconnect()

    def leave(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    @property
    def unsent(self) -> int:
        """Messages that wait for the bus to read them."""
        return int(self._writer.messages.qsize())


async def connect(path: str) -> Bus:
    """A connection that owns our name. Raises OSError, AuthError, DBusError, EOFError."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(channel, path)
        bus = Bus(channel)
        await bus.connect()
        reply = await bus.request_name(names.BUS_NAME, NameFlag.DO_NOT_QUEUE)
        if reply not in (RequestNameReply.PRIMARY_OWNER, RequestNameReply.ALREADY_OWNER):
            raise OSError(0, f"{names.BUS_NAME} belongs to another program")
    except BaseException:
        channel.close()
        raise
    return bus
