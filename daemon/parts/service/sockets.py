"""Listening sockets of units: opened by us, kept by the shim, inherited by the service (sd_listen_fds(3)).

Once the shim has a copy, the socket outlives this daemon, and every restart of the service: clients that connect in
between wait in the backlog instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import MixosError
from daemon.linux import foreign
from daemon.parts.service.accounts import group_id, user_id
from daemon.parts.service.unit import Socket


class SocketError(MixosError):
    """A socket cannot be opened: `socket-busy` (someone listens there), `socket-denied`, `socket-refused`."""

    exit_code = 9


def open_socket(wanted: Socket) -> socket.socket:
    """Bind and listen. A dead socket file in the way is replaced, a live one is not. Raises SocketError."""
    where = f"{wanted.tcp.host}:{wanted.tcp.port}" if wanted.tcp else str(wanted.unix)
    try:
        channel = _tcp(wanted) if wanted.tcp else _unix(wanted)
        channel.listen(wanted.backlog)
    except OSError as error:
        reason = {13: "socket-denied", 98: "socket-busy"}.get(error.errno or 0, "socket-refused")
        raise SocketError(f"socket {wanted.name} ({where}): {error.strerror}", reason=reason) from error
    return channel


def _tcp(wanted: Socket) -> socket.socket:
    assert wanted.tcp is not None
    family = socket.AF_INET6 if ":" in wanted.tcp.host else socket.AF_INET
    channel = socket.socket(family, socket.SOCK_STREAM)
    try:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        channel.bind(tuple(wanted.tcp))
    except BaseException:
        channel.close()
        raise
    return channel


def _unix(wanted: Socket) -> socket.socket:
    """Bound under its own name, which its service sees (getsockname(2)), with its mode from the first moment; until it
    listens, nobody can connect."""
    assert wanted.unix is not None
    path = Path(wanted.unix)
    if _alive(path):
        raise OSError(98, "someone listens there already")
    uid, gid = user_id(wanted.owner), group_id(wanted.group)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.unlink(missing_ok=True)
        old = os.umask(0o777 & ~wanted.mode)
        try:
            channel.bind(os.fspath(path))
        finally:
            os.umask(old)
        if os.geteuid() == 0:
            _give(path, uid, gid)
    except BaseException:
        channel.close()
        raise
    return channel


def _give(path: Path, uid: int, gid: int) -> None:
    """Change the owner of a socket, and of nothing that somebody has put in its place."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise FileExistsError(17, "something that is no socket is there")
        os.chown(f"/proc/self/fd/{descriptor}", uid, gid)
    finally:
        os.close(descriptor)


def _alive(path: Path) -> bool:
    """Whether somebody accepts connections there. Raises FileExistsError for what is no socket."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(17, "something that is no socket is there")
        try:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its backlog is full
        return True
    return False


async def connection(descriptors: Sequence[int]) -> None:
    """Wait until a client knocks at one of these listening sockets; it is not accepted, that is the service's part."""
    loop = asyncio.get_running_loop()
    knocked = asyncio.Event()
    try:
        for descriptor in descriptors:
            loop.add_reader(descriptor, knocked.set)
        await knocked.wait()
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)


def remove_files(sockets: Sequence[Socket]) -> None:
    """Remove the files of Unix sockets that are closed for good."""
    for one in sockets:
        if one.unix is not None:
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.lstat(one.unix).st_mode):
                    Path(one.unix).unlink()


def close(descriptors: Iterable[int]) -> None:
    """Close our copies."""
    for descriptor in descriptors:  # some of them the service may have left with the shim
        foreign.release(descriptor)
