"""`python -m tests.bench.against CHECKOUT`: boot the image of another commit and this one's in turn, side by side.

Both images must have been built (`mixos build`), from the same kernel source if the kernel is not what is compared. The
boots alternate, so that whatever else the host does falls on both. `--peer` adds the distribution's minimal system.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from buildsys.project import Project
from buildsys.run import run
from image.machine import Machine
from tests import hostpackages
from tests.bench import boots, guest, peer
from tests.bench.figures import Figure, table
from tests.bench.memory import sizes
from tests.boot.guest import BOOT_SECONDS, Guest, KeyVm

# One call that waits for the daemon by itself, and the time when it was answered.
_ANSWERED = "mixctl status --json && cat /proc/uptime"
_PROCESSES = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline && echo && cat $p/status; done 2>/dev/null; true"


def look(one: Guest) -> dict[str, float]:
    """One boot of MixOS: name → seconds after the kernel's start, or MiB."""
    began = time.monotonic()
    one.start()
    try:
        one.wait_ssh(BOOT_SECONDS)
        answered = time.monotonic()
        text, _, uptime = one.run(_ANSWERED).rstrip().rpartition("\n")
        since = time.monotonic() - float(uptime.split()[0])  # the kernel's start; late by what an answer takes
        status = json.loads(text)
        one.wait_daemon()
        time.sleep(boots.SETTLE_SECONDS)
        firewall = one.status()["parts"]["firewall"]["seconds"]
        memory = sizes(one.run("cat /proc/meminfo"))
        found = [part for part in guest.processes(one.run(_PROCESSES)) if part["Name"].startswith(("python", "mix"))]
        main = next(part for part in found if part["Pid"] == one.run(guest.DAEMON).strip())
        one.stop()
    finally:
        one.discard()
    assert status["version"]
    return {
        "power-on → SSH banner (s)": answered - began,
        "kernel start → SSH banner (s)": answered - since,
        "kernel start → mixctl status answered over SSH (s)": float(uptime.split()[0]),
        "firewall's part at boot (s)": firewall,
        "mixosd: anonymous pages (MiB)": _mib(main, "RssAnon"),
        "all processes in Python: anonymous pages, shared ones counted in each (MiB)": sum(
            _mib(part, "RssAnon") for part in found
        ),
        "anonymous pages of all processes (MiB)": memory["AnonPages"] / 1024,
        "RAM used (MiB)": (memory["MemTotal"] - memory["MemAvailable"]) / 1024,
    }


def _mib(process: Mapping[str, str], name: str) -> float:
    return int(process.get(name, "0").split()[0]) / 1024


def images(projects: Sequence[Project], count: int) -> Iterator[list[dict[str, float]]]:
    """The boots of each image; a first one, which makes file systems and keys, is left out."""
    with ExitStack() as stack:
        vms = []
        for project in projects:
            vm = KeyVm(project, stack.enter_context(boots.folder()))
            vm.prepare(fresh=True, size=2 << 30, preseed=None)
            vms.append(vm)
        rows: list[list[dict[str, float]]] = [[] for _ in vms]
        for number in range(count + 1):
            for vm, found in zip(vms, rows, strict=True):
                one = look(Guest(vm, Machine(disk=vm.disk, ssh_port=0, preallocate=True)))
                if number:
                    found.append(one)
        yield from rows


def figures(rows: Sequence[Sequence[Mapping[str, float]]], names: Sequence[str]) -> Iterator[Figure]:
    """Medians side by side, and the ratio of the last to the first."""
    for key in rows[0][0]:
        middle = [statistics.median(row[key] for row in found) for found in rows]
        unit = key.rpartition("(")[2].rstrip(")")
        ratio = f"{middle[-1] / middle[0]:.2f} of {names[0]}: {middle[0]:.2f}"
        yield Figure(f"{names[-1]} beside {names[0]}", key.rpartition(" (")[0], round(middle[-1], 2), unit, note=ratio)


def main(say: Callable[[str], None] = print) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.against", description=__doc__)
    parser.add_argument("checkout", type=Path, help="another checkout with an image in out/")
    parser.add_argument("--boots", type=int, default=5, metavar="N", help="boots of each (default: 5)")
    parser.add_argument("--peer", action="store_true", help="also boot the distribution's minimal system")
    options = parser.parse_args()
    projects = [Project.at(options.checkout.resolve()), Project.at(hostpackages.ROOT)]
    commits = [run(["git", "-C", one.root, "rev-parse", "--short", "HEAD"]).text.strip() for one in projects]
    rows = list(images(projects, options.boots))
    found = list(figures(rows, commits))
    say(table(found))
    if options.peer:
        other = peer.make(projects[1])
        kernel = statistics.median(
            one.kernel for one in boots.direct(projects[1], other.disk, other.arguments, options.boots, other.key)
        )
        say(table([Figure(f"beside {other.name}", "kernel start → SSH banner of the peer", round(kernel, 2), "s")]))


if __name__ == "__main__":
    main()
