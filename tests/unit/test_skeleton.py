"""What is in the image as it stands: settings that go together, and scripts of early boot that can be run here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from buildsys.run import run
from daemon.client.console.repl import IDLE_SECONDS
from tests.hostpackages import ROOT

SKELETON = ROOT / "rootfs/skeleton"
BUSYBOX = "/usr/bin/busybox"


def test_what_holds_for_all_interfaces_holds_for_new_ones() -> None:
    text = (SKELETON / "usr/lib/sysctl.d/10-hardening.conf").read_text()
    found = dict(re.findall(r"^(net\.ipv4\.conf\.\S+) = (\S+)$", text, re.MULTILINE))
    every = {name.replace(".all.", ".default."): value for name, value in found.items() if ".all." in name}
    assert every
    assert {name: found.get(name) for name in every} == every


def test_a_shell_waits_for_a_key_as_long_as_the_console() -> None:
    said = run([BUSYBOX, "sh", "-c", f". {SKELETON}/etc/profile; echo $TMOUT; {BUSYBOX} sh -c 'echo $TMOUT'"]).text
    assert said.split() == [str(int(IDLE_SECONDS))] * 2
    requests = (ROOT / "packages/recipes/busybox/busybox.config").read_text().splitlines()
    assert "CONFIG_ASH_IDLE_TIMEOUT=y" in requests


def test_variables_of_the_firmware_are_read_only(tmp_path: Path) -> None:
    """The stage as it is, with a mount(8) that says how it is called."""
    places = ["/sys/kernel/security", "/sys/fs/pstore", "/sys/firmware/efi/efivars"]
    for place in places:
        (tmp_path / place[1:]).mkdir(parents=True)
    script = (SKELETON / "usr/lib/mixos/init/stages/10-mounts.sh").read_text()
    loop = script[script.index("for pair in securityfs") :].replace(":/sys/", f":{tmp_path}/sys/")
    lines = run(
        [BUSYBOX, "sh", "-eu", "-c", f'mount() {{ echo "$*"; }}; note() {{ echo "$*"; }}\n{loop}']
    ).text.splitlines()
    assert lines == [
        f"-t {kind} -o nosuid,nodev,noexec{more} {kind} {tmp_path}{place}"
        for (kind, more), place in zip((("securityfs", ""), ("pstore", ""), ("efivarfs", ",ro")), places, strict=True)
    ]


KEY = "ab" * 32
LINE = f'root=/dev/dm-0 dm-mod.create="root,,,ro,0 8 verity 1 PARTUUID=x PARTUUID=y 4096 4096 1 0 sha256 {KEY} cd 1"'


@pytest.mark.parametrize(
    ("ledger", "level", "migrations", "ran"),
    [
        (f"1 {KEY}", None, (), False),
        (None, None, (), True),
        (f"1 {KEY} pending", None, (), True),
        (f"1 {'cd' * 32}", None, (), True),
        (f"2 {KEY}", None, (), True),
        (f"1 {KEY}", "0002", ("m0001_a.py", "m0002_b.py"), False),
        (f"1 {KEY}", "0001", ("m0001_a.py", "m0002_b.py"), True),  # out of a backup
        (f"1 {KEY}", None, ("m0001_a.py",), True),
        (f"1 {KEY}", "0003", (), True),  # of a later version: said at every boot
    ],
)
def test_whether_the_data_are_handed_over(
    tmp_path: Path, ledger: str | None, level: str | None, migrations: tuple[str, ...], ran: bool
) -> None:
    files = {
        "proc/cmdline": LINE,
        "state/ledger": None if ledger is None else f"{ledger}\n{{}}\n",
        "var/lib/mixos/level": None if level is None else f"{level}\n",
        **{f"usr/lib/mixos/python/daemon/migrations/{name}": "" for name in ("__init__.py", *migrations)},
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (tmp_path / name).write_text(text)
    init = SKELETON / "usr/lib/mixos/init"
    script = (init / "stages/52-release.sh").read_text().replace(">/dev/console 2>&1", "")
    for place in ("/proc/", "/var/lib/", "/usr/lib/"):
        script = script.replace(place, f"{tmp_path}{place}")
    script = script.replace("/usr/libexec/mixos-handover", "echo ran")
    stubs = f". {init}/functions; mount() {{ :; }}; umount() {{ :; }}; RUN={tmp_path}/run STATE={tmp_path}/state\n"
    said = run([BUSYBOX, "sh", "-c", f"{stubs}DATA=/dev/x MIXOS_VERSION=1.0\n{script}"]).text
    assert said == (f"ran {tmp_path}/state {KEY} 1.0 {tmp_path}/run/image" if ran else "")
    assert run([BUSYBOX, "sh", "-c", f"{stubs}DATA= MIXOS_VERSION=1.0\n{script}"]).text == ""
