"""Run a command in a sandbox: a cgroup for it, its compiled policy, the launcher, and what it says as a stream.

The daemon never runs the command itself, and the launcher never runs it as root. When whoever reads the stream goes
away, the sandbox ends: its keeper is killed, and with it every process inside (daemon/native/sandbox/main.c). It ends
as well when the daemon does, however that happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from common.errors import MixosError, RefusedError
from common.files import write_atomically
from daemon.core.manifest import function
from daemon.core.part import Context
from daemon.core.worker.worker import Worker
from daemon.linux.cgroup import Leaf, Limits, Tree
from daemon.linux.sandbox.compile import compile_policy
from daemon.linux.sandbox.policy import Policy
from daemon.parts.sandbox.manifest import MANIFEST
from daemon.parts.sandbox.sockets import listen

REFUSED = 125  # exit code of the launcher: nothing was run
MAX_RUNNING = 16
MAX_WORDS, MAX_BYTES = 1000, 128 << 10
CHUNK = 16 << 10
GRACE = 5.0  # seconds that everything inside has after the command's end, or after a kill
SETUP = 30.0  # seconds that a sandbox may take to be set up for `facts`; most of all on an emulated machine
MAX_REPORT = 64 << 10


class SandboxError(MixosError):
    """The sandbox could not be set up, so nothing ran; the message is the launcher's own line."""

    exit_code = 13


class Output(NamedTuple):
    """Something that the command wrote: to 1 (standard output) or 2 (error output)."""

    stream: Literal[1, 2]
    data: bytes


class Ended(NamedTuple):
    """The end. code: exit code, 128+n for signal n, 124 for the wall clock. facts: what the launcher found enforced."""

    code: int
    timeout: bool
    facts: dict[str, Any]


class Given(Protocol):
    """What a command finds on its standard input, such as a `daemon.core.transfer.Content`."""

    async def copy(self, to: int) -> None:
        """Write all of it into a pipe of ours that does not block. Raises BrokenPipeError when nobody reads any
        more."""


class Input:
    """The command's standard input: a pipe of ours, never the caller's own descriptor. Through that, a sandbox could
    move an offset that others share, open the file behind it again for writing (proc_pid_fd(5)), or type into a
    terminal (ioctl_tty(2), TIOCSTI)."""

    def __init__(self, given: Given | None) -> None:
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writer, False)
        self._given = given

    def started(self) -> None:
        """The command has its end."""
        os.close(self.reader)
        self.reader = -1

    async def feed(self) -> None:
        """Write all of it, and close. Raises what `Given.copy` does, but nothing when the command does not read."""
        if self._given is not None:
            with contextlib.suppress(BrokenPipeError):
                await self._given.copy(self._writer)
        self.close()

    def close(self) -> None:
        """The command finds the end of its input."""
        for descriptor in (self.reader, self._writer):
            if descriptor >= 0:
                os.close(descriptor)
        self.reader = self._writer = -1


class Place(NamedTuple):
    """Where one sandbox lives outside: compiled policy, cgroup if there is one, cgroup limits that are not enforced."""

    policy: Path
    leaf: Leaf | None
    missing: tuple[str, ...]


class Runner:
    """Starts sandboxes of this daemon and knows those that run."""

    def __init__(
        self, context: Context, tree: Tree | None, *, launcher: Path | None = None, label: str | None = None
    ) -> None:
        """tree: the cgroups' parent; None: no cgroups are made, limits are those of each process. label: what its
        sandboxes are named by outside, nobody else's."""
        self.context = context
        self.launcher = launcher or context.libexec / "sandbox"
        self.tree = tree
        self.folder = context.run / "sandbox"
        self.running: dict[int, int] = {}  # number → process id of the keeper, 0 until there is one
        self._numbers = itertools.count(1)
        self._label = label or str(os.getpid())

    def clear(self) -> None:
        """Remove what an earlier daemon's sandboxes left: they ended with it."""
        for group in self.tree.root.glob("sandbox-*") if self.tree is not None else ():
            self._remove(Leaf(group))
        for group in (self.context.cgroups / ".parts").glob("proxy-*"):
            self._remove(Leaf(group))
        for path in (*self.folder.glob("*.policy"), *self.folder.glob("proxies/*.sock")):
            path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Kill all that run."""
        for pid in filter(None, self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)  # for a keeper: kill everything inside, then tidy up

    @contextlib.asynccontextmanager
    async def place(self, policy: Policy) -> AsyncIterator[Place]:
        """A place for one sandbox, removed afterwards with whatever is left in it. Raises MixosError."""
        name = f"{self._label}-{next(self._numbers)}"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        async with self._way_out(name, policy) as whole:
            with self._prepared(name, whole) as place:
                yield place

    @contextlib.asynccontextmanager
    async def _way_out(self, name: str, policy: Policy) -> AsyncIterator[Policy]:
        """The policy with a filtering proxy of its own, when it wants one."""
        if policy.network != "proxy" or policy.proxy_socket is not None:
            yield policy
            return
        path = self.folder / "proxies" / f"{name}.sock"
        with listen(path) as listener:
            worker = Worker.of(
                self.context,
                MANIFEST,
                f"proxy-{name}",
                settings=lambda: {"name": name, "allow": list(policy.allow)},
                files=[listener],
                handlers={"upstream": self._upstream},
                tell=partial(self._denied, name),
            )
            try:
                await worker.start()
                yield policy.changed({"proxy-socket": str(path)})
            finally:
                await worker.stop()
                path.unlink(missing_ok=True)

    async def _upstream(self, url: Any) -> object:
        """The device's own proxy for a URL. Raises MixosError for a setting that is broken."""
        if not isinstance(url, str) or len(url) > 1000:
            raise RefusedError("this is no URL", reason="sandbox-url")
        return function("proxies-for")(url, etc=self.context.etc)

    def _denied(self, name: str, topic: str, subject: str, data: Mapping[str, Any]) -> None:
        """What a proxy refused is an event; of what its process says, nothing but these facts passes."""
        host, reason = (str(data.get(key, ""))[:255] for key in ("host", "reason"))
        port, more = (found if isinstance(found := data.get(key), int) else 0 for key in ("port", "more"))
        self.context.events.publish(topic, name, host=host, port=port, reason=reason, more=more)

    @contextlib.contextmanager
    def _prepared(self, name: str, policy: Policy) -> Iterator[Place]:
        path = self.folder / f"{name}.policy"
        locks = self.context.run / "uids"
        write_atomically(path, compile_policy(policy, uid_locks=locks), 0o644)  # it holds no secret
        leaf, missing = self._leaf(f"sandbox-{name}", policy)
        try:
            yield Place(path, leaf, missing)
        finally:
            path.unlink(missing_ok=True)
            if leaf is not None:
                self._remove(leaf)

    def _remove(self, leaf: Leaf) -> None:
        with contextlib.suppress(MixosError):
            leaf.kill()
            leaf.remove()

    def _leaf(self, name: str, policy: Policy) -> tuple[Leaf | None, tuple[str, ...]]:
        """The cgroup, and which of the policy's limits are not enforced by it."""
        wanted = policy.limits
        leaf = None
        if self.tree is not None:
            with contextlib.suppress(MixosError):
                self.tree.prepare()
                leaf = self.tree.leaf(name)
        if leaf is None:
            named = {"memory.max": wanted.memory, "pids.max": wanted.pids, "cpu.max": wanted.cpu}
            return None, tuple(key for key, value in named.items() if value is not None)
        cpu = None if wanted.cpu is None else wanted.cpu / 100
        swap = None if wanted.memory is None else 0
        high = None if wanted.memory is None else wanted.memory - wanted.memory // 16
        limits = Limits(memory_max=wanted.memory, memory_high=high, swap_max=swap, pids_max=wanted.pids, cpu=cpu)
        return leaf, leaf.limit(limits)

    async def run(
        self,
        policy: Policy,
        argv: Sequence[str],
        given: Given | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Output | Ended, None]:
        """Run `argv` (looked up in the sandbox's PATH) with `given` as its input: output as it comes, then `Ended`.

        environment: variables of the caller; those pass that the policy names. Raises SandboxError `sandbox-refused`
        when it cannot be set up, RefusedError `sandbox-busy` or `sandbox-command`; what `given` raises when it
        cannot be read: that is no end of the input. Closing the iterator ends the sandbox.
        """
        _check(argv)
        if len(self.running) >= MAX_RUNNING:
            raise RefusedError(
                f"{MAX_RUNNING} sandboxes are running, which is the most", reason="sandbox-busy", retryable=True
            )
        number = next(self._numbers)
        self.running[number] = 0
        try:
            async with self.place(policy) as place:
                passed = {key: text for key, text in (environment or {}).items() if key in policy.pass_environment}
                with contextlib.closing(Input(given)) as stdin:
                    child, report = await self.start(place, ("--", *argv), passed, stdin.reader)
                    stdin.started()
                    self.running[number] = child.pid
                    async with contextlib.aclosing(_run(child, report, stdin)) as items:
                        async for item in items:
                            yield item
                ready = report.steps()["ready"]
                end = report.steps().get("end", {})
                code = await child.wait()
                code = code if code >= 0 else 128 - code  # the keeper itself was killed
                yield Ended(code, bool(end.get("timeout")), ready | {"missing": list(place.missing)})
        finally:
            del self.running[number]

    async def start(
        self,
        place: Place,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdin: int = asyncio.subprocess.PIPE,
    ) -> tuple[asyncio.subprocess.Process, Report]:
        """The launcher in a place, its streams as pipes. No arguments: a dry run. stdin: a descriptor, left open.

        Raises MixosError `program-missing`.
        """
        report = Report()
        cgroup = ("--cgroup", str(place.leaf.path)) if place.leaf is not None else ()
        options = ["--dry"] if not arguments else []
        try:
            child = await asyncio.create_subprocess_exec(
                self.launcher,
                "--attached",
                "--report",
                str(report.writer),
                *cgroup,
                *options,
                place.policy,
                *arguments,
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                pass_fds=(report.writer,),
                start_new_session=True,
            )
        except OSError as error:
            report.close()
            raise MixosError(
                f"{self.launcher} cannot be started: {error.strerror}", reason="program-missing"
            ) from error
        except BaseException:
            report.close()
            raise
        os.close(report.writer)
        report.writer = -1
        return child, report

    async def facts(self, policy: Policy) -> dict[str, Any]:
        """Set a sandbox up, run nothing, and say what the launcher found enforced. Raises like `run`."""
        async with self.place(policy) as place:
            child, report = await self.start(place, (), {})
            try:
                _, said = await asyncio.wait_for(child.communicate(), SETUP)
            except TimeoutError as error:
                raise SandboxError(f"it was not set up within {SETUP:g} s", reason="sandbox-refused") from error
            finally:
                await _end(child, report)
            if "ready" not in report.steps():
                raise SandboxError(_line(said), reason="sandbox-refused")
            return dict(report.steps()["ready"]) | {"missing": list(place.missing)}


def _check(argv: Sequence[str]) -> None:
    """Whether a kernel would take it as a command."""
    try:
        size = sum(len(os.fsencode(word)) for word in argv)
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can say
        raise RefusedError("a word of the command is no text", reason="sandbox-command") from error
    if not argv or len(argv) > MAX_WORDS or size > MAX_BYTES or any("\0" in word for word in argv):
        raise RefusedError("the command is empty or too long", reason="sandbox-command")


class Report:
    """What the launcher says about itself: a pipe with one JSON object a line."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self._data = b""

    def steps(self) -> dict[str, dict[str, Any]]:
        """Its whole lines so far, by their step."""
        with contextlib.suppress(BlockingIOError):
            while self.reader >= 0 and len(self._data) < MAX_REPORT and (chunk := os.read(self.reader, CHUNK)):
                self._data += chunk
        whole = self._data[: self._data.rfind(b"\n") + 1]
        return {str(item.pop("step")): item for item in map(json.loads, whole.splitlines())}

    def close(self) -> None:
        """No more of it, but what was read stays."""
        for descriptor in (self.reader, self.writer):
            if descriptor >= 0:
                os.close(descriptor)
        self.reader = self.writer = -1


async def _run(child: asyncio.subprocess.Process, report: Report, stdin: Input) -> AsyncGenerator[Output, None]:
    """What the command writes, until everything has ended. Raises SandboxError when there never was a command: then all
    that was said is the launcher's reason."""
    said: list[Output] = []
    ready = False
    try:
        async with contextlib.aclosing(_stream(child, stdin)) as items:
            async for item in items:
                ready = ready or "ready" in report.steps()  # before the command's first word
                if ready:
                    yield item
                else:
                    said.append(item)
        await child.wait()
    finally:
        await _end(child, report)
    if "ready" not in report.steps():
        text = b"".join(item.data for item in said if item.stream == 2)
        raise SandboxError(_line(text), reason="sandbox-refused", hint="mixctl sandbox explain says more")
    for item in said:
        yield item


def _line(said: bytes) -> str:
    """The launcher's reason: its last line."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("sandbox: ")[:1000] if lines else "the sandbox ended before it began"


async def _stream(child: asyncio.subprocess.Process, stdin: Input) -> AsyncGenerator[Output, None]:
    """Both outputs as they come, while the input is fed. Nothing is read ahead of who takes the items, so a slow reader
    slows the command."""
    assert child.stdout is not None
    assert child.stderr is not None
    feeding = asyncio.create_task(stdin.feed())
    streams: dict[asyncio.Task[bytes], tuple[Literal[1, 2], asyncio.StreamReader]] = {
        asyncio.create_task(child.stdout.read(CHUNK)): (1, child.stdout),
        asyncio.create_task(child.stderr.read(CHUNK)): (2, child.stderr),
    }
    try:
        while streams:
            waiting = (*streams, *(() if feeding.done() else (feeding,)))
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
            for task in [one for one in streams if one.done()]:
                kind, stream = streams.pop(task)
                if data := task.result():
                    yield Output(kind, data)
                    streams[asyncio.create_task(stream.read(CHUNK))] = (kind, stream)
    finally:
        for left in (feeding, *streams):
            left.cancel()
        await asyncio.gather(feeding, *streams, return_exceptions=True)


async def _end(child: asyncio.subprocess.Process, report: Report) -> None:
    """Make sure that it is over, and that the report is read."""
    try:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGABRT)  # kill everything inside, then tidy up
        try:
            await asyncio.wait_for(_drain(child), GRACE)
        except TimeoutError:
            child.kill()
            await _drain(child)
        report.steps()
    finally:
        report.close()


async def _drain(child: asyncio.subprocess.Process) -> None:
    """Read what nobody wants any more, up to the end: the process counts as ended when its pipes are closed."""
    for stream in (child.stdout, child.stderr):
        while stream is not None and await stream.read(CHUNK):
            continue
    await child.wait()
