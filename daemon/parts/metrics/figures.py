"""Two samples → figures: shares in percent, rates in bytes per second, the object that clients get."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from daemon.parts.metrics.processes import Process
from daemon.parts.metrics.sample import Sample, Traffic

if TYPE_CHECKING:
    from daemon.parts.metrics import answers
    from daemon.parts.metrics.answers import Cpu, Memory, Now, Space, Swap, Temperature, Unit

_IDLE = ("idle", "iowait")
_INCLUDED = ("guest", "guest_nice")  # proc(5): already counted in user and nice


def figures(before: Sample, after: Sample) -> Now:
    """What `metrics.now` answers: cpu in percent of all processors, sizes in bytes, rates per second."""
    seconds = max(after.at - before.at, 1e-3)
    return {
        "at": time.time(),
        "seconds": round(seconds, 3),
        "uptime": after.uptime,
        "load": list(after.load),
        "cpu": cpu(before, after),
        "memory": cast("Memory", dict(after.memory)),
        "swap": cast("Swap", dict(after.swap)),
        "filesystems": [cast("Space", space._asdict()) for space in after.spaces],
        "disks": [
            {"name": name, "read": inward, "write": outward}
            for name, inward, outward in rates(before.disks, after.disks, seconds)
        ],
        "network": [
            {"name": name, "receive": inward, "send": outward}
            for name, inward, outward in rates(before.network, after.network, seconds)
        ],
        "temperatures": [cast("Temperature", one._asdict()) for one in after.temperatures],
        "units": units(before, after, seconds),
    }


def cpu(before: Sample, after: Sample) -> Cpu:
    """Share of each mode since `before`, and of everything but idling."""
    spent = {
        mode: max(0.0, value - before.cpu.get(mode, 0.0)) for mode, value in after.cpu.items() if mode not in _INCLUDED
    }
    total = sum(spent.values()) or 1.0
    shares = {mode: round(100 * value / total, 1) for mode, value in spent.items()}
    busy = sum(value for mode, value in spent.items() if mode not in _IDLE)
    return {"count": after.cpus, "percent": round(100 * busy / total, 1), "modes": shares}


def rates(before: Iterable[Traffic], after: Iterable[Traffic], seconds: float) -> Iterable[tuple[str, float, float]]:
    """Name, bytes in and out per second. What appeared meanwhile, or was counted from zero again, has no rate yet."""
    earlier = {one.name: one for one in before}
    for one in after:
        start = earlier.get(one.name, one)
        yield one.name, rate(start.inward, one.inward, seconds), rate(start.outward, one.outward, seconds)


def rate(before: float | None, after: float | None, seconds: float) -> float:
    """Growth per second, never negative."""
    return 0.0 if before is None or after is None else round(max(0.0, after - before) / seconds, 1)


def units(before: Sample, after: Sample, seconds: float) -> list[Unit]:
    """Per unit: cpu in percent of one processor, memory, tasks, disk traffic, kills for want of memory."""
    result: list[Unit] = []
    for name, unit in after.units.items():
        start = before.units.get(name, unit)
        share = None if unit.cpu is None else round(100 * max(0.0, unit.cpu - (start.cpu or 0.0)) / seconds, 1)
        result.append(
            {
                "name": name,
                "cpu": share,
                "memory": unit.memory,
                "swap": unit.swap,
                "tasks": unit.tasks,
                "read": rate(start.read, unit.read, seconds),
                "write": rate(start.written, unit.written, seconds),
                "oom-kills": unit.oom_kills,
            }
        )
    return result


def busiest(
    before: Mapping[tuple[int, int], Process],
    after: Mapping[tuple[int, int], Process],
    seconds: float,
    sort: str,
    count: int,
) -> list[answers.Process]:
    """The first `count` processes by "cpu" or "memory" (most first), "pid" or "name". What is new began at zero."""
    rows: list[answers.Process] = [
        {
            "pid": one.pid,
            "name": one.name,
            "uid": one.uid,
            "state": one.state,
            "cpu": round(100 * (one.cpu - (before[key].cpu if key in before else 0.0)) / max(seconds, 1e-3), 1),
            "memory": one.memory,
            "threads": one.threads,
        }
        for key, one in after.items()
    ]
    orders: Mapping[str, Callable[[answers.Process], Any]] = {
        "cpu": lambda row: (-row["cpu"], -row["memory"], row["pid"]),
        "memory": lambda row: (-row["memory"], row["pid"]),
        "name": lambda row: (row["name"], row["pid"]),
    }
    return sorted(rows, key=orders.get(sort, lambda row: row["pid"]))[:count]
