"""Listening sockets of units: what is replaced, what is refused, who may connect."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
