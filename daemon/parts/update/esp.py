"""The EFI system partition of the boot disk, read and changed without mounting it.

Only we and the loader write to it, never both at once. Our steps are ordered so that a cut at any sector leaves either
the old or the new names (`common.disk.fatedit`), which the kernel's own driver does not promise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.disk.fatedit import Editor
from common.errors import DiskError, FormatError

_BLKSSZGET = 0x1268  # linux/fs.h: bytes of a logical sector


@dataclass(frozen=True)
class Esp:
    """device: a partition, or a disk image in which it begins at byte `offset`."""

    device: Path
    offset: int
    size: int

    @contextlib.contextmanager
    def reading(self) -> Iterator[Editor]:
        """To look at it. Raises DiskError."""
        with self._open(os.O_RDONLY) as found:
            yield found

    @contextlib.contextmanager
    def changing(self) -> Iterator[Editor]:
        """To change it; what a cut has left is cleaned first. Raises DiskError, `esp-busy` while it is mounted."""
        with self._open(os.O_RDWR | os.O_EXCL) as found:  # O_EXCL of a block device: it is not mounted (open(2))
            found.clean()
            yield found

    @contextlib.contextmanager
    def _open(self, flags: int) -> Iterator[Editor]:
        descriptor = -1
        try:
            descriptor = os.open(self.device, flags | os.O_CLOEXEC)
            yield Editor(descriptor, self.offset, self.size, _sector(descriptor))
        except OSError as error:
            if error.errno == errno.EBUSY:
                message = f"{self.device} is mounted: unmount it"
                raise DiskError(message, reason="esp-busy", retryable=True) from error
            raise DiskError(f"{self.device}: {error.strerror}", reason="esp-io") from error
        except FormatError as error:
            raise DiskError(f"{self.device}: {error}", reason="esp-damaged") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _sector(descriptor: int) -> int:
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return 512
    answer = fcntl.ioctl(descriptor, _BLKSSZGET, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
