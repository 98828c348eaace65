"""What /usr/bin/mixosd runs: the fork server first, from a process that has loaded nothing, then the daemon."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    sys.modules["ssl"] = None  # type: ignore[assignment]  # asyncio goes without it: 2.5 MiB in every process
    import asyncio  # noqa: F401

    del sys.modules["ssl"]
    from daemon.core.worker import forkserver
    from daemon.core.worker.forks import NOTE

    given = sys.argv[1:] if arguments is None else list(arguments)
    note = Path(given[given.index("--folder") + 1], "run", NOTE.name) if "--folder" in given[:-1] else NOTE
    server, control = forkserver.start(True, note)
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"  # it would read the metadata of all packages to look for some

    from daemon.core.worker.forks import Forks
    from daemon.mixosd import main as serve

    return serve(given, Forks(control, server, watch=True, note=note))


if __name__ == "__main__":
    sys.exit(main())
