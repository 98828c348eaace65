"""Faults of a version that is started for the first time, one after the other on one disk: each ends in the version
before, which says why. The new one has one start, so that one is enough."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from common.disk import gpt, verity
from image.host import opened
from image.qmp import Qmp
from tests.boot.guest import BOOT_SECONDS, Guest
from tests.boot.versions import Change, install, left

WHOLE = "MIXOS_WHOLE" in os.environ
TRIAL = "/run/mixos/trial"  # until when it has to be well, for the keeper
EVENTS = "events.sock"  # a monitor beside that of `image.qemu`, which drops events


@pytest.fixture(scope="module")
def guest(make_guest: Callable[..., Guest]) -> Guest:
    """Its slot a has the image."""
    return make_guest(extra=("-qmp", f"unix:{EVENTS},server=on,wait=off"))


def put(guest: Guest, version: str, change: Change) -> None:
    """A version with one start, for which the machine is switched off."""
    guest.discard()
    left(guest.vm.disk, install(guest.vm.disk, version, change=change), 1)


def beside(script: str) -> Change:
    """Of a command line: run a script, without = and ", beside what init starts."""
    return lambda line: line.replace("init=/sbin/init", "init=/bin/sh") + f' -- -c "({script})& exec /sbin/init"'


def why(guest: Guest, version: str) -> str:
    """What the version before says of it, once it runs."""
    guest.wait_serial("slot +a", 2 * BOOT_SECONDS)
    guest.wait_ssh()
    guest.wait_daemon()
    found: dict[str, Any] = json.loads(guest.run("mixctl update status --json"))
    assert (found["slot"], found["next-slot"]) == ("a", "a"), found
    assert guest.run("ls /sys/fs/pstore") == ""  # it would be the reason of the next failure as well
    reason: str = found["blocked"][version]
    assert reason.startswith("after 3 starts: ")
    return reason.removeprefix("after 3 starts: ")


def test_a_damaged_hash_tree(guest: Guest) -> None:
    put(guest, "9.0.0", lambda line: f"{line} panic=1")
    with opened(guest.vm.disk, os.O_RDWR) as disk:  # the second block has the hashes of the first 128
        os.pwrite(disk, b"damaged!", gpt.read(disk).find("mixos-verity-b").offset + verity.BLOCK)
    guest.start()
    guest.wait_serial(r"verity: \S+: metadata block 1 is corrupted")
    assert why(guest, "9.0.0") == "kernel panic: dm-verity device corrupted"


@pytest.mark.parametrize(("version", "signal"), [("9.1.0", "SEGV"), *([("9.1.1", "STOP")] if WHOLE else [])])
def test_a_daemon_that_crashes_or_hangs(guest: Guest, version: str, signal: str) -> None:
    """As often as init starts it: the keeper restarts the machine, whose time is made to end."""
    tell = f"echo '<2>fault: {signal}' >/dev/kmsg && echo 1 >{TRIAL}"
    put(guest, version, beside(f"while sleep 1; do killall -{signal} mixosd 2>/dev/null && {tell}; done"))
    guest.start()
    guest.wait_serial(
        rf"fault: {signal}(?s:.*)did not get well in time(?s:.*)reboot: Restarting system", 2 * BOOT_SECONDS
    )
    assert why(guest, version) == "it was not well in time: the daemon was never up"


def test_a_machine_that_hangs(guest: Guest) -> None:
    """The daemon and the keeper, which feeds the watchdog: its hardware resets the machine."""
    script = "until pidof mixosd; do sleep 1; done; killall -STOP watchdog mixosd; echo '<2>fault: STOP' >/dev/kmsg"
    put(guest, "9.2.0", beside(script))
    guest.start()
    with Qmp(guest.vm.state / EVENTS, BOOT_SECONDS) as events:
        guest.wait_serial("fault: STOP")
        assert events.event("WATCHDOG") == {"action": "reset"}
    assert why(guest, "9.2.0") == "the watchdog restarted the machine"
    assert "reboot: " not in guest.serial
