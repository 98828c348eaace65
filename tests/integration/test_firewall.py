"""The firewall with the real nft and real packets: three network namespaces, a device between two others.

out (198.51.100.2, 2001:db8:1::2) ── wan0 [ device ] lan0 ── home (192.0.2.2, 2001:db8:2::2)
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from buildsys.run import run
from common.errors import ConfigError, MixosError, RefusedError
from daemon.core.change.applier import View
from daemon.core.change.files import Trees
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.linux import process
from daemon.parts.firewall import verbs as cli
from daemon.parts.firewall.decide import Packet, decide
from daemon.parts.firewall.engine import Plan
from daemon.parts.firewall.kernel import NFT
from daemon.parts.firewall.part import Firewall
from daemon.parts.firewall.policy import FILE, Source, resolve
from daemon.parts.firewall.units import Place
from tests.integration.namespaces import Space, cable, checksum, spaces
from tests.waiting import PATIENCE, until

LOCAL = Caller(Role.ADMIN, 0, 0, 1, "root", "local")
FROM_OUT = Caller(Role.ADMIN, 1000, 1000, 1, "admin", "ssh 198.51.100.2")
OUT4, OUT6, HOME4, HOME6 = "198.51.100.2", "2001:db8:1::2", "192.0.2.2", "2001:db8:2::2"
DEVICE4, DEVICE6, INNER4 = "198.51.100.1", "2001:db8:1::1", "192.0.2.1"
ZONES = """default-zone = "lan"
[zones.lan]
[zones.wan]
interfaces = ["wan0"]
"""


@dataclass
class Bench:
    """A device with its configuration, and its two neighbours."""

    device: Space
    out: Space
    home: Space
    context: Context

    def write(self, text: str) -> None:
        (self.context.etc / "firewall.toml").write_text(text)

    @property
    def written(self) -> str:
        path = self.context.etc / "firewall.toml"
        return path.read_text() if path.exists() else ""

    def run(self, work: Callable[[Daemon], Awaitable[Any]], caller: Caller = LOCAL) -> Any:
        """Start the part in the device, do `work` with it, stop it; the kernel keeps the rules."""

        async def whole() -> Any:
            daemon = Daemon(Firewall(replace(self.context)), caller)  # a daemon of its own each time
            await daemon.part.start()
            try:
                return await work(daemon)
            finally:
                await daemon.stop()

        return self.device.go(whole)

    def apply(self, text: str) -> None:
        self.write(text)
        self.run(nothing)

    def call(self, name: str, caller: Caller = LOCAL, /, **params: object) -> Any:
        return self.run(lambda daemon: daemon.call(name, **params), caller)

    def nft(self, *words: str) -> str:
        return run(["ip", "netns", "exec", self.device.name, "/usr/sbin/nft", *words]).stdout.decode()


@dataclass
class Daemon:
    """The part and someone who calls it, as a server would."""

    part: Firewall
    caller: Caller

    async def stop(self) -> None:
        await self.part.context.changes.stop()
        await self.part.stop()

    async def call(self, name: str, descriptors: Sequence[int] = (), /, **params: object) -> Any:
        method = {one.name: one for one in self.part.methods()}[f"firewall.{name}"]
        model: type[BaseModel] = method.params
        keys = {key.replace("_", "-").strip("-"): value for key, value in params.items()}
        wish: Any = model.model_validate(keys)
        if descriptors:
            wish.content.attach(os.dup(descriptors[wish.content.given]))
        return await method.handler(self.caller, wish)  # type: ignore[misc]


async def nothing(_: Daemon) -> None:
    """Starting was all."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    folders = [tmp_path / name for name in ("run", "state", "etc", "lib", "log")]
    for folder in folders:
        folder.mkdir()
    with spaces("device", "out", "home") as (device, out, home):
        cable(
            device,
            "wan0",
            out,
            "eth0",
            {"wan0": (f"{DEVICE4}/24", f"{DEVICE6}/64"), "eth0": (f"{OUT4}/24", f"{OUT6}/64")},
        )
        cable(
            device,
            "lan0",
            home,
            "eth0",
            {"lan0": (f"{INNER4}/24", "2001:db8:2::1/64"), "eth0": (f"{HOME4}/24", f"{HOME6}/64")},
        )
        for space, four, six in ((out, DEVICE4, DEVICE6), (home, INNER4, "2001:db8:2::1")):
            space.ip("route", "add", "default", "via", four)
            space.ip("-6", "route", "add", "default", "via", six)
        yield Bench(device, out, home, Context(*folders))


# -- what comes in ---------------------------------------------------------------------------------------------------


def test_nothing_is_open_but_what_is_allowed(bench):
    ssh, web, mdns = bench.device.listen(22), bench.device.listen(80), bench.device.listen(5353, socket.SOCK_DGRAM)
    assert bench.out.connects(DEVICE4, 80)  # without rules everything answers: the test can fail
    bench.run(nothing)  # no file: the default
    for host in (DEVICE4, DEVICE6):
        assert bench.out.connects(host, 22)
        assert not bench.out.connects(host, 80)
        assert bench.out.gets_through(host, 5353, mdns)
        assert bench.out.pings(host)
    assert bench.device.connects("127.0.0.1", 80)
    assert bench.device.connects("::1", 80)
    bench.call("zone", name="lan", allow=["mdns"], take=True, force=True)
    assert not bench.out.gets_through(DEVICE4, 5353, mdns)
    bench.call("allow", service="http", from_=[OUT6])
    assert bench.out.connects(DEVICE6, 80)
    assert not bench.out.connects(DEVICE4, 80)
    for server in (ssh, web, mdns):
        server.close()


def test_neighbour_discovery_works_behind_default_deny(bench):
    """IPv6 addresses are resolved anew from both sides."""
    bench.apply("ping = false\n" + ZONES + "[rules.t]\nservice = 'tcp/7'\n")
    for space in (bench.device, bench.out):
        space.ip("neighbour", "flush", "all")
    with bench.device.listen(7):
        assert bench.out.connects(DEVICE6, 7)
    with bench.out.listen(7):
        assert bench.device.connects(OUT6, 7)
    neighbours = run(["ip", "-n", bench.device.name, "-6", "neighbour"]).stdout.decode()
    assert OUT6 in neighbours


def test_path_mtu_is_learnt_behind_default_deny(bench):
    """A router's word about a packet of ours is heard in both families (RFC 1191, RFC 8201)."""
    bench.apply("ping = false\n" + ZONES)

    def mtu(host: str) -> str:
        return run(["ip", "-n", bench.device.name, "route", "get", host]).text.partition(" mtu ")[2].partition(" ")[0]

    def ask(here: str, there: str) -> socket.socket:
        """A socket of the device that has sent a datagram."""
        channel = socket.socket(socket.AF_INET6 if ":" in here else socket.AF_INET, socket.SOCK_DGRAM)
        channel.bind((here, 0))
        channel.sendto(b"question", (there, 7000))
        return channel

    asking = [bench.device.inside(partial(ask, *ends)) for ends in ((DEVICE4, OUT4), (DEVICE6, OUT6))]
    udp4, udp6 = (struct.pack("!HHHH", one.getsockname()[1], 7000, 16, 0) for one in asking)
    four = struct.pack("!BBHHHBBH", 0x45, 0, 36, 0, 0, 64, 17, 0)
    four += socket.inet_aton(DEVICE4) + socket.inet_aton(OUT4) + udp4
    message = struct.pack("!BBHHH", 3, 4, 0, 0, 1000) + four  # fragmentation needed
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    six = struct.pack("!IHBB", 6 << 28, 16, 17, 64)
    six += socket.inet_pton(socket.AF_INET6, DEVICE6) + socket.inet_pton(socket.AF_INET6, OUT6) + udp6
    too_big = struct.pack("!BBHI", 2, 0, 0, 1300) + six + b"question"

    def tell() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as channel:
            channel.sendto(message, (DEVICE4, 0))
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as channel:
            channel.sendto(too_big, (DEVICE6, 0))

    assert (mtu(OUT4), mtu(OUT6)) == ("", "")
    bench.out.inside(tell)
    assert (mtu(OUT4), mtu(OUT6)) == ("1000", "1300")
    for channel in asking:
        channel.close()


def test_a_dhcpv6_server_on_the_link_is_heard_and_nobody_else(bench):
    bench.apply(ZONES)

    def link_local(space: Space, name: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            (row,) = json.loads(run(["ip", "-n", space.name, "-json", "address", "show", "dev", name]).text)
            for one in row["addr_info"]:
                if one["scope"] == "link" and not one.get("tentative"):
                    return str(one["local"])
        raise AssertionError(f"{name} has no link-local address")

    source, target = link_local(bench.out, "eth0"), link_local(bench.device, "wan0")

    def send(here: str, port: int, there: str) -> None:
        scope = socket.if_nametoindex("eth0")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as channel:
            channel.bind((here, port, 0, scope if here.startswith("fe80") else 0))
            channel.sendto(f"{here} {port}".encode(), (there, 546, 0, scope if there.startswith("fe80") else 0))

    with bench.device.listen(546, socket.SOCK_DGRAM) as client:
        for here, port, there in ((OUT6, 547, DEVICE6), (source, 5470, target), (source, 547, target)):
            bench.out.inside(partial(send, here, port, there))
        assert client.recv(100).decode() == f"{source} 547"  # what was sent before it has not arrived


def test_answers_pass_and_a_connection_survives_new_rules(bench):
    bench.apply(ZONES)
    with (
        bench.out.listen(7000) as server,
        bench.device.inside(lambda: socket.create_connection((OUT4, 7000), 2)) as client,
    ):
        accepted, _ = server.accept()
        accepted.settimeout(PATIENCE)
        with accepted:
            bench.call("deny", service="tcp/7000", force=True)
            client.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            client.settimeout(2)
            assert client.recv(100) == b"answer"


def test_reject_answers_and_deny_is_silent(bench):
    bench.apply(ZONES + "[rules.a]\naction='reject'\nservice='tcp/81'\n[rules.b]\naction='deny'\nservice='tcp/82'\n")

    def error(port: int) -> type[OSError] | None:
        def attempt() -> type[OSError] | None:
            try:
                socket.create_connection((DEVICE4, port), 0.5).close()
            except OSError as found:
                return type(found)
            return None

        return bench.out.inside(attempt)

    assert error(82) is TimeoutError
    assert error(81) not in (TimeoutError, None)


def test_too_many_connections_of_one_source_are_dropped_and_others_are_not(bench):
    bench.apply(ZONES + "[rules.a]\nservice='tcp/22'\nlimit='1/hour burst 4'\n")
    bench.out.ip("address", "add", "198.51.100.3/24", "dev", "eth0")
    bench.out.ip("address", "add", "2001:db8:1::3/64", "dev", "eth0", "nodad")
    with bench.device.listen(22):
        results = [bench.out.connects(DEVICE4, 22, source=OUT4) for _ in range(7)]
        assert results == [True] * sum(results) + [False] * (7 - sum(results))
        assert 4 <= sum(results) <= 5
        assert bench.out.connects(DEVICE4, 22, source="198.51.100.3")
        # addresses of one IPv6 network are one source
        assert sum(bench.out.connects(DEVICE6, 22, source=(OUT6, "2001:db8:1::3")[n % 2]) for n in range(7)) <= 5
    counters = bench.call("list")["counters"]
    assert counters["rules.a limit"]["packets"] > 0


def test_block_lists_beat_everything_and_cut_what_is_open(bench):
    bench.apply(ZONES + "[rules.a]\nservice='tcp/22'\n")
    with (
        bench.device.listen(22) as server,
        bench.out.inside(lambda: socket.create_connection((DEVICE4, 22), 2)) as client,
    ):
        accepted, _ = server.accept()
        bench.call("block", addresses=[OUT4, "203.0.113.0/24"])
        client.sendall(b"still there?")
        # tcpi_retransmits of tcp(7): what was sent first has got lost
        until(lambda: client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[2])
        with accepted, pytest.raises(BlockingIOError):
            accepted.recv(10, socket.MSG_DONTWAIT)
        assert not bench.out.connects(DEVICE4, 22)
        assert bench.out.connects(DEVICE6, 22)
        bench.call("block", addresses=[OUT4], take=True)
        assert bench.out.connects(DEVICE4, 22)
    assert (bench.context.etc / "lists/blocked.txt").read_text() == "203.0.113.0/24\n"


# -- what passes through ---------------------------------------------------------------------------------------------


def _peer(client: Space, host: str, port: int, server: socket.socket, wait: float = 5) -> str | None:
    """The address that a server sees when `client` connects to host:port; None when nothing arrives."""

    def attempt() -> socket.socket:
        return socket.create_connection((host, port), wait)

    try:
        connection = client.inside(attempt)
    except OSError:
        return None
    with connection:
        accepted, address = server.accept()
        accepted.close()
        return str(address[0]).removeprefix("::ffff:")


def test_nat_routes_from_zone_to_zone_and_no_other_way(bench):
    bench.apply(ZONES)
    inside, outside = bench.home.listen(9000), bench.out.listen(9000)
    with inside, outside:
        assert _peer(bench.home, OUT4, 9000, outside, wait=1) is None
        bench.call("nat", from_="lan", to="wan")
        assert _peer(bench.home, OUT4, 9000, outside) == DEVICE4
        assert _peer(bench.home, OUT6, 9000, outside) == DEVICE6
        assert _peer(bench.out, HOME4, 9000, inside, wait=1) is None
        bench.call("remove", name="lan-to-wan")
        bench.call("nat", from_="lan", to="wan", masquerade=False)
        assert _peer(bench.home, OUT4, 9000, outside) == HOME4
        bench.call("block", addresses=[HOME4])
        assert _peer(bench.home, OUT4, 9000, outside, wait=1) is None


def test_port_forwards_lead_to_another_host_in_both_families(bench):
    bench.apply(ZONES)
    with bench.home.listen(80) as server, bench.device.listen(8080):
        for to in (HOME4, HOME6):
            bench.call("forward", zone="wan", port="tcp/8080", to=to, to_port=80)
        assert _peer(bench.out, DEVICE4, 8080, server) == OUT4
        assert _peer(bench.out, DEVICE6, 8080, server) == OUT6
        assert _peer(bench.out, HOME4, 80, server, wait=1) is None  # only by the port of the device
        assert not bench.home.connects(INNER4, 8080)  # another zone
        assert bench.call("test", port="tcp/8080", interface="wan0")["to"] == f"{HOME4}:80"
        bench.call("remove", name=next(iter(resolve_names(bench.written, "forwards"))))
        assert _peer(bench.out, DEVICE4, 8080, server, wait=1) is None
        assert _peer(bench.out, DEVICE6, 8080, server) == OUT6


def resolve_names(text: str, kind: str) -> list[str]:
    return list(getattr(resolve(Source(text), Path("firewall.toml")).config, kind))


# -- the model of decisions and the kernel agree ---------------------------------------------------------------------


def test_what_the_policy_says_is_what_the_kernel_does(bench):
    """Policies by chance, packets of every kind, each decision compared with what the real rules do."""
    chance = random.Random(7)
    ports = [22, 80, 81, 82, 83]
    servers = [bench.device.listen(port) for port in ports]
    sources = {"wan0": [OUT4, OUT6], "lan0": [HOME4, HOME6]}
    decisions = set()
    for _ in range(12):
        text = _random_policy(chance)
        bench.apply(text)
        policy = resolve(Source(text), Path("firewall.toml"))
        for interface, client in (("wan0", bench.out), ("lan0", bench.home)):
            for source in sources[interface]:
                host = {OUT4: DEVICE4, OUT6: DEVICE6, HOME4: INNER4, HOME6: "2001:db8:2::1"}[source]
                for port in ports:
                    decision = decide(policy, Packet(source, "tcp", port, interface))
                    decisions.add((decision.action, decision.by.partition(".")[0]))
                    accepted = decision.action == "accept"
                    assert client.connects(host, port, 2 if accepted else 0.2) == accepted, (text, decision)
    assert {
        ("accept", "rules"),
        ("deny", "rules"),
        ("accept", "zones"),
        ("deny", "default"),
        ("deny", "lists"),
    } <= decisions
    for server in servers:
        server.close()


def test_every_policy_that_is_accepted_is_one_that_nft_accepts(bench):
    """Rules, limits, forwards, NAT and lists by chance: whatever `resolve` lets through must compile and load."""
    chance = random.Random(11)

    async def check_all(daemon: Daemon) -> int:
        for _ in range(40):
            text = _random_policy(chance)
            for index in range(4):
                source = f"from = {chance.sample([OUT4, OUT6, '192.0.2.0/24', '@some', '@bad'], 2)}\n"
                zone = f"zone = '{chance.choice('abc')}'\n"
                text += f"[rules.l{index}]\nservice = '{chance.choice(['dns', 'https', 'sip'])}'\n" + zone + source
                text += f"limit = '{chance.randrange(1, 9)}/{chance.choice(['second', 'minute', 'hour', 'day'])}'\n"
                port = chance.choice(["tcp/80", "udp/1-9"])
                text += (
                    f"[forwards.f{index}]\nport = '{port}'\nto = '{chance.choice([HOME4, HOME6])}'\n" + zone + source
                )
                text += f"[nat.n{index}]\nfrom = '{chance.choice('abc')}'\nto = '{chance.choice('abc')}'\n"
            text = "".join(f"{key} = {chance.choice(['true', 'false'])}\n" for key in ("ping", "log", "reject")) + text
            plan = await daemon.part.engine.make(View(Trees(bench.context.etc), {FILE: text.encode()}))
            answer = await process.capture([NFT, "-j", "-c", "-f", "-"], given=plan.document, seconds=60)
            assert answer.status == 0, answer.err
        return 40

    assert bench.run(check_all) == 40


def _random_policy(chance: random.Random) -> str:
    nets = ["198.51.100.0/24", OUT4, OUT6, "2001:db8:1::/64", HOME4, "192.0.2.0/25", HOME6, "2001:db8::/32", "@some"]
    services = ["ssh", "http", "tcp/80-82", "tcp/83", "tcp/22"]
    sources = chance.sample(nets[:-1], 2)
    text = f"default-zone = '{chance.choice(['a', 'b', 'c'])}'\n"
    text += f"[zones.a]\ninterfaces = {chance.choice([['wan0'], ['wan*'], ['lan0', 'wan*'], []])}\n"
    text += f"allow = {chance.sample(services, 2)}\n"
    text += f"[zones.b]\nsources = {chance.choice([[], sources[:1]])}\nallow = {chance.sample(services, 1)}\n"
    text += f"[zones.c]\nsources = {chance.choice([[], sources[1:]])}\npolicy = '{chance.choice(['allow', 'deny'])}'\n"
    for index in range(chance.randrange(4)):
        text += f"[rules.r{index}]\nservice = '{chance.choice(services)}'\nfrom = {chance.sample(nets, 2)}\n"
        text += f"action = '{chance.choice(['allow', 'deny'])}'\n"
        if chance.random() < 0.5:
            text += f"zone = '{chance.choice('abc')}'\n"
    text += f"[lists.some]\naddresses = ['{OUT4}', '2001:db8:2::/64']\nblock = false\n"
    text += f"[lists.bad]\naddresses = {chance.choice([[], [OUT4], ['2001:db8:2::/48'], ['198.51.100.0/25']])}\n"
    return text


# -- changing --------------------------------------------------------------------------------------------------------


def test_other_tables_are_left_alone_and_drift_is_seen(bench):
    bench.nft("add table inet others { chain c { type filter hook input priority 5; policy accept; counter; } ; }")
    bench.apply(ZONES)
    bench.call("allow", service="http")
    assert "others" in bench.nft("list", "tables")

    async def drift(daemon: Daemon) -> list[str]:
        states = [(await daemon.call("status"))["state"]]
        bench.nft("add", "rule", "inet", "mixos", "in-lan", "tcp dport 666 accept")
        states.append((await daemon.call("status"))["state"])
        await daemon.call("apply")
        states.append((await daemon.call("status"))["state"])
        bench.nft("flush", "ruleset")
        states.append((await daemon.call("status"))["state"])
        return states

    assert bench.run(drift) == ["on", "changed", "on", "off"]


def test_a_missing_address_of_a_list_is_drift(bench):
    bench.apply(ZONES + "[lists.bad]\naddresses = ['203.0.113.7', '203.0.113.9']\n")

    async def drift(daemon: Daemon) -> tuple[str, str]:
        before = (await daemon.call("status"))["state"]
        bench.nft("delete", "element", "inet", "mixos", "list-bad-v4", "{ 203.0.113.7 }")
        return before, (await daemon.call("status"))["state"]

    assert bench.run(drift) == ("on", "changed")


def test_a_dry_run_shows_the_rules_and_changes_nothing(bench):
    bench.apply(ZONES)
    before = bench.nft("list", "ruleset")
    answer = bench.call("allow", service="tcp/8080", dry_run=True)
    added = [line for line in answer["diff"].splitlines() if line.startswith("+\t")]
    assert len(added) == 2  # one per zone
    assert all("tcp dport 8080" in line for line in added)
    assert not answer["applied"]
    assert bench.written == ZONES
    assert bench.nft("list", "ruleset") == before
    assert bench.call("allow", service="tcp/8080")["diff"] == answer["diff"]
    assert bench.call("diff")["diff"] == ""


def test_a_broken_file_keeps_the_last_good_rules_over_starts(bench):
    bench.apply(ZONES + "[rules.a]\nservice='tcp/22'\n")
    with bench.device.listen(22):
        for broken in ("[zones.lan", ZONES + "[rules.a]\nservice='nonsense'\n", "\xff"):
            bench.write(broken)
            bench.nft("flush", "ruleset")
            status = bench.call("status")
            assert (status["state"], status["file"]) == ("on", "broken")
            assert status["problem"]
            assert bench.out.connects(DEVICE4, 22)
            assert not bench.out.connects(DEVICE4, 80)
            with pytest.raises(ConfigError):
                bench.call("apply")


def test_the_file_for_init_loads_by_itself(bench):
    bench.apply(ZONES + "[rules.a]\nservice='tcp/22'\n[lists.bad]\naddresses=['203.0.113.0/24']\n")
    rules = bench.nft("-s", "list", "ruleset")
    bench.nft("flush", "ruleset")
    bench.nft("-j", "-f", str(bench.context.state / "firewall.json"))
    assert bench.nft("-s", "list", "ruleset") == rules


# -- not locking oneself out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("deny", {"service": "ssh"}),
        ("deny", {"service": "tcp/1-65535", "from_": ["198.51.100.0/24"]}),
        ("block", {"addresses": ["198.51.100.0-198.51.100.9"]}),
        ("zone", {"name": "wan", "allow": ["ssh"], "take": True}),
        ("zone", {"name": "closed", "sources": ["198.51.100.0/25"]}),
    ],
)
def test_a_change_that_would_shut_the_operator_out_is_on_trial(bench, name, params):
    bench.apply(ZONES + "allow = ['ssh']\n")
    with bench.device.listen(22):
        assert bench.call(name, FROM_OUT, **params, dry_run=True)["cuts-off"]
        assert bench.out.connects(DEVICE4, 22)
        answer = bench.call(name, FROM_OUT, **params)
        assert (answer["applied"], answer["confirm"]) == (True, 60)
        assert not bench.out.connects(DEVICE4, 22)
        bench.call("revert")
        assert bench.out.connects(DEVICE4, 22)
        assert bench.call(name, FROM_OUT, **params, force=True)["applied"]
        assert not bench.out.connects(DEVICE4, 22)


def test_the_connection_of_the_client_counts_port_and_interface(bench):
    bench.apply(ZONES + "[rules.a]\nservice='tcp/2222'\nzone='wan'\n")
    there = FROM_OUT._replace(connection=f"{OUT4} 50000 {DEVICE4} 2222")
    assert bench.call("deny", there, service="ssh")["confirm"] is None
    assert bench.call("remove", there, name="a")["confirm"] == 60


def test_an_unconfirmed_change_is_undone_in_time(bench):
    bench.apply(ZONES + "allow = ['ssh']\n")
    before = bench.written

    async def change(daemon: Daemon) -> dict[str, Any]:
        undone = asyncio.ensure_future(anext(daemon.part.context.events.listen("firewall.reverted")))
        await asyncio.sleep(0)  # it listens from here on
        assert (await daemon.call("deny", service="ssh", confirm=5))["confirm"] == 5
        assert not await asyncio.to_thread(bench.out.connects, DEVICE4, 22)
        with pytest.raises(RefusedError) as caught:
            await daemon.call("allow", service="http")
        assert caught.value.reason == "change-pending"
        return dict((await undone).data)

    with bench.device.listen(22):
        assert bench.run(change, FROM_OUT)["why"]
        assert bench.out.connects(DEVICE4, 22)
    assert bench.written == before


@pytest.mark.parametrize("error", [MixosError("x", reason="x"), KeyError("a defect")])
def test_loading_that_is_broken_off_is_undone_all_the_same(bench, error):
    """Nobody may learn whether the kernel took the rules."""
    bench.apply(ZONES)

    async def cut(daemon: Daemon) -> Any:
        load, calls = daemon.part.engine._load, []

        async def broken_off(plan: Plan) -> None:
            calls.append(plan)
            if len(calls) > 1:
                return await load(plan)
            await daemon.part.kernel.load(plan.document)
            raise error

        for seconds in (60, None):
            calls.clear()
            daemon.part.engine._load = broken_off  # type: ignore[method-assign]
            with pytest.raises(type(error)):
                await daemon.call("allow", service="tcp/22", confirm=seconds)
            assert not bench.out.connects(DEVICE4, 22)
            assert (await daemon.call("status"))["confirm"] is None

    with bench.device.listen(22):
        bench.run(cut)
    assert bench.written == ZONES


def test_a_full_disk_keeps_nobody_out(bench, monkeypatch):
    """An unconfirmed change is undone in the kernel, whatever can be written."""
    bench.apply(ZONES + "[rules.a]\nservice = 'tcp/22'\n")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def change(daemon: Daemon) -> None:
        await daemon.call("remove", name="a", confirm=60)
        assert not bench.out.connects(DEVICE4, 22)
        changes = daemon.part.context.changes
        monkeypatch.setattr(changes.memory, "refuse", full)
        monkeypatch.setattr(changes.journal, "remove", full)
        await daemon.call("revert")
        assert bench.out.connects(DEVICE4, 22)
        assert (await daemon.call("status"))["confirm"] is None

    with bench.device.listen(22):
        bench.run(change)


def test_nft_that_fails_at_a_start_ends_the_trial(bench, monkeypatch):
    bench.apply(ZONES)
    _kill(bench, "loaded", "allow:60")
    part = Firewall(replace(bench.context))
    listing = part.kernel.listing
    calls = []

    async def once(*words: Any) -> Any:
        calls.append(words)
        if len(calls) == 1:
            raise MixosError("nft did not end", reason="program-timeout")
        return await listing(*words)

    monkeypatch.setattr(part.kernel, "listing", once)

    async def whole() -> None:
        await part.start()
        assert part.status()["rules"] == "on"
        await part.stop()

    bench.device.go(whole)
    with bench.device.listen(22):
        assert not bench.out.connects(DEVICE4, 22)


def test_a_confirmed_change_stays(bench):
    bench.apply(ZONES)

    async def change(daemon: Daemon) -> None:
        await daemon.call("allow", service="ssh", confirm=5)
        assert bench.written == ZONES
        await daemon.call("confirm")
        with pytest.raises(RefusedError):
            await daemon.call("revert")

    bench.run(change)
    assert "allow-ssh" in bench.written
    with bench.device.listen(22):
        bench.run(nothing)
        assert bench.out.connects(DEVICE4, 22)


def test_a_file_that_was_undone_is_not_taken_up_at_the_next_start(bench):
    bench.apply(ZONES + "allow = ['ssh']\n")
    bench.write(ZONES)

    async def change(daemon: Daemon) -> None:
        await daemon.call("apply", confirm=60)
        await daemon.call("revert")

    with bench.device.listen(22):
        # The start itself would take the edited file: so edit it once the daemon runs.
        bench.write(ZONES + "allow = ['ssh']\n")

        async def edited(daemon: Daemon) -> None:
            bench.write(ZONES)
            await change(daemon)

        bench.run(edited)
        assert bench.out.connects(DEVICE4, 22)
        status = bench.call("status")
        assert (status["state"], status["file"]) == ("on", "undone")
        assert bench.out.connects(DEVICE4, 22)
        bench.call("apply")  # said twice is meant
        assert not bench.out.connects(DEVICE4, 22)
        assert bench.call("status")["file"] == "same"


# -- how often nft runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def counted(bench: Bench, tmp_path: Path) -> Callable[[Callable[[Daemon], Awaitable[Any]]], list[str]]:
    """Starts the part, does some work, and says which nft it started: the first words of each."""
    log, tool = tmp_path / "runs", tmp_path / "nft"
    tool.write_text(f'#!/bin/sh\necho "$*" >>{log}\nexec {NFT} "$@"\n')
    tool.chmod(0o755)

    def go(work: Callable[[Daemon], Awaitable[Any]]) -> list[str]:
        log.unlink(missing_ok=True)

        async def whole() -> None:
            daemon = Daemon(Firewall(replace(bench.context), nft=str(tool)), LOCAL)
            await daemon.part.start()
            try:
                await work(daemon)
            finally:
                await daemon.stop()

        bench.device.go(whole)
        return log.read_text().splitlines() if log.exists() else []

    return go


def test_rules_that_early_boot_has_loaded_are_taken_over_unasked(bench: Bench, counted: Any) -> None:
    compiled = bench.context.state / "firewall.json"
    bench.apply(ZONES)
    loaded = bench.context.run / "firewall.loaded"
    bench.nft("flush", "ruleset")
    bench.nft("-j", "-f", str(compiled))
    loaded.write_bytes(compiled.read_bytes())
    before = bench.nft("list", "ruleset")

    async def state(daemon: Daemon) -> None:
        assert daemon.part.status() == {"rules": "on", "problem": None}

    assert counted(state) == []
    assert bench.nft("list", "ruleset") == before
    assert not loaded.exists()  # it counts once: a daemon that is started again asks the kernel
    bench.nft("flush", "ruleset")
    assert counted(state) != []
    assert bench.nft("list", "ruleset") == before
    loaded.write_bytes(compiled.read_bytes() + b" ")  # something else
    bench.nft("flush", "ruleset")
    assert counted(state) != []
    assert bench.nft("list", "ruleset") == before
    assert not loaded.exists()


def test_a_change_starts_nft_twice(bench: Bench, counted: Any) -> None:
    """Once to load, once to read back; the first one after a start also looks at what there was."""
    bench.apply(ZONES)

    async def change(daemon: Daemon) -> None:
        first = await daemon.call("allow", service="http")
        assert "tcp dport 80" in first["diff"]
        second = await daemon.call("allow", service="https")
        assert "tcp dport 443" in second["diff"]
        assert "80" not in [line for line in second["diff"].splitlines() if line.startswith("+")]

    runs = counted(change)
    start = counted(nothing)
    assert len(runs) - len(start) == 5
    assert runs[-2].startswith("-j -f -")
    assert "list table" in runs[-1]


# -- kill -9 at every step -------------------------------------------------------------------------------------------

VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from daemon.core.method import Caller, Role
from daemon.parts.firewall import verbs as cli
from daemon.parts.firewall.part import Firewall
from daemon.core.part import Context

folder, step, *calls = sys.argv[1:]

def hook(reached):
    if reached == step:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    context = Context(*(Path(folder) / name for name in ("run", "state", "etc", "lib", "log")))
    context.changes.step = hook
    part = Firewall(context)
    await part.start()
    methods = {method.name: method for method in part.methods()}
    caller = Caller(Role.ADMIN, 0, 0, 1, "root", "local")
    for call in calls:
        name, _, confirm = call.partition(":")
        keys = {"service": "tcp/22"} if name == "allow" else {}
        keys |= {"confirm": int(confirm)} if confirm else {}
        method = methods["firewall." + name]
        await method.handler(caller, method.params.model_validate(keys))

asyncio.run(main())
"""


def _kill(bench: Bench, step: str, *calls: str) -> None:
    program = [sys.executable, "-c", VICTIM, str(bench.context.etc.parent), step, *calls]
    answer = asyncio.run(process.capture(["/usr/bin/env", "ip", "netns", "exec", bench.device.name, *program]))
    assert answer.status == -signal.SIGKILL, answer.err.decode()


@pytest.mark.parametrize(
    ("step", "calls", "open_then", "waits", "open_later"),
    [
        ("recorded", ["allow:60"], True, True, False),
        ("loaded", ["allow:60"], True, True, False),
        ("committing", ["allow:60", "confirm"], True, False, True),
        ("kept", ["allow:60", "confirm"], True, False, True),
        ("loaded", ["allow"], False, False, False),
        ("committing", ["allow"], True, False, True),
        ("kept", ["allow"], True, False, True),
    ],
)
def test_killed_at_any_step(bench, step, calls, open_then, waits, open_later):
    """A new daemon goes on with a change that waits and undoes it later; a final one is there whole or not at all."""
    bench.apply(ZONES)
    _kill(bench, step, *calls)
    with bench.device.listen(22):
        assert (bench.call("status")["confirm"] is not None) == waits
        assert bench.out.connects(DEVICE4, 22) == open_then
        if waits:
            assert bench.written == ZONES
            bench.call("revert")
        assert bench.out.connects(DEVICE4, 22) == open_later
        assert (bench.written != ZONES) == open_later
        bench.run(nothing)
        assert bench.out.connects(DEVICE4, 22) == open_later


@pytest.mark.parametrize("change", [{"deadline": 1.0}, {"boot": "another boot"}])
def test_what_waited_while_nobody_was_there_is_undone_at_the_start(bench, change):
    bench.apply(ZONES)
    _kill(bench, "loaded", "allow:60")
    (path,) = (bench.context.state / "changes").glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with bench.device.listen(22):
        assert bench.out.connects(DEVICE4, 22)
        bench.run(nothing)
        assert not bench.out.connects(DEVICE4, 22)
    assert not path.exists()
    # init would have loaded these before any Python ran
    bench.nft("-j", "-f", str(bench.context.state / "firewall.json"))
    with bench.device.listen(22):
        assert not bench.out.connects(DEVICE4, 22)


# -- units -----------------------------------------------------------------------------------------------------------

GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def place() -> Iterator[Place]:
    """A folder for cgroups of units in the cgroup v2 hierarchy, wherever this host has it."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next(Path(words[1]) for words in lines if words[2] == "cgroup2")
    folder = mount / f"mixos-{os.getpid()}"
    (folder / "web").mkdir(parents=True)
    yield Place(folder.relative_to(GROUPS), 1)
    for path in (folder / "web", folder):
        path.rmdir()


def test_a_unit_gets_out_only_where_it_may(bench, place):
    bench.write(ZONES + f"[units.web]\noutgoing = ['tcp/7001']\nto = ['{OUT4}']\n[units.later]\n")
    connect = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.5)"

    def reaches(host: str, port: int, group: Path | None) -> bool:
        command = ["ip", "netns", "exec", bench.device.name, sys.executable, "-c", connect, host, str(port)]
        join = f"echo $$ >{group}/cgroup.procs; " if group else ""
        return run(["sh", "-c", join + 'exec "$@"', "sh", *command], allow=range(256)).status == 0

    async def attach(daemon: Daemon) -> list[dict[str, str]]:
        daemon.part.confiner.place = place
        await daemon.part.confiner.attach("web")
        await daemon.part.confiner.attach("unknown")
        with pytest.raises(MixosError) as caught:
            await daemon.part.confiner.attach("later")
        assert caught.value.reason == "firewall-no-cgroup"
        return (await daemon.call("status"))["units"]  # type: ignore[no-any-return]

    group = GROUPS / place.folder / "web"
    with bench.out.listen(7001), bench.out.listen(7002), bench.device.listen(7003):
        assert bench.run(attach) == [{"unit": "web", "state": "confined"}, {"unit": "later", "state": "waiting"}]
        assert reaches(OUT4, 7001, group)
        assert not reaches(OUT6, 7001, group)
        assert not reaches(OUT4, 7002, group)
        assert reaches("127.0.0.1", 7003, group)
        assert reaches(OUT4, 7002, None)


# -- size ------------------------------------------------------------------------------------------------------------


def test_twenty_thousand_addresses(bench):
    """All of them in force, found again without drift, and the daemon's answers small."""
    chance = random.Random(1)
    addresses = [socket.inet_ntoa(chance.randrange(1 << 24, 198 << 24).to_bytes(4, "big")) for _ in range(20_000)]
    (bench.context.etc / "lists").mkdir()
    (bench.context.etc / "lists/big.txt").write_text("\n".join([*addresses, OUT4]))
    bench.apply(ZONES + "[rules.a]\nservice='tcp/22'\n[lists.big]\nfile = 'big.txt'\n")
    status = bench.call("status")
    assert status["state"] == "on"
    assert 19_000 < status["lists"]["big"] <= 20_001
    assert len(json.dumps(status)) < 10_000
    with bench.device.listen(22):
        assert not bench.out.connects(DEVICE4, 22)
        assert bench.out.connects(DEVICE6, 22)
    listing = bench.nft("-j", "list", "set", "inet", "mixos", "list-big-v4")
    assert len(json.loads(listing)["nftables"][1]["set"]["elem"]) == status["lists"]["big"]


def test_a_long_list_comes_as_a_file(bench, tmp_path):
    """More addresses than a line of the API could hold, at once; a wrong line changes nothing."""
    chance = random.Random(2)
    addresses = [socket.inet_ntoa(chance.randrange(1 << 24, 198 << 24).to_bytes(4, "big")) for _ in range(20_000)]
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("\n".join([*addresses, OUT4]))
    bad.write_text("203.0.113.9\nnonsense\n")
    bench.apply(ZONES)

    async def send(daemon: Daemon) -> Any:
        with bad.open("rb") as file, pytest.raises(ConfigError) as caught:
            await daemon.call("block", [file.fileno()], content=0)
        assert caught.value.reason == "firewall-list"
        assert (await daemon.call("status"))["lists"] == {}
        with good.open("rb") as file:
            await daemon.call("block", [file.fileno()], content=0, addresses=["203.0.113.5"])
        return (await daemon.call("status"))["lists"]

    assert 19_000 < bench.run(send)["blocked"] <= 20_002


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_line(bench, monkeypatch, tmp_path):
    """Every command against the part and the kernel; what --json prints is what the table is made of."""

    def ask(method: str, params: dict[str, object] | None = None, descriptors: Sequence[int] = (), **_: object) -> Any:
        async def work(daemon: Daemon) -> Any:
            found = await daemon.call(method.partition(".")[2], descriptors, **(params or {}))
            return json.loads(json.dumps(found))

        return bench.run(work)

    def mixctl(*words: str, status: int = 0) -> str:
        result = CliRunner().invoke(cli.firewall, words)
        assert result.exit_code == status, result.output or result.exception
        return result.stdout

    monkeypatch.setattr(cli, "ask", ask)
    bench.write(ZONES)
    assert "+\t" in mixctl("allow", "http", "--zone", "wan", "--dry-run")
    answer = json.loads(mixctl("allow", "http", "--zone", "wan", "--from", OUT4, "--limit", "9/second", "--json"))
    assert answer["applied"]
    mixctl("deny", "tcp/25", "--reject", "--name", "nomail")
    mixctl("forward", "tcp/8080", HOME4, "80", "--zone", "wan")
    mixctl("nat", "lan", "wan", "--no-masquerade")
    mixctl("zone", "guests", "--source", "203.0.113.0/24", "--allow", "dns")
    many = tmp_path / "many.txt"
    many.write_text("# bots\n" + "".join(f"203.0.{n // 250}.{n % 250}\n" for n in range(750)))
    mixctl("block", "198.51.100.77", "--file", str(many))
    rows = json.loads(mixctl("list", "--json"))["entries"]
    names = {row["name"] for row in rows}
    assert {"rules.allow-http-wan", "rules.nomail", "nat.lan-to-wan", "lists.blocked", "zones.guests"} <= names
    assert all(name in mixctl("list") for name in names)
    assert json.loads(mixctl("status", "--json"))["lists"]["blocked"] == 4
    assert mixctl("diff").strip()
    assert json.loads(mixctl("test", "http", "--from", OUT4, "--interface", "wan0", "--json"))["by"] == (
        "rules.allow-http-wan"
    )
    mixctl("remove", "nomail")
    assert "nomail" not in mixctl("list")
    mixctl("apply", "--confirm", "60")
    assert mixctl("revert").strip()
    mixctl("reset")
    told = json.loads(mixctl("status", "--json"))
    assert told["default-zone"] == "lan"
    assert {"ssh", "https"} <= set(told["services"])  # what Tab offers
    assert "guests" not in bench.written
