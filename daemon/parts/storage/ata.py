"""ATA disks: SMART READ DATA and SMART RETURN STATUS (ATA/ATAPI Command Set ACS-3, 7.48) through SCSI.

The commands are wrapped in ATA PASS-THROUGH (16) (SCSI/ATA Translation SAT-3, 12.2) and sent by SG_IO. The verdict is
the disk's own: RETURN STATUS changes two registers when a threshold was exceeded. The layout of the attributes never
was in the standard but is the same everywhere; only those are used whose meaning vendors agree on.
"""

from __future__ import annotations

import fcntl
import os
import struct
from ctypes import addressof, create_string_buffer
from pathlib import Path
from typing import Any

from daemon.parts.storage.verdict import Finding, HealthError, verdict

PAGE = 512  # bytes
_SG_IO = 0x2285  # scsi/sg.h
_HEADER = struct.Struct("@iiBBHIPPPIIiPBBBBHHiII0P")  # struct sg_io_hdr
_NONE, _FROM_DEVICE = -1, -3
_SENSE = 32  # bytes
_TIMEOUT = 10_000  # milliseconds
_PASS_THROUGH, _SMART = 0x85, 0xB0
_READ_DATA, _RETURN_STATUS = 0xD0, 0xDA
_GOOD, _EXCEEDED = (0x4F, 0xC2), (0xF4, 0x2C)  # LBA mid and high
# attribute → key of the result
_COUNTS = {5: "reallocated", 9: "power-on-hours", 12: "power-cycles", 187: "uncorrectable", 197: "pending"}
_COUNTS |= {198: "offline-uncorrectable", 199: "crc-errors"}
_TEMPERATURES = (194, 190)


def command(feature: int) -> bytes:
    """The 16 bytes of the SCSI command. READ DATA comes with a block by PIO; RETURN STATUS with registers only."""
    reading = feature == _READ_DATA
    protocol, flags = (4, 0x0E) if reading else (3, 0x20)  # PIO in, one block from the disk; no data, CK_COND
    block = bytearray(16)
    block[0], block[1], block[2] = _PASS_THROUGH, protocol << 1, flags
    block[4], block[6] = feature, 1 if reading else 0
    block[10], block[12], block[14] = *_GOOD, _SMART
    return bytes(block)


def parse(page: bytes) -> dict[str, Any]:
    """READ DATA's page as facts, without a verdict; a key for what the disk counts. Raises HealthError
    `smart-format` when length or checksum are wrong."""
    if len(page) != PAGE or not any(page) or sum(page) & 0xFF:
        raise HealthError("the disk's SMART data is damaged", reason="smart-format")
    raw = {}
    for offset in range(2, 2 + 30 * 12, 12):
        ident, _, _, _, value = struct.unpack_from("<BHBB6s", page, offset)
        if ident:
            raw[ident] = int.from_bytes(value, "little")
    # The upper bytes of these counters have other figures with some vendors (hours and minutes, minimum and maximum).
    found: dict[str, Any] = {key: raw[ident] & 0xFFFFFFFF for ident, key in _COUNTS.items() if ident in raw}
    celsius = next((raw[ident] & 0xFF for ident in _TEMPERATURES if ident in raw), None)
    return {"temperature": celsius, **found}


def exceeded(sense: bytes) -> bool:
    """Whether a threshold was exceeded, from the sense data of RETURN STATUS (SAT-3, 12.2.5 to 12.2.7).

    Raises HealthError `smart-format` when the registers are not in it or say neither.
    """
    code = sense[0] & 0x7F if sense else 0
    registers = None
    if code == 0x72:  # descriptor format
        place, end = 8, min(8 + sense[7], len(sense)) if len(sense) > 8 else 0
        while place + 2 <= end:
            if sense[place] == 0x09 and place + 14 <= end:
                registers = sense[place + 9], sense[place + 11]
                break
            place += 2 + sense[place + 1]
    elif code == 0x70 and len(sense) >= 12:  # fixed format
        registers = sense[10], sense[11]
    if registers not in (_GOOD, _EXCEEDED):
        raise HealthError("the disk did not tell its SMART status", reason="smart-format")
    return registers == _EXCEEDED


def judge(facts: dict[str, Any], bad: bool) -> dict[str, Any]:
    """The verdict with the facts."""
    found = [Finding("failing", "threshold", "the disk says that it is about to fail")] if bad else []
    for key, said in (("pending", "wait to be moved"), ("offline-uncorrectable", "cannot be read")):
        if facts.get(key):
            found.append(Finding("warning", key, f"{facts[key]} sectors {said}"))
    return {**verdict(found), **facts}


def read(device: Path) -> dict[str, Any]:
    """The health of a disk. Raises HealthError `smart-refused`, `smart-format`."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            page, _ = _send(descriptor, _READ_DATA)
            _, sense = _send(descriptor, _RETURN_STATUS)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HealthError(f"{device}: {error.strerror}", reason="smart-refused") from error
    return judge(parse(page), exceeded(sense))


def _send(descriptor: int, feature: int) -> tuple[bytes, bytes]:
    """Data and sense data of one command. Raises HealthError `smart-refused`, OSError."""
    reading = feature == _READ_DATA
    block, page = create_string_buffer(command(feature), 16), create_string_buffer(PAGE)
    sense = create_string_buffer(_SENSE)
    direction, length = (_FROM_DEVICE, PAGE) if reading else (_NONE, 0)
    places = addressof(page), addressof(block), addressof(sense)
    header = bytearray(
        _HEADER.pack(ord("S"), direction, 16, _SENSE, 0, length, *places, _TIMEOUT, 0, 0, 0, *[0] * 7, 0, 0)
    )
    fcntl.ioctl(descriptor, _SG_IO, header)
    status, _, _, written, host, driver = _HEADER.unpack(header)[13:19]
    # RETURN STATUS comes back as a check condition, since CK_COND asks for the registers: driver status 8 is sense.
    if host or driver & ~0x08 or (reading and status):
        raise HealthError(f"the disk refused (status {status:#x}, host {host:#x})", reason="smart-refused")
    return page.raw, sense.raw[:written]
