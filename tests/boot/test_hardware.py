"""Other disks, other settings, damaged images: one boot each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.disk import gpt
from common.errors import ImageError
from image import esp, flash
from image.host import opened
from tests.boot.guest import BOOT_SECONDS, DISK_SIZE, END_SECONDS, Guest

STATIC = "10.0.2.77/24"
MakeGuest = Callable[..., Guest]


def flip(disk: Path, offset: int) -> None:
    """Change one bit of the byte at `offset`."""
    with disk.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 0x10]))


def root_of(disk: Path) -> gpt.Partition:
    """The booted root partition."""
    with opened(disk) as handle:
        return gpt.read(handle).find("mixos-root-a")


def test_one_flipped_byte_stops_the_boot(make_guest: MakeGuest) -> None:
    guest = make_guest(reboot=False)
    flip(guest.vm.disk, root_of(guest.vm.disk).offset + 8)  # inside the superblock of the root file system
    guest.start()
    assert guest.ended(BOOT_SECONDS), guest.serial[-3000:]
    guest.wait_serial("Kernel panic - not syncing")
    assert "is corrupted" in guest.serial
    for words in ("mixos:", "MixOS ", "log in with"):
        assert words not in guest.serial


def test_a_flipped_byte_of_a_file_is_never_served(make_guest: MakeGuest, manifest: dict[str, Any]) -> None:
    """The byte is in the middle of the file data, where nothing may need it for the boot itself."""
    guest = make_guest(reboot=False)
    root = root_of(guest.vm.disk)
    flip(guest.vm.disk, root.offset + used_bytes(guest.vm.disk, root) // 2)
    guest.start()
    if not panicked_or_up(guest):
        guest.attempt("find / -xdev -type f -exec cat {} + >/dev/null")
    assert guest.ended(END_SECONDS), "every file of a damaged root could be read"
    guest.wait_serial("Kernel panic - not syncing: dm-verity device corrupted")


def panicked_or_up(guest: Guest) -> bool:
    """Wait until the guest has stopped or answers; whether it stopped."""
    try:
        guest.wait_ssh()
    except ImageError as error:
        if error.reason == "vm-died":
            return True
        raise
    return False


def used_bytes(disk: Path, root: gpt.Partition) -> int:
    """Size of the root file system: bytes_used of squashfs 4.0, or blocks of EROFS."""
    with disk.open("rb") as stream:
        stream.seek(root.offset)
        head = stream.read(2048)
    if head[:4] == b"hsqs":
        return int.from_bytes(head[40:48], "little")
    return int.from_bytes(head[1024 + 36 : 1024 + 40], "little") << head[1024 + 12]


def test_bad_settings_are_reported_and_ignored_on_a_disk_without_room(make_guest: MakeGuest) -> None:
    """NVMe, a disk as small as the image, and a preseed with two mistakes: the device comes up with its defaults."""
    lines = ('hostname = "not-applied"', "[network]", 'mod = "static"', "[[ssh.keys]]", 'key = "ssh-ed25519 AAAA"', "")
    preseed = "\n".join(lines)
    guest = make_guest(size=0, preseed=preseed, disk_bus="nvme")
    with opened(guest.vm.disk, os.O_RDWR) as handle:
        before = gpt.read(handle)
        esp.rewrite(handle, before.find(esp.NAME), {"mixos-preseed.toml.txt": b"", "notes.txt": b""}, 0)
    guest.start()
    guest.wait_ssh()
    guest.wait_serial("log in with ")
    text = guest.serial
    assert re.findall("'(.*)' on the ESP is NOT READ", text) == ["mixos-preseed.toml.txt"]
    assert "mixos-preseed.toml was IGNORED" in text
    assert "mixos-preseed.toml:3:1: network.mod" in text
    assert "mixos-preseed.toml:5:1: ssh.keys[0].key" in text
    assert "host name    mixos" in text
    assert "not-applied" not in text
    assert "grown to" not in text
    done = guest.connect(guest.command("admin", "true", options=("BatchMode=yes",)))
    assert done.status == 255
    assert b"Permission denied (publickey)" in done.stderr
    assert guest.stop() == "powerdown"
    with opened(guest.vm.disk) as handle:
        assert gpt.read(handle) == before


def test_a_disk_with_sectors_of_4096_bytes(make_guest: MakeGuest, image: Path, tmp_path: Path) -> None:
    """Flashed, booted from, grown at first boot, and the same at the second one."""
    guest = make_guest(sector=4096)
    (tmp_path / "preseed.toml").write_text(guest.vm.default_preseed())
    guest.vm.disk.unlink()
    with opened(guest.vm.disk, os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
        os.truncate(handle, DISK_SIZE)
    flash.flash(image, guest.vm.disk, lambda device: True, file=True, sector=4096, preseed=tmp_path / "preseed.toml")
    guest.start()
    guest.wait_ssh()
    guest.wait_serial("grown to ")
    guest.wait_daemon()
    assert guest.run("cat /sys/block/vda/queue/logical_block_size") == "4096"
    (entry,) = [one for one in json.loads(guest.run("mixctl update status --json"))["images"] if one["running"]]
    assert (entry["slot"], entry["next"]) == ("a", True)
    (boot,) = [disk for disk in json.loads(guest.run("mixctl storage disks --json")) if disk["boot"]]
    assert (boot["sector"], boot["slot"]) == (4096, "a")
    assert guest.status()["data"]["persistent"]
    guest.run("echo kept >/etc/kept")
    guest.reboot()
    assert guest.run("cat /etc/kept") == "kept"
    assert guest.stop() == "powerdown"
    with opened(guest.vm.disk) as handle:
        table = gpt.read(handle)
    assert (table.problems, table.geometry.sector) == ((), 4096)
    assert table.find("mixos-data").offset + table.find("mixos-data").size == DISK_SIZE - (1 << 20)


def test_static_network_name_and_time_zone(make_guest: MakeGuest, tmp_path: Path, port: int) -> None:
    address = STATIC.partition("/")[0]
    guest = make_guest()
    settings = "\n".join(
        [
            'hostname = "probe-7.example"',
            'timezone = "Europe/Berlin"',
            guest.vm.default_preseed(),
            "[network]",
            'mode = "static"',
            f'address = "{STATIC}"',
            'gateway = "10.0.2.2"',
            'dns = ["10.0.2.3"]',
        ]
    )
    (tmp_path / "preseed.toml").write_text(settings)
    guest.vm.prepare(fresh=True, size=2 << 30, preseed=tmp_path / "preseed.toml")
    guest.start()
    guest.port = port
    with guest.alive().qmp() as monitor:
        forward = f"hostfwd_add net0 tcp:127.0.0.1:{guest.port}-{address}:22"
        monitor.command("human-monitor-command", **{"command-line": forward})
    guest.wait_ssh()
    guest.wait_daemon()
    status = guest.status()
    assert status["hostname"] == guest.run("hostname") == "probe-7.example"
    (card,) = status["network"]
    assert card["addresses"][0] == address
    assert f"inet {STATIC} " in guest.run(f"ip -4 addr show {card['name']}")
    assert guest.lines("cat /etc/resolv.conf") == ["nameserver 10.0.2.3"]
    assert any(line.startswith("default via 10.0.2.2 ") for line in guest.lines("ip route"))
    assert guest.attempt("pidof udhcpc").status != 0
    assert guest.run("date +%Z") in ("CET", "CEST")
    assert status["data"]["device"].startswith("/dev/vda")
    assert json.dumps(status["preseed"]["changed"]).count("etc/mixos/network.conf") == 1
    guest.wait_serial(f"address      {address}")
    assert guest.stop() == "powerdown"


# case: B23
def test_usb_disk(make_guest: MakeGuest) -> None:
    guest = make_guest(disk_bus="usb", reboot=False)
    guest.start()
    guest.wait_ssh()
    guest.wait_daemon()
    assert guest.status()["data"]["device"].startswith("/dev/sda")
