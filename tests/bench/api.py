"""The API of a mixosd on this host: calls, changes, stream items and D-Bus calls per second, and its memory meanwhile.

The daemon runs in a process of its own, without the limit of calls per second; the clients are in this one, so on few
cores both share them. Nothing here passes or fails on a time.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

from dbus_fast.aio.message_bus import MessageBus
from dbus_fast.message import Message

from buildsys.run import find_tool, spawn
from common.tomlfile import Strict
from daemon.client.connection import call, stream
from daemon.core import rpc
from daemon.core.limits import Limits
from daemon.core.method import ADMINS, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.transfer import Accepts, Content
from tests.bench import memory, mixosd
from tests.bench.figures import Figure, table
from tests.hostpackages import ROOT

GROUP = "API, calls without the limit of 200/s for a connection"
SECONDS = 2.0  # of each measurement
CLIENTS, DEPTH = 8, 20
SIZE = 64 << 20  # bytes of content
LOAD = "load=tests.bench.api:Load"


class Read(Strict):
    content: Annotated[Content, Accepts(SIZE)]


class Load:
    """A part that does nothing, in every way."""

    name = "load"

    def __init__(self, context: Context) -> None:
        """It needs nothing."""

    def methods(self) -> Sequence[Method]:
        return (
            Method("load.change", "Changes nothing.", self.change, ADMINS, changes=True),
            Method("load.items", "Numbers.", self.items, ADMINS),
            Method("load.read", "Reads its content.", self.read, ADMINS, Read, seconds=60.0),
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

    async def read(self, caller: Caller, params: Read) -> int:
        async for _ in params.content.pieces():
            pass
        return params.content.taken


def per_second(step: Callable[[], object]) -> float:
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


def pipelined(path: Path) -> float:
    """Calls on CLIENTS connections, DEPTH at once on each."""
    with ExitStack() as held:
        pipes = []
        for _ in range(CLIENTS):
            channel = held.enter_context(socket.socket(socket.AF_UNIX))
            channel.connect(str(path))
            pipes.append((channel, channel.makefile("rb")))
        requests = rpc.encode_request("ping", {}, 1) * DEPTH

        def step() -> None:
            for channel, _ in pipes:
                channel.sendall(requests)
            for _, reader in pipes:
                for _ in range(DEPTH):
                    rpc.decode_answer(reader.readline(), 1)

        return per_second(step) * CLIENTS * DEPTH


def connecting(path: Path) -> float:
    """Calls with a connection each, as `mixctl` makes them."""
    return per_second(lambda: call("ping", {}, path))


def items(path: Path) -> float:
    """Items of one stream."""
    found = stream("load.items", {}, path)
    return per_second(lambda: next(found))


def content(path: Path, folder: Path) -> dict[str, float]:
    """MiB/s of content: from a file, through a pipe, in pieces that lie on the disk before they are read."""
    file, found = folder / "content", {}
    file.write_bytes(os.urandom(SIZE))

    def read(given: int | str, *descriptors: int) -> None:
        assert call("load.read", {"content": given}, path, timeout=60, descriptors=descriptors) == SIZE

    def piped() -> None:
        with spawn([str(find_tool("cat")), str(file)]) as process:
            assert process.stdout is not None
            read(0, process.stdout.fileno())

    def in_pieces() -> None:
        begun = call("transfer.begin", {"purpose": "load.read", "size": SIZE}, path)
        with file.open("rb") as stream_:
            for offset in range(0, SIZE, begun["piece"]):
                data = base64.b64encode(stream_.read(begun["piece"])).decode()
                call("transfer.write", {"id": begun["id"], "offset": offset, "data": data}, path)
        read(begun["id"])
        call("transfer.cancel", {"id": begun["id"]}, path)

    def from_file() -> None:
        with file.open("rb") as stream_:
            read(0, stream_.fileno())

    for name, way in (("a file", from_file), ("a pipe", piped), ("pieces", in_pieces)):
        began = time.perf_counter()
        way()
        found[f"64 MiB of content: {name}"] = (SIZE >> 20) / (time.perf_counter() - began)
    file.unlink()
    return found


@contextmanager
def bus(path: Path) -> Iterator[None]:
    """A message bus with the device's configuration, on this socket."""
    words = (f"--config-file={ROOT}/daemon/dbus/system.conf", f"--address=unix:path={path}")
    process = spawn([str(find_tool("dbus-daemon")), *words, "--nofork", "--nopidfile", "--nosyslog"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def on_the_bus(place: Context) -> float:
    """D-Bus calls, one by one, on one connection after the other: each may make so many before its calls are slowed."""

    async def measure() -> float:
        burst, spent = int(Limits().burst), 0.0
        for _ in range(CLIENTS):
            connection = await MessageBus(bus_address=f"unix:path={place.run.parents[1]}/bus").connect()
            began = time.perf_counter()
            for _ in range(burst):
                await connection.call(Message("org.mixos", "/org/mixos", "org.mixos.Manager1", "Ping"))
            spent += time.perf_counter() - began
            connection.disconnect()  # type: ignore[no-untyped-call]
        return CLIENTS * burst / spent

    while not mixosd.states(place)["dbus"].get("connected"):
        time.sleep(0.1)
    return asyncio.run(measure())


def figures() -> list[Figure]:
    """All of them."""
    with mixosd.folders() as place, bus(place.run.parents[1] / "bus"), mixosd.running(place, LOAD) as process:
        path, before = place.run / "mixosd.sock", memory.private(process.pid)
        rates = {
            "calls, one connection, one by one": one_by_one(path, "ping"),
            f"calls, {CLIENTS} connections, {DEPTH} at once on each": pipelined(path),
            "calls, a connection each": connecting(path),
            "changes, audited durably before and after": one_by_one(path, "load.change"),
            "items of a stream": items(path),
            "D-Bus calls, one by one": on_the_bus(place),
        }
        found = [Figure(GROUP, name, round(value), "/s") for name, value in rates.items()]
        ways = content(path, place.state)
        found += [Figure(GROUP, name, round(value), "MiB/s") for name, value in ways.items()]
        for when, size in (("before", before), ("after", memory.private(process.pid))):
            found.append(
                Figure(GROUP, f"memory of mixosd without parts, {when} (private)", round(size / 1024, 1), "MiB")
            )
        return found


if __name__ == "__main__":
    print(table(figures()))
