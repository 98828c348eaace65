"""The virtual machine that `mixos run` starts for this checkout: its disk, its key, and how to reach it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from buildsys.files import atomic_write
from buildsys.project import Project
from buildsys.run import run
from common.errors import ImageError, UsageError
from image import qemu, secureboot
from image.flash import check_preseed
from image.machine import VARIABLES
from image.qemu import Running

DISK_SIZE = 2 << 30  # bytes: larger than the image, so that first boot has something to grow into


@dataclass(frozen=True)
class Vm:
    """Paths of the machine of one checkout (or of one state folder, for several machines)."""

    project: Project
    state: Path

    @property
    def disk(self) -> Path:
        """The machine's own disk; the image is never written to."""
        return self.state / qemu.DISK

    @property
    def key(self) -> Path:
        """The private SSH key of this host for machines it runs; made on first use, never part of an image."""
        path = self.project.cache / "ssh" / "id_ed25519"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mixos run", "-f", path])
        return path

    @property
    def image(self) -> Path:
        """The image that was built. Raises ImageError."""
        image = self.project.image_file
        if not image.is_file():
            raise ImageError(f"there is no image {image}", reason="image-missing", hint="build it first: make image")
        return image

    def signed_image(self, certificates: bytes, load: Callable[[], secureboot.Keys]) -> Path:
        """The image signed for Secure Boot, with the files that enrol the keys, made unless there is one of that very
        image. certificates: what tells these keys from others. load: called only when it must be signed."""
        signed, record, info = self.state / "signed.img", self.state / "signed.json", self.image.stat()
        name = hashlib.sha256(certificates).hexdigest()
        wanted = {"image": [info.st_size, info.st_mtime_ns, info.st_ino], "certificates": name}
        if not signed.exists() or _read(record) != wanted:
            keys = load()
            self.state.mkdir(parents=True, exist_ok=True)
            record.unlink(missing_ok=True)
            now = datetime.now(UTC)
            files = secureboot.enrolment(keys, now, certain=True)  # a virtual machine has no option ROMs
            secureboot.sign_disk(self.image, signed, keys.db, files, int(now.timestamp()))
            atomic_write(record, json.dumps(wanted).encode())
        return signed

    def prepare(self, *, fresh: bool, size: int | None, preseed: Path | None, image: Path | None = None) -> None:
        """Make the machine's disk from the image (or a signed one), unless there is one of that very image to go on
        with. fresh: forget it, and what the firmware keeps; size: None for the usual one, and more if the image is.

        Raises ImageError `disk-too-small` before anything is forgotten.
        """
        image = image or self.image
        record = self.state / "disk.json"
        text = check_preseed(preseed) if preseed is not None else self.default_preseed()
        info = image.stat()
        size = max(DISK_SIZE, info.st_size) if size is None else size
        qemu.check_size(image, size)
        wanted = {"image": [info.st_size, info.st_mtime_ns, info.st_ino], "size": size, "preseed": text}
        if not fresh and self.disk.exists() and _read(record) == wanted:
            return
        self.state.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        (self.state / "known_hosts").unlink(missing_ok=True)
        if fresh:
            (self.state / VARIABLES).unlink(missing_ok=True)
        qemu.prepare_disk(image, self.disk, size, text)
        atomic_write(record, json.dumps(wanted).encode())

    def default_preseed(self) -> str:
        """First-boot settings that let this host's key in as admin."""
        public = self.key.with_suffix(".pub").read_text().strip()
        return f'[[ssh.keys]]\naccount = "admin"\nkey = "{public}"\n'

    def running(self) -> Running:
        """The machine, if it runs. Raises UsageError."""
        found = qemu.load(self.state)
        if found is None:
            raise UsageError("no machine is running", reason="vm-not-running", hint="start one: mixos run --detach")
        return found

    def ssh_command(self, user: str, command: tuple[str, ...]) -> list[str]:
        """The ssh argv that reaches the running machine. Raises UsageError when it has no network."""
        port = self.running().ssh_port
        if port is None:
            raise UsageError("this machine was started without a network", reason="vm-no-network")
        options = {
            "IdentityFile": ssh_value(self.key),
            "UserKnownHostsFile": ssh_value(self.state / "known_hosts"),
            "StrictHostKeyChecking": "accept-new",  # a new disk has a new key; later changes are refused
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "ConnectTimeout": "60",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        target = ["-p", str(port), f"{user}@127.0.0.1"]
        # Without the configuration of the user and the host, which are about other machines.
        return ["ssh", "-F", "none", *words, *target, *(("--", *command) if command else ())]


def ssh_value(path: Path) -> str:
    """A path as the value of an option of ssh, which would take blanks, quotes and % for something else
    (ssh_config(5))."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
