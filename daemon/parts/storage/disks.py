"""Disks and partitions, as /sys/block describes them (Documentation/ABI/stable/sysfs-block of the kernel).

Only what has hardware behind it: no loop devices, no memory disks. Partitions carry the names of the GPT, which the
kernel repeats in their uevent files. `root` is the tree to read from: "/" on a device, a sample in tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from daemon.linux.facts import ROOT, slot, text
from daemon.linux.mounts import Mount, holding, mounts

if TYPE_CHECKING:
    from daemon.parts.storage.answers import Disk, Kind, Partition

SECTOR = 512  # bytes: sizes in /sys are in these, whatever the disk's own are


def names(root: Path = ROOT) -> list[str]:
    """The kernel names of the disks."""
    folder = root / "sys/block"
    return sorted(
        one.name
        for one in folder.glob("*")
        if (one / "device").exists() and not one.name.startswith(("sr", "fd", "mtd"))
    )


def disks(root: Path = ROOT) -> list[Disk]:
    """A row per disk; sizes in bytes, None for what the disk does not tell."""
    table = mounts(root)
    boot = _boot_disk(root, table)
    return [_disk(root, name, table, boot) for name in names(root)]


def _disk(root: Path, name: str, table: list[Mount], boot: str | None) -> Disk:
    folder = root / "sys/block" / name
    parts = sorted((one.parent for one in folder.glob("*/partition")), key=lambda one: _number(one / "partition") or 0)
    device = folder / "device"
    model = text(device / "model") or text(device / "name")
    return {
        "name": name,
        "model": " ".join(word for word in (text(device / "vendor"), model) if word and word[:2] != "0x") or None,
        "serial": text(device / "serial") or text(folder / "serial"),
        "kind": kind(name, root),
        "size": (_number(folder / "size") or 0) * SECTOR,
        "sector": _number(folder / "queue/logical_block_size"),
        "rotational": text(folder / "queue/rotational") == "1",
        "removable": text(folder / "removable") == "1",
        "read-only": text(folder / "ro") == "1",
        "trim": bool(_number(folder / "queue/discard_max_bytes")),
        "boot": name == boot,
        "slot": slot(root) if name == boot else None,
        "mounted": _points(folder, table),
        "partitions": [_partition(one, table) for one in parts],
    }


def kind(name: str, root: Path = ROOT) -> Kind:
    """How the disk is attached: nvme, ata, usb, virtio, mmc, scsi or other."""
    if name.startswith("nvme"):
        return "nvme"
    if name.startswith("mmcblk"):
        return "mmc"
    if name.startswith("vd"):
        return "virtio"
    device = root / "sys/block" / name / "device"
    if "/usb" in str((root / "sys/block" / name).resolve()):
        return "usb"
    if (text(device / "vendor") or "") == "ATA":  # libata's disks have it as the vendor (SAT, 9.2)
        return "ata"
    return "scsi" if name.startswith("sd") else "other"


def _partition(folder: Path, table: list[Mount]) -> Partition:
    uevent = dict(line.split("=", 1) for line in (text(folder / "uevent") or "").splitlines() if "=" in line)
    return {
        "name": folder.name,
        "number": _number(folder / "partition"),
        "gpt-name": uevent.get("PARTNAME"),
        "size": (_number(folder / "size") or 0) * SECTOR,
        "read-only": text(folder / "ro") == "1",
        "used-by": sorted(one.name for one in folder.glob("holders/*")),
        "mounted": _points(folder, table),
    }


def _points(folder: Path, table: list[Mount]) -> list[str]:
    """Where it is mounted, itself or through a mapped device (verity) that uses it."""
    devices = {text(folder / "dev"), *(text(one / "dev") for one in folder.glob("holders/*"))} - {None}
    return list(dict.fromkeys(one.point for one in table if one.device in devices))


def _boot_disk(root: Path, table: list[Mount]) -> str | None:
    """The disk that / is on, by what backs the root, never by an identifier: copies of a disk have the same ones."""
    mount = holding(Path("/"), table)
    if mount is None:
        return None
    for folder in (root / "sys/block").glob("*"):
        for place in (folder, *(one.parent for one in folder.glob("*/partition"))):
            users = {text(place / "dev"), *(text(one / "dev") for one in place.glob("holders/*"))}
            if mount.device in users and (folder / "device").exists():
                return folder.name
    return None


def _number(path: Path) -> int | None:
    found = text(path)
    return int(found) if found and found.isdigit() else None
