"""The guests of the boot tests. One boot serves all tests that only look; it is switched on when the first one asks."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buildsys.project import Project
from common.disk import gpt
from image import esp, qemu
from image.host import opened
from image.machine import Machine
from tests.boot.guest import BOOT_SECONDS, COUNTED, DISK_SIZE, FirstBoot, Guest, KeyVm, Shared
from tests.hostpackages import ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is a boot test; those that share the long-lived guest come first and in the order of its life,
    then the longest: files are given out in this order, and nobody waits for one at the end."""
    here = Path(__file__).parent
    order = [
        "system",
        "hardening",
        "services",
        "supervision",
        "units",
        "confinement",
        "interfaces",
        "vpn",
        "escapes",
        "life",
        "taking",
        "rescue",
        "hardware",
        "update",
        "secureboot",
        "faults",
        "storage",
        "reset",
        "firmware",
    ]
    names = [f"test_{name}.py" for name in order]
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.boot)
    items.sort(key=lambda item: names.index(item.path.name) + 1 if item.path.name in names else 0)


@pytest.fixture(scope="session")
def project() -> Project:
    """This checkout."""
    return Project.at(ROOT)


@pytest.fixture(scope="session")
def image(project: Project) -> Path:
    """The image under test. Its absence is a failure, never a skip."""
    if not project.image_file.is_file():
        pytest.fail(f"there is no image {project.image_file}; build it first: make image", pytrace=False)
    return project.image_file


@pytest.fixture(scope="session")
def manifest(project: Project, image: Path) -> dict[str, Any]:
    """out/manifest.json, which describes the image."""
    found: dict[str, Any] = json.loads((project.out / "manifest.json").read_bytes())
    return found


@pytest.fixture(scope="session")
def make_guest(project: Project, image: Path) -> Iterator[Callable[..., Guest]]:
    """Factory of guests that are not started yet; it ends those made before, since one machine at a time is enough.

    preseed: TOML text, put on the ESP as it is.
    """
    made: list[Guest] = []

    def make(size: int = DISK_SIZE, preseed: str | None = None, **machine: Any) -> Guest:
        for older in made:
            older.discard()
        # Short paths: the names of Unix sockets end at 107 bytes.
        vm = KeyVm(project, Path(tempfile.mkdtemp(prefix="mixos-boot-")))
        if preseed is None:
            vm.prepare(fresh=True, size=size, preseed=None)
        else:
            qemu.prepare_disk(image, vm.disk, max(size, image.stat().st_size), preseed)
        guest = Guest(vm, Machine(disk=vm.disk, ssh_port=0, **machine))
        made.append(guest)
        return guest

    yield make
    for guest in made:
        guest.discard()
        shutil.rmtree(guest.vm.state, ignore_errors=True)


@pytest.fixture(scope="session")
def shared(make_guest: Callable[..., Guest]) -> Shared:
    """Boot the image once, on virtio, with a disk larger than the image."""
    guest = make_guest()
    with opened(guest.vm.disk) as disk:
        fresh = esp.read(disk, gpt.read(disk).find(esp.NAME))
    began = time.monotonic()
    guest.start()
    guest.wait_ssh()
    seconds = time.monotonic() - began
    at_once = guest.attempt("mixctl status")
    guest.wait_daemon()
    guest.wait_serial("log in with", BOOT_SECONDS)
    first = FirstBoot(
        seconds,
        at_once,
        guest.serial,
        guest.status(),
        guest.run("cat /etc/ssh/ssh_host_ed25519_key.pub"),
        guest.run(COUNTED),
    )
    return Shared(guest, fresh, first)


@pytest.fixture
def guest(shared: Shared) -> Guest:
    """The shared guest, running."""
    return shared.guest


@pytest.fixture
def first(shared: Shared) -> FirstBoot:
    """What was recorded at the first boot."""
    return shared.first
