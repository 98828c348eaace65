"""Fetch a URL through the proxy that applies to it, and say how that went.

HTTP proxies by absolute URI or CONNECT (RFC 9110 section 9.3.6, RFC 9112 section 3.2.2), SOCKS5 with name resolution at
the proxy (RFC 1928, RFC 1929). Only the status of the answer is told: this is a test of the way, not a browser.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from common import addresses
from common.errors import MixosError
from daemon.parts.proxy.part import Settings

if TYPE_CHECKING:
    from daemon.parts.proxy.answers import Fetched

SECONDS = 15.0
_LINES = 200  # of a header
_TLS = {"https"}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ProxyError(MixosError):
    """Reasons: `proxy-unreachable`, `proxy-denied` (407 or SOCKS credentials), `proxy-refused`, `proxy-answer`,
    `proxy-tls`, `proxy-timeout`."""

    exit_code = 10


async def fetch(url: str, settings: Settings) -> Fetched:
    """The status of `url` and the way there: {"url", "proxy" (masked, None: direct), "status", "seconds"}."""
    target = urlsplit(url)
    try:
        proxy = settings.for_url(url)
        port = target.port or (443 if target.scheme == "https" else 80)
    except ValueError as error:
        raise ProxyError(f"{url}: {error}", reason="proxy-answer") from error
    start = time.monotonic()
    try:
        async with asyncio.timeout(SECONDS):
            status = await _status(target, port, urlsplit(proxy) if proxy else None)
    except TimeoutError as error:
        raise ProxyError(f"no answer within {SECONDS:g} s", reason="proxy-timeout", retryable=True) from error
    except ssl.SSLError as error:
        raise ProxyError(f"TLS: {error.reason}", reason="proxy-tls") from error
    except UnicodeError as error:
        raise ProxyError(f"{target.hostname!r} is not a host name", reason="proxy-answer") from error
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ProxyError(f"the connection failed: {type(error).__name__}", reason="proxy-unreachable") from error
    through = _masked(urlsplit(proxy)) if proxy else None
    return {"url": url, "proxy": through, "status": status, "seconds": round(time.monotonic() - start, 3)}


async def _status(target: SplitResult, port: int, proxy: SplitResult | None) -> int:
    host = target.hostname or ""
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    if proxy is None:
        streams = await _connect(host, port)
    else:
        streams = await _connect(proxy.hostname or "", proxy.port or _default_port(proxy.scheme))
    try:
        header = ""
        if proxy and proxy.scheme == "https":
            await streams[1].start_tls(ssl.create_default_context(), server_hostname=proxy.hostname)
        if proxy and proxy.scheme.startswith("socks"):
            await _socks(streams, host, port, proxy)
        elif proxy and target.scheme == "http":
            path, header = target._replace(fragment="").geturl(), _authorization(proxy)
        elif proxy:
            await _tunnel(streams, host, port, proxy)
        if target.scheme in _TLS:
            await streams[1].start_tls(ssl.create_default_context(), server_hostname=host)
        return await _request(streams, f"GET {path}", target.netloc.rpartition("@")[2], header)
    finally:
        streams[1].close()


async def _connect(host: str, port: int) -> Streams:
    try:
        return await asyncio.open_connection(host, port, limit=16 << 10)
    except OSError as error:
        raise ProxyError(f"{host}:{port} cannot be reached", reason="proxy-unreachable", retryable=True) from error


async def _tunnel(streams: Streams, host: str, port: int, proxy: SplitResult) -> None:
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    status = await _request(streams, f"CONNECT {name}", name, _authorization(proxy))
    if not 200 <= status < 300:
        raise ProxyError(f"the proxy answers {status}", reason="proxy-refused")


async def _request(streams: Streams, line: str, host: str, header: str) -> int:
    reader, writer = streams
    close = "" if line.startswith("CONNECT") else "Connection: close\r\n"
    writer.write(f"{line} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mixos\r\n{close}{header}\r\n".encode("latin-1"))
    await writer.drain()
    words = (await reader.readuntil(b"\n")).split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit() or len(words[1]) != 3:
        raise ProxyError("the answer is not HTTP", reason="proxy-answer")
    for _ in range(_LINES):
        if not (await reader.readuntil(b"\n")).strip():
            break
    else:
        raise ProxyError("the answer's header does not end", reason="proxy-answer")
    if words[1] == b"407":
        raise ProxyError("the proxy does not accept user and password", reason="proxy-denied")
    return int(words[1])


async def _socks(streams: Streams, host: str, port: int, proxy: SplitResult) -> None:
    reader, writer = streams
    method = 2 if proxy.username is not None else 0
    writer.write(bytes([5, 1, method]))
    if (await reader.readexactly(2)) != bytes([5, method]):
        raise ProxyError("the proxy wants another way to log in", reason="proxy-denied")
    if method:
        user, password = (unquote(word or "").encode() for word in (proxy.username, proxy.password))
        writer.write(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
        if (await reader.readexactly(2))[1] != 0:
            raise ProxyError("the proxy does not accept user and password", reason="proxy-denied")
    writer.write(b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big"))
    answer = await reader.readexactly(4)
    if answer[0] != 5 or answer[1] != 0:
        raise ProxyError(f"the proxy refuses (SOCKS {answer[1]})", reason="proxy-refused")
    size = {1: 4, 4: 16}.get(answer[3])
    await reader.readexactly((size if size else (await reader.readexactly(1))[0]) + 2)


def _socks_address(host: str) -> bytes:
    try:
        address = addresses.address(host)
    except ValueError:
        name = host.encode("idna")
        return bytes([3, len(name)]) + name
    return bytes([1 if address.version == 4 else 4]) + address.packed


def _authorization(proxy: SplitResult) -> str:
    """RFC 7617; empty without credentials."""
    if proxy.username is None:
        return ""
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"


def _default_port(scheme: str) -> int:
    return {"http": 80, "https": 443}.get(scheme, 1080)


def _masked(proxy: SplitResult) -> str:
    host = proxy.netloc.rpartition("@")[2]
    return f"{proxy.scheme}://" + ("***@" if "@" in proxy.netloc else "") + host
