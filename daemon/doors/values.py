"""Values of JSON as D-Bus has them. Nothing here needs a bus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

DEPTH = 24  # levels; D-Bus allows 64 of containers, and a variant in a dictionary takes three

Wrap = Callable[[str, Any], Any]


def pack(wrap: Wrap, code: str, value: Any, depth: int = 0) -> Any:
    """A value of JSON as D-Bus wants it for a signature; `wrap` makes a variant of signature and value.

    Raises TypeError, ValueError, AttributeError for what does not fit.
    """
    if depth > DEPTH:
        raise ValueError("nested too deeply for D-Bus")
    match code:
        case "s":
            return _text(value if isinstance(value, str) else str(value))
        case "x":
            return int(value)
        case "d":
            return float(value)
        case "b":
            return bool(value)
        case "v":
            kind = code_of(value)
            return wrap(kind, pack(wrap, kind, [] if value is None else value, depth + 1))
        case "a{sv}":
            return {
                _text(str(name)): pack(wrap, "v", inner, depth + 1)
                for name, inner in value.items()
                if inner is not None
            }
    return [pack(wrap, code[1:], inner, depth + 1) for inner in value]


def code_of(value: Any) -> str:
    """The signature for a value in a variant; D-Bus has no null: outside of dictionaries it is an empty `av`."""
    if isinstance(value, bool):
        return "b"
    if isinstance(value, int):
        return "x" if -(1 << 63) <= value < 1 << 63 else "d"
    if isinstance(value, float):
        return "d"
    if isinstance(value, str):
        return "s"
    if isinstance(value, Mapping):
        return "a{sv}"
    if isinstance(value, list | tuple):
        kinds = {code_of(inner) for inner in value}
        return f"a{kinds.pop()}" if kinds in ({"s"}, {"x"}, {"d"}, {"a{sv}"}) else "av"
    if value is None:
        return "av"
    raise TypeError(f"{type(value).__name__} is not JSON")


def _text(value: str) -> str:
    """D-Bus ends the connection for a NUL or a lone surrogate in a text."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
