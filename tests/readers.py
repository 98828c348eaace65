"""The readers of outside bytes, with what is valid for each and the errors that it documents: for `tests.fuzzing`."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import lzma
import os
import re
import socket
import struct
import sys
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from zeroconf import DNSOutgoing, DNSQuestion, ServiceInfo
from zeroconf.asyncio import AsyncServiceInfo

from buildsys import apt
from buildsys.config.model import MixosToml
from buildsys.config.recipe import Recipe
from buildsys.lock import load_lock
from buildsys.run import run, spawn
from common import tomledit
from common.errors import ArtifactError, ConfigError, FetchError, FormatError, ImageError, MixosError, RefusedError
from common.settings import model as settings
from common.settings import sshkey
from common.text import decoded
from common.tomlfile import Strict, decode, parse
from common.trust.channel import Device, candidates
from common.trust.release import Running
from daemon.core import audit, keys, peer, rpc
from daemon.core.change import connection, record
from daemon.core.profiles import ProfileFile
from daemon.core.release import ledger
from daemon.core.worker import channel
from daemon.doors import values
from daemon.linux import facts, mounts, netlink, rtnl, wireguard
from daemon.linux.nameservers import Names
from daemon.linux.sandbox.compile import compile_policy
from daemon.linux.sandbox.policy import Policy as SandboxPolicy
from daemon.linux.sandbox.proxy_rules import DeniedError, Target
from daemon.parts.backup import archive, contents, sealed
from daemon.parts.config import history
from daemon.parts.firewall import lists
from daemon.parts.firewall.model import Config as FirewallConfig
from daemon.parts.mdns.part import MdnsFile
from daemon.parts.mdns.responder import Network, Responder, _row
from daemon.parts.metrics import http
from daemon.parts.net import timesync
from daemon.parts.net.netfile import NetworkFile
from daemon.parts.proxy import trial
from daemon.parts.proxy.part import ProxyFile
from daemon.parts.sandbox import proxy_http, proxy_reach, proxy_tls
from daemon.parts.sandbox.proxy_link import Link
from daemon.parts.service import logs, prepare, shimstate, spec
from daemon.parts.service.load import parse_unit
from daemon.parts.service.memory import History, Memory
from daemon.parts.storage import ata, nvme
from daemon.parts.storage.verdict import HealthError
from daemon.parts.update import fetching, link, remote
from daemon.parts.update import http as web
from daemon.parts.vpn import wgquick
from daemon.parts.vpn.model import VpnFile
from image import deb, source
from kernel import cmdline, kconfig
from kernel.source import parse_makefile
from packages.mix import manifest
from tests import updatereaders
from tests.clienthello import extended, hello, named, records
from tests.fuzzing import Reader
from tests.hostpackages import ROOT
from tests.native import harness

SLOW = 10
WHERE = Path("fuzz.toml")
_ENTRY = struct.Struct("=I")


_SHARED = tempfile.TemporaryDirectory(prefix="mixos-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


@cache
def _own(process: int) -> Path:
    folder = Path(_SHARED.name, str(process))
    folder.mkdir()
    return folder


def _folder(name: str = "") -> Path:
    """Of this process, in memory; one below it."""
    folder = _own(os.getpid()) / name
    folder.mkdir(exist_ok=True)
    return folder


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _in_file(read: Callable[[Path], object], name: str = "file") -> Callable[[bytes], object]:
    """For readers of files."""

    def given(data: bytes) -> object:
        path = _folder() / name
        path.write_bytes(data)
        return read(path)

    return given


def _as_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


# -- configuration -----------------------------------------------------------------------------------------------------


def _blob(*fields: bytes) -> str:
    import base64

    return base64.b64encode(b"".join(len(field).to_bytes(4) + field for field in fields)).decode()


ED25519 = f"ssh-ed25519 {_blob(b'ssh-ed25519', bytes(32))} you@laptop"
RSA = f"ssh-rsa {_blob(b'ssh-rsa', bytes((1, 0, 1)), bytes(1) + bytes((255,)) * 256)}"
PRESEED = f"""\
hostname = "kitchen"
timezone = "Europe/Berlin"
[network]
mode = "static"
interface = "eth0"
address = "192.0.2.10/24"
gateway = "192.0.2.1"
dns = ["192.0.2.53", "2001:db8::53"]
[ssh]
root-login = false
[[ssh.keys]]
account = "admin"
key = "{ED25519}"
from = ["192.0.2.0/24", "!192.0.2.1"]
expires = 2027-01-01
options = ["no-pty"]
[time]
servers = ["192.0.2.123"]
[update]
channel = "https://updates.example/mixos"
fetch = "window"
when = ["sat,sun 02:00-05:00", "mon-fri 23:30-04:00"]
metered = ["wwan0"]
max-bytes = "20M"
""".encode()
UNIT = b"""\
[unit]
description = "says hello"
after = ["network"]
on-failure = ["mail"]
[service]
command = ["/usr/bin/hello", "--forever"]
type = "notify"
pre-start = [["/bin/mkdir", "-p", "/run/x"]]
restart = "always"
restart-delay = "250ms"
start-limit = { burst = 3, interval = "1m30s" }
stop-signal = "INT"
umask = "0077"
rlimits = { nofile = "1024:4096", core = 0, as = "1G" }
environment = { LANG = "C" }
environment-file = "/etc/hello"
[health]
http = "http://[::1]:8080/health?x=1"
every = "1m"
[limits]
memory = "64M"
cpu = 150
io-max = [{ device = "/dev/vda", read = "1M" }]
[[socket]]
name = "web"
tcp = "[::]:80"
[logs]
rate = 100
"""
NETWORK = b"""\
dns = ["192.0.2.53"]
search = ["example.org"]
[interface.lan]
mode = "static"
addresses = ["192.0.2.10/24", "2001:db8::10/64"]
gateways = ["192.0.2.1"]
bridge = { ports = ["eth1", "eth2"] }
mtu = 1400
[interface.office]
mode = "dhcp"
vlan = { parent = "lan", id = 20 }
[[interface.lan.routes]]
to = "198.51.100.0/24"
via = "192.0.2.254"
"""
KEY, OTHER = "A" * 42 + "E=", "B" * 42 + "E="
VPN = f"""\
[interface.wg0]
addresses = ["10.90.0.1/24", "fd00::1/64"]
port = 51820
[interface.wg0.peer.phone]
public-key = "{KEY}"
allowed-ips = ["10.90.0.2/32"]
endpoint = "vpn.example.org:51820"
keepalive = 25
""".encode()
WG = f"""\
[Interface]
# home
PrivateKey = {KEY}
Address = 10.90.0.1/24, fd00::1/64
DNS = 10.90.0.53 example.org
MTU = 1420
ListenPort = 51820
FwMark = 0xca6c
Table = off
[Peer]
# phone
PublicKey = {OTHER}
PresharedKey = {KEY}
AllowedIPs = 10.90.0.2/32, fd00::2/128
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25
""".encode()
MDNS = (
    b'hostname = "kitchen"\n[services.web]\ntype = "_http._tcp"\nport = 8080\nname = "My web"\ntxt = { path = "/x" }\n'
)
PROXY = b"""\
http = "http://proxy.example.org:3128"
socks = "socks5://[2001:db8::1]:1080"
no-proxy = ["10.0.0.0/8", ".lan", "[::1]:80"]
"""
PROFILE = b"""\
description = "for builds"
extends = "minimal"
network = "proxy"
read-only = ["/usr", "?/opt"]
read-write = ["/srv/x"]
hide = ["/etc/shadow"]
environment = { A = "b" }
allow = ["example.org:443", "*.example.com"]
[limits]
memory = "1G"
wall = "1h"
"""
LIST = b"# bad\n192.0.2.1\n198.51.100.0/24 ; worse\n2001:db8::/32\n203.0.113.1-203.0.113.9\n::ffff:203.0.113.77\n"


def _file(model: type[Strict]) -> Callable[[bytes], object]:
    return lambda data: parse(decoded(data, WHERE), WHERE, model)


def _edit(data: bytes) -> object:
    text = decoded(data, WHERE)
    decode(text, WHERE)
    with contextlib.suppress(RefusedError):
        tomledit.set_keys(text, ("interface", "lan"), {"mtu": 1500, "mode": None})
    return tomledit.remove_table(text, ("interface", "lan"))


def _lock_seed() -> bytes:
    return (ROOT / "sources.lock").read_bytes()[:2000].rpartition(b"\n\n")[0] + b"\n"


# -- disks and images --------------------------------------------------------------------------------------------------


def _image(path: Path) -> object:
    with source.open_image(path, lambda *_: None) as descriptor:
        return os.fstat(descriptor).st_size


PLAIN = bytes(100_000) + bytes(range(256)) * 20


def _zstd() -> bytes:
    path = _folder() / "plain"
    path.write_bytes(PLAIN)
    run(["zstd", "-q", "-f", "--rm", path])
    return path.with_name("plain.zst").read_bytes()


def _tar(mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:  # type: ignore[call-overload]
        info = tarfile.TarInfo("./usr/lib/stub.efi")
        info.size = 600
        file.addfile(info, io.BytesIO(b"s" * 600))
    return out.getvalue()


def _deb(name: bytes, data: bytes) -> bytes:
    def member(name: bytes, data: bytes) -> bytes:
        head = name.ljust(16) + b"0           0     0     100644  " + str(len(data)).encode().ljust(10) + b"`\n"
        return head + data + b"\n" * (len(data) % 2)

    return b"!<arch>\n" + member(b"debian-binary", b"2.0\n") + member(name, data)


OFFER = b"""\
Package: linux-source-6.12
Version: 6.12.117-1
Filename: pool/main/l/linux/linux-source-6.12_6.12.117-1_all.deb
Size: 150000000
SHA256: 0000000000000000000000000000000000000000000000000000000000000000
Description: sources
 more of it: here
"""
MIX = manifest.Manifest(
    *("zlib", "1.3.1", "s", "Zlib", "", ("musl",)),
    (
        manifest.Entry("usr", "dir", 0o755),
        manifest.Entry("usr/a", "symlink", 0o777, target="../x"),
        manifest.Entry("usr/b", "file", 0o755, 0, 4, 12, "a" * 64, xattrs={"security.capability": b"\0\xff"}),
    ),
).encode()

# -- what comes in over sockets ----------------------------------------------------------------------------------------

CALL = b'{"jsonrpc":"2.0","id":1,"method":"service.list","params":{"a":[1,2.5,null,true,"\\u00e9"]}}\n'
ANSWER = b'{"jsonrpc":"2.0","id":7,"result":{"a":[1,2.5,null]}}\n'
FAILURE = (
    b'{"jsonrpc":"2.0","id":7,"error":{"code":-32007,"message":"no","data":{"reason":"denied","hint":null,'
    b'"retryable":false,"exit_code":7}}}\n'
)
ITEM = b'{"jsonrpc":"2.0","method":"stream.item","params":{"stream":3,"item":{"a":1}}}\n'
END = b'{"jsonrpc":"2.0","method":"stream.end","params":{"stream":3,"error":null}}\n'
PROGRESS = b'{"jsonrpc":"2.0","method":"transfer.progress","params":{"call":7,"bytes":4096,"size":null}}\n'


def _answers(data: bytes) -> None:
    for read in (rpc.decode_progress, partial(rpc.decode_answer, ident=7), partial(rpc.decode_stream, stream=3)):
        with contextlib.suppress(rpc.RpcError):
            read(data)


def _frames(data: bytes) -> None:
    """All of a conversation, then the end."""

    async def talk() -> None:
        ours, theirs = socket.socketpair()

        async def echo(params: Any) -> object:
            return params

        async def count(params: Any) -> Any:
            yield 1
            yield params

        one = channel.Channel("fuzz", ours, {"echo": echo, "count": count}, lambda name, params: None, rate=1e9)
        with theirs:
            await one.open()
            theirs.setblocking(False)
            theirs.send(data)
            theirs.shutdown(socket.SHUT_WR)
            await one.run()

    _loop().run_until_complete(talk())


def _frame(*frames: Mapping[str, object]) -> bytes:
    return b"".join(map(channel.encode, frames))


def _from_peer(ask: Callable[[Link], Awaitable[object]]) -> Callable[[bytes], object]:
    """For what reads a connection: all that comes, then the end."""

    async def talk(data: bytes) -> object:
        ours, theirs = socket.socketpair()
        with theirs, Link(ours) as link:
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                theirs.send(data)
            theirs.shutdown(socket.SHUT_WR)
            return await ask(link)

    return lambda data: _loop().run_until_complete(talk(data))


class _Nobody:
    """In place of a writer."""

    def write(self, data: bytes) -> None:
        pass

    async def drain(self) -> None:
        pass


def _tried(data: bytes) -> None:
    """What a server, or a proxy, answers to `mixctl proxy test`."""

    async def talk(ask: Callable[[trial.Streams], Awaitable[object]]) -> None:
        reader = asyncio.StreamReader(limit=16 << 10)
        reader.feed_data(data)
        reader.feed_eof()
        with contextlib.suppress(trial.ProxyError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await ask((reader, cast(asyncio.StreamWriter, _Nobody())))

    _loop().run_until_complete(talk(lambda both: trial._request(both, "GET /", "a.test", "")))
    _loop().run_until_complete(talk(lambda both: trial._socks(both, "a.test", 443, urlsplit("socks5://u:p@h:1"))))


def _json(data: bytes) -> None:
    """What a program may have written into its log, on its way to D-Bus."""
    found = logs.Record("u", 1, 1, "0" * 8, "stdout", data.decode("utf-8", "backslashreplace")).as_json()
    values.pack(lambda code, value: (code, value), {}, found)


class _Server:
    """A connection on which just this comes, and then its end."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def send(self, data: bytes, until: float) -> None:
        pass

    def receive(self, most: int, until: float) -> bytes:
        data, self.left = self.left[:most], self.left[most:]
        return data

    def idle(self) -> bool:
        return True

    def close(self) -> None:
        self.left = b""


class _Fetching(web.Client):
    """Whose connections are to such a server."""

    def __init__(self, data: bytes) -> None:
        super().__init__(web.Remote(web.check_url("http://a.test/x")), link.Limits(attempts=2), _STILL)
        self.keep(link.Connection(_Server(data)))

    def _exchange(self, url: SplitResult, fields: Mapping[str, str]) -> tuple[web.Head, web.Body]:
        if self._link is None:
            raise link.SourceError("it has ended", "source-unreachable")
        kept, self._link = self._link, None
        return self._ask(kept, self._request(url, fields))


_STILL = web.Clock(lambda: 0.0, lambda seconds: None, lambda: 0.5)
FETCHED = (
    b'HTTP/1.1 206 x\r\nETag: "a"\r\nContent-Range: bytes 0-299/300\r\nContent-Length: 300\r\n\r\n%b'
    b"HTTP/1.1 206 x\r\nContent-Range: bytes 8-299/300\r\nTransfer-Encoding: chunked\r\n\r\n124\r\n%b\r\n0\r\n\r\n"
) % (bytes(300), bytes(292))
FETCHED_IN_CHUNKS = (
    b"HTTP/1.1 302 x\r\nLocation: /y\r\nContent-Length: 2\r\n\r\nxyHTTP/1.1 103 x\r\n\r\n"
    b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nabcde\r\n3\r\nfgh\r\n0\r\nX: y\r\n\r\n"
)
FETCHED_LATER = (
    b"HTTP/1.1 503 x\r\nDate: Tue, 14 Nov 2023 22:30:00 GMT\r\nRetry-After: Tue, 14 Nov 2023 22:33:20 GMT\r\n\r\n"
)


def _fetched(data: bytes) -> None:
    """What a web server answers to who fetches a bundle: three questions."""
    client = _Fetching(data)
    source = remote.Source(client, client.remote.url, _STILL, lambda: None, lambda words, seconds: None)
    for offset, length in ((0, 100), (200, 1000), (8, 1 << 20)):
        with contextlib.suppress(link.SourceError):
            if len(source.read(offset, length)) > length:
                raise RuntimeError("more than was asked for")


CERTIFICATES = b"-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUYzAA\n-----END CERTIFICATE-----\n" * 2


def _certificates(data: bytes) -> None:
    fetching.check_certificates(data.decode("ascii", "replace"), WHERE)


def _proxied(data: bytes) -> None:
    """What a proxy says before that."""
    for agree, proxy in ((link._socks, "socks5://u:p@h:1"), (link._tunnel, "http://u:p@h:1")):
        with contextlib.suppress(link.SourceError, ConnectionError):
            agree(link.Connection(_Server(data)), "a.test", 443, urlsplit(proxy), 0.0)


TO_FETCH = json.dumps(
    {
        "url": "https://u:p@Example.org:8443/a/b.mixb?c=d",
        "headers": {"Authorization": "Bearer x"},
        "ca": "-----BEGIN CERTIFICATE-----",
        "proxy": "socks5h://u:p@[2001:db8::1]:1080",
        "rate": 100_000,
    }
).encode()


REQUEST = (
    b"POST http://Example.org:8080/a?b HTTP/1.1\r\nHost: example.org:8080\r\nContent-Length: 12\r\nX: y, z\r\n\r\n"
)
CONNECT = b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n"
CHUNKED = b"GET http://a.test HTTP/1.1\r\nhost:a.test\r\nTransfer-Encoding: chunked\r\nConnection: close, x\r\n\r\n"
SOCKS = b"\x05\x01\x00\x03\x09a.example\x01\xbb"
_SOCKS_ANSWERS = (
    b"\x05\x02\x01\x00\x05\x00\x00\x01\x01\x02\x03\x04\x00\x50",
    b"\x05\x02\x01\x00\x05\x00\x00\x03\x01a\x00\x50",
)
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: 192.0.2.1:9100\r\nAccept: */*\r\n\r\n"


def _requests(data: bytes) -> None:
    with contextlib.suppress(DeniedError):
        found = proxy_http.request(data)
        for to_proxy in (None, "", "Basic eDp5"):
            proxy_http.forward(found, to_proxy=to_proxy)
    with contextlib.suppress(DeniedError):
        proxy_http.chunk_size(data)
    with contextlib.suppress(DeniedError):
        proxy_http.socks_target(data)


_DECODERS: Sequence[Callable[[bytes], object]] = (
    rtnl.decode_link,
    rtnl.decode_address,
    rtnl.decode_rule,
    lambda data: rtnl.decode_route(data, {}),
    lambda data: list(netlink.messages(data)),
    lambda data: netlink.failure(netlink.Message(2, 0x200, 1, data)),
    lambda data: wireguard.decode("wg0", [data]),
)


def _netlink(data: bytes) -> None:
    for read in _DECODERS:
        with contextlib.suppress(netlink.NetlinkError):
            read(data)


@cache
def _messages() -> tuple[bytes, ...]:
    tunnel = wireguard.Device(
        *("wg0", bytes(32), bytes(32), 51820, 7),
        peers=(
            wireguard.Peer(
                *(b"k" * 32, frozenset(map(wireguard.addresses.network, ("10.0.0.0/8", "fd00::/64")))),
                *(wireguard.Endpoint("192.0.2.1", 51820), 25, b"p" * 32),
            ),
        ),
    )
    changes = wireguard.difference(tunnel, wireguard.Device("wg0"))
    return (
        rtnl.encode_link("vlan", "office", 7, 20),
        rtnl.encode_address(3, "2001:db8::10/64"),
        rtnl.encode_rule(rtnl.Rule(2, 5, 254, suppress=0)),
        rtnl.encode_route(rtnl.Route("198.51.100.0/24", "192.0.2.1", "eth0", 50), 3),
        netlink.encode(16, 5, 1, rtnl.encode_link("bridge", "lan")),
        *wireguard.encode(tunnel, None, changes),
    )


# -- services ----------------------------------------------------------------------------------------------------------

STATE = (
    b"mixos-state 1\nunit web\nboot 0f\nshim 12 345\nphase running\nmain 13 346\nready 1\nstopped 0\npopulated 1\n"
    b"since 123456789\nuntil 5\nstarts 2\nexit -1 0\noom 0\nfailure - 0\ncgroup /sys/fs/cgroup/x\nkills cgroup\n"
    b"status all%20well\ndropped 0\nlost 0\n"
)
SAID = (
    b"started 12 345",
    b"failed exec 2",
    b"extend 5000000",
    b"watchdog 1",
    b"exited -1 9 1",
    b"stored name",
    b"status",
)


def _shim(data: bytes) -> object:
    """As `Shim._read` takes a message."""
    first, _, state = data.partition(b"\n")
    found = shimstate.parse_state(state)
    kind, *words = first.decode("utf-8", "replace").split(" ")
    return shimstate.EVENTS[kind](words, found) if kind in shimstate.EVENTS else None


SPEC = bytes(
    spec.Spec(
        *("web", ("/usr/bin/web", "--a b"), spec.Logging("/var/log/x")),
        environment={"A": "b=c"},
        groups=(5,),
        limits={"core": spec.Limit(0, 5)},
    )
)
LOG = (
    b'1700000000000000000 12345678 0123abcd o plain\n1700000000000000001 12345679 0123abcd e {"a": [1, NaN, {}]}\n'
    b"1700000000000000002 12345680 0123abcd O long\n1700000000000000003 12345681 0123abcd s exited 1 0\n"
)


def _log(data: bytes) -> None:
    folder = _folder() / "logs"
    (folder / "web").mkdir(parents=True, exist_ok=True)
    (folder / "web/00000001.log").write_bytes(data)
    reader = logs.Reader(folder)
    for query in (logs.Query(), logs.Query(last=2)):
        for one in reader.read(query):
            json.dumps(one.as_json())


class _Running:
    """A program that reads one input after the other and answers each by a byte. Raises RuntimeError with its last
    words when it has ended instead."""

    def __init__(self, folder: Path, *words: str | Path) -> None:
        self._process = spawn([str(word) for word in words], cwd=folder, stdin=b"", split=True)

    def give(self, data: bytes) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(data)
            process.stdin.flush()
        if process.stdout.read(1) != b".":
            raise RuntimeError(process.stderr.read().decode("utf-8", "replace")[:2000])


@cache
def _harness(process: int, name: str, *sources: str) -> _Running:
    return _Running(_folder(name), harness(name, *sources))


def _native(name: str, *sources: str) -> Callable[[bytes], object]:
    return lambda data: _harness(os.getpid(), name, *sources).give(len(data).to_bytes(4, sys.byteorder) + data)


POLICY = SandboxPolicy.model_validate(
    {
        "read-only": ["/usr", "?/opt"],
        "read-write": ["/srv/x"],
        "sockets": ["inet"],
        "protect": ["/x"],
        "environment": {"A": "b"},
    }
)
NOTES = (
    b"READY=1\nSTATUS=all well \xc3\xa9 %\nMAINPID=7\n",
    b"FDSTORE=1\nFDNAME=web\nFDPOLL=0\n",
    b"RELOADING=1\nWATCHDOG=trigger\nEXTEND_TIMEOUT_USEC=5000000\nFDSTOREREMOVE=1\nSTOPPING=1",
)
INIT = ROOT / "rootfs/skeleton/usr/lib/mixos/init"
LEASE = b"\0".join((
    b"search", b"example.org lan", b"domain", b"lan", b"mtu", b"1400", b"lease", b"3600", b"ntpsrv", b"192.0.2.5",
    b"staticroutes", b"10.0.0.0/8 192.0.2.1 0.0.0.0/0 192.0.2.1",
))  # fmt: skip
_TEXTS = (b"search", b"domain", b"mtu", b"lease", b"staticroutes", b"message", b"ntpsrv")
_ADDRESSES = {
    b"interface": b"eth0",
    b"ip": b"192.0.2.10",
    b"mask": b"24",
    b"router": b"192.0.2.1",
    b"dns": b"192.0.2.53 192.0.2.54",
}
_LINE_OF_RESOLV = re.compile(r"search( [A-Za-z0-9._-]+)+|nameserver [0-9.]+")


@cache
def _script(process: int) -> _Running:
    """The script of leases, over and over in one shell, with nothing of this machine in reach."""
    folder = _folder("leases")
    (folder / "sys/eth0").mkdir(parents=True)
    (folder / "run/net").mkdir(parents=True)
    for name, text in {"ifindex": "7", "mtu": "1500", "carrier_up_count": "1"}.items():
        (folder / "sys/eth0" / name).write_text(f"{text}\n")
    text = (INIT / "dhcp").read_text().replace("/run/mixos", f"{folder}/run").replace("/sys/class/net", f"{folder}/sys")
    (folder / "dhcp").write_text(text.replace("/dev/kmsg", "/dev/null"))
    loop = "ip() { :; }; while read -r go; do ( . ./given; set -- $go; . ./dhcp ) >&2; printf .; done"
    return _Running(folder, "/usr/bin/busybox", "sh", "-c", loop)


def _lease(data: bytes) -> None:
    """What udhcpc hands over as text. It makes addresses itself from the bytes of a packet."""
    running, folder = _script(os.getpid()), _folder("leases")
    words = data.split(b"\0")
    texts = {name: value for name, value in zip(words[::2], words[1::2], strict=False) if name in _TEXTS}
    given = {**_ADDRESSES, **texts}
    quoted = (name + b"='" + value.replace(b"'", b"'\\''") + b"'\n" for name, value in given.items())
    (folder / "given").write_bytes(b"".join(quoted))
    running.give(b"bound\n")
    for line in (folder / "run/dns/resolv.conf").read_text("ascii").splitlines():
        if not _LINE_OF_RESOLV.fullmatch(line) or len(line) > 254:
            raise RuntimeError(line)
    if {path.name for path in folder.iterdir()} != {"sys", "run", "dhcp", "given"}:
        raise RuntimeError("files were made")


@cache
def _kernel_settings(process: int) -> _Running:
    folder = _folder("kernel")
    (folder / "proc/kernel").mkdir(parents=True)
    (folder / "proc/kernel/one").touch()
    (folder / "sysctl").write_text((INIT / "sysctl").read_text().replace("/proc/sys", f"{folder}/proc"))
    loop = f"RUN={folder}; say() {{ :; }}; . ./sysctl; while read -r go; do settings ./given; printf .; done"
    return _Running(folder, "/usr/bin/busybox", "sh", "-eu", "-c", loop)


def _sysctl(data: bytes) -> None:
    running, folder = _kernel_settings(os.getpid()), _folder("kernel")
    (folder / "given").write_bytes(data)
    running.give(b"go\n")
    if sum(1 for _ in folder.rglob("*")) != 5:  # proc/kernel/one, sysctl, which is replaced, and given
        raise RuntimeError("files were made")


class _Neighbour:
    """A responder that hears what others say and tells nobody anything."""

    def __init__(self) -> None:
        self.heard = 0

        async def start() -> Responder:
            found = Responder(Network(("127.0.0.1",), (bytes((192, 0, 2, 1)),)), lambda: None)
            found.zeroconf.zeroconf.async_send = lambda *_, **__: None  # type: ignore[method-assign]
            await found.zeroconf.zeroconf.async_wait_for_start()
            found.host = "kitchen"
            found._own()
            found._listen(DNSQuestion("kitchen.local.", 255, 1))
            return found

        self.responder = _loop().run_until_complete(start())

    def hear(self, data: bytes) -> None:
        self.heard += 1
        network = self.responder.zeroconf.zeroconf

        async def listen() -> None:
            network.engine.protocols[0].datagram_received(data, ("192.0.2.7", 5353))
            info = AsyncServiceInfo("_http._tcp.local.", "My web._http._tcp.local.")
            info.load_from_cache(network)
            with contextlib.suppress(ValueError):  # what `Responder._ask` leaves out
                json.dumps(_row(info, "_http._tcp"))

        _loop().run_until_complete(listen())


_NEIGHBOURS: list[_Neighbour] = []


def _packet(data: bytes) -> None:
    if not _NEIGHBOURS or _NEIGHBOURS[0].heard == 5000:  # another cache
        for old in _NEIGHBOURS:
            _loop().run_until_complete(old.responder.zeroconf.async_close())
        _NEIGHBOURS[:] = [_Neighbour()]
    _NEIGHBOURS[0].hear(data)


def _packets() -> tuple[bytes, ...]:
    info = ServiceInfo(
        *("_http._tcp.local.", "My web._http._tcp.local.", 8080),
        properties={"path": "/x"}, server="kitchen.local.", addresses=[bytes((192, 0, 2, 9))],
    )  # fmt: skip
    answer, question = DNSOutgoing(0x8400), DNSOutgoing(0)
    for one in (
        info.dns_pointer(),
        info.dns_service(),
        info.dns_text(),
        *info.dns_addresses(),
        info.dns_address_nsec(),
    ):
        answer.add_answer_at_time(one, 0)
    question.add_question(DNSQuestion("kitchen.local.", 255, 1))
    question.add_question(DNSQuestion("_http._tcp.local.", 12, 1))
    question.add_authorative_answer(info.dns_pointer())
    return (*answer.packets(), *question.packets())


# -- state that was written before -------------------------------------------------------------------------------------

END_OF_RUN = {"id": "1", "at": 1.0, "ran": 2.0, "code": 1, "signal": 0, "oom": False, "reason": "r", "slug": "s"}
CHANGE = {
    "version": record.VERSION, "state": "trial", "who": "root", "origin": "local", "why": "x", "boot": "b",
    "parts": ["net"], "deadline": 5.0, "before": {"net": {"a": 1}}, "was": {"etc/x": "a"}, "wanted": {"etc/x": None},
    "renames": {
        "changes": [{"kind": "file", "name": "x", "target": "/x", "new": "/y", "old": "/z", "existed": True}],
        "folders": [],
    },
}  # fmt: skip
LEDGER = {
    "release": "ab", "version": "1.0", "defaults": {"etc/x": ["a", 420]},
    "moves": [
        {"release": "cd", "version": "0.9", "at": 1.5, "migrations": [1], "files": {"etc/x": [["a", 420], None]}}
    ],
    "conflicts": [
        {"name": "etc/x", "release": "ab", "why": "default", "version": "1.0", "at": 1.5, "other": ["a", 420]}
    ],
    "pending": CHANGE["renames"],
}  # fmt: skip
REVISION = b'{"at":1.5,"files":{"x.toml":["00",384]},"id":3,"who":"root","why":"put"}'


def _changes(path: Path) -> list[object]:
    for old in path.parent.glob("1.json*"):
        old.unlink()
    path.rename(path.with_name("1.json"))
    return list(record.Journal(path.parent).records())


@cache
def _backup() -> tuple[bytes, bytes]:
    """A container, and the archive that is in one."""
    entries = (
        (archive.Entry("manifest.json", "file", 0o600, size=2), [b"{}"]),
        (archive.Entry("etc", "folder", 0o755, mtime=1), []),
        (archive.Entry("etc/link", "link", 0o777, target="t" * 150), []),
        (archive.Entry("etc/" + "n" * 200, "file", 0o644, 5, 6, 3, 7), [b"abc"]),
    )
    inner = b"".join(archive.write(entries))
    return b"".join(sealed.seal([inner], None)), inner


def _archive(data: bytes) -> None:
    for _, content in archive.read(iter([data[:700], data[700:]]), limit=1 << 20):
        for _ in content:
            pass


def _unseal(data: bytes) -> int:
    """With tags that fit, or nearly all mutations would end there."""
    head = data[: sealed.HEADER - sealed.TAG].ljust(sealed.HEADER - sealed.TAG, b"\0")
    box = sealed._Plain(head)
    whole = data if data[-1:] == b"\1" else head + box.header_tag + box.seal(sealed._nonce(0, True), data[48:-16])
    return sum(map(len, sealed.unseal(io.BytesIO(whole), None)))


MANIFEST = (
    b'{"format": 1, "mixos-version": "0.1.0", "hostname": "kitchen", "created": 1700000000, "secrets": true, '
    b'"sections": ["' + min(contents.SECTIONS).encode() + b'", "state"], "state": {"web": "web"}}'
)
RESOLV = b"search example.org lan\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"


def _names(data: bytes) -> None:
    """What leases, the VPN and the settings say of name servers: all of it, and files cut from it."""
    run = _folder() / "run"
    (run / "net/dns.vpn").mkdir(parents=True, exist_ok=True)
    first, _, second = data.partition(b"#")
    for name, content in {"eth0.dns": first, "eth0.lease": second, "eth0.want": second, "search.file": first}.items():
        (run / "net" / name).write_bytes(content)
    names = Names(run)
    names.refresh()
    names.servers()
    timesync.servers(run / "net/eth0.dns")


def _facts(data: bytes) -> None:
    """The kernel's and init's small texts."""
    root = _folder() / "root"
    (root / "data").mkdir(parents=True, exist_ok=True)
    for name in (
        "usr/lib/mixos/release",
        "proc/self/mounts",
        "proc/self/mountinfo",
        "run/mixos/preseed.json",
        "run/mixos/sysctl",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    facts.release(root)
    facts.data(root)
    facts.preseed(root)
    facts.hardening(root)
    mounts.mounts(root)


MOUNTED = b"/dev/vda6 /data ext4 rw 0 0\n"
MOUNT = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"


def _terms(text: str) -> None:
    """What a signed list says of a release, judged for a device."""
    try:
        custom = json.loads(text)
    except (ValueError, RecursionError):
        return
    from tuf.api.metadata import TargetFile, Targets

    targets = Targets(version=1)
    target = TargetFile.from_data("release/1.2.3.json", b"", ["sha256"])
    target.unrecognized_fields["custom"] = custom
    targets.targets[target.path] = target
    device = Device(Running("x86_64", "default", 4, 3), "00" * 32, "0")
    for one in candidates(targets, device, datetime.fromtimestamp(1_700_000_000, UTC)):
        json.dumps(one.as_json())


TERMS = json.dumps(
    {
        "mixos": {
            "format": 1,
            "machine": "x86_64",
            "variant": "default",
            "sequence": 5,
            "minimum-sequence": 2,
            "created": 1_700_000_000,
            "root-hash": "11" * 32,
            "waves": [{"start": 1_700_000_000, "share": 100}, {"start": 1_700_086_400, "share": 10_000}],
            "paused": None,
            "max-failures": 200,
        }
    }
).encode()


def _all() -> list[Reader]:
    config = (ConfigError,)
    return [
        Reader("preseed", [PRESEED], lambda data: settings.parse(data, "fuzz", settings.Settings()), (ConfigError,)),
        Reader("terms of a channel", [TERMS], _as_text(_terms), ()),
        Reader(
            "ssh key",
            [ED25519.encode(), RSA.encode()],
            _as_text(lambda text: sshkey.key_problem(sshkey.normal_key(text))),
            (),
        ),
        Reader("unit file", [UNIT], lambda data: parse_unit(decoded(data, WHERE), WHERE), config),
        Reader("network.toml", [NETWORK], _file(NetworkFile), config, SLOW),
        Reader("vpn.toml", [VPN], _file(VpnFile), config, SLOW),
        Reader(
            "firewall.toml",
            [(ROOT / "daemon/parts/firewall/default.toml").read_bytes()],
            _file(FirewallConfig),
            config,
            SLOW,
        ),
        Reader("mdns.toml", [MDNS], _file(MdnsFile), config, SLOW),
        Reader("proxy.toml", [PROXY], _file(ProxyFile), config, SLOW),
        Reader("profile", [PROFILE], _file(ProfileFile), config, SLOW),
        Reader("mixos.toml", [(ROOT / "mixos.toml").read_bytes()], _file(MixosToml), config, SLOW),
        Reader("recipe", [(ROOT / "packages/recipes/zlib/recipe.toml").read_bytes()], _file(Recipe), config, SLOW),
        Reader("sources.lock", [_lock_seed()], _in_file(load_lock), config, SLOW),
        Reader("edits of a file", [NETWORK], _edit, (ConfigError, RefusedError), SLOW),
        Reader("environment file", [b"# x\nA=b\nC='d e'\n"], _in_file(prepare.environment_file), config),
        Reader("wg-quick", [WG], _as_text(wgquick.parse), (ConfigError, wgquick.keys.KeyProblem)),
        Reader("address list", [LIST], lists.entries, config),
        Reader("image in xz", [lzma.compress(PLAIN)], _in_file(_image), (ImageError,)),
        Reader("image in gzip", [gzip.compress(PLAIN, mtime=0)], _in_file(_image), (ImageError,)),
        Reader("image in zstd", [_zstd()], _in_file(_image), (ImageError,), 100),
        Reader(
            "deb",
            [_deb(b"data.tar.xz", _tar("w:xz")), _deb(b"data.tar.gz", _tar("w:gz")), _deb(b"data.tar", _tar("w"))],
            _in_file(lambda path: deb.read_files(path, ["usr/lib/stub.efi"])),
            (FormatError,),
        ),
        Reader("apt's answer", [OFFER], _as_text(apt.parse_offer), (FetchError,)),
        Reader("apt's Release", [b"Origin: Debian\nDate: Sat, 10 Jan 2026 10:00:00 UTC\n"], _in_file(apt.dated), ()),
        Reader("package manifest", [MIX], lambda data: manifest.decode(data, "fuzz"), (ArtifactError,)),
        Reader(
            "kernel options",
            [b'# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C="d"\nCONFIG_E=0x10\n'],
            _as_text(lambda text: (kconfig.parse_final(text), kconfig.parse_fragment(text, "f"))),
            config,
        ),
        Reader(
            "kernel Makefile",
            [b"VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION = -x\n"],
            _as_text(lambda text: parse_makefile(text, "Makefile")),
            config,
        ),
        Reader(
            "kernel parameters",
            [b"# all\nquiet # why\nconsole=ttyS0,115200 # because\n"],
            _as_text(lambda text: cmdline.parse_cmdline(text, "f")),
            config,
        ),
        Reader("call", [CALL], rpc.decode_request, (rpc.GarbageError,)),
        Reader("answer", [ANSWER, FAILURE, ITEM, END, PROGRESS], _answers, ()),
        Reader(
            "frames of a process",
            [
                _frame({"id": 1, "call": "echo", "params": {"a": 1}}, {"tell": "x", "params": None}),
                _frame({"id": 2, "stream": "count", "params": 5}, {"id": 2, "next": True}, {"id": 2, "cancel": True}),
                _frame({"id": 1, "error": {"code": 1, "message": "x"}}, {"id": 9, "result": None}),
            ],
            _frames,
            (channel.GarbageError, MixosError),
            5,
        ),
        Reader(
            "JSON in a log", [b'{"loss": 1.5, "x": [1, {"y": null}], "z": 123456789012345678901234567890}'], _json, ()
        ),
        Reader("log", [LOG], _log, (), 2),
        Reader("proxy request", [REQUEST, CONNECT, CHUNKED, SOCKS, b"1f\r\n"], _requests, ()),
        Reader(
            "ClientHello",
            [hello(), extended(named(b"a.test")), records(extended(named(b"b.test"))[5:], 40)],
            proxy_tls.client_hello,
            (DeniedError,),
        ),
        Reader(
            "proxy's answer",
            [b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"],
            _from_peer(lambda link: proxy_reach._tunnel(link, urlsplit("http://p:1"), Target("a.test", 443))),
            (MixosError, EOFError),
            2,
        ),
        Reader(
            "SOCKS answer",
            _SOCKS_ANSWERS,
            _from_peer(lambda link: proxy_reach._socks(link, urlsplit("socks5://u:p@h:1"), Target("a.test", 443))),
            (MixosError, EOFError),
            2,
        ),
        Reader("answer to a try", [b"HTTP/1.1 407 No\r\nX: y\r\n\r\n", *_SOCKS_ANSWERS], _tried, (), 2),
        Reader("web server", [FETCHED, FETCHED_IN_CHUNKS, FETCHED_LATER], _fetched, (), 2),
        Reader(
            "proxy of a fetch",
            [*_SOCKS_ANSWERS, b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 407 No\r\nX: y\r\n\r\n"],
            _proxied,
            (),
        ),
        Reader("certificates", [CERTIFICATES], _certificates, (ConfigError,)),
        Reader("what is to be fetched", [TO_FETCH], _as_text(remote.parse), (link.SourceError,)),
        Reader("scrape", [SCRAPE], http.judge, ()),
        Reader("netlink", _messages(), _netlink, ()),
        Reader(
            "shim's message",
            [said + b"\n" + STATE for said in SAID],
            _shim,
            (shimstate.ShimError, ValueError, IndexError),
        ),
        Reader("spec", [SPEC], spec.parse, (spec.SpecError,)),
        Reader("mDNS packet", _packets(), _packet, (), 2),
        Reader("notification", NOTES, _native("notify", "shim/words.c"), (), SLOW),
        Reader("spec in the shim", [SPEC], _native("spec", "shim/words.c", "base.c"), (), SLOW),
        Reader(
            "policy in the launcher",
            [compile_policy(POLICY, architecture="x86_64")],
            _native("policy", "base.c"),
            (),
            SLOW,
        ),
        Reader("lease", [LEASE], _lease, (), 50),
        Reader("sysctl.d", [b"# why\nkernel.one = 1\nkernel.none = 3\n"], _sysctl, (), 20),
        Reader(
            "SMART page",
            [
                bytes(512),
                bytes(2) + bytes((5, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7)) * 30 + bytes(150),
                b"\x72" + bytes(7) + b"\x09\x0c" + bytes(12),
            ],
            _smart,
            (),
        ),
        Reader("backup", [_backup()[0]], _unseal, (sealed.BackupError,)),
        Reader("archive in a backup", [_backup()[1]], _archive, (sealed.BackupError,)),
        Reader("manifest of a backup", [MANIFEST], contents.parse_manifest, (sealed.BackupError,)),
        Reader(
            "SSH_CONNECTION",
            [b"192.0.2.1 50000", b"fe80::1%eth0 50000", b"::ffff:192.0.2.1"],
            _as_text(connection.connection),
            (),
        ),
        Reader("key of a session", [b"publickey " + ED25519.encode() + b"\n"], peer.fingerprint, ()),
        Reader("name servers", [RESOLV + b"#192.0.2.10/24 100 5 0\nmetric 7\n"], _names, (), 5),
        Reader(
            "facts",
            [
                b"MIXOS_VERSION=0.1\nA=b\n",
                MOUNT,
                b"/dev/vda6 /data ext4 rw 0 0\n",
                b'{"state": "applied"}',
                b"missing a b\nrefused\n",
            ],
            _facts,
            (),
            5,
        ),
        Reader("audit entry", [audit.seal({"seq": 1, "at": 1.5, "kind": "x"}, audit.START)[0][:-1]], audit.unseal, ()),
        Reader("idempotency key", [b'{"digest": "x", "result": {}}'], _in_file(keys._read), ()),
        Reader("revision", [REVISION], history._decode, ()),
        Reader("change", [json.dumps(CHANGE).encode()], _in_file(_changes, "0.new"), (), 5),
        Reader(
            "ledger of releases",
            [b"1 ab\n" + json.dumps(LEDGER).encode(), b"1 ab pending\n" + json.dumps(LEDGER).encode()],
            _in_file(ledger.load, "ledger"),
            (MixosError,),
            5,
        ),
        Reader(
            "memory of a unit",
            [b'{"boot": "b", "state": "running"}'],
            _in_file(lambda path: Memory.read(path.parent, "b"), "memory.json"),
            (),
        ),
        Reader(
            "history of a unit",
            [json.dumps({"ends": [END_OF_RUN], "last_run": 5.0}).encode()],
            _in_file(History.read),
            (),
        ),
    ]


def _smart(data: bytes) -> None:
    for read in (ata.parse, nvme.parse, ata.exceeded):
        with contextlib.suppress(HealthError):
            read(data)
    page = bytearray(data[:512].ljust(512, b"\0"))
    page[511] = -sum(page[:511]) & 0xFF
    with contextlib.suppress(HealthError):
        ata.judge(ata.parse(bytes(page)), False)
    with contextlib.suppress(HealthError):
        nvme.parse(bytes(page))


READERS = {reader.name: reader for reader in (*_all(), *updatereaders.readers())}
DEEP = (b"[" * 50_000, b'{"a":' * 10_000, b"a = " + b"[" * 30_000, b"a = " + b"{a=" * 20_000)
# What made a reader raise something else than its errors, take too long or too much memory.
FOUND = [
    ("preseed", b"hostname = " + b"9" * 5000 + b"\n"),
    ("preseed", b"a" + b".a" * 30_000 + b" = 1\n"),
    ("preseed", b'hostname = """\n[a' + b" " * 60_000 + b'"""\n'),
    ("edits of a file", b"[interface.lan" + b".lan" * 1000 + b"]\n"),
    ("kernel Makefile", b"VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = " + b"9" * 5000 + b"\n"),
    ("proxy's answer", b"HTTP/1.1\r(2y\r\n\r\n"),
    ("shim's message", b"started 12 345\n" + STATE.replace(b"123456789", b"1" * 400)),
    ("spec", SPEC.replace(b"\ngrace ", b"\ngrace " + b"1" * 400)),
    ("facts", b"-1"),
    ("revision", b'{"at":1,"files":{"x":["00",1e999]},"id":3,"who":"root","why":"put"}'),
    ("change", json.dumps({**CHANGE, "deadline": 10**400}).encode()),
    ("terms of a channel", TERMS.replace(b'"created": 1700000000', b'"created": 655360000000')),
    ("terms of a channel", TERMS.replace(b"1700086400", b"255700086400")),
]
