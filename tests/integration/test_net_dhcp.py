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
from tests.hostpackages import ROOT
from tests.integration.boxes import CALLER, NOTHING, Box, addresses, cable, routes
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


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """The part, the script `network` of early boot running beside it, and a DHCP server behind the cable."""
    cable()
    box = Box(tmp_path)
    for folder in ("run/net", "init", "bin", "sys/eth0"):
        (tmp_path / folder).mkdir(parents=True)
    for program in ("udhcpc", "udhcpd"):
        (tmp_path / "bin" / program).symlink_to("/usr/bin/busybox")
    for name in ("network", "dhcp", "functions", "udhcpc"):
        text = (INIT / name).read_text().replace("/run/mixos", str(tmp_path / "run"))
        text = text.replace("/usr/lib/mixos/init", str(tmp_path / "init")).replace("/etc/mixos", str(tmp_path / "etc"))
        text = text.replace("/usr/sbin/udhcpc", f"{tmp_path}/bin/udhcpc")
        text = text.replace("/sys/class/net", str(tmp_path / "sys")).replace("PATH=", f"PATH={tmp_path}/bin:")
        (tmp_path / "init" / name).write_text(text)
        (tmp_path / "init" / name).chmod(0o755)
    (tmp_path / "sys/eth0/ifindex").write_text("2\n")
    run(["ip", "address", "add", "192.0.2.1/24", "dev", "far0"])
    lease = tmp_path / "leases"
    lease.touch()
    server = f"start 192.0.2.100\nend 192.0.2.110\ninterface far0\nlease_file {lease}\nopt dns 192.0.2.53\n"
    (tmp_path / "udhcpd.conf").write_text(
        f"{server}opt router 192.0.2.1\nopt subnet 255.255.255.0\noption lease 3600\n"
    )
    null = (os.POSIX_SPAWN_OPEN, 1, str(tmp_path / "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    both = [null, (os.POSIX_SPAWN_DUP2, 1, 2)]
    pids = [
        os.posix_spawn(argv[0], argv, {}, file_actions=both, setpgroup=0)
        for argv in (
            ["/usr/bin/busybox", "udhcpd", "-f", str(tmp_path / "udhcpd.conf")],
            ["/usr/bin/busybox", "ash", str(tmp_path / "init/network")],
        )
    ]
    box.servers = pids
    yield box
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)  # the script's client is in its group
        ended(pid)
    shutil.rmtree(tmp_path / "run")


def test_the_client_follows_the_file(box: Box) -> None:
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


def test_another_lease_after_a_trial_replaces_the_one_that_came_back(box: Box, tmp_path: Path) -> None:
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
        new = tmp_path / "udhcpd.conf"
        new.write_text(new.read_text().replace("192.0.2.100", "192.0.2.150").replace("192.0.2.110", "192.0.2.160"))
        (server,) = (pid for pid in box.servers if b"udhcpd" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(server, signal.SIGKILL)
        (tmp_path / "leases").write_bytes(b"")
        run(["ip", "link", "set", "far0", "up"])
        argv = ["/usr/bin/busybox", "udhcpd", "-f", str(new)]
        other = os.posix_spawn(argv[0], argv, {}, file_actions=[(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)])
        try:
            await until(lambda: (folder / "eth0.address").exists())
        finally:
            os.kill(other, signal.SIGKILL)
            ended(other)
        (address,) = addresses("eth0")
        assert address != old
        assert not (folder / "eth0.earlier").exists()

    asyncio.run(scenario())


def test_a_client_that_has_just_died_does_not_come_back(box: Box) -> None:
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


def test_there_is_one_client_also_after_one_died(box: Box) -> None:
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


def test_routes_follow_the_lease(tmp_path: Path) -> None:
    """A router in the lease's network, outside of it (as with /32), another one, none."""
    cable()
    run(["ip", "link", "set", "eth0", "up"])
    for folder in ("run/net", "sys/eth0"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sys/eth0/ifindex").write_text("7\n")
    script = tmp_path / "dhcp"
    text = (INIT / "dhcp").read_text().replace("/run/mixos", str(tmp_path / "run"))
    script.write_text(text.replace("/sys/class/net", str(tmp_path / "sys")))

    def lease(
        what: str, router: str, ip: str = "192.0.2.77", mask: str = "32", mtu: str = ""
    ) -> set[tuple[str, str, str]]:
        given = [f"{key}={value}" for key, value in (("router", router), ("ip", ip), ("mask", mask), ("mtu", mtu))]
        run(["env", "interface=eth0", *given, "/usr/bin/busybox", "sh", script, what])
        return routes()

    assert lease("bound", "198.51.100.1 198.51.100.2") == {
        ("198.51.100.1", "", "eth0"),
        ("default", "198.51.100.1", "eth0"),
    }
    assert ("default", "198.51.100.2", "eth0") in lease("renew", "198.51.100.2")
    assert lease("bound", "192.0.2.1", "192.0.2.78", "24") == {("default", "192.0.2.1", "eth0")}
    assert lease("renew", "192.0.2.2", "192.0.2.78", "24") == {("default", "192.0.2.2", "eth0")}
    assert lease("renew", "", "192.0.2.78", "24") == set()
    assert addresses("eth0") == {"192.0.2.78/24"}
    for mtu in ("1400", "68", "", "garbage"):  # one that switches IPv6 off is not taken
        lease("renew", "", "192.0.2.78", "24", mtu)
        assert (tmp_path / "sys/eth0/mtu").read_text() == "1400\n"
