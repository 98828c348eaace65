"""mdns.toml, what the process is told, and what is shown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import ifaddr
import pytest
from zeroconf import DNSIncoming, DNSOutgoing, DNSQuestion, ServiceInfo

from common.errors import ConfigError
from common.tomlfile import parse
from daemon.core.part import Context
from daemon.parts.mdns.part import MdnsFile, MdnsPart
from daemon.parts.mdns.responder import Network, Responder, network
from daemon.parts.mdns.verbs import _found, _status

PATH = Path("mdns.toml")


class Asked:
    """In place of the process: keeps what it is told."""

    def __init__(self) -> None:
        self.state = "off"
        self.told: list[dict[str, Any]] = []

    def begin(self) -> None:
        self.state = "running"

    async def stop(self) -> None:
        self.state = "off"

    async def call(self, name: str, params: Any, seconds: float) -> Any:
        assert name == "want"
        self.told.append(params)
        return {}


def part_in(folder: Path) -> tuple[MdnsPart, Asked]:
    part, asked = MdnsPart(Context(run=folder, etc=folder)), Asked()
    part.worker = cast(Any, asked)
    return part, asked


def test_the_default_announces_ssh_under_the_systems_name(tmp_path):
    part, asked = part_in(tmp_path)
    asyncio.run(part.refresh())
    host = Path("/proc/sys/kernel/hostname").read_text().strip().partition(".")[0]
    (told,) = asked.told
    assert (asked.state, told["hostname"], told["interfaces"]) == ("running", host, [])
    assert [(one["type"], one["port"]) for one in told["services"]] == [("_ssh._tcp", 22)]


def test_it_follows_units_and_is_told_only_what_is_new(tmp_path):
    (tmp_path / "mdns.toml").write_text("[services.web]\ntype = '_http._tcp'\nport = 80\nunit = 'web'\n")
    part, asked = part_in(tmp_path)

    async def main() -> None:
        await part.start()
        await asyncio.sleep(0)
        part.context.events.publish("service.state", "other", state="running")
        (tmp_path / "units/web").mkdir(parents=True)
        (tmp_path / "units/web/state").write_text("phase running\npid 1\n")
        part.context.events.publish("service.state", "web", state="running")
        while len(asked.told) < 2:
            await asyncio.sleep(0.01)
        await part.stop()

    asyncio.run(main())
    assert [len(one["services"]) for one in asked.told] == [1, 2]


def test_off_means_that_nothing_runs(tmp_path):
    (tmp_path / "mdns.toml").write_text("enabled = false\n")
    part, asked = part_in(tmp_path)
    asked.begin()
    asyncio.run(part.refresh())
    assert (asked.state, asked.told) == ("off", [])


@pytest.mark.parametrize(
    "text",
    [
        "hostname = 'a.b'",
        "hostname = '-a'",
        "interfaces = ['eth0/x']",
        "[services.a]\ntype = 'http'\nport = 80",
        "[services.a]\ntype = '_http._sctp'\nport = 80",
        "[services.a]\ntype = '_http._tcp'\nport = 0",
        "[services.a]\ntype = '_http._tcp'\nport = 80\nunit = '../x'",
        "[services.a]\ntype = '_http._tcp'\nport = 80\nname = \"a\\nb\"",
        "[services.a]\ntype = '_http._tcp'\nport = 80\ntxt = { 'a=b' = 'c' }",
        "[services.a]\ntype = '_http._tcp'\nport = 80\ntxt = { a = 1 }",
        "enabled = 1",
        "[services.a]\ntype = '_http._tcp'\nport = 80\nname = '" + "ü" * 31 + "'",
        "[services.a]\ntype = '_http._tcp'\nport = 80\ntxt = { note = '" + "ü" * 126 + "' }",
        "[services.a]\ntype = '_http._tcp'\nport = 80\n[services.a.txt]\n"
        + "".join(f"k{n} = '{'x' * 250}'\n" for n in range(6)),
    ],
)
def test_mistakes(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH, MdnsFile)
    assert caught.value.reason == "config-value"


# case: N10
def test_what_fits_is_counted_in_bytes():
    """255 for a string with its key, 63 for a name, and a line is named where there are more."""
    text = (
        "[services.a]\ntype = '_http._tcp'\nport = 80\nname = '"
        + "ü" * 30
        + "'\ntxt = { note = '"
        + "ü" * 125
        + "' }\n"
    )
    service = parse(text, PATH, MdnsFile).services["a"]
    ServiceInfo("_http._tcp.local.", f"{service.name}-2._http._tcp.local.", properties=dict(service.txt))
    with pytest.raises(ConfigError) as caught:
        parse(text.replace("note", "notes"), PATH, MdnsFile)
    assert caught.value.message.startswith("mdns.toml:5:")


def test_strangers_do_not_write_to_the_terminal():
    row = {"name": "\x1b[2Jx", "host": "h\n", "port": 1, "addresses": ["192.0.2.1"], "txt": {"k\x07": "\x9b1m"}}
    shown = _found({"services": [row], "skipped": 0})
    assert not any((ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160 for char in shown)
    assert len(shown.splitlines()) == 2


def test_a_new_name_is_told():
    names = {"running": True, "enabled": True, "addresses": [], "services": [], "problem": None}
    same = _status({**names, "wanted": "a.local", "host": "a.local"})
    assert len(_status({**names, "wanted": "a.local", "host": "a-2.local"})) > len(same) + 2


# case: N22
def test_a_persons_interfaces_are_spoken_on(monkeypatch):
    """Whatever they are called; those that programs make for themselves are not."""
    own = ["lo", "wg0", "tun3", "tap0", "docker0", "veth1a2b", "br-0123456789ab", "dummy0", "ifb1"]
    theirs = ["eth0", "br-lan", "lobby", "wgarden", "tunnel", "tapas", "dockside", "br-0123456789"]
    adapters = [
        ifaddr.Adapter(name, name, [ifaddr.IP(f"192.0.2.{number}", 24, name)], number)
        for number, name in enumerate([*own, *theirs], 1)
    ]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters)
    assert network([]).choice == tuple(f"192.0.2.{number}" for number in range(len(own) + 1, len(own + theirs) + 1))
    assert network(["wg0"]).choice == ("192.0.2.2",)


# case: N8
def test_the_library_still_shows_us_questions():
    """There is no public way to see them: a release that moves its query handler makes this fail, not the defence."""
    said: list[DNSOutgoing] = []

    async def scenario() -> None:
        responder = Responder(Network(("127.0.0.1",), (bytes((192, 0, 2, 1)),)), lambda: None)
        library = responder.zeroconf.zeroconf
        await library.async_wait_for_start()
        library.async_send = lambda out, *_, **__: said.append(out)
        responder.host = "kitchen"
        responder._own()
        said.clear()
        probe = DNSOutgoing(0)
        probe.add_question(DNSQuestion("Kitchen.local.", 255, 1))
        library.engine.protocols[0].datagram_received(probe.packets()[0], ("192.0.2.7", 5353))
        responder.owned = False
        await responder.close()

    asyncio.run(scenario())
    answers = [one for out in said for one in DNSIncoming(out.packets()[0]).answers()]
    assert [(one.name, one.address) for one in answers] == [("kitchen.local.", bytes((192, 0, 2, 1)))], (
        "zeroconf no longer hands questions to Zeroconf.query_handler.handle_assembled_query: see Responder and _Asked"
    )
