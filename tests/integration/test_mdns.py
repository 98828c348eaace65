"""The mDNS responder against Avahi, another implementation, and against itself; two network namespaces on one cable."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from zeroconf import DNSIncoming

from common.errors import MixosError
from daemon.client.connection import call
from daemon.linux import process
from tests.integration.namespaces import Space, cable, spaces
from tests.waiting import PATIENCE

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path={path}</listen><policy context="default"><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""
AVAHI = """[server]
host-name={name}
allow-interfaces=eth0
[publish]
publish-workstation=yes
"""


WEB = '[services.web]\ntype = "_http._tcp"\nport = 8080\nname = "My web"\ntxt = { path = "/x" }\n'


@dataclass(frozen=True)
class Bench:
    """Two namespaces, `one` with 192.0.2.1 and `two` with 192.0.2.2, and a folder."""

    one: Space
    two: Space
    folder: Path

    def write(self, name: str, host: str, more: str = "") -> None:
        (self.folder / name / "etc").mkdir(parents=True, exist_ok=True)
        (self.folder / name / "etc/mdns.toml").write_text(f'hostname = "{host}"\n{more}')

    async def ask(self, name: str, method: str, **params: object) -> Any:
        """A question to a daemon, which may take all the time that it needs."""
        return await asyncio.to_thread(
            call, f"mdns.{method}", params, self.folder / name / "run/mixosd.sock", timeout=60.0
        )

    async def reason(self, name: str, method: str, **params: object) -> str:
        with pytest.raises(MixosError) as caught:
            await self.ask(name, method, **params)
        return caught.value.reason

    async def status(self, name: str) -> dict[str, Any]:
        try:
            return dict(await self.ask(name, "status"))
        except MixosError:  # not up yet
            return {}

    async def host(self, name: str) -> str | None:
        return (await self.status(name)).get("host")

    async def announces(self, name: str, *services: str) -> bool:
        return [row["name"] for row in (await self.status(name)).get("services", [])] == list(services)

    @asynccontextmanager
    async def responder(self, name: str, space: Space) -> AsyncIterator[asyncio.subprocess.Process]:
        """mixosd with this part alone, in a namespace."""
        program = [sys.executable, "-m", "daemon.main", "--folder", self.folder / name, "--part", "mdns"]
        async with background("ip", "netns", "exec", space.name, *map(str, program)) as child:
            yield child

    @asynccontextmanager
    async def avahi(self, name: str, called: str = "") -> AsyncIterator[Callable[..., Awaitable[str]]]:
        """avahi-daemon in `two`, with a bus of its own; gives a function that runs an Avahi program there.

        called: the name that it must come to have, when that is another one.
        """
        bus, config = self.folder / "bus", self.folder / "avahi.conf"
        (self.folder / "bus.conf").write_text(BUS.format(path=bus))
        config.write_text(AVAHI.format(name=name))
        enter = ("ip", "netns", "exec", self.two.name)
        address = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
        private = "mount -t tmpfs tmpfs /run && mkdir /run/avahi-daemon && exec avahi-daemon --no-drop-root "
        private += f"--no-chroot --no-rlimits -f {config}"

        async def program(*words: str) -> str:
            answer = await process.capture(["/usr/bin/env", *enter, *words], seconds=30, extra=address)
            return answer.out.decode()

        async with background("dbus-daemon", f"--config-file={self.folder}/bus.conf", "--nofork"):
            await eventually(bus.exists)
            async with background(*enter, "unshare", "-m", "sh", "-c", private, **address):

                async def answers() -> bool:
                    return bool(await program("avahi-resolve", "-n", f"{called or name}.local"))

                await eventually(answers)
                yield program


@asynccontextmanager
async def background(*words: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(*words, env={**os.environ, **environment})
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
        await ended(child)


async def ended(child: asyncio.subprocess.Process) -> int:
    return await asyncio.wait_for(child.wait(), PATIENCE)


async def eventually(question: Callable[[], Any], tries: int = 300) -> None:
    """Wait until an answer is true; far longer than it ever takes."""
    for _ in range(tries):
        answer = question()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"{question} never came true")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with spaces("one", "two") as (one, two):
        cable(one, "eth0", two, "eth0", {})
        one.ip("address", "add", "192.0.2.1/24", "dev", "eth0")
        two.ip("address", "add", "192.0.2.2/24", "dev", "eth0")
        yield Bench(one, two, tmp_path)


def test_avahi_finds_us_and_we_find_avahi(bench):
    bench.write("a", "kitchen", WEB)

    async def main() -> None:
        async with bench.avahi("laptop") as avahi, bench.responder("a", bench.one) as child:
            await eventually(lambda: bench.announces("a", "kitchen._ssh._tcp", "My web._http._tcp"))
            assert (await avahi("avahi-resolve", "-4", "-n", "kitchen.local")).split() == ["kitchen.local", "192.0.2.1"]
            rows = [line.split(";") for line in (await avahi("avahi-browse", "-rpt", "_ssh._tcp")).splitlines()]
            assert ["kitchen", "kitchen.local", "22"] in [[row[3], row[6], row[8]] for row in rows if row[0] == "="]
            assert '8080;"path=/x"' in await avahi("avahi-browse", "-rpt", "_http._tcp")
            found = await bench.ask("a", "browse", type="_workstation._tcp", seconds=3)
            assert [row["host"] for row in found["services"]] == ["laptop.local"]
            assert "192.0.2.2" in found["services"][0]["addresses"]
            types = (await bench.ask("a", "browse", seconds=3))["types"]
            assert {"_ssh._tcp", "_workstation._tcp"} <= set(types)
            # Goodbye: what was announced is gone for others at once, not when it would have expired.
            child.terminate()
            assert await ended(child) == 0

            async def gone() -> bool:
                return "kitchen" not in await avahi("avahi-browse", "-rpt", "_ssh._tcp")

            await eventually(gone)

    asyncio.run(main())


def test_a_name_that_avahi_has_is_not_taken(bench):
    bench.write("a", "kitchen")

    async def main() -> None:
        async with bench.avahi("kitchen") as avahi, bench.responder("a", bench.one):
            await eventually(lambda: bench.host("a"))
            status = await bench.status("a")
            assert (status["host"], status["wanted"]) == ("kitchen-2.local", "kitchen.local")
            assert "192.0.2.1" in await avahi("avahi-resolve", "-4", "-n", "kitchen-2.local")
            assert "192.0.2.2" in await avahi("avahi-resolve", "-4", "-n", "kitchen.local")

    asyncio.run(main())


# case: N8
def test_a_name_that_we_have_is_not_given_up(bench):
    bench.write("a", "kitchen")
    for words in (("link", "set", "eth0", "addrgenmode", "none"), ("-6", "address", "flush", "dev", "eth0")):
        bench.one.ip(*words)  # an address that comes makes the responder ask for its name: here nothing but Avahi does

    async def main() -> None:
        async with bench.responder("a", bench.one):
            await eventually(lambda: bench.announces("a", "kitchen._ssh._tcp"))
            async with bench.avahi("kitchen", called="kitchen-2") as avahi:
                assert "192.0.2.2" in await avahi("avahi-resolve", "-4", "-n", "kitchen-2.local")
                assert "192.0.2.1" in await avahi("avahi-resolve", "-4", "-n", "kitchen.local")
                status = await bench.status("a")
                assert (status["host"], status["conflicts"]) == ("kitchen.local", 0)

    asyncio.run(main())


# case: N9
def test_a_strangers_name_that_is_none_ends_no_list(bench):
    bench.write("a", "kitchen")

    async def main() -> None:
        async with bench.avahi("laptop"), bench.responder("a", bench.one):
            await eventually(lambda: bench.host("a"))
            enter = ("ip", "netns", "exec", bench.two.name)
            address = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bench.folder}/bus"}
            words = ("avahi-publish", "-s", "odd\x07name", "_http._tcp", "80")
            other = ("avahi-publish", "-s", "plain", "_http._tcp", "81")
            async with background(*enter, *words, **address), background(*enter, *other, **address):

                async def both() -> bool:
                    found = await bench.ask("a", "browse", type="_http._tcp", seconds=2)
                    return [row["name"] for row in found["services"]] == ["plain"] and found["skipped"] == 1

                await eventually(both, 20)

    asyncio.run(main())


# case: N11
def test_a_name_needs_no_service(bench):
    bench.write("a", "kitchen", "ssh = false\n")

    async def main() -> None:
        async with bench.responder("a", bench.one), bench.avahi("laptop") as avahi:
            await eventually(lambda: bench.host("a"))
            assert "192.0.2.1" in await avahi("avahi-resolve", "-4", "-n", "kitchen.local")

    asyncio.run(main())


def goodbyes(server: socket.socket) -> set[str]:
    """The names of records that were withdrawn in what a socket has received."""
    server.setblocking(False)
    found = set()
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = DNSIncoming(server.recv(9000))
            found |= {record.name for record in packet.answers() if record.ttl == 0 and packet.is_response()}
    return found


# case: N11
def test_only_what_changes_is_withdrawn(bench):
    bench.write("a", "kitchen", "[services.web]\ntype = '_http._tcp'\nport = 80\nunit = 'web'\n")
    state = bench.folder / "a/run/units/web/state"
    state.parent.mkdir(parents=True)

    def listen() -> socket.socket:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("224.0.0.251", 5353))
        group = socket.inet_aton("224.0.0.251") + socket.inet_aton("192.0.2.2")
        server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        return server

    async def main() -> None:
        async with bench.responder("a", bench.one):
            await eventually(lambda: bench.announces("a", "kitchen._ssh._tcp"))
            with bench.two.inside(listen) as server:
                for phase, names in (
                    ("running", ["kitchen._ssh._tcp", "kitchen._http._tcp"]),
                    ("ended", ["kitchen._ssh._tcp"]),
                ):
                    assert goodbyes(server) == set()
                    state.write_text(f"phase {phase}\npid 1\n")
                    await bench.ask("a", "apply")
                    await eventually(lambda names=names: bench.announces("a", *names))
                withdrawn = goodbyes(server)
                assert "kitchen._http._tcp.local." in withdrawn
                assert not withdrawn & {"kitchen.local.", "kitchen._ssh._tcp.local.", "_ssh._tcp.local."}

    asyncio.run(main())


def test_two_that_meet_later_end_with_two_names(tmp_path):
    """Each has the name on a network of its own; then somebody plugs the networks together."""
    with spaces("one", "two", "switch") as (one, two, switch):
        bench = Bench(one, two, tmp_path)
        switch.ip("link", "add", "br0", "type", "bridge")
        switch.ip("link", "set", "br0", "up")
        for number, space in enumerate((one, two), 1):
            cable(space, "eth0", switch, f"port{number}", {"eth0": (f"192.0.2.{number}/24",)})
            bench.write(str(number), "kitchen")
        switch.ip("link", "set", "port1", "master", "br0")

        async def both() -> set[str | None]:
            return {await bench.host("1"), await bench.host("2")}

        async def same() -> bool:
            return await both() == {"kitchen.local"}

        async def different() -> bool:
            found = await both()
            return None not in found and len(found) == 2

        async def main() -> None:
            async with bench.responder("1", one), bench.responder("2", two):
                await eventually(same)
                switch.ip("link", "set", "port2", "master", "br0")
                two.ip("link", "set", "lo", "down")  # any change of the links makes it ask; else it does every minute
                await eventually(different)
                assert "kitchen-2.local" in await both()

        asyncio.run(main())


def test_it_waits_for_a_network_and_follows_addresses(bench):
    bench.write("a", "kitchen")
    bench.one.ip("address", "flush", "dev", "eth0")
    bench.one.ip("link", "set", "eth0", "down")

    async def running(name: str) -> bool:
        return bool((await bench.status(name)).get("running"))

    async def addresses() -> list[str]:
        return (await bench.status("a")).get("addresses", [])  # type: ignore[no-any-return]

    async def main() -> None:
        async with bench.responder("a", bench.one):
            await eventually(lambda: running("a"))
            assert await addresses() == []
            assert await bench.reason("a", "browse", seconds=1) == "mdns-no-network"
            bench.one.ip("link", "set", "eth0", "up")
            for address, gone in (("192.0.2.7", "none"), ("192.0.2.8", "192.0.2.7")):
                if gone != "none":
                    bench.one.ip("address", "del", f"{gone}/24", "dev", "eth0")
                bench.one.ip("address", "add", f"{address}/24", "dev", "eth0")

                async def there(address: str = address, gone: str = gone) -> bool:
                    found = await addresses()
                    return address in found and gone not in found

                await eventually(there)

    asyncio.run(main())


def test_what_is_no_name_and_a_process_that_dies(bench):
    bench.write("a", "kitchen")

    async def main() -> None:
        async with bench.responder("a", bench.one):
            await eventually(lambda: bench.host("a"))
            for kind in ("_http", "x" * 300, "_a._b._c", "", "..", "_http._tcp\u0000"):
                assert await bench.reason("a", "browse", type=kind) == "rpc-params"
            assert await bench.host("a") == "kitchen.local"
            status = await asyncio.to_thread(call, "status", {}, bench.folder / "a/run/mixosd.sock")
            os.kill(status["parts"]["mdns"]["process"]["pid"], signal.SIGKILL)

            async def restarted() -> bool:
                found = await asyncio.to_thread(call, "status", {}, bench.folder / "a/run/mixosd.sock")
                return bool(found["parts"]["mdns"]["process"]["restarts"])

            await eventually(restarted)
            await eventually(lambda: bench.host("a"))

    asyncio.run(main())


def test_it_is_switched_and_follows_units(bench):
    bench.write("a", "kitchen", "[services.web]\ntype = '_http._tcp'\nport = 80\nunit = 'web'\n")

    async def main() -> None:
        async with bench.responder("a", bench.one):
            await eventually(lambda: bench.announces("a", "kitchen._ssh._tcp"))
            state = bench.folder / "a/run/units/web/state"
            state.parent.mkdir(parents=True)
            state.write_text("phase running\npid 1\n")
            assert await bench.ask("a", "apply") == {"enabled": True}
            await eventually(lambda: bench.announces("a", "kitchen._ssh._tcp", "kitchen._http._tcp"))
            found = await bench.ask("a", "browse", type="_http._tcp", seconds=1)
            assert [row["port"] for row in found["services"]] == [80]
            assert await bench.ask("a", "off") == {"enabled": False}
            assert await bench.ask("a", "status") == {"enabled": False, "running": False}
            assert await bench.reason("a", "browse") == "mdns-off"
            assert "enabled = false" in (bench.folder / "a/etc/mdns.toml").read_text()
        async with bench.responder("a", bench.one):
            await eventually(lambda: bench.status("a"))
            status = await asyncio.to_thread(call, "status", {}, bench.folder / "a/run/mixosd.sock")
            assert status["parts"]["mdns"]["process"]["pid"] is None  # off: nothing runs
            assert await bench.ask("a", "on") == {"enabled": True}
            await eventually(lambda: bench.host("a"))

    asyncio.run(main())
