"""What a block device is and who uses it: asked before a disk is overwritten.

Sources: sysfs (queue, holders, partitions, model), /proc/*/mountinfo (proc(5)), /proc/swaps. The last word has the
kernel: opening a block device with O_EXCL fails while anybody has claimed it or one of its partitions.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from common.errors import ImageError, UsageError


@dataclass(frozen=True)
class Device:
    """A whole disk (or, with block=False, a regular file that stands for one). size in bytes.

    identity tells it from another one that comes under the same name: the number of a disk, device and inode of a file;
    None for a file that is still to be made.
    """

    path: Path
    size: int
    block: bool
    sector_size: int = 512
    model: str = ""
    serial: str = ""
    removable: bool = False
    read_only: bool = False
    identity: tuple[int, int] | None = None

    def describe(self) -> str:
        """One line for people: path, model, serial number, size."""
        words = [str(self.path), self.model or ("disk" if self.block else "file")]
        if self.serial:
            words.append(f"serial {self.serial}")
        return ", ".join([*words, f"{self.size / 1e9:.1f} GB", *(["removable"] if self.removable else [])])


@dataclass(frozen=True)
class Places:
    """Where the kernel's tables are; tests use their own."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")


def inspect(path: Path, places: Places) -> Device:
    """Describe the disk behind `path`. Raises ImageError: "no-device", "not-a-block-device", "is-partition"."""
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}", reason="no-device") from error
    if not stat.S_ISBLK(status.st_mode):
        raise ImageError(
            f"{path} is not a block device", reason="not-a-block-device", hint="to write into a regular file say --file"
        )
    return _described(path, status.st_rdev, places)


def _described(path: Path, number: int, places: Places) -> Device:
    folder = node(places, os.major(number), os.minor(number))
    if (folder / "partition").exists():
        raise ImageError(
            f"{path} is a partition, not a whole disk",
            reason="is-partition",
            hint=f"the disk is /dev/{folder.parent.name.replace('!', '/')}",
        )
    return Device(
        path=path,
        size=int(_text(folder / "size", "0")) * 512,  # sysfs counts 512-byte units whatever the sector size
        block=True,
        sector_size=int(_text(folder / "queue" / "logical_block_size", "512")),
        model=" ".join(f"{_text(folder / 'device' / 'vendor')} {_text(folder / 'device' / 'model')}".split()),
        serial=_text(folder / "device" / "serial") or _text(folder / "serial"),
        removable=_text(folder / "removable") == "1",
        read_only=_text(folder / "ro") == "1",
        identity=(0, number),
    )


def node(places: Places, major: int, minor: int) -> Path:
    """The sysfs folder of a block device number. Raises ImageError "no-device"."""
    link = places.sys / "dev" / "block" / f"{major}:{minor}"
    if not link.exists():
        raise ImageError(f"the kernel knows no block device {major}:{minor}", reason="no-device")
    return link.resolve()


def _text(path: Path, default: str = "") -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:  # an attribute that this kind of disk does not have
        return default


def users(number: int, places: Places) -> list[str]:
    """Who uses the disk of this number or anything stacked on it, in words; empty when nobody does."""
    top = node(places, os.major(number), os.minor(number))
    mounted = _mounts(places)
    swaps = _swaps(places)
    found: list[str] = []
    queue = [top]
    seen: set[Path] = set()
    while queue:
        folder = queue.pop(0)
        if folder in seen:
            continue
        seen.add(folder)
        name = "/dev/" + folder.name.replace("!", "/")
        numbers = _text(folder / "dev")
        for point in mounted.get(numbers, []) + mounted.get(name, []):
            system = " (the running system)" if point in ("/", "/usr", "/boot") else ""
            found.append(f"{name} is mounted on {point}{system}")
        if numbers in swaps:
            found.append(f"{name} is in use as swap")
        queue += [child for child in sorted(folder.iterdir()) if (child / "partition").exists()]
        for holder in sorted((folder / "holders").iterdir()) if (folder / "holders").is_dir() else []:
            found.append(f"{name} is part of /dev/{holder.name}")
            queue.append(holder.resolve())
    return list(dict.fromkeys(found))


def _mounts(places: Places) -> dict[str, list[str]]:
    """Mount points by device number "major:minor" and by source path, of this mount namespace and of process 1."""
    found: dict[str, list[str]] = {}
    for process in ("self", "1"):
        for line in _text(places.proc / process / "mountinfo").splitlines():
            left, _, right = line.partition(" - ")
            fields, origin = left.split(" "), right.split(" ")
            if len(fields) < 5 or len(origin) < 2:
                continue
            point = fields[4].replace("\\040", " ")
            for key in (fields[2], origin[1]):
                if point not in found.setdefault(key, []):
                    found[key].append(point)
    return found


def _swaps(places: Places) -> set[str]:
    """Device numbers "major:minor" of swap areas on block devices."""
    found: set[str] = set()
    for line in _text(places.proc / "swaps").splitlines()[1:]:
        path = Path(line.split(" ")[0].split("\t")[0].replace("\\040", " "))
        if path.is_block_device():
            number = path.stat().st_rdev
            found.add(f"{os.major(number)}:{os.minor(number)}")
    return found


def check_free(device: Device, places: Places) -> None:
    """Raise ImageError "device-in-use" when anything uses the disk."""
    assert device.identity is not None
    taken = users(device.identity[1], places)
    if taken:
        raise ImageError(
            f"{device.path} is in use: " + "; ".join(taken),
            reason="device-in-use",
            hint="unmount it, or choose another disk",
        )


def open_exclusive(device: Device, places: Places) -> int:
    """A read-write descriptor of the very disk that was looked at, which nobody can claim beside us.

    Raises ImageError ("device-in-use", "device-changed", "cannot-open"), or UsageError for missing rights. A file that
    was not there is made.
    """
    made = os.O_CREAT | os.O_EXCL if device.identity is None else 0
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if device.block else os.O_NONBLOCK | made)
    try:
        fd = os.open(device.path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UsageError(
                f"no right to write to {device.path}", reason="no-permission", hint="run it as root, or with sudo"
            ) from error
        reason = {errno.EBUSY: "device-in-use", errno.EEXIST: "device-changed"}.get(error.errno or 0, "cannot-open")
        raise ImageError(f"cannot open {device.path}: {error.strerror}", reason=reason) from error
    try:
        _check_same(device, fd, places)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_same(device: Device, fd: int, places: Places) -> None:
    """Raise ImageError unless `fd` is what `device` describes: a name may have come to mean another disk meanwhile."""
    status = os.fstat(fd)
    if device.block:
        same = stat.S_ISBLK(status.st_mode) and device.identity == (0, status.st_rdev)
        if not same or _described(device.path, status.st_rdev, places) != device:
            raise _changed(device)
        if os.lseek(fd, 0, os.SEEK_END) != device.size:
            raise _changed(device)
        check_free(device, places)
        return
    if not stat.S_ISREG(status.st_mode) or device.identity not in (None, (status.st_dev, status.st_ino)):
        raise _changed(device)
    try:  # QEMU locks the disks that it uses, each byte of the lock for something of its own
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            hint = "stop the machine whose disk it is"
            raise ImageError(f"{device.path} is in use", reason="device-in-use", hint=hint) from error


def _changed(device: Device) -> ImageError:
    return ImageError(
        f"{device.path} is not what it was a moment ago; nothing was written",
        reason="device-changed",
        hint="another disk may have come under this name: look again, and name the disk as /dev/disk/by-id/… does",
    )
