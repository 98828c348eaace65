"""WireGuard with a stock `wg` at the other end: a second network namespace of the same guest, and a cable between them.

The guest has no `ip netns`, no `nsenter` and no `wg`. The first two are a few lines of Python over the daemon's own
rtnetlink; `wg` is the build host's (Debian package wireguard-tools) with the libraries it was linked to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildsys.run import run
from tests.boot.guest import Guest, pids, wait_until

BOX = "/run/vpntest"  # memory, mounted so that programs may run from it
SECONDS = 120.0

TOOL = """
import os, signal, struct, sys
sys.path.insert(0, "/usr/lib/mixos/python")
from daemon.linux import netlink
from daemon.linux.netlink import nested, text, u32
from daemon.linux.rtnl import Rtnl

def hold():  # a namespace that lives as long as this process
    os.unshare(os.CLONE_NEWNET)
    print(os.getpid(), flush=True)
    signal.pause()

def enter(pid, *command):  # run a command in there
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    os.setns(descriptor, os.CLONE_NEWNET)
    if command[0] == "set-up":
        return set_up(*command[1:])
    os.execv(command[0], command)

def cable(here, there, pid):  # veth(4); the other end goes to the namespace of pid
    head = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    peer = netlink.attribute(1 | netlink.NESTED, head + text(3, there) + u32(19, int(pid)))
    info = nested(18, [text(1, "veth"), nested(2, [peer])])
    with netlink.Socket(netlink.ROUTE) as channel:
        channel.ask(16, head + text(3, here) + info, netlink.CREATE | netlink.EXCLUSIVE)

def set_up(kind, name, address):  # an interface with an address; made when a kind is given
    with Rtnl() as rtnl:
        if kind != "-":
            rtnl.create(kind, name)
        rtnl.add_address(name, address)
        rtnl.change(name, up=True)

{"hold": hold, "enter": enter, "cable": cable, "set-up": set_up}[sys.argv[1]](*sys.argv[2:])
"""


class Far:
    """The other end: a namespace of the guest with a stock `wg`."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.run(f"mkdir -p {BOX} && mount -t tmpfs -o mode=0700,exec vpntest {BOX}")
        guest.run(f"cat >{BOX}/tool.py", stdin=TOOL.encode())
        self.wg = self.bring_wg()
        guest.run(f"{self.tool} hold >{BOX}/pid 2>{BOX}/errors </dev/null &")
        assert wait_until(lambda: guest.attempt(f"test -s {BOX}/pid").status == 0, 60.0)
        self.pid = guest.run(f"cat {BOX}/pid").strip()

    tool = f"/usr/bin/python3 -IS {BOX}/tool.py"

    def bring_wg(self) -> str:
        """Copy `wg` with its loader and libraries; the words that run it."""
        program = Path("/usr/bin/wg")
        found = re.findall(r"(/\S+) \(0x", run(["ldd", program]).text)
        loader = next(path for path in found if "ld-" in Path(path).name)
        for path in [str(program), *found]:
            name = Path(path).name
            self.guest.run(f"cat >{BOX}/{name} && chmod 0700 {BOX}/{name}", stdin=Path(path).read_bytes())
        return f"{BOX}/{Path(loader).name} --library-path {BOX} {BOX}/wg"

    def run(self, command: str, stdin: bytes | None = None) -> str:
        """A command at the other end; its program is named in full."""
        return self.guest.run(f"{self.tool} enter {self.pid} {command}", stdin=stdin)

    def remove(self) -> None:
        self.guest.run(f"kill {self.pid}; mixctl vpn delete wgt --yes; umount {BOX}; :")
        self.guest.run("cat /run/hosts.before >/etc/hosts && rm /run/hosts.before")


def vpn(guest: Guest, words: str, stdin: bytes | None = None) -> Any:
    return json.loads(guest.run(f"mixctl vpn {words} --json", stdin=stdin))


def tunnel(guest: Guest) -> dict[str, Any]:
    """The tunnel in `mixctl vpn status`, its peers by name."""
    (row,) = [row for row in vpn(guest, "status")["interfaces"] if row["name"] == "wgt"]
    return {**row, "peers": {peer["name"]: peer for peer in row["peers"]}}


def dump(guest: Guest, far: Far) -> dict[str, list[str]]:
    """`wg show wgt dump` (wg(8)): public key → the other columns of a peer."""
    rows = [line.split("\t") for line in guest.lines(f"{far.wg} show wgt dump")[1:]]
    return {row[0]: row[1:] for row in rows}


def settings_of(config: str) -> bytes:
    """What `wg setconf` takes of a configuration for wg-quick."""
    lines = [line for line in config.splitlines() if not re.match(r"(Address|DNS|MTU|Table|#)", line)]
    return "\n".join([*lines, ""]).encode()


def reaches(guest: Guest, address: str = "10.77.0.2") -> bool:
    return wait_until(lambda: guest.attempt(f"ping -c 1 -W 2 {address}").status == 0, SECONDS)


def kill_daemon(guest: Guest) -> None:
    """SIGKILL; init starts another one."""
    (old,) = pids(guest, "mixosd")
    guest.run(f"kill -KILL {old}")


@pytest.fixture(scope="module")
def far(shared: Any) -> Iterator[Far]:
    """The tunnel wgt, up, with one peer that answers: configured by what `vpn add-peer` printed."""
    guest: Guest = shared.guest
    other = Far(guest)
    guest.run(f"{other.tool} cable near0 far0 {other.pid} && {other.tool} set-up - near0 192.0.2.1/30")
    other.run("set-up - far0 192.0.2.2/30")
    guest.run("cp /etc/hosts /run/hosts.before; echo 192.0.2.2 far.test >>/etc/hosts")
    vpn(guest, "init --name wgt --address 10.77.0.1/24 --port 51899 --endpoint 192.0.2.1")
    added = vpn(guest, "add-peer first --interface wgt --psk --keepalive 5 --endpoint 192.0.2.2:51900")
    other.run("set-up wireguard wgp 10.77.0.2/24")
    other.run(f"{other.wg} setconf wgp /dev/stdin", stdin=settings_of(added["config"]))
    other.run(f"{other.wg} set wgp listen-port 51900")
    yield other
    other.remove()


def test_a_stock_peer_answers(guest: Guest, far: Far) -> None:
    assert reaches(guest), guest.run(f"mixctl vpn status; {far.wg} show all")
    first = tunnel(guest)["peers"]["first"]
    assert first["state"] == "online"
    assert first["received"] > 0
    assert first["sent"] > 0
    assert first["psk"] is True


def test_our_status_is_what_wg_says(guest: Guest, far: Far) -> None:
    row = tunnel(guest)
    told = guest.lines(f"{far.wg} show wgt dump")[0].split("\t")
    assert (row["public-key"], str(row["port"])) == (told[1], told[2])
    first = row["peers"]["first"]
    _, endpoint, allowed, _, _, _, keepalive = dump(guest, far)[first["public-key"]]
    assert (first["endpoint"], ",".join(first["allowed-ips"])) == (endpoint, allowed)
    assert str(first["keepalive"]) == keepalive


def test_a_session_survives_changes_of_other_peers(guest: Guest, far: Far) -> None:
    """Counters start anew with a peer that is made anew, so they show that it was not."""
    assert reaches(guest)
    before = tunnel(guest)["peers"]["first"]
    vpn(guest, "add-peer second --interface wgt")
    vpn(guest, "rotate second --interface wgt")
    vpn(guest, "remove second --interface wgt")
    vpn(guest, "apply")
    after = tunnel(guest)["peers"]["first"]
    assert after["received"] >= before["received"] > 0
    assert after["handshake-age"] is not None
    assert reaches(guest)


def test_what_was_changed_behind_our_back_is_put_right(guest: Guest, far: Far) -> None:
    key = tunnel(guest)["peers"]["first"]["public-key"]
    guest.run(f"{far.wg} set wgt peer {key} remove")
    guest.run(f"{far.wg} set wgt peer {'A' * 42 + 'E='} allowed-ips 10.77.0.200/32")
    vpn(guest, "apply")
    assert set(dump(guest, far)) == {key}
    assert reaches(guest)


def test_many_peers_are_one_dump(guest: Guest, far: Far) -> None:
    """More than fit into one message each way, and one whose allowed IPs alone do not."""
    script = """
import base64, sys
path = "/etc/mixos/vpn.toml"
text = open(path).read()
many = ", ".join(f'"10.80.{n >> 8}.{n & 255}/32"' for n in range(1500))
for n in range(1, 301):
    key = base64.b64encode(n.to_bytes(32, "big")).decode()
    ips = many if n == 300 else f'"10.79.{n >> 8}.{n & 255}/32"'
    text += f'\\n[interface.wgt.peer.many{n}]\\npublic-key = "{key}"\\nallowed-ips = [{ips}]\\n'
open(path, "w").write(text)
"""
    guest.run("cp /etc/mixos/vpn.toml /run/vpn.before")
    guest.run("/usr/bin/python3 -IS -", stdin=script.encode())
    vpn(guest, "apply")
    told = dump(guest, far)
    assert len(told) == 301
    assert max(row[2].count(",") + 1 for row in told.values()) == 1500
    assert len(tunnel(guest)["peers"]) == 301
    assert "".join(vpn(guest, "apply")["problems"]) == ""
    guest.run("cat /run/vpn.before >/etc/mixos/vpn.toml && rm /run/vpn.before")
    vpn(guest, "apply")
    assert len(dump(guest, far)) == 1
    assert reaches(guest)


def test_rotation_of_our_key(guest: Guest, far: Far) -> None:
    old = tunnel(guest)["public-key"]
    rotated = vpn(guest, "rotate --interface wgt")
    assert rotated["public-key"] != old
    assert tunnel(guest)["public-key"] == rotated["public-key"]
    far.run(f"{far.wg} set wgp peer {old} remove")
    far.run(f"{far.wg} addconf wgp /dev/stdin", stdin=settings_of(rotated["configs"]["first"]))
    assert reaches(guest)


def test_rotation_of_a_preshared_key(guest: Guest, far: Far) -> None:
    rotated = vpn(guest, "rotate first --interface wgt")
    far.run(f"{far.wg} addconf wgp /dev/stdin", stdin=settings_of(rotated["configs"]["first"]))
    assert reaches(guest)
    far.run(f"{far.wg} set wgp peer {tunnel(guest)['public-key']} preshared-key /dev/null")
    guest.run("mixctl vpn down wgt && mixctl vpn up wgt")  # ends the session
    assert guest.attempt("ping -c 3 -W 2 10.77.0.2").status != 0  # the preshared key is needed indeed
    far.run(f"{far.wg} addconf wgp /dev/stdin", stdin=settings_of(rotated["configs"]["first"]))
    assert reaches(guest)


def test_an_endpoint_that_moved_is_found_again(guest: Guest, far: Far) -> None:
    """The name of the peer's endpoint leads elsewhere while its session is dead."""
    far.run(f"{far.wg} set wgp listen-port 51901")
    guest.run(
        "sed -i 's/192.0.2.2:51900/far.test:51901/' /etc/mixos/vpn.toml && mixctl vpn down wgt && mixctl vpn up wgt"
    )
    assert reaches(guest)
    assert tunnel(guest)["peers"]["first"]["endpoint"] == "192.0.2.2:51901"


def test_the_tunnel_survives_the_daemon(guest: Guest, far: Far) -> None:
    assert reaches(guest)
    before = tunnel(guest)["peers"]["first"]["received"]
    kill_daemon(guest)
    assert reaches(guest)
    guest.wait_daemon()
    assert wait_until(lambda: guest.attempt("mixctl vpn status").status == 0, SECONDS)
    assert tunnel(guest)["peers"]["first"]["received"] >= before


def test_name_servers_while_it_is_up_and_not_longer(guest: Guest, far: Far) -> None:
    plain = guest.run("cat /run/mixos/dns/resolv.conf")
    guest.run("sed -i 's/^port = 51899$/port = 51899\\ndns = [\"10.77.0.2\"]/' /etc/mixos/vpn.toml")
    vpn(guest, "apply")
    assert guest.run("cat /etc/resolv.conf").strip() == "nameserver 10.77.0.2"
    guest.run("/usr/lib/mixos/init/dhcp resolv")  # what a renewed lease does
    assert guest.run("cat /etc/resolv.conf").strip() == "nameserver 10.77.0.2"
    kill_daemon(guest)
    guest.wait_daemon()
    assert wait_until(lambda: guest.attempt("mixctl vpn status").status == 0, SECONDS)
    assert guest.run("cat /etc/resolv.conf").strip() == "nameserver 10.77.0.2"
    vpn(guest, "down wgt")
    assert guest.run("cat /run/mixos/dns/resolv.conf") == plain
    vpn(guest, "up wgt")
    guest.run("sed -i '/^dns = /d' /etc/mixos/vpn.toml")
    vpn(guest, "apply")
    assert guest.run("cat /run/mixos/dns/resolv.conf") == plain


def test_a_tunnel_that_takes_everything_leaves_ssh_alone(guest: Guest, far: Far) -> None:
    """An imported file of a provider; the way back to whoever is logged in is more special than the default."""
    config = f"[Interface]\nPrivateKey = {'A' * 42}E=\nAddress = 10.99.0.2/32\n\n[Peer]\nPublicKey = {'C' * 42}E=\n"
    config += "AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.2:9\n"
    made = vpn(guest, "import - --name wgall", stdin=config.encode())
    assert made["state"] == "up", made
    assert "lookup 51820" in guest.run("ip rule")
    # BusyBox ip has no tables above 1023: the kernel tells which way a packet would take.
    assert "dev wgall" in guest.run("ip route get 198.51.100.7")
    assert guest.run("mixctl ping") == "pong"
    vpn(guest, "delete wgall --yes")
    assert "51820" not in guest.run("ip rule; ip -6 rule")
    assert guest.attempt("ip link show wgall").status != 0


def test_secrets_are_nowhere_else(guest: Guest, far: Far) -> None:
    """Not in the file, not in the log, not in the audit, not in what status and export say."""
    for secret in guest.lines("cat /var/lib/mixos/vpn/*"):
        assert guest.attempt(f"grep -rqF -e '{secret}' /etc/mixos /var/log").status == 1
        assert secret not in guest.run("mixctl vpn status --json; mixctl vpn export wgt")
    assert set(guest.lines("stat -c %a /var/lib/mixos/vpn/*")) == {"600"}


def test_a_wrong_key_is_refused(guest: Guest, far: Far) -> None:
    done = guest.attempt("mixctl vpn add-peer bad --interface wgt --public-key nonsense --json")
    assert done.status == 3
    assert json.loads(done.stderr)["reason"] == "vpn-key"
