"""Sockets of units, for connections and datagrams: opened by us, kept by the shim, inherited (sd_listen_fds(3)).

Once the shim has a copy, the socket outlives this daemon, and every restart of the service: clients that connect in
between wait in the backlog instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import MixosError
from common.files import folder_of
from common.values import Address
from daemon.linux import foreign
from daemon.parts.service.accounts import group_id, user_id
from daemon.parts.service.unit import Socket


class SocketError(MixosError):
    """A socket cannot be opened: `socket-busy` (someone listens there), `socket-denied`, `socket-refused`."""

    exit_code = 9


def open_socket(wanted: Socket) -> socket.socket:
    """Bind, and listen if it is for connections. A dead socket file in the way is replaced, a live one is not. Raises
    SocketError."""
    where = f"{wanted.inet.host}:{wanted.inet.port}" if wanted.inet else str(wanted.unix)
    kind = socket.SOCK_DGRAM if wanted.udp or wanted.datagram else socket.SOCK_STREAM
    try:
        channel = _inet(wanted, wanted.inet, kind) if wanted.inet else _unix(wanted, kind)
        if kind == socket.SOCK_STREAM:
            channel.listen(wanted.backlog)
    except OSError as error:
        reason = {13: "socket-denied", 98: "socket-busy"}.get(error.errno or 0, "socket-refused")
        raise SocketError(f"socket {wanted.name} ({where}): {error.strerror}", reason=reason) from error
    return channel


def _inet(wanted: Socket, where: Address, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    channel = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:  # a datagram socket would share its port with others
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, wanted.ipv6_only)
        channel.bind(tuple(where))
    except BaseException:
        channel.close()
        raise
    return channel


def _unix(wanted: Socket, kind: socket.SocketKind) -> socket.socket:
    """Bound to its path, or to its abstract name."""
    channel = socket.socket(socket.AF_UNIX, kind)
    try:
        if wanted.path is None:
            channel.bind(str(wanted.unix).replace("@", "\0", 1))
        else:
            _bind(channel, Path(wanted.path), wanted)
    except BaseException:
        channel.close()
        raise
    return channel


def _bind(channel: socket.socket, path: Path, wanted: Socket) -> None:
    """Bound under its own name, which its service sees (getsockname(2)), and so by path; nobody can connect before it
    has its owner and mode and listens. When its folder is a user's own, nothing else is given away."""
    uid, gid = user_id(wanted.owner), group_id(wanted.group)
    with folder_of(path, make=True, settled=True) as folder:
        if _alive(path.name, folder):
            raise OSError(98, "someone listens there already")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        os.fchmod(channel.fileno(), 0)  # what bind(2) makes has the mode of the socket
        channel.bind(os.fspath(path))
        _give(path.name, folder, uid, gid, wanted.mode)


def _give(name: str, folder: int, uid: int, gid: int, mode: int) -> None:
    """Give the socket that was just bound its owner and mode, and nothing that somebody has put in its place: only a
    socket that is being made is ours and has mode 0. Raises FileExistsError."""
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(place)
        if (found.st_mode, found.st_uid) != (stat.S_IFSOCK, os.geteuid()):
            raise FileExistsError(17, "something else is in its place")
        if os.geteuid() == 0:
            os.chown(f"/proc/self/fd/{place}", uid, gid)
        os.chmod(f"/proc/self/fd/{place}", mode)
    finally:
        os.close(place)


def _alive(name: str, folder: int) -> bool:
    """Whether somebody has the socket there, of whatever type. Raises FileExistsError for what is no socket."""
    try:
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return False
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as probe:
        try:
            if not stat.S_ISSOCK(os.fstat(place).st_mode):
                raise FileExistsError(17, "something that is no socket is there")
            probe.connect(f"/proc/self/fd/{place}")
        except ConnectionRefusedError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPROTOTYPE, errno.EPERM):  # it is of another type, or has a peer
                raise
        finally:
            os.close(place)
        return True


async def connection(descriptors: Sequence[int]) -> None:
    """Wait until a client knocks at one of these sockets; nothing is accepted or read, that is the service's part."""
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
        if one.path is not None:
            path = Path(one.path)
            with contextlib.suppress(OSError), folder_of(path) as folder:
                if stat.S_ISSOCK(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.unlink(path.name, dir_fd=folder)


def close(descriptors: Iterable[int]) -> None:
    """Close our copies."""
    for descriptor in descriptors:  # some of them the service may have left with the shim
        foreign.release(descriptor)
