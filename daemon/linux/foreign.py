"""Descriptors that others hand over: taken out of messages, and closed, without ever waiting for anybody.

The last close(2) of a socket that is set to linger waits for its other end, whether or not it blocks (socket(7)). The
kernel does the same for descriptors that a message brings and a read leaves out, so none may be left out.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct

_ROOM = socket.CMSG_SPACE(253 * array.array("i").itemsize)  # SCM_MAX_FD of Linux: no message brings more
_NO_LINGER = struct.pack("ii", 0, 0)


def receive(stream: socket.socket, count: int, flags: int = 0) -> tuple[bytes, list[int], bool]:
    """(at most `count` bytes, all descriptors that came with them, whether some did not fit into our table of files).
    Raises OSError as recvmsg(2)."""
    data, ancillary, found, _ = stream.recvmsg(count, _ROOM, flags | socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, body in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(body[: len(body) - len(body) % numbers.itemsize])
    return data, numbers.tolist(), bool(found & socket.MSG_CTRUNC)


def release(descriptor: int) -> None:
    """Close it."""
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        with contextlib.suppress(OSError):
            one = socket.socket(fileno=descriptor)
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            finally:
                one.detach()
    os.close(descriptor)


def close(stream: socket.socket) -> None:
    """Close a connection of ours, with all descriptors that were sent and never received."""
    with contextlib.suppress(OSError):
        stream.setblocking(False)
        stream.shutdown(socket.SHUT_RD)  # no more come
        while (found := receive(stream, 64 << 10))[0]:
            for descriptor in found[1]:
                release(descriptor)
    stream.close()
