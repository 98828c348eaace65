"""NVMe: the SMART / Health Information log page (NVM Express Base Specification 2.0, figure 207), by ioctl."""

from __future__ import annotations

import fcntl
import os
import struct
from ctypes import addressof, create_string_buffer
from pathlib import Path
from typing import Any

from daemon.parts.storage.verdict import Finding, HealthError, verdict

PAGE = 512  # bytes
_ADMIN = 0xC0484E41  # NVME_IOCTL_ADMIN_CMD, linux/nvme_ioctl.h: _IOWR('N', 0x41, struct nvme_passthru_cmd)
_COMMAND = struct.Struct("=BBHIIIQQII6III")
_GET_LOG_PAGE = 0x02
_HEALTH = 0x02
_ALL = 0xFFFFFFFF  # of the controller, not of one namespace
_TIMEOUT = 5000  # milliseconds
_CRITICAL = (
    (0x01, "failing", "spare-low", "the spare capacity is below its threshold"),
    (0x02, "warning", "temperature", "the temperature is outside its limits"),
    (0x04, "failing", "unreliable", "too many media or internal errors"),
    (0x08, "failing", "read-only", "the disk has become read-only"),
    (0x10, "failing", "no-backup", "the backup of the volatile memory has failed"),
    (0x20, "failing", "memory-region", "the persistent memory region is unreliable"),
)


def parse(page: bytes) -> dict[str, Any]:
    """The page as facts, with a verdict. Temperatures in degrees Celsius, amounts in bytes. Raises HealthError
    `smart-format` for what cannot be one."""
    if len(page) != PAGE or not any(page):
        raise HealthError("the disk's health page is empty or too short", reason="smart-format")
    critical, kelvin, spare, threshold, used = struct.unpack_from("<BHBBB", page)

    def count(offset: int) -> int:
        return int.from_bytes(page[offset : offset + 16], "little")

    found = [Finding(state, slug, said) for bit, state, slug, said in _CRITICAL if critical & bit]
    if used >= 100:
        found.append(Finding("warning", "worn", f"{used} % of its planned life are used"))
    return {
        **verdict(found),
        "temperature": kelvin - 273 if kelvin else None,
        "spare-percent": spare,
        "spare-threshold": threshold,
        "used-percent": used,
        "read": count(32) * 512_000,  # data units: thousands of 512 bytes
        "written": count(48) * 512_000,
        "power-cycles": count(112),
        "power-on-hours": count(128),
        "unsafe-shutdowns": count(144),
        "media-errors": count(160),
    }


def command(address: int) -> bytes:
    """The request for the page into the buffer at `address`: struct nvme_passthru_cmd, 72 bytes."""
    dwords = (((PAGE // 4 - 1) << 16) | _HEALTH, 0, 0, 0, 0, 0)
    return _COMMAND.pack(_GET_LOG_PAGE, 0, 0, _ALL, 0, 0, 0, address, 0, PAGE, *dwords, _TIMEOUT, 0)


def read(device: Path) -> bytes:
    """The page of a disk. Raises HealthError `smart-refused`."""
    page = create_string_buffer(PAGE)
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = fcntl.ioctl(descriptor, _ADMIN, bytearray(command(addressof(page))))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HealthError(f"{device}: {error.strerror}", reason="smart-refused") from error
    if status:  # the controller's own status, not an errno
        raise HealthError(f"{device} answered with status {status:#x}", reason="smart-refused")
    return page.raw
