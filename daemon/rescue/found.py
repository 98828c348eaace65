"""What the rescue entry finds: the disk that it belongs to, and why no version of it was started."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from common.errors import DiskError, MixosError
from common.files import read_regular
from common.safe import one_line
from daemon.linux import process
from daemon.linux.facts import ROOT, text
from daemon.parts.update.boot import Disk, Image, node, variable
from daemon.parts.update.ending import ending
from daemon.parts.update.record import MAX_BYTES, Record
from daemon.parts.update.verdict import reason

PATIENCE = 20.0  # seconds for which a disk may take to appear, as for the root of an ordinary start
DATA = "mixos-data"
VAR, ETC = "overlay/var/upper", "overlay/etc/upper"  # on the data partition
RECORD = f"{VAR}/lib/mixos/update/record.json"
MOUNT, UMOUNT = "/usr/bin/mount", "/usr/bin/umount"
_EXT4 = 0x438, b"\x53\xef"  # where its magic number is (linux/fs/ext4/ext4.h)
_NOT_DISKS = ("loop", "ram", "zram", "dm-", "sr", "fd")


def disks(root: Path = ROOT) -> list[Disk]:
    """Those with our partitions. When the loader has said from which it was started (LoaderDevicePartUUID), only that
    one, unless two have the same identities, or none."""
    found = []
    for path in sorted((root / "sys/block").glob("*")):
        if path.name.startswith(_NOT_DISKS):
            continue
        with contextlib.suppress(MixosError):
            disk = Disk.at(root / "dev" / path.name)
            disk.partition("root", "a")
            found.append(disk)
    started = (variable("LoaderDevicePartUUID", root) or "").lower()
    ours = [disk for disk in found if started in {str(one.id) for one in disk.table.partitions}]
    return ours or found


def wait_for_disks(root: Path = ROOT, patience: float = PATIENCE) -> list[Disk]:
    """The same, once there are any: a disk on USB takes some seconds."""
    end = time.monotonic() + patience
    while not (found := disks(root)) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def choose(disk: Disk, root: Path = ROOT) -> None:
    """Have all other programs take this disk, as an ordinary start does. Raises OSError."""
    words = f"STATE=/run/mixos/state DATA={data_device(disk) or ''} DISK={disk.path.name}\n"
    (root / "run/mixos/disk").write_text(words, encoding="utf-8")


def data_device(disk: Disk) -> Path | None:
    """The device of the data partition, which has another name while a factory reset is wanted (`daemon.erase`)."""
    for one in disk.table.partitions:
        if one.name == DATA or one.name.startswith(f"{DATA}-"):
            return node(disk.path, one.index)
    return None


@dataclass(frozen=True)
class Version:
    """An image of a slot, and why it is not started; None when it would be. left: somebody went back from it."""

    image: Image
    why: str | None
    left: bool = False


@dataclass(frozen=True)
class Found:
    """versions: in the loader's order. problems: what could not be read."""

    versions: tuple[Version, ...]
    problems: tuple[str, ...]

    @property
    def next(self) -> Version | None:
        """What the loader would start rather than the rescue entry, unless somebody chooses that at its menu."""
        return next((one for one in self.versions if one.why is None), None)


def look(disk: Disk, root: Path = ROOT) -> Found:
    """Why this was started. Reads only."""
    problems: list[str] = []
    try:
        images = disk.images()
    except (MixosError, OSError) as error:
        return Found((), (f"the EFI system partition cannot be read: {_told(error)}",))
    record = Record()
    try:
        with data(disk) as folder:
            record = record_in(folder)
    except (MixosError, OSError, ValueError) as error:
        problems.append(f"what was recorded of versions cannot be read: {_told(error)}")
    ended = ending(root).words  # what it left stays there for the daemon
    slots = [one for one in images if one.root_hash is not None]
    left = record.given_up
    return Found(tuple(Version(one, _why(one, record, ended), one.digest in left) for one in slots), tuple(problems))


def _why(image: Image, record: Record, ended: str | None) -> str | None:
    if image.slot is None:
        return "no slot holds what it starts"
    if not image.entry.bad:
        return None
    if image.digest in record.given_up:
        return "somebody went back to the other version"
    blocked = record.blocked.get(image.digest)
    return blocked.reason if blocked else reason(image, record, ended)


@contextlib.contextmanager
def data(disk: Disk) -> Iterator[Path]:
    """The data partition, which is not written to, nor its journal replayed. Raises MixosError, OSError."""
    device = data_device(disk)
    if device is None:
        raise DiskError("there is no data partition", reason="disk-table")
    with device.open("rb") as stream:
        stream.seek(_EXT4[0])
        if stream.read(len(_EXT4[1])) != _EXT4[1]:
            raise DiskError("the data partition holds no ext4 file system", reason="disk-damaged")
    with mounted(device, "ext4", "noload") as folder:
        yield folder


def record_in(folder: Path) -> Record:
    """What the daemon remembers, on a data partition. Raises OSError, ValueError."""
    try:
        return Record.model_validate_json(read_regular(folder / RECORD, MAX_BYTES))
    except FileNotFoundError:
        return Record()
    except ValidationError as error:
        raise ValueError("it is damaged") from error


@contextlib.contextmanager
def mounted(device: Path, kind: str, *options: str, root: Path = ROOT) -> Iterator[Path]:
    """A file system, read-only. Raises MixosError `program-failed`; OSError."""
    folder = root / "run/mixos/mnt"
    folder.mkdir(mode=0o700, exist_ok=True)
    flags = ",".join(("ro", "nosuid", "nodev", "noexec", *options))
    process.run([MOUNT, "-t", kind, "-o", flags, str(device), str(folder)])
    try:
        yield folder
    finally:
        process.run([UMOUNT, str(folder)])


def addresses(root: Path = ROOT) -> list[str]:
    """What the network gave this machine."""
    return [found for path in sorted((root / "run/mixos/net").glob("*.address")) if (found := text(path))]


def _told(error: Exception) -> str:
    return one_line(error.message if isinstance(error, MixosError) else str(error), 200)
