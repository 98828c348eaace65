"""Asking a running service whether it is well.

One question every so often; only a number of bad answers in a row (the threshold) counts, and one good one clears it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

from daemon.parts.service.ready import Asker, accepts, succeeds
from daemon.parts.service.unit import Health

_LINE = 4096  # bytes of the status line (RFC 9112, 4)


async def probe(health: Health, who: Callable[[], Asker]) -> str | None:
    """Ask once; None when the service is well, else what is wrong."""
    if health.tcp is not None:
        return await accepts(health.tcp, health.timeout)
    if health.exec is not None:
        return await succeeds(health.exec, health.timeout, who)
    assert health.http is not None
    try:
        async with asyncio.timeout(health.timeout):
            status = await _get(health.http)
    except TimeoutError:
        return f"{health.http}: no answer within {health.timeout:g} s"
    except (OSError, ValueError, EOFError) as error:
        return f"{health.http}: {getattr(error, 'strerror', None) or 'no HTTP answer'}"
    return None if 200 <= status < 400 else f"{health.http}: status {status}"


async def _get(address: str) -> int:
    """The status of a GET (RFC 9110). Raises OSError, EOFError or ValueError."""
    url = urlsplit(address)
    assert url.hostname is not None
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 80, limit=_LINE)
    try:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        words = (await reader.readuntil(b"\r\n")).split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
            raise ValueError("not HTTP")
        return int(words[1])
    except asyncio.LimitOverrunError as error:
        raise ValueError("not HTTP") from error
    finally:
        writer.close()


async def watch(health: Health, who: Callable[[], Asker], *, sick: bool) -> AsyncIterator[str | None]:
    """Each change of the verdict: the problem when the threshold is reached, None when the service is well again.

    sick: the verdict so far.
    """
    bad = 0
    while True:
        await asyncio.sleep(health.every)
        problem = await probe(health, who)
        bad = 0 if problem is None else bad + 1
        if sick and problem is None:
            sick = False
            yield None
        elif not sick and bad >= health.threshold:
            sick = True
            yield problem
