"""A bundle, or the files of a channel, from a web server: the part's side of `mixos-fetch` (`daemon.fetch`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

from common.errors import MixosError
from daemon.linux import programs
from daemon.linux.log import log

FETCH = ("/usr/libexec/mixos-fetch",)


@contextlib.asynccontextmanager
async def fetching(
    kind: Literal["ranges", "files"],
    told: Mapping[str, Any],
    failed: Callable[[str, float], None] = lambda message, seconds: None,
    fetch: Sequence[str] = FETCH,
) -> AsyncIterator[int]:
    """A socket at whose other end ranges of a file, or files of a folder, are answered for (`common.bundle.ranges`).

    told: `url`, and perhaps `headers`, `ca`, `proxy`, `rate` (docs/updates.md); failed: told of each failure that
    passes, with the seconds until the next attempt. Raises MixosError `source-order`, and those of `programs.lines`.
    """
    ours, theirs = socket.socketpair()
    with ours:
        async with aclosing(programs.lines([*fetch, kind], json.dumps(told), theirs.fileno())) as lines:
            with theirs:  # not longer: when the program ends, who asks must see it
                await anext(lines)
            listening = asyncio.create_task(_listen(lines, failed))
            try:
                yield ours.fileno()
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)


async def _listen(lines: AsyncIterator[dict[str, Any]], failed: Callable[[str, float], None]) -> None:
    try:
        async for line in lines:
            failed(str(line["failed"]), float(line["again"]))
    except MixosError as error:  # who asks sees that it has ended
        log("err", f"update: mixos-fetch: {error.message}")
