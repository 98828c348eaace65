"""The runner without a real machine: arguments, private disks, state, a pretended monitor and SSH server."""

import fcntl
import json
import os
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from buildsys.project import Project
from buildsys.run import spawn
from buildsys.vm import Vm
from common.disk import gpt
from common.errors import HostError, ImageError, UsageError
from image import accel, esp, machine, qemu, qmp
from image.accel import Acceleration
from image.machine import Machine
from tests.hostpackages import ROOT as ROOT_FOLDER
from tests.images import ROOT, Bench
from tests.waiting import joined, until

TCG = Acceleration("tcg", "test")


@pytest.fixture
def firmware(tmp_path: Path) -> tuple[Path, Path]:
    code, variables = tmp_path / "code.fd", tmp_path / "template.fd"
    code.write_bytes(b"code")
    variables.write_bytes(b"variables")
    return code, variables


@pytest.fixture
def base(tmp_path: Path, firmware: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(machine, "find_tool", lambda name: Path("/usr/bin") / name)
    return Machine(disk=tmp_path / "d,isk.img", firmware=firmware)


def test_a_disk_that_does_not_hold_the_image_is_refused_and_nothing_forgotten(tmp_path: Path, monkeypatch) -> None:
    project = Project.at(ROOT_FOLDER, out=tmp_path / "out")
    project.out.mkdir()
    with project.image_file.open("wb") as stream:
        stream.truncate(3 << 30)
    preseed = tmp_path / "preseed.toml"
    preseed.write_text("")
    vm = Vm(project, tmp_path / "state")
    vm.state.mkdir()
    kept = [vm.disk, vm.state / "disk.json", vm.state / "known_hosts", vm.state / machine.VARIABLES]
    for path in kept:
        path.write_bytes(b"{}")
    with pytest.raises(ImageError) as caught:
        vm.prepare(fresh=True, size=1 << 20, preseed=preseed)
    assert (caught.value.reason, caught.value.exit_code) == ("disk-too-small", 8)
    assert all(path.exists() for path in kept)
    made = []
    monkeypatch.setattr(qemu, "prepare_disk", lambda image, disk, size, text: made.append(size))
    vm.prepare(fresh=True, size=None, preseed=preseed)
    vm.prepare(fresh=True, size=4 << 30, preseed=preseed)
    assert made == [3 << 30, 4 << 30]


def option(argv: list[str], name: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == name]


def test_arguments(base: Machine, tmp_path: Path) -> None:
    argv = machine.arguments(replace(base, ssh_port=2222, memory=512, cpus=3, reboot=False), tmp_path, TCG)
    assert option(argv, "-m") == ["512"]
    assert option(argv, "-smp") == ["3"]
    assert option(argv, "-cpu") == ["max,-erms,-fsrm"]
    assert option(argv, "-netdev") == ["user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22"]
    drives = option(argv, "-drive")
    assert any("readonly=on" in one and "code.fd" in one for one in drives)
    assert any(one.endswith("d,,isk.img") for one in drives)
    assert option(argv, "-action") == ["watchdog=reset", "reboot=shutdown"]
    assert "-nic" not in argv


def test_without_network_and_with_extras(base: Machine, tmp_path: Path) -> None:
    many = replace(base, extra_disks=(tmp_path / "b",), display="gtk", tpm=True, watchdog=False, extra=("-S",))
    argv = machine.arguments(many, tmp_path, TCG)
    assert option(argv, "-nic") == ["none"]
    assert option(argv, "-display") == ["gtk"]
    assert "tpm-crb,tpmdev=tpm0" in option(argv, "-device")
    assert "i6300esb" not in option(argv, "-device")
    assert argv[-1] == "-S"


def test_secure_boot(base: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its firmware keeps variables behind system management mode; nothing else may write them."""
    assert base.firmware is not None
    code, variables = base.firmware
    monkeypatch.setattr(machine, "SECURE_FIRMWARE", ((str(code), str(variables)),))
    argv = machine.arguments(replace(base, firmware=None, secure_boot=True), tmp_path, TCG)
    assert "smm=on" in option(argv, "-machine")[0].split(",")
    assert option(argv, "-global") == ["driver=cfi.pflash01,property=secure,value=on", "ICH9-LPC.disable_s3=1"]
    assert any(one.endswith(f"file={code}") for one in option(argv, "-drive"))
    assert "smm=off" in option(machine.arguments(base, tmp_path, TCG), "-machine")[0].split(",")
    monkeypatch.setattr(machine, "SECURE_FIRMWARE", ((str(code), "/nowhere"),))
    with pytest.raises(HostError) as caught:
        machine.firmware(secure_boot=True)
    assert caught.value.reason == "firmware-missing"


@pytest.mark.parametrize("bus", machine.DISK_BUSES)
def test_disk_buses(base: Machine, tmp_path: Path, bus: str) -> None:
    argv = machine.arguments(replace(base, disk_bus=bus), tmp_path, TCG)
    assert sum("bootindex=1" in one for one in option(argv, "-device")) == 1


def test_sectors_of_the_disk(base: Machine, tmp_path: Path) -> None:
    argv = machine.arguments(replace(base, sector=4096, extra_disks=(tmp_path / "b",)), tmp_path, TCG)
    (first,) = [one for one in option(argv, "-device") if "drive=disk0" in one]
    assert {"logical_block_size=4096", "physical_block_size=4096"} <= set(first.split(","))
    assert not any("4096" in one for one in option(argv, "-device") if "drive=disk1" in one)


@pytest.mark.parametrize("change", [{"disk_bus": "floppy"}, {"serial": "paper"}, {"memory": 1}, {"cpus": 0}])
def test_impossible_machines(base: Machine, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        machine.arguments(replace(base, **change), tmp_path, TCG)
    assert caught.value.reason == "bad-machine"


def test_private_disk(tmp_path: Path) -> None:
    image = Bench(tmp_path / "build", ROOT).image()
    before = (image.stat().st_mtime_ns, image.read_bytes())
    disk = qemu.prepare_disk(image, tmp_path / "run" / qemu.DISK, 512 << 20, 'hostname = "x"\n')
    assert (image.stat().st_mtime_ns, image.read_bytes()) == before
    table = gpt.read(disk)
    assert table.problems == ("backup-not-at-end",)
    assert disk.stat().st_size == 512 << 20
    assert disk.stat().st_blocks * 512 < 8 << 20
    with disk.open("rb") as file:
        assert esp.read(file.fileno(), table.find("mixos-esp"))["mixos-preseed.toml"] == b'hostname = "x"\n'
    with pytest.raises(ImageError) as caught:
        qemu.prepare_disk(image, tmp_path / "run" / "other", 1 << 20)
    assert caught.value.reason == "disk-too-small"
    assert list((tmp_path / "run").iterdir()) == [disk]


def record(state: Path, pid: int, start_time: int, port: int | None = None) -> None:
    state.mkdir(exist_ok=True)
    values = {"state": "x", "pid": pid, "start_time": start_time, "ssh_port": port, "acceleration": "tcg", "disk": "d"}
    (state / "machine.json").write_text(json.dumps(values))


def test_finding_a_machine_again(tmp_path: Path) -> None:
    own = qemu._start_time(os.getpid())
    assert own is not None
    assert qemu.load(tmp_path / "none") is None
    record(tmp_path / "s", os.getpid(), own, 99)
    found = qemu.load(tmp_path / "s")
    assert found is not None
    assert (found.pid, found.ssh_port, found.state) == (os.getpid(), 99, tmp_path / "s")
    record(tmp_path / "s", os.getpid(), own + 1)  # the number was given to another process
    assert qemu.load(tmp_path / "s") is None
    (tmp_path / "s" / "machine.json").write_text("{")
    assert qemu.load(tmp_path / "s") is None


LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_machine_lives_while_one_of_its_threads_does(tmp_path: Path) -> None:
    """QEMU's first thread can end before the others, which hold the lock of the state folder and the disk."""
    process = spawn([sys.executable, "-c", LEADERLESS], split=True)
    try:
        assert process.stdout is not None
        assert process.stdout.read(1)

        def fields() -> list[str]:
            return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()

        until(lambda: fields()[0] == "Z")
        running = qemu.Running(tmp_path, process.pid, int(fields()[19]), None, "", "")
        assert running.alive()
        assert not qemu.wait_exit(running, 0.0)
    finally:
        process.kill()
    assert qemu.wait_exit(running, 30)
    process.wait()


def test_one_machine_per_state_folder(base: Machine, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ImageError) as caught:
            qemu.start(replace(base, acceleration="tcg"), state)
    assert caught.value.reason == "vm-running"


class Monitor(threading.Thread):
    """Speaks QMP for one connection: answers with `replies` in turn."""

    def __init__(self, path: Path, replies: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.replies = replies
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen(1)
        self.start()

    def run(self) -> None:
        link, _ = self.server.accept()
        with link, link.makefile("rb") as lines:
            link.sendall(b'{"QMP": {}}\n')
            for reply in [b'{"return": {}}\n', *self.replies]:
                lines.readline()
                link.sendall(reply)


def test_monitor(tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    events = b'{"event": "RESET"}\n'
    Monitor(path, [events + b'{"return": {"status": "running"}}\n', b'{"error": {"desc": "no"}}\n', b"junk\n", b""])
    with qmp.Qmp(path, timeout=5) as monitor:
        assert monitor.command("query-status") == {"status": "running"}
        for reason in ("qmp-refused", "qmp-protocol", "qmp-closed"):
            with pytest.raises(ImageError) as caught:
                monitor.command("anything")
            assert caught.value.reason == reason


def test_no_monitor(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        qmp.Qmp(tmp_path / "qmp.sock")
    assert caught.value.reason == "qmp-connect"


def test_monitor_below_a_very_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.chdir(folder)
    Monitor(Path("qmp.sock"), [b'{"return": 1}\n'])
    with qmp.Qmp(folder / "qmp.sock", timeout=5) as monitor:
        assert monitor.command("x") == 1


def test_waiting_for_ssh(tmp_path: Path) -> None:
    own = qemu._start_time(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server:
        running = qemu.Running(tmp_path, os.getpid(), own or 0, server.getsockname()[1], "tcg", "d")

        def guest() -> None:
            for banner in (b"", b"SSH-2.0-OpenSSH_10.0\r\n"):
                link, _ = server.accept()
                with link:
                    link.sendall(banner)

        thread = threading.Thread(target=guest, daemon=True)
        thread.start()
        assert qemu.wait_ssh(running, 10) == "SSH-2.0-OpenSSH_10.0"
        joined(thread)
    with pytest.raises(ImageError) as caught:
        qemu.wait_ssh(running, 0.3)
    assert caught.value.reason == "ssh-timeout"
    with pytest.raises(ImageError) as caught:
        qemu.wait_ssh(replace(running, start_time=0), 5)
    assert caught.value.reason == "vm-died"


def test_an_attempt_that_the_guest_never_sees_does_not_hold_up_the_next(tmp_path: Path) -> None:
    own = qemu._start_time(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server:
        running = qemu.Running(tmp_path, os.getpid(), own or 0, server.getsockname()[1], "tcg", "d")

        def guest() -> None:
            lost, _ = server.accept()
            with lost, server.accept()[0] as link:
                link.sendall(b"SSH-2.0-OpenSSH_10.0\r\n")
                lost.settimeout(10)
                assert lost.recv(1) == b""  # it was still open until the other one was answered

        thread = threading.Thread(target=guest, daemon=True)
        thread.start()
        assert qemu.wait_ssh(running, 10) == "SSH-2.0-OpenSSH_10.0"
        joined(thread)


@pytest.mark.parametrize("end", ["kill -ABRT $$", "exit 1", "exit 0", "exec sleep 60"])
def test_an_acceleration_that_does_not_run_a_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """QEMU aborts on some hosts instead of starting a KVM guest; on others the guest hangs."""
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(accel, "find_tool", lambda name: program)
    assert accel.probe("kvm", 2.0) is False


def test_probe_is_remembered_until_the_host_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(accel, "probe", lambda name: bool(asked.append(name)))
    monkeypatch.setattr(accel, "_host_key", lambda: "host 1")
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    cache = tmp_path / "deep" / "accel.json"
    assert [accel.choose("auto", cache).name for _ in range(3)] == ["tcg"] * 3
    assert asked == ["kvm"]
    record = json.loads(cache.read_text())
    cache.write_text(json.dumps(record | {"time": record["time"] - 4000}))  # a "no" does not hold for ever
    accel.choose("auto", cache)
    asked.pop()
    monkeypatch.setattr(accel, "_host_key", lambda: "host 2")
    accel.choose("auto", cache)
    cache.write_text("torn")
    accel.choose("auto", cache)
    assert asked == ["kvm"] * 3
    assert accel.choose("auto", cache.parent / "file.json" / "in a file").name == "tcg"
    (cache.parent / "file").touch()
    assert accel.choose("auto", cache.parent / "file" / "accel.json").name == "tcg"
    del asked[3:]
    assert accel.choose("kvm", cache).name == "kvm"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert accel.choose("auto", cache).name == "tcg"
    assert len(asked) == 3
