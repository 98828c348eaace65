"""In the process of a part: give up what it must not have, import what runs here, serve the channel.

Imports nothing of the daemon that costs memory: what is imported here is shared by all processes, since the fork server
imports it before it forks them.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from common.errors import MixosError
from daemon.core.events import Bus, Event
from daemon.core.worker.channel import Channel, Handler, gone
from daemon.linux.become import become, rename
from daemon.linux.log import log

TRUSTED = 1e12  # frames per second: mixosd is not slowed down
STOP_SECONDS = 4.0  # less than the fork server's GRACE


class Host:
    """What a class in a process of its own has of mixosd.

    settings: what mixosd gives it; files: descriptors that it is given; events: those that its manifest lets it hear,
    and `publish` goes to mixosd.
    """

    def __init__(self, name: str, settings: Any, files: Sequence[int], channel: Channel) -> None:
        self.name = name
        self.settings = settings
        self.files = files
        self.events: Bus = _Events(channel)
        self._channel = channel

    async def ask(self, name: str, params: Any = None, seconds: float | None = 10.0) -> Any:
        """What mixosd answers. Raises MixosError, TimeoutError."""
        return await self._channel.call(name, params, seconds)

    def changed(self) -> None:
        """The status is another one now: mixosd looks."""
        self._channel.tell("changed", None)


class Task(Protocol):
    """A class that runs in a process of its own; it is made with a `Host`."""

    def handlers(self) -> Mapping[str, Handler]:
        """What mixosd may call."""

    async def start(self) -> None:
        """Take up work."""

    async def stop(self) -> None:
        """End, with what must still be said. At most STOP_SECONDS."""

    def status(self) -> Mapping[str, Any]:
        """A few facts, at once."""


class _Events(Bus):
    """Events of mixosd; what is published here goes there."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def publish(self, topic: str, subject: str, /, **data: Any) -> None:
        self._channel.tell("event", [topic, subject, data])

    def hear(self, event: Sequence[Any]) -> None:
        """Hand an event of mixosd to the listeners here."""
        self.hand(Event(*event))


class _Serving:
    """Serves one task."""

    def __init__(self, name: str, stream: socket.socket, files: Sequence[int]) -> None:
        self.name = name
        self.files = files
        self.task: Task | None = None
        self.host: Host | None = None
        self.channel = Channel(
            "mixosd",
            stream,
            {"start": self.start, "call": self.call, "items": self.items, "look": self.look},
            self.told,
            TRUSTED,
        )

    async def run(self) -> None:
        """Until mixosd closes its end."""
        try:
            await self.channel.open()
            await self.channel.run()
        finally:
            if self.task is not None:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.task.stop()

    async def start(self, params: Any) -> None:
        """Import and begin. params: {"runs", "settings", "folders": where parts are}."""
        import daemon.parts

        daemon.parts.__path__[:] = params["folders"]
        module, _, attribute = params["runs"].partition(":")
        try:
            made = getattr(importlib.import_module(module), attribute)
            self.host = Host(self.name, params["settings"], self.files, self.channel)
            task: Task = made(self.host)
            await task.start()
        except MixosError:
            raise
        except Exception as error:
            log("err", f"{self.name}: {type(error).__name__}: {error}")
            text = f"{type(error).__name__}: {error}"[:1000]
            raise MixosError(text, reason="process-start") from error
        self.task = task

    async def call(self, params: Any) -> object:
        """[name, parameters] → the answer of the task's handler."""
        found: Any = self._handler(params)(params[1])
        return await found

    async def items(self, params: Any) -> AsyncIterator[object]:
        """The same for a stream."""
        found: Any = self._handler(params)(params[1])
        try:
            async for item in found:
                yield item
        finally:
            await found.aclose()

    def _handler(self, params: Any) -> Handler:
        handlers = self.task.handlers() if self.task is not None else {}
        if params[0] not in handlers:
            raise MixosError(f"there is no {params[0]}", reason="process-call")
        return handlers[params[0]]

    async def look(self, _: Any) -> object:
        """Proof of life, and the status."""
        if self.task is None:
            raise gone(self.name)
        return dict(self.task.status())

    def told(self, name: str, params: Any) -> None:
        """What mixosd says: events."""
        if name == "event" and self.host is not None and isinstance(self.host.events, _Events):
            self.host.events.hear(params)


def main(wanted: Mapping[str, Any], descriptors: Sequence[int], parent: int) -> None:
    """Serve until mixosd is gone. wanted: see `forkserver`; descriptors: the channel, then the task's files."""
    account = wanted["account"]
    become((account[0], account[1]) if account else None, wanted["profile"], parent)
    if account:  # what mixosd has there is the console: whoever has it can stop its output, on which mixosd would wait
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
    rename(f"mixosd:{wanted['name']}")
    os.umask(0o077)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # mixosd says when to end
    gc.enable()
    sys.argv[:] = [f"mixosd:{wanted['name']}"]
    with asyncio.Runner() as runner:
        runner.run(_Serving(wanted["name"], socket.socket(fileno=descriptors[0]), descriptors[1:]).run())
