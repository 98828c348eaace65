"""What a device keeps: limits that outlive a reboot, backup and restore, undo, health of disks, the figures' endpoint.

A guest of its own, with an NVMe and an AHCI disk beside the one that it boots from. The tests run in the order of this
file; between the two halves is one reboot.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.boot.guest import Guest, wait_until

SECONDS = 120.0
LIMIT = 4 << 20
LEDGER = '[unit]\ndescription = "{}"\n[service]\ncommand = ["/bin/sleep", "1000"]\nstate-directory = "ledger"\n'
LATER = '[service]\ncommand = ["/bin/true"]\n'
METRICS = '[prometheus]\nenable = true\nlisten = "127.0.0.1:9100"\n'
# Writes 8 MiB as root, the account that file systems forgive most; prints the error's number, or 0.
FILL = """
import os
path = "{}/fill"
descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
try:
    for _ in range(128):
        os.write(descriptor, os.urandom(1 << 16))
    os.fsync(descriptor)
    print(0)
except OSError as error:
    print(error.errno)
finally:
    os.close(descriptor)
    os.unlink(path)
"""
# What the owner of a file may do outside sandboxes: take it out of its project.
LEAVE = """import fcntl, os, struct
fd = os.open("/data/overlay/var/upper/lib/ledger/book", os.O_RDONLY)
fields = struct.unpack("=IIIII8x", fcntl.ioctl(fd, 0x801C581F, bytes(28)))
fcntl.ioctl(fd, 0x401C5820, struct.pack("=IIIII8x", *fields[:3], 0, fields[4]))"""
SCRAPE = """
import socket, sys
try:
    with socket.create_connection(("127.0.0.1", 9100), 30) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        while piece := connection.recv(65536):
            sys.stdout.buffer.write(piece)
except ConnectionRefusedError:
    print("refused")
"""


@pytest.fixture(scope="module")
def device(make_guest: Callable[..., Guest], tmp_path_factory: pytest.TempPathFactory) -> Guest:
    folder = tmp_path_factory.mktemp("disks")
    extra: list[str] = []
    for name, model in (("spare-nvme", "nvme"), ("spare-ata", "ide-hd")):
        with (folder / name).open("wb") as stream:
            stream.truncate(64 << 20)
        extra += ["-drive", f"if=none,id={name},format=raw,file={folder / name}"]
        extra += ["-device", f"{model},drive={name},serial={name}"]
    guest = make_guest(extra=tuple(extra))
    guest.start()
    guest.wait_ssh()
    guest.wait_daemon()
    put(guest, "units/ledger.toml", LEDGER.format("as it was"))
    mixctl(guest, "service reload")
    return guest


def mixctl(guest: Guest, words: str) -> Any:
    return json.loads(guest.run(f"mixctl {words} --json"))


def put(guest: Guest, name: str, text: str) -> None:
    guest.run(f"mkdir -p /etc/mixos/units && cat >/etc/mixos/{name}", stdin=text.encode())


def python(guest: Guest, script: str) -> str:
    return guest.run("python3 -I -", stdin=script.encode())


def fill(guest: Guest, folder: str = "/var/lib/ledger") -> int:
    return int(python(guest, FILL.format(folder)))


def newest(guest: Guest) -> dict[str, Any]:
    row: dict[str, Any] = mixctl(guest, "config history -n 1")[0]
    return row


def test_disks_of_three_kinds(device: Guest) -> None:
    disks = {row["name"]: row for row in mixctl(device, "storage disks")}
    assert {name: row["kind"] for name, row in disks.items()} == {"vda": "virtio", "nvme0n1": "nvme", "sda": "ata"}
    assert (disks["vda"]["boot"], disks["vda"]["slot"]) == (True, "a")
    assert disks["nvme0n1"]["serial"] == "spare-nvme"
    assert disks["nvme0n1"]["size"] == disks["sda"]["size"] == 64 << 20
    assert not disks["sda"]["boot"]


def test_the_disks_tell_how_they_are(device: Guest) -> None:
    """The NVMe log page, ATA SMART through SCSI; and a virtual disk that has neither."""
    rows = {row["name"]: row for row in mixctl(device, "storage health")}
    assert {name: row["state"] for name, row in rows.items()} == {"vda": "unknown", "nvme0n1": "ok", "sda": "ok"}, rows
    for name in ("nvme0n1", "sda"):
        assert rows[name]["findings"] == []
        assert 0 < rows[name]["temperature"] < 100
        assert rows[name]["power-on-hours"] >= 0
    assert 0 <= rows["nvme0n1"]["spare-percent"] <= 100


def test_free_blocks_are_given_back(device: Guest) -> None:
    assert mixctl(device, "storage trim")["bytes"] >= 0


def test_a_limit_is_enforced_at_once_also_for_root(device: Guest) -> None:
    assert fill(device, "/var/lib") == 0
    row = mixctl(device, "storage quota set ledger 4M")
    assert (row["limit"], row["enforced"], row["problem"]) == (LIMIT, True, None)
    assert fill(device) == errno.EDQUOT
    assert fill(device, "/var/lib") == 0
    device.run("head -c 1048576 /dev/urandom >/var/lib/ledger/book && sync")
    (row,) = mixctl(device, "storage quota")
    assert 1 << 20 <= row["used"] < LIMIT
    found = mixctl(device, "storage usage --fresh")["data"]
    assert {one["name"]: one["bytes"] >= 1 << 20 for one in found["units"]}["ledger"]


# case: H5
def test_what_left_its_quota_counts_again(device: Guest) -> None:
    (row,) = mixctl(device, "storage quota")
    python(device, LEAVE)
    (less,) = mixctl(device, "storage quota")
    assert less["used"] <= row["used"] - (1 << 20)
    device.run("kill -KILL $(head -n 1 /run/mixos/mixosd.lock)")  # it looks at its start, and each hour
    device.wait_daemon()
    assert wait_until(lambda: bool(mixctl(device, "storage quota")[0]["used"] >= row["used"]), 60)


def test_a_restore_brings_settings_units_and_state_back(device: Guest) -> None:
    secret = "--passphrase-file /tmp/secret"
    device.run("(umask 077; echo correct horse battery >/tmp/secret; echo battery horse correct >/tmp/wrong)")
    before = device.run("sha256sum /var/lib/ledger/book")
    made = mixctl(device, f"backup create /tmp/backup --state ledger {secret}")
    assert (made["encrypted"], made["backup"]["state"]) == (True, {"ledger": "ledger"})
    assert mixctl(device, f"backup verify /tmp/backup {secret}")["whole"] is True
    assert device.attempt("grep -q ledger /tmp/backup").status == 1

    put(device, "units/ledger.toml", LEDGER.format("changed"))
    put(device, "units/later.toml", LATER)
    device.run("echo changed >/var/lib/ledger/book; echo new >/var/lib/ledger/page")
    mixctl(device, "service reload")
    assert device.attempt("mixctl backup restore /tmp/backup --passphrase-file /tmp/wrong").status == 8
    told = mixctl(device, f"backup restore /tmp/backup --dry-run {secret}")
    assert {"etc/mixos/units/ledger.toml", "var/lib/ledger"} <= set(told["changed-files"])
    assert "etc/mixos/units/later.toml" in told["removed"]
    assert device.run("cat /var/lib/ledger/book") == "changed"

    told = mixctl(device, f"backup restore /tmp/backup {secret}")
    assert (told["restart"], told["reload"]) == (["ledger"], True)
    mixctl(device, "service reload")
    look_restored(device, before)
    # The state directory is a new one, and its limit follows it.
    assert wait_until(lambda: fill(device) == errno.EDQUOT, SECONDS)


def look_restored(device: Guest, book: str) -> None:
    assert device.run("sha256sum /var/lib/ledger/book") == book
    assert device.attempt("test -e /var/lib/ledger/page").status == 1
    assert mixctl(device, "service show ledger")["description"] == "as it was"
    assert device.attempt("mixctl service show later").status == 4


def test_a_running_unit_keeps_its_state(device: Guest) -> None:
    mixctl(device, "service start ledger")
    device.run("echo changed >/var/lib/ledger/mark")
    done = device.attempt("mixctl backup restore /tmp/backup --passphrase-file /tmp/secret --json")
    assert done.status != 0
    assert json.loads(done.stderr)["reason"] == "backup-unit-running"
    assert device.run("cat /var/lib/ledger/mark") == "changed"
    mixctl(device, "service stop ledger")
    device.run("rm /var/lib/ledger/mark")


def test_limit_and_restored_files_outlive_a_reboot(device: Guest) -> None:
    book = device.run("sha256sum /var/lib/ledger/book")
    device.reboot()
    look_restored(device, book)
    (row,) = mixctl(device, "storage quota")
    assert (row["limit"], row["enforced"], row["problem"]) == (LIMIT, True, None)
    assert fill(device) == errno.EDQUOT
    assert device.status()["parts"]["storage"]["quota-problems"] == {}
    assert mixctl(device, "storage quota clear ledger")["enforced"] is False
    assert fill(device) == 0


def scrape(device: Guest) -> str:
    return python(device, SCRAPE)


def test_the_endpoint_is_off_then_on_then_undone(device: Guest) -> None:
    """A change by hand is seen before anybody applies it; an undo takes effect, and can itself be undone."""
    assert scrape(device) == "refused"
    before = newest(device)["id"]
    assert mixctl(device, "config diff")["diff"] == ""
    put(device, "metrics.toml", METRICS)
    assert '+listen = "127.0.0.1:9100"' in mixctl(device, "config diff")["diff"]
    assert mixctl(device, "metrics --reload") == {"endpoint": "127.0.0.1:9100"}
    assert wait_until(lambda: newest(device)["id"] > before, SECONDS)
    assert (newest(device)["why"], newest(device)["files"]) == ("metrics.reload", ["metrics.toml"])

    head, _, body = scrape(device).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 ")
    families = {family.name: family for family in text_string_to_metric_families(body + "\n")}
    (build,) = families["mixos_build_info"].samples
    assert build.labels["version"] == device.status()["version"]
    assert {sample.labels["unit"] for sample in families["mixos_unit_tasks"].samples} >= {"dbus", "ntp"}

    undone = mixctl(device, "config undo")
    assert (undone["revision"], undone["changed-files"]) == (before, ["metrics.toml"])
    assert device.attempt("test -e /etc/mixos/metrics.toml").status == 1
    assert wait_until(lambda: scrape(device) == "refused", SECONDS)

    mixctl(device, "config undo")
    assert device.run("cat /etc/mixos/metrics.toml") == METRICS.strip()
    assert wait_until(lambda: scrape(device).startswith("HTTP/1.1 200 "), SECONDS)
    mixctl(device, f"config undo {before}")
    assert wait_until(lambda: scrape(device) == "refused", SECONDS)


def test_an_undo_changes_what_is_in_force(device: Guest) -> None:
    mixctl(device, "service reload")
    before = newest(device)["id"]
    put(device, "units/ledger.toml", LEDGER.format("changed again"))
    mixctl(device, "service reload")
    assert wait_until(lambda: newest(device)["id"] > before, SECONDS)
    undone = mixctl(device, f"config undo {before}")
    assert undone["changed-files"] == ["units/ledger.toml"]
    assert wait_until(lambda: mixctl(device, "service show ledger")["description"] == "as it was", SECONDS)


def test_the_busiest_first(device: Guest) -> None:
    found = mixctl(device, "top --rounds 1 --interval 1 --sort memory --count 5")
    sizes = [row["memory"] for row in found["processes"]]
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)
    assert found["process-count"] > 5


def test_nothing_of_all_this_was_denied(device: Guest) -> None:
    assert device.lines("dmesg | grep 'apparmor=\"DENIED\"'; :") == []
