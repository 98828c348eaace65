"""Bundles for a simulated device: releases whose roots differ in a little, and what a device does to take one."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from buildsys import bundle
from buildsys.bundle import Facts, Lock, Sign
from common.bundle import container, manifest
from common.bundle.container import Front
from common.bundle.order import Order
from common.bundle.ranges import Ranges, answer
from common.efi import uki
from common.efi.entries import RESCUE_SORT_KEY
from tests.images import RELEASE, SMALL, STUB, Bench, kernel, pe_image

FACTS = Facts(sequence=7, minimum=3, machine="x86_64", variant="default", created=1_700_000_000)
Answer = Callable[[int, int], bytes]


def root_of(version: str) -> bytes:
    """A root of some MiB, of which a part is of the version."""
    noise = b"".join(bytes([at % 251, at % 241, at % 13, at % 7]) * 1024 for at in range(1400))
    return noise[: 1 << 20] + (version.encode() * 40).ljust(8192, b".") + noise[(1 << 20) + 8192 :]


def boot_files(version: str) -> tuple[bytes, bytes]:
    """The rescue entry of a release, of which a part is of the version, and its loader."""
    identity = f'ID=mixos\nIMAGE_ID={RESCUE_SORT_KEY}\nIMAGE_VERSION="{version}"\n'
    files = b"".join(bytes([at % 239, at % 11]) * 256 for at in range(400)) + version.encode() * 400
    rescue = uki.build(STUB, kernel(), "panic=10 mixos.rescue=menu", identity, RELEASE, files)
    return rescue, pe_image([(".text", f"loader of {version}".encode() * 500)])


def image(base: Path, version: str, files: tuple[bytes, bytes] | None = None) -> Path:
    """A disk image of that release."""
    bench = Bench(base / version, root_of(version), version=version, layout=SMALL)
    if files is not None:
        bench.boot_files(*files)
    for name in ("verity", "uki", "disk"):
        bench.run(name)
    return bench.inputs["disk"] / f"mixos-{version}-x86_64.img"


def unsigned(text: str) -> Front:
    """A front with nobody's signature."""
    return Front(text, ("signature",), {"1.root.json": "{}"})


def offer(
    base: Path,
    version: str,
    earlier: str | None = None,
    sign: Sign = unsigned,
    facts: Facts = FACTS,
    *,
    rescue: bool = False,
    lock: Lock | None = None,
) -> tuple[Path, manifest.Manifest, int]:
    """The bundle of a release, its manifest, and where its payload begins. rescue: with a rescue entry and a loader of
    the version (`boot_files`); lock: who alone reads it."""

    def content(base: Path, version: str) -> bundle.Content:
        return bundle.load(image(base, version, boot_files(version) if rescue else None))

    new = content(base, version)
    before = [] if earlier is None else [content(base / f"before-{version}", earlier)]
    path = base / f"mixos-{version}.mixb"
    bundle.make(new, before, facts, sign, path, lock=lock)
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
