"""The daemon's side of the shim: starting one, finding one again, telling it what to do, hearing what happened.

A shim (`daemon/native/shim/main.c`, which describes the protocol) is the parent of one service and outlives the daemon.
Every message of it carries its whole state, so that nothing depends on having heard the one before: a daemon that was
killed connects to DIR/control again and knows everything. `load_state` tells the same when the shim itself is dead.

    shim = await Shim.spawn(binary, folder, spec)        # or Shim.connect(folder) to re-adopt
    await shim.start()
    async for event in shim.events(): ...                # ends with Gone, when the shim itself is gone
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from common.files import write_whole
from daemon.linux import foreign, process
from daemon.parts.service.shimstate import (
    EVENTS,
    Empty,
    Event,
    Exited,
    Extend,
    Failed,
    Gone,
    MainPid,
    Phase,
    ProcessId,
    Ready,
    Reloading,
    ShimError,
    Started,
    State,
    Status,
    Stopping,
    Stored,
    Watchdog,
    load_state,
    parse_state,
)
from daemon.parts.service.spec import MAX_FDS, Spec

__all__ = [
    "Empty",
    "Event",
    "Exited",
    "Extend",
    "Failed",
    "Gone",
    "MainPid",
    "Phase",
    "ProcessId",
    "Ready",
    "Reloading",
    "Shim",
    "ShimError",
    "Started",
    "State",
    "Status",
    "Stopping",
    "Stored",
    "Watchdog",
    "load_state",
]

SECONDS = 10.0  # for an answer: a shim waits for nothing but its disk
_MESSAGE = 16 << 10  # no message is longer


class Shim:
    """A connected shim. `state` is always what its last message said.

    One task iterates `events`; any number may call the commands, which are sent one after the other. Each command
    raises ShimError: `shim-gone`, `shim-timeout`, and what it names itself.
    """

    def __init__(self, folder: Path, channel: socket.socket, state: State) -> None:
        """Use `spawn` or `connect`."""
        self.folder = folder
        self.state = state
        self._channel = channel
        self._turn = asyncio.Lock()  # one command is on its way
        self._answer: asyncio.Future[_Answer] | None = None
        self._events: deque[Event] = deque()
        self._there = asyncio.Event()
        self._closed = asyncio.Event()
        asyncio.get_running_loop().add_reader(channel, self._read)

    @classmethod
    async def spawn(cls, binary: Path, folder: Path, spec: Spec) -> Shim:
        """Make `folder` (its parent must exist), write the spec, start a shim there and connect. No service is started.

        The shim detaches itself: it is no child of ours. Raises ShimError `shim-spec`, `shim-running`, `shim-system`.
        """
        _write(folder, spec)
        status, said = await process.launch([str(binary), str(folder)], seconds=SECONDS)
        if status != 0:
            reason, _, text = said.decode("utf-8", "replace").strip().partition(" ")
            raise _error(folder, reason or "system", text or f"status {status}")
        return await cls.connect(folder)

    @classmethod
    async def connect(cls, folder: Path) -> Shim:
        """Connect to the shim of `folder`; an earlier connection of anyone ends. Raises ShimError `shim-gone`."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:  # an address has 108 bytes at most, a path may have more
                channel.connect(f"/proc/self/fd/{directory}/control")
            finally:
                os.close(directory)
            async with asyncio.timeout(SECONDS):
                data = await asyncio.get_running_loop().sock_recv(channel, _MESSAGE)
            if not data:
                raise ConnectionResetError(0, "the connection was closed")
            return cls(folder, channel, parse_state(data.partition(b"\n")[2]))
        except TimeoutError as error:
            channel.close()
            raise _error(folder, "timeout", "no answer") from error
        except OSError as error:
            channel.close()
            raise _error(folder, "gone", str(error.strerror)) from error
        except BaseException:
            channel.close()
            raise

    async def start(self, spec: Spec | None = None) -> None:
        """Start the service; `spec` replaces the one in the folder first.

        Returns when the process was made: Started or Failed follow. Raises `shim-busy`, `shim-spec`, `shim-system`.
        """
        if spec is not None:
            _write(self.folder, spec)
        await self._command("start")

    async def stop(self, grace: float) -> None:
        """Send the stop signal to main (to all that is left, when main has gone); kill all after `grace` seconds.

        Returns at once; Exited and Empty follow (only Empty, when nothing runs). A second call may shorten the time:
        0 kills now.
        """
        await self._command(f"stop {round(min(max(grace, 0), 86400) * 1000)}")

    async def signal(self, number: int, *, everyone: bool = False) -> None:
        """Send a signal to main, or to every process of the service. Raises `shim-idle`."""
        await self._command(f"signal{'-all' if everyone else ''} {number}")

    async def mark_ready(self) -> None:
        """Readiness that the daemon found out itself (tcp, exec): kept in the state, Ready is sent."""
        await self._command("ready")

    async def become_main(self, pid: int) -> None:
        """This process is the main one of a service that daemonises. Raises `shim-stranger` when it is none that the
        service has left in the background."""
        await self._command(f"main {pid}")

    async def refresh(self) -> None:
        """Bring `state` up to date: what is only counted (lines dropped and lost) is not told otherwise."""
        await self._command("state")

    async def rotate(self) -> None:
        """Begin a new log file now."""
        await self._command("rotate")

    async def store(self, name: str, descriptor: int) -> None:
        """Let the shim keep a copy of `descriptor`: each start gets all that is kept, in order, as LISTEN_FDS.

        name: 1..64 printable ASCII without ':' and space; several may have the same. Raises `shim-full`.
        """
        await self._command(f"store {name}", descriptor)

    async def unstore(self, name: str) -> None:
        """Close all that is kept under `name`."""
        await self._command(f"unstore {name}")

    async def fds(self) -> list[tuple[str, int]]:
        """Copies of all that is kept, in order; the caller closes them."""
        answer = await self._command("fds")
        return list(zip(answer.words, answer.fds, strict=True))

    async def quit(self) -> None:
        """End the shim, which removes its control socket and state; returns when it has gone.

        Raises `shim-busy` while processes are left.
        """
        await self._command("quit")
        try:
            async with asyncio.timeout(SECONDS):
                await self._closed.wait()
        except TimeoutError as error:
            raise _error(self.folder, "timeout", "does not end") from error

    async def events(self) -> AsyncIterator[Event]:
        """What happens from the connection on, ending with Gone. Events are kept until they are taken."""
        while True:
            while not self._events:
                self._there.clear()
                await self._there.wait()
            event = self._events.popleft()
            yield event
            if isinstance(event, Gone):
                return

    def close(self) -> None:
        """Close our end, if it is open: the shim and the service go on."""
        if self._channel.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        self._closed.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(_error(self.folder, "gone", "the connection was closed"))
        self._add(Gone())

    async def _command(self, text: str, descriptor: int | None = None) -> _Answer:
        async with self._turn:
            self._answer = asyncio.get_running_loop().create_future()
            try:
                if self._channel.fileno() < 0:
                    raise BrokenPipeError(0, "the connection was closed")
                # The shim had read the last command when it answered: there is room for one.
                socket.send_fds(self._channel, [text.encode()], [] if descriptor is None else [descriptor])
                async with asyncio.timeout(SECONDS):
                    answer = await self._answer
            except TimeoutError as error:
                self.close()  # an answer that came late would be taken for that of the next command
                raise _error(self.folder, "timeout", f"no answer to '{text}'") from error
            except OSError as error:
                raise _error(self.folder, "gone", str(error.strerror)) from error
            except asyncio.CancelledError:
                self.close()
                raise
            finally:
                self._answer = None
        if answer.kind == "error":
            raise _error(self.folder, answer.words[0], " ".join(answer.words[1:]))
        return answer

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._there.set()

    def _read(self) -> None:
        """Take one message off the socket; the loop calls again while there are more."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._channel, _MESSAGE, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            data, fds, flags = b"", [], 0
        try:
            if not data:
                return self.close()
            first, _, state = data.partition(b"\n")
            self.state = parse_state(state)
            kind, *words = first.decode("utf-8", "replace").split(" ")
            if kind in EVENTS:
                self._add(EVENTS[kind](words, self.state))
            elif kind not in ("ok", "error", "fds") or self._answer is None or self._answer.done():
                pass  # nobody waits for it any more
            elif flags & socket.MSG_CTRUNC:  # the limit of open files is reached: the kernel left some out
                self._answer.set_exception(_error(self.folder, "system", "there are too many open files"))
            else:
                self._answer.set_result(_Answer(kind, words, fds))
                fds = []
        except (ShimError, ValueError, IndexError):
            self.close()  # not a shim: treated like one that died
        finally:
            for descriptor in fds:
                foreign.release(descriptor)


@dataclass(frozen=True)
class _Answer:
    kind: str  # "ok", "error" or "fds"
    words: list[str]
    fds: list[int]


def _write(folder: Path, spec: Spec) -> None:
    """DIR/spec; its folder is made. Raises ShimError `shim-system` (a full disk, say), SpecError."""
    data = bytes(spec)
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        write_whole(folder / "spec", data, 0o600)
    except OSError as error:
        raise _error(folder, "system", f"its specification cannot be written: {error.strerror}") from error


def _error(folder: Path, reason: str, text: str) -> ShimError:
    return ShimError(f"shim of {folder.name}: {text}", reason=f"shim-{reason}", retryable=reason in ("gone", "timeout"))
