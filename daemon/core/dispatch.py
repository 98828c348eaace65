"""From a name and parameters to a handler and its answer: the same for every door.

In order: the method exists, the caller's role may call it, the parameters fit its model; a change is written to the
audit before it begins and after it ended. Whatever goes wrong leaves here as a MixosError; a defect of ours becomes an
internal error without details, which are in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import errno
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from common.errors import MixosError, RefusedError
from common.tomlfile import Strict
from daemon.core import rpc
from daemon.core.audit import Audit, AuditError
from daemon.core.events import Bus
from daemon.core.keys import MAX_KEY, Keys
from daemon.core.limits import Sample
from daemon.core.method import Caller, Method, StreamHandler
from daemon.core.params import fields, validate, wrong
from daemon.core.spool import Spool
from daemon.core.transfer import Content, Descriptors, contents
from daemon.linux.log import log

KEY = "idempotency"  # the parameter that every changing method takes beside its own
_NAME = re.compile(r"[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)*")


class Call(NamedTuple):
    """A call that may be made. contents: of its parameters; whoever prepared the call and does not make it closes
    them. within: it is part of another call, whose event `api.changed` tells of both."""

    method: Method
    params: Strict
    given: Mapping[str, Any]
    key: str | None
    contents: tuple[Content, ...] = ()
    within: bool = False

    def close(self) -> None:
        """Nothing of its contents is read any more."""
        for content in self.contents:
            content.close()


class Dispatcher:
    """All methods, behind one check. A change that succeeded is the event `api.changed`: method, who, origin."""

    def __init__(self, audit: Audit, keys: Keys, events: Bus, spool: Spool) -> None:
        self.methods: dict[str, Method] = {}
        self.revision = 0  # grows with every change of the methods
        # Why a method that is not there may be missing: a part that failed, or is not up yet.
        self.absent: Callable[[str], MixosError | None] = lambda name: None
        self._audit = audit
        self._keys = keys
        self._events = events
        self._spool = spool
        self._denied: dict[int, Sample] = {}  # by account

    def add(self, methods: Sequence[Method]) -> None:
        """Offer methods, all or none. Raises MixosError `method-name`, `method-duplicate`."""
        for method in methods:
            if not _NAME.fullmatch(method.name) or len(method.name) > 64 or KEY in fields(method.params):
                raise MixosError(f"{method.name!r} cannot be offered", reason="method-name")
            if method.name in self.methods:
                raise MixosError(f"there are two methods {method.name}", reason="method-duplicate")
        self.methods.update({method.name: method for method in methods})
        self.revision += 1

    def remove(self, methods: Sequence[Method]) -> None:
        """Offer them no longer; calls in progress go on."""
        for method in methods:
            self.methods.pop(method.name, None)
        self.revision += 1

    def find(self, caller: Caller, name: str) -> Method:
        """A method that the caller may call. Raises RpcError `rpc-method`, RefusedError `role-denied`; what `absent`
        says."""
        method = self.methods.get(name)
        if method is None:
            raise self.absent(name) or self._unknown(caller, name)
        if caller.role not in method.roles:
            self._deny(caller, name)
            allowed = ", ".join(sorted(method.roles))
            raise RefusedError(f"{caller.role} may not call {name}", reason="role-denied", hint=f"roles: {allowed}")
        return method

    def prepare(
        self, caller: Caller, name: str, params: Mapping[str, Any], descriptors: Descriptors | None = None
    ) -> Call:
        """Check a call. descriptors: that came with it; it takes those that it names, which must be all.

        Raises what `find` does; RpcError `rpc-params`; RefusedError `transfer-descriptors`, `transfer-kind`,
        `transfer-too-big`; for the id of a transfer what `Spool.open` does.
        """
        method = self.find(caller, name)
        given = dict(params)
        key = given.pop(KEY, None)
        if key is not None and (not isinstance(key, str) or not 0 < len(key) <= MAX_KEY):
            raise wrong(f"{KEY}: must be a text of at most {MAX_KEY} characters", None)
        if key is not None and not method.takes_key:
            raise wrong(f"{KEY}: {name} takes no key", "only changes without secrets take one")
        model = validate(method, given)
        call = Call(method, model, given, key, tuple(contents(model)))
        if key is not None and call.contents:
            raise wrong(f"{KEY}: a call with content takes no key", "nobody can tell whether it is the same again")
        try:
            self._attach(caller, call, descriptors or Descriptors())
        except BaseException:
            call.close()
            raise
        return call

    def _attach(self, caller: Caller, call: Call, descriptors: Descriptors) -> None:
        for one in call.contents:
            if isinstance(one.given, int):
                one.attach(descriptors.take(one.given))
            else:
                one.attach(self._spool.open(caller.uid, one.given, call.method.name))
        descriptors.finish()

    def _unknown(self, caller: Caller, name: str) -> MixosError:
        known = [method.name for method in self.methods.values() if caller.role in method.roles]
        near, part = difflib.get_close_matches(name, known, n=1, cutoff=0.8), name.partition(".")[0]
        hint = f"did you mean {near[0]}?" if near else "api.methods lists them"
        if not near and "." in name and not any(one.startswith(f"{part}.") for one in self.methods):
            hint = "its part does not run here; status tells which do"
        return rpc.failure(f"there is no method {name[:64]}", code=rpc.METHOD_NOT_FOUND, reason="rpc-method", hint=hint)

    def _deny(self, caller: Caller, name: str) -> None:
        """Record a denied call; of a flood only some, with the number that were left out."""
        left_out = self._denied.setdefault(caller.uid, Sample()).take()
        if left_out is not None:
            with contextlib.suppress(AuditError):  # it is denied either way
                self._audit.append("denied", method=name, **who(caller), left_out=left_out)

    async def call(self, caller: Caller, call: Call) -> object:
        """The answer of a method that is no stream. Raises MixosError."""
        if call.key is None:
            try:
                return await self._perform(caller, call)
            finally:
                call.close()
        first = await self._keys.begin(caller.uid, call.key, call.method.name, call.given)
        if first is not None:
            if "error" in first:
                raise rpc.error_in(first["error"])
            return first["result"]
        try:
            return await self._once(caller, call, call.key)
        finally:
            self._keys.release(caller.uid, call.key)

    async def _once(self, caller: Caller, call: Call, key: str) -> object:
        """Perform a call whose key was claimed, and keep what came of it unless it may be tried again."""
        name = call.method.name
        try:
            result = await self._perform(caller, call)
        except MixosError as error:
            if error.retryable or isinstance(error, AuditError):
                await self._keys.forget(caller.uid, key)
            else:
                await self._keys.finish(caller.uid, key, name, call.given, {"error": rpc.error_object(error)})
            raise
        await self._keys.finish(caller.uid, key, name, call.given, {"result": result})
        return result

    async def _perform(self, caller: Caller, call: Call) -> object:
        handler = call.method.handler
        try:
            async with self._audited(caller, call), asyncio.timeout(call.method.seconds) as limit:
                return await cast(Any, handler)(caller, call.params)
        except Exception as error:  # the boundary: logged, and answered without details
            raise _explained(call.method, error, isinstance(error, TimeoutError) and limit.expired()) from error

    async def stream(self, caller: Caller, call: Call) -> AsyncIterator[object]:
        """The items of a stream method. Raises MixosError. Leave it with `aclose`, which ends the handler."""
        handler = cast("StreamHandler[Any, object]", call.method.handler)
        items = handler(caller, call.params)
        try:
            async with self._audited(caller, call):
                async for item in items:
                    yield item
        except Exception as error:  # as above
            raise _explained(call.method, error, False) from error
        finally:
            await cast(Any, items).aclose()
            call.close()

    @contextlib.asynccontextmanager
    async def _audited(self, caller: Caller, call: Call) -> AsyncIterator[None]:
        if not call.method.changes:
            yield
            return
        params = call.params.model_dump(mode="json", by_alias=True, exclude_unset=True)
        number = await self._audit.record("intent", method=call.method.name, params=params, **who(caller))
        outcome, began = "cancelled", time.monotonic()
        try:
            yield
            outcome = "ok"
            if not call.within:
                self._events.publish("api.changed", call.method.name, who=caller.name, origin=caller.origin)
        except MixosError as error:
            outcome = error.reason
            raise
        except TimeoutError:
            outcome = "rpc-timeout"
            raise
        except Exception:
            outcome = "rpc-internal"
            raise
        finally:
            try:
                seconds = round(time.monotonic() - began, 3)
                self._audit.append("outcome", call=number, outcome=outcome, seconds=seconds)
            except AuditError as error:  # the intent stands; the next start says "unknown"
                log("err", error.message)


def who(caller: Caller) -> dict[str, Any]:
    """The caller as the audit keeps it."""
    return {
        "role": caller.role.value,
        "uid": caller.uid,
        "pid": caller.pid,
        "name": caller.name,
        "origin": caller.origin,
    }


def _explained(method: Method, error: Exception, expired: bool) -> MixosError:
    if isinstance(error, MixosError):
        return error
    if expired:
        message = f"{method.name} did not end within {method.seconds:g} s and was stopped"
        return rpc.failure(message, code=rpc.INTERNAL_ERROR, reason="rpc-timeout")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        message = f"{method.name}: {error.strerror}" + (f" ({error.filename})" if error.filename else "")
        hint = "mixctl storage usage shows what fills the disk"
        return rpc.failure(message, code=rpc.INTERNAL_ERROR, reason="storage-full", hint=hint, retryable=True)
    log("err", f"{method.name} failed: {type(error).__name__}: {error}")
    return rpc.failure("internal error, see the log", code=rpc.INTERNAL_ERROR, reason="rpc-internal")
