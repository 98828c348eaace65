"""A real QEMU with a boot sector instead of a system: the probe, starting, the lock, the console, stopping."""

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from buildsys.run import CLEAN_ENV
from common.errors import ImageError
from image import accel, qemu
from image.machine import Machine

pytestmark = pytest.mark.integration
BIOS_FLASH = 64 << 10


@pytest.fixture(autouse=True)
def _qemu() -> None:
    if shutil.which(accel.QEMU, path=CLEAN_ENV["PATH"]) is None:
        if os.environ.get("CI"):
            pytest.fail("QEMU is missing on a CI host")
        pytest.skip("this host has no QEMU")


@pytest.fixture
def idle(tmp_path: Path) -> Machine:
    """A machine whose firmware halts at once: the reset vector of the flash holds `hlt; jmp`."""
    code = bytearray(BIOS_FLASH)
    code[-16:-13] = b"\xf4\xeb\xfd"
    (tmp_path / "code.fd").write_bytes(code)
    (tmp_path / "vars.fd").write_bytes(bytes(BIOS_FLASH))
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    return Machine(
        disk=tmp_path / "disk",
        memory=64,
        cpus=1,
        acceleration="tcg",
        ssh_port=0,
        firmware=(tmp_path / "code.fd", tmp_path / "vars.fd"),
    )


def test_probe_runs_to_its_end_under_emulation() -> None:
    assert accel.probe("tcg", 60.0)


def test_life_of_a_machine(tmp_path: Path, idle: Machine) -> None:
    state = tmp_path / ("long-" * 25) / "state"  # longer than a socket address may be
    running = qemu.start(idle, state)
    try:
        assert running.alive()
        assert running.ssh_port
        assert qemu.load(state) == running
        with running.qmp() as monitor:
            assert monitor.command("query-status")["status"] == "running"
        with pytest.raises(ImageError) as caught:
            qemu.start(idle, state)
        assert caught.value.reason == "vm-running"
        assert (state / "vars.fd").read_bytes() == bytes(BIOS_FLASH)
        assert not qemu.wait_exit(running, 0.2)
    finally:
        how = qemu.stop(running, 0.2)
    assert how == "quit"  # nothing there listens to the power button
    assert not running.alive()
    assert qemu.load(state) is None
    assert qemu.stop(running, 0.2) in ("powerdown", "quit")  # again is no error


def test_frozen_machine_is_killed(tmp_path: Path, idle: Machine) -> None:
    running = qemu.start(idle, tmp_path / "state")
    os.kill(running.pid, 19)  # SIGSTOP: the monitor does not answer any more
    started = time.monotonic()
    assert qemu.stop(running, 0.1) == "kill"
    assert time.monotonic() - started < 60
    assert not running.alive()


def test_attached_machine_can_be_found_and_stopped(tmp_path: Path, idle: Machine) -> None:
    state = tmp_path / "state"
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(qemu.attach(replace(idle, serial="stdio"), state)))
    thread.start()
    deadline = time.monotonic() + 60
    while (running := qemu.load(state)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running is not None
    while not (state / "qmp.sock").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ImageError) as caught:
        qemu.start(idle, state)
    assert caught.value.reason == "vm-running"
    qemu.stop(running, 0.0)
    thread.join(60)
    assert ended == [0]
    assert qemu.load(state) is None


def test_taken_port_is_named(tmp_path: Path, idle: Machine) -> None:
    first = qemu.start(idle, tmp_path / "one")
    try:
        with pytest.raises(ImageError) as caught:
            qemu.start(replace(idle, ssh_port=first.ssh_port), tmp_path / "two")
        assert caught.value.reason == "port-taken"
    finally:
        qemu.stop(first, 0.0)


def test_missing_disk(tmp_path: Path, idle: Machine) -> None:
    with pytest.raises(ImageError) as caught:
        qemu.start(replace(idle, disk=tmp_path / "nothing"), tmp_path / "state")
    assert caught.value.reason == "vm-start"
    assert qemu.load(tmp_path / "state") is None
