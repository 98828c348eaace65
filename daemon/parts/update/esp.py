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

from common.disk import fatmend
from common.disk.fatedit import Cleaned, Editor
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
        with self._open(os.O_RDONLY) as descriptor:
            yield self._editor(descriptor)

    @contextlib.contextmanager
    def changing(self) -> Iterator[Editor]:
        """To change it; what the disk has lost of one of two copies is restored, and what a cut has left is cleaned
        first. Raises DiskError, `esp-busy` while it is mounted."""
        with self._open(os.O_RDWR | os.O_EXCL) as descriptor:  # O_EXCL of a block device: it is not mounted (open(2))
            fatmend.mend(descriptor, self.offset, self.size, _sector(descriptor))
            found = self._editor(descriptor)
            found.clean()
            yield found

    def faults(self) -> tuple[tuple[str, ...], Cleaned]:
        """What `changing` would restore, and what it would clean. Raises DiskError."""
        with self._open(os.O_RDONLY) as descriptor:
            found = fatmend.faults(descriptor, self.offset, self.size, _sector(descriptor))
            names = tuple(dict.fromkeys(one.name for one in found))
            return names, Cleaned(0, 0, 0, ()) if names else self._editor(descriptor).leftovers()

    def _editor(self, descriptor: int) -> Editor:
        return Editor(descriptor, self.offset, self.size, _sector(descriptor))

    @contextlib.contextmanager
    def _open(self, flags: int) -> Iterator[int]:
        descriptor = -1
        try:
            descriptor = os.open(self.device, flags | os.O_CLOEXEC)
            yield descriptor
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
