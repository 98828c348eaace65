"""Inside the booted image, over SSH: the memory of an idle system and its daemon, and where the time of the boot went.

The image's kernel tells no PSS (it has no PROC_PAGE_MONITOR: no smaps, no pagemap). So the daemon's stands between two
figures of /proc/PID/status: its anonymous pages, which are its own, and all of its resident pages, as if nobody shared
the pages of files with it. Programs in Python do share them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

from buildsys.project import Project
from common.errors import HostError
from image.machine import Machine
from tests.bench import boots
from tests.bench.figures import Figure, table
from tests.bench.memory import sizes
from tests.boot.guest import BOOT_SECONDS, Guest, KeyVm, wait_until
from tests.hostpackages import ROOT

IDLE_SECONDS = 60
MEMORY = f"booted image, {IDLE_SECONDS} s after the daemon answered"
BOOT = "booted image, second boot, from the kernel's start"
READY = "mixctl ping >/dev/null && cat /proc/uptime"
STATUS = "cat /proc/[0-9]*/status 2>/dev/null; true"  # processes may end meanwhile
DAEMON = "cat /run/mixos/mixosd.lock"
PYTHON = "grep -l '[/]usr/bin/python3' /proc/[0-9]*/cmdline 2>/dev/null | wc -l"  # [/]: not grep itself


class Shell(Protocol):
    """What is needed of a guest."""

    def run(self, command: str) -> str:
        """The output of a command that must succeed."""

    def lines(self, command: str) -> list[str]:
        """The same, line by line."""


def figures() -> list[Figure]:
    """Boot the image twice; the second boot is looked at, since the first one makes file systems and keys."""
    with boots.folder() as state:
        vm = KeyVm(Project.at(ROOT), state)
        vm.prepare(fresh=True, size=2 << 30, preseed=None)
        guest = Guest(vm, Machine(disk=vm.disk, ssh_port=0, preallocate=True))
        try:
            guest.start()
            guest.wait_ssh()
            guest.wait_daemon()
            guest.stop()
            guest.start()
            guest.wait_ssh()
            wait_until(lambda: guest.attempt(READY).status == 0, BOOT_SECONDS)
            ready = float(guest.run(READY).split()[0])
            time.sleep(IDLE_SECONDS)
            return [*memory(guest), *boot(guest, ready)]
        finally:
            guest.discard()


def memory(guest: Shell) -> Iterator[Figure]:
    """The daemon's, the shims', and that of the whole system. Raises HostError when there is no daemon."""
    found = {one["Pid"]: one for one in processes(guest.run(STATUS))}
    daemon = found.get(guest.run(DAEMON).strip())
    if daemon is None:
        raise HostError("mixosd does not run in the guest", reason="bench-daemon")
    sharing = int(guest.run(PYTHON)) - 1
    yield _mib("mixosd: all resident pages (its PSS is less)", _kib(daemon, "VmRSS"), 40)
    yield _mib("mixosd: anonymous pages alone (its PSS is more)", _kib(daemon, "RssAnon"))
    note = f"shared in part with {sharing} other programs in Python"
    yield _mib("mixosd: pages of files and shared memory", _kib(daemon, "RssFile", "RssShmem"), note=note)
    shims = [one for one in found.values() if one["Name"] == "shim"]
    if shims:
        mean = sum(_kib(one, "RssAnon") for one in shims) / len(shims)
        yield Figure(MEMORY, f"shim, mean of {len(shims)}: anonymous pages", round(mean, 1), "KiB")
    system = sizes(guest.run("cat /proc/meminfo"))
    kernel = sum(system[name] for name in ("Slab", "KernelStack", "PageTables"))
    yield _mib("RAM used by all (total less available)", system["MemTotal"] - system["MemAvailable"], 128)
    yield _mib("of it anonymous pages of processes", system["AnonPages"])
    yield _mib("of it files in memory (tmpfs)", system["Shmem"])
    yield _mib("of it the kernel's slab, stacks and page tables", kernel)


def boot(guest: Shell, ready: float) -> Iterator[Figure]:
    """The boot by steps, each with its bar of `mixctl boot`. ready: seconds until a call over SSH was answered."""
    rows = json.loads(guest.run("mixctl boot --json"))
    bars = [line.partition("|")[2].removesuffix("|").rstrip() for line in guest.lines("mixctl boot")[1:]]
    last = max(row["end"] for row in rows if not row["name"].startswith("mixosd: "))
    yield Figure(BOOT, "last step of early boot has ended", round(last, 2), "s")
    yield Figure(BOOT, "a call of mixctl over SSH is answered", round(ready, 2), "s")
    yield Figure(BOOT, "last part of mixosd is up", round(max(row["end"] for row in rows), 2), "s")
    for row, bar in zip(rows, bars, strict=True):
        yield Figure(f"{BOOT}: steps", row["name"], round(row["end"] - row["begin"], 2), "s", note=f"|{bar}")


def processes(text: str) -> Iterator[Mapping[str, str]]:
    """The rows of several /proc/PID/status behind each other, process by process (proc_pid_status(5))."""
    for part in f"\n{text}".split("\nName:")[1:]:
        lines = (line.partition(":") for line in f"Name:{part}".splitlines())
        yield {name: value.strip() for name, _, value in lines}


def _kib(process: Mapping[str, str], *names: str) -> int:
    """KiB of some rows; a process of the kernel has none."""
    return sum(int(process.get(name, "0").split()[0]) for name in names)


def _mib(name: str, kib: int, budget: float | None = None, note: str = "") -> Figure:
    return Figure(MEMORY, name, round(kib / 1024, 1), "MiB", budget, note)


if __name__ == "__main__":
    print(table(figures()))
