"""Whether the clock is right: what the kernel says about it, and which servers are asked.

BusyBox ntpd steers the clock with adjtimex(2), which clears STA_UNSYNC; the kernel sets it again when nobody has
steered for long (its estimate of the greatest error grows by 500 µs a second, up to 16 s).
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

_UNSYNCHRONISED = 0x40  # STA_UNSYNC
# struct timex on 64-bit machines: modes, offset, freq, maxerror, esterror, status; the kernel writes 208 bytes.
_TIMEX = struct.Struct("=I4xqqqqi")
_SIZE = 512
_MAX_FILE = 64 << 10


def clock() -> dict[str, Any]:
    """`synchronised`; in seconds `offset` still to be corrected and two estimates of the error; `frequency` in ppm."""
    import ctypes  # only this question needs it

    buffer = ctypes.create_string_buffer(_SIZE)  # modes = 0: look, change nothing
    state = ctypes.CDLL(None).adjtimex(buffer)
    if state < 0:
        return {"synchronised": False}
    _, offset, frequency, most, estimated, status = _TIMEX.unpack_from(buffer.raw)
    unit = 1e-9 if status & 0x2000 else 1e-6  # STA_NANO
    return {
        "synchronised": not status & _UNSYNCHRONISED,
        "offset": round(offset * unit, 9),
        "maximum-error": round(most * 1e-6, 6),
        "estimated-error": round(estimated * 1e-6, 6),
        "frequency": round(frequency / 65536, 3),
    }


def servers(path: Path) -> list[str]:
    """The servers in ntp.conf."""
    try:
        lines = path.read_text("utf-8", "replace")[:_MAX_FILE].splitlines()
    except OSError:
        return []
    return [words[1] for line in lines if (words := line.split())[:1] == ["server"] and len(words) > 1]


def leased(folder: Path) -> list[str]:
    """The servers of leases; ntpd asks those that there were when it started."""
    found = [path.read_text("ascii", "replace")[:_MAX_FILE] for path in sorted(folder.glob("*.ntp"))]
    return [line for text in found for line in text.splitlines()]


def running(proc: Path = Path("/proc")) -> bool:
    """Whether an ntpd runs."""
    for path in proc.glob("[0-9]*/comm"):
        try:
            if path.read_text("ascii", "replace").strip() == "ntpd":
                return True
        except OSError:
            continue  # it ended meanwhile
    return False


def status(etc: Path, leases: Path) -> dict[str, Any]:
    """All of it, with the time in seconds since 1970. leases: the folder with what the scripts keep of them."""
    asked = [*leased(leases), *servers(etc / "ntp.conf")]
    return {"now": time.time(), **clock(), "running": running(), "servers": asked}
