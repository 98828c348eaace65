"""`mixctl top`."""

from __future__ import annotations

import json
import pwd
import time
from typing import Any

import click

from common.safe import one_line, printable, printable_json
from common.units import percent, rate, size
from daemon.client.cli.common import ask
from daemon.client.console.terminal import CLEAR, Terminal
from daemon.client.show import Column, Listing
from daemon.parts.metrics.verbs import UNITS

SORTS = ("cpu", "memory", "pid", "name")
_KEYS = {"c": "cpu", "m": "memory", "p": "pid", "n": "name"}
_END = ("q", "Q", "ctrl-c", "ctrl-d", "escape")


@click.command()
@click.option("--interval", type=click.FloatRange(0.1, 10.0), default=2.0, show_default=True, help="Seconds per round.")
@click.option("--sort", type=click.Choice(SORTS), default="cpu", show_default=True, help="What comes first.")
@click.option("--count", type=click.IntRange(0, 500), help="Processes shown; default: what fits, or 20.")
@click.option("--rounds", type=click.IntRange(1), help="End after so many; default: 1 unless on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per line and round.")
def top(interval: float, sort: str, count: int | None, rounds: int | None, as_json: bool) -> None:
    """Show the busiest processes and units, again and again.

    On a terminal, keys: c, m, p and n sort by cpu, memory, pid and name; q ends it.

    \b
    Example:
      mixctl top --sort memory
      mixctl top --rounds 1 --json
    """
    terminal = Terminal()
    live = terminal.interactive and not as_json
    left = rounds if rounds is not None or live else 1
    while left is None or left > 0:
        left = None if left is None else left - 1
        wanted = count if count is not None else max(terminal.size()[1] - 8, 1) if live else 20
        found = ask("metrics.top", {"seconds": interval, "sort": sort, "count": wanted}, seconds=interval + 15)
        if as_json:
            click.echo(printable_json(json.dumps(found, ensure_ascii=False)))
        elif live:
            paint(terminal, screen(found, sort))
            chosen = pressed(terminal)
            if chosen in _END:
                return
            sort = _KEYS.get(chosen, sort)
        else:
            click.echo(printable(screen(found, sort)))


def paint(terminal: Terminal, text: str) -> None:
    """Show a round, cut to the screen so that nothing scrolls."""
    width, height = terminal.size()
    lines = [line[: width - 1] for line in printable(text).splitlines()][: height - 1]
    terminal.write(CLEAR + "\n".join(lines) + "\n")


def pressed(terminal: Terminal) -> str:
    """The latest key, if there was one while the daemon was measuring; never waits."""
    chosen = ""
    with terminal.raw():
        while (key := terminal.key(0)) is not None:
            chosen = key
    return chosen


def screen(found: Any, sort: str) -> str:
    """One round as text: the machine, its units, its processes."""
    memory, swap = found["memory"], found["swap"]
    hot = max((one["celsius"] for one in found["temperatures"]), default=None)
    head = [
        time.strftime("%H:%M:%S", time.localtime(found["at"])),
        f"cpu {found['cpu']['percent']:g} % of {found['cpu']['count']}",
        f"load {' '.join(f'{value:.2f}' for value in found['load'])}",
        f"memory {size(memory['used'])} of {size(memory['total'])}",
        *([f"swap {size(swap['used'])}"] if swap["total"] else []),
        *([] if hot is None else [f"{hot:.0f} degrees"]),
    ]
    traffic = [
        *(f"{one['name']} in {rate(one['receive'])} out {rate(one['send'])}" for one in found["network"]),
        *(f"{one['name']} read {rate(one['read'])} write {rate(one['write'])}" for one in found["disks"]),
    ]
    busy = sorted(found["units"], key=lambda one: (-(one["cpu"] or 0), -(one["memory"] or 0), one["name"]))[:8]
    parts = [", ".join(head), "; ".join(traffic), *(["", UNITS.table(busy)] if busy else []), ""]
    return "\n".join([*parts, f"{found['process-count']} processes by {sort}", _PROCESSES.table(found["processes"])])


def user(uid: int) -> str:
    """The account's name, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


_PROCESSES = Listing(
    "metrics.top processes[]",
    (
        Column("pid", "pid"),
        Column("user", "uid", user),
        Column("cpu", "cpu", percent),
        Column("memory", "memory", size),
        Column("state", "state"),
        Column("unit", "unit"),
        Column("name", lambda one: one_line(one["name"], 40)),
    ),
)
