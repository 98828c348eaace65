"""`python -m tests.bench.switch IMAGE BUNDLE`: how long a device takes to go over to a release that it has staged.

IMAGE is an earlier release, which starts in a machine of its own; BUNDLE (`mixos bundle`, signed by keys that the image
trusts) has the one that it goes over to and, by `mixctl update rollback`, comes back from. Times are this computer's
and begin with the command: connecting and the start of `mixctl` are in them, seconds where the machine is emulated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from buildsys.bundle import check
from buildsys.project import Project
from buildsys.run import run
from common.errors import HostError, MixosError
from image import qemu
from image.machine import Machine
from tests import hostpackages
from tests.bench import boots
from tests.bench.figures import Figure, table
from tests.boot.guest import BOOT_SECONDS, DISK_SIZE, END_SECONDS, Guest, KeyVm, wait_until

APPLY = "apply → its answer (0.2 s later init is asked)"
DOWN = "apply → the kernel restarts the machine"
BANNER = "apply → SSH banner"
ANSWERS = "apply → the new version answers mixctl"
GOOD = "apply → it is called good"
_STATUS = "mixctl update status --json"
_BUNDLE = "/data/bench.mixb"  # in the guest


def switch(guest: Guest, version: str) -> dict[str, float]:
    """Apply what is staged: step → seconds since the command. Raises HostError `bench-switch`: another version runs."""
    passed: dict[str, float] = {}
    start, began = len(guest.serial), time.monotonic()

    def at(step: str) -> None:
        passed[step] = time.monotonic() - began

    guest.run("mixctl update apply")
    at(APPLY)
    guest.hang_up()
    guest.wait_serial("reboot: Restarting system", END_SECONDS, start)
    at(DOWN)
    guest.wait_ssh()
    at(BANNER)
    wait(guest, lambda found: True)
    at(ANSWERS)
    found = wait(guest, lambda found: found["state"] == "good")
    at(GOOD)
    if found["version"] != version:
        raise HostError(f"{found['version']} runs, not {version}: {found['last']}", reason="bench-switch")
    return passed


def wait(guest: Guest, wanted: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """The status of updates, once it is as wanted. Raises HostError `bench-switch`: it was not in time."""
    answers: list[dict[str, Any]] = []

    def asked() -> bool:
        done = guest.attempt(_STATUS)
        answers.extend([json.loads(done.text)] if done.status == 0 else [])
        return done.status == 0 and wanted(answers[-1])

    if not wait_until(asked, BOOT_SECONDS):
        raise HostError(f"after {BOOT_SECONDS:.0f} s: {answers[-1:]}", reason="bench-switch")
    return answers[-1]


def switches(guest: Guest, bundle: Path, version: str, count: int) -> Iterator[dict[str, float]]:
    """So many switches there, each from a version that was called good; the way back is not measured."""
    guest.start()
    guest.wait_ssh()
    for number in range(count):
        if number:
            guest.run("mixctl update rollback")
            guest.reboot()
        guest.wait_daemon()
        wait(guest, lambda found: found["state"] == "good")
        if not number:
            guest.run(f"cat >{_BUNDLE}", stdin=bundle.read_bytes())
        guest.run(f"mixctl update stage {_BUNDLE}")
        yield switch(guest, version)


def figures(rows: Sequence[Mapping[str, float]], group: str) -> list[Figure]:
    """The median of each step, and its range."""
    found = []
    for step in (APPLY, DOWN, BANNER, ANSWERS, GOOD):
        values = sorted(row[step] for row in rows)
        note = f"{values[0]:.2f} to {values[-1]:.2f}" if len(values) > 1 else ""
        found.append(Figure(group, step, round(statistics.median(values), 2), "s", note=note))
    return found


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.switch", description=__doc__)
    parser.add_argument("image", type=Path, help="the image of an earlier release")
    parser.add_argument("bundle", type=Path, help="the bundle of the release that it goes over to")
    parser.add_argument("--switches", type=int, default=3, metavar="N", help="default: 3")
    options = parser.parse_args()
    project = Project.at(hostpackages.ROOT)
    try:
        version = check(options.bundle).version
        with boots.folder() as state:
            vm = KeyVm(project, state)
            qemu.prepare_disk(options.image, vm.disk, DISK_SIZE, vm.default_preseed())
            guest = Guest(vm, Machine(disk=vm.disk, ssh_port=0, preallocate=True))
            try:
                rows = list(switches(guest, options.bundle, version, options.switches))
            finally:
                guest.discard()
    except MixosError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    commit = run(["git", "-C", project.root, "rev-parse", "--short", "HEAD"]).text.strip()
    words = f"python -m tests.bench.switch {options.image} {options.bundle} --switches {options.switches}"
    print(table(figures(rows, f"{commit}: {words}; {options.image.name} → {version}, median of {len(rows)}")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
