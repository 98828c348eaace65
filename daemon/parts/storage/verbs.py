"""`mixctl storage`: disks, space, quotas, health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from common.units import percent, size
from daemon.client.cli.common import ask, columns, json_option, show
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing


@click.group()
def storage() -> None:
    """Look at disks and at what fills them; limit what units keep.

    \b
    Example:
      mixctl storage usage
      mixctl storage quota set web 200M
    """


@storage.command()
@json_option
def disks(as_json: bool) -> None:
    """List disks and their partitions.

    \b
    Example:
      mixctl storage disks
    """
    show(ask("storage.disks"), as_json, _disks)


@storage.command()
@click.option("--fresh", is_flag=True, help="Count again, even if it was done within the last minute.")
@json_option
def usage(fresh: bool, as_json: bool) -> None:
    """Show file systems, and what takes the space of the data partition.

    \b
    Example:
      mixctl storage usage --json
    """
    show(ask("storage.usage", {"fresh": fresh}, seconds=30.0), as_json, _usage)


@storage.group(invoke_without_command=True)
@json_option
@click.pass_context
def quota(context: click.Context, as_json: bool) -> None:
    """Show or set how much units may keep below /var/lib.

    \b
    Example:
      mixctl storage quota
      mixctl storage quota set web 200M
      mixctl storage quota clear web
    """
    if context.invoked_subcommand is None:
        show(ask("storage.quotas"), as_json, _QUOTAS.table)


@quota.command(name="set")
@click.argument("unit", shell_complete=known("unit"))
@click.argument("limit", metavar="SIZE")
@json_option
def set_(unit: str, limit: str, as_json: bool) -> None:
    """Limit what UNIT keeps to SIZE: bytes, or with K, M, G, T.

    \b
    Example:
      mixctl storage quota set web 200M
    """
    show(ask("storage.quota", {"unit": unit, "size": limit}, seconds=65.0), as_json, lambda row: _QUOTAS.table([row]))


@quota.command()
@click.argument("unit", shell_complete=known("unit"))
@json_option
def clear(unit: str, as_json: bool) -> None:
    """Take the limit of UNIT away.

    \b
    Example:
      mixctl storage quota clear web
    """
    show(ask("storage.quota", {"unit": unit}, seconds=65.0), as_json, lambda row: _QUOTAS.table([row]))


@storage.command()
@json_option
def health(as_json: bool) -> int:
    """Ask the disks how they are; exit code 1 when one of them is not well.

    \b
    Example:
      mixctl storage health
    """
    rows = ask("storage.health", seconds=35.0)
    show(rows, as_json, _HEALTH.table)
    return int(any(row["state"] in ("warning", "failing") for row in rows))


@storage.command()
@json_option
def trim(as_json: bool) -> None:
    """Tell the data disk which blocks are free. A timer does it every week.

    \b
    Example:
      mixctl storage trim
    """
    show(ask("storage.trim", seconds=605.0), as_json, lambda row: f"{row['path']}: {size(row['bytes'])} given back")


def _disks(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        marks = [mark for mark in ("removable", "read-only", "rotational") if row[mark]]
        marks += [f"boot disk, slot {row['slot'] or '?'}"] if row["boot"] else []
        what = " ".join(word for word in (row["kind"], row["model"]) if word)
        cells.append([row["name"], size(row["size"]), what, ", ".join(marks), " ".join(row["mounted"])])
        cells += [
            [f"  {part['name']}", size(part["size"]), part["gpt-name"] or "-", "", " ".join(part["mounted"])]
            for part in row["partitions"]
        ]
    return columns(["name", "size", "what", "", "mounted"], cells) if cells else "no disks"


def _usage(found: dict[str, Any]) -> str:
    text = _FILE_SYSTEMS.table(
        row for row in found["filesystems"] if row["type"] not in ("squashfs", "overlay")
    )  # always full; and the same as /data
    data = found["data"]
    if data is None:
        return f"{text}\n\nthere is no data partition"
    rows = [[f"unit {row['name']}", size(row["bytes"])] for row in data["units"]]
    rest = data["units-total"] - sum(row["bytes"] for row in data["units"])
    rows += [["other units", size(rest)]] if rest else []
    rows += [[name, size(data[name])] for name in ("daemon", "logs", "packages", "other")]
    note = "" if data["complete"] else "\nthere are too many files: not all were counted, the rest is in 'other'"
    return f"{text}\n\n{columns(['on the data partition', 'takes'], rows)}{note}"


_FILE_SYSTEMS = Listing(
    "storage.usage filesystems[]",
    (
        Column("path", "path"),
        Column("type", "type"),
        Column("size", "size", size),
        Column("free", "free", size),
        Column("used", "percent", percent),
    ),
)
_QUOTAS = Listing(
    "storage.quotas []",
    (
        Column("unit", "unit"),
        Column("limit", "limit", size),
        Column("used", "used", size),
        Column("enforced", lambda row: row["problem"] or ("yes" if row["enforced"] else "-")),
    ),
    none="no unit keeps state",
)


def _words(row: Mapping[str, Any]) -> str:
    words = [one["text"] for one in row["findings"]]
    words += [f"{row['used-percent']} % worn"] if row.get("used-percent") is not None else []
    words += [f"{row['temperature']} degrees Celsius"] if row.get("temperature") is not None else []
    words += [f"{row['power-on-hours']} hours on"] if row.get("power-on-hours") is not None else []
    return ", ".join(words)


_HEALTH = Listing(
    "storage.health []",
    (Column("disk", "name"), Column("kind", "kind"), Column("state", "state"), Column("facts", _words)),
    none="no disks",
)
