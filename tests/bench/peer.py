"""The peer: a minimal system of this host's own distribution with systemd and OpenSSH, in the same virtual machine.

Debian's debootstrap makes it from the mirror that apt is configured for. Its kernel and initrd are handed over by QEMU
(through the same firmware), it has host keys already, a plain writable ext4 root and no verity: all in its favour.
"""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

from buildsys import apt
from buildsys.files import remove_tree
from buildsys.project import Project
from buildsys.run import CommandError, run
from common.errors import HostError

KERNELS = {"debian": "linux-image-amd64", "ubuntu": "linux-image-virtual"}
PACKAGES = ("systemd-sysv", "udev", "openssh-server", "dbus", "iproute2")
DISK_SIZE = "2G"
CMDLINE = "root=/dev/vda rw console=ttyS0,115200 quiet"
NETWORK = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n"
_SECONDS = 3600


@dataclass(frozen=True)
class Peer:
    """A built peer: name for tables, disk image, arguments for QEMU, the key of its root account."""

    name: str
    disk: Path
    arguments: tuple[str, ...]
    key: Path


def make(project: Project, *, fresh: bool = False) -> Peer:
    """Build the peer, or take the one that is in the cache. Raises HostError where it cannot be built."""
    system = platform.freedesktop_os_release()
    suite = system.get("VERSION_CODENAME", "")
    home = project.cache / "bench" / f"{system['ID']}-{suite}"
    disk, kernel, initrd, key = (home / name for name in ("disk.img", "vmlinuz", "initrd.img", "id_ed25519"))
    if fresh or not disk.is_file():
        if system["ID"] not in KERNELS or os.geteuid() != 0:
            raise HostError("the peer needs debootstrap and root", reason="bench-peer", hint="run it as root on Debian")
        home.mkdir(parents=True, exist_ok=True)
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", key])
        _build(home, suite, KERNELS[system["ID"]], key.with_suffix(".pub").read_text())
    words = ("-kernel", str(kernel), "-initrd", str(initrd), "-append", CMDLINE)
    return Peer(f"minimal {system['NAME'].split()[0]} {suite}", disk, words, key)


def _build(home: Path, suite: str, kernel: str, public: str) -> None:
    tree = Path(tempfile.mkdtemp(prefix="tree-", dir=home))
    try:
        _bootstrap(tree, suite, kernel)
        _configure(tree, public)
        for name in ("vmlinuz", "initrd.img"):
            source = max((tree / "boot").glob(f"{name}-*"))
            (home / name).write_bytes(source.read_bytes())
        fresh = home / "disk.new"
        fresh.unlink(missing_ok=True)
        run(["mke2fs", "-q", "-t", "ext4", "-d", tree, fresh, DISK_SIZE], timeout=_SECONDS)
        fresh.replace(home / "disk.img")
    finally:
        remove_tree(tree)


def _bootstrap(tree: Path, suite: str, kernel: str) -> None:
    """Unpack the packages from the first mirror that has the suite. Raises HostError."""
    tree.chmod(0o755)
    include = ",".join((*PACKAGES, kernel))
    problems: list[str] = []
    for mirror in apt.sites():
        try:
            argv: list[str | Path] = ["debootstrap", "--variant=minbase", f"--include={include}", suite, tree]
            run([*argv, mirror], inherit=("*_proxy",), timeout=_SECONDS)
            return
        except CommandError as error:
            problems.append(error.message)
    raise HostError("\n".join(problems) or "apt has no mirror", reason="bench-peer", hint="check apt's configuration")


def _configure(tree: Path, public: str) -> None:
    """A network by DHCP, a key for root, and the root file system checked as on any installation."""
    texts = {
        "etc/hostname": "peer\n",
        "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
        "etc/systemd/network/80-dhcp.network": NETWORK,
        "root/.ssh/authorized_keys": public,
    }
    for name, text in texts.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if name.startswith("root/") else 0o755)
        path.write_text(text)
    run(["chroot", tree, "systemctl", "enable", "systemd-networkd", "ssh"])
