"""Kernel settings at boot: the image's, then the device's own, which lie in a layer that is mounted in between."""

from __future__ import annotations

import os
from pathlib import Path

from buildsys.run import run
from tests.hostpackages import ROOT

INIT = ROOT / "rootfs/skeleton/usr/lib/mixos/init"


def boot(tmp_path: Path) -> str:
    """Run all stages that are about them, in order, below tmp_path; the overlay is what the stage 50 brings."""
    stages = sorted(path for path in (INIT / "stages").iterdir() if "sysctl" in path.name or "overlays" in path.name)
    script = f'RUN={tmp_path}; say() {{ echo "say $*"; }}; note() {{ echo "note $*"; }}\n'
    for stage in stages:
        script += f"mv {tmp_path}/layer {tmp_path}/etc\n" if "overlays" in stage.name else stage.read_text()
    script = script.replace(". /usr/lib/mixos/init/sysctl", (INIT / "sysctl").read_text())
    for place in ("/proc/sys", "/etc/sysctl.d", "/usr/lib/sysctl.d"):
        script = script.replace(place, f"{tmp_path}{place}")
    return run(["/usr/bin/busybox", "sh", "-eu", "-c", script]).text


# case: H14
def test_settings_of_the_device_are_in_force(tmp_path: Path) -> None:
    kernel = tmp_path / "proc/sys/kernel"
    kernel.mkdir(parents=True)
    for name in ("one", "two"):
        (kernel / name).write_text("0\n")
    for place, text in (
        ("usr/lib/sysctl.d", "# why\nkernel.one = 1\nkernel.two = 1\nkernel.gone = 1\n"),
        ("layer/sysctl.d", "kernel/two = 3\nkernel.two = 2\nkernel.none = 3\n"),
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "10.conf").write_text(text)
    said = boot(tmp_path)
    assert [(kernel / name).read_text() for name in ("one", "two")] == ["1\n", "2\n"]
    assert [line.partition(":")[2] for line in said.splitlines() if "otherwise" in line] == [" kernel/two"]
    assert (tmp_path / "sysctl").read_text() == "missing kernel.gone kernel.none\nrefused\n"


def test_settings_as_people_write_them(tmp_path: Path) -> None:
    """sysctl.d(5), and what editors of Windows make of it."""
    names = ("a", "b", "c", "conf/eth0/x", "conf/eth0.10/x", "conf/all/x", "conf/all/y")
    kernel = tmp_path / "proc/sys/net"
    for name in names:
        (kernel / name).parent.mkdir(parents=True, exist_ok=True)
        (kernel / name).write_text("0\n")
    secret = tmp_path / "secret"
    secret.write_text("as it was")
    folder = tmp_path / "layer/sysctl.d"
    folder.mkdir(parents=True)
    (tmp_path / "usr/lib/sysctl.d").mkdir(parents=True)
    (tmp_path / "usr/lib/sysctl.d/10.conf").write_text("net.a = 9\n")
    (folder / "10.conf").write_text("net.a=1\n; why\n  # why\n\tnet.b =\t1 2\t3 \r\n", newline="")
    (folder / "20.conf").write_bytes(b"\xef\xbb\xbfnet/c = 1\n-net.gone = 1\nnet.conf.*.x = 2\n-net.conf.all.x\n")
    (folder / "30.conf").write_text("net.conf.eth0/10.x = 3\nnet.conf.all.y = 4\nnet/../../../secret = 1\nnet.a\n")
    said = boot(tmp_path).splitlines()
    values = ["1", "1 2\t3", "1", "2", "3", "0", "4"]
    assert [(kernel / name).read_text().removesuffix("\n") for name in names] == values
    assert (tmp_path / "sysctl").read_text() == "missing\nrefused\n"
    assert secret.read_text() == "as it was"
    assert [line.partition(":")[2] for line in said if "otherwise" in line] == [" net/a"]
    assert [line for line in said if "secret" in line or "'net.a'" in line] == said[:2]
    assert len(said) == 3


def test_whatever_is_among_the_settings_the_boot_goes_on(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/one").write_text("0\n")
    (tmp_path / "usr/lib/sysctl.d").mkdir(parents=True)
    local = tmp_path / "layer/sysctl.d"
    local.mkdir(parents=True)
    (local / "0.conf").write_text("/* \nkernel.none = 1")  # no pattern; without its last newline
    (local / "1.conf").write_text("kernel.one = 1\n")
    os.mkfifo(local / "2.conf")
    (local / "3.conf").symlink_to("/dev/zero")
    (local / "4.conf").mkdir()
    (local / "5.conf").write_text("kernel.one = 2" + " " * (1 << 16) + "3\n")  # half of it is none
    said = boot(tmp_path)
    assert (tmp_path / "proc/sys/kernel/one").read_text() == "1\n"
    assert (tmp_path / "sysctl").read_text() == "missing kernel.none\nrefused\n"
    assert "'/*'" in said
    assert "64 KiB" in said
