"""Two real builds with different versions, signed by keys of this run: from one to the other and back, over SSH and
over HTTP, in firmware that enforces Secure Boot; and the plug is pulled meanwhile."""

from __future__ import annotations

import json
import os
import random
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from buildsys.run import find_tool, kill_group, spawn
from common.disk import gpt
from image import qemu, secureboot
from image.host import opened
from tests import crashstates
from tests.boot.guest import BOOT_SECONDS, DISK_SIZE, Guest, wait_until
from tests.boot.projects import Project
from tests.crashstates import Start, Starts
from tests.ports import held_port
from tests.secureboot import keys, signer

MakeGuest = Callable[..., Guest]

OLD, NEW = "1.0.0", "1.1.0"
WHOLE = "MIXOS_WHOLE" in os.environ
CUTS = 12 if WHOLE else 3
AGAIN = 100 if WHOLE else 0  # more updates there and back
STATES = 20 if WHOLE else 3
HOOK = """#!/bin/sh
# Passes only where it is confined.
id=$(id -u)
[ "$id" != 0 ] || { echo "it runs as root"; exit 1; }
[ -n "$MIXOS_HOOK" ] && [ -n "$MIXOS_RUNNING" ] && [ -n "$MIXOS_RELEASE" ] || { echo "it was told nothing"; exit 1; }
[ -r /usr/lib/mixos/release ] || { echo "it does not see the system"; exit 1; }
[ ! -e /etc/mixos ] && [ ! -e /var/lib/mixos ] && [ ! -e /data ] || { echo "it sees the device's state"; exit 1; }
grep -q eth /proc/net/dev && { echo "it has a network"; exit 1; }
exit 0
"""
HOST = "10.0.2.2"  # this computer, as the guest's network has it


@dataclass(frozen=True)
class Made:
    """Two builds. old, new: their signed images."""

    project: Project
    old: Path
    new: Path

    def bundle(self, version: str, *words: str) -> Path:
        """The bundle of one of them, with a delta from the other."""
        found = self.project.base / "out" / f"mixos-{version}.mixb"
        if not found.exists():
            to, other = (self.new, self.old) if version == NEW else (self.old, self.new)
            self.project.mixos("bundle", str(to), "--from", str(other), *words)
        return found

    def build(self, version: str, signed: Path) -> None:
        """An image, signed for Secure Boot, with what enrols the keys."""
        image = self.project.build(version)
        files = secureboot.enrolment(keys(), datetime.now(UTC), certain=True)
        secureboot.sign_disk(image, signed, keys().db, files, 1703030400, policy=signer("policy"))
        image.unlink()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("made")
    found = Made(Project.copied(base), base / "old.img", base / "new.img")
    found.build(OLD, found.old)
    found.build(NEW, found.new)
    return found


@pytest.fixture(scope="module")
def guest(make_guest: MakeGuest, made: Made) -> Guest:
    """The old version, good, on a machine that had its keys enrolled."""
    found = make_guest(secure_boot=True)
    qemu.prepare_disk(made.old, found.vm.disk, DISK_SIZE, found.vm.default_preseed())
    found.start()
    is_good(found, OLD)
    return found


@pytest.fixture(scope="module")
def bundle(guest: Guest, made: Made) -> Path:
    """Of the new version, with hooks, and this device alone can read it."""
    hook = made.project.base / "hook"
    hook.write_text(HOOK)
    hooks = [word for when in ("before-stage", "before-apply") for word in ("--hook", f"{when}={hook}")]
    return made.bundle(NEW, *hooks, "--encrypt-to", guest.run("mixctl update key").strip())


@pytest.fixture(scope="module")
def web(bundle: Path) -> Iterator[str]:
    """The address at which the guest finds the bundle: a web server that has ranges."""
    with held_port() as port:
        server = spawn([find_tool("busybox"), "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", str(bundle.parent)])
        yield f"http://{HOST}:{port}/{bundle.name}"
        kill_group(server)


def status(guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(guest.run("mixctl update status --json"))
    return found


def is_good(guest: Guest, version: str) -> dict[str, Any]:
    """Wait until that version runs, and was called good."""
    guest.wait_ssh()
    guest.wait_daemon()
    assert wait_until(lambda: status(guest)["state"] == "good", BOOT_SECONDS), status(guest)
    found = status(guest)
    assert found["version"] == version, found
    return found


def test_over_ssh_and_back(guest: Guest, made: Made, bundle: Path, web: str) -> None:
    *program, host = guest.vm.ssh_command("admin", ())
    said = json.loads(made.project.mixos("update", host, str(bundle), "--ssh", shlex.join(program), "--json"))
    assert (said["version"], said["slot"], said["state"]) == (NEW, "b", "good")
    guest.hang_up()
    assert is_good(guest, NEW)["next"] == NEW
    assert guest.run("tail -c 1 /sys/firmware/efi/efivars/SecureBoot-* | od -An -t u1").split() == ["1"]
    assert "[integrity]" in guest.run("cat /sys/kernel/security/lockdown") or "[confidentiality]" in guest.run(
        "cat /sys/kernel/security/lockdown"
    )
    what = [one["what"] for one in json.loads(guest.run("mixctl update history --json"))]
    assert what[:2] == ["committed", "installed"]
    guest.run("mixctl update rollback")
    guest.reboot()
    assert is_good(guest, OLD)["blocked"] == {}
    for number in range(AGAIN):
        version = OLD if number % 2 else NEW
        made.bundle(version)
        guest.run(f"mixctl update stage --again {web.replace(NEW, version)}")
        guest.run("mixctl update apply --no-restart")
        guest.reboot()
        assert is_good(guest, version)["blocked"] == {}


def test_over_http_with_the_plug_pulled(guest: Guest, web: str) -> None:
    """At random moments while it is staged: each time the old version is there, and a retry goes on."""
    chance = random.Random(4)
    for _ in range(CUTS):
        with opened(guest.vm.disk, os.O_RDWR) as disk:  # so that there is something to be written
            place = gpt.read(disk).find("mixos-root-b")
        worker = threading.Thread(target=guest.attempt, args=(f"mixctl update stage {web}",), daemon=True)
        worker.start()
        worker.join(chance.uniform(1, 12))
        guest.discard()
        with opened(guest.vm.disk, os.O_RDWR) as disk:
            os.pwrite(disk, bytes(1 << 20), place.offset + chance.randrange(8) * (4 << 20))
        guest.start()
        is_good(guest, OLD)
    guest.run(f"mixctl update stage {web}")
    assert status(guest)["staged"] == NEW


def test_the_plug_pulled_while_it_is_applied(guest: Guest, web: str) -> None:
    """It starts one of the two; what was not applied can be applied."""
    chance = random.Random(5)
    for _ in range(CUTS):
        worker = threading.Thread(target=guest.attempt, args=("mixctl update apply --no-restart",), daemon=True)
        worker.start()
        worker.join(chance.uniform(0.2, 6))
        guest.discard()
        guest.start()
        guest.wait_ssh()
        guest.wait_daemon()
        assert wait_until(lambda: status(guest)["state"] == "good", BOOT_SECONDS)
        if status(guest)["version"] == NEW:
            guest.run("mixctl update rollback")
            guest.reboot()
            is_good(guest, OLD)
        guest.run(f"mixctl update stage {web}")


# -- what cuts leave behind --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logged:
    """What was on a disk before, the log, and how many events of it there were before each kind of change."""

    base: Path
    log: Path
    begins: dict[str, int]

    def states(self, starts: Starts) -> Iterator[tuple[str, Start]]:
        """Show what cuts leave of the changes; gives which change it is, and what the loader finds."""
        with crashstates.read_log(self.log) as log:
            first, *_ = begins = [*self.begins.values(), len(log.events)]
            for event in log.events[:first]:
                if event.size:
                    starts.scratch.write(event.offset, log.data(event))
            for kind, begin, end in zip(self.begins, begins, begins[1:], strict=False):
                part = replace(log, events=log.events[begin:end])
                for _ in crashstates.states(part, starts.scratch, seed=begin, orders=8):
                    yield kind, starts.look()


def changed(guest: Guest, web: str, base: Path) -> Logged:
    """OLD takes NEW, starts it, and goes back, with everything logged that firmware, loader and kernel write."""
    guest.discard()
    with opened(guest.vm.disk, os.O_RDWR) as disk:  # so that there is something to be written
        os.pwrite(disk, bytes(1 << 20), gpt.read(disk).find("mixos-root-b").offset)
    found = Logged(base / "base", base / "log", {})
    crashstates.Scratch(guest.vm.disk, found.base).close()

    def begin(kind: str) -> None:
        guest.run("sync")
        with crashstates.read_log(found.log) as log:
            found.begins[kind] = len(log.events)

    with opened(found.log, os.O_RDWR | os.O_CREAT) as file:
        os.truncate(file, 64 << 30)
    plain, guest.machine = guest.machine, replace(guest.machine, log=found.log)
    guest.start()
    is_good(guest, OLD)
    begin("stage")
    guest.run(f"mixctl update stage {web}")
    begin("apply")
    guest.run("mixctl update apply --no-restart")
    begin("start")
    guest.reboot()
    assert status(guest)["version"] == NEW
    begin("rollback")
    guest.run("mixctl update rollback")
    assert status(guest)["next"] == OLD
    guest.discard()
    guest.machine = plain
    return found


def some(seen: list[tuple[str, Start]], count: int, chance: random.Random) -> set[int]:
    """Numbers of states: one for each thing that the loader finds in a kind of change, as far as they are that many."""
    numbers = chance.sample(range(len(seen)), len(seen))
    like, order = Counter[object](), {}
    for number in numbers:
        kind, start = seen[number]
        like[kind, start, start.first] += 1
        order[number] = like[kind, start, start.first]
    return set(sorted(numbers, key=lambda number: order[number])[:count])


def test_what_the_loader_starts_is_what_was_said(guest: Guest, web: str, tmp_path: Path) -> None:
    """In some of the states that cuts leave; and `status` says it of the start that follows."""
    found, chance = changed(guest, web, tmp_path), random.Random(6)
    starts = Starts(found.base, tmp_path / "scratch")
    seen = list(found.states(starts))
    assert starts.scratch.same(guest.vm.disk)
    assert {start.versions[start.first] for _, start in seen} == {OLD, NEW}
    chosen = some(seen, STATES, chance)
    starts.scratch.close()
    starts = Starts(found.base, tmp_path / "scratch")
    for number, (kind, start) in enumerate(found.states(starts)):
        if number in chosen:
            crashstates.Scratch(starts.scratch.path, guest.vm.disk).close()
            said = start.versions[start.first]
            for _ in range(2):
                guest.start()
                guest.wait_ssh()
                guest.wait_daemon()
                now = status(guest)
                assert now["version"] == said, (kind, start, now)
                said = now["next"]
                guest.discard()
    starts.scratch.close()
