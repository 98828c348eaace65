"""Bundles for a simulated device: releases whose roots differ in a little, and what a device does to take one."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from buildsys import bundle
from buildsys.bundle import Facts, Sign
from common.bundle import container, manifest
from common.bundle.container import Front
from common.bundle.order import Order
from common.bundle.ranges import Ranges, answer
from tests.images import SMALL, Bench

FACTS = Facts(sequence=7, minimum=3, machine="x86_64", variant="default", created=1_700_000_000)
Answer = Callable[[int, int], bytes]


def root_of(version: str) -> bytes:
    """A root of some MiB, of which a part is of the version."""
    noise = b"".join(bytes([at % 251, at % 241, at % 13, at % 7]) * 1024 for at in range(1400))
    return noise[: 1 << 20] + (version.encode() * 40).ljust(8192, b".") + noise[(1 << 20) + 8192 :]


def image(base: Path, version: str) -> Path:
    """A disk image of that release."""
    bench = Bench(base / version, root_of(version), version=version, layout=SMALL)
    for name in ("verity", "uki", "disk"):
        bench.run(name)
    return bench.inputs["disk"] / f"mixos-{version}-x86_64.img"


def unsigned(text: str) -> Front:
    """A front with nobody's signature."""
    return Front(text, ("signature",), {"1.root.json": "{}"})


def offer(
    base: Path, version: str, earlier: str | None = None, sign: Sign = unsigned, facts: Facts = FACTS
) -> tuple[Path, manifest.Manifest, int]:
    """The bundle of a release, its manifest, and where its payload begins."""
    new = bundle.load(image(base, version))
    before = [] if earlier is None else [bundle.load(image(base / f"before-{version}", earlier))]
    path = base / f"mixos-{version}.mixb"
    bundle.make(new, before, facts, sign, path)
    with path.open("rb") as stream:
        front, start = container.read(stream.read)
    return path, manifest.parse(front.manifest), start


@contextmanager
def served(path: Path, answers: Answer | None = None) -> Iterator[Ranges]:
    """The bundle as another process serves it."""
    ours, theirs = socket.socketpair()
    with path.open("rb") as stream, ours, theirs:
        read = answers or (lambda offset, length: os.pread(stream.fileno(), length, offset))
        thread = threading.Thread(target=_answer, args=(theirs, read))
        thread.start()
        try:
            yield Ranges(ours.fileno(), ours.fileno(), 20.0)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


def _answer(channel: socket.socket, read: Answer) -> None:
    try:
        answer(channel.fileno(), channel.fileno(), read)
    except OSError:
        return


def order_for(found: manifest.Manifest, payload: int, running: bytes) -> Order:
    """What a device does that runs this root."""
    return found.order(payload, running.hex())
