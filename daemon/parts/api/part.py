"""What the API offers about itself: its version and methods, the events, the audit log."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from common.errors import NotFoundError, RefusedError
from common.tomlfile import Strict
from daemon.core import rpc
from daemon.core.audit import START, Audit, Place
from daemon.core.dispatch import Dispatcher
from daemon.core.method import ADMINS, EVERYONE, PEOPLE, Caller, Method
from daemon.core.part import Context

if TYPE_CHECKING:
    from daemon.parts.api.answers import Check, Entry, Event, MethodFacts, MethodSchema, VersionFacts

Kind = Literal["started", "intent", "outcome", "denied", "reverted", "repaired"]
VERSION = 1  # grows when a stable method changes in a way that an old client notices
OLDEST = 1  # the oldest version whose clients are served


class Version(Strict):
    """Parameters of `api.version`."""

    client: Annotated[int, Field(ge=1, le=1_000_000, description="the version that the client was written for")] = (
        VERSION
    )


class Methods(Strict):
    """Parameters of `api.methods`."""

    name: Annotated[str | None, Field(max_length=64, description="only this method, or this part's")] = None


class Which(Strict):
    """Parameters of `api.schema`."""

    name: Annotated[str | None, Field(max_length=64, description="only this method, or this part's")] = None


class Follow(Strict):
    """Parameters of `events.follow`."""

    prefix: Annotated[str, Field(max_length=64, description="only topics that begin like this")] = ""


class List(Strict):
    """Parameters of `audit.list`."""

    limit: Annotated[int, Field(ge=1, le=1000, description="how many, the newest ones")] = 100
    before: Annotated[int | None, Field(ge=1, description="only entries with a smaller number")] = None
    method: Annotated[str | None, Field(max_length=64, description="only intents of this method")] = None
    uid: Annotated[int | None, Field(ge=0, description="only what this account did")] = None
    kind: Annotated[Kind | None, Field(description="only entries of this kind")] = None


class Verify(Strict):
    """Parameters of `audit.verify`."""

    seq: Annotated[int | None, Field(ge=1, description="number of an entry that was noted earlier")] = None
    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="its hash, 64 digits of 0-9 a-f")] = START


class ApiPart:
    """The methods `api.*`, `events.*` and `audit.*`."""

    name = "api"

    def __init__(self, context: Context, dispatcher: Dispatcher, audit: Audit) -> None:
        self._context = context
        self._dispatcher = dispatcher
        self._audit = audit

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return (
            Method("api.version", "Agree on the version of the API.", self._version, EVERYONE, Version),
            Method("api.methods", "The methods that the caller may use, with the schema of their parameters.",
                   self._methods, EVERYONE, Methods),
            Method("api.schema", "JSON schemas of the parameters and answers of methods that the caller may use.",
                   self._schema, EVERYONE, Which),
            Method("events.follow", "Events from now on.", self._follow, PEOPLE, Follow),
            Method("audit.list", "Entries of the audit log, oldest first.", self._list, ADMINS, List),
            Method("audit.verify", "Check the chain of the audit log, and that a noted entry is in it.",
                   self._verify, ADMINS, Verify, seconds=60.0),
        )  # fmt: skip

    async def start(self) -> None:
        """Nothing to find again."""

    async def stop(self) -> None:
        """Nothing to keep."""

    def status(self) -> Mapping[str, Any]:
        """The number of methods and the end of the audit log."""
        return {"version": VERSION, "methods": len(self._dispatcher.methods), "audit": self._audit.head.seq}

    async def _version(self, caller: Caller, params: Version) -> VersionFacts:
        from daemon.linux.facts import release

        if not OLDEST <= params.client <= VERSION:
            message = f"versions {OLDEST} to {VERSION} are spoken here, not {params.client}"
            raise RefusedError(message, reason="api-version", hint="use the client of this device")
        return {
            "version": VERSION,
            "oldest": OLDEST,
            "release": release().get("MIXOS_VERSION"),
            "role": caller.role.value,
            "max-request": rpc.MAX_LINE,
            "max-answer": rpc.MAX_ANSWER,
        }

    async def _methods(self, caller: Caller, params: Methods) -> list[MethodFacts]:
        return [describe(method) for method in self._chosen(caller, params.name)]

    async def _schema(self, caller: Caller, params: Which) -> dict[str, MethodSchema]:
        return {method.name: schemas(method) for method in self._chosen(caller, params.name)}

    def _chosen(self, caller: Caller, name: str | None) -> list[Method]:
        """The methods that a caller may use, of this name or part, by name. Raises NotFoundError `method-unknown`."""
        allowed = [method for method in self._dispatcher.methods.values() if caller.role in method.roles]
        found = [one for one in allowed if name in (None, one.name, one.part)]
        if not found:
            near = difflib.get_close_matches(
                name or "", {text for one in allowed for text in (one.name, one.part)}, n=1
            )
            hint = f"did you mean {near[0]}?" if near else "mixctl api methods lists them"
            raise NotFoundError(f"there is no method or part {name!r}", reason="method-unknown", hint=hint)
        return sorted(found, key=lambda one: one.name)

    async def _follow(self, caller: Caller, params: Follow) -> AsyncIterator[Event]:
        async for event in self._context.events.listen(params.prefix):
            yield {"topic": event.topic, "subject": event.subject, "at": event.at, "data": dict(event.data)}

    async def _list(self, caller: Caller, params: List) -> list[Entry]:
        wanted = {"method": params.method, "uid": params.uid, "kind": params.kind}
        given = {name: value for name, value in wanted.items() if value is not None}
        return cast("list[Entry]", await self._audit.entries(params.limit, before=params.before, **given))

    async def _verify(self, caller: Caller, params: Verify) -> Check:
        anchor = None if params.seq is None else Place(params.seq, params.hash)
        return cast("Check", await self._audit.verify(anchor))


def describe(method: Method) -> MethodFacts:
    """A method for programs; `params` is a JSON schema (2020-12)."""
    return {
        "name": method.name,
        "summary": method.summary,
        "stable": method.stable,
        "stream": method.stream,
        "changes": method.changes,
        "idempotency": method.takes_key,
        "roles": sorted(role.value for role in method.roles),
        "seconds": None if method.stream else method.seconds,
        "params": method.params.model_json_schema(by_alias=True),
    }


def schemas(method: Method) -> MethodSchema:
    """What a method takes and what it answers, for programs that check or generate code."""
    from daemon.core.answers import answer_schema  # and the types of the part: loaded with the first question

    return {
        "params": method.params.model_json_schema(by_alias=True),
        "answer": answer_schema(method),
        "stream": method.stream,
    }
