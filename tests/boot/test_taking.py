"""Two real builds with different versions, signed by keys of this run: from one to the other and back, over SSH and
over HTTP, in firmware that enforces Secure Boot; and the plug is pulled meanwhile."""

from __future__ import annotations

import json
import os
import random
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from buildsys.run import find_tool, kill_group, spawn
from common.disk import gpt
from image import qemu, secureboot
from image.host import opened
from tests.boot.guest import BOOT_SECONDS, DISK_SIZE, Guest, wait_until
from tests.boot.projects import Project
from tests.ports import held_port
from tests.secureboot import keys, signer

MakeGuest = Callable[..., Guest]

OLD, NEW = "1.0.0", "1.1.0"
CUTS = 12 if "MIXOS_WHOLE" in os.environ else 3
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
    """Of the new version, with a delta from the old one and with hooks, that this device alone can read."""
    project = made.project
    hook = project.base / "hook"
    hook.write_text(HOOK)
    hooks = [word for when in ("before-stage", "before-apply") for word in ("--hook", f"{when}={hook}")]
    key = guest.run("mixctl update key").strip()
    project.mixos("bundle", str(made.new), "--from", str(made.old), *hooks, "--encrypt-to", key)
    return project.base / "out" / f"mixos-{NEW}.mixb"


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


def test_over_ssh_and_back(guest: Guest, made: Made, bundle: Path) -> None:
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
    guest.run("mixctl update apply --no-restart")
    assert status(guest)["next"] == NEW
    guest.reboot()
    is_good(guest, NEW)
