"""Parameters of a call → the method's model; and what is wrong with them, by field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from common.errors import RpcError
from common.tomlfile import Strict, plain
from daemon.core import rpc
from daemon.core.method import Method

_KIND = re.compile(r"^constrained-|\[")
USAGE = 2  # the exit code of a wrong command line: that is where wrong parameters come from


def validate(method: Method, params: Mapping[str, Any]) -> Strict:
    """The model. Raises RpcError `rpc-params`, one line per mistake, each naming the field."""
    try:
        model = method.params.model_validate(dict(params))
    except ValidationError as error:
        details = {
            _place(detail): detail for detail in reversed(error.errors()[:20])
        }  # of a union what its first kind says
        inside = {place.partition(".")[0] for place in details if "." in place}  # an item that is wrong is not missing
        told = [detail for place, detail in details.items() if detail["type"] != "too_short" or place not in inside]
        lines = [_explain(detail, method.params) for detail in reversed(told)]
        raise wrong("\n".join(lines), f"{method.name} takes {_usage(method)}") from error
    except RecursionError as error:
        raise wrong("nested too deeply", None) from error
    for name, field in method.params.model_fields.items():  # pydantic looks into texts, not into secret ones
        value = getattr(model, name)
        if isinstance(value, SecretStr) and not _is_unicode(value.get_secret_value()):
            raise wrong(f"{field.alias or name}: half of a surrogate pair is no text", None)
    return model


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def wrong(message: str, hint: str | None) -> RpcError:
    """The error for parameters that do not fit."""
    return rpc.failure(message, code=rpc.INVALID_PARAMS, reason="rpc-params", hint=hint, exit_code=USAGE)


def fields(model: type[Strict]) -> dict[str, bool]:
    """Name on the wire → whether it must be given."""
    return {field.alias or name: field.is_required() for name, field in model.model_fields.items()}


def _usage(method: Method) -> str:
    names = [name if required else f"[{name}]" for name, required in fields(method.params).items()]
    return ", ".join(names) or "no parameters"


def _place(detail: ErrorDetails) -> str:
    """Where it is, without pydantic's names for the kinds of a union."""
    first, *more = detail["loc"] or ("",)
    inner = (part for part in more if isinstance(part, int) or not _KIND.search(part))
    return ".".join(map(str, (first, *inner)))[:200]


def _explain(detail: ErrorDetails, model: type[Strict]) -> str:
    location, name = detail["loc"], _place(detail)
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1])[:64], fields(model), n=1) if len(location) == 1 else []
        return f"unknown parameter '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")
    if detail["type"] == "missing":
        return f"parameter '{name}' is missing"
    if detail["type"] == "string_pattern_mismatch":
        meanings = {field.alias or key: field.description for key, field in model.model_fields.items()}
        return f"{name}: not as it must be ({meanings[str(location[0])]})"
    # The value is not repeated: it may be a secret, and the caller knows it.
    return f"{name or 'parameters'}: {plain(detail)}"
