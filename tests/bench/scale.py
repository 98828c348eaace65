"""Many services: how long mixosd takes to start, take over and stop SERVICES of them, and what it needs for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import HostError
from daemon.client.connection import call
from daemon.core.part import Context
from tests.bench import memory, mixosd
from tests.bench.figures import Figure, table

SERVICES = 500
GROUP = f"{SERVICES} services, mixosd on this host"
PATIENCE = 300.0  # seconds for all of them


def figures() -> list[Figure]:
    """All of them. Raises HostError when a service is lost or restarted while the daemon is away."""
    with mixosd.folders() as place, mixosd.running(place, mixosd.SUPERVISION) as process:
        empty = memory.private(process.pid)
    with mixosd.folders() as place:
        for number in range(SERVICES):
            mixosd.unit(place, f"s{number}", "[service]\ncommand = ['/bin/sleep', 'infinity']\n")
        began = time.perf_counter()
        process = mixosd.begin(place, mixosd.SUPERVISION)
        try:
            started = _reach(place, began, lambda units: units == {"running": SERVICES})
            full = memory.private(process.pid)
            before = _processes(place)
        finally:
            mixosd.end(process)
        began = time.perf_counter()
        process = mixosd.begin(place, mixosd.SUPERVISION)
        try:
            adopted = _reach(place, began, lambda units: units == {"running": SERVICES})
            if _processes(place) != before:
                raise HostError("services were not taken over", reason="bench-adoption")
            began = time.perf_counter()
            call("service.shutdown", {"seconds": PATIENCE}, place.run / "mixosd.sock", timeout=PATIENCE)
            stopped = time.perf_counter() - began
            _reach(place, began, lambda units: units == {"inactive": SERVICES})
        finally:
            mixosd.end(process)
    return [
        Figure(GROUP, "start of mixosd → all run", round(started, 2), "s"),
        Figure(GROUP, "start of the next mixosd after kill -9 → all taken over", round(adopted, 2), "s"),
        Figure(GROUP, "shutdown of the units → all have ended", round(stopped, 2), "s"),
        Figure(GROUP, "memory of mixosd with no unit (private)", round(empty / 1024, 1), "MiB"),
        Figure(GROUP, f"memory of mixosd with {SERVICES} (private)", round(full / 1024, 1), "MiB"),
        Figure(GROUP, "memory of mixosd for each", round((full - empty) / SERVICES, 1), "KiB"),
    ]


def _reach(place: Context, began: float, there: Callable[[Mapping[str, int]], bool]) -> float:
    """Seconds from `began` until the number of units by state is as wanted. Raises HostError when it never is."""
    while True:
        units = mixosd.states(place)["service"].get("units", {})
        passed = time.perf_counter() - began
        if there(units):
            return passed
        if passed > PATIENCE:
            raise HostError(f"units after {passed:.0f} s: {units}", reason="bench-service")
        time.sleep(0.05)


def _processes(place: Context) -> dict[str, tuple[int, int]]:
    """Unit → its process and how often it was restarted."""
    rows: list[dict[str, Any]] = call("service.list", {}, place.run / "mixosd.sock")["units"]
    return {row["name"]: (row["pid"], row["restarts"]) for row in rows}


if __name__ == "__main__":
    print(table(figures()))
