"""Factory reset: everything is erased, whatever state it is in, and the first boot begins again."""

from __future__ import annotations

import os
from collections.abc import Callable

from buildsys.run import run
from common.disk import gpt
from daemon import erase
from image.host import opened
from tests.boot.guest import BOOT_SECONDS, Guest

KEY = "cat /etc/ssh/ssh_host_ed25519_key.pub"


def test_all_data_are_erased_and_the_first_boot_begins_again(make_guest: Callable[..., Guest]) -> None:
    guest = make_guest()
    guest.start()
    guest.wait_ssh()
    guest.wait_daemon()
    guest.run("echo kept >/etc/mixos/marker; echo kept >/var/lib/marker; hostname")
    key, name = guest.run(KEY), guest.run("hostname")
    assert guest.attempt("mixctl system reset another").status == 7
    assert guest.attempt(f"mixctl system reset {name}", user="operator").status == 7
    start = len(guest.serial)
    guest.run(f"mixctl system reset {name}")
    guest.hang_up()
    guest.wait_serial("FACTORY RESET(?s:.*)making the data file system(?s:.*)log in with", 2 * BOOT_SECONDS, start)
    guest.wait_ssh()
    (guest.vm.state / "known_hosts").unlink()
    guest.wait_daemon()
    assert guest.run(KEY) != key
    assert guest.attempt("ls /etc/mixos/marker /var/lib/marker").status != 0
    assert guest.status()["data"]["persistent"]


def test_a_damaged_data_partition_is_erased_as_well(make_guest: Callable[..., Guest]) -> None:
    """It is neither blank nor a file system of ours: left alone, unless somebody wants it gone."""
    guest = make_guest()
    with opened(guest.vm.disk, os.O_RDWR) as disk:
        data = gpt.read(disk).find("mixos-data")
        os.pwrite(disk, os.urandom(1 << 20), data.offset)
        erase.want(disk, "overwrite")
    guest.start()
    guest.wait_serial("FACTORY RESET(?s:.*)making the data file system(?s:.*)log in with", 2 * BOOT_SECONDS)
    guest.wait_ssh()
    guest.wait_daemon()
    assert guest.status()["data"]["persistent"]
    assert guest.run("head -n 1 /data/mixos/ledger").startswith("1 ")
    guest.stop()
    with opened(guest.vm.disk) as disk:
        table = gpt.read(disk)
        assert (erase.wanted(table)[1], table.problems) == (None, ())

    # A file system that is smaller than its partition is fitted while it is mounted.
    at = f"offset={data.offset}"
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "mixos-data", "-E", at, guest.vm.disk, "65536"])
    guest.start()
    guest.wait_ssh()
    (guest.vm.state / "known_hosts").unlink()
    guest.wait_daemon()
    assert int(guest.lines("df -m /data")[1].split()[1]) > 1000
