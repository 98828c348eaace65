"""Is the machine well? A few plain limits, each with its reason in words, and what parts find; no score, no trend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, cast

from daemon.core.figures import Finding
from daemon.parts.metrics.sample import Sample

if TYPE_CHECKING:
    from daemon.parts.metrics.answers import Health

STATES = ("ok", "warning", "critical")

# share that is left: below the first a warning, below the second critical
_MEMORY = (0.10, 0.04)
_SPACE = (0.10, 0.03)
_LOAD = (4.0, 16.0)  # runnable or waiting tasks per processor, over five minutes
_HOT = 85.0  # degrees Celsius, for a sensor without limits of its own


def health(sample: Sample, others: Iterable[Finding] = ()) -> Health:
    """The worst state, and every finding that is not ok: `{"state", "findings": [{"check", "state", "text"}]}`. others:
    of other parts."""
    findings = [*_findings(sample), *others]
    worst = max((STATES.index(one.state) for one in findings), default=0)
    return cast("Health", {"state": STATES[worst], "findings": [one._asdict() for one in findings]})


def _findings(sample: Sample) -> Iterator[Finding]:
    left = sample.memory["available"] / max(sample.memory["total"], 1)
    if state := _short(left, _MEMORY):
        yield Finding("memory", state, f"only {left:.0%} of the memory is available")
    for space in sample.spaces:
        left = space.free / max(space.size, 1)
        if state := _short(left, _SPACE):
            yield Finding("space", state, f"only {left:.0%} of {space.path} is free")
    load = sample.load[1] / sample.cpus
    if load > _LOAD[0]:
        yield Finding(
            "load",
            "critical" if load > _LOAD[1] else "warning",
            f"load of {sample.load[1]:.1f} on {sample.cpus} processors",
        )
    for sensor in sample.temperatures:
        if sensor.critical and sensor.celsius >= sensor.critical:
            yield Finding("temperature", "critical", f"{sensor.name} is at {sensor.celsius:.0f} degrees, its limit")
        elif sensor.celsius >= (sensor.high or _HOT):
            yield Finding("temperature", "warning", f"{sensor.name} is at {sensor.celsius:.0f} degrees")


def _short(left: float, limits: tuple[float, float]) -> Literal["warning", "critical"] | None:
    return "critical" if left < limits[1] else "warning" if left < limits[0] else None
