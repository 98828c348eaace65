"""Bytes of a bundle on demand: who installs asks for ranges, who has the bundle answers. Over a socket, a pipe, or SSH.

    a question  offset, length: big-endian, 64 and 32 bit; length is 1 to MAX_RANGE
    an answer   status, length: big-endian, 8 and 32 bit; then so many bytes: the range, shorter only at the end of the
                bundle (DATA), or why there is none, JSON with `message`, `reason`, `retryable` (FAILED)

One question at a time. Nothing is known of the bytes: they prove themselves by their hashes. After FAILED the next
question may succeed.
"""

from __future__ import annotations

import json
import os
import select
import struct
from collections.abc import Callable

from common.errors import BundleError, MixosError
from common.safe import one_line

MAX_RANGE = 1 << 20
QUESTION, ANSWER = struct.Struct(">QI"), struct.Struct(">BI")
DATA, FAILED = 0, 1
PATIENCE = 180.0  # seconds without a byte after which the other end is gone
_MAX_WORDS = 4096

Read = Callable[[int, int], bytes]  # (offset, length) → that many bytes, fewer only at the end


class Ranges:
    """The end that asks. take, give: descriptors, of which `take` may be `give`."""

    def __init__(self, take: int, give: int, patience: float = PATIENCE) -> None:
        self.descriptors = take, give
        self._patience = patience
        self.fetched = 0  # bytes that were answered

    def read(self, offset: int, length: int) -> bytes:
        """Exactly so many bytes, fewer only at the end of the bundle.

        Raises BundleError: `source-gone` (the other end has closed, or is silent), `source-protocol`; MixosError with
        the reason that the other end gives.
        """
        out = bytearray()
        while len(out) < length:
            wanted = min(length - len(out), MAX_RANGE)
            piece = self._ask(offset + len(out), wanted)
            out += piece
            if len(piece) < wanted:
                break
        return bytes(out)

    def _ask(self, offset: int, length: int) -> bytes:
        try:
            send(self.descriptors[1], QUESTION.pack(offset, length))
            status, size = ANSWER.unpack(receive(self.descriptors[0], ANSWER.size, self._patience))
            if (status == DATA and size <= length) or (status == FAILED and size <= _MAX_WORDS):
                data = receive(self.descriptors[0], size, self._patience)
            else:
                raise BundleError("where the bundle comes from answers with something else", "source-protocol")
        except EOFError as error:
            raise BundleError(f"where the bundle comes from {error}", "source-gone", retryable=True) from error
        except OSError as error:
            raise BundleError("where the bundle comes from is gone", "source-gone", retryable=True) from error
        if status == FAILED:
            raise _told(data)
        self.fetched += size
        return data


def answer(take: int, give: int, read: Read, patience: float | None = None) -> None:
    """Answer questions until the other end closes. `read` is for one question at a time; what it raises is told.

    patience: seconds between two questions, None for any time. Raises OSError, BundleError `source-protocol`.
    """
    while True:
        try:
            asked = receive(take, QUESTION.size, patience)
        except EOFError:
            return
        offset, length = QUESTION.unpack(asked)
        if not 0 < length <= MAX_RANGE:
            raise BundleError(f"a question for {length} bytes", "source-protocol")
        try:
            data = read(offset, length)
        except MixosError as error:
            words = {"message": one_line(error.message, 1000), "reason": error.reason, "retryable": error.retryable}
            text = json.dumps(words).encode()
            send(give, ANSWER.pack(FAILED, len(text)) + text)
        else:
            send(give, ANSWER.pack(DATA, len(data)) + data)


def _told(data: bytes) -> MixosError:
    try:
        words = json.loads(data)
        message, reason = one_line(str(words["message"]), 1000), one_line(str(words["reason"]), 60)
        return MixosError(message, reason=reason, retryable=words["retryable"] is True)
    except (ValueError, TypeError, KeyError, RecursionError):
        return BundleError("where the bundle comes from fails, and does not say why", "source-protocol")


def send(descriptor: int, data: bytes) -> None:
    """Write all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int, length: int, patience: float | None) -> bytes:
    """Exactly so many bytes. Raises EOFError when the other end closes, or gives nothing for so long; OSError."""
    out = bytearray()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while len(out) < length:
        if not poller.poll(None if patience is None else patience * 1000):
            raise EOFError(f"has given nothing for {patience:g} s")
        piece = os.read(descriptor, min(length - len(out), 1 << 16))
        if not piece:
            raise EOFError("has ended")
        out += piece
    return bytes(out)
