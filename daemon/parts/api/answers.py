"""What the methods `api.*`, `events.*` and `audit.*` answer."""

from typing import Annotated, NotRequired

from typing_extensions import TypedDict

from daemon.core.answers import JsonObject, Seconds, UnixTime

VersionFacts = TypedDict(
    "VersionFacts",
    {
        "version": Annotated[int, "the version of the API that is spoken"],
        "oldest": Annotated[int, "the oldest version whose clients are served"],
        "release": Annotated[str | None, "the version of the system, on a device"],
        "role": Annotated[str, "what the caller is here: admin, operator, viewer or agent"],
        "max-request": Annotated[int, "the longest line that is read, in bytes"],
        "max-answer": Annotated[int, "the longest line that is sent, in bytes"],
    },
)


class MethodFacts(TypedDict):
    """A method."""

    name: Annotated[str, "the part, a dot, and what it does"]
    summary: Annotated[str, "what it does"]
    stable: Annotated[bool, "kept as it is while the API's version stays"]
    stream: Annotated[bool, "items follow until it ends, instead of one answer"]
    changes: Annotated[bool, "it changes something, and is written to the audit log"]
    idempotency: Annotated[bool, "a call may carry an idempotency key"]
    roles: Annotated[list[str], "who may call it"]
    seconds: Annotated[Seconds | None, "the longest that a call takes; null for a stream"]
    params: Annotated[JsonObject, "a JSON schema (2020-12) of the parameters"]


class MethodSchema(TypedDict):
    """JSON schemas (2020-12) of one method."""

    params: Annotated[JsonObject, "of the parameters"]
    answer: Annotated[JsonObject, "of the answer, or of each item of a stream"]
    stream: Annotated[bool, "whether there are items instead of one answer"]


class Event(TypedDict):
    """Something that happened."""

    topic: Annotated[str, "the part, a dot, and what happened"]
    subject: Annotated[str, "the name of what it happened to"]
    at: Annotated[UnixTime, "when"]
    data: Annotated[JsonObject, "details; their names depend on the topic"]


class Entry(TypedDict):
    """An entry of the audit log. Values of more than 4096 bytes are replaced by their length and SHA-256."""

    seq: Annotated[int, "its number; the first is 1"]
    at: Annotated[UnixTime, "when it was written"]
    kind: Annotated[str, "started, intent, outcome, denied, reverted or repaired"]
    prev: Annotated[str, "the hash of the entry before, in hexadecimal"]
    hash: Annotated[str, "SHA-256 over all but this member, in hexadecimal"]
    method: NotRequired[Annotated[str, "what was called"]]
    params: NotRequired[Annotated[JsonObject, "with what, secrets as stars"]]
    role: NotRequired[Annotated[str, "the caller's role"]]
    uid: NotRequired[Annotated[int, "the caller's account"]]
    pid: NotRequired[Annotated[int, "the caller's process; of started: the daemon's"]]
    name: NotRequired[Annotated[str, "the caller's name; of sandbox.network: the sandbox"]]
    origin: NotRequired[Annotated[str, "local, or ssh and the address"]]
    left_out: NotRequired[Annotated[int, "denied ones before it, of this account or of sandboxes, without an entry"]]
    call: NotRequired[Annotated[int, "outcome: the number of its intent"]]
    outcome: NotRequired[Annotated[str, "ok, unknown, cancelled, or the reason of the failure"]]
    seconds: NotRequired[Annotated[Seconds, "outcome: how long the call took"]]
    boot: NotRequired[Annotated[str | None, "started: the kernel's boot id"]]
    bytes: NotRequired[Annotated[int, "repaired: how much of the end was torn and cut off"]]
    sha256: NotRequired[Annotated[str, "repaired: of what was cut off"]]
    host: NotRequired[Annotated[str, "sandbox.network: where to"]]
    port: NotRequired[Annotated[int, "sandbox.network: where to"]]
    reason: NotRequired[Annotated[str, "sandbox.network: why not; reverted: why"]]
    more: NotRequired[Annotated[int, "sandbox.network: denied connections since that have no entry"]]
    change: NotRequired[Annotated[str, "reverted: the number of the change that was on trial"]]
    what: NotRequired[Annotated[str, "reverted: what was tried"]]
    who: NotRequired[Annotated[str, "reverted: who tried it"]]


class Fault(TypedDict):
    """The first fault of the chain."""

    file: Annotated[str, "the file's name"]
    line: Annotated[int, "the first line is 1"]
    what: Annotated[str | None, "what is wrong with it"]


class Check(TypedDict):
    """The result of a walk along the whole chain."""

    ok: Annotated[bool, "the chain is whole, and the noted entry, if one was given, is in it"]
    entries: Annotated[int, "how many there are"]
    first: Annotated[int | None, "number of the oldest entry"]
    last: Annotated[int | None, "number of the newest entry"]
    head: Annotated[str, "hash of the newest entry; 64 zeros without one"]
    complete: Annotated[bool, "no entry was rotated away yet"]
    anchored: Annotated[bool | None, "whether the noted entry is in the chain; null when none was given"]
    problem: Annotated[Fault | None, "the first fault"]
