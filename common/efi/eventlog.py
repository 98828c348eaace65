"""The log of what firmware measured before the kernel started (/sys/kernel/security/tpm0/binary_bios_measurements).

Source: TCG PC Client Platform Firmware Profile 1.06, section 10. Reading is strict and bounded. Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import FormatError

MAX_LOG = 16 << 20  # bytes
_SIGNATURE = b"Spec ID Event03\0"
_MAX_BANKS = 16
_OPTION_ROM_PCR = 2
_DRIVERS = (0x80000004, 0x80000005)  # EV_EFI_BOOT_SERVICES_DRIVER, EV_EFI_RUNTIME_SERVICES_DRIVER


class EventLogError(FormatError):
    """Bytes that are no sound event log in the crypto-agile format."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "event-log")


@dataclass(frozen=True)
class Event:
    """pcr: its number. kind: as in the specification. data: what the event says, bytes."""

    pcr: int
    kind: int
    data: bytes


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise EventLogError(f"the event log is cut off at byte {self.at}")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))


def events(log: bytes) -> Iterator[Event]:
    """The events but the first, which describes the format. Raises EventLogError."""
    if len(log) > MAX_LOG:
        raise EventLogError(f"an event log of {len(log)} bytes is too large")
    reader = _Reader(log)
    reader.take(28)  # PCR 0, EV_NO_ACTION, an empty digest
    (size,) = reader.numbers("<I")
    head = _Reader(reader.take(size))
    if head.take(16) != _SIGNATURE:
        raise EventLogError("this is no event log of a TPM 2.0")
    head.take(8)  # platform class, versions, size of pointers
    (banks,) = head.numbers("<I")
    if banks > _MAX_BANKS:
        raise EventLogError(f"an event log with {banks} banks")
    sizes: dict[int, int] = {}
    for _ in range(banks):
        algorithm, length = head.numbers("<HH")
        sizes[algorithm] = length
    while reader.at < len(log):
        pcr, kind, count = reader.numbers("<III")
        if count > banks:
            raise EventLogError(f"an event with {count} digests in a log with {banks} banks")
        for _ in range(count):
            (algorithm,) = reader.numbers("<H")
            if algorithm not in sizes:
                raise EventLogError(f"an event with a digest of an unknown kind, {algorithm:#x}")
            reader.take(sizes[algorithm])
        (size,) = reader.numbers("<I")
        yield Event(pcr, kind, reader.take(size))


def option_roms(log: bytes) -> int:
    """How many drivers from plugged-in hardware firmware started: with Secure Boot on, their signers must be in db, and
    a graphics card without its driver may leave the machine without a screen. Raises EventLogError."""
    return sum(event.pcr == _OPTION_ROM_PCR and event.kind in _DRIVERS for event in events(log))
