"""What each unit uses, from its cgroup (kernel: Documentation/admin-guide/cgroup-v2.rst).

A file that is not there (controller off, another hierarchy) gives None for that figure, never a guess.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup/mixos")
MOST = 1000  # units that are read
_MAX_BYTES = 64 << 10


class Unit(NamedTuple):
    """Counters since the cgroup was made, sizes now. cpu in seconds, the rest in bytes or pieces."""

    cpu: float | None
    memory: int | None
    swap: int | None
    tasks: int | None
    read: int | None
    written: int | None
    oom_kills: int | None


def units(root: Path = ROOT) -> dict[str, Unit]:
    """Name → figures of every unit below `root`, sorted by name."""
    try:
        names = sorted(path.name for path in root.iterdir() if path.is_dir())[:MOST]
    except OSError:
        return {}
    return {name: unit(root / name) for name in names}


def unit(folder: Path) -> Unit:
    """The figures of one cgroup."""
    usage = _keyed(folder / "cpu.stat").get("usage_usec")
    disks = _text(folder / "io.stat")
    return Unit(
        cpu=None if usage is None else usage / 1e6,
        memory=_number(folder / "memory.current"),
        swap=_number(folder / "memory.swap.current"),
        tasks=_number(folder / "pids.current"),
        read=_sum(disks, "rbytes="),
        written=_sum(disks, "wbytes="),
        oom_kills=_keyed(folder / "memory.events").get("oom_kill"),
    )


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdecimal() else None


def _keyed(path: Path) -> dict[str, int]:
    """A "flat keyed" file: a name and a number per line."""
    rows = (line.split() for line in (_text(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def _sum(text: str | None, key: str) -> int | None:
    """The sum over devices in a "nested keyed" file (8:0 rbytes=1 wbytes=2 ...); None without the file."""
    if text is None:
        return None
    words = (word.removeprefix(key) for word in text.split() if word.startswith(key))
    return sum(int(word) for word in words if word.isdecimal())
