"""The machine at one moment: counters and sizes as the kernel has them, by psutil."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from daemon.parts.metrics import cgroups

_PLACES = ("/", "/data", "/run", "/run/mixos", "/tmp")
_VIRTUAL = ("loop", "ram", "zram", "dm-", "sr", "fd")  # block devices that are no disks, or the same bytes again


class Space(NamedTuple):
    """A file system that can be written to, in bytes."""

    path: str
    size: int
    free: int


class Traffic(NamedTuple):
    """Bytes in (read, received) and out since boot; errors and dropped packets for interfaces."""

    name: str
    inward: int
    outward: int
    errors: int = 0
    dropped: int = 0


class Temperature(NamedTuple):
    """A sensor in degrees Celsius, with its own limits where it has some."""

    name: str
    celsius: float
    high: float | None
    critical: float | None


class Sample(NamedTuple):
    """at: monotonic seconds; cpu: mode → seconds over all processors; memory and swap: name → bytes."""

    at: float
    uptime: float
    cpus: int
    cpu: Mapping[str, float]
    load: tuple[float, float, float]
    memory: Mapping[str, int]
    swap: Mapping[str, int]
    spaces: tuple[Space, ...]
    disks: tuple[Traffic, ...]
    network: tuple[Traffic, ...]
    temperatures: tuple[Temperature, ...]
    units: Mapping[str, cgroups.Unit]


def take(groups: Path = cgroups.ROOT) -> Sample:
    """A sample now; some milliseconds of work."""
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Sample(
        at=time.monotonic(),
        uptime=time.clock_gettime(time.CLOCK_BOOTTIME),
        cpus=os.cpu_count() or 1,
        cpu=psutil.cpu_times()._asdict(),
        load=os.getloadavg(),
        memory={"total": memory.total, "available": memory.available, "used": memory.total - memory.available},
        swap={"total": swap.total, "used": swap.used},
        spaces=tuple(_spaces()),
        disks=tuple(_disks()),
        network=tuple(_network()),
        temperatures=tuple(_temperatures()),
        units=cgroups.units(groups),
    )


def _spaces() -> list[Space]:
    found = []
    for path in _PLACES:
        if os.path.ismount(path):
            space = os.statvfs(path)
            if space.f_blocks and not space.f_flag & os.ST_RDONLY:
                found.append(Space(path, space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize))
    return found


def _disks() -> list[Traffic]:
    import psutil

    counters = psutil.disk_io_counters(perdisk=True) or {}
    return [
        Traffic(name, one.read_bytes, one.write_bytes)
        for name, one in sorted(counters.items())
        if not name.startswith(_VIRTUAL) and Path("/sys/block", name).exists()
    ]


def _network() -> list[Traffic]:
    import psutil

    return [
        Traffic(name, one.bytes_recv, one.bytes_sent, one.errin + one.errout, one.dropin + one.dropout)
        for name, one in sorted(psutil.net_io_counters(pernic=True).items())
        if name != "lo"
    ]


def _temperatures() -> list[Temperature]:
    import psutil

    return [
        Temperature(" ".join(word for word in (chip, one.label) if word), one.current, one.high, one.critical)
        for chip, readings in sorted(psutil.sensors_temperatures().items())
        for one in readings
    ]
