"""Quantities as people read them: the same words in every program. What is not known (None) is "-"."""

from __future__ import annotations

import time


def size(count: float | None) -> str:
    """Bytes: "512 B", "1.5 KiB", "928 MiB"."""
    if count is None:
        return "-"
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value /= 1024 if unit != "TiB" else 1
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def rate(count: float | None) -> str:
    """Bytes a second: "1.5 KiB/s"."""
    return "-" if count is None else f"{size(count)}/s"


def percent(share: float | None) -> str:
    """A share of a hundred: "12.5 %"."""
    return "-" if share is None else f"{share:.1f} %"


def duration(seconds: float | None) -> str:
    """A time that has passed, in its two largest units: "0.5 ms", "1.5 s", "12 s", "7 min 5 s", "3 h", "2 d 4 h"."""
    if seconds is None:
        return "-"
    if 0 < seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 10:
        return f"{max(seconds, 0):.1f}".removesuffix(".0") + " s"
    left = int(seconds)
    counts: list[tuple[int, str]] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or counts:
            counts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in counts[:2] if count)


def clock(at: float | None) -> str:
    """Seconds since 1970 as local time: "2026-01-31 14:30:00"."""
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def word(value: object) -> str:
    """Anything else: words of a list side by side, "yes" and "no"; "-" for what is not known, or nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        value = " ".join(map(word, value))
    return "-" if value is None or value == "" else str(value)
