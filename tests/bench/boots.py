"""How long a boot takes and how much memory is used after it: the same machine, the same measuring for every system."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from buildsys.project import Project
from buildsys.run import run
from image import qemu
from image.machine import Machine
from tests.bench.figures import Figure
from tests.boot.guest import BOOT_SECONDS, END_SECONDS, Guest, KeyVm

SETTLE_SECONDS = 20.0
MIB = 1 << 20


@dataclass(frozen=True)
class Boot:
    """One boot. power_on and kernel: seconds from power-on, and from the kernel's start, to the SSH banner.
    used: bytes of RAM that are not available, some time later."""

    power_on: float
    kernel: float
    used: int


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with a short name: the names of Unix sockets end at 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="mixos-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def measure(guest: Guest) -> Boot:
    """Switch a guest on, wait for its SSH banner, look at its memory, switch it off."""
    began = time.monotonic()
    guest.start()
    try:
        guest.wait_ssh(BOOT_SECONDS)
        answered = time.monotonic()
        uptime = float(guest.run("cat /proc/uptime").split()[0])
        kernel_start = time.monotonic() - uptime  # late by the time the answer took, a few hundredths of a second
        time.sleep(SETTLE_SECONDS)
        memory = dict(line.split(":", 1) for line in guest.lines("cat /proc/meminfo"))
        total, available = (int(memory[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
        guest.stop(END_SECONDS)
    finally:
        guest.discard()
    return Boot(answered - began, answered - kernel_start, total - available)


def mixos(project: Project, count: int) -> list[Boot]:
    """Boot the image `count` times from the same disk.

    The very first boot, which makes file system and keys, is one more and stands at the front of the list.
    """
    with folder() as state:
        vm = KeyVm(project, state)
        vm.prepare(fresh=True, size=2 << 30, preseed=None)
        return [measure(Guest(vm, Machine(disk=vm.disk, ssh_port=0, preallocate=True))) for _ in range(count + 1)]


def direct(project: Project, disk: Path, kernel: tuple[str, ...], count: int, key: Path) -> list[Boot]:
    """Boot a foreign disk `count` times, its kernel handed over by QEMU; `key` opens its root account."""
    with folder() as state:
        vm = KeyVm(project, state)
        for name in ("id_ed25519", "id_ed25519.pub"):
            shutil.copy(key.with_name(name), state / name)
        run(["cp", "--sparse=always", disk, state / qemu.DISK])
        return [
            measure(
                Guest(vm, Machine(disk=vm.disk, ssh_port=0, extra=(*kernel, "-machine", "sata=off"), preallocate=True))
            )
            for _ in range(count)
        ]


def figures(group: str, name: str, boots: list[Boot], peer: list[Boot] | None = None) -> list[Figure]:
    """Medians of some boots; with a peer, half of its time is the budget."""
    fields = ("power_on", "kernel", "used")
    middle = {field: statistics.median(getattr(boot, field) for boot in boots) for field in fields}
    half = statistics.median(boot.kernel for boot in peer) / 2 if peer else None
    return [
        Figure(group, f"{name}: power-on → SSH banner", round(middle["power_on"], 2), "s"),
        Figure(
            group,
            f"{name}: kernel start → SSH banner",
            round(middle["kernel"], 2),
            "s",
            round(half, 2) if half else None,
            "half of the peer's time" if half else "",
        ),
        Figure(
            group,
            f"{name}: RAM used {SETTLE_SECONDS:.0f} s later",
            round(middle["used"] / MIB, 1),
            "MiB",
            128 if peer is not None or name == "MixOS" else None,
        ),
    ]
