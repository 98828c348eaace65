"""Run a command in a sandbox: a cgroup for it, its compiled policy, the launcher, and what it says as a stream.

The daemon never runs the command itself, and the launcher never runs it as root. When whoever reads the stream goes
away, the sandbox ends: its keeper is killed, and with it every process inside (daemon/native/sandbox.c).
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
from typing import Any, Literal, NamedTuple

from daemon.errors import DeviceError, RefusedError
from daemon.files import write_atomically
from daemon.part import Context
from daemon.sandbox.compile import compile_policy
from daemon.sandbox.policy import Policy
from daemon.supervise.cgroup import Leaf, Limits, Tree

LAUNCHER = Path("/usr/libexec/mixos/sandbox")
REFUSED = 125  # exit code of the launcher: nothing was run
MAX_RUNNING = 16
MAX_WORDS, MAX_BYTES = 1000, 128 << 10
CHUNK = 16 << 10
GRACE = 5.0  # seconds that everything inside has after the command's end, or after a kill


class SandboxError(DeviceError):
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


class Place(NamedTuple):
    """Where one sandbox lives outside: compiled policy, cgroup if there is one, cgroup limits that are not enforced."""

    policy: Path
    leaf: Leaf | None
    missing: tuple[str, ...]


class Runner:
    """Starts sandboxes of this daemon and knows those that run."""

    def __init__(self, context: Context, tree: Tree | None, *, launcher: Path = LAUNCHER) -> None:
        """tree: the cgroups' parent; None: no cgroups are made, limits are those of each process."""
        self.context = context
        self.launcher = launcher
        self.tree = tree
        self.folder = context.run / "sandbox"
        self.running: set[int] = set()  # process ids of keepers
        self._numbers = itertools.count(1)

    def clear(self) -> None:
        """Remove what an earlier daemon's sandboxes left: they ended with their readers."""
        for path in (*self.folder.glob("*.policy"), *self.folder.glob("proxies/*.sock")):
            path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Kill all that run."""
        for pid in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)  # for a keeper: kill everything inside, then tidy up

    @contextlib.asynccontextmanager
    async def place(self, policy: Policy) -> AsyncIterator[Place]:
        """A place for one sandbox, removed afterwards with whatever is left in it. Raises DeviceError."""
        name = f"{os.getpid()}-{next(self._numbers)}"
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
        from daemon.net.proxy import proxies_for
        from daemon.sandbox.proxy import Proxy, serving
        from daemon.sandbox.proxy_rules import Rules

        upstream = partial(proxies_for, etc=self.context.etc)
        proxy = Proxy(name, Rules(policy.allow), self.context.events, upstream=upstream)
        async with serving(self.folder / "proxies", proxy) as path:
            yield policy.model_copy(update={"proxy_socket": str(path)})

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
                with contextlib.suppress(DeviceError):
                    leaf.kill()
                    leaf.remove()

    def _leaf(self, name: str, policy: Policy) -> tuple[Leaf | None, tuple[str, ...]]:
        """The cgroup, and which of the policy's limits are not enforced by it."""
        wanted = policy.limits
        leaf = None
        if self.tree is not None:
            with contextlib.suppress(DeviceError):
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
        self, policy: Policy, argv: Sequence[str], given: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Output | Ended, None]:
        """Run `argv` (looked up in the sandbox's PATH) with `given` as its input: output as it comes, then `Ended`.

        environment: variables of the caller; those pass that the policy names. Raises SandboxError `sandbox-refused`
        when it cannot be set up, RefusedError `sandbox-busy` or `sandbox-command`. Closing the iterator ends the
        sandbox.
        """
        if not argv or len(argv) > MAX_WORDS or sum(map(len, argv)) > MAX_BYTES or any("\0" in word for word in argv):
            raise RefusedError("the command is empty or too long", reason="sandbox-command")
        if len(self.running) >= MAX_RUNNING:
            raise RefusedError("too many sandboxes are running", reason="sandbox-busy")
        async with self.place(policy) as place:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            try:
                passed = {key: text for key, text in (environment or {}).items() if key in policy.pass_environment}
                child = await self.start(place, ("--", *argv), writer, passed)
            finally:
                os.close(writer)
            self.running.add(child.pid)
            said = b""
            try:
                async with contextlib.aclosing(_stream(child, given)) as items:
                    async for item in items:
                        said = item.data if item.stream == 2 else said
                        yield item
                code = await child.wait()
            finally:
                self.running.discard(child.pid)
                facts = await _end(child, reader)
            ready, end = facts.get("ready"), facts.get("end", {})
            if ready is None:
                raise SandboxError(_line(said), reason="sandbox-refused", hint="mixctl sandbox explain says more")
            yield Ended(code, bool(end.get("timeout")), ready | {"missing": list(place.missing)})

    async def start(
        self, place: Place, arguments: Sequence[str], report: int, environment: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        """The launcher in a place, its streams as pipes. Raises DeviceError `program-missing`."""
        cgroup = ("--cgroup", str(place.leaf.path)) if place.leaf is not None else ()
        options = ["--dry"] if not arguments else []
        try:
            return await asyncio.create_subprocess_exec(
                self.launcher,
                "--report",
                str(report),
                *cgroup,
                *options,
                place.policy,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                pass_fds=(report,),
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(
                f"{self.launcher} cannot be started: {error.strerror}", reason="program-missing"
            ) from error

    async def facts(self, policy: Policy) -> dict[str, Any]:
        """Set a sandbox up, run nothing, and say what the launcher found enforced. Raises like `run`."""
        async with self.place(policy) as place:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            try:
                child = await self.start(place, (), writer, {})
            finally:
                os.close(writer)
            try:
                _, said = await asyncio.wait_for(child.communicate(), GRACE)
            finally:
                facts = await _end(child, reader)
            if "ready" not in facts:
                raise SandboxError(_line(said), reason="sandbox-refused")
            return dict(facts["ready"]) | {"missing": list(place.missing)}


def _line(said: bytes) -> str:
    """The launcher's reason: its last line."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("sandbox: ")[:1000] if lines else "the sandbox ended before it began"


async def _stream(child: asyncio.subprocess.Process, given: bytes) -> AsyncGenerator[Output, None]:
    """Both outputs as they come. Nothing is read ahead of who takes the items, so a slow reader slows the command."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    feeding = asyncio.create_task(_feed(child.stdin, given))
    streams: dict[asyncio.Task[bytes], tuple[Literal[1, 2], asyncio.StreamReader]] = {
        asyncio.create_task(child.stdout.read(CHUNK)): (1, child.stdout),
        asyncio.create_task(child.stderr.read(CHUNK)): (2, child.stderr),
    }
    try:
        while streams:
            done, _ = await asyncio.wait(streams, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                kind, stream = streams.pop(task)
                if data := task.result():
                    yield Output(kind, data)
                    streams[asyncio.create_task(stream.read(CHUNK))] = (kind, stream)
    finally:
        for left in (feeding, *streams):
            left.cancel()
        await asyncio.gather(feeding, *streams, return_exceptions=True)


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        stream.write(data)
        await stream.drain()
    stream.close()


async def _end(child: asyncio.subprocess.Process, reader: int) -> dict[str, dict[str, Any]]:
    """Make sure that it is over, and read the launcher's report: one JSON object a line, by its step."""
    try:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGABRT)  # kill everything inside, then tidy up
        try:
            await asyncio.wait_for(_drain(child), GRACE)
        except TimeoutError:
            child.kill()
            await _drain(child)
        os.set_blocking(reader, False)
        data = b""
        with contextlib.suppress(BlockingIOError):
            while len(data) < 64 << 10 and (chunk := os.read(reader, CHUNK)):
                data += chunk
        found = (json.loads(line) for line in data.splitlines())
        return {str(item.pop("step")): item for item in found}
    finally:
        os.close(reader)


async def _drain(child: asyncio.subprocess.Process) -> None:
    """Read what nobody wants any more, up to the end: the process counts as ended when its pipes are closed."""
    for stream in (child.stdout, child.stderr):
        while stream is not None and await stream.read(CHUNK):
            continue
    await child.wait()
