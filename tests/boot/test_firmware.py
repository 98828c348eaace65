"""What images add to Secure Boot's databases, in firmware that enforces them: a new key of db, and a version that is
signed by it; and what would keep something from starting."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from buildsys.keys import secureboot as keys
from buildsys.keys.private import Passphrase, Private
from buildsys.keys.public import Public
from common.disk import gpt
from common.disk.fatedit import Editor
from common.efi import pe, siglist, uki
from common.efi.entries import FOLDER
from image import qemu, secureboot
from image.host import opened
from tests.boot.guest import BOOT_SECONDS, DISK_SIZE, Guest, wait_until
from tests.boot.projects import Project
from tests.boot.versions import install

EFIVARS = "/sys/firmware/efi/efivars"
OLD, NEW = "1.0.0", "9.0.0"


@dataclass(frozen=True)
class Made:
    """signed: an image, signed by db, that enrols db and adds db-2 to it, and db to dbx. keys: those of its project;
    successor: db-2."""

    signed: Path
    keys: secureboot.Keys
    successor: secureboot.Signer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("made")
    project = Project.copied(base)
    project.mixos("keys", "rotate", "db", "--no-passphrase")
    project.mixos("keys", "enrol", "db-2")
    project.mixos("keys", "revoke", "db")
    image, signed = project.build(OLD), base / "signed.img"
    private, public = Private(base / "private", Passphrase()), Public(base / "project/keys")
    found = Made(signed, keys.load(private, public), keys.load_one(private, public, "db-2"))
    files = secureboot.enrolment(found.keys, datetime.now(UTC), certain=True)
    secureboot.sign_disk(image, signed, found.keys.db, files, 1703030400)
    image.unlink()
    return found


def status(guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(guest.run("mixctl update status --json"))
    return found


def is_good(guest: Guest, version: str) -> None:
    guest.wait_ssh()
    guest.wait_daemon()
    assert wait_until(lambda: status(guest)["state"] == "good", BOOT_SECONDS), status(guest)
    assert status(guest)["version"] == version, status(guest)


def database(guest: Guest, name: str) -> list[bytes]:
    """What it holds."""
    done = guest.attempt(f"cat {EFIVARS}/{name}-{siglist.VARIABLES[name]}")
    return [one.data for one in siglist.read_variable(done.stdout)] if done.status == 0 else []


def is_held(guest: Guest, what: str) -> None:
    """The addition to dbx is not made, and it is told what would not start."""
    (row,) = status(guest)["firmware"]
    assert (row["name"], row["state"]) == ("0002-dbx", "held")
    assert what in row["why"], row
    assert database(guest, "dbx") == []


def sign_all_but(disk: Path, version: str, by: secureboot.Signer) -> None:
    """Have what firmware starts be signed, but for one version's kernel image."""
    with opened(disk, os.O_RDWR) as descriptor:
        table = gpt.read(descriptor)
        for place in [one for one in table.partitions if one.name.startswith("mixos-esp")]:
            esp = Editor(descriptor, place.offset, place.size)
            for path in [path for path in esp.files() if path.lower().endswith(".efi")]:
                image = esp.read(path)
                if not _is(path, image, version):
                    signed = secureboot.sign(pe.unsigned(image), by)
                    esp.replace(path, [signed], len(signed), epoch=0)


def _is(path: str, image: bytes, version: str) -> bool:
    """Whether it is the kernel image of a version."""
    if not path.startswith(f"{FOLDER}/"):
        return False
    found = uki.read_uki(image)
    return found.root_hash is not None and found.identity("IMAGE_VERSION") == version


def test_a_new_key_is_added_and_signs_the_next_version(make_guest: Callable[..., Guest], made: Made) -> None:
    guest = make_guest(secure_boot=True)
    qemu.prepare_disk(made.signed, guest.vm.disk, DISK_SIZE, guest.vm.default_preseed())
    guest.start()
    is_good(guest, OLD)
    both = [made.keys.db.der, made.successor.der]
    assert wait_until(lambda: database(guest, "db") == both, BOOT_SECONDS), guest.run("mixctl update status")
    assert wait_until(lambda: len(status(guest)["firmware"]) == 1, BOOT_SECONDS), status(guest)
    is_held(guest, "BOOTX64.EFI")
    assert database(guest, "KEK") == [made.keys.kek.der]
    (row,) = [one for one in json.loads(guest.run("mixctl update history --json")) if one["what"] == "firmware-changed"]
    assert (row["version"], row["reason"]) == (OLD, "0001-db")
    assert "ro," in guest.run(f"grep {EFIVARS} /proc/mounts")
    assert guest.attempt(f"touch {EFIVARS}/db-{siglist.VARIABLES['db']}").status
    assert "mixos-firmware" not in guest.run("dmesg | grep -i denied || true")
    guest.stop()
    install(guest.vm.disk, NEW)
    sign_all_but(guest.vm.disk, OLD, made.successor)
    guest.start()
    is_good(guest, NEW)
    assert guest.run(f"tail -c 1 {EFIVARS}/SecureBoot-* | od -An -t u1").split() == ["1"]
    assert database(guest, "db") == both
    assert wait_until(lambda: bool(status(guest)["firmware"]), BOOT_SECONDS)
    is_held(guest, f"({OLD})")
    assert len([one for one in json.loads(guest.run("mixctl update history --json")) if "firmware" in one["what"]]) == 1
