"""Two versions on one disk: which is started, when it is called good, and when the other one is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from common.disk import gpt
from common.efi.entries import FOLDER
from common.efi.uki import read_uki
from image.host import opened
from tests.boot.guest import BOOT_SECONDS, Guest, wait_until
from tests.boot.versions import editor, entries, install

MakeGuest = Callable[..., Guest]

REQUIRED = """
[unit]
enabled = true
required-for-health = true
[service]
command = ["/bin/false"]
restart = "no"
"""


def status(guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(guest.run("mixctl update status --json"))
    return found


def up(guest: Guest) -> None:
    guest.wait_ssh()
    guest.wait_daemon()


def becomes_good(guest: Guest) -> None:
    assert wait_until(lambda: status(guest)["state"] == "good", BOOT_SECONDS), status(guest)


def fallen_back(make: MakeGuest, change: Callable[[str], str]) -> tuple[Guest, dict[str, Any]]:
    """1.0 is good; 9.0 is put beside it with another command line; what runs in the end."""
    guest = make()
    install(guest.vm.disk, "9.0.0", change=change)
    guest.start()
    up(guest)
    return guest, status(guest)


def test_both_versions_and_back(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.start()
    up(guest)
    first = status(guest)
    assert (first["slot"], first["state"]) == ("a", "trial")
    becomes_good(guest)
    guest.stop()
    (name,) = entries(guest.vm.disk)
    assert name.endswith("+4.efi")
    install(guest.vm.disk, "9.0.0")
    guest.start()
    up(guest)
    found = status(guest)
    assert (found["version"], found["slot"], found["next"]) == ("9.0.0", "b", "9.0.0")
    assert found["deadline"] or found["state"] == "good"
    key = found["images"][0]["root-hash"]
    assert guest.run("head -n 1 /data/mixos/ledger") == f"1 {key}"
    assert json.loads(guest.run("cat /run/mixos/release.json"))["how"] == "forward"
    guest.run("echo '# later' >> /etc/profile")
    becomes_good(guest)
    assert status(guest)["deadline"] is None
    assert json.loads(guest.run("mixctl update rollback --json")) == {"next": first["version"], "next-slot": "a"}
    guest.reboot()
    found = status(guest)
    assert (found["version"], found["slot"]) == (first["version"], "a")
    assert found["blocked"] == {}
    assert json.loads(guest.run("cat /run/mixos/release.json"))["how"] == "back"
    assert (found["data-problem"], found["conflicts"]) == (None, [])
    assert guest.run("tail -n 1 /etc/profile") == "# later"


def test_a_version_without_init_falls_back(make_guest: MakeGuest) -> None:
    guest, found = fallen_back(make_guest, lambda line: line.replace("init=/sbin/init", "init=/no/init panic=1"))
    assert found["slot"] == "a"
    assert found["last"]["what"] == "failed"
    assert "after 3 starts: kernel panic: Requested init /no/init failed" in found["blocked"]["9.0.0"]
    assert len([line for line in guest.serial.splitlines() if "Kernel panic" in line]) == 3


def test_a_version_whose_root_is_damaged_falls_back(make_guest: MakeGuest) -> None:
    guest = make_guest()
    install(guest.vm.disk, "9.0.0", change=lambda line: f"{line} panic=1")
    with opened(guest.vm.disk, os.O_RDWR) as disk:
        os.pwrite(disk, b"damaged!", gpt.read(disk).find("mixos-root-b").offset + 8)
    guest.start()
    up(guest)
    assert status(guest)["slot"] == "a"
    assert "9.0.0" in status(guest)["blocked"]


def test_a_version_that_never_gets_well_falls_back(make_guest: MakeGuest) -> None:
    """A unit that the operator requires does not come up in it: the keeper restarts it, three times."""
    guest = make_guest()
    guest.start()
    up(guest)
    becomes_good(guest)
    guest.run(
        "mkdir -p /etc/mixos/units && cat > /etc/mixos/units/must.toml && mixctl service reload",
        stdin=REQUIRED.encode(),
    )
    guest.stop()
    install(guest.vm.disk, "9.0.0", change=lambda line: f"{line} mixos.trial=60")
    guest.start()
    guest.wait_serial(r"(?:did not get well(?s:.*?)Restarting system(?s:.*?)){3}slot +a", 3 * BOOT_SECONDS)
    up(guest)
    found = status(guest)
    assert found["slot"] == "a"
    assert found["blocked"]["9.0.0"].startswith(
        "after 3 starts: it was not well in time: must is required for health, and is "
    )


def test_a_version_whose_kernel_image_is_damaged_falls_back(make_guest: MakeGuest) -> None:
    """Without Secure Boot firmware starts it, and the kernel cannot unpack itself: the loader gets that as an error."""
    guest = make_guest()
    install(guest.vm.disk, "9.0.0")
    with opened(guest.vm.disk, os.O_RDWR) as disk:
        esp = editor(disk)
        images = {path: esp.read(path) for path in esp.files() if path.startswith(FOLDER)}
        (newest,) = [path for path, data in images.items() if read_uki(data).identity("IMAGE_VERSION") == "9.0.0"]
        image = images[newest]
        damaged = image[: -2 << 20] + bytes(4096) + image[(-2 << 20) + 4096 :]
        esp.replace(newest, [damaged], len(damaged), epoch=0)
    guest.start()
    guest.wait_serial("slot +a", 3 * BOOT_SECONDS)
    guest.wait_ssh()
    assert guest.serial.count("Failed to decompress kernel") == 3
