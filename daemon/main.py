"""What /usr/bin/mixosd runs: the fork server first, from a process that has loaded nothing, then the daemon."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.streams import open_missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    open_missing()
    sys.modules["ssl"] = None  # type: ignore[assignment]  # asyncio goes without it: 2.5 MiB in every process
    import asyncio  # noqa: F401

    del sys.modules["ssl"]
    from daemon.core.worker import forkserver
    from daemon.core.worker.forks import NOTE

    given = sys.argv[1:] if arguments is None else list(arguments)
    folder = _folder(given)
    note = NOTE if folder is None else Path(folder, "run", NOTE.name)
    server, control = forkserver.start(True, note)
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"  # it would read the metadata of all packages to look for some

    from daemon.core.worker.forks import Forks
    from daemon.mixosd import main as serve

    return serve(given, Forks(control, server=server, watch=True, note=note))


def _folder(given: Sequence[str]) -> str | None:
    """What --folder says, before there is a parser: that loads too much for what the fork server forks from."""
    found = None
    for index, word in enumerate(given):
        if word == "--folder":
            found = given[index + 1] if index + 1 < len(given) else None
        elif word.startswith("--folder="):
            found = word.partition("=")[2]
    return found


if __name__ == "__main__":
    sys.exit(main())
