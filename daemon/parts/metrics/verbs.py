"""`mixctl metrics`."""

from __future__ import annotations

import time
from typing import Any

import click

from common.units import percent, rate, size
from daemon.client.cli.common import ask, columns, json_option, show
from daemon.client.show import Column, Listing, labelled

_BLOCKS = " .:-=+*#%@"  # from nothing to all; plain ASCII, for serial lines


@click.command()
@click.option("--prometheus", "as_text", is_flag=True, help="Print the text that Prometheus reads.")
@click.option("--history", "minutes", type=click.FloatRange(0, 60, min_open=True), help="Print the last MINUTES.")
@click.option("--health", "only_health", is_flag=True, help="Print whether the machine is well; exit code 1 if not.")
@click.option("--reload", "again", is_flag=True, help="Read /etc/mixos/metrics.toml again.")
@json_option
def metrics(as_text: bool, minutes: float | None, only_health: bool, again: bool, as_json: bool) -> int:
    """Show what the machine and its units use.

    \b
    Example:
      mixctl metrics
      mixctl metrics --history 15 --json
      mixctl metrics --health
    """
    if sum((as_text, minutes is not None, only_health, again)) > 1:
        raise click.UsageError("--prometheus, --history, --health and --reload exclude each other")
    if as_text:
        show({"text": (text := ask("metrics.prometheus"))}, as_json, lambda _: str(text).rstrip("\n"))
    elif minutes is not None:
        show(ask("metrics.history", {"minutes": minutes}), as_json, record)
    elif only_health:
        found = ask("metrics.health")
        show(found, as_json, verdict)
        return int(found["state"] != "ok")
    elif again:
        show(ask("metrics.reload"), as_json, lambda found: f"endpoint: {found['endpoint'] or 'off'}")
    else:
        show(ask("metrics.now", {"seconds": 1.0}), as_json, summary)
    return 0


def verdict(found: Any) -> str:
    """The state, then a line for each finding."""
    rows = [f"{one['state']:<9} {one['text']}" for one in found["findings"]]
    return "\n".join([str(found["state"]), *rows])


def summary(found: Any) -> str:
    """The figures as label and value, then the units as a table."""
    modes = ", ".join(f"{mode} {share:g}" for mode, share in found["cpu"]["modes"].items() if share >= 0.1)
    rows = [
        ("cpu", f"{found['cpu']['percent']:g} % of {found['cpu']['count']} ({modes})"),
        ("load", " ".join(f"{value:.2f}" for value in found["load"])),
        ("memory", f"{size(found['memory']['used'])} of {size(found['memory']['total'])}"),
    ]
    if found["swap"]["total"]:
        rows.append(("swap", f"{size(found['swap']['used'])} of {size(found['swap']['total'])}"))
    rows += [(one["path"], f"{size(one['free'])} free of {size(one['size'])}") for one in found["filesystems"]]
    rows += [(one["name"], f"{rate(one['read'])} read, {rate(one['write'])} written") for one in found["disks"]]
    rows += [(one["name"], f"{rate(one['receive'])} in, {rate(one['send'])} out") for one in found["network"]]
    rows += [(one["name"], f"{one['celsius']:.0f} degrees Celsius") for one in found["temperatures"]]
    return labelled(rows) + (f"\n\n{UNITS.table(found['units'])}" if found["units"] else "")


UNITS = Listing(
    "metrics.now units[]",
    (
        Column("unit", "name"),
        Column("cpu", "cpu", percent),
        Column("memory", "memory", size),
        Column("tasks", "tasks"),
        Column("oom", "oom-kills"),
    ),
)


def record(found: Any) -> str:
    """The record: a line a minute, with the mean of its rows."""
    minutes: dict[int, list[list[float]]] = {}
    for row in found["rows"]:
        minutes.setdefault(int(row[0] // 60), []).append(row)
    if not minutes:
        return "nothing is recorded yet: recording began with this question, ask again in a minute"
    cells = []
    for minute, rows in minutes.items():
        mean = dict(zip(found["columns"], (sum(column) / len(rows) for column in zip(*rows, strict=True)), strict=True))
        bar = _BLOCKS[min(int(mean["cpu"] / 100 * len(_BLOCKS)), len(_BLOCKS) - 1)]
        cells.append(
            [
                time.strftime("%H:%M", time.localtime(minute * 60)),
                f"{mean['cpu']:5.1f} {bar}",
                f"{mean['load']:.2f}",
                size(mean["memory"]),
                *(rate(mean[name]) for name in ("receive", "send", "read", "write")),
            ]
        )
    return columns(["time", "cpu %", "load", "memory", "in", "out", "read", "written"], cells)
