"""What the methods `storage.*` answer."""

from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, Celsius, Percent, Seconds

Kind = Literal["nvme", "mmc", "virtio", "usb", "ata", "scsi", "other"]
State = Literal["unknown", "ok", "warning", "failing"]

Partition = TypedDict(
    "Partition",
    {
        "name": Annotated[str, "as the kernel calls it"],
        "number": Annotated[int | None, "its number in the partition table"],
        "gpt-name": Annotated[str | None, "its name in the GPT"],
        "size": Annotated[Bytes, "the whole of it"],
        "read-only": Annotated[bool, "the kernel refuses to write"],
        "used-by": Annotated[list[str], "mapped devices that are made of it"],
        "mounted": Annotated[list[str], "where it is mounted, itself or through a mapped device"],
    },
)

Disk = TypedDict(
    "Disk",
    {
        "name": Annotated[str, "as the kernel calls it"],
        "model": Annotated[str | None, "vendor and model, as the disk says"],
        "serial": Annotated[str | None, "the serial number, as the disk says"],
        "kind": Annotated[Kind, "how it is attached"],
        "size": Annotated[Bytes, "the whole of it"],
        "sector": Annotated[Bytes | None, "the smallest piece that it reads"],
        "rotational": Annotated[bool, "it turns"],
        "removable": Annotated[bool, "it can be taken out"],
        "read-only": Annotated[bool, "the kernel refuses to write"],
        "trim": Annotated[bool, "it can be told which blocks are free"],
        "boot": Annotated[bool, "the system was started from it"],
        "slot": Annotated[str | None, "of the boot disk: the slot that was booted, a or b"],
        "mounted": Annotated[list[str], "where the disk as a whole is mounted"],
        "partitions": Annotated[list[Partition], "by their numbers"],
    },
)

FileSystem = TypedDict(
    "FileSystem",
    {
        "path": Annotated[str, "where it is mounted"],
        "type": Annotated[str, "the kind of file system"],
        "source": Annotated[str, "what is mounted"],
        "size": Annotated[Bytes, "all there is"],
        "used": Annotated[Bytes, "what is taken"],
        "free": Annotated[Bytes, "what programs without special rights can still write"],
        "percent": Annotated[Percent, "used, of used and free together"],
        "inodes": Annotated[int, "how many files there can be; 0 when there is no limit"],
        "inodes-free": Annotated[int, "how many more files there can be"],
        "read-only": Annotated[bool, "nothing can be written"],
    },
)


class Taken(TypedDict):
    """What one unit takes."""

    name: Annotated[str, "the folder below /var/lib, which is the unit's"]
    bytes: Annotated[Bytes, "what it takes on the partition"]


Breakdown = TypedDict(
    "Breakdown",
    {
        "units": Annotated[list[Taken], "the largest 20, the largest first"],
        "units-total": Annotated[Bytes, "all units together"],
        "daemon": Annotated[Bytes, "the daemon's own state"],
        "logs": Annotated[Bytes, "logs and the audit"],
        "packages": Annotated[Bytes, "installed packages"],
        "other": Annotated[Bytes, "the rest, with what the file system needs for itself"],
        "used": Annotated[Bytes, "all that is taken"],
        "complete": Annotated[bool, "false: there are too many files, not all were counted"],
        "age": Annotated[Seconds, "since this was counted"],
    },
)


class Usage(TypedDict):
    """Space."""

    filesystems: Annotated[list[FileSystem], "those with a size, each once"]
    data: Annotated[Breakdown | None, "what fills the data partition; null without one"]


class Quota(TypedDict):
    """What a unit keeps below /var/lib, and its limit."""

    unit: Annotated[str, "the unit's name"]
    folder: Annotated[str | None, "where it keeps its state, below /var; null when the unit is gone"]
    limit: Annotated[Bytes | None, "the most that it may keep; null for no limit"]
    used: Annotated[Bytes | None, "what it keeps; null when that is not counted"]
    enforced: Annotated[bool, "the file system enforces the limit"]
    problem: Annotated[str | None, "why it cannot be told or enforced: a stable word"]


class Finding(TypedDict):
    """Something that is wrong with a disk."""

    state: Annotated[State, "how bad it is"]
    slug: Annotated[str, "a stable word for it"]
    text: Annotated[str, "the same for people"]


Health = TypedDict(
    "Health",
    {
        "name": Annotated[str, "the disk, as the kernel calls it"],
        "kind": Annotated[Kind, "how it is attached"],
        "state": Annotated[State, "the worst of what was found"],
        "findings": Annotated[list[Finding], "all that is wrong, or why nothing can be said"],
        "temperature": NotRequired[Annotated[Celsius | None, "of the disk"]],
        "spare-percent": NotRequired[Annotated[Percent, "NVMe: spare capacity that is left"]],
        "spare-threshold": NotRequired[Annotated[Percent, "NVMe: below this the disk fails soon"]],
        "used-percent": NotRequired[Annotated[Percent, "NVMe, eMMC: how much of its planned life is used"]],
        "read": NotRequired[Annotated[Bytes, "NVMe: read so far"]],
        "written": NotRequired[Annotated[Bytes, "NVMe: written so far"]],
        "power-cycles": NotRequired[Annotated[int, "how often it was switched on"]],
        "power-on-hours": NotRequired[Annotated[int, "hours that it was switched on"]],
        "unsafe-shutdowns": NotRequired[Annotated[int, "NVMe: how often power went away unexpectedly"]],
        "media-errors": NotRequired[Annotated[int, "NVMe: errors that could not be corrected"]],
        "reallocated": NotRequired[Annotated[int, "ATA: sectors that were replaced"]],
        "uncorrectable": NotRequired[Annotated[int, "ATA: errors that could not be corrected"]],
        "pending": NotRequired[Annotated[int, "ATA: sectors that wait to be replaced"]],
        "offline-uncorrectable": NotRequired[Annotated[int, "ATA: sectors that cannot be read"]],
        "crc-errors": NotRequired[Annotated[int, "ATA: errors on the cable"]],
    },
)


class Trimmed(TypedDict):
    """What a disk was told."""

    path: Annotated[str, "where the file system is mounted"]
    bytes: Annotated[Bytes, "free blocks that the disk was told of"]
