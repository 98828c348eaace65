"""`watch COMMAND`: a command again and again on a screen that stays in place."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence

from daemon.client.console.terminal import CLEAR, Terminal

SECONDS = 2.0
_LEAST, _MOST = 0.5, 3600.0


def parse(words: Sequence[str]) -> tuple[float, Sequence[str]] | str:
    """Seconds and command of `watch [SECONDS] COMMAND…`, or what is wrong."""
    seconds, command = SECONDS, list(words)
    try:
        seconds = float(command[0])
        del command[0]
    except (IndexError, ValueError):
        pass  # no number in front: the usual pause
    if command[:1] == ["mixctl"]:
        del command[0]
    if not command or command[0] in ("watch", "top", "shell"):
        return "usage: watch [SECONDS] COMMAND"
    if not _LEAST <= seconds <= _MOST:
        return f"watch: between {_LEAST:g} and {_MOST:g} seconds"
    return seconds, command


def watch(terminal: Terminal, seconds: float, command: Sequence[str], run: Callable[[Sequence[str]], int]) -> int:
    """Show what `command` prints, as much as fits, every `seconds`, until q or Ctrl-C; the last exit code.

    Only what is printed to stdout is kept in place; errors stand below it until the next round.
    """
    while True:
        kept, old = io.StringIO(), sys.stdout
        sys.stdout = kept
        try:
            status = run(command)
        finally:
            sys.stdout = old
        if status == 130:
            return status
        columns, rows = terminal.size()
        lines = kept.getvalue().splitlines()[: rows - 2]
        head = f"every {seconds:g} s: {' '.join(command)}   (q ends)"
        terminal.write(CLEAR + "\n".join(line[:columns] for line in [head, *lines]) + "\n")
        with terminal.raw():
            key = terminal.key(seconds)
        if key in ("q", "ctrl-c", "ctrl-d", "escape"):
            return status
