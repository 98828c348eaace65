"""No version that starts: the machine ends in the rescue entry, stays there, and is brought back from its console."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable

from common.disk import gpt
from image import esp
from image.host import opened
from tests.boot.guest import BOOT_SECONDS, Guest, wait_until
from tests.boot.versions import entries, install, left

MakeGuest = Callable[..., Guest]
PROMPT = r"number: $"


class Console:
    """Somebody at the serial console."""

    def __init__(self, guest: Guest) -> None:
        self.guest, self.seen = guest, 0

    def wait(self, pattern: str) -> re.Match[str]:
        """For a text behind the last one that was waited for."""
        found = self.guest.wait_serial(pattern, BOOT_SECONDS, self.seen)
        self.seen += found.end()
        return found

    def type(self, line: str) -> None:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(os.fspath(self.guest.alive().console))
            channel.sendall(f"{line}\r".encode())

    def choose(self, text: str) -> None:
        """The line of the menu with this text, once the menu is there."""
        number = self.wait(rf"  (\d+)  {text}")[1]
        self.wait("number: ")
        self.type(number)


def test_both_slots_bad_ends_in_the_rescue_entry(make_guest: MakeGuest) -> None:
    guest = make_guest()
    (old,) = entries(guest.vm.disk)
    new = install(guest.vm.disk, "9.0.0", change=lambda line: line.replace("init=/sbin/init", "init=/no/init panic=1"))
    left(guest.vm.disk, old, 0)
    left(guest.vm.disk, new, 1)
    guest.start()
    console = Console(guest)
    console.wait("Kernel panic - not syncing: Requested init /no/init failed")
    console.wait("MixOS rescue")
    console.wait("No version is left to start")
    shown = console.wait(r"9\.0\.0 \(slot b\): (.*)\n  (\S+) \(slot a\): (.*)\n")
    assert "kernel panic: Requested init /no/init failed" in shown[1]
    version = shown[2]
    assert "open a shell" not in guest.serial  # the image does not allow it
    console.choose("show the last messages of the kernel")
    console.wait("before this start: kernel panic: Requested init /no/init failed")
    console.choose("start a version again")
    number = console.wait(rf"  (\d)  {re.escape(version)} \(slot a\)")[1]
    console.wait("to go back: ")
    console.type(number)
    console.wait(rf"The next start is that of {re.escape(version)}")
    console.choose("restart")
    guest.wait_ssh()
    guest.wait_daemon()
    found = json.loads(guest.run("mixctl update status --json"))
    assert (found["version"], found["slot"]) == (version, "a")
    assert list(found["blocked"]) == ["9.0.0"]
    assert wait_until(lambda: json.loads(guest.run("mixctl update status --json"))["state"] == "good", BOOT_SECONDS)


def test_firmware_falls_back_to_the_second_esp(make_guest: MakeGuest) -> None:
    guest = make_guest()
    with opened(guest.vm.disk, os.O_RDWR) as descriptor:
        first = gpt.read(descriptor).find(esp.NAME)
        os.pwrite(descriptor, bytes(1 << 20), first.offset)
    guest.start()
    console = Console(guest)
    console.wait("MixOS rescue")
    console.wait("the EFI system partition cannot be read")
    console.choose("switch off")
    assert guest.ended()
