"""The data partition's rare work: extend it over a disk larger than the image, make or fit its ext4 file system.

Called by init (stage 40) when a shell test found something to do, and safe to be cut off anywhere: the partition table
is written backup first (`common.disk.gpt`), and each step looks at the disk, not at what an earlier run remembers.
A partition that is neither ext4 nor blank is never touched: it may be somebody's data.
"""

from __future__ import annotations

import array
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.disk import gpt
from common.errors import DiskError, MixosError
from common.streams import open_missing
from daemon.linux import process

PARTITION = "mixos-data"
DATA = Path("/data")
MKE2FS, E2FSCK, RESIZE2FS = "/usr/sbin/mke2fs", "/usr/sbin/e2fsck", "/usr/sbin/resize2fs"

_BLANK = 128 << 10  # bytes: covers the superblocks of ext4, LUKS, XFS, btrfs and a swap header
_EXT4_SUPERBLOCK = 1024
_EXT4_MAGIC = 0xEF53
_SLACK = 128 << 20  # bytes: ext4 leaves up to a block group unused at the end
_BLKPG = 0x1269  # linux/blkpg.h
_BLKPG_RESIZE_PARTITION = 3
_EXT4_IOC_RESIZE_FS = 0x40086610  # uapi/linux/ext4.h: takes the new size in blocks

Run = Callable[..., int]


@dataclass(frozen=True)
class FileSystem:
    """What a superblock says: size in bytes."""

    size: int


def main(argv: Sequence[str]) -> int:
    """`mixos-firstboot prepare|resize|erase DISK PARTITION`; returns the exit code.

    prepare: partition not mounted; grow it, make or fit its file system. resize: mounted; fit the file system. erase:
    not mounted; a factory reset (`daemon.erase`).
    """
    open_missing()
    if len(argv) != 3 or argv[0] not in ("prepare", "resize", "erase"):
        sys.stderr.write("usage: mixos-firstboot prepare|resize|erase DISK PARTITION\n")
        return 2
    action, disk, partition = argv
    try:
        if action == "prepare":
            grow_partition(Path(disk), Path(partition))
            prepare(Path(partition))
        elif action == "erase":
            from daemon.erase import erase

            erase(Path(disk), Path(partition))
        else:
            resize(DATA, Path(partition))
    except MixosError as error:
        sys.stderr.write(f"mixos: {partition}: {error.message} ({error.reason})\n")
        return 8
    except OSError as error:
        sys.stderr.write(f"mixos: {partition}: {error}\n")
        return 8
    return 0


def grow_partition(disk: Path, partition: Path) -> bool:
    """Extend the data partition over the free space behind it; whether anything changed. Also mends a backup table that
    is not at the end of the disk (an image copied to a larger one)."""
    descriptor = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        table = gpt.read(descriptor)
        data = table.find(PARTITION)
        grown = table.grown(data)
        new = grown.find(PARTITION)
        if new == data and not table.problems:
            return False
        gpt.write(descriptor, grown)
        if new != data:
            tell_kernel(descriptor, new)
            print(f"mixos: {partition}: grown to {new.size >> 20} MiB")
        return True
    finally:
        os.close(descriptor)


def tell_kernel(descriptor: int, partition: gpt.Partition) -> None:
    """Resize a partition in the kernel's eyes (BLKPG), possible while others on the disk are in use.

    Not for a plain file, which has no partitions to resize.
    """
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return
    # struct blkpg_partition: start and length in bytes, number, two names of 64 bytes
    body = array.array("B", struct.pack("=qqi64s64sxxxx", partition.offset, partition.size, partition.index, b"", b""))
    address, _ = body.buffer_info()
    fcntl.ioctl(descriptor, _BLKPG, struct.pack("@iiiP", _BLKPG_RESIZE_PARTITION, 0, len(body), address))


def prepare(partition: Path, run: Run = process.run) -> None:
    """Make sure that `partition` (not mounted) has an ext4 file system that fills it."""
    size = device_size(partition)
    found = inspect(partition)
    if found is None:
        print(f"mixos: {partition}: making the data file system")
        # The tables are written by the kernel in the background: minutes less on a large disk.
        extended = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,quotatype=prjquota"
        # Project quotas limit what each unit keeps; inodes of 256 bytes have the field for the project's number.
        features = ["-I", "256", "-O", "project,quota"]
        run([MKE2FS, "-q", "-F", "-t", "ext4", "-L", PARTITION, "-m", "1", *features, "-E", extended, str(partition)])
    elif found.size + _SLACK < size:
        run([E2FSCK, "-f", "-p", str(partition)], allow=(0, 1))
        run([RESIZE2FS, str(partition)])


def resize(mounted: Path, partition: Path) -> None:
    """Fit the ext4 file system mounted at `mounted` to its partition. Raises OSError.

    The kernel does all of it; resize2fs(8) would open the device for writing first, which kernels since 6.8 refuse for
    one that is mounted (CONFIG_BLK_DEV_WRITE_MOUNTED).
    """
    size = device_size(partition)
    folder = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(folder, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", size // os.fstatvfs(folder).f_bsize))
    finally:
        os.close(folder)


def inspect(partition: Path) -> FileSystem | None:
    """The ext4 file system of a partition, None when it is blank. Raises DiskError `disk-not-blank` for others."""
    with partition.open("rb", buffering=0) as stream:
        head = stream.read(_BLANK)
    if not head.strip(b"\0"):
        return None
    # linux/fs/ext4/ext4.h, struct ext4_super_block: blocks_lo, log_block_size, magic, feature_incompat, blocks_hi
    block = head[_EXT4_SUPERBLOCK : _EXT4_SUPERBLOCK + 1024]
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _EXT4_MAGIC:
        raise DiskError(
            "is neither blank nor an ext4 file system; it is left alone",
            reason="disk-not-blank",
            hint="erase the partition's first MiB if nothing on it is needed",
        )
    (low,), (shift,) = struct.unpack_from("<I", block, 0x4), struct.unpack_from("<I", block, 0x18)
    (high,) = struct.unpack_from("<I", block, 0x150) if struct.unpack_from("<I", block, 0x60)[0] & 0x80 else (0,)
    if shift > 6:
        raise DiskError("has a damaged superblock; it is left alone", reason="disk-damaged")
    return FileSystem((high << 32 | low) << (10 + shift))


def device_size(path: Path) -> int:
    """Bytes of a block device or file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
