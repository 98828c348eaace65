"""A connection to the system bus that owns our name. Only this module and `busdoor` know the library, dbus-fast."""

from __future__ import annotations

import contextlib
import os
from typing import Any, cast
from urllib.parse import quote

from dbus_fast.aio.message_bus import MessageBus
from dbus_fast.constants import NameFlag, RequestNameReply
from dbus_fast.errors import AuthError, DBusError, InvalidAddressError
from dbus_fast.message import Message

from daemon.doors import names

HANDSHAKE_SECONDS = 20.0
PROBLEMS = (OSError, AuthError, DBusError, EOFError, InvalidAddressError)  # what `connect` raises


class Bus:
    """The connection. unsent: messages that wait for the bus to read them."""

    def __init__(self, connection: MessageBus) -> None:
        self.connection = connection
        self.unsent = 0

    def send(self, message: Message) -> None:
        """Send a message soon. Raises an error of the library's for what D-Bus cannot say."""
        sent = self.connection.send(message)
        self.unsent += 1
        sent.add_done_callback(self._sent)

    def _sent(self, future: Any) -> None:
        self.unsent -= 1
        if not future.cancelled():
            future.exception()  # the connection is gone, which `gone` tells

    async def call(self, message: Message) -> Message | None:
        """The reply to a message."""
        return await self.connection.call(message)

    async def gone(self) -> None:
        """Return when the connection has ended, whatever ended it."""
        with contextlib.suppress(Exception):
            await cast(Any, self.connection).wait_for_disconnect()  # without annotations

    def leave(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self.connection.disconnect()


async def connect(path: str) -> Bus:
    """A connection that owns our name. Raises what `PROBLEMS` names."""
    # An address holds bytes other than these escaped (D-Bus Specification, "Server Addresses").
    escaped = quote(os.fsencode(path), safe="-_/.*")
    connection = MessageBus(bus_address=f"unix:path={escaped}", auth_timeout=HANDSHAKE_SECONDS)
    try:
        await connection.connect()
        reply = await connection.request_name(names.BUS_NAME, NameFlag.DO_NOT_QUEUE)
        if reply not in (RequestNameReply.PRIMARY_OWNER, RequestNameReply.ALREADY_OWNER):
            raise OSError(0, f"{names.BUS_NAME} belongs to another program")
    except BaseException:
        with contextlib.suppress(Exception):
            connection.disconnect()
        raise
    return Bus(connection)
