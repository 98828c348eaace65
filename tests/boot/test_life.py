"""Reboot, switch off, switch on again: what stays, what happens only once, and what the boot counter does.

These tests change the shared guest and run in the order of this file: booted once (virtio) → `mixctl reboot` → power
button → booted a third time, now from an AHCI disk.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import pytest

from common.disk import gpt
from common.efi.entries import FOLDER, image_name
from image import esp
from image.host import opened
from tests.boot.guest import COUNTED, FirstBoot, Guest, Shared

FIRST_BOOT_WORDS = ("making the data file system", "grown to", "was applied")
EXT4_VALID = 1  # s_state: unmounted cleanly
EXT4_NEEDS_RECOVERY = 4  # s_feature_incompat: the journal was not replayed


@dataclass(frozen=True)
class Seen:
    """What a later boot looked like. serial: only what this boot wrote."""

    serial: str
    status: dict[str, Any]
    host_key: str
    counted: str


def look(guest: Guest, start: int = 0) -> Seen:
    """Look around after a boot whose console output begins at character `start`."""
    guest.wait_serial("log in with", start=start)
    return Seen(
        guest.serial[start:],
        guest.status(),
        guest.run("cat /etc/ssh/ssh_host_ed25519_key.pub"),
        guest.run(COUNTED),
    )


@pytest.fixture(scope="module")
def rebooted(shared: Shared) -> Seen:
    """The shared guest after writing to /etc, /var and home, and one `mixctl reboot`."""
    guest = shared.guest
    guest.run("echo kept >/etc/mixos/marker; echo kept >/var/lib/marker; echo localhost 127.0.0.9 >>/etc/hosts")
    guest.run("echo kept >~/marker", user="admin")
    start = len(guest.serial)
    guest.reboot()
    return look(guest, start)


@dataclass(frozen=True)
class Off:
    """The shared guest, switched off: how it ended, its ESP, its data partition's superblock."""

    how: str
    serial: str
    files: dict[str, bytes]
    problems: tuple[str, ...]
    superblock: bytes


@pytest.fixture(scope="module")
def off(shared: Shared, rebooted: Seen) -> Off:
    """The shared guest after the power button, its disk as it lies on the host."""
    guest = shared.guest
    how = guest.stop()
    with opened(guest.vm.disk) as disk:
        table = gpt.read(disk)
        data = table.find("mixos-data")
        with guest.vm.disk.open("rb") as stream:
            stream.seek(data.offset + 1024)
            superblock = stream.read(1024)
        return Off(how, guest.serial, esp.read(disk, table.find(esp.NAME)), table.problems, superblock)


@pytest.fixture(scope="module")
def third(shared: Shared, off: Off) -> Seen:
    """The shared guest switched on again, its disk now on AHCI."""
    guest = shared.guest
    guest.machine = replace(guest.machine, disk_bus="ahci")
    guest.start()
    guest.wait_ssh()
    guest.wait_daemon()
    return look(guest)


def test_what_was_written_is_still_there(guest: Guest, rebooted: Seen) -> None:
    assert guest.lines("cat /etc/mixos/marker /var/lib/marker") == ["kept", "kept"]
    assert guest.run("cat ~/marker", user="admin") == "kept"
    assert "localhost 127.0.0.9" in guest.lines("cat /etc/hosts")


def test_a_reboot_is_a_new_boot_of_the_same_device(first: FirstBoot, rebooted: Seen) -> None:
    assert rebooted.serial.count("BdsDxe: starting") == 1, rebooted.serial  # the firmware ran once: no boot failed
    assert rebooted.status["boot_id"] != first.status["boot_id"]
    assert rebooted.host_key == first.host_key
    assert rebooted.status["slot"] == "a"
    assert rebooted.status["data"]["size"] == first.status["data"]["size"]
    assert rebooted.status["hardening"] == first.status["hardening"]


def test_first_boot_happens_once(first: FirstBoot, rebooted: Seen) -> None:
    for words in FIRST_BOOT_WORDS:
        assert words in first.serial
        assert words not in rebooted.serial
    assert rebooted.status["preseed"] is None


def test_services_were_ended_before_the_reboot(shared: Shared, rebooted: Seen) -> None:
    assert "mixos: going down" in shared.guest.serial[: -len(rebooted.serial)] + rebooted.serial
    assert "was repaired" not in rebooted.serial


def test_power_button_ends_it_cleanly(off: Off) -> None:
    assert off.how == "powerdown"
    assert "mixos: going down" in off.serial
    assert off.problems == ()
    magic, state = struct.unpack_from("<HH", off.superblock, 0x38)
    (incompatible,) = struct.unpack_from("<I", off.superblock, 0x60)
    assert magic == 0xEF53
    assert state == EXT4_VALID
    assert not incompatible & EXT4_NEEDS_RECOVERY


def test_the_device_wrote_only_the_counter_and_the_seed_to_the_esp(shared: Shared, off: Off) -> None:
    files = dict(off.files)
    assert len(files.pop(esp.SEED)) == esp.SEED_SIZE
    assert sorted(files.values()) == sorted(data for path, data in shared.esp.items() if path != esp.SEED)


def test_the_boot_manager_counts(
    manifest: dict[str, Any], first: FirstBoot, rebooted: Seen, off: Off, third: Seen
) -> None:
    """From 3 until it is called good, then from 4 at each boot; one that is the last keeps its 3 when it comes up."""
    stem = f"{FOLDER}/{image_name(bytes.fromhex(manifest['image']['root_hash']))}+"
    assert len([path for path in off.files if path.startswith(stem)]) == 1
    for seen, counters in ((first, ("2-1",)), (rebooted, ("2-1", "3-1")), (third, ("2-1", "3-1"))):
        assert seen.counted.replace("\\", "/") in [f"/{stem}{counter}.efi" for counter in counters]


def test_the_same_disk_boots_from_ahci(first: FirstBoot, third: Seen) -> None:
    assert third.status["data"]["device"].startswith("/dev/sda")
    assert third.status["data"]["size"] == first.status["data"]["size"]
    assert third.host_key == first.host_key
    assert third.status["hardening"]["verity"] == "verified"
    assert not [words for words in FIRST_BOOT_WORDS if words in third.serial]
