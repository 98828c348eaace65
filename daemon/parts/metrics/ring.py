"""The last hour, in a fixed amount of memory: 360 rows of 8 numbers, 25 KiB, whatever happens."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

STEP = 10.0  # seconds between rows
ROWS = 360
COLUMNS = ("at", "cpu", "memory", "load", "receive", "send", "read", "write")


class Ring:
    """Rows of COLUMNS, the oldest overwritten first."""

    def __init__(self, rows: int = ROWS) -> None:
        self.rows = rows
        self._numbers = array("d", bytes(8 * rows * len(COLUMNS)))
        self._next = 0
        self._filled = 0

    def add(self, row: Mapping[str, float]) -> None:
        """Keep a row; it has every column."""
        width = len(COLUMNS)
        self._numbers[self._next * width : (self._next + 1) * width] = array("d", [row[name] for name in COLUMNS])
        self._next = (self._next + 1) % self.rows
        self._filled = min(self._filled + 1, self.rows)

    def since(self, start: float) -> list[list[float]]:
        """Rows whose "at" (seconds since 1970) is not before `start`, oldest first."""
        width = len(COLUMNS)
        order = ((self._next - self._filled + index) % self.rows for index in range(self._filled))
        found = (list(self._numbers[index * width : (index + 1) * width]) for index in order)
        return [row for row in found if row[0] >= start]


def row_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """The row that stands for figures (`daemon.parts.metrics.figures`): disks and interfaces summed up."""
    return {
        "at": figures["at"],
        "cpu": figures["cpu"]["percent"],
        "memory": figures["memory"]["used"],
        "load": figures["load"][0],
        "receive": sum(one["receive"] for one in figures["network"]),
        "send": sum(one["send"] for one in figures["network"]),
        "read": sum(one["read"] for one in figures["disks"]),
        "write": sum(one["write"] for one in figures["disks"]),
    }
