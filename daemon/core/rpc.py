"""JSON-RPC 2.0 over newline-delimited UTF-8: reading and writing lines, for both ends. No input or output happens here.

One request object per line of at most `MAX_LINE` bytes. Batches are refused (nothing needs them, and they multiply the
work of one line). Anything that is not a request is answered with an error and `fatal`: the server then closes the
connection, since after garbage the start of the next message is a guess.

Descriptors may come with a request (SCM_RIGHTS, unix(7)), sent in one sendmsg(2) with its line, and belong to the line
in which the read that brought them ends. While a call reads them, `transfer.progress` says how far it is:
`{"call": ID, "bytes": …, "size": … or null}`, about once a second.

Streams: the answer is `{"result": {"stream": ID}}`; notifications follow: `stream.item` with
`{"stream": ID, "item": …}`, and at last `stream.end` with `{"stream": ID, "error": null or an error object}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.errors import MixosError, RpcError

MAX_LINE = 64 << 10  # bytes of a request, newline included
MAX_ANSWER = 4 << 20  # bytes of an answer or a stream's item
MAX_DESCRIPTORS = 4  # that come with one request

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
DEVICE_ERROR = -32000  # minus the exit code: the range that the specification leaves to servers

ITEM = "stream.item"
END = "stream.end"
CANCEL = "stream.cancel"
PROGRESS = "transfer.progress"


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


def failure(
    message: str,
    *,
    code: int,
    reason: str,
    hint: str | None = None,
    retryable: bool = False,
    exit_code: int | None = None,
) -> RpcError:
    """An RpcError with all its members. exit_code: what a command line ends with; default that of the class."""
    error = RpcError(message, code=code, reason=reason)
    error.hint = hint
    error.retryable = retryable
    if exit_code is not None:
        error.exit_code = exit_code
    return error


def decode_request(line: bytes) -> Request:
    """Read one line. Raises GarbageError with the JSON-RPC code and a reason."""
    document = _parse(line, MAX_LINE)
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


def strict(text: str) -> Any:
    """A value of JSON as both ends and every door take it (RFC 8259): no NaN, no key twice, no number beyond a double.
    Raises ValueError, RecursionError."""
    return json.loads(
        text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
    )


def _parse(line: bytes, limit: int) -> Any:
    if len(line) > limit:
        raise GarbageError(f"a line has more than {limit} bytes", code=INVALID_REQUEST, reason="rpc-too-long")
    try:
        return strict(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise GarbageError(f"not JSON: {error}", code=PARSE_ERROR, reason="rpc-json") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def encode_result(ident: str | int | None, result: object) -> bytes:
    """The line that answers a call. Raises RpcError `rpc-answer` for what JSON cannot say or is too long."""
    return _line({"jsonrpc": "2.0", "id": ident, "result": result})


def encode_error(ident: str | int | None, error: MixosError) -> bytes:
    """The line that reports a failure; `data.reason` is the stable word."""
    return _line({"jsonrpc": "2.0", "id": ident, "error": error_object(error)})


def error_object(error: MixosError) -> dict[str, object]:
    """JSON-RPC's error object: the class of the error as code, everything else that `mixctl` prints as data."""
    code = error.code if isinstance(error, RpcError) else DEVICE_ERROR - error.exit_code
    data = {
        "reason": error.reason,
        "hint": error.hint,
        "retryable": error.retryable,
        "exit_code": error.exit_code,
    }
    return {"code": code, "message": error.message, "data": data}


def encode_item(stream: int, item: object) -> bytes:
    """The line with one item of a stream. Raises like `encode_result`."""
    return _line({"jsonrpc": "2.0", "method": ITEM, "params": {"stream": stream, "item": item}})


def encode_end(stream: int, error: MixosError | None) -> bytes:
    """The line that ends a stream: `error` None when it came to its end or was cancelled by its reader."""
    params = {"stream": stream, "error": None if error is None else error_object(error)}
    return _line({"jsonrpc": "2.0", "method": END, "params": params})


def encode_progress(ident: str | int, taken: int, size: int | None) -> bytes:
    """The line that says how much of a call's content was read. size: bytes in all, None when that is not known."""
    return _line({"jsonrpc": "2.0", "method": PROGRESS, "params": {"call": ident, "bytes": taken, "size": size}})


def encode_request(method: str, params: Mapping[str, object], ident: int) -> bytes:
    """The line of a call."""
    return _line({"jsonrpc": "2.0", "id": ident, "method": method, "params": dict(params)})


def decode_answer(line: bytes, ident: int) -> Any:
    """The result in an answer. Raises RpcError: the server's error, or `rpc-answer` when this is no answer to us."""
    document = _parse(line, MAX_ANSWER)
    if isinstance(document, dict) and document.get("jsonrpc") == "2.0":
        if isinstance(document.get("error"), dict):
            raise error_in(document["error"])
        if document.get("id") == ident and "result" in document:
            return document["result"]
    raise failure("the answer is not a JSON-RPC 2.0 response", code=INTERNAL_ERROR, reason="rpc-answer")


def decode_progress(line: bytes) -> tuple[int, int | None] | None:
    """(bytes, size) in a line that comes before the answer; None for any other line. Raises RpcError."""
    document = _parse(line, MAX_ANSWER)
    if not isinstance(document, dict) or document.get("method") != PROGRESS:
        return None
    params = document.get("params")
    taken, size = (params.get("bytes"), params.get("size")) if isinstance(params, dict) else (None, None)
    if isinstance(taken, int) and isinstance(size, int | None):
        return taken, size
    raise failure("this is no progress of a transfer", code=INTERNAL_ERROR, reason="rpc-answer")


def decode_stream(line: bytes, stream: object) -> tuple[bool, Any]:
    """A line after the answer: (True, item), or (False, None) at the end. Raises RpcError like `decode_answer`."""
    document = _parse(line, MAX_ANSWER)
    params = document.get("params") if isinstance(document, dict) else None
    if isinstance(params, dict) and params.get("stream") == stream:
        if document.get("method") == ITEM and "item" in params:
            return True, params["item"]
        if document.get("method") == END:
            if isinstance(params.get("error"), dict):
                raise error_in(params["error"])
            return False, None
    raise failure("the line is not part of the stream", code=INTERNAL_ERROR, reason="rpc-answer")


def error_in(error: Mapping[str, Any]) -> RpcError:
    """The server's error as our own; what is missing or of a wrong type gets the class's default."""
    data = error.get("data") if isinstance(error.get("data"), dict) else {}
    assert isinstance(data, dict)
    code, exit_code, hint = error.get("code"), data.get("exit_code"), data.get("hint")
    return failure(
        str(error.get("message")),
        code=code if isinstance(code, int) else 0,
        reason=str(data.get("reason") or "rpc-error"),
        hint=hint if isinstance(hint, str) else None,
        retryable=data.get("retryable") is True,
        exit_code=exit_code if isinstance(exit_code, int) and 0 < exit_code < 126 else None,
    )


def _line(document: Mapping[str, object]) -> bytes:
    """A lone surrogate (from a file name that is no UTF-8) becomes its JSON escape, so every text can be said."""
    try:
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        line = text.encode("utf-8", "backslashreplace") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise failure(f"not to be said in JSON: {error}", code=INTERNAL_ERROR, reason="rpc-answer") from error
    if len(line) > MAX_ANSWER:
        raise failure(f"more than {MAX_ANSWER} bytes", code=INTERNAL_ERROR, reason="rpc-answer-too-long")
    return line
