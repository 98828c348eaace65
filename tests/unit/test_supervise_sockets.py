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
from daemon.parts.service import sockets
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
@pytest.mark.parametrize("kind", ["link", "hard link"])
# case: H1
def test_who_owns_the_folder_of_a_socket_is_given_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever is there before it gets its owner is exchanged for root's file."""
    path.parent.mkdir()
    os.chown(path.parent, 12345, 12345)
    precious = path.parent.with_name("precious")
    precious.touch(0o600)

    def exchanged(name: str) -> int:
        for one in list(path.parent.iterdir()):
            one.rename(path.parent / "away")
            one.symlink_to(precious) if kind == "link" else one.hardlink_to(precious)
        return 12345

    monkeypatch.setattr(sockets, "user_id", exchanged)
    with open_socket(wanted(unix=str(path), mode="0666")):
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (12345, 0o666)
    assert (precious.stat().st_uid, stat.S_IMODE(precious.stat().st_mode)) == (0, 0o600)


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
