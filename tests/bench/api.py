"""`python -m tests.bench.api`: calls, changes, stream items and D-Bus calls per second of the daemon, and its memory.

The daemon runs in a process of its own, without the limit of calls per second; the clients are in this one, so on few
cores both share them. Nothing here passes or fails on a time.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from buildsys.run import Process, spawn
from daemon import rpc
from daemon.api.limits import Limits
from daemon.api.method import ADMINS, Caller, Method, Nothing
from daemon.api.parts import Source
from daemon.client import call, stream
from daemon.mixosd import Daemon
from daemon.part import Context
from tests.bench.figures import Figure, table
from tests.hostpackages import ROOT

GROUP = "API"
SECONDS = 2.0  # of each measurement


class Load:
    """A part that does nothing, in every way."""

    name = "load"

    def methods(self) -> Sequence[Method]:
        return (
            Method("load.change", "Changes nothing.", self.change, ADMINS, changes=True),
            Method("load.items", "Numbers.", self.items, ADMINS),
        )

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def status(self) -> Mapping[str, Any]:
        return {}

    async def change(self, caller: Caller, params: Nothing) -> None:
        return None

    async def items(self, caller: Caller, params: Nothing) -> AsyncIterator[dict[str, int]]:
        number = 0
        while True:
            number += 1
            yield {"number": number}


def serve(folder: Path) -> None:
    """The daemon's process, until it is killed."""
    context = Context(folder, folder / "state", folder, folder, folder / "log")
    daemon = Daemon(context, [Source("load", Load)], limits=Limits(rate=1e9, burst=1e9), bus=str(folder / "bus"))
    asyncio.run(daemon.run(asyncio.Event()))


@contextmanager
def daemon(folder: Path) -> Iterator[Process]:
    """The daemon, answering."""
    words = [sys.executable, "-m", "tests.bench.api", "serve", str(folder)]
    process = spawn(words, cwd=ROOT)
    try:
        path = folder / "mixosd.sock"
        while any(one["state"] in ("waiting", "starting") for one in parts(path).values()):
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def parts(path: Path) -> dict[str, dict[str, Any]]:
    """The state of the daemon's parts."""
    found: dict[str, dict[str, Any]] = call("status", {}, path, patience=30)["parts"]
    return found


def per_second(step: Any) -> float:
    """How often `step` can be called in a second."""
    count, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < SECONDS:
        step()
        count += 1
    return count / (now - began)


def one_by_one(path: Path, method: str) -> float:
    """Calls on one connection, each after the answer to the one before."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(path))
        reader = channel.makefile("rb")
        request = rpc.encode_request(method, {}, 1)

        def step() -> None:
            channel.sendall(request)
            rpc.decode_answer(reader.readline(), 1)

        return per_second(step)


def pipelined(path: Path, connections: int = 8, depth: int = 20) -> float:
    """Calls on several connections, `depth` at once on each."""
    with ExitStack() as held:
        pipes = []
        for _ in range(connections):
            channel = held.enter_context(socket.socket(socket.AF_UNIX))
            channel.connect(str(path))
            pipes.append((channel, channel.makefile("rb")))
        requests = rpc.encode_request("ping", {}, 1) * depth

        def step() -> None:
            for channel, _ in pipes:
                channel.sendall(requests)
            for _, reader in pipes:
                for _ in range(depth):
                    reader.readline()

        return per_second(step) * connections * depth


def connecting(path: Path) -> float:
    """Calls with a connection each, as `mixctl` makes them."""
    return per_second(lambda: call("ping", {}, path))


def items(path: Path) -> float:
    """Items of one stream."""
    found = stream("load.items", {}, path)
    try:
        return per_second(lambda: next(found))
    finally:
        found.close()


def on_the_bus(folder: Path) -> float:
    """D-Bus calls, one by one."""
    from dbus_next import Message
    from dbus_next.aio import MessageBus

    async def measure() -> float:
        connection = await MessageBus(bus_address=f"unix:path={folder}/bus").connect()
        count, began = 0, time.perf_counter()
        while (now := time.perf_counter()) - began < SECONDS:
            await connection.call(Message("org.mixos", "/org/mixos", "org.mixos.Manager1", "Ping"))
            count += 1
        connection.disconnect()
        return count / (now - began)

    while not parts(folder / "mixosd.sock")["dbus"].get("connected"):
        time.sleep(0.1)
    return asyncio.run(measure())


def memory(pid: int) -> float:
    """MiB of a process, its share of what is shared counted once (proc_pid_smaps(5), Pss)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def figures() -> list[Figure]:
    """All of them."""
    with TemporaryDirectory() as name, ExitStack() as held:
        folder = Path(name)
        program = shutil.which("dbus-daemon")
        if program is not None:
            config = f"--config-file={ROOT}/daemon/dbus/system.conf"
            bus = spawn([program, config, f"--address=unix:path={folder}/bus", "--nofork", "--nopidfile", "--nosyslog"])
            held.callback(bus.wait)
            held.callback(bus.kill)
        path = folder / "mixosd.sock"
        process = held.enter_context(daemon(folder))
        found = [
            Figure(GROUP, "memory of the daemon, no parts, after start (PSS)", memory(process.pid), "MiB", 40.0),
            Figure(GROUP, "calls, one connection, one by one", one_by_one(path, "ping"), "/s"),
            Figure(GROUP, "calls, 8 connections, 20 at once on each", pipelined(path), "/s"),
            Figure(GROUP, "calls, a connection each", connecting(path), "/s"),
            Figure(GROUP, "changes, audited durably before and after", one_by_one(path, "load.change"), "/s"),
            Figure(GROUP, "items of a stream", items(path), "/s"),
        ]
        if program is not None:
            found.append(Figure(GROUP, "D-Bus calls, one by one", on_the_bus(folder), "/s"))
        found.append(Figure(GROUP, "memory of the daemon after all this (PSS)", memory(process.pid), "MiB", 40.0))
        return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
    else:
        print(table(figures()))
