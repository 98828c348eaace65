"""Talking netlink to the kernel: messages and attributes as bytes, and one socket that asks and collects the answer.

Format: netlink(7), linux/netlink.h, linux/genetlink.h (Documentation/userspace-api/netlink/intro.rst). All integers are
in host order. A library for this exists; importing it costs 14 MiB, a third of what the daemon may use, so the few
hundred lines that the device needs are here. `rtnl` and `wireguard` beside it say what the messages mean.

The kernel answers within the call that sends the request, so the socket blocks; its time-out is for defects only.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from common.errors import MixosError

ROUTE = 0  # NETLINK_ROUTE
GENERIC = 16  # NETLINK_GENERIC

REQUEST, MULTI, ACK = 0x1, 0x2, 0x4  # NLM_F_*
DUMP_INTERRUPTED = 0x10
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
DUMP = 0x300

NESTED = 0x8000  # NLA_F_NESTED
_TYPE_MASK = 0x3FFF

MAX_ANSWER = 32 << 20  # bytes of one answer, all its parts: some 100,000 routes
_RECEIVE = 256 << 10
_SECONDS = 5
_DUMP_TRIES = 5

_ERROR, _DONE = 2, 3  # NLMSG_*
_ACK_TLVS = 0x200  # NLM_F_ACK_TLVS
_CAPPED = 0x100  # NLM_F_CAPPED
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

# Generic netlink: header (command, version, reserved) and the controller that knows families by name.
GENERIC_HEADER = struct.Struct("=BBH")
_CONTROLLER, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2


class NetlinkError(MixosError):
    """The kernel refused (`netlink-refused`, with `errno`), or said what is not netlink (`netlink-garbage`)."""

    exit_code = 8

    def __init__(self, message: str, *, reason: str, number: int = 0) -> None:
        super().__init__(message, reason=reason)
        self.errno = number


class Message(NamedTuple):
    """One message: its type, flags, sequence number, and what follows the header."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes. `kind` may carry NESTED."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, parts: Iterable[bytes]) -> bytes:
    """An attribute that holds attributes; at most 65,531 bytes of them, since the length has 16 bits."""
    return attribute(kind | NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """A text with its final NUL."""
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """An integer of 8 bits."""
    return attribute(kind, struct.pack("=B", value))


def u16(kind: int, value: int) -> bytes:
    """An integer of 16 bits."""
    return attribute(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    """An integer of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data`, in order, flags taken off their types. Raises NetlinkError `netlink-garbage`."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            raise garbage(f"an attribute of {length} bytes where {len(data) - offset} are left")
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def number(data: bytes) -> int:
    """An unsigned integer of 8, 16, 32 or 64 bits. Raises NetlinkError `netlink-garbage` for another size."""
    if len(data) not in (1, 2, 4, 8):
        raise garbage(f"an integer of {len(data)} bytes")
    return int.from_bytes(data, "little" if struct.pack("=H", 1)[0] else "big")


def string(data: bytes) -> str:
    """A text up to its NUL; bytes that are not UTF-8 are kept apart (surrogates), names of interfaces may have them."""
    return os.fsdecode(data.partition(b"\0")[0])


def garbage(what: str) -> NetlinkError:
    """The error for bytes that the kernel would not send."""
    return NetlinkError(f"netlink: {what}", reason="netlink-garbage")


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. Raises NetlinkError `netlink-garbage`."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise garbage(f"a message of {length} bytes where {len(data) - offset} are left")
        yield Message(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


def encode(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """A message as bytes, for the kernel (port 0)."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def failure(message: Message) -> NetlinkError | None:
    """The error in an NLMSG_ERROR; None when it is an acknowledgement. Says what the kernel says, when it says it."""
    if len(message.payload) < _ERRNO.size + _HEADER.size:
        raise garbage("an error without the header of its request")
    code = -_ERRNO.unpack_from(message.payload)[0]
    if code == 0:
        return None
    words = os.strerror(code) if 0 < code < 4096 else f"error {code}"
    if message.flags & _ACK_TLVS:
        length = _HEADER.unpack_from(message.payload, _ERRNO.size)[0]
        skip = _ERRNO.size + (_HEADER.size if message.flags & _CAPPED else (length + 3) & ~3)
        said = [string(data) for kind, data in attributes(message.payload[skip:]) if kind == 1]  # NLMSGERR_ATTR_MSG
        words = f"{words} ({said[0]})" if said else words
    return NetlinkError(f"the kernel refused: {words}", reason="netlink-refused", number=code)


def _check_end(message: Message) -> None:
    """Raise what a dump ended with, if that is an error: what came before is not everything (netlink_dump in
    net/netlink/af_netlink.c puts it into NLMSG_DONE)."""
    code = -_ERRNO.unpack_from(message.payload)[0] if len(message.payload) >= _ERRNO.size else 0
    if code > 0:
        raise NetlinkError(
            f"the kernel broke off its answer: {os.strerror(code)}", reason="netlink-refused", number=code
        )


class Socket:
    """A netlink socket of one protocol, in the network namespace of the thread that makes it.

    Not for several threads. Raises NetlinkError `netlink-unavailable` when the kernel has no such protocol.
    """

    def __init__(self, protocol: int, groups: int = 0) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise NetlinkError(f"netlink: {error.strerror}", reason="netlink-unavailable") from error
        self._socket.settimeout(0 if groups else _SECONDS)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.bind((0, groups))
        self.overrun = False  # by news: some were lost, until somebody sets it back
        self._sequence = 0
        self._families: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back; safe to call twice."""
        self._socket.close()

    def fileno(self) -> int:
        """For an event loop that waits for what the `groups` of the socket tell."""
        return self._socket.fileno()

    def news(self) -> list[Message]:
        """What arrived by itself since the last call, without waiting; what overran the buffer is lost (`overrun`)."""
        found: list[Message] = []
        while True:
            try:
                data, _, _, sender = self._socket.recvmsg(_RECEIVE)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NetlinkError(f"netlink: {error.strerror}", reason="netlink-refused") from error
                self.overrun = True
                continue
            if sender[0] == 0:
                found += messages(data)

    def ask(self, kind: int, payload: bytes, flags: int = 0) -> list[Message]:
        """Send one request, wait for its acknowledgement; what the kernel answered before it.

        Raises NetlinkError `netlink-refused`, `netlink-garbage`, `netlink-timeout`.
        """
        return self._exchange(kind, REQUEST | ACK | flags, payload)

    def dump(self, kind: int, payload: bytes) -> list[Message]:
        """Everything of a kind. Asked again when the kernel's list changed meanwhile. Raises like `ask`."""
        for _ in range(_DUMP_TRIES):
            found = self._exchange(kind, REQUEST | DUMP, payload)
            if not any(message.flags & DUMP_INTERRUPTED for message in found):
                break
        return found

    def family(self, name: str) -> int:
        """The number of a generic netlink family. Raises NetlinkError `netlink-family` when the kernel has none."""
        if name not in self._families:
            request = GENERIC_HEADER.pack(_GET_FAMILY, 1, 0) + text(_FAMILY_NAME, name)
            try:
                answer = self.ask(_CONTROLLER, request)
            except NetlinkError as error:
                if error.errno == errno.ENOENT:
                    raise NetlinkError(
                        f"this kernel has no {name}", reason="netlink-family", number=error.errno
                    ) from error
                raise
            for message in answer:
                for kind, data in attributes(message.payload[GENERIC_HEADER.size :]):
                    if kind == _FAMILY_ID:
                        self._families[name] = number(data)
        return self._families[name]

    def _exchange(self, kind: int, flags: int, payload: bytes) -> list[Message]:
        self._sequence += 1
        try:
            self._socket.sendto(encode(kind, flags, self._sequence, payload), (0, 0))
            return self._collect(bool(flags & DUMP))
        except TimeoutError as error:
            raise NetlinkError(f"the kernel did not answer within {_SECONDS} s", reason="netlink-timeout") from error
        except OSError as error:
            raise NetlinkError(
                f"netlink: {error.strerror}", reason="netlink-refused", number=error.errno or 0
            ) from error

    def _collect(self, dump: bool) -> list[Message]:
        """Messages up to the end mark: NLMSG_DONE of a dump, NLMSG_ERROR otherwise. Older answers are skipped."""
        found: list[Message] = []
        size = 0
        while True:
            data, _, flags, sender = self._socket.recvmsg(_RECEIVE)
            size += len(data)
            if flags & socket.MSG_TRUNC or size > MAX_ANSWER:
                raise garbage("the answer is too long")
            if sender[0] != 0:
                continue  # another process may send to this port; only the kernel is asked
            for message in messages(data):
                if message.sequence != self._sequence:
                    continue
                if message.kind == _ERROR:
                    error = failure(message)
                    if error is not None:
                        raise error
                    return found
                if message.kind == _DONE:
                    _check_end(message)
                    return found
                found.append(message)
                if dump and not message.flags & MULTI:
                    return found
