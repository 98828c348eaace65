"""Bytes of a bundle on demand: who installs asks for ranges, who has the bundle answers. Over a socket, a pipe, or SSH.

    a question  offset, length: big-endian, 64 and 32 bit; length is 1 to MAX_RANGE, offset at most 2^53
    an answer   status, length: big-endian, 8 and 32 bit; then so many bytes: the range, shorter only at the end of the
                bundle (DATA), or why there is none, JSON with `message`, `reason`, `retryable` (FAILED)

One question at a time. Nothing is known of the bytes: they prove themselves by their hashes. After FAILED the next
question may succeed. Before its answer an end that is still at it (a slow line, a server to be asked again) may say
so, any number of times: status WAIT, length 0.

In the same way whole small files are asked for by name (`Files`): the question is the length of the name and the most
bytes that the file may have, big-endian, 16 and 32 bit, and the name.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Callable
from functools import partial

from common.errors import BundleError, MixosError
from common.safe import one_line

MAX_RANGE = 1 << 20
MAX_OFFSET = 1 << 53
MAX_FILE = 16 << 20
QUESTION, ANSWER, NAME = struct.Struct(">QI"), struct.Struct(">BI"), struct.Struct(">HI")
DATA, FAILED, WAIT = 0, 1, 2
PATIENCE = 180.0  # seconds without a byte after which the other end is gone
LONGEST = 3600.0  # seconds for one answer, however often WAIT is said
_MAX_WORDS = 4096
_MAX_NAME = 255

Read = Callable[[int, int], bytes | bytearray]  # (offset, length) → that many bytes, fewer only at the end
Get = Callable[[str, int], bytes | bytearray]  # (name, most bytes) → the whole file


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
        data = _ask(*self.descriptors, QUESTION.pack(offset, length), length, self._patience)
        self.fetched += len(data)
        return data


class Files:
    """The end that asks for files by name."""

    def __init__(self, take: int, give: int, patience: float = PATIENCE) -> None:
        self._take, self._give, self._patience = take, give, patience

    def get(self, name: str, most: int) -> bytes:
        """A whole file of at most so many bytes. Raises what `Ranges.read` raises; there is none: `source-missing`."""
        text = name.encode()
        return _ask(self._take, self._give, NAME.pack(len(text), most) + text, most, self._patience)


def _ask(take: int, give: int, question: bytes, most: int, patience: float) -> bytes:
    end = time.monotonic() + LONGEST
    try:
        send(give, question)
        status, size = ANSWER.unpack(receive(take, ANSWER.size, patience))
        while (status, size) == (WAIT, 0) and time.monotonic() < end:
            status, size = ANSWER.unpack(receive(take, ANSWER.size, patience))
        if (status == DATA and size <= most) or (status == FAILED and size <= _MAX_WORDS):
            data = receive(take, size, patience)
        else:
            raise BundleError("where the bundle comes from answers with something else", "source-protocol")
    except EOFError as error:
        raise BundleError(f"where the bundle comes from {error}", "source-gone", retryable=True) from error
    except OSError as error:
        raise BundleError("where the bundle comes from is gone", "source-gone", retryable=True) from error
    if status == FAILED:
        raise _told(data)
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
        if not 0 < length <= MAX_RANGE or offset > MAX_OFFSET:
            raise BundleError(f"a question for {length} bytes from {offset} on", "source-protocol")
        _reply(give, partial(read, offset, length))


def answer_files(take: int, give: int, get: Get, patience: float | None = None) -> None:
    """The same for `Files`."""
    while True:
        try:
            length, most = NAME.unpack(receive(take, NAME.size, patience))
            if not 0 < length <= _MAX_NAME or most > MAX_FILE:
                raise BundleError(f"a question for {most} bytes of a name of {length}", "source-protocol")
            name = receive(take, length, patience).decode()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise BundleError("a name that is no text", "source-protocol") from error
        _reply(give, partial(get, name, most))


def wait(give: int) -> None:
    """Say that the answer to the question will take longer. Raises OSError."""
    send(give, ANSWER.pack(WAIT, 0))


def _reply(give: int, find: Callable[[], bytes | bytearray]) -> None:
    try:
        data = find()
    except MixosError as error:
        words = {"message": one_line(error.message, 500), "reason": error.reason, "retryable": error.retryable}
        text = json.dumps(words).encode()
        send(give, ANSWER.pack(FAILED, len(text)) + text)
    else:
        send(give, ANSWER.pack(DATA, len(data)))
        send(give, data)


def _told(data: bytes) -> MixosError:
    try:
        words = json.loads(data)
        message, reason = one_line(str(words["message"]), 1000), one_line(str(words["reason"]), 60)
        return MixosError(message, reason=reason, retryable=words["retryable"] is True)
    except (ValueError, TypeError, KeyError, RecursionError):
        return BundleError("where the bundle comes from fails, and does not say why", "source-protocol")


def send(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int, length: int, patience: float | None) -> bytes:
    """Exactly so many bytes. Raises OSError; EOFError: the other end closes, or gives nothing for so many seconds."""
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
