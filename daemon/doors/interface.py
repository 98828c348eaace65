"""How methods look on D-Bus: object paths, interfaces, members and their signatures. Nothing here needs a bus.

The part `service` is the object /org/mixos/service with the interface org.mixos.Service1; methods without a dot are on
/org/mixos as org.mixos.Manager1. `service.start` is the member `Start`. Parameters that must be given are arguments, in
the order of the model; the others, and the idempotency key of a changing method, go into a last argument `options`
(a{sv}). Content is the id of a transfer (`transfer.begin`): no descriptors come over the bus. The result's signature is
that of the method's answer (`daemon.doors.values`), whose members the description lists. Streams are not on D-Bus;
events are.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import PurePath
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from daemon.core.answers import answer_schema
from daemon.core.method import Method
from daemon.core.schema import Schema, present, rows
from daemon.core.transfer import Content
from daemon.doors.names import EVENT, NOTHING, camel, interface, path
from daemon.doors.values import signature as signature_of

OPTIONS = "a{sv}"
PROPERTIES = {"Version": "s", "Status": "a{sv}"}  # of Manager1
_PLAIN = ((bool, "b"), (int, "x"), (float, "d"), (str, "s"), (SecretStr, "s"), (PurePath, "s"), (Content, "s"))


class Argument(NamedTuple):
    """The name on the wire, and the D-Bus signature."""

    name: str
    type: str


class Member:
    """A method as a member of its part's interface."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = camel(method.name.partition(".")[2] or method.name)

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """What must be given."""
        fields = self.method.params.model_fields.items()
        return tuple(
            Argument(one.alias or name, signature(one.annotation)) for name, one in fields if one.is_required()
        )

    @cached_property
    def options(self) -> bool:
        """Whether there is anything that may be given."""
        return self.method.changes or len(self.arguments) < len(self.method.params.model_fields)

    @cached_property
    def signature(self) -> str:
        """Of all arguments."""
        return "".join(one.type for one in self.arguments) + (OPTIONS if self.options else "")

    @cached_property
    def answer(self) -> Schema:
        """The schema of the answer."""
        return answer_schema(self.method)

    @property
    def result(self) -> str:
        """The signature of the answer; empty for none."""
        return "" if self.answer == NOTHING else signature_of(self.answer)


def by_part(methods: Iterable[Method]) -> dict[str, dict[str, Member]]:
    """Part → member's name → member. The manager is always there."""
    found: dict[str, dict[str, Member]] = {"manager": {}}
    for method in sorted(methods, key=lambda one: one.name):
        if not method.stream:
            member = Member(method)
            found.setdefault(method.part, {})[member.name] = member
    return found


def signature(annotation: Any) -> str:
    """The D-Bus signature of a Python annotation; a variant for what has none."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return signature(inner[0])
    if origin in (Union, types.UnionType):
        return _same(signature(one) for one in inner if one is not type(None))
    if origin is Literal:
        return _same(signature(type(one)) for one in inner)
    kind = origin or annotation
    if not isinstance(kind, type):
        return "v"
    if issubclass(kind, Mapping | BaseModel):
        return "a{sv}"
    if issubclass(kind, Sequence | Set) and not issubclass(kind, str | bytes):
        return "a" + _same(signature(one) for one in inner if one is not Ellipsis)
    if issubclass(kind, enum.Enum):
        return _same(signature(type(one.value)) for one in kind)
    return next((code for known, code in _PLAIN if issubclass(kind, known)), "v")


def _same(codes: Iterable[str]) -> str:
    """The one signature that all of several types have."""
    found = set(codes)
    return found.pop() if len(found) == 1 else "v"


def describe(parts: Mapping[str, Mapping[str, Member]], place: str) -> str | None:
    """The introspection XML of the object at `place`, or None when there is none (D-Bus specification)."""
    part = next((one for one in parts if path(one) == place), None)
    prefix = place.rstrip("/") + "/"
    children = sorted({path(one)[len(prefix) :].partition("/")[0] for one in parts if path(one).startswith(prefix)})
    if part is None and not children:
        return None
    lines = ["<node>"]
    if part is not None:
        lines += _standard()
        lines += _interface(part, parts[part])
    lines += [f' <node name="{child}"/>' for child in children]
    return "\n".join([*lines, "</node>"]) + "\n"


def _interface(part: str, members: Mapping[str, Member]) -> Iterator[str]:
    yield f' <interface name="{interface(part)}">'
    for member in members.values():
        yield f'  <method name="{member.name}">'
        yield f'   <annotation name="org.gtk.GDBus.DocString" value="{_quoted(member.method.summary)}"/>'
        for name, code in (*member.arguments, *((("options", OPTIONS),) if member.options else ())):
            yield f'   <arg name="{name.replace("-", "_")}" type="{code}" direction="in"/>'
        if member.result:
            yield from _result(member)
        yield "  </method>"
    yield '  <signal name="Event">'
    yield from (f'   <arg name="{name}" type="{signature_of(schema)}"/>' for name, schema in EVENT)
    yield "  </signal>"
    if part == "manager":
        for name, code in PROPERTIES.items():
            yield f'  <property name="{name}" type="{code}" access="read">'
            yield '   <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="false"/>'
            yield "  </property>"
    yield " </interface>"


def _result(member: Member) -> Iterator[str]:
    """The argument that comes back, with a line for each member of the records in it."""
    yield f'   <arg name="result" type="{member.result}" direction="out">'
    members = rows(member.answer)
    if lines := "\n".join(f"{row.path} ({signature_of(present(row.schema))}): {row.meaning}" for row in members):
        yield f'    <annotation name="org.gtk.GDBus.DocString" value="{_quoted(lines)}"/>'
    yield "   </arg>"


def _standard() -> Iterator[str]:
    """The interfaces that every object has."""
    members: dict[str, dict[str, str]] = {
        "Introspectable": {"Introspect": ">s"},
        "Peer": {"Ping": ">"},
        "Properties": {"Get": "ss>v", "GetAll": "s>a{sv}"},
    }
    for name, methods in members.items():
        yield f' <interface name="org.freedesktop.DBus.{name}">'
        for method, codes in methods.items():
            given, _, result = codes.partition(">")
            yield f'  <method name="{method}">'
            yield from (f'   <arg type="{code}" direction="in"/>' for code in given)
            if result:
                yield f'   <arg type="{result}" direction="out"/>'
            yield "  </method>"
        yield " </interface>"


def _quoted(text: str) -> str:
    for one, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\n", "&#10;")):
        text = text.replace(one, entity)
    return text  # xml.sax.saxutils does this as well, and imports an HTTP client for it
