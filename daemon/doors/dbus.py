"""D-Bus: the same methods, roles and audit as on the socket, under the name org.mixos.

The door itself is a process of its own (`daemon.doors.busdoor`): it speaks with the bus, which any account can, and
turns messages into JSON. Here is what a call means: which method, with which arguments, by whom. mixosd never waits for
a bus, and without one there is no process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.errors import MixosError, RefusedError
from daemon.core import rpc
from daemon.core.dispatch import Dispatcher
from daemon.core.limits import Limits
from daemon.core.manifest import Process
from daemon.core.method import Caller, Method, Role
from daemon.core.part import Context
from daemon.core.peer import ACCOUNTS, Credentials, identify
from daemon.core.tasks import background
from daemon.core.worker.worker import Worker
from daemon.doors import interface as members
from daemon.doors import names

SOCKET = "/run/dbus/system_bus_socket"
PROCESS = Process("mixos-dbus", "dbus-door", memory=64 << 20)
_BUS = "org.freedesktop.DBus"
_LONGEST_PAUSE = 15.0  # seconds between looks for a bus


class DbusPart:
    """Keeps the door at the bus."""

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
        self._path = path
        calls = Calls(dispatcher, accounts)
        self._calls = calls
        limits = limits or Limits()
        settings = {"path": path, "rate": limits.rate, "burst": limits.burst}
        runs = "daemon.doors.busdoor:BusDoor"
        handlers = {"call": calls.answer}
        self._worker = Worker(context, "dbus", PROCESS, runs, settings=lambda: settings, handlers=handlers)
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
        await self._worker.stop()

    def status(self) -> Mapping[str, Any]:
        """Whether there is a bus, and the process."""
        process = self._worker.status()
        connected = process["state"] == "running" and self._worker.told.get("connected") is True
        return {"connected": connected, "process": process}

    async def _keep(self) -> None:
        """Once there is a bus, have the door, and let it tell of events."""
        pause = 0.5
        while not os.path.exists(self._path):
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        self._worker.begin()
        async for event in self._context.events.listen():
            part, _, what = event.topic.partition(".")
            known = part if part in self._calls.parts() else "manager"
            self._worker.say(f"{known}.{what or event.topic}", event.subject, event.at, event.data)


class Call(NamedTuple):
    """A message, as the door gives it. body: as JSON; uid, pid: of the caller, as the bus told the door; None: the bus
    was not asked."""

    path: str
    interface: str | None
    member: str
    signature: str
    body: list[Any]
    uid: int | None
    pid: int


class Calls:
    """What calls mean. A door is believed who calls, and nothing else: see docs/threat-model.md."""

    def __init__(self, dispatcher: Dispatcher, accounts: Mapping[int, Role]) -> None:
        self._dispatcher = dispatcher
        self._accounts = accounts
        self._revision = -1
        self._parts: dict[str, dict[str, members.Member]] = {}

    def parts(self) -> Mapping[str, Mapping[str, members.Member]]:
        """What is offered now."""
        if self._revision != self._dispatcher.revision:
            self._parts = members.by_part(self._dispatcher.methods.values())
            self._revision = self._dispatcher.revision
        return self._parts

    async def answer(self, params: Any) -> object:
        """[schema, value] of the answer. Raises MixosError as the dispatcher does, and `dbus-unknown-object`,
        `dbus-unknown-method`, `dbus-unknown-property`, `dbus-read-only`, `dbus-invalid`, `dbus-signature`."""
        call = _checked(params)
        if call.interface == f"{_BUS}.Introspectable" and call.member == "Introspect":
            text = members.describe(self.parts(), call.path)
            if text is None:
                raise _unknown("object", f"there is no object {call.path}")
            return [names.TEXT, text]
        caller = self._caller(call)
        if call.interface == f"{_BUS}.Properties":
            return await self._properties(call, caller)
        part = next((one for one in self.parts() if names.path(one) == call.path), None)
        if part is None:
            raise _unknown("object", f"there is no object {call.path}")
        member = self.parts()[part].get(call.member)
        if member is None or call.interface not in (None, "", names.interface(part)):
            raise _unknown("method", f"there is no {call.interface}.{call.member} at {call.path}")
        found = self._dispatcher.prepare(caller, member.method.name, arguments(member, call))
        return [member.answer, await self._dispatcher.call(caller, found)]

    def _caller(self, call: Call) -> Caller:
        """Who the bus says it is. Raises RefusedError `role-none`."""
        found = None
        if call.uid is not None:
            found = identify(Credentials(call.pid, call.uid, _group(call.uid)), self._accounts)
        if found is None:
            raise RefusedError("this account has no role here", reason="role-none")
        return found

    async def _properties(self, call: Call, caller: Caller) -> object:
        """Get and GetAll; each property is the answer of the method of its name, with that method's roles.

        GetAll, which programs call unasked, leaves out what the caller may not have.
        """
        if {"Get": "ss", "GetAll": "s", "Set": "ssv"}.get(call.member) != call.signature:
            raise RefusedError("Get takes ss, GetAll takes s", reason="dbus-invalid")
        if len(call.body) != len(call.signature) or not all(isinstance(one, str) for one in call.body[:2]):
            raise RefusedError("the body is not what the signature says", reason="dbus-invalid")
        here = call.path == names.ROOT_PATH and call.body[0] in ("", names.interface("manager"))
        known = list(members.PROPERTIES) if here else []
        if call.member == "GetAll":
            methods = self._dispatcher.methods
            allowed = [name for name in known if caller.role in methods[name.lower()].roles]
            return [names.FACTS, {name: await self._property(name, caller) for name in allowed}]
        if call.body[1] not in known:
            raise _unknown("property", f"there is no property {call.body[1]}")
        if call.member == "Set":
            raise RefusedError("all properties are read-only", reason="dbus-read-only")
        return [names.ANYTHING, await self._property(call.body[1], caller)]

    async def _property(self, name: str, caller: Caller) -> object:
        result = await self._dispatcher.call(caller, self._dispatcher.prepare(caller, name.lower(), {}))
        return result["version"] if name == "Version" and isinstance(result, dict) else result


def _checked(params: Any) -> Call:
    """What the door said, of the types that it must be. Raises RefusedError `dbus-invalid`."""
    with contextlib.suppress(TypeError):
        call = Call(*params)
        texts = (call.path, call.interface or "", call.member, call.signature)
        numbers = (0 if call.uid is None else call.uid, call.pid)
        fit = isinstance(call.body, list)
        if fit and len(json.dumps(call.body)) > 2 * rpc.MAX_LINE:
            raise RefusedError(f"more than {rpc.MAX_LINE} bytes", reason="dbus-too-large")
        if fit and all(isinstance(one, str) for one in texts) and all(type(one) is int for one in numbers):
            return call
    raise RefusedError("this is no call", reason="dbus-invalid")


def _unknown(kind: str, message: str) -> MixosError:
    return RefusedError(message, reason=f"dbus-unknown-{kind}")


def _group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def arguments(member: members.Member, call: Call) -> dict[str, Any]:
    """The parameters in a call; `options` may be left out. Raises RefusedError `dbus-signature`."""
    positional = "".join(one.type for one in member.arguments)
    if call.signature not in (member.signature, positional):
        raise RefusedError(f"{member.name} takes ({member.signature}), not ({call.signature})", reason="dbus-signature")
    if not 0 <= len(call.body) - len(member.arguments) <= 1:
        raise RefusedError("the body is not what the signature says", reason="dbus-signature")
    given = {one.name: value for one, value in zip(member.arguments, call.body, strict=False)}
    if len(call.body) > len(member.arguments):
        options = call.body[-1]
        if not isinstance(options, dict) or set(options) & set(given):
            raise RefusedError("an argument is no option", reason="dbus-signature")
        given |= options
    return given
