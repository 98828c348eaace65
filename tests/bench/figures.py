"""Figures: one measured value each, with its budget where the project has set one, as table and as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A measurement. unit: "s", "ms", "/s", "KiB", "MiB" or "MiB/s"; budget: the upper bound that the project aims at;
    note: how to read it."""

    group: str
    name: str
    value: float
    unit: str
    budget: float | None = None
    note: str = ""

    def verdict(self) -> str:
        """The budget and whether it is kept; empty without one."""
        if self.budget is None:
            return ""
        return f"≤ {self.budget:g} {self.unit}: {'kept' if self.value <= self.budget else 'OVER'}"


def table(figures: Iterable[Figure]) -> str:
    """Figures as text, by group in the order of their first appearance."""
    rows = list(figures)
    lines: list[str] = []
    for group in dict.fromkeys(row.group for row in rows):
        lines += ["", group]
        for row in rows:
            if row.group == group:
                words = [f"  {row.name:<54}{row.value:>10.2f} {row.unit:<4}", row.verdict(), row.note]
                lines.append("  ".join(word for word in words if word).rstrip())
    return "\n".join(lines[1:])


def document(figures: Iterable[Figure], when: str) -> dict[str, Any]:
    """The JSON document: the host it was measured on, and every figure."""
    return {"format": 1, "date": when, "host": host(), "figures": [asdict(row) for row in figures]}


def host() -> dict[str, Any]:
    """What the times depend on. load: of the last minute, when the run ended."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
