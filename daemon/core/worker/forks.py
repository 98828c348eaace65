"""mixosd's end of the fork server: ask for processes, hear of their end, beat."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import MixosError
from daemon.linux.log import log

NOTE = Path("/run/mixos/mixosd.ended")  # why the watchdog ended the last mixosd
_MAX_PACKET = 16 << 10
_SECONDS = 20.0  # for the fork server to answer: a fork, and on a slow machine the start of the server


class Forked(NamedTuple):
    """A process of the fork server's. ended: its exit code, or minus the signal that killed it."""

    pid: int
    ended: asyncio.Future[int]


class Forks:
    """The fork server that there is, or the next one.

    control, forked: the socket of one that was forked already, and its process id; watch: whether it is to be mixosd's
    watchdog: then there is always one, else only while there are processes.
    """

    def __init__(
        self, control: socket.socket | None = None, forked: int = 0, *, watch: bool = False, note: Path = NOTE
    ) -> None:
        self._control = control
        self._forked = forked
        self.watch = watch
        self.note = note
        self._server = 0  # process id of one that was executed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._running: dict[int, asyncio.Future[int]] = {}

    async def fork(self, packet: Mapping[str, Any], descriptors: Sequence[int]) -> Forked:
        """A process, see `forkserver`. Raises MixosError `process-fork`."""
        self.attach()
        assert self._control is not None
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            data = json.dumps({"id": number, **packet}).encode()
            socket.send_fds(self._control, [data], descriptors)
            async with asyncio.timeout(_SECONDS):
                answer = await future
        except (OSError, TimeoutError) as error:
            raise _failed(str(error) or "the fork server does not answer") from error
        finally:
            self._waiting.pop(number, None)
        if not isinstance(pid := answer.get("pid"), int):
            raise _failed(str(answer.get("error")))
        return Forked(pid, self._running[pid])

    def attach(self) -> None:
        """Be ready, with a server. Raises OSError when none can be had."""
        if self._loop is not None:
            return
        if self._control is None:
            from daemon.core.worker import forkserver  # it was forked with mixosd, and this is for when it is not there

            self._server, self._control = forkserver.execute(self.watch, self.note)
        self._control.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._control, self._readable)

    async def beat(self) -> None:
        """Until cancelled: let the watchdog see that this loop turns. A server that has died is replaced."""
        from daemon.core.worker.forkserver import TICK

        while True:
            try:
                self.attach()
                assert self._control is not None
                self._control.send(b'{"beat":true}')
            except BlockingIOError:
                pass  # it has some to read
            except OSError as error:
                log("err", f"the fork server: {error}")
            await asyncio.sleep(TICK)

    async def close(self) -> None:
        """Let it end. It ends what is left of its processes."""
        server, self._server = self._server, 0
        self._detach()
        if server:
            await asyncio.to_thread(_wait, server)

    async def rest(self) -> None:
        """A process is no longer needed: end a server that was executed for it and is no watchdog."""
        if self._server and not self.watch and not self._running and not self._waiting:
            await self.close()

    def _readable(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(_MAX_PACKET)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            log("err", "the fork server has ended, and the processes of parts with it")
            server, self._server, self._forked = self._server or self._forked, 0, 0
            self._detach()
            if server:  # its socket closes before it can be waited for
                asyncio.get_running_loop().run_in_executor(None, _wait, server)
            return
        packet = json.loads(data)
        if "ended" in packet:
            if future := self._running.pop(packet["ended"], None):
                future.set_result(packet["status"])
            return
        if isinstance(pid := packet.get("pid"), int):  # before its end can be told
            self._running[pid] = asyncio.get_running_loop().create_future()
        future_answer = self._waiting.get(packet["id"])
        if future_answer is not None and not future_answer.done():
            future_answer.set_result(packet)

    def _detach(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            if self._loop is not None:
                self._loop.remove_reader(control)
            control.close()
        self._loop = None
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result({"error": "the fork server has ended"})
        for ended in self._running.values():
            if not ended.done():
                ended.set_result(-9)
        self._running.clear()


def _failed(why: str) -> MixosError:
    return MixosError(f"no process can be had: {why}", reason="process-fork", retryable=True)


def _wait(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
