"""What a program says that works for another one: lines of JSON objects, in which an error is `{"error": …}` with what
`MixosError.as_json` gives. It may run with fewer rights than who listens: nothing that it says is taken for granted."""

from __future__ import annotations

import json
from typing import Any

from common.errors import MixosError
from common.safe import one_line

_MAX_COMMAS = 1 << 16  # in a line: what a line says has no more parts, and hence takes no more memory


def read(line: bytes) -> dict[str, Any]:
    """The object. Raises the MixosError that it tells; ValueError for anything else."""
    if line.count(b",") > _MAX_COMMAS:
        raise ValueError("a line of too many parts")
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise ValueError("an object that nests too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("no object")
    if "error" in found:
        raise _told(found["error"])
    return found


def _told(found: Any) -> MixosError:
    try:
        hint = None if found["hint"] is None else one_line(found["hint"], 300)
        message, reason, status = one_line(found["error"], 1000), one_line(found["reason"], 60), found["exit_code"]
        error = MixosError(message, reason=reason, hint=hint, retryable=found["retryable"] is True)
    except (TypeError, KeyError) as wrong:
        raise ValueError("an error without words") from wrong
    error.exit_code = status if type(status) is int and 0 < status < 0x80 else 1
    return error
