"""The types of answers, and the JSON schema (2020-12) of each.

What a method answers is what its handler's annotation says. Records are `TypedDict` classes in
`daemon/parts/<name>/answers.py`; each member is `Annotated` with a text that says what it means, and its type is one of
those below where the number has a unit. These modules are for type checkers, and imported here when somebody asks for a
type: a handler's annotation is looked up in its own module and in the `answers` beside it. So types cost neither time
nor memory at start.
"""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from typing_extensions import is_typeddict

from daemon.core.schema import Schema

if TYPE_CHECKING:
    from daemon.core.method import Method

JsonObject = dict[str, Any]  # an object whose members are not ours to say; its description tells whose they are
_SCALARS = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (types.NoneType, "null"))


class Unit(NamedTuple):
    """What a number counts."""

    name: str


Bytes = Annotated[int, Unit("bytes")]
Rate = Annotated[float, Unit("bytes per second")]
Percent = Annotated[float, Unit("percent")]
Seconds = Annotated[float, Unit("seconds")]
WholeSeconds = Annotated[int, Unit("seconds")]
UnixTime = Annotated[float, Unit("seconds since 1970")]
Nanoseconds = Annotated[int, Unit("nanoseconds")]
Celsius = Annotated[float, Unit("degrees Celsius")]


def answer(method: Method) -> Any:
    """The type of a method's answer, of a stream's items; `object` for a handler that does not say."""
    handler = inspect.unwrap(getattr(method.handler, "__func__", method.handler))
    said = getattr(handler, "__annotations__", {}).get("return", object)
    if isinstance(said, str):
        package = handler.__module__.rpartition(".")[0]
        beside = f"{package}.answers"
        known = vars(import_module(beside)) if package and find_spec(beside) else {}
        holder = types.SimpleNamespace(__annotations__={"return": said})
        try:
            said = get_type_hints(holder, getattr(handler, "__globals__", {}), known, include_extras=True)["return"]
        except NameError:  # one that is made inside of a function
            return object
    return get_args(said)[0] if get_origin(said) is AsyncIterator else said


def answer_schema(method: Method) -> Schema:
    """The schema of a method's answer, of a stream's items. Numbers with a unit have it as the member `unit`."""
    return schema(answer(method))


def schema(kind: Any) -> Schema:
    """The JSON schema of a type; {} when it can be anything. Raises TypeError for what is not JSON."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(schema(inner[0]), inner[1:])
    if origin in (Required, NotRequired):
        return schema(inner[0])
    if kind in (Any, object):
        return {}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema(one) for one in inner]}
    if origin is Literal:
        return _enumeration(inner)
    if is_typeddict(kind):
        return _record(kind)
    found = origin or kind
    if isinstance(found, type) and issubclass(found, enum.Enum):
        return _enumeration([one.value for one in found])
    if isinstance(found, type) and issubclass(found, Mapping):
        return {"type": "object", "additionalProperties": (inner and schema(inner[1])) or True}
    if isinstance(found, type) and issubclass(found, Sequence) and not issubclass(found, str | bytes):
        kinds = set(inner) - {Ellipsis}
        return {"type": "array", **({"items": schema(kinds.pop())} if len(kinds) == 1 else {})}
    if kind is None:
        return {"type": "null"}
    for scalar, name in _SCALARS:
        if isinstance(kind, type) and issubclass(kind, scalar):
            return {"type": name}
    raise TypeError(f"{kind!r} is not JSON")


def _annotated(found: Schema, notes: Sequence[object]) -> Schema:
    texts = [note for note in notes if isinstance(note, str)]
    units = [note.name for note in notes if isinstance(note, Unit)]
    if texts:
        found = {**found, "description": "; ".join(texts)}
    return {**found, "unit": units[0]} if units else found


def _enumeration(values: Sequence[object]) -> Schema:
    names = {schema(type(value))["type"] for value in values}
    return {**({"type": names.pop()} if len(names) == 1 else {}), "enum": list(values)}


def _record(kind: Any) -> Schema:
    members = {name: schema(one) for name, one in get_type_hints(kind, include_extras=True).items()}
    said = vars(kind).get("__doc__")
    return {
        "type": "object",
        "title": kind.__name__,
        **({"description": inspect.cleandoc(said)} if said else {}),
        "properties": members,
        "required": [name for name in members if name in kind.__required_keys__],
        "additionalProperties": False,
    }
