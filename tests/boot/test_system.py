"""The booted system as its owner sees it: status, identity, console, network, data, time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from buildsys.project import Project
from buildsys.run import run
from tests.boot.guest import DISK_SIZE, FirstBoot, Guest

MIB = 1 << 20
Record = Callable[[str, object], None]


def test_status_answers_as_soon_as_ssh_does(first: FirstBoot) -> None:
    """`mixos run --detach && mixos ssh -- mixctl status`, which every page tells people to type."""
    assert first.at_once.status == 0, first.at_once.stderr.decode()


def test_status_describes_this_image(first: FirstBoot, project: Project, manifest: dict[str, Any]) -> None:
    status = first.status
    assert status["version"] == project.config.image.version
    assert status["kernel"] == manifest["kernel"]["release"]
    assert status["slot"] == "a"
    assert status["hostname"] == project.config.settings["hostname"]
    assert status["data"]["persistent"] is True
    assert status["preseed"]["state"] == "applied"


def test_status_says_what_protects_the_device(first: FirstBoot) -> None:
    hardening = first.status["hardening"]
    assert hardening["verity"] == "verified"
    assert hardening["lockdown"] == "confidentiality"
    assert hardening["watchdog"] == "active"
    assert hardening["tainted"] == "0"
    assert hardening["sysctl_refused"] == []
    assert {"landlock", "yama", "lockdown"} <= set(hardening["lsm"])


def test_status_for_people(guest: Guest, first: FirstBoot) -> None:
    rows = {line[:14].strip(): line[14:] for line in guest.lines("mixctl status", user="admin")}
    assert rows["slot"] == "a"
    assert rows["version"] == first.status["version"]
    assert rows["root"] == "verified"
    assert rows["SSH host key"] == first.status["ssh_fingerprint"]


def test_a_mistake_at_mixctl_is_explained(guest: Guest) -> None:
    done = guest.attempt("mixctl statsu", user="admin")
    assert done.status == 2
    assert b"Traceback" not in done.stdout + done.stderr


def test_os_release_names_version_and_kernel(guest: Guest, project: Project, manifest: dict[str, Any]) -> None:
    pairs = dict(line.split("=", 1) for line in guest.lines("cat /etc/os-release", user="admin"))
    facts = {name: value.strip('"') for name, value in pairs.items()}
    kernel = manifest["kernel"]
    assert facts["ID"] == facts["IMAGE_ID"] == "mixos"
    assert facts["VERSION_ID"] == facts["IMAGE_VERSION"] == project.config.image.version
    assert facts["MIXOS_KERNEL_RELEASE"] == kernel["release"] == guest.run("uname -r")
    assert facts["MIXOS_KERNEL_REQUESTED"] == kernel["requested"]
    assert facts["MIXOS_KERNEL_SOURCE"] == kernel["source"]
    assert facts["MIXOS_KERNEL_FALLBACK"] == ("yes" if kernel["fallback"] else "no")
    assert ("MIXOS_KERNEL_NOTE" in facts) == kernel["fallback"]


def test_console_shows_address_and_the_key_that_ssh_met(guest: Guest, first: FirstBoot) -> None:
    # `accept-new` recorded the key that the server really used: an independent witness of what the banner says.
    known = run(["ssh-keygen", "-l", "-f", guest.vm.state / "known_hosts"]).text.split()[1]
    assert known == first.status["ssh_fingerprint"]
    banner = first.serial[first.serial.index(f"MixOS {first.status['version']}") :]
    assert f"SSH host key 256 {known}" in banner
    assert f"address      {address(first)}" in banner
    assert f"ssh admin@{address(first)}" in banner
    assert "login:" not in first.serial


def address(first: FirstBoot) -> str:
    """The IPv4 address of the only network card."""
    (card,) = first.status["network"]
    return str(card["addresses"][0])


def test_dhcp_gives_address_route_and_resolver(guest: Guest, first: FirstBoot) -> None:
    assert address(first) == "10.0.2.15"  # the first that QEMU's user network leases
    assert any(line.startswith("default via 10.0.2.2 ") for line in guest.lines("ip route"))
    assert "nameserver 10.0.2.3" in guest.lines("cat /etc/resolv.conf")


def test_data_fills_the_disk(guest: Guest, first: FirstBoot) -> None:
    device = first.status["data"]["device"].removeprefix("/dev/")
    start, size = (int(guest.run(f"cat /sys/class/block/{device}/{name}")) * 512 for name in ("start", "size"))
    assert DISK_SIZE - 2 * MIB <= start + size < DISK_SIZE
    assert first.status["data"]["type"] == "ext4"
    assert first.status["data"]["size"] > 0.9 * size
    assert "making the data file system" in first.serial
    assert f"grown to {size // MIB} MiB" in first.serial


def test_clock_is_that_of_the_hardware(guest: Guest) -> None:
    assert abs(int(guest.run("date +%s")) - time.time()) < 300
    assert guest.run("date +%Z") == "UTC"


def test_no_process_failed_at_boot(first: FirstBoot) -> None:
    for word in ("Traceback", "Oops", "BUG:", "WARNING:", "segfault", "not found", "can't ", "cannot", "No such file"):
        assert word not in first.serial, word


def test_boot_steps_are_timed(first: FirstBoot, record_property: Record) -> None:
    times = first.status["boot_times"]
    assert list(times.values()) == sorted(times.values())
    record_property("seconds power-on to SSH", round(first.seconds, 1))
    for step, seconds in times.items():
        record_property(f"seconds kernel start to {step}", seconds)


def test_memory_is_recorded(first: FirstBoot, record_property: Record) -> None:
    memory = first.status["memory"]
    assert 0 < memory["available"] < memory["total"]
    record_property("MiB used after boot", (memory["total"] - memory["available"]) >> 20)
    record_property("MiB of mixosd", memory["daemon"] >> 20)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_mixctl(guest: Guest, shell: str) -> None:
    assert "_MIXCTL_COMPLETE" in guest.run(f"mixctl completion {shell}", user="admin")
