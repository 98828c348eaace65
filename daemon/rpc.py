"""JSON-RPC 2.0 over newline-delimited UTF-8: reading requests, writing answers. No input or output happens here.

One request object per line of at most `MAX_LINE` bytes. Batches are refused (nothing needs them, and they multiply the
work of one line). Anything that is not a request is answered with an error and `fatal`: the server then closes the
connection, since after garbage the start of the next message is a guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon.errors import RpcError

MAX_LINE = 64 << 10  # bytes, newline included

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603


class Request(NamedTuple):
    """A call. `id` None together with `notification` means that no answer is wanted.

    Not a dataclass: importing `dataclasses` (and `inspect` with it) would double the start-up time of `mixctl`.
    """

    method: str
    params: Mapping[str, Any]
    id: str | int | None
    notification: bool


class GarbageError(RpcError):
    """The line is not a request; the connection must be closed after the answer."""


def decode_request(line: bytes) -> Request:
    """Read one line. Raises GarbageError with the JSON-RPC code and a reason."""
    document = _parse(line)
    if not isinstance(document, dict) or document.get("jsonrpc") != "2.0":
        raise GarbageError("not a JSON-RPC 2.0 request object", code=INVALID_REQUEST, reason="rpc-request")
    if unknown := set(document) - {"jsonrpc", "method", "params", "id"}:
        raise GarbageError(f"unknown member {min(unknown)!r:.40}", code=INVALID_REQUEST, reason="rpc-request")
    method, params, ident = document.get("method"), document.get("params", {}), document.get("id")
    if not isinstance(method, str) or not 0 < len(method) <= 64:
        raise GarbageError("method must be a name", code=INVALID_REQUEST, reason="rpc-request")
    if not isinstance(params, dict):
        raise GarbageError("params must be an object", code=INVALID_REQUEST, reason="rpc-request")
    if isinstance(ident, bool) or not isinstance(ident, str | int | None) or len(str(ident)) > 64:
        raise GarbageError("id must be a short text, an integer or null", code=INVALID_REQUEST, reason="rpc-request")
    return Request(method, params, ident, notification="id" not in document)


def _parse(line: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    if len(line) > MAX_LINE:
        raise GarbageError(f"a line has more than {MAX_LINE} bytes", code=INVALID_REQUEST, reason="rpc-too-long")
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise GarbageError(f"not JSON: {error}", code=PARSE_ERROR, reason="rpc-json") from error


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def encode_result(ident: str | int | None, result: object) -> bytes:
    """The line that answers a call."""
    return _line({"jsonrpc": "2.0", "id": ident, "result": result})


def encode_error(ident: str | int | None, error: RpcError) -> bytes:
    """The line that reports a failure; `data.reason` is the stable word."""
    body = {"code": error.code, "message": error.message, "data": {"reason": error.reason}}
    return _line({"jsonrpc": "2.0", "id": ident, "error": body})


def encode_request(method: str, params: Mapping[str, object], ident: int) -> bytes:
    """The line of a call."""
    return _line({"jsonrpc": "2.0", "id": ident, "method": method, "params": dict(params)})


def decode_answer(line: bytes, ident: int) -> Any:
    """The result in an answer. Raises RpcError: the server's error, or `rpc-answer` when this is no answer to us."""
    document = _parse(line)
    if isinstance(document, dict) and document.get("jsonrpc") == "2.0":
        error = document.get("error")
        if isinstance(error, dict):
            data = error.get("data")
            reason = data.get("reason") if isinstance(data, dict) else None
            raise RpcError(str(error.get("message")), code=int(error.get("code", 0)), reason=str(reason or "rpc-error"))
        if document.get("id") == ident and "result" in document:
            return document["result"]
    raise RpcError("the answer is not a JSON-RPC 2.0 response", code=INTERNAL_ERROR, reason="rpc-answer")


def _line(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
