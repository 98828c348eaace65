"""The scripts of early boot and the daemon together: who keeps the DHCP client. BusyBox is at both ends of a cable."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildsys.run import run
from common import addresses as texts
from common.settings.model import Settings, parse
from common.settings.render import render
from tests.hostpackages import ROOT
from tests.integration.boxes import CALLER, NOTHING, Box, addresses, cable, ip, routes
from tests.waiting import ended

pytestmark = pytest.mark.usefixtures("namespace")
INIT = ROOT / "rootfs/skeleton/usr/lib/mixos/init"
SECONDS = 60.0
STATIC = '[interface.eth0]\nmode = "static"\naddresses = ["192.0.2.9/24"]\n'
DHCP = '[interface.eth0]\nmode = "dhcp"\n'


async def until(condition: object, seconds: float = SECONDS) -> None:
    """Poll until `condition()` holds."""
    assert callable(condition)
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not come")


def leased() -> bool:
    """Whether the interface has an address of the server's range; which one depends on its random hardware address."""
    return bool(addresses("eth0") & {f"192.0.2.{last}/24" for last in range(100, 111)})


class Cabled(Box):
    """The part, the script `network` of early boot running beside it, and a DHCP server behind the cable."""

    def __init__(self, tmp: Path, settings: str = "") -> None:
        super().__init__(tmp)
        (self.context.etc / "network.conf").write_text(settings)
        self.tmp = tmp
        self.server: int | None = None
        for folder in ("run/net", "init", "bin", "sys/eth0"):
            (tmp / folder).mkdir(parents=True)
        for program in ("ip", "arping", "udhcpc"):
            (tmp / "bin" / program).symlink_to("/usr/bin/busybox")
        for name in ("network", "dhcp", "functions", "udhcpc"):
            text = (INIT / name).read_text().replace("/run/mixos", str(tmp / "run"))
            text = text.replace("/usr/lib/mixos/init", str(tmp / "init")).replace("/etc/mixos", str(tmp / "etc"))
            text = text.replace("/usr/sbin/udhcpc", f"{tmp}/bin/udhcpc")
            text = text.replace("/sys/class/net", str(tmp / "sys")).replace("PATH=", f"PATH={tmp}/bin:")
            (tmp / "init" / name).write_text(text)
            (tmp / "init" / name).chmod(0o755)
        # Both ends are this kernel's: the server's answers for its own addresses alone.
        Path("/proc/sys/net/ipv4/conf/far0/arp_ignore").write_text("1")
        (link,) = ip("link", "show", "eth0")
        facts = {"ifindex": link["ifindex"], "mtu": 1500, "carrier_up_count": 1, "address": link["address"]}
        for name, value in facts.items():
            (tmp / "sys/eth0" / name).write_text(f"{value}\n")
        if settings:  # are for hardware alone
            (tmp / "sys/eth0/type").write_text("1\n")
            (tmp / "sys/eth0/device").mkdir()
        self.serve("192.0.2", router="192.0.2.1")
        self.script = self._spawn("ash", str(tmp / "init/network"))

    def serve(self, net: str, first: int = 100, last: int = 110, router: str = "") -> None:
        """A DHCP server for the network `net`.0/24, in place of the one before."""
        if self.server:
            os.kill(self.server, signal.SIGKILL)
            ended(self.server)
        run(["ip", "address", "flush", "dev", "far0"])
        run(["ip", "address", "add", f"{net}.1/24", "dev", "far0"])
        (self.tmp / "leases").write_bytes(b"")
        lines = [f"start {net}.{first}", f"end {net}.{last}", "interface far0", f"lease_file {self.tmp}/leases"]
        lines += ["opt dns 192.0.2.53", "opt subnet 255.255.255.0", "option lease 3600"]
        lines += [f"opt router {router}"] if router else []
        (self.tmp / "udhcpd.conf").write_text("\n".join(lines) + "\n")
        self.server = self._spawn("udhcpd", "-f", str(self.tmp / "udhcpd.conf"))

    def _spawn(self, *words: str) -> int:
        output = (os.POSIX_SPAWN_OPEN, 1, str(self.tmp / "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        both = [output, (os.POSIX_SPAWN_DUP2, 1, 2)]
        return os.posix_spawn("/usr/bin/busybox", ["busybox", *words], {}, file_actions=both, setpgroup=0)

    def close(self) -> None:
        for pid in (self.server, self.script):
            assert pid
            os.killpg(pid, signal.SIGKILL)  # the script's client is in its group
            ended(pid)
        shutil.rmtree(self.tmp / "run")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Cabled]:
    cable()
    box = Cabled(tmp_path)
    yield box
    box.close()


def test_the_client_follows_the_file(box: Cabled) -> None:
    """Lease, then a fixed address, then a lease again, then nothing: one client at a time, and no address too many."""

    async def scenario() -> None:
        folder = box.context.run / "net"
        await box.apply(DHCP)
        await until(leased)
        await until(lambda: (folder / "eth0.address").exists())
        assert box.resolv() == "nameserver 192.0.2.53\n"
        client = (folder / "eth0.pid").read_text()
        assert (await box.apply(DHCP))["steps"] == []
        again = Box(box.context.etc.parent)
        await again.part.start()
        await again.part.stop()
        assert (folder / "eth0.pid").read_text() == client  # neither a second apply nor a new daemon disturbs it

        await box.apply(STATIC)
        assert addresses("eth0") == {"192.0.2.9/24"}
        assert not Path(f"/proc/{client.strip()}").exists()
        assert not (folder / "eth0.started").exists()
        assert (folder / "eth0.address").read_text() == "192.0.2.9\n"
        assert box.resolv() == ""

        await box.apply(DHCP)
        await until(leased)
        await until(lambda: "192.0.2.9/24" not in addresses("eth0"))

        (box.context.etc / "network.conf").write_text("MODE=static\nINTERFACE=eth9\nADDRESS=192.0.2.77/24\n")
        await box.apply("")  # the settings have nothing for eth0: its client ends
        assert not (folder / "eth0.started").exists()
        assert not (folder / "eth0.want").exists()
        assert (await box.part.check(CALLER, NOTHING))["steps"] == []

    asyncio.run(scenario())


def test_another_lease_after_a_trial_replaces_the_one_that_came_back(box: Cabled) -> None:
    async def scenario() -> None:
        folder = box.context.run / "net"
        await box.apply(DHCP)
        await until(lambda: (folder / "eth0.address").exists())
        (old,) = addresses("eth0")
        await box.apply(STATIC, confirm=600)
        run(["ip", "link", "set", "far0", "down"])  # no server for a while
        await box.part.revert(CALLER, NOTHING)
        await until(lambda: (folder / "eth0.pid").exists())
        await asyncio.sleep(1)
        assert addresses("eth0") == {old}
        # The server gives others now: what it gave to somebody else would be ours, too.
        box.serve("192.0.2", 150, 160)
        run(["ip", "link", "set", "far0", "up"])
        await until(lambda: (folder / "eth0.address").exists())
        (address,) = addresses("eth0")
        assert address != old
        assert not (folder / "eth0.earlier").exists()

    asyncio.run(scenario())


def test_a_client_that_has_just_died_does_not_come_back(box: Cabled) -> None:
    """The script starts one again after 5 s; within them the interface has become somebody else's."""

    async def scenario() -> None:
        folder = box.context.run / "net"
        await box.apply(DHCP)
        await until(lambda: (folder / "eth0.address").exists())
        os.kill(int((folder / "eth0.pid").read_text()), signal.SIGKILL)
        await asyncio.sleep(0.5)
        await box.apply(STATIC)
        await until(lambda: not (folder / "eth0.started").exists())
        assert box.part.engine.early.client("eth0") is None
        assert addresses("eth0") == {"192.0.2.9/24"}
        assert (folder / "eth0.address").read_text() == "192.0.2.9\n"

    asyncio.run(scenario())


def test_there_is_one_client_also_after_one_died(box: Cabled) -> None:
    async def scenario() -> None:
        folder = box.context.run / "net"

        def clients() -> int:
            found = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
            return sum(b"udhcpc\0-f" in words and str(folder).encode() in words for words in found)

        await box.apply(DHCP)
        await until(lambda: (folder / "eth0.address").exists())
        os.kill(int((folder / "eth0.pid").read_text()), signal.SIGKILL)
        await asyncio.sleep(0.5)
        again = Box(box.context.etc.parent)
        await again.part.start()
        await again.part.stop()
        await asyncio.sleep(7)  # the script starts one again after 5 s
        assert clients() == 1

    asyncio.run(scenario())


class Leases:
    """The script `dhcp`, called as udhcpc does, with BusyBox's `ip` and a folder in place of /sys/class/net."""

    def __init__(self, tmp: Path) -> None:
        self.net = tmp / "run/net"
        self.sys = tmp / "sys/eth0"
        self.resolv = tmp / "run/dns/resolv.conf"
        self.script = tmp / "dhcp"
        for folder in (self.net, self.sys, tmp / "bin"):
            folder.mkdir(parents=True)
        (self.sys / "ifindex").write_text("7\n")
        (self.sys / "mtu").write_text("1500\n")
        (self.sys / "address").write_text("02:00:00:00:00:ff\n")
        for program in ("ip", "arping"):
            (tmp / "bin" / program).symlink_to("/usr/bin/busybox")
        text = (INIT / "dhcp").read_text().replace("/run/mixos", str(tmp / "run")).replace("PATH=", f"PATH={tmp}/bin:")
        self.script.write_text(text.replace("/sys/class/net", str(tmp / "sys")))

    def tell(self, what: str, **given: str) -> set[tuple[str, str, str]]:
        """The routes after it."""
        words = [f"{key}={value}" for key, value in given.items()]
        run(["env", "interface=eth0", *words, "/usr/bin/busybox", "sh", self.script, what])
        return routes()

    def lease(
        self, what: str, router: str = "", ip: str = "192.0.2.77", mask: str = "24", **others: str
    ) -> set[tuple[str, str, str]]:
        return self.tell(what, router=router, ip=ip, mask=mask, **others)

    def mtu(self) -> str:
        return (self.sys / "mtu").read_text().strip()


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    cable()
    run(["ip", "link", "set", "eth0", "up"])
    return Leases(tmp_path)


def test_routes_follow_the_lease(leases: Leases) -> None:
    """A router in the lease's network, outside of it (as with /32), another one, none."""
    lease = leases.lease
    assert lease("bound", "198.51.100.1 198.51.100.2", mask="32") == {
        ("198.51.100.1", "", "eth0"),
        ("default", "198.51.100.1", "eth0"),
    }
    assert lease("renew", "198.51.100.2", mask="32") == {
        ("198.51.100.2", "", "eth0"),
        ("default", "198.51.100.2", "eth0"),
    }
    assert lease("bound", "192.0.2.1", "192.0.2.78") == {("default", "192.0.2.1", "eth0")}
    assert lease("renew", "192.0.2.2", "192.0.2.78") == {("default", "192.0.2.2", "eth0")}
    assert lease("renew", "", "192.0.2.78") == set()
    assert addresses("eth0") == {"192.0.2.78/24"}


# case: N6
def test_what_a_lease_brings_goes_when_the_next_one_lacks_it(leases: Leases) -> None:
    cloud = "198.51.100.1/32 0.0.0.0 0.0.0.0/0 198.51.100.1 203.0.113.0/24 198.51.100.9"  # as behind many hypervisors
    whole = {
        ("198.51.100.1", "", "eth0"),
        ("default", "198.51.100.1", "eth0"),
        ("198.51.100.9", "", "eth0"),
        ("203.0.113.0/24", "198.51.100.9", "eth0"),
    }
    names = {"search": "a.example b.example", "domain": "old.example", "dns": "192.0.2.53", "ntpsrv": "192.0.2.123"}
    assert leases.lease("bound", "192.0.2.66", mask="32", staticroutes=cloud, mtu="1400", **names) == whole
    assert leases.mtu() == "1400"
    assert leases.resolv.read_text() == "search a.example b.example\nnameserver 192.0.2.53\n"
    assert (leases.net / "eth0.ntp").read_text() == "192.0.2.123\n"
    assert leases.lease("renew", mask="32", msstaticroutes=cloud, mtu="1400") == whole  # the same by another option
    assert leases.lease("renew", "198.51.100.2", mask="32", domain="old.example") == {
        ("198.51.100.2", "", "eth0"),
        ("default", "198.51.100.2", "eth0"),
    }
    assert leases.mtu() == "1500"
    assert leases.resolv.read_text() == "search old.example\n"
    assert (leases.net / "eth0.ntp").read_text() == ""
    leases.lease("renew", mask="32", staticroutes=cloud, mtu="1300")
    assert leases.tell("deconfig") == set()
    assert leases.mtu() == "1500"
    assert addresses("eth0") == set()


# case: N6
def test_a_lease_is_bounded(leases: Leases) -> None:
    many = " ".join(f"10.{n}.0.0/16 192.0.2.1" for n in range(200))
    assert len(leases.lease("bound", staticroutes=many)) == 64
    assert leases.lease("renew", staticroutes="garbage") == set()
    search = "* a;b $(reboot) good.example " + " ".join(f"{'x' * 60}{n}.example" for n in range(9))
    leases.lease("renew", search=search)
    line = leases.resolv.read_text()
    assert line.startswith("search good.example x")
    assert len(line) < 256  # more than that musl ignores
    for mtu in ("1400", "68", "", "garbage", "99999", "9" * 30):  # one that switches IPv6 off is not taken
        leases.lease("renew", mtu=mtu)
        assert leases.mtu() == ("1400" if mtu == "1400" else "1500")
    (leases.sys / "mtu").write_text("1450\n")  # somebody's own
    leases.lease("renew")
    assert leases.mtu() == "1450"


@pytest.mark.parametrize("odd", ["\n", "\x1b[2J", "\r", "\xe9", "\x7f"])
def test_a_server_writes_no_lines_of_the_log(leases: Leases, tmp_path: Path, odd: str) -> None:
    log = tmp_path / "kmsg"
    leases.script.write_text(leases.script.read_text().replace("/dev/kmsg", str(log)))
    leases.tell("nak", message=f"go away{odd}<5>mixos: all is well")
    assert log.read_text() == "<5>mixos: eth0: the DHCP server refused: (not printable)\n"
    leases.tell("nak", message="wrong network, ~ 5 hosts")
    assert log.read_text() == "<5>mixos: eth0: the DHCP server refused: wrong network, ~ 5 hosts\n"


def test_what_no_host_can_have_is_not_taken_from_a_lease(leases: Leases) -> None:
    """Routers say 0.0.0.0 for what there is not; udhcpc says "bad" for what is no domain."""
    many = "0.0.0.0 192.0.2.53 192.0.2.53 224.0.0.1 127.0.0.1 192.0.2.54 192.0.2.55 192.0.2.56"
    names = {"domain": "bad", "dns": many}
    assert leases.lease("bound", "0.0.0.0", ntpsrv="0.0.0.0 192.0.2.123", **names) == set()
    three = "nameserver 192.0.2.53\nnameserver 192.0.2.54\nnameserver 192.0.2.55\n"
    assert leases.resolv.read_text() == three
    assert (leases.net / "eth0.ntp").read_text() == "192.0.2.123\n"
    for other in ("0.0.0.0", "224.0.0.5", "255.255.255.255", "127.0.0.1", "garbage"):
        leases.lease("renew", "192.0.2.1", ip=other, dns="192.0.2.99")
        assert addresses("eth0") == {"192.0.2.77/24"}
        assert leases.resolv.read_text() == three
    assert leases.lease("renew", "192.0.2.1", mask="0", domain=".lan") == {("default", "192.0.2.1", "eth0")}
    assert addresses("eth0") == {"192.0.2.77/24"}
    assert leases.resolv.read_text() == "search lan\n"


# case: N13
def test_a_lease_with_another_mask(leases: Leases) -> None:
    """No connection ends: the address is there all the time, and so is the way out."""
    way = {("default", "192.0.2.1", "eth0")}
    assert leases.lease("bound", "192.0.2.1") == way
    for mask in ("25", "23"):
        assert leases.lease("renew", "192.0.2.1", mask=mask) == way
        assert addresses("eth0") == {f"192.0.2.77/{mask}"}
    assert leases.lease("renew", "192.0.2.1", ip="192.0.2.78", mask="24") == way
    assert addresses("eth0") == {"192.0.2.78/24"}


# case: N12
def test_later_leases_have_the_metric_of_the_file(leases: Leases) -> None:
    def metrics() -> set[int]:
        return {row["metric"] for row in ip("route") if row.get("protocol") == "dhcp"}

    leases.lease("bound", "192.0.2.1")
    assert metrics() == {107}
    (leases.net / "eth0.want").write_text("dhcp\nmetric 50\nmtu\n")
    leases.lease("renew", "192.0.2.1", mtu="1400")
    assert metrics() == {50}
    assert leases.mtu() == "1500"  # the file's


# case: N12
def test_the_metric_of_a_lease_is_in_force(box: Cabled) -> None:
    def metrics() -> set[int]:
        return {row["metric"] for row in ip("route") if row["dst"] == "default"}

    async def scenario() -> None:
        await box.apply(DHCP)
        await until(lambda: (box.context.run / "net/eth0.address").exists())
        (before,) = metrics()
        await box.apply(DHCP + "metric = 50\n", confirm=600)
        assert metrics() == {50}
        assert (await box.part.check(CALLER, NOTHING))["steps"] == []
        await box.part.revert(CALLER, NOTHING)
        assert metrics() == {before}
        assert (box.context.run / "net/eth0.want").read_text() == "dhcp\n"

    asyncio.run(scenario())


# case: N7
def test_another_network_behind_the_cable(box: Cabled, tmp_path: Path) -> None:
    """The lease would have lasted an hour."""

    async def scenario() -> None:
        await box.apply(DHCP)
        folder = box.context.run / "net"
        await until(lambda: (folder / "eth0.address").exists())
        client, carrier = (folder / "eth0.pid").read_text(), folder / "eth0.carrier"
        counter = tmp_path / "sys/eth0/carrier_up_count"
        box.serve("198.51.100", router="198.51.100.1")
        counter.write_text("2\n")
        box.part.engine.early.wake()  # as the daemon does; without one the script looks every 10 s
        await until(lambda: any(one.startswith("198.51.100.") for one in addresses("eth0")))
        assert len(addresses("eth0")) == 1
        await until(lambda: routes() == {("default", "198.51.100.1", "eth0")})
        # The same network: a new client, the same address, which was never away.
        await until(carrier.exists)
        (address,) = addresses("eth0")
        assert (folder / "eth0.pid").read_text() != client
        counter.write_text("3\n")
        box.part.engine.early.wake()
        await until(lambda: carrier.exists() and carrier.read_text() == "3\n")
        assert addresses("eth0") == {address}

    asyncio.run(scenario())


def test_while_the_cable_is_out_the_names_of_another_lease_are_asked(box: Cabled, tmp_path: Path) -> None:
    async def scenario() -> None:
        folder = box.context.run / "net"
        carrier = tmp_path / "sys/eth0/carrier"
        carrier.write_text("1\n")
        await box.apply(DHCP)
        await until(lambda: (folder / "eth0.address").exists())
        (folder / "eth9.lease").write_text("198.51.100.9/24 3600 999 0\n")
        (folder / "eth9.dns").write_text("nameserver 198.51.100.53\n")
        for value, server in (("0", "198.51.100.53"), ("1", "192.0.2.53")):
            carrier.write_text(f"{value}\n")
            box.part.engine.early.wake()
            await until(lambda server=server: box.resolv() == f"nameserver {server}\n")  # type: ignore[misc]

    asyncio.run(scenario())


def test_while_the_cable_is_out_another_way_is_taken(leases: Leases, tmp_path: Path) -> None:
    """Two sockets of one device in one network; then one cable is pulled."""
    settings = (ROOT / "rootfs/skeleton/usr/lib/sysctl.d/20-network.conf").read_text()
    for key, equals, value in (line.partition(" = ") for line in settings.splitlines()):
        if equals:
            Path("/proc/sys", key.replace(".", "/")).write_text(value)
    cable("eth1", "far1")
    run(["ip", "link", "set", "eth1", "up"])
    shutil.copytree(tmp_path / "sys/eth0", tmp_path / "sys/eth1")
    (tmp_path / "sys/eth1/ifindex").write_text("8\n")
    leases.lease("bound", "192.0.2.1")
    leases.tell("bound", interface="eth1", router="192.0.2.1", ip="192.0.2.78", mask="24")
    for far, way in (("far0", "eth1"), ("far1", "eth0")):
        run(["ip", "link", "set", far, "down"])
        for target in ("192.0.2.50", "203.0.113.1"):
            assert [route["dev"] for route in ip("route", "get", target)] == [way]
        run(["ip", "link", "set", far, "up"])


# case: N7
def test_an_old_lease_ends_where_nobody_answers(leases: Leases) -> None:
    leases.lease("bound", "192.0.2.1", lease="3600")
    (leases.net / "eth0.again").touch()
    leases.tell("deconfig")  # a client that starts again after the cable moved
    leases.tell("leasefail")
    assert addresses("eth0") == {"192.0.2.77/24"}
    leases.lease("renew", "192.0.2.1", lease="0")
    leases.tell("leasefail")
    assert addresses("eth0") == set()
    assert not (leases.net / "eth0.address").exists()


# wanted: IPv4 link-local when nobody answers
def test_where_nobody_answers_an_address_of_the_link_is_taken(leases: Leases) -> None:
    def there() -> list[tuple[str, str]]:
        rows = [one for link in ip("-4", "address", "show", "dev", "eth0") for one in link["addr_info"]]
        return [(f"{one['local']}/{one['prefixlen']}", one["scope"]) for one in rows]

    Path("/proc/sys/net/ipv4/conf/far0/arp_ignore").write_text("1")  # both ends are this kernel's
    leases.tell("deconfig")
    leases.tell("leasefail")
    ((first, scope),) = there()
    assert texts.interface(first) in texts.network("169.254.0.0/16")
    assert scope == "link"
    leases.tell("leasefail")
    leases.tell("deconfig")
    assert there() == [(first, scope)]
    assert leases.lease("bound", "192.0.2.1") == {("default", "192.0.2.1", "eth0")}
    assert there() == [("192.0.2.77/24", "global")]
    leases.tell("deconfig")
    run(["ip", "address", "add", first.replace("/16", "/32"), "dev", "far0"])  # somebody else's now
    leases.tell("leasefail")
    ((second, _),) = there()
    assert second != first
    leases.tell("gone")
    assert there() == []


# wanted: static /32 with off-link gateway
@pytest.mark.parametrize(
    ("address", "hop", "family"),
    [
        ("192.0.2.9/32", "198.51.100.1", "-4"),
        ("192.0.2.9/24", "192.0.2.1", "-4"),
        ("2001:db8::9/128", "2001:db8:1::1", "-6"),
    ],
)
def test_the_settings_give_a_single_address_a_gateway(tmp_path: Path, address: str, hop: str, family: str) -> None:
    text = f'[network]\nmode = "static"\ninterface = "eth0"\naddress = "{address}"\ngateway = "{hop}"\n'
    files = render(parse(text.encode(), "mixos-preseed.toml", Settings()))
    cable()
    box = Cabled(tmp_path, files["etc/mixos/network.conf"].data.decode())
    try:
        asyncio.run(until(lambda: any(route[:2] == ("default", hop) for route in routes(family))))
        assert address in addresses("eth0")
    finally:
        box.close()


# wanted: ARP check on leases
def test_an_address_that_somebody_has_is_not_taken(box: Cabled) -> None:
    async def scenario() -> None:
        folder = box.context.run / "net"
        box.serve("192.0.2", first=100, last=101)
        run(["ip", "address", "add", "192.0.2.100/32", "dev", "far0"])  # somebody without a lease
        await box.apply(DHCP)
        await until(lambda: (folder / "eth0.address").exists())
        assert addresses("eth0") == {"192.0.2.101/24"}

    asyncio.run(scenario())
