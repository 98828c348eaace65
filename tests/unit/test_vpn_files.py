"""WireGuard's files: keys, vpn.toml, files of wg-quick, configurations of clients. No kernel is involved."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import addresses
from common.errors import MixosError
from common.tomlfile import parse
from daemon.core.change.applier import Wish
from daemon.core.change.files import Trees
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.linux.rtnl import MAIN_TABLE, Route, Rule
from daemon.linux.wireguard import Device, Endpoint, Peer
from daemon.parts.vpn import clients, keys, resolve, tunnel, wgquick
from daemon.parts.vpn import model as vpnfile
from daemon.parts.vpn.edits import FILE, VpnConfig
from daemon.parts.vpn.model import Tunnel, VpnFile

ONE, TWO = keys.encode(bytes([1]) * 32), keys.encode(bytes([2]) * 32)


def vpn(text: str) -> VpnFile:
    return parse(text, Path("vpn.toml"), VpnFile)


# -- keys ------------------------------------------------------------------------------------------------------------


def test_the_public_key_of_rfc_7748() -> None:
    """Section 5.2: the scalar 9 at the base point, after one iteration."""
    public = asyncio.run(keys.public_of(bytes([9]) + bytes(31)))
    assert public.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"


def test_pairs_are_pairs() -> None:
    async def scenario() -> None:
        one, two = await keys.make_pair(), await keys.make_pair()
        assert one.private != two.private
        assert await keys.public_of(one.private) == one.public
        assert await keys.public_of(keys.clamp(one.private)) == one.public
        assert keys.encode(one.private) not in repr(one)
        with pytest.raises(MixosError) as caught:
            await keys.public_of(b"short")
        assert caught.value.reason == "x25519"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "text",
    ["", "key", ONE[:-1], ONE + "=", ONE[:-2] + "F=", "A" * 43 + "=", "ä" * 44, ONE[:20] + " " + ONE[20:]],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(MixosError) as caught:
        keys.decode(text)
    assert (caught.value.reason, caught.value.exit_code) == ("vpn-key", 3)
    assert len(text) < 4 or text not in caught.value.message


@given(st.text(max_size=50))
@settings(max_examples=200, deadline=None)
def test_a_text_is_a_key_or_refused(text: str) -> None:
    try:
        assert keys.encode(keys.decode(text)) == text.strip()
    except MixosError as error:
        assert error.reason == "vpn-key"  # noqa: PT017  # either way is fine


def files(tmp_path: Path) -> VpnConfig:
    return VpnConfig(Trees(tmp_path / "etc", tmp_path / "lib"))


def secrets(config: VpnConfig) -> set[str]:
    return {name.rpartition("/")[2] for name in config.view.names("var/lib/mixos/vpn")}


def test_secrets_are_for_root_alone(tmp_path: Path) -> None:
    context = Context(*(tmp_path / name for name in ("run", "state", "etc", "lib", "log")))
    config = VpnConfig(context.changes.places)
    store = config.store
    store.write("wg0.key", bytes([5]) * 32)
    assert store.read("wg0.key") == bytes([5]) * 32
    caller = Caller(Role.ADMIN, 0, 0, 1, "me", "local")
    asyncio.run(context.changes.make(caller, Wish(), "a key", config.contents))
    assert (context.state / "vpn/wg0.key").stat().st_mode & 0o777 == 0o600
    assert (context.state / "vpn").stat().st_mode & 0o777 == 0o700
    store.remove("wg0.key")
    with pytest.raises(MixosError) as caught:
        store.read("wg0.key")
    assert caught.value.reason == "vpn-secret-missing"


# -- vpn.toml --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[interface.wg0.peer.a]\npublic-key = "nonsense"',
        "[interface.wg0.peer.a]\nallowed-ips = []",
        f'[interface.wg0.peer.a]\npublic-key = "{ONE}"\nallowed-ips = ["10.0.0.1/8"]',
        f'[interface.wg0.peer.a]\npublic-key = "{ONE}"\n[interface.wg0.peer.b]\npublic-key = "{ONE}"',
        f'[interface.wg0.peer."a b"]\npublic-key = "{ONE}"',
        f'[interface.wg0.peer.a]\npublic-key = "{ONE}"\nendpoint = "2001:db8::1:5"',
        '[interface."wg 0"]',
        "[interface.wg0]\nport = 65536",
        "[interface.wg0]\nport = 5\n[interface.wg1]\nport = 5",
        '[interface.wg0]\nprivate-key = "x"',
        "".join(f'[interface.wg{n}.peer.a]\npublic-key = "{ONE}"\nallowed-ips = ["0.0.0.0/0"]\n' for n in range(2)),
    ],
)
def test_mistakes_in_vpn_toml(text: str) -> None:
    with pytest.raises(MixosError) as caught:
        vpn(text)
    assert caught.value.exit_code == 3


def test_no_more_networks_than_can_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpnfile, "MAX_ALLOWED", 1)
    with pytest.raises(MixosError) as caught:
        server()
    assert caught.value.reason == "config-value"


def test_an_allowed_ip_belongs_to_one_peer() -> None:
    peers = "".join(
        f'[interface.wg0.peer.{name}]\npublic-key = "{key}"\nallowed-ips = ["10.0.0.2/32"]\n'
        for name, key in (("a", ONE), ("b", TWO))
    )
    with pytest.raises(MixosError) as caught:
        vpn(peers)
    assert caught.value.reason == "config-value"


def test_changes_keep_comments_and_secrets_follow(tmp_path: Path) -> None:
    config = files(tmp_path)
    config.add_tunnel("wg0", bytes([5]) * 32, {"addresses": ["10.8.0.1/24"], "port": 5})
    config.changed[FILE] = b"# ours\n" + (config.view.read(FILE) or b"")
    config.add_peer("wg0", "a", {"public-key": ONE, "allowed-ips": ["10.8.0.2/32"]}, bytes([6]) * 32, bytes([7]) * 32)
    config.add_peer("wg0", "b", {"public-key": TWO, "allowed-ips": ["10.8.0.3/32"]}, None, None)
    assert secrets(config) == {"wg0.key", "wg0.a.psk", "wg0.a.key"}
    text = config.view.text(FILE)
    assert text is not None
    assert text.startswith("# ours\n")
    for secret in (5, 6, 7):
        assert keys.encode(bytes([secret]) * 32) not in text
    for reason, name, peer in (("vpn-exists", "wg0", "a"), ("vpn-interface", "wg9", "z")):
        with pytest.raises(MixosError) as caught:
            config.add_peer(name, peer, {"public-key": ONE}, None, None)
        assert caught.value.reason == reason
    with pytest.raises(MixosError):  # the same key under another name: nothing is written
        config.add_peer("wg0", "c", {"public-key": ONE}, bytes([8]) * 32, None)
    assert "wg0.c.psk" not in secrets(config)
    assert config.view.text(FILE) == text
    config.remove_peer("wg0", "a")
    assert secrets(config) == {"wg0.key"}
    name, entry = config.tunnel(None)
    assert (name, list(entry.peer)) == ("wg0", ["b"])
    config.remove_tunnel("wg0", entry)
    assert secrets(config) == set()
    assert config.read().interface == {}


# -- wg-quick --------------------------------------------------------------------------------------------------------

SECRET = keys.encode(bytes([9]) * 31 + bytes([0x49]))
STOCK = f"""# made elsewhere
[Interface]
PrivateKey = {SECRET}
Address = 10.5.0.2/32, fd00:5::2/128
Address = 10.6.0.2
DNS = 10.5.0.1, fd00:5::1, corp.example.org
MTU = 1380
ListenPort = 0x1234
FwMark = off
SaveConfig = false

# laptop
[peer]
publickey = {ONE}   # a comment
AllowedIPs = 10.5.0.9/24, ::/0
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25

[Peer]
PublicKey={TWO}
PresharedKey={SECRET}
AllowedIPs=
Endpoint=vpn.example.org:1
PersistentKeepalive=off
"""


def test_a_stock_file_is_read() -> None:
    quick = wgquick.parse(STOCK, "a.conf")
    assert quick.addresses == ("10.5.0.2/32", "fd00:5::2/128", "10.6.0.2/32")
    assert (quick.dns, quick.search) == (("10.5.0.1", "fd00:5::1"), ("corp.example.org",))
    assert (quick.mtu, quick.port, quick.mark, quick.routes) == (1380, 0x1234, 0, True)
    one, two = quick.peers
    assert (one.name, one.allowed, one.endpoint) == ("laptop", ("10.5.0.0/24", "::/0"), "[2001:db8::1]:51820")
    assert (one.keepalive, one.preshared) == (25, None)
    assert (two.name, two.allowed, two.keepalive, two.preshared) == ("", (), 0, keys.decode(SECRET))
    assert SECRET not in repr(quick)


# case: wanted DNS = a b
def test_lists_may_be_divided_by_blanks() -> None:
    text = STOCK.replace("DNS = 10.5.0.1, fd00:5::1, corp", "DNS = 10.5.0.1 fd00:5::1,\t corp")
    assert wgquick.parse(text) == wgquick.parse(STOCK)


def test_what_is_written_is_read_back() -> None:
    quick = wgquick.parse(STOCK)
    again = wgquick.parse(wgquick.write(quick, f"PrivateKey = {SECRET}"))
    assert again == quick


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("MTU = 1380", "PostUp = iptables -A FORWARD -j ACCEPT"), "vpn-import-unsupported"),
        (("MTU = 1380", "PreDown = true"), "vpn-import-unsupported"),
        (("MTU = 1380", "Table = 1234"), "vpn-import-unsupported"),
        (("SaveConfig = false", "SaveConfig = true"), "vpn-import-unsupported"),
        (("MTU = 1380", "MTU = many"), "vpn-import"),
        (("MTU = 1380", "MTU = 70000"), "vpn-import"),
        (("MTU = 1380", "MTU = 1\nMTU = 2"), "vpn-import"),
        (("MTU = 1380", "Colour = red"), "vpn-import"),
        (("MTU = 1380", "AllowedIPs = 10.0.0.0/8"), "vpn-import"),
        (("MTU = 1380", "no equals sign"), "vpn-import"),
        ((SECRET, "c2hvcnQ="), "vpn-key"),
        ((f"PrivateKey = {SECRET}\n", ""), "vpn-import"),
        ((f"publickey = {ONE}", "PersistentKeepalive = 5"), "vpn-import"),
        (("[peer]", "[pear]"), "vpn-import"),
        (("[peer]", "[Interface]"), "vpn-import"),
        (("10.5.0.9/24", "10.5.0.9/240"), "vpn-import"),
        (("[2001:db8::1]:51820", "2001:db8::1:51820"), "vpn-import"),
    ],
)
def test_what_is_refused_and_why(change: tuple[str, str], reason: str) -> None:
    with pytest.raises(MixosError) as caught:
        wgquick.parse(STOCK.replace(*change), "a.conf")
    assert caught.value.reason == reason
    assert "a.conf" in caught.value.message
    assert SECRET not in caught.value.message


@given(st.text(alphabet=st.sampled_from("[]#=,:/ \nInterfacPivKyAdsMTU019x" + ONE[0]), max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(MixosError) as caught:
        wgquick.parse(text)
    assert caught.value.reason in ("vpn-import", "vpn-import-unsupported", "vpn-key")


def peers_of(*texts: str) -> str:
    """A file whose peers are written as `texts`, with KEY for a key of their own and lines instead of `;`."""
    lines = [text.replace("KEY", keys.encode(bytes([n]) * 32)) for n, text in enumerate(texts, 1)]
    return f"[Interface]\nPrivateKey = {SECRET}\n\n" + "\n".join(lines).replace(";", "\n") + "\n"


# case: N4
@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (
            ["[Peer];# laptop;PublicKey=KEY;", "[Peer];# phone;PublicKey=KEY;", "[Peer];# tv;PublicKey=KEY;"],
            "laptop phone tv",
        ),
        (["# laptop;[Peer];PublicKey=KEY", "# phone;[Peer];PublicKey=KEY"], "laptop phone"),
        (["[Peer];PublicKey=KEY;# laptop;", "[Peer];PublicKey=KEY"], "peer1 peer2"),  # whose is it?
        (["# theirs;;[Peer];PublicKey=KEY", "[Peer];PublicKey=KEY # phone"], "peer1 peer2"),
        (["# laptop;# of Bob;[Peer];PublicKey=KEY", "# The phone;[Peer];# phone;PublicKey=KEY"], "laptop phone"),
    ],
)
def test_a_comment_names_its_own_peer_or_none(tmp_path: Path, texts: list[str], names: str) -> None:
    entry = files(tmp_path).add_quick("wg0", wgquick.parse(peers_of(*texts)))
    assert list(entry.peer) == names.split()
    assert [peer.public_key for peer in entry.peer.values()] == [
        keys.encode(bytes([n]) * 32) for n in range(1, len(texts) + 1)
    ]


# case: N5
@pytest.mark.parametrize(
    ("comments", "names"),
    [
        (["peer2", "Bob's phone"], "peer2 peer3"),
        (["Bob's phone", "peer1"], "peer2 peer1"),
        (["a", "a", "peer2", "peer3"], "a peer4 peer2 peer3"),
        (["", "", "peer1", "a", "a"], "peer2 peer3 peer1 a peer5"),
    ],
)
def test_each_peer_of_an_import_has_a_name_of_its_own(tmp_path: Path, comments: list[str], names: str) -> None:
    text = peers_of(*(f"# {comment};[Peer];PublicKey=KEY" for comment in comments))
    entry = files(tmp_path).add_quick("wg0", wgquick.parse(text))
    assert list(entry.peer) == names.split()
    assert len({peer.public_key for peer in entry.peer.values()}) == len(comments)


# case: N5
def test_no_two_secrets_have_one_name() -> None:
    with pytest.raises(MixosError) as caught:
        vpn(f'[interface."wg0.a"]\n[interface.wg0.peer.a]\npublic-key = "{ONE}"\nkept-key = true\n')
    assert caught.value.reason == "config-value"


def test_two_tunnels_for_all_traffic_are_named() -> None:
    one = '[interface.{0}.peer.a]\npublic-key = "{1}"\nallowed-ips = ["0.0.0.0/0"]\n'
    with pytest.raises(MixosError) as caught:
        vpn(one.format("wg1", ONE) + one.format("wg2", ONE))
    assert "wg1 and wg2" in caught.value.message
    assert "'mixctl vpn down wg1'" in caught.value.message


# case: N21
@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["[Peer];PublicKey=KEY", f"[Peer];PublicKey={ONE}"], 7),
        (["[Peer];PublicKey=KEY;AllowedIPs=10.0.0.0/8", "[Peer];AllowedIPs=10.0.0.1/8;PublicKey=KEY"], 9),
    ],
)
def test_a_mistake_of_an_import_is_told_with_its_line(texts: list[str], line: int) -> None:
    with pytest.raises(MixosError) as caught:
        wgquick.parse(peers_of(*texts), "a.conf")
    assert caught.value.reason == "vpn-import"
    assert caught.value.message.startswith(f"a.conf:{line}: ")


# case: N21
def test_a_mistake_of_a_command_has_no_line(tmp_path: Path) -> None:
    """One that stood in the file before has."""
    config = files(tmp_path)
    with pytest.raises(MixosError) as caught:
        config.add_quick("wg0", wgquick.parse(peers_of() + "MTU = 100\n"))
    assert caught.value.reason == "config-value"
    assert "vpn.toml" not in caught.value.message
    config.changed[FILE] = b"[interface.wg1]\nmtu = 100\n"
    with pytest.raises(MixosError) as caught:
        config.add_tunnel("wg0", bytes(32), {"mtu": 100})
    assert "vpn.toml:2:" in caught.value.message


def test_an_import_makes_a_tunnel(tmp_path: Path) -> None:
    config = files(tmp_path)
    entry = config.add_quick("wg0", wgquick.parse(STOCK))
    assert entry.addresses == ("10.5.0.2/32", "fd00:5::2/128", "10.6.0.2/32")
    assert (entry.mtu, entry.port, entry.dns, entry.search) == (
        1380,
        0x1234,
        ("10.5.0.1", "fd00:5::1"),
        ("corp.example.org",),
    )
    assert list(entry.peer) == ["laptop", "peer2"]
    assert secrets(config) == {"wg0.key", "wg0.peer2.psk"}
    assert SECRET not in (config.view.text(FILE) or "")
    exported = clients.export(entry)
    assert SECRET not in exported
    back = wgquick.parse(exported.replace("# PrivateKey: kept on the device", f"PrivateKey = {SECRET}"))
    assert {peer.public for peer in back.peers} == {keys.decode(ONE), keys.decode(TWO)}


def test_of_many_name_servers_those_are_taken_that_are_asked(tmp_path: Path) -> None:
    """Four and more is what providers write."""
    more = STOCK.replace("10.5.0.1", "1.1.1.1, 1.0.0.1, 2606:4700:4700::1111, 2606:4700:4700::1001", 1)
    quick = wgquick.parse(more)
    assert quick.dns == ("1.1.1.1", "1.0.0.1", "2606:4700:4700::1111")
    assert quick.left == ("2606:4700:4700::1001", "fd00:5::1")
    assert files(tmp_path).add_quick("wg0", quick).dns == quick.dns


def test_a_mistake_of_a_table_does_not_show_the_table(tmp_path: Path) -> None:
    servers = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]
    with pytest.raises(MixosError) as caught:
        files(tmp_path).add_tunnel("wg0", bytes(32), {"dns": servers})
    assert caught.value.message == "interface.wg0: 4 name servers: at most 3 are asked"


# -- clients ---------------------------------------------------------------------------------------------------------

SERVER = f"""[interface.wg0]
addresses = ["10.8.0.1/24", "fd00:8::1/64"]
port = 51820
endpoint = "vpn.example.org:51820"
client-dns = ["10.8.0.1"]
[interface.wg0.peer.a]
public-key = "{ONE}"
allowed-ips = ["10.8.0.2/32", "fd00:8::2/128"]
keepalive = 25
"""


def server(text: str = SERVER) -> Tunnel:
    return vpn(text).interface["wg0"]


def test_a_clients_file_is_a_file_of_wg_quick() -> None:
    entry = server()
    private, public, preshared = bytes([8]) * 32, bytes([3]) * 32, bytes([4]) * 32
    quick = wgquick.parse(clients.client(entry, entry.peer["a"], public, private, preshared))
    assert (quick.private, quick.addresses, quick.dns) == (private, ("10.8.0.2/32", "fd00:8::2/128"), ("10.8.0.1",))
    (peer,) = quick.peers
    assert (peer.public, peer.preshared, peer.endpoint) == (public, preshared, "vpn.example.org:51820")
    assert (peer.allowed, peer.keepalive) == (("10.8.0.0/24", "fd00:8::/64"), 25)
    everything = SERVER.replace("[interface.wg0.peer.a]", 'client-routes = ["0.0.0.0/0"]\n[interface.wg0.peer.a]')
    text = clients.section(server(everything), entry.peer["a"], public, None)
    assert text.startswith("[Peer]\n")
    assert "AllowedIPs = 0.0.0.0/0\n" in text


def test_addresses_are_given_in_order_and_run_out() -> None:
    assert clients.next_addresses(server()) == ("10.8.0.3/32", "fd00:8::3/128")
    assert clients.next_addresses(server('[interface.wg0]\naddresses = ["10.8.0.2/24"]')) == ("10.8.0.1/32",)
    assert clients.next_addresses(server('[interface.wg0]\naddresses = ["10.8.0.1/30"]')) == ("10.8.0.2/32",)
    for text, reason in (('addresses = ["10.8.0.1/32"]', "vpn-full"), ("", "vpn-address")):
        with pytest.raises(MixosError) as caught:
            clients.next_addresses(server(f"[interface.wg0]\n{text}"))
        assert caught.value.reason == reason


# case: N17
@pytest.mark.parametrize(
    ("wanted", "allowed", "addresses"),
    [
        ((), ("10.8.0.3/32", "fd00:8::3/128"), ("10.8.0.3/32", "fd00:8::3/128")),
        (("10.8.0.9/32",), ("10.8.0.9/32",), ("10.8.0.9/32",)),
        (("192.168.50.0/24",), ("10.8.0.3/32", "fd00:8::3/128", "192.168.50.0/24"), ("10.8.0.3/32", "fd00:8::3/128")),
        (("192.168.50.5/32",), ("10.8.0.3/32", "fd00:8::3/128", "192.168.50.5/32"), ("10.8.0.3/32", "fd00:8::3/128")),
        (("10.8.0.0/28",), ("10.8.0.16/32", "fd00:8::3/128", "10.8.0.0/28"), ("10.8.0.16/32", "fd00:8::3/128")),
        (("0.0.0.0/0",), ("10.8.0.3/32", "fd00:8::3/128", "0.0.0.0/0"), ("10.8.0.3/32", "fd00:8::3/128")),
    ],
)
def test_a_peer_with_a_network_behind_it_has_an_address_too(
    wanted: tuple[str, ...], allowed: tuple[str, ...], addresses: tuple[str, ...]
) -> None:
    assert clients.allowed(server(), wanted) == allowed
    peer = vpnfile.PeerEntry.model_validate({"public-key": TWO, "allowed-ips": allowed})
    assert wgquick.parse(clients.client(server(), peer, bytes([3]) * 32, bytes([8]) * 32, None)).addresses == addresses


def test_random_networks_avoid_what_is_there() -> None:
    taken = ["10.0.0.1/9", "192.0.2.1/24", "2001:db8::1/64"]
    for _ in range(50):
        four, six = clients.random_networks(taken)
        assert addresses.address("10.128.0.0") < addresses.interface(four).ip < addresses.address("11.0.0.0")
        assert addresses.interface(six).ip in addresses.network("fd00::/8")
    with pytest.raises(MixosError) as caught:
        clients.random_networks(["10.0.0.1/8"])
    assert caught.value.reason == "vpn-address"


# -- what the kernel shall have --------------------------------------------------------------------------------------


def test_routes_and_rules_of_a_tunnel_that_takes_everything() -> None:
    text = SERVER.replace('"10.8.0.2/32", "fd00:8::2/128"', '"0.0.0.0/0", "10.8.0.2/32", "192.0.2.0/24"')
    entry = server(text)
    assert tunnel.routes("wg0", entry) == {
        Route("0.0.0.0/0", "", "wg0", 0, table=51820),
        Route("192.0.2.0/24", "", "wg0", 0, table=MAIN_TABLE),
    }
    assert tunnel.rules([entry]) == {
        Rule(2, 32764, MAIN_TABLE, suppress=0),
        Rule(2, 32765, 51820, mark=51820, inverted=True),
    }
    quiet = server(text.replace("port = 51820", "port = 51820\nroutes = false"))
    assert tunnel.routes("wg0", quiet) == set()
    assert tunnel.rules([quiet]) == set()
    assert tunnel.mark_of(quiet) == 0


# case: wanted endpoint inside its own AllowedIPs
@pytest.mark.parametrize(
    ("endpoint", "allowed", "count"),
    [
        ("203.0.113.9:5", '"10.0.0.0/8", "203.0.113.0/24"', 1),
        ("203.0.113.9:5", '"0.0.0.0/1", "128.0.0.0/1"', 0),  # everything, in two halves
        ("203.0.113.9:5", '"0.0.0.0/2", "128.0.0.0/1"', 1),
        ("[2001:db8::9]:5", '"2001:db8::/32"', 1),
        ("203.0.113.9:5", '"0.0.0.0/0", "203.0.113.0/24"', 1),
        ("203.0.113.9:5", '"0.0.0.0/0"', 0),
        ("203.0.113.9:5", '"10.0.0.0/8"', 0),
        ("vpn.example.org:5", '"0.0.0.0/1"', 0),
    ],
)
def test_an_endpoint_in_what_leads_to_it_is_a_warning(endpoint: str, allowed: str, count: int) -> None:
    text = f'[interface.wg0.peer.a]\npublic-key = "{ONE}"\nendpoint = "{endpoint}"\nallowed-ips = [{allowed}]\n'
    assert len(tunnel.warnings(server(text))) == count
    assert tunnel.warnings(server(f"[interface.wg0]\nroutes = false\n{text}")) == []


def test_a_device_needs_its_secrets(tmp_path: Path) -> None:
    store = files(tmp_path).store
    with pytest.raises(MixosError) as caught:
        tunnel.device("wg0", server(), store, {})
    assert caught.value.reason == "vpn-secret-missing"
    store.write("wg0.key", b"\xff" * 32)
    device = tunnel.device("wg0", server(), store, {"a": Endpoint("192.0.2.1", 5)})
    assert device.private == b"\xf8" + b"\xff" * 30 + b"\x7f"  # as the kernel keeps it
    assert device.peers[0].endpoint == Endpoint("192.0.2.1", 5)


def test_only_peers_that_do_not_answer_are_moved() -> None:
    now = time.time()
    old, new = Endpoint("192.0.2.1", 5), Endpoint("192.0.2.2", 5)
    one, two = keys.decode(ONE), keys.decode(TWO)

    def moved(handshake: float, told: dict[bytes, Any]) -> list[bytes]:
        actual = Device("wg0", peers=(Peer(one, endpoint=old, handshake=int(handshake)), Peer(two, endpoint=old)))
        wanted = Device("wg0", peers=(Peer(one, endpoint=new), Peer(two, endpoint=None)))
        return [change.public for change in tunnel.to_move(actual, wanted, told, now)]

    assert moved(now - 5, {}) == []  # it may have roamed
    assert moved(now - 5, {one: new}) == []
    assert moved(now - 5, {one: old}) == [one]  # the file says something new
    assert moved(now - 500, {}) == [one]
    assert moved(now + 3600, {}) == [one]  # the clock was set back: nobody knows whether it answers
    assert moved(0, {one: new}) == [one]


def test_a_name_with_several_addresses_moves_nobody_who_answers() -> None:
    """Name servers turn the order of their answers; a dead address must not be kept for ever either."""
    a, b, elsewhere = Endpoint("192.0.2.1", 5), Endpoint("192.0.2.2", 5), Endpoint("192.0.2.9", 7)
    here = Peer(keys.decode(ONE), endpoint=a)
    roamed = Peer(keys.decode(ONE), endpoint=elsewhere)
    assert tunnel.choose([], None, here, False) is None
    assert tunnel.choose([b, a], None, None, False) == b  # a new peer gets the first
    assert tunnel.choose([b, a], None, here, False) == a  # a daemon that just started
    assert tunnel.choose([b, a], a, here, False) == a
    assert tunnel.choose([b, a], a, roamed, False) == a  # which `to_move` leaves alone while it answers
    assert tunnel.choose([b], a, here, False) == b  # the name leads elsewhere now
    assert tunnel.choose([a, b], a, here, True) == b
    assert tunnel.choose([a, b], b, Peer(here.public, endpoint=b), True) == a
    assert tunnel.choose([a, b], a, roamed, True) == a  # first back to where the name leads
    assert tunnel.choose([a], a, here, True) == a


def test_a_tunnel_that_takes_everything_has_a_table_of_its_own_whatever_its_mark() -> None:
    entry = server(
        SERVER.replace('"10.8.0.2/32", "fd00:8::2/128"', '"0.0.0.0/0"').replace("port =", "mark = 254\nport =")
    )
    assert tunnel.mark_of(entry) == 254
    assert {route.table for route in tunnel.routes("wg0", entry)} == {tunnel.TABLE}
    assert {(rule.table, rule.mark) for rule in tunnel.rules([entry])} == {(MAIN_TABLE, 0), (tunnel.TABLE, 254)}


def test_a_new_peer_gets_no_address_of_another_peers_network() -> None:
    entry = server(
        SERVER.replace('"10.8.0.2/32", "fd00:8::2/128"', '"10.8.0.0/28", "10.8.0.17/32", "0.0.0.0/0", "::/0"')
    )
    assert clients.next_addresses(entry) == ("10.8.0.16/32", "fd00:8::2/128")


def test_names_that_nobody_answers_for_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A confirmation writes its files in a thread as well, and has a deadline."""
    let_go = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: let_go.wait(30) and [])

    async def scenario() -> None:
        looking = [asyncio.create_task(resolve.endpoint(f"peer{n}.example.org:51820", 20.0)) for n in range(64)]
        await asyncio.sleep(0.2)
        try:
            await asyncio.wait_for(asyncio.to_thread(lambda: None), 5)
        finally:
            let_go.set()
        assert await asyncio.gather(*looking) == [[]] * len(looking)

    asyncio.run(scenario())
