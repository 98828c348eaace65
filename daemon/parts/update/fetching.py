"""A bundle, or the files of a channel, from a web server: the part's side of `mixos-fetch` (`daemon.fetch`)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigError, MixosError
from common.files import read_regular
from daemon.linux import programs
from daemon.linux.log import log

CERTIFICATES = "update.pem"  # below /etc/mixos: who vouches for servers
_MAX_CERTIFICATES = 512 << 10
_MAX_FAILURES = 2000  # that are told; `Limits.total` is half of it
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


def settings(etc: Path) -> dict[str, Any]:
    """What this device says of all fetches; see `fetching`. Raises ConfigError."""
    path = etc / CERTIFICATES
    try:
        text = read_regular(path, _MAX_CERTIFICATES).decode("ascii", "replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", reason="update-certificates") from error
    check_certificates(text, path)
    return {"ca": text}


def check_certificates(text: str, where: Path) -> None:
    """Raises ConfigError `update-certificates` when there is none, or something that looks like one and is not."""
    found = _PEM.findall(text)
    try:
        whole = bool(found) and all(base64.b64decode(one)[:1] == b"0" for one in found)
    except binascii.Error:
        whole = False
    if not whole or text.count("-----BEGIN ") != len(found):
        hint = "each begins with -----BEGIN CERTIFICATE-----"
        raise ConfigError(f"{where}: only certificates in PEM are expected", reason="update-certificates", hint=hint)


@contextlib.asynccontextmanager
async def fetching(
    kind: Literal["ranges", "files"], told: Mapping[str, Any], fetch: Sequence[str] = programs.FETCH
) -> AsyncIterator[int]:
    """A socket at whose other end ranges of a file, or files of a folder, are answered for (`common.bundle.ranges`).

    told: `url`, and perhaps `headers`, `ca`, `proxy`, `rate` (docs/updates.md). Failures that pass are in the log.
    Raises MixosError `source-order`, and those of `programs.lines`.
    """
    ours, theirs = socket.socketpair()
    with ours:
        async with aclosing(programs.lines([*fetch, kind], json.dumps(told), theirs.fileno())) as lines:
            with theirs:  # not longer: when the program ends, who asks must see it
                if await anext(lines, None) is None:
                    raise MixosError(f"{fetch[0]} ended before it was ready", reason="program-failed", retryable=True)
            listening = asyncio.create_task(_listen(lines))
            try:
                yield ours.fileno()
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)


async def _listen(lines: AsyncGenerator[dict[str, Any]]) -> None:
    try:
        for _ in range(_MAX_FAILURES):
            line = await anext(lines)
            log("notice", f"update: {line.get('failed')}; again in {line.get('again')} s")
        log("err", "update: mixos-fetch fails without end, and is ended")
        await lines.aclose()
    except StopAsyncIteration:
        return
    except MixosError as error:  # who asks sees that it has ended
        log("err", f"update: mixos-fetch: {error.message}")
