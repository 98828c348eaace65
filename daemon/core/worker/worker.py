"""One process of a part, as mixosd sees it: started, asked, watched, started again when it has died.

It is believed nothing beyond the answers that it owes: its frames, calls and events are bounded, and what it may call
and tell is listed. Garbage, silence and floods end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import re
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import daemon.parts
from common.errors import MixosError
from daemon.core.limits import Bucket
from daemon.core.manifest import Manifest, Process
from daemon.core.tasks import background
from daemon.core.worker.channel import Channel, GarbageError, Handler, gone
from daemon.core.worker.forks import Forked
from daemon.linux.become import has_apparmor
from daemon.linux.cgroup import Leaf, Limits, Tree
from daemon.linux.log import log

if TYPE_CHECKING:
    from daemon.core.part import Context

START_SECONDS = 50.0  # less than a part has for its start
LOOK = 30.0  # seconds between looks at whether it still answers
LOOK_SECONDS = 30.0  # that it has for it
STOP_SECONDS = 5.0  # that it has to end by itself
FIRST, LONGEST = 1.0, 60.0  # seconds of the pause before it is started again
_TOPIC = re.compile(r"[a-z][a-z0-9-]{0,30}\.[a-z][a-z0-9-]{0,30}")
EVENT_RATE, EVENT_BURST = 50.0, 500.0  # events of one process, per second and at once
_MAX_STATUS, _MAX_EVENT, _MAX_SUBJECT = 16 << 10, 16 << 10, 256


class Confined(NamedTuple):
    """What the process gets. missing: what is wanted of it and not enforced here."""

    account: tuple[int, int] | None
    profile: str | None
    leaf: Leaf | None
    missing: tuple[str, ...]


class Worker:
    """See the module.

    name: unique among the processes; runs: "module:class"; settings: asked for at each start; files: what it gets;
    handlers: what it may call; tell: gets its events, which are published without it. Events: `process.started`, and
    `process.ended` with `reason` and `again`, seconds until it is started again; subject: its name.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        process: Process,
        runs: str,
        *,
        settings: Callable[[], Any] = lambda: None,
        files: Sequence[socket.socket] = (),
        handlers: Mapping[str, Handler] | None = None,
        tell: Callable[[str, str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.context = context
        self.name = name
        self.process = process
        self.runs = runs
        self.state = "off"  # starting, running, waiting (to be started again)
        self.restarts = 0
        self.problem: str | None = None  # why it was started again
        self.told: Mapping[str, Any] = {}  # its own status
        self._settings = settings
        self._files = files
        self._handlers = handlers or {}
        self._tell = tell or (lambda topic, subject, data: context.events.publish(topic, subject, **data))
        self._pid: int | None = None
        self._missing: tuple[str, ...] = ()
        self._group: Leaf | None = None
        self._channel: Channel | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._stale = asyncio.Event()
        self._events = Bucket(EVENT_RATE, EVENT_BURST)

    @classmethod
    def of(cls, context: Context, manifest: Manifest, name: str = "", **options: Any) -> Worker:
        """The process that a manifest speaks of, by the part's name or another; options: as above."""
        assert manifest.process is not None
        runs = manifest.process.runs
        full = runs if "." in runs.partition(":")[0] else f"daemon.parts.{manifest.name}.{runs}"
        return cls(context, name or manifest.name, manifest.process, full, **options)

    # -- for its part --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start it soon, and keep it."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name=f"process-{self.name}")

    async def start(self) -> None:
        """Start it, and keep it from now on. Raises MixosError when it does not come up at all."""
        self._first = asyncio.get_running_loop().create_future()
        self.begin()
        try:
            await self._first
        except BaseException:
            await self.stop()
            raise
        finally:
            self._first = None

    async def stop(self) -> None:
        """Let it end, and wait until it has."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        self.state = "off"
        leaf, self._group = self._group, None
        if leaf is not None:
            with contextlib.suppress(MixosError):
                leaf.kill()
                leaf.remove()
        await self.context.forks.rest()

    async def call(self, name: str, params: Any = None, seconds: float | None = None) -> Any:
        """What its handler answers. Raises MixosError as that does, `process-gone`, `process-answer`; TimeoutError."""
        channel = self._up()
        try:
            return await channel.call("call", [name, params], seconds)
        finally:
            self._stale.set()

    async def items(self, name: str, params: Any = None) -> AsyncGenerator[Any]:
        """The same for a handler that is a stream."""
        channel = self._up()
        try:
            async with contextlib.aclosing(channel.stream("items", [name, params])) as items:
                async for item in items:
                    yield item
        finally:
            self._stale.set()

    def _up(self) -> Channel:
        if self._channel is None or self.state != "running":
            raise gone(self.name)
        return self._channel

    def say(self, topic: str, subject: str, at: float, data: Mapping[str, Any]) -> None:
        """Let it hear an event, if it is there."""
        if self.state == "running" and self._channel is not None:
            with contextlib.suppress(MixosError):  # what JSON cannot say
                self._channel.tell("event", [topic, subject, at, dict(data)])

    def status(self) -> dict[str, Any]:
        """{state, pid, restarts, problem: why it was started again, not-enforced: of account, apparmor, limits}."""
        return {
            "state": self.state,
            "pid": self._pid,
            "restarts": self.restarts,
            "problem": self.problem,
            "not-enforced": list(self._missing),
        }

    # -- its life ------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        pause, hearing = FIRST, background(f"events-{self.name}", self._listen) if self.process.hears else None
        try:
            while True:
                began = time.monotonic()
                try:
                    problem = await self._live()
                except Exception as error:  # noqa: BLE001  # whatever it said, or we had none of: it is tried again
                    known = error if isinstance(error, MixosError) else _failed(self.name, error)
                    if self._first is not None and not self._first.done():
                        self._first.set_exception(known)
                        return
                    problem = known.reason
                if time.monotonic() - began > LONGEST:
                    pause = FIRST
                self.state, self.problem, self.restarts = "waiting", problem, self.restarts + 1
                log("err", f"the process of {self.name} ended ({problem}): again in {pause:g} s")
                self.context.events.publish("process.ended", self.name, reason=problem, again=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST)
        finally:
            if hearing is not None:
                hearing.cancel()

    async def _live(self) -> str:
        """From its start to its end: why it ended. Raises MixosError when it did not come up."""
        self.state = "starting"
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                forked = await self._fork(theirs)
            except BaseException:
                ours.close()
                raise
        self._pid = forked.pid
        channel = Channel(self.name, ours, self._handlers, self._heard)
        await channel.open()
        serving = asyncio.create_task(channel.run())
        try:
            await self._start(channel, serving)
            watching = asyncio.create_task(self._watch(channel))
            try:
                await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
                if not serving.done():
                    return "process-hung"
                serving.result()
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            return await self._why(forked)
        except GarbageError as error:
            log("err", f"the process of {self.name} said {error}")
            return "process-garbage"
        finally:
            self._channel, self.state = None, "off"
            serving.cancel()
            await self._finish(forked, serving)
            self._pid = None

    async def _start(self, channel: Channel, serving: asyncio.Task[None]) -> None:
        params = {"runs": self.runs, "settings": self._settings(), "folders": list(daemon.parts.__path__)}
        try:
            await channel.call("start", params, START_SECONDS)
        except TimeoutError as error:
            raise MixosError(f"{self.name} was not up in time", reason="process-slow", retryable=True) from error
        except MixosError:
            if serving.done() and not serving.cancelled():
                serving.result()  # garbage
            raise
        self._channel, self.state = channel, "running"
        self._stale.set()
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        self.context.events.publish("process.started", self.name)

    async def _watch(self, channel: Channel) -> None:
        """Until it does not answer any more. Raises GarbageError for a status that is none."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._stale.wait()
            self._stale.clear()
            try:
                found = await channel.call("look", None, LOOK_SECONDS)
                self.told = found if isinstance(found, dict) and len(json.dumps(found)) <= _MAX_STATUS else {}
            except TimeoutError:
                return
            except MixosError as error:
                if error.reason == "process-gone":
                    await asyncio.sleep(LOOK)  # its channel tells
                self.told = {"problem": error.reason}

    async def _why(self, forked: Forked) -> str:
        """In words, for one whose channel has ended."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                status = await asyncio.shield(forked.ended)
        except TimeoutError:
            return "process-hung"
        return f"signal-{-status}" if status < 0 else f"exit-{status}"

    async def _finish(self, forked: Forked, serving: asyncio.Task[None]) -> None:
        """Its end, whatever is done to us meanwhile: by itself, or by SIGKILL."""
        await asyncio.gather(serving, return_exceptions=True)
        try:
            await asyncio.wait((forked.ended,), timeout=STOP_SECONDS)
        finally:
            if not forked.ended.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(forked.pid, signal.SIGKILL)  # its number is not given away before its end is told
        await asyncio.wait((forked.ended,), timeout=STOP_SECONDS)

    # -- what it gets --------------------------------------------------------------------------------------------------

    async def _fork(self, channel: socket.socket) -> Forked:
        confined = await asyncio.to_thread(self._confined)
        self._missing, self._group = confined.missing, confined.leaf
        descriptors = [channel.fileno(), *(one.fileno() for one in self._files)]
        packet: dict[str, Any] = {"name": self.name, "account": confined.account, "profile": confined.profile}
        if confined.leaf is None:
            return await self.context.forks.fork(packet, descriptors)
        procs = os.open(confined.leaf.path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            return await self.context.forks.fork({**packet, "cgroup": True}, [*descriptors, procs])
        finally:
            os.close(procs)

    def _confined(self) -> Confined:
        """On a device all of it, or nothing runs; elsewhere what there is. Raises MixosError `process-account`."""
        missing, account, profile = [], None, None
        if self.context.shared:
            try:
                entry = pwd.getpwnam(self.process.account)
            except KeyError as error:
                message = f"{self.name} must not run without its account {self.process.account}"
                raise MixosError(message, reason="process-account") from error
            account = (entry.pw_uid, entry.pw_gid)
        else:
            missing.append("account")
        if self.context.shared and has_apparmor():
            profile = self.process.profile
        else:
            missing.append("apparmor")
        leaf, failed = self._leaf()
        return Confined(account, profile, leaf, (*missing, *failed))

    def _leaf(self) -> tuple[Leaf | None, tuple[str, ...]]:
        """Its control group, empty, and which limits are not in force."""
        limits = Limits(memory_max=self.process.memory, swap_max=0, pids_max=self.process.tasks)
        try:
            Tree(self.context.cgroups).prepare()
            tree = Tree(self.context.cgroups / ".parts")
            tree.prepare()
            leaf = tree.leaf(self.name)
            if leaf.populated():  # what an earlier mixosd has left
                leaf.kill()
        except MixosError:
            return None, ("memory.max", "pids.max")
        return leaf, tuple(name for name in leaf.limit(limits) if name != "memory.swap.max")

    # -- what it says --------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for event in self.context.events.listen(self.process.hears):
            self.say(*event)

    def _heard(self, name: str, params: Any) -> None:
        """An event of its own, or a new status. Raises GarbageError for what is none, or not one of its own."""
        if name == "changed":
            self._stale.set()
            return
        if name != "event" or not isinstance(params, list) or len(params) != 3:
            raise GarbageError("what is no event")
        topic, subject, data = params
        own = self.process.tells or "\n"
        if not isinstance(topic, str) or not _TOPIC.fullmatch(topic) or not topic.startswith(own):
            raise GarbageError("an event that is not its own")
        if not isinstance(subject, str) or len(subject) > _MAX_SUBJECT or not isinstance(data, dict):
            raise GarbageError("an event that is none")
        if len(json.dumps(data)) > _MAX_EVENT or not self._events.take():
            raise GarbageError("too much of events")
        self._tell(topic, subject, data)


def _failed(name: str, error: Exception) -> MixosError:
    text = f"the process of {name} failed: {type(error).__name__}: {error}"[:1000]
    log("err", text)
    return MixosError(text, reason="process-failed", retryable=True)
