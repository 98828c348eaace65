"""Asking device-mapper about the root: is it a verity target, and what did it find?

Interface: linux/dm-ioctl.h (version 4), ioctl DM_TABLE_STATUS on /dev/mapper/control. The status line of a verity
target is "V" while every block read so far was good and "C" after corruption (dm-verity's documentation).
"""

from __future__ import annotations

import fcntl
import os
import struct

CONTROL = "/dev/mapper/control"
_DM_TABLE_STATUS = 0xC138FD0C  # _IOWR(0xfd, 12, struct dm_ioctl)
# version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid, padding
_HEADER = struct.Struct("=3I3Ii2I4xQ128s129s7x")
_TARGET = struct.Struct("=QQiI16s")  # sector_start, length, status, next, target_type; the parameters follow
_SIZE = 16 << 10


def verity_state(device: str = "/dev/dm-0") -> str | None:
    """The words "verified" or "corrupted"; None when the device is not there or is not a verity target."""
    try:
        number = os.stat(device).st_rdev
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    buffer = bytearray(_SIZE)
    encoded = os.minor(number) & 0xFF | os.major(number) << 8 | (os.minor(number) & ~0xFF) << 12  # huge_encode_dev
    _HEADER.pack_into(buffer, 0, 4, 0, 0, _SIZE, _HEADER.size, 0, 0, 0, 0, encoded, b"", b"")
    try:
        fcntl.ioctl(control, _DM_TABLE_STATUS, buffer)
    except OSError:
        return None
    finally:
        os.close(control)
    return decode_status(bytes(buffer))


def decode_status(answer: bytes) -> str | None:
    """The state in an answer of DM_TABLE_STATUS with exactly one target."""
    header = _HEADER.unpack_from(answer)
    start, targets = header[4], header[5]
    if targets != 1 or start + _TARGET.size > len(answer):
        return None
    *_, kind = _TARGET.unpack_from(answer, start)
    if kind.rstrip(b"\0") != b"verity":
        return None
    word = answer[start + _TARGET.size :].split(b"\0", 1)[0].split(b" ")[0]
    return {b"V": "verified", b"C": "corrupted"}.get(word)
