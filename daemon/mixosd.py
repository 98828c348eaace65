"""`mixosd`: the device's daemon. For now it answers questions about the system on one Unix socket.

asyncio, one process, no third-party imports. Every connection has its own limits (line length, idle time, time per
call) and its peer's credentials in the log; the number of connections is bounded. A second instance ends with exit
code 12.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import grp
import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from daemon import power, rpc
from daemon.errors import DeviceError, RpcError
from daemon.log import log

SOCKET = Path("/run/mixos/mixosd.sock")
LOCK = Path("/run/mixos/mixosd.lock")
GROUP = "mixos"

MAX_CONNECTIONS = 32
IDLE_SECONDS = 60.0
CALL_SECONDS = 10.0

Method = Callable[[Mapping[str, Any]], Awaitable[object]]


class BusyError(DeviceError):
    """Another instance holds the lock."""

    exit_code = 12


def lock(path: Path) -> int:
    """Take the instance lock and keep it as long as the returned descriptor is open. Raises BusyError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError("mixosd is running already", reason="already-running") from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def listen(path: Path, group: str) -> socket.socket:
    """The listening socket, mode 0660 for `group`. Only the holder of the lock may call this: it replaces the path."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    old = os.umask(0o177)  # nobody else gets in between bind and chown
    try:
        server.bind(os.fspath(path))
    finally:
        os.umask(old)
    with contextlib.suppress(KeyError):  # without the group the socket stays root's: closed, not open
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    path.chmod(0o660)
    server.listen(MAX_CONNECTIONS)
    return server


class Server:
    """Serves `methods` to the connections of one socket."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = methods
        self.connections = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from accept to close."""
        self.connections += 1
        try:
            if self.connections > MAX_CONNECTIONS:
                error = RpcError("too many connections", code=rpc.INTERNAL_ERROR, reason="rpc-busy")
                writer.write(rpc.encode_error(None, error))
            else:
                await self.converse(reader, writer)
            await asyncio.wait_for(writer.drain(), CALL_SECONDS)
        except (ConnectionError, TimeoutError):
            pass  # the client went away or stopped reading: nothing is owed to it
        finally:
            self.connections -= 1
            writer.close()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer line after line until the client closes, idles too long, or sends garbage."""
        peer = credentials(writer.get_extra_info("socket"))
        while True:
            try:
                line = await asyncio.wait_for(reader.readuntil(b"\n"), IDLE_SECONDS)
            except (asyncio.IncompleteReadError, TimeoutError):
                return
            except asyncio.LimitOverrunError:
                line = bytes(rpc.MAX_LINE + 1)  # the decoder says what is wrong with it
            try:
                request = rpc.decode_request(line)
            except rpc.GarbageError as error:
                log("warning", f"garbage from {peer}: {error.reason}")
                writer.write(rpc.encode_error(None, error))
                return
            answer = await self.answer(request, peer)
            if not request.notification:
                writer.write(answer)
                await asyncio.wait_for(writer.drain(), CALL_SECONDS)

    async def answer(self, request: rpc.Request, peer: str) -> bytes:
        """The line that answers `request`; a defect of ours becomes an internal error, never the daemon's end."""
        log("info", f"{request.method!r} from {peer}")
        try:
            method = self.methods.get(request.method)
            if method is None:
                raise RpcError("there is no such method", code=rpc.METHOD_NOT_FOUND, reason="rpc-method")
            if request.params:
                raise RpcError("this method takes no parameters", code=rpc.INVALID_PARAMS, reason="rpc-params")
            return rpc.encode_result(request.id, await asyncio.wait_for(method(request.params), CALL_SECONDS))
        except RpcError as error:
            return rpc.encode_error(request.id, error)
        except Exception as error:  # noqa: BLE001  # the boundary: logged, and answered without details
            log("err", f"{request.method} failed: {type(error).__name__}: {error}")
            failure = RpcError("internal error, see the log", code=rpc.INTERNAL_ERROR, reason="rpc-internal")
            return rpc.encode_error(request.id, failure)


def credentials(peer: socket.socket) -> str:
    """Who is at the other end, as the kernel recorded it at connect (unix(7), SO_PEERCRED)."""
    pid, uid, gid = struct.unpack("=iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"pid {pid} uid {uid} gid {gid}"


def _ask_init(number: signal.Signals, word: str) -> None:
    """BusyBox init: SIGTERM reboots, SIGUSR2 powers off, both after the shutdown actions of inittab."""
    log("notice", f"asking init for {word}")
    os.kill(1, number)


def device_methods() -> dict[str, Method]:
    """The methods of a device."""

    async def ping(_: Mapping[str, Any]) -> object:
        return "pong"

    async def version(_: Mapping[str, Any]) -> object:
        from daemon.facts import release

        return {"version": release().get("MIXOS_VERSION", "unknown")}

    async def status(_: Mapping[str, Any]) -> object:
        from daemon.facts import status  # loaded with the first question, not at boot

        return status()

    def ask_init(number: signal.Signals, word: str) -> Method:
        async def act(_: Mapping[str, Any]) -> object:
            asyncio.get_running_loop().call_later(0.2, _ask_init, number, word)  # the answer goes first
            return word

        return act

    return {
        "ping": ping,
        "version": version,
        "status": status,
        "reboot": ask_init(signal.SIGTERM, "reboot"),
        "poweroff": ask_init(signal.SIGUSR2, "poweroff"),
    }


async def serve(path: Path, group: str, methods: Mapping[str, Method], stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then close what is open."""
    handler = Server(methods)
    server = await asyncio.start_unix_server(handler.connection, sock=listen(path, group), limit=rpc.MAX_LINE)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # init starts us behind sshd and the network
    log("info", f"listening on {path}")
    async with server:
        await stop.wait()
    path.unlink(missing_ok=True)


async def run(path: Path, group: str) -> None:
    """`serve` with the device's methods until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    buttons = power.watch(lambda: _ask_init(signal.SIGUSR2, "power-off by button"))
    log("info", f"{buttons} power buttons")
    await serve(path, group, device_methods(), stop)


def main() -> int:
    """Entry point; returns the exit code."""
    try:
        SOCKET.parent.mkdir(parents=True, exist_ok=True)
        held = lock(LOCK)
        asyncio.run(run(SOCKET, GROUP))
        os.close(held)
    except DeviceError as error:
        log("err", error.message)
        return error.exit_code
    except OSError as error:
        log("err", f"cannot serve: {error}")
        return 1
    return 0
