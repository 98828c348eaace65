"""Real clients in a real sandbox: through the launcher's bridge and the filtering proxy to a real TLS server, or not.

Needs root (the launcher's use on the device), gcc, curl, openssl and python3.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from buildsys.run import run
from daemon.core.events import Bus
from daemon.linux.sandbox.compile import compile_policy
from daemon.linux.sandbox.policy import Policy
from daemon.linux.sandbox.proxy_rules import Address, Rules, parse_address
from daemon.parts.sandbox.proxy import Proxy, serving
from tests.native import native
from tests.waiting import PATIENCE

pytestmark = pytest.mark.integration
ACCOUNT = 64002
SYSTEM = ("/usr", "?/bin", "?/sbin", "?/lib", "?/lib64", "?/etc/ssl", "?/etc/nsswitch.conf")
BODY = b"0123456789abcdef" * 200_000
NAMES = {"ok.test": "127.0.0.1", "evil.test": "127.0.0.1", "away.test": "127.0.0.2"}


class Recorder(Bus):
    """Keeps what was denied."""

    def __init__(self) -> None:
        super().__init__()
        self.denied: list[tuple[str, str]] = []

    def publish(self, topic: str, subject: str, **data: Any) -> None:
        self.denied.append((str(data["host"]), str(data["reason"])))


@dataclass
class Device:
    """A proxy, two servers behind it, and a launcher."""

    folder: Path
    socket: Path
    proxy: Proxy
    events: Recorder
    ports: dict[str, int]
    heads: list[bytes] = field(default_factory=list)

    async def inside(self, *argv: str, sockets: Sequence[str] = ("inet", "inet6")) -> tuple[int, bytes]:
        """Run a command in a sandbox with the proxy; PLAIN and TLS in its words are the servers' ports."""
        keys = {"read-only": SYSTEM, "scratch": {"/tmp": "4M"}, "user": ACCOUNT, "group": ACCOUNT, "sockets": sockets}
        one = Policy.model_validate({**keys, "network": "proxy", "proxy-socket": str(self.socket)})
        path = self.folder / "policy"
        path.write_bytes(compile_policy(one, uid_locks=self.folder / "uids"))
        path.chmod(0o644)
        words = [self._filled(word) for word in argv]
        child = await asyncio.create_subprocess_exec(
            native("sandbox"), path, "--", *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(PATIENCE):
            out, _ = await child.communicate()
        assert child.returncode is not None
        return child.returncode, out

    def _filled(self, word: str) -> str:
        for name, port in self.ports.items():
            word = word.replace(name, str(port))
        return word

    async def curl(self, *words: str) -> tuple[int, bytes]:
        return await self.inside("curl", "-sk", "--max-time", "20", *words)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the sandbox's account can reach, with a certificate for nobody in particular."""
    made = Path(tempfile.mkdtemp(prefix="proxy-", dir="/var/tmp"))
    made.chmod(0o755)
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    run([*argv, "-subj", "/CN=test", "-keyout", made / "key", "-out", made / "certificate"], timeout=60)
    yield made
    shutil.rmtree(made)


async def lookup(host: str) -> list[Address]:
    if host not in NAMES:
        raise OSError("no such name")
    found = parse_address(NAMES[host])
    assert found is not None
    return [found]


@contextlib.asynccontextmanager
async def device(folder: Path) -> AsyncIterator[Device]:
    """Allowed: ok.test on the servers' ports, and away.test, which leads elsewhere."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            length = next(
                (int(line[15:]) for line in heads[-1].lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            body = hashlib.sha256(await reader.readexactly(length)).hexdigest().encode() if length else BODY
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    plain = await asyncio.start_server(serve, "127.0.0.1", 0)
    secure = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    ports = {"PLAIN": plain.sockets[0].getsockname()[1], "TLS": secure.sockets[0].getsockname()[1]}
    listed = ",".join(map(str, ports.values()))
    events = Recorder()
    proxy = Proxy(
        "box", Rules([f"ok.test:{listed}", f"away.test:{listed}", f"127.0.0.1:{listed}"]), events, lookup=lookup
    )
    async with plain, secure, serving(folder / "proxy", proxy) as path:
        yield Device(folder, path, proxy, events, ports, heads)


def play(folder: Path, act: Callable[[Device], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60), device(folder) as on:
            await act(on)

    asyncio.run(bounded())


@pytest.mark.parametrize("url", ["https://ok.test:TLS/", "http://ok.test:PLAIN/"])
@pytest.mark.parametrize("way", [(), ("--proxy", "socks5h://127.0.0.1:3128")])
def test_a_real_client_gets_every_byte(folder: Path, url: str, way: tuple[str, ...]) -> None:
    """The variables in the sandbox's environment are enough."""

    async def act(on: Device) -> None:
        assert await on.curl(*way, url) == (0, BODY)
        assert on.events.denied == []
        assert on.proxy.granted == 1

    play(folder, act)


def test_python_and_uploads(folder: Path) -> None:
    script = (
        "import ssl, urllib.request as r; c = ssl._create_unverified_context();"
        "print(r.urlopen('https://ok.test:TLS/', data=bytes(2000000), context=c).read().decode(), end='')"
    )

    async def act(on: Device) -> None:
        assert await on.inside("python3", "-c", script) == (0, hashlib.sha256(bytes(2_000_000)).hexdigest().encode())

    play(folder, act)


@pytest.mark.parametrize(
    ("words", "denied"),
    [
        (("https://evil.test:TLS/",), ("evil.test", "name-denied")),
        (("http://evil.test:PLAIN/",), ("evil.test", "name-denied")),
        (("https://ok.test:1/",), ("ok.test", "port-denied")),
        (("https://away.test:TLS/",), ("away.test", "answer-denied")),
        (("--proxy", "socks5h://127.0.0.1:3128", "https://away.test:TLS/"), ("away.test", "answer-denied")),
        (("--noproxy", "", "https://127.0.0.2:TLS/"), ("127.0.0.2", "address-denied")),
        # The tunnel is asked for with an allowed name, the handshake with another one.
        (("--connect-to", "::ok.test:TLS", "https://evil.test:TLS/"), ("evil.test", "sni-mismatch")),
        (("-H", "Host: evil.test", "http://ok.test:PLAIN/"), ("evil.test", "host-mismatch")),
    ],
)
def test_what_is_refused(folder: Path, words: tuple[str, ...], denied: tuple[str, str]) -> None:
    async def act(on: Device) -> None:
        code, out = await on.curl("--fail", *words)
        assert code != 0
        assert out == b""
        assert on.events.denied == [denied]
        assert on.heads == []

    play(folder, act)


def test_there_is_no_way_around_it(folder: Path) -> None:
    """No name server, no route, and the socket itself says the same as the bridge."""
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/proxy');"
        "s.send(b'CONNECT evil.test:443 HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n'); print(s.recv(12).decode())"
    )

    async def act(on: Device) -> None:
        assert (await on.curl("--noproxy", "*", "https://127.0.0.1:TLS/"))[0] == 7
        assert (await on.curl("--noproxy", "*", "https://ok.test:TLS/"))[0] == 6
        assert await on.inside("python3", "-c", script, sockets=("unix", "inet")) == (0, b"HTTP/1.1 403\n")
        assert on.heads == []
        assert on.events.denied == [("evil.test", "name-denied")]

    play(folder, act)


def test_many_at_once_and_one_after_the_other(folder: Path) -> None:
    script = (
        "for i in $(seq 20); do curl -sk https://ok.test:TLS/ | wc -c & done; wait;"
        "curl -sk http://ok.test:PLAIN/ http://ok.test:PLAIN/ | wc -c"
    )

    async def act(on: Device) -> None:
        code, out = await on.inside("sh", "-c", script)
        assert code == 0
        assert out.split() == [str(len(BODY)).encode()] * 20 + [str(2 * len(BODY)).encode()]
        assert on.proxy.granted == 22

    play(folder, act)


def test_without_its_proxy_a_sandbox_is_alone(folder: Path) -> None:
    """The socket that it was given is gone: nothing else is tried."""

    async def act(on: Device) -> None:
        on.socket.unlink()
        Path(on.socket).touch()
        assert (await on.curl("https://ok.test:TLS/"))[0] != 0
        assert on.heads == []

    play(folder, act)
