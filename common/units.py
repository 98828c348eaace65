"""Quantities as people read them: the same words in every program."""

from __future__ import annotations


def size(count: float | None) -> str:
    """Bytes: "512 B", "1.5 KiB", "928 MiB"; "-" when it is not known."""
    if count is None:
        return "-"
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value /= 1024 if unit != "TiB" else 1
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
