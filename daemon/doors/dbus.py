"""D-Bus: the same methods, roles and audit as on the socket, under the name org.mixos. Only this module and `buslink`
know dbus-fast, the maintained fork of dbus-next.

mixosd never waits for a bus. A task connects when there is one, again after it went away, and serves calls as they
come. What the library would do itself (objects, properties, introspection) is done here, because every call needs its
caller: the account that the bus vouches for.
"""

from __future__ import annotations

import asyncio
import pwd
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dbus_fast.constants import MessageFlag, MessageType
from dbus_fast.message import Message
from dbus_fast.signature import Variant

from common.errors import MixosError, RefusedError
from daemon.core import rpc
from daemon.core.dispatch import Dispatcher
from daemon.core.limits import Bucket, Limits
from daemon.core.method import Caller, Method, Role
from daemon.core.part import Context
from daemon.core.peer import ACCOUNTS, Credentials, identify
from daemon.core.schema import Schema
from daemon.core.tasks import background
from daemon.doors import interface as names
from daemon.doors.buslink import PROBLEMS, Bus, connect
from daemon.doors.values import pack, signature
from daemon.linux.log import log

SOCKET = "/run/dbus/system_bus_socket"
_BUS = "org.freedesktop.DBus"
_ERRORS = {  # reasons for which there is a name that D-Bus clients know
    "role-denied": f"{_BUS}.Error.AccessDenied",
    "role-none": f"{_BUS}.Error.AccessDenied",
    "rpc-method": f"{_BUS}.Error.UnknownMethod",
    "rpc-params": f"{_BUS}.Error.InvalidArgs",
    "rpc-timeout": f"{_BUS}.Error.Timeout",
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


class DbusPart:
    """Keeps the daemon on the bus."""

    name = "dbus"

    def __init__(
        self,
        context: Context,
        dispatcher: Dispatcher,
        accounts: Mapping[int, Role] = ACCOUNTS,
        path: str = SOCKET,
        limits: Limits | None = None,
    ) -> None:
        self._context = context
        self._dispatcher = dispatcher
        self._accounts = accounts
        self._path = path
        self._limits = limits or Limits()
        self._session: Session | None = None
        self._keeper: asyncio.Task[None] | None = None

    def methods(self) -> Sequence[Method]:
        """None of its own."""
        return ()

    async def start(self) -> None:
        """Begin to look for a bus."""
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
        """Connect, serve until the bus is gone, again; ever longer pauses while there is none."""
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
        self._session = Session(bus, self._dispatcher, self._accounts, self._limits)
        log("info", "on the bus")
        telling = background("dbus-events", partial(self._tell, self._session))
        try:
            await bus.gone()
            log("warning", "the bus is gone")
        finally:
            self._session.close()
            self._session = None
            telling.cancel()
            bus.leave()
            await asyncio.gather(telling, return_exceptions=True)

    async def _tell(self, session: Session) -> None:
        """Events as signals."""
        async for event in self._context.events.listen():
            part, _, what = event.topic.partition(".")
            body = [what or event.topic, event.subject, event.at, dict(event.data)]
            session.signal(part, body)


class Session:
    """One connection to the bus, with what it knows of its callers."""

    def __init__(self, bus: Bus, dispatcher: Dispatcher, accounts: Mapping[int, Role], limits: Limits) -> None:
        self._bus = bus
        self._dispatcher = dispatcher
        self._accounts = accounts
        self._limits = limits
        self._senders: dict[str, Sender] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._revision = -1
        self._parts: dict[str, dict[str, names.Member]] = {}
        bus.connection.add_message_handler(self._on_message)

    def close(self) -> None:
        """End the calls in progress."""
        for task in self._tasks:
            task.cancel()

    def parts(self) -> Mapping[str, Mapping[str, names.Member]]:
        """What is offered now."""
        if self._revision != self._dispatcher.revision:
            self._parts = names.by_part(self._dispatcher.methods.values())
            self._revision = self._dispatcher.revision
        return self._parts

    def signal(self, part: str, body: Sequence[Any]) -> None:
        """Send the signal `Event` of a part; of one without methods, that of the manager."""
        known = part if part in self.parts() else "manager"
        codes = [signature(schema) for _, schema in names.EVENT]
        try:
            packed = [pack(Variant, schema, value) for (_, schema), value in zip(names.EVENT, body, strict=True)]
        except (TypeError, ValueError) as error:
            log("err", f"the event {part}.{body[0]} cannot be said on D-Bus: {error}")
            return
        self._send(Message.new_signal(names.path(known), names.interface(known), "Event", "".join(codes), packed))

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
        sender = self._senders.setdefault(message.sender, Sender(self._limits))
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
        except UnknownError as error:
            reply = _failure(message, f"{_BUS}.Error.{error.name}", str(error))
        except MixosError as error:
            name = _ERRORS.get(error.reason, f"{names.BUS_NAME}.Error.{names.camel(error.reason)}")
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
        """Schema and value of the answer. Raises UnknownError, or MixosError as the dispatcher does."""
        if message.interface == f"{_BUS}.Peer" and message.member == "Ping":
            return names.NOTHING, None
        if message.interface == f"{_BUS}.Introspectable" and message.member == "Introspect":
            text = names.describe(self.parts(), message.path or "")
            if text is None:
                raise UnknownError("UnknownObject", f"there is no object {message.path}")
            return names.TEXT, text
        caller = await self._caller(message.sender, sender)
        if message.interface == f"{_BUS}.Properties":
            return await self._properties(message, caller)
        part = next((one for one in self.parts() if names.path(one) == message.path), None)
        if part is None:
            raise UnknownError("UnknownObject", f"there is no object {message.path}")
        member = self.parts()[part].get(message.member or "")
        if member is None or message.interface not in (None, "", names.interface(part)):
            raise UnknownError("UnknownMethod", f"there is no {message.interface}.{message.member} at {message.path}")
        call = self._dispatcher.prepare(caller, member.method.name, arguments(member, message))
        return member.answer, await self._dispatcher.call(caller, call)

    async def _properties(self, message: Message, caller: Caller) -> tuple[Schema, Any]:
        """Get and GetAll; each property is the answer of the method of its name, with that method's roles.

        GetAll, which programs call unasked, leaves out what the caller may not have.
        """
        codes = {"Get": "ss", "GetAll": "s", "Set": "ssv"}.get(message.member or "")
        if codes is None or message.signature != codes:
            raise UnknownError("InvalidArgs", "Get takes ss, GetAll takes s")
        here = message.path == names.ROOT_PATH and message.body[0] in ("", names.interface("manager"))
        known = list(names.PROPERTIES) if here else []
        if message.member == "GetAll":
            methods = self._dispatcher.methods
            allowed = [name for name in known if caller.role in methods[name.lower()].roles]
            return names.FACTS, {name: await self._property(name, caller) for name in allowed}
        if message.body[1] not in known:
            raise UnknownError("UnknownProperty", f"there is no property {message.body[1]}")
        if message.member == "Set":
            raise UnknownError("PropertyReadOnly", "all properties are read-only")
        return names.ANYTHING, await self._property(message.body[1], caller)

    async def _property(self, name: str, caller: Caller) -> object:
        result = await self._dispatcher.call(caller, self._dispatcher.prepare(caller, name.lower(), {}))
        return result["version"] if name == "Version" and isinstance(result, dict) else result

    async def _caller(self, unique: str, sender: Sender) -> Caller:
        """Who is behind a connection of the bus; its unique name is never given to another. Raises RefusedError."""
        if sender.caller is None:
            question = Message(
                _BUS, "/org/freedesktop/DBus", _BUS, "GetConnectionCredentials", signature="s", body=[unique]
            )
            async with asyncio.timeout(_CONNECT_SECONDS):
                reply = await self._bus.call(question)
            known = reply is not None and reply.message_type is MessageType.METHOD_RETURN
            facts = unpack(reply.body[0]) if reply is not None and known else {}
            uid = facts.get("UnixUserID", -1)
            sender.caller = identify(Credentials(facts.get("ProcessID", 0), uid, _group(uid)), self._accounts)
        if sender.caller is None:
            raise RefusedError("this account has no role here", reason="role-none")
        return sender.caller


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


class UnknownError(Exception):
    """A call of something that is not there; `name` is one of the standard error names."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


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

    def __init__(self, limits: Limits) -> None:
        self.calls = 0
        self.bucket = Bucket(limits.rate, limits.burst)
        self.caller: Caller | None = None


def _group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def arguments(member: names.Member, message: Message) -> dict[str, Any]:
    """The parameters in a call; `options` may be left out. Raises RefusedError `dbus-signature`."""
    positional = "".join(one.type for one in member.arguments)
    if message.signature not in (member.signature, positional):
        raise RefusedError(
            f"{member.name} takes ({member.signature}), not ({message.signature})", reason="dbus-signature"
        )
    given = {one.name: unpack(value) for one, value in zip(member.arguments, message.body, strict=False)}
    if len(message.body) > len(member.arguments):
        options = unpack(message.body[-1])
        if twice := sorted(set(options) & set(given)):
            raise RefusedError(f"{twice[0]} is an argument, not an option", reason="dbus-signature")
        given |= options
    return given


def unpack(value: Any) -> Any:
    """What the library gives → what JSON would have given."""
    if isinstance(value, Variant):
        return unpack(value.value)
    if isinstance(value, dict):
        return {str(key): unpack(inner) for key, inner in value.items()}
    if isinstance(value, bytes | list):
        return [unpack(inner) for inner in value]
    return value
