"""What is in the image as it stands: settings that go together, and scripts of early boot that can be run here."""

from __future__ import annotations

import re
from pathlib import Path

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
