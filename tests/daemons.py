"""A daemon in a thread, with a part that has one method of every kind, and calls to it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, SecretStr

from common.errors import NotFoundError, RefusedError, RpcError, UnreachableError
from common.tomlfile import Strict
from daemon.client.connection import call, stream
from daemon.core import rpc
from daemon.core.limits import Limits
from daemon.core.method import EVERYONE, OPERATORS, Caller, Method, Nothing, Role
from daemon.core.part import Context
from daemon.core.parts import Source
from daemon.mixosd import Daemon
from tests.waiting import PATIENCE


class Text(Strict):
    text: Annotated[str, Field(max_length=10)]
    count: Annotated[int, Field(ge=1, le=100_000)] = 1


class Word(Text):
    secret_word: SecretStr | None = None


class Sample:
    """A part with one method of every kind."""

    name = "sample"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.closed = threading.Event()
        self.waiting = threading.Event()
        self.go = threading.Event()

    def methods(self) -> Sequence[Method]:
        return (
            Method("sample.echo", "Says it again.", self.echo, EVERYONE, Word),
            Method("sample.who", "Who calls.", self.who, EVERYONE),
            Method("sample.set", "Changes something.", self.set, OPERATORS, Text, changes=True),
            Method("sample.hush", "Changes with a secret.", self.set, OPERATORS, Word, changes=True),
            Method("sample.wait", "Waits for somebody to leave.", self.wait, EVERYONE, seconds=60.0),
            Method("sample.work", "The same, changing something.", self.wait, OPERATORS, changes=True, seconds=60.0),
            Method("sample.fail", "Fails.", self.fail, EVERYONE, Text, changes=True),
            Method("sample.broken", "Has a defect.", self.broken, EVERYONE),
            Method("sample.full", "Has no room.", self.full, EVERYONE),
            Method("sample.slow", "Takes too long.", self.slow, EVERYONE, seconds=0.2),
            Method("sample.unsayable", "Answers what JSON has not.", self.unsayable, EVERYONE),
            Method("sample.count", "Counts.", self.count, EVERYONE, Text),
            Method("sample.change", "Changes while it streams.", self.change, OPERATORS, Text, changes=True),
        )

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def status(self) -> Mapping[str, Any]:
        return {"calls": len(self.calls)}

    async def echo(self, caller: Caller, params: Text) -> dict[str, Any]:
        return {"text": params.text, "count": params.count}

    async def who(self, caller: Caller, params: Nothing) -> dict[str, Any]:
        return caller._asdict()

    async def set(self, caller: Caller, params: Text) -> str:
        self.calls.append(params.text)
        return f"{params.text} {len(self.calls)}"

    async def fail(self, caller: Caller, params: Text) -> None:
        self.calls.append(params.text)
        if params.text == "again":
            raise RefusedError("not now", reason="sample-busy", retryable=True)
        raise NotFoundError("there is none", reason="sample-unknown", hint="look")

    async def broken(self, caller: Caller, params: Nothing) -> None:
        raise ValueError("secret detail")

    async def full(self, caller: Caller, params: Nothing) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/lib/x")

    async def slow(self, caller: Caller, params: Nothing) -> None:
        await asyncio.sleep(60)

    async def wait(self, caller: Caller, params: Nothing) -> None:
        try:
            self.waiting.set()
            while not self.go.is_set():
                await asyncio.sleep(0.01)
            self.calls.append("done")
        finally:
            self.closed.set()

    async def unsayable(self, caller: Caller, params: Nothing) -> object:
        return {"a": {1, 2}}

    async def count(self, caller: Caller, params: Text) -> AsyncIterator[Any]:
        try:
            for number in range(params.count):
                yield number if params.text != "big" else "x" * 50_000
            if params.text == "fail":
                raise NotFoundError("there is none", reason="sample-unknown", hint="look")
            if params.text == "broken":
                raise ValueError("secret detail")
            while params.text == "wait":
                await asyncio.sleep(0.01)
        finally:
            self.closed.set()

    async def change(self, caller: Caller, params: Text) -> AsyncIterator[int]:
        for number in range(params.count):
            yield number


class Running:
    """A daemon in a thread."""

    def __init__(self, daemon: Daemon, path: Path, sample: Sample, loop: asyncio.AbstractEventLoop) -> None:
        self.daemon, self.path, self.sample, self.loop = daemon, path, sample, loop

    def call(self, name: str, params: Mapping[str, object] | None = None) -> Any:
        return call(name, params or {}, self.path)

    def stream(self, name: str, params: Mapping[str, object] | None = None) -> Iterator[Any]:
        return stream(name, params or {}, self.path)

    def reason(self, name: str, params: Mapping[str, object] | None = None) -> str:
        with pytest.raises((RpcError, UnreachableError)) as caught:
            self.call(name, params)
        return caught.value.reason

    def audit(self) -> list[dict[str, Any]]:
        files = sorted((self.daemon.context.log / "audit").glob("*.jsonl"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


QUICK = Limits(
    idle=0.5, slow=0.5, linger=0.2, look=0.05, connections=8, per_uid=6, per_admin=6, streams=3, rate=2000, burst=4000
)


@contextmanager
def running(
    folder: Path,
    role: Role | None = Role.ADMIN,
    limits: Limits | None = None,
    more: Sequence[Source] = (),
    bus: str = "/nonexistent/bus",
    accounts: Mapping[int, Role] | None = None,
    context: Context | None = None,
) -> Iterator[Running]:
    """A daemon on a socket in `folder`, for this test's account in `role`."""
    sample, ready, holder = Sample(), threading.Event(), {}
    places = (folder, folder / "state", folder, folder, folder / "log")
    context = context or Context(*places, cgroups=folder / "no-cgroups", shared=False)
    table = accounts if accounts is not None else {os.getuid(): role} if role else {}
    daemon = Daemon(context, [Source("sample", lambda: sample), *more], table, limits, bus)
    path = folder / "mixosd.sock"

    async def main() -> None:
        stop = asyncio.Event()
        holder.update(loop=asyncio.get_running_loop(), stop=stop)
        task = asyncio.create_task(daemon.run(stop, "no-such-group"))
        while not task.done() and any(
            one["state"] in ("waiting", "starting") for one in daemon.parts.status().values()
        ):
            await asyncio.sleep(0.01)
        ready.set()
        await task

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield Running(daemon, path, sample, holder["loop"])
    finally:
        holder["loop"].call_soon_threadsafe(holder["stop"].set)
        thread.join(20)
        assert not thread.is_alive()
        assert not path.exists()


def connected(path: Path) -> socket.socket:
    """A connection to a daemon's socket."""
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(20)
    channel.connect(str(path))
    return channel


def request(method: str, ident: int = 1, **params: object) -> bytes:
    """The line of one call."""
    return rpc.encode_request(method, params, ident)


def answers(channel: socket.socket) -> list[Any]:
    """Every line until the server closes: results and reasons."""
    data = b""
    with suppress(ConnectionResetError):
        while chunk := channel.recv(1 << 16):
            data += chunk
    found = [json.loads(line) for line in data.splitlines()]
    return [one["result"] if "result" in one else one["error"]["data"]["reason"] for one in found if "id" in one]
