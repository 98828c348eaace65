"""Listening sockets of units: what is replaced, what is refused, who may connect."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import MixosError
from daemon.parts.service.sockets import open_socket, remove_files
from daemon.parts.service.unit import Socket
from tests.supervision import as_root


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # a short name: it has 107 bytes at most
        yield Path(folder) / "new" / "s"


def wanted(**keys: object) -> Socket:
    me = {"owner": str(os.geteuid()), "group": str(os.getegid())}
    return Socket.model_validate({**me, **keys})


def test_a_unix_socket_has_its_mode_from_the_first_moment(path: Path):
    with open_socket(wanted(unix=str(path), mode="0660")) as channel:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert [one.name for one in path.parent.iterdir()] == ["s"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            channel.accept()[0].close()


# case: D16
def test_a_unix_socket_knows_its_own_name(path: Path):
    for _ in range(2):  # a dead one is in the way then
        with open_socket(wanted(unix=str(path))) as channel, socket.socket(socket.AF_UNIX) as client:
            assert channel.getsockname() == str(path)
            client.connect(str(path))
            assert client.getpeername() == str(path)


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o770])
def test_owner_and_mode_of_a_unix_socket(path: Path, mode: int):
    with open_socket(wanted(unix=str(path), owner="daemon", group="daemon", mode=f"{mode:04o}")):
        facts = path.stat()
        assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (1, 1, mode)


def test_a_dead_socket_is_replaced_a_live_one_and_anything_else_is_not(path: Path):
    first = open_socket(wanted(unix=str(path)))
    with pytest.raises(MixosError) as caught:
        open_socket(wanted(unix=str(path)))
    assert caught.value.reason == "socket-busy"
    first.close()
    open_socket(wanted(unix=str(path))).close()
    remove_files([wanted(unix=str(path))])
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(MixosError) as caught:
        open_socket(wanted(unix=str(path)))
    assert caught.value.reason == "socket-refused"
    remove_files([wanted(unix=str(path))])
    assert path.read_text() == "precious"


@as_root
@pytest.mark.parametrize("kind", ["link", "hard link", "socket of root", "socket of another", "folder"])
# case: H1
def test_who_owns_the_folder_of_a_socket_is_given_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What was bound is exchanged for root's file before it gets its owner, or its folder before it is bound."""
    path.parent.mkdir()
    os.chown(path.parent, 1, 1)
    precious = path.parent.with_name("precious")
    with socket.socket(socket.AF_UNIX) as other:
        if kind.startswith("socket"):
            other.bind(os.fspath(precious))
            os.chown(precious, 0 if kind == "socket of root" else 54321, 0)
        elif kind == "folder":
            precious.mkdir()
        else:
            precious.touch()
    precious.chmod(0o600)
    owner = precious.lstat().st_uid
    bind = socket.socket.bind

    def exchanged(channel: socket.socket, place: str) -> None:
        if kind == "folder":
            path.parent.rename(path.parent.with_name("away"))
            path.parent.symlink_to(precious)
        bind(channel, place)
        if kind == "link":
            path.unlink()
            path.symlink_to(precious)
        elif kind != "folder":
            path.unlink()
            path.hardlink_to(precious)

    monkeypatch.setattr(socket.socket, "bind", exchanged)
    with pytest.raises(MixosError) as caught:
        open_socket(wanted(unix=str(path), mode="0666", owner="daemon"))
    assert caught.value.reason == "socket-refused"
    assert (precious.stat().st_uid, stat.S_IMODE(precious.stat().st_mode)) == (owner, 0o600)
    assert all(one.lstat().st_uid == 0 for one in (precious.iterdir() if kind == "folder" else ()))


@as_root
@pytest.mark.parametrize("there", [True, False])
def test_a_socket_is_not_bound_where_others_can_exchange_its_folder(path: Path, there: bool) -> None:
    """bind(2) takes a path: who owns a folder on the way would choose where root makes a socket."""
    path.parent.mkdir()
    os.chown(path.parent, 12345, 12345)
    if there:
        (path.parent / "run").mkdir()
    with pytest.raises(MixosError) as caught:
        open_socket(wanted(unix=f"{path.parent}/run/s"))
    assert caught.value.reason == "socket-refused"
    assert [one.name for one in path.parent.rglob("*")] == ["run"] * there
    with open_socket(wanted(unix=f"{path.parent}/s")):
        pass


@as_root
# case: H1
def test_a_folder_of_a_socket_is_not_found_through_a_link_of_others(path: Path) -> None:
    path.parent.mkdir()
    elsewhere = path.parent.with_name("elsewhere")
    elsewhere.mkdir()
    (path.parent / "link").symlink_to(elsewhere)
    os.lchown(path.parent / "link", 12345, 12345)
    here = wanted(unix=f"{path.parent}/link/s")
    with pytest.raises(MixosError) as caught:
        open_socket(here)
    assert caught.value.reason == "socket-refused"
    assert not list(elsewhere.iterdir())
    with open_socket(wanted(unix=f"{elsewhere}/s")):
        remove_files([here])
        assert (elsewhere / "s").is_socket()


def test_tcp(port: int, monkeypatch: pytest.MonkeyPatch):
    with open_socket(wanted(tcp=port)) as channel:
        assert channel.getsockname() == ("127.0.0.1", port)
        with pytest.raises(MixosError) as caught:
            open_socket(wanted(tcp=f"127.0.0.1:{port}"))
        assert caught.value.reason == "socket-busy"
    with open_socket(wanted(tcp=f"[::1]:{port}")) as channel:
        assert channel.family == socket.AF_INET6


@pytest.mark.parametrize("only", [False, True])
def test_whether_an_ipv6_socket_serves_ipv4_is_said_for_each(port: int, only: bool):
    for key, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
        one = wanted(**{key: f"[::]:{port}", "ipv6-only": only})
        with open_socket(one) as channel, socket.socket(socket.AF_INET, kind) as client:
            assert channel.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only
            with pytest.raises(ConnectionRefusedError) if only else contextlib.nullcontext():
                client.connect(("127.0.0.1", port))
                for _ in range(2):  # a datagram is refused by the time of the second
                    client.send(b"x")


def test_udp(port: int):
    with open_socket(wanted(udp=port)) as channel, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", ("127.0.0.1", port))
        assert channel.recv(10) == b"hello"
        with pytest.raises(MixosError) as caught:  # nobody gets a part of what comes in
            open_socket(wanted(udp=f"127.0.0.1:{port}"))
        assert caught.value.reason == "socket-busy"


def test_a_unix_socket_for_datagrams(path: Path):
    one = wanted(unix=str(path), datagram=True, mode="0620")
    for _ in range(2):  # a dead one is in the way then
        with open_socket(one) as channel, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            assert stat.S_IMODE(path.stat().st_mode) == 0o620
            client.connect(str(path))
            client.send(b"hello")
            assert channel.recv(10) == b"hello"
            for other in (one, wanted(unix=str(path))):
                with pytest.raises(MixosError) as caught:
                    open_socket(other)
                assert caught.value.reason == "socket-busy"
    with open_socket(wanted(unix=str(path))), pytest.raises(MixosError) as caught:
        open_socket(one)
    assert caught.value.reason == "socket-busy"
    remove_files([one])
    assert not path.exists()


@pytest.mark.parametrize("datagram", [False, True])
def test_an_abstract_socket_has_a_name_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datagram: bool):
    monkeypatch.chdir(tmp_path)
    name = f"mixos-test-{os.getpid()}"
    one = Socket(unix=f"@{name}", datagram=datagram)
    with open_socket(one) as channel, socket.socket(socket.AF_UNIX, channel.type) as client:
        assert channel.getsockname() == b"\0" + name.encode()
        client.connect(f"\0{name}")
        with pytest.raises(MixosError) as caught:
            open_socket(one)
        assert caught.value.reason == "socket-busy"
    remove_files([one])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"tcp": 80, "udp": 80},
        {"udp": 80, "unix": "/run/s"},
        {"tcp": "[::1]:80", "datagram": True},
        {"tcp": 80, "ipv6-only": True},
        {"unix": "/run/s", "ipv6-only": True},
        {"unix": "@shop", "mode": "0600"},
        {"unix": "@shop", "owner": "root"},
        {"unix": "@"},
        {"unix": "@a b"},
        {"unix": "@" + "x" * 107},
    ],
)
def test_what_no_socket_can_be(keys: dict[str, object]):
    with pytest.raises(ValidationError):
        Socket.model_validate(keys)
