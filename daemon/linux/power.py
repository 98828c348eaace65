"""The power button, also the virtual one that a hypervisor presses for an orderly stop.

The kernel reports it as a key of an input device named "Power Button" (linux/input.h, struct input_event on 64 bits).
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from pathlib import Path

_EVENT = struct.Struct("=qqHHi")  # seconds, microseconds, type, code, value
_EV_KEY = 1
_KEY_POWER = 116


def pressed(data: bytes) -> bool:
    """Whether whole events in `data` contain the key going down."""
    whole = len(data) - len(data) % _EVENT.size
    return any(event[2:] == (_EV_KEY, _KEY_POWER, 1) for event in _EVENT.iter_unpack(data[:whole]))


def watch(act: Callable[[], None], root: Path = Path("/")) -> int:
    """Call `act` on the running loop whenever a power button is pressed; returns the number of buttons found."""
    count = 0
    for name in sorted((root / "sys/class/input").glob("event*/device/name")):
        if name.read_text(encoding="utf-8").strip() != "Power Button":
            continue
        try:
            descriptor = os.open(root / "dev/input" / name.parts[-3], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # another button may be usable
        asyncio.get_running_loop().add_reader(descriptor, _on_event, descriptor, act)
        count += 1
    return count


def _on_event(descriptor: int, act: Callable[[], None]) -> None:
    try:
        data = os.read(descriptor, 64 * _EVENT.size)
    except OSError:
        data = b""
    if not data:  # the device is gone; a reader left in place would spin
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
    elif pressed(data):
        act()
