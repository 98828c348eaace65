"""A TPM 2.0, as far as an index of its non-volatile memory needs it: commands over the kernel's resource manager.

Source: TPM 2.0 Library, part 2 (tags, handles, response codes, `TPMA_NV`, `TPM2B_NV_PUBLIC`) and part 3 (the commands
of "Non-volatile Storage"). Authorization is always an empty password. No PCR, session or object is touched.
"""

from __future__ import annotations

import os
import select
import struct
import time
from pathlib import Path
from typing import NamedTuple

from common.errors import TpmError

DEVICE = Path("dev/tpmrm0")
SECONDS = 20.0  # for all that is asked of an open TPM
# TPMA_NV (part 2, 13.4): what of an index may be done, and in which state it is.
AUTHWRITE, WRITELOCKED, WRITEALL, WRITEDEFINE, AUTHREAD = 1 << 2, 1 << 11, 1 << 12, 1 << 13, 1 << 18
NO_DA, WRITTEN = 1 << 25, 1 << 29
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002  # TPM_ST
_OWNER = struct.pack(">I", 0x40000001)  # TPM_RH_OWNER
_SHA256 = 0x000B
_DEFINE, _UNDEFINE, _READ, _PUBLIC = 0x12A, 0x122, 0x14E, 0x169  # TPM_CC_NV_…
_WRITE, _LOCK = 0x137, 0x138
_HEADER = struct.Struct(">HII")  # tag, length of all, command or response code
_PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)  # length; TPM_RS_PW: no nonce, no attributes, empty
_INDEX = struct.Struct(">IHI")  # handle, nameAlg, attributes: begin of TPMS_NV_PUBLIC
_LONGEST = 4096  # bytes of an answer: what the kernel's driver has room for (TPM_BUFSIZE)
_PAUSE = 0.1  # seconds before a command is given again that the TPM had no time for
# Response codes, without the number of a handle, parameter or session (part 2, 6.6).
_RETRY = {0x908: "yielded", 0x90A: "tests itself", 0x920: "writes too often", 0x922: "is busy", 0x923: "cannot write"}
_HANDLE = 0x08B  # there is none of that number
_REASONS = {
    0x08E: ("tpm-auth", "wants another password"),
    0x0A2: ("tpm-auth", "wants another password"),
    0x085: ("tpm-disabled", "has its owner hierarchy switched off"),
    0x101: ("tpm-failed", "is in failure mode"),
    0x120: ("tpm-disabled", "is switched off"),
    0x14B: ("tpm-full", "has no room left"),
    0x921: ("tpm-locked", "is locked out"),
}


class Public(NamedTuple):
    """An index: its attributes (`TPMA_NV`), whether it has a policy, the bytes that it holds."""

    attributes: int
    policy: bool
    size: int


class Tpm:
    """descriptor: of the device, or of a socket that answers like it; seconds: for all that is asked.

    All of it raises TpmError: `tpm-io`, `tpm-timeout`, `tpm-answer`, `tpm-auth`, `tpm-disabled`, `tpm-failed`,
    `tpm-full`, `tpm-locked`, `tpm-refused` for anything else that the TPM says.
    """

    def __init__(self, descriptor: int, seconds: float = SECONDS) -> None:
        self._descriptor, self._end = descriptor, time.monotonic() + seconds

    def public(self, index: int) -> Public | None:
        """What an index is; None: it was not defined."""
        answer = self._answer(_PUBLIC, struct.pack(">I", index), None)
        return None if answer is None else read_public(answer, index)

    def define(self, index: int, attributes: int, size: int) -> None:
        """Make an index, with an empty password and no policy; it holds nothing yet."""
        public = _INDEX.pack(index, _SHA256, attributes) + struct.pack(">HH", 0, size)
        self._asked(_DEFINE, _OWNER, struct.pack(">HH", 0, len(public)) + public)

    def undefine(self, index: int) -> None:
        """Remove an index."""
        self._asked(_UNDEFINE, _OWNER + struct.pack(">I", index), b"")

    def write(self, index: int, data: bytes) -> None:
        """Have an index hold this, from its begin on."""
        self._asked(_WRITE, struct.pack(">II", index, index), struct.pack(">H", len(data)) + data + bytes(2))

    def lock(self, index: int) -> None:
        """Nobody writes to an index any more."""
        self._asked(_LOCK, struct.pack(">II", index, index), b"")

    def read(self, index: int, size: int) -> bytes:
        """What an index holds, from its begin on."""
        return read_buffer(self._asked(_READ, struct.pack(">II", index, index), struct.pack(">HH", size, 0)), size)

    # -- commands ----------------------------------------------------------------------------------------------------

    def _asked(self, command: int, handles: bytes, parameters: bytes) -> bytes:
        answer = self._answer(command, handles, parameters)
        if answer is None:
            raise TpmError("the TPM does not know the index any more", reason="tpm-refused")
        return answer

    def _answer(self, command: int, handles: bytes, parameters: bytes | None) -> bytes | None:
        """The parameters of the answer; None: there is no such handle. parameters: None for a command without
        authorization."""
        body = handles if parameters is None else handles + _PASSWORD + parameters
        tag = _NO_SESSIONS if parameters is None else _SESSIONS
        message = _HEADER.pack(tag, _HEADER.size + len(body), command) + body
        while True:
            answer = self._exchange(message)
            code = response_code(answer)
            if code not in _RETRY:
                break
            if time.monotonic() + _PAUSE > self._end:
                raise TpmError(f"the TPM {_RETRY[code]}", reason="tpm-timeout", retryable=True)
            time.sleep(_PAUSE)
        if code == _HANDLE:
            return None
        if code:
            reason, words = _REASONS.get(code, ("tpm-refused", "refuses"))
            raise TpmError(f"the TPM {words} (command {command:#x}, response {code:#x})", reason=reason)
        return success(answer, authorized=parameters is not None)

    def _exchange(self, message: bytes) -> bytes:
        """The answer to a command, all of it. A device gives it whole, a socket perhaps in pieces."""
        answer = b""
        try:
            if os.write(self._descriptor, message) != len(message):
                raise TpmError("the TPM takes no whole command", reason="tpm-io")
            while (missing := lacking(answer)) > 0:
                wait = max(0.0, self._end - time.monotonic())
                if not select.select([self._descriptor], [], [], wait)[0]:
                    raise TpmError("the TPM does not answer in time", reason="tpm-timeout", retryable=True)
                piece = os.read(self._descriptor, _LONGEST if not answer else missing)
                if not piece:
                    raise TpmError("the TPM ends within an answer", reason="tpm-answer")
                answer += piece
        except OSError as error:
            raise TpmError(f"the TPM cannot be asked: {error.strerror}", reason="tpm-io", retryable=True) from error
        return answer


# -- answers -----------------------------------------------------------------------------------------------------------


def lacking(answer: bytes) -> int:
    """Bytes that are still to come of an answer that begins like this. Raises TpmError `tpm-answer`."""
    if len(answer) < _HEADER.size:
        return _HEADER.size - len(answer)
    size = _HEADER.unpack_from(answer)[1]
    if not max(_HEADER.size, len(answer)) <= size <= _LONGEST:
        raise _odd(f"it is {len(answer)} bytes and says {size}")
    return int(size - len(answer))


def response_code(answer: bytes) -> int:
    """Of a whole answer, 0 when it is one; without what tells which handle, parameter or session was meant (part 2,
    6.6.2: bit 7 is set where there is such a number)."""
    code = int(_HEADER.unpack_from(answer)[2])
    return code & 0xBF if 0x80 & code and code < 0x1000 else code


def success(answer: bytes, *, authorized: bool) -> bytes:
    """The parameters of an answer whose code is 0. Raises TpmError `tpm-answer`."""
    tag, body = _HEADER.unpack_from(answer)[0], answer[_HEADER.size :]
    if tag != (_SESSIONS if authorized else _NO_SESSIONS):
        raise _odd(f"its tag is {tag:#x}")
    if not authorized:
        return body
    size = int.from_bytes(body[:4], "big")
    session = body[4 + size :]
    if len(body) < 4 or len(session) != 5 or session[:2] + session[3:] != bytes(4):
        raise _odd("what follows its parameters is no empty password's")
    return body[4 : 4 + size]


def read_public(parameters: bytes, index: int) -> Public:
    """Of TPM2_NV_ReadPublic. Raises TpmError `tpm-answer`."""
    public, rest = _sized(parameters)
    _, rest = _sized(rest)  # the name, a hash of it
    if len(public) < _INDEX.size or rest:
        raise _odd("it is no index")
    handle, _, attributes = _INDEX.unpack_from(public)
    policy, size = _sized(public[_INDEX.size :])
    if handle != index or len(size) != 2:
        raise _odd("it is another index")
    return Public(attributes, bool(policy), int.from_bytes(size, "big"))


def read_buffer(parameters: bytes, size: int) -> bytes:
    """Of TPM2_NV_Read, which was asked for so many bytes. Raises TpmError `tpm-answer`."""
    data, rest = _sized(parameters)
    if len(data) != size or rest:
        raise _odd(f"it has {len(data)} bytes, not {size}")
    return data


def _sized(data: bytes) -> tuple[bytes, bytes]:
    """A TPM2B, and what follows it."""
    size = int.from_bytes(data[:2], "big")
    if len(data) < 2 + size:
        raise _odd("it is cut")
    return data[2 : 2 + size], data[2 + size :]


def _odd(why: str) -> TpmError:
    return TpmError(f"the TPM answers what makes no sense: {why}", reason="tpm-answer")
