"""The way from the proxy to a target: names resolved and checked here, then connected to the very address that was
checked, directly or through the proxy that the device is set up to use.

A name is resolved once for each connection and never by the sandbox. All its addresses are checked before any is used:
a name that stands for a public address and for a private one is refused as a whole (DNS rebinding). Through another
proxy names are that one's to resolve, since behind such proxies the device often can resolve none.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from common.errors import MixosError, UnreachableError
from daemon.linux.sandbox.proxy_rules import Address, DeniedError, Rules, Target, parse_address
from daemon.parts.sandbox.proxy_http import END, MAX_HEAD
from daemon.parts.sandbox.proxy_link import Link

Lookup = Callable[[str], Awaitable[Sequence[Address]]]
Upstream = Callable[[str], Awaitable[Mapping[str, str]]]  # what the part `proxy` offers as proxies-for

MAX_ANSWERS = 8
ATTEMPT = 5.0  # seconds for one address of several
_THREADS = 4


async def direct(_: str) -> Mapping[str, str]:
    """An `Upstream` for a device that needs no proxy."""
    return {}


class Resolver:
    """The C library's resolver in threads of its own: a sandbox that asks for slow names delays nobody else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "sandbox-names")

    async def __call__(self, host: str) -> list[Address]:
        """All addresses of a name, as the system prefers them. Raises OSError."""
        loop = asyncio.get_running_loop()
        ask = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(self._threads, ask)
        plain = (parse_address(str(address[0]).partition("%")[0]) for *_, address in found)
        return list(dict.fromkeys(address for address in plain if address is not None))

    def close(self) -> None:
        """Threads that still wait for an answer end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Way(NamedTuple):
    """An open connection. proxy: the target is behind a proxy that wants plain requests as they are sent to proxies,
    with this `Proxy-Authorization` ("" for none); None: at the other end is the target."""

    link: Link
    proxy: str | None = None


class Reach:
    """Opens ways for one sandbox."""

    def __init__(self, rules: Rules, lookup: Lookup, upstream: Upstream, seconds: float) -> None:
        self._rules = rules
        self._lookup = lookup
        self._upstream = upstream
        self._seconds = seconds

    async def open(self, to: Target, kind: Literal["http", "tunnel"]) -> Way:
        """A way to a target that is allowed. Raises DeniedError (`answer-denied`, or what `Rules.check` says) and
        UnreachableError `unresolved`, `unreachable`, `upstream`."""
        self._rules.check(to)
        scheme = "http" if kind == "http" else "https"
        try:
            async with asyncio.timeout(self._seconds):
                proxy = (await self._upstream(f"{scheme}://{to}")).get(scheme)
                if proxy is not None:
                    return await _through(urlsplit(proxy), to, kind, self._lookup)
                return Way(await _connect(await self._addresses(to), to.port, to))
        except TimeoutError as error:
            raise UnreachableError(f"{to} did not answer in time", reason="unreachable") from error
        except (ValueError, MixosError) as error:
            if isinstance(error, DeniedError | UnreachableError):
                raise
            raise UnreachableError("the device's proxy setting is broken", reason="upstream") from error

    async def _addresses(self, to: Target) -> Sequence[Address]:
        if to.address is not None:
            return (to.address,)
        found = await _look_up(self._lookup, to.host)
        for address in found:
            self._rules.check_answer(to, address)
        return found[:MAX_ANSWERS]


async def _look_up(lookup: Lookup, host: str) -> Sequence[Address]:
    try:
        found = await lookup(host)
    except (OSError, UnicodeError) as error:
        raise UnreachableError(f"{host} cannot be resolved", reason="unresolved") from error
    if not found:
        raise UnreachableError(f"{host} has no address", reason="unresolved")
    return found


async def _connect(addresses: Sequence[Address], port: int, to: object) -> Link:
    """The first that answers. The addresses are numbers: nothing is resolved again."""
    loop = asyncio.get_running_loop()
    for address in addresses:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        # OSError: TimeoutError, too, or a machine without IPv6
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            link = stack.enter_context(Link(socket.socket(family, socket.SOCK_STREAM)))
            async with asyncio.timeout(ATTEMPT):
                await loop.sock_connect(link.socket, (str(address), port))
            stack.pop_all()
            return link
    raise UnreachableError(f"{to} cannot be reached", reason="unreachable")


# -- through the device's own proxy ------------------------------------------------------------------------------------


async def _through(proxy: SplitResult, to: Target, kind: str, lookup: Lookup) -> Way:
    """Where it is, the setting says, not the sandbox: so it may be anywhere."""
    host, default = proxy.hostname or "", {"http": 80, "socks5": 1080, "socks5h": 1080}.get(proxy.scheme)
    if default is None:
        raise UnreachableError(f"sandboxes cannot use a proxy of kind {proxy.scheme}", reason="upstream")
    address = parse_address(host)
    addresses = (address,) if address is not None else await _look_up(lookup, host)
    link = await _connect(addresses, proxy.port or default, "the device's proxy")
    with contextlib.ExitStack() as stack:
        stack.enter_context(link)
        try:
            if proxy.scheme != "http":
                await _socks(link, proxy, to)
            elif kind == "tunnel":
                await _tunnel(link, proxy, to)
        except EOFError as error:
            raise UnreachableError("the device's proxy hung up", reason="upstream") from error
        stack.pop_all()
    return Way(link, _authorization(proxy) if proxy.scheme == "http" and kind == "http" else None)


def _authorization(proxy: SplitResult) -> str:
    """RFC 7617."""
    if proxy.username is None:
        return ""
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


async def _tunnel(link: Link, proxy: SplitResult, to: Target) -> None:
    """CONNECT (RFC 9110, 9.3.6)."""
    word = _authorization(proxy)
    more = f"Proxy-Authorization: {word}\r\n" if word else ""
    await link.send(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{more}\r\n".encode())
    head = await link.until(END, MAX_HEAD)
    if not head.endswith(END) or not re.match(rb"HTTP/1\.[0-9] 2[0-9]{2}[ \r]", head):
        raise UnreachableError(f"the device's proxy does not connect to {to}", reason="upstream")


async def _socks(link: Link, proxy: SplitResult, to: Target) -> None:
    """RFC 1928, with user and password by RFC 1929."""
    user, password = (unquote(word or "").encode() for word in (proxy.username, proxy.password))
    method = b"\x02" if proxy.username is not None else b"\x00"
    await link.send(b"\x05\x01" + method)
    if await link.take(2) != b"\x05" + method:
        raise UnreachableError("the device's proxy wants another way to log in", reason="upstream")
    if proxy.username is not None:
        await link.send(b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password)
        if (await link.take(2))[1] != 0:
            raise UnreachableError("the device's proxy does not accept user and password", reason="upstream")
    await link.send(b"\x05\x01\x00" + _socks_address(to) + to.port.to_bytes(2, "big"))
    answer = await link.take(4)
    if answer[:2] != b"\x05\x00":
        raise UnreachableError(f"the device's proxy does not connect to {to}", reason="upstream")
    size = {1: 4, 4: 16}.get(answer[3])
    await link.take((size if size is not None else (await link.take(1))[0]) + 2)


def _socks_address(to: Target) -> bytes:
    if to.address is None:
        return bytes((3, len(to.host))) + to.host.encode()
    return bytes((1 if to.address.version == 4 else 4,)) + to.address.packed
