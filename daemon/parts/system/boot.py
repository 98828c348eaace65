"""`mixctl boot`: where the time of the last boot went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from daemon.client.cli.common import ask, json_option, show

_WIDTH = 40  # characters of the longest bar


@click.command()
@json_option
def boot(as_json: bool) -> None:
    """Show when each step of the boot began and ended, in seconds after the kernel's start.

    Steps of early boot follow each other; the parts of the daemon come up beside SSH and the console.

    \b
    Example:
      mixctl boot
    """
    facts = ask("status")
    show(steps(facts), as_json, _chart)


def steps(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps in order: `name`, `begin` and `end` in seconds after the kernel's start."""
    found, begin = [], 0.0
    for name, end in sorted(facts["boot_times"].items(), key=lambda item: item[1]):
        found.append({"name": name.removesuffix(".sh"), "begin": begin, "end": end})
        begin = end
    for name, part in facts.get("parts", {}).items():
        if (up := part.get("up_at")) is not None:
            found.append({"name": f"mixosd: {name}", "begin": max(up - part["seconds"], 0.0), "end": up})
    return found


def _chart(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "this boot was not timed"
    scale = _WIDTH / max(row["end"] for row in rows)
    lines = []
    for row in rows:
        before = round(row["begin"] * scale)
        bar = "#" * max(1, round(row["end"] * scale) - before)
        chart = f"{' ' * before}{bar}".ljust(_WIDTH)[:_WIDTH]
        lines.append(f"{row['name']:<18} {row['begin']:>7.2f} {row['end'] - row['begin']:>7.2f} s  |{chart}|")
    return "\n".join([f"{'STEP':<18} {'BEGIN':>7} {'TOOK':>9}", *lines])
