"""`mixctl config`: history, diff and undo of what was configured on this device."""

from __future__ import annotations

import time
from typing import Any

import click

from daemon.cli.common import ask, columns, json_option, show


@click.group()
def config() -> None:
    """Look at earlier configurations of this device and go back to one.

    \b
    Example:
      mixctl config history
      mixctl config undo
    """


@config.command()
@click.option("-n", "count", type=click.IntRange(1, 500), default=20, show_default=True, help="How many to show.")
@json_option
def history(count: int, as_json: bool) -> None:
    """List who changed what, newest first.

    \b
    Example:
      mixctl config history -n 5
    """
    show(ask("config.history", {"count": count}), as_json, _table)


@config.command()
@click.argument("old", type=int, default=0)
@click.argument("new", type=int, required=False)
@json_option
def diff(old: int, new: int | None, as_json: bool) -> None:
    """Show what changed between revisions OLD and NEW (0 is the newest, -1 the one before it; NEW: the files now).

    \b
    Example:
      mixctl config diff -- -1 0
    """
    params = {"old": old} if new is None else {"old": old, "new": new}
    show(ask("config.diff", params), as_json, lambda answer: answer["diff"].rstrip("\n") or "no difference")


@config.command()
@click.argument("revision", type=int, default=-1)
@json_option
def undo(revision: int, as_json: bool) -> None:
    """Go back to REVISION (default: the one before the newest). This makes a new revision: an undo can be undone.

    \b
    Example:
      mixctl config undo
    """
    show(ask("config.undo", {"revision": revision}), as_json, _undone)


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            str(row["id"]),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["at"])),
            row["who"],
            row["why"],
            " ".join(row["files"]) or "-",
        ]
        for row in rows
    ]
    return columns(["id", "when", "who", "what", "files"], cells) if rows else "nothing was ever configured"


def _undone(answer: dict[str, Any]) -> str:
    changed = " ".join(answer["changed"]) or "nothing had to change"
    return f"back to revision {answer['revision']}: {changed}"
