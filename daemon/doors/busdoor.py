"""The process of the door to D-Bus: messages of a bus into JSON for mixosd, answers and events back.

Only this module and `buslink` know dbus-fast, the maintained fork of dbus-next. What the library would do itself
(objects, properties, introspection) is mixosd's, because every call needs its caller: the account that the bus vouches
for, which is asked for here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dbus_fast.constants import MessageFlag, MessageType
from dbus_fast.message import Message
from dbus_fast.signature import Variant

from common.errors import MixosError
from daemon.core import rpc
from daemon.core.limits import Bucket
from daemon.core.schema import Schema
from daemon.core.tasks import background
from daemon.core.worker.channel import Handler
from daemon.core.worker.child import Host
from daemon.doors import names
from daemon.doors.buslink import PROBLEMS, Bus, connect
from daemon.doors.values import pack, signature
from daemon.linux.log import log

_BUS = "org.freedesktop.DBus"
_ERRORS = {  # reasons for which there is a name that D-Bus clients know
    "role-denied": "AccessDenied",
    "role-none": "AccessDenied",
    "rpc-method": "UnknownMethod",
    "rpc-params": "InvalidArgs",
    "rpc-timeout": "Timeout",
    "dbus-unknown-object": "UnknownObject",
    "dbus-unknown-method": "UnknownMethod",
    "dbus-unknown-property": "UnknownProperty",
    "dbus-read-only": "PropertyReadOnly",
    "dbus-invalid": "InvalidArgs",
}
_CONNECT_SECONDS = 10.0
_LONGEST_PAUSE = 15.0
_PER_SENDER = 8  # calls at once
_ALL_SENDERS = 64
_SENDERS = 256  # that are remembered
_UNSENT = 2000  # messages that the bus may leave unread
# The bus ends a connection that sends more than its max_message_size (daemon/dbus/system.conf).
MAX_ANSWER = 400 << 10  # bytes, as `fits` counts them
_SOCKET_HINT = "mixctl asks over the socket, which has no such limit"


class BusDoor:
    """Keeps mixosd on the bus: connects, serves until the bus is gone, again. settings: `path`, `rate`, `burst`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._path: str = host.settings["path"]
        self._session: Session | None = None
        self._keeper: asyncio.Task[None] | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """Nothing is asked of it."""
        return {}

    async def start(self) -> None:
        """Begin to look for the bus."""
        self._keeper = background("dbus", self._keep)

    async def stop(self) -> None:
        """Leave the bus."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """Whether there is a bus."""
        return {"connected": self._session is not None}

    async def _keep(self) -> None:
        """Ever longer pauses while there is no bus."""
        pause = 0.5
        while True:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    bus = await connect(self._path)
            except PROBLEMS as error:
                if pause == _LONGEST_PAUSE / 2:  # once, not while the bus may just be starting
                    log("info", f"no bus at {self._path}: {error}")
            else:
                pause = 0.5
                await self._attend(bus)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _attend(self, bus: Bus) -> None:
        self._session = Session(bus, self._host)
        self._host.changed()
        log("info", "on the bus")
        telling = background("dbus-events", partial(self._tell, self._session))
        try:
            await bus.gone()
            log("warning", "the bus is gone")
        finally:
            self._session.close()
            self._session = None
            self._host.changed()
            telling.cancel()
            bus.leave()
            await asyncio.gather(telling, return_exceptions=True)

    async def _tell(self, session: Session) -> None:
        """Events as signals; mixosd has put the part that offers them in front."""
        async for event in self._host.events.listen():
            part, _, what = event.topic.partition(".")
            session.signal(part, [what, event.subject, event.at, dict(event.data)])


class Session:
    """One connection to the bus, with what it knows of its callers."""

    def __init__(self, bus: Bus, host: Host) -> None:
        self._bus = bus
        self._host = host
        self._senders: dict[str, Sender] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        bus.connection.add_message_handler(self._on_message)

    def close(self) -> None:
        """End the calls in progress."""
        for task in self._tasks:
            task.cancel()

    def signal(self, part: str, body: Sequence[Any]) -> None:
        """Send the signal `Event` of a part."""
        codes = [signature(schema) for _, schema in names.EVENT]
        try:
            packed = [pack(Variant, schema, value) for (_, schema), value in zip(names.EVENT, body, strict=True)]
        except (TypeError, ValueError) as error:
            log("err", f"the event {part}.{body[0]} cannot be said on D-Bus: {error}")
            return
        self._send(Message.new_signal(names.path(part), names.interface(part), "Event", "".join(codes), packed))

    def _send(self, message: Message) -> None:
        if self._bus.unsent > _UNSENT:
            log("warning", "the bus does not read: leaving it")
            self._bus.leave()
            return
        try:
            self._bus.send(message)
        except Exception as error:  # noqa: BLE001  # what cannot be said on D-Bus is a defect, not the end
            log("err", f"{message.path} {message.member}: {error}")
            if message.message_type is MessageType.METHOD_RETURN:
                self._bus.send(
                    Message(
                        destination=message.destination,
                        message_type=MessageType.ERROR,
                        reply_serial=message.reply_serial,
                        error_name=f"{names.BUS_NAME}.Error.RpcAnswer",
                        signature="s",
                        body=["the answer cannot be said on D-Bus"],
                    )
                )

    def _on_message(self, message: Message) -> bool:
        """Take every call; leave replies and signals to the library."""
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        if not fits(message.body, rpc.MAX_LINE):
            self._send(_failure(message, f"{_BUS}.Error.LimitsExceeded", f"more than {rpc.MAX_LINE} bytes"))
            return True
        sender = self._senders.setdefault(message.sender, Sender(self._host.settings))
        if sender.calls >= _PER_SENDER or len(self._tasks) >= _ALL_SENDERS:
            self._send(_failure(message, f"{_BUS}.Error.LimitsExceeded", "too many calls at once"))
            return True
        sender.calls += 1
        task = asyncio.create_task(self._serve(message, sender))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _serve(self, message: Message, sender: Sender) -> None:
        try:
            if delay := sender.bucket.delay():
                await asyncio.sleep(delay)
            schema, value = await self._answer(message, sender)
            if not fits(value, MAX_ANSWER):
                raise MixosError("the answer is too large for D-Bus", reason="dbus-too-large", hint=_SOCKET_HINT)
            reply = _reply(message, schema, value)
        except MixosError as error:
            known = _ERRORS.get(error.reason)
            name = f"{_BUS}.Error.{known}" if known else f"{names.BUS_NAME}.Error.{names.camel(error.reason)}"
            reply = _failure(message, name, f"{error.message}\n{error.hint}" if error.hint else error.message)
        except Exception as error:  # noqa: BLE001  # the boundary
            log("err", f"{message.interface}.{message.member} failed: {type(error).__name__}: {error}")
            reply = _failure(message, f"{names.BUS_NAME}.Error.RpcInternal", "internal error, see the log")
        finally:
            sender.calls -= 1
            if len(self._senders) > _SENDERS and not sender.calls:
                self._senders.pop(message.sender, None)
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            self._send(reply)

    async def _answer(self, message: Message, sender: Sender) -> tuple[Schema, Any]:
        """Schema and value of the answer. Raises MixosError as `daemon.doors.dbus.Calls.answer` does."""
        if message.interface == f"{_BUS}.Peer" and message.member == "Ping":
            return names.NOTHING, None
        uid, pid = None, 0
        if message.interface != f"{_BUS}.Introspectable":
            uid, pid = await self._who(message.sender, sender)
        body = [unpack(one) for one in message.body]
        call = [message.path or "", message.interface, message.member or "", message.signature, body, uid, pid]
        schema, value = await self._host.ask("call", call, None)
        return schema, value

    async def _who(self, unique: str, sender: Sender) -> tuple[int | None, int]:
        """User id and process id behind a connection of the bus; its unique name is never given to another."""
        if sender.who is None:
            question = Message(
                _BUS, "/org/freedesktop/DBus", _BUS, "GetConnectionCredentials", signature="s", body=[unique]
            )
            async with asyncio.timeout(_CONNECT_SECONDS):
                reply = await self._bus.call(question)
            known = reply is not None and reply.message_type is MessageType.METHOD_RETURN
            facts = unpack(reply.body[0]) if reply is not None and known else {}
            sender.who = facts.get("UnixUserID"), facts.get("ProcessID", 0)
        return sender.who


def fits(value: object, limit: int) -> bool:
    """Whether a value is not larger than so many bytes in a message, about: texts as they are, 8 for all else."""
    waiting, size = [value], 0
    while waiting and size <= limit:
        one = waiting.pop()
        size += 8 + (len(one) if isinstance(one, str | bytes) else 0)
        if isinstance(one, Variant):
            waiting.append(one.value)
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
    return size <= limit


def _reply(message: Message, schema: Schema, value: Any) -> Message:
    """The message that carries an answer. Raises what `pack` raises."""
    if schema == names.NOTHING:
        return Message.new_method_return(message)
    return Message.new_method_return(message, signature(schema), [pack(Variant, schema, value)])


def _failure(message: Message, name: str, text: str) -> Message:
    """The error that answers a call. One text and no more: GDBus shows nothing of other bodies."""
    return Message.new_error(message, name, pack(Variant, names.TEXT, text))


class Sender:
    """What is known of one connection of the bus."""

    def __init__(self, settings: Mapping[str, float]) -> None:
        self.calls = 0
        self.bucket = Bucket(settings["rate"], settings["burst"])
        self.who: tuple[int | None, int] | None = None


def unpack(value: Any) -> Any:
    """What the library gives → what JSON would have given."""
    if isinstance(value, Variant):
        return unpack(value.value)
    if isinstance(value, dict):
        return {str(key): unpack(inner) for key, inner in value.items()}
    if isinstance(value, bytes | list):
        return [unpack(inner) for inner in value]
    return value
