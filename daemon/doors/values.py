"""Values of JSON as D-Bus has them. Nothing here needs a bus.

An answer's JSON schema decides: texts, numbers and truths are what they are, lists are arrays of what they hold, and an
object with names of any kind is a dictionary of what it holds. A record, whose members differ, is an a{sv}: each member
in a variant of the signature that its schema has. D-Bus has no null: a member that is null is left out, and what can be
null anywhere else is a variant, holding an empty `av` for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

from daemon.core.schema import Schema, present

DEPTH = 24  # levels; D-Bus allows 64 of containers, and a variant in a dictionary takes three
RECORD = "a{sv}"
_CODES = {"integer": "x", "number": "d", "string": "s", "boolean": "b"}
_KINDS = {
    "integer": int,
    "number": int | float,
    "string": str,
    "boolean": bool,
    "array": list | tuple,
    "null": NoneType,
}

Wrap = Callable[[str, Any], Any]


def signature(schema: Schema) -> str:
    """The D-Bus signature of the values that a schema describes; "v" when they have several."""
    if options := schema.get("anyOf"):
        codes = {signature(one) for one in options}
        return codes.pop() if len(codes) == 1 else "v"
    kind = schema.get("type")
    if kind == "array":
        return "a" + signature(schema.get("items", {}))
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"a{{s{signature(inner)}}}" if isinstance(inner, dict) else RECORD
    return _CODES.get(str(kind), "v")


def pack(wrap: Wrap, schema: Schema, value: Any, depth: int = 0) -> Any:
    """A value of JSON as D-Bus wants it for the signature of its schema; `wrap` makes a variant of signature and value.

    Raises TypeError, ValueError, AttributeError for what does not fit.
    """
    if depth > DEPTH:
        raise ValueError("nested too deeply for D-Bus")
    if options := schema.get("anyOf"):
        chosen: Schema = next((one for one in options if _takes(one, value)), {})
        packed = pack(wrap, chosen, value, depth)
        code = signature(chosen)
        return packed if signature(schema) != "v" or code == "v" else wrap(code, packed)
    match schema.get("type"):
        case "string":
            return _text(value if isinstance(value, str) else str(value))
        case "integer":
            return int(value)
        case "number":
            return float(value)
        case "boolean":
            return bool(value)
        case "array":
            return [pack(wrap, schema.get("items", {}), inner, depth + 1) for inner in value]
        case "object":
            return _object(wrap, schema, value, depth + 1)
    found = schema_of(value)
    return wrap(signature(found), pack(wrap, found, [] if value is None else value, depth + 1))


def _object(wrap: Wrap, schema: Schema, value: Any, depth: int) -> dict[str, Any]:
    members, inner = schema.get("properties", {}), schema.get("additionalProperties")
    there = {name: one for name, one in value.items() if one is not None}
    if isinstance(inner, dict):
        return {_text(str(name)): pack(wrap, inner, one, depth) for name, one in there.items()}
    return {_text(str(name)): _variant(wrap, present(members.get(name, {})), one, depth) for name, one in there.items()}


def _variant(wrap: Wrap, schema: Schema, value: Any, depth: int) -> Any:
    code, packed = signature(schema), pack(wrap, schema, value, depth)
    return packed if code == "v" else wrap(code, packed)


def _takes(schema: Schema, value: Any) -> bool:
    """Whether a value is of this one of several schemas."""
    kind = str(schema.get("type"))
    if kind == "object":
        return isinstance(value, Mapping) and set(schema.get("required", ())) <= value.keys()
    if kind in ("integer", "number") and isinstance(value, bool):
        return False
    return kind not in _KINDS or isinstance(value, _KINDS[kind])


def schema_of(value: Any) -> Schema:
    """The schema of a value that has none. A list of one kind of things is an array of them; null an empty list."""
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer" if -(1 << 63) <= value < 1 << 63 else "number"}
    if isinstance(value, float):
        return {"type": "number"}
    if isinstance(value, str):
        return {"type": "string"}
    if isinstance(value, Mapping):
        return {"type": "object"}
    if isinstance(value, list | tuple):
        kinds = {str(schema_of(inner)["type"]) for inner in value}
        return {"type": "array", "items": {"type": kinds.pop()} if len(kinds) == 1 and "array" not in kinds else {}}
    if value is None:
        return {"type": "array"}
    raise TypeError(f"{type(value).__name__} is not JSON")


def _text(value: str) -> str:
    """D-Bus ends the connection for a NUL or a lone surrogate in a text."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
