"""Factory reset: everything on the data partition goes, and the next boot is a first one.

That it is wanted is said by the partition's name in the partition table. This outlives a cut at any sector
(`common.disk.gpt`), needs neither the data file system nor the EFI system partition to be sound, and costs a boot
nothing: init looks at the names anyway (stage 40). The name is given back last, so what was cut off begins again. What
a device is to know after a reset is in the preseed on its EFI system partition, which the first boot applies again.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from common.disk import gpt
from common.errors import DiskError
from daemon import firstboot
from daemon.firstboot import PARTITION, Run
from daemon.linux import process

How = Literal["erase", "overwrite"]
NAMES: dict[How, str] = {"erase": f"{PARTITION}-erase", "overwrite": f"{PARTITION}-overwrite"}

_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F  # linux/fs.h; both take two u64: offset and length in bytes
_HEAD = 1 << 20  # bytes at both ends: superblocks of whatever was there
_CHUNK = 64 << 20  # bytes that are overwritten at once


def wanted(table: gpt.Table) -> tuple[gpt.Partition, How | None]:
    """The data partition, and whether it is to be erased. Raises GptError."""
    for how, name in NAMES.items():
        if any(part.name == name for part in table.partitions):
            return table.find(name), how
    return table.find(PARTITION), None


def want(disk: int, how: How | None) -> None:
    """Have the next boot do it, or (None) not do it. disk: open for writing. Raises FormatError, OSError."""
    table = gpt.read(disk)
    part, now = wanted(table)
    if now != how or table.problems:
        gpt.write(disk, table.replaced(replace(part, name=NAMES[how] if how else PARTITION)))


def erase(disk: Path, partition: Path, run: Run = process.run, say: Callable[[str], object] = print) -> None:
    """Make the data partition (its device, not mounted) anew; wanted or not, from now on it is.

    Raises DiskError `erase-mounted`, FormatError, MixosError of the programs, OSError; it is still wanted then.
    """
    table = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        how = wanted(gpt.read(table))[1] or "erase"
        _refuse_mounted(partition)
        data = os.open(partition, os.O_RDWR | os.O_CLOEXEC)
        try:
            want(table, how)
            say(f"mixos: {partition}: erasing everything on the data partition")
            _wipe(data, whole=how == "overwrite", say=say)
            firstboot.prepare(partition, run)
            os.fsync(data)
        finally:
            os.close(data)
        want(table, None)
    finally:
        os.close(table)


def _refuse_mounted(partition: Path) -> None:
    try:
        os.close(os.open(partition, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))  # of a block device: nobody uses it
    except OSError as error:
        raise DiskError(f"{partition}: {error.strerror}", reason="erase-mounted") from error


def _wipe(data: int, *, whole: bool, say: Callable[[str], object]) -> None:
    """Tell the disk that nothing of it is needed, and write zeros over both ends, or over all of it."""
    size = os.lseek(data, 0, os.SEEK_END)
    block = stat.S_ISBLK(os.fstat(data).st_mode)
    if block:
        with suppress(OSError):  # a disk that has no such command
            fcntl.ioctl(data, _BLKDISCARD, struct.pack("@QQ", 0, size))
    if not whole:
        for at in {0, max(0, size - _HEAD)}:
            os.pwrite(data, bytes(min(_HEAD, size - at)), at)
        os.fsync(data)
        return
    for number, at in enumerate(range(0, size, _CHUNK)):
        length = min(_CHUNK, size - at)
        if block:
            fcntl.ioctl(data, _BLKZEROOUT, struct.pack("@QQ", at, length))
        else:
            os.pwrite(data, bytes(length), at)
        if number % 64 == 63:
            say(f"mixos: {(at + length) * 100 // size} % overwritten")
    os.fsync(data)
