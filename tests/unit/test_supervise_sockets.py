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


@pytest.mark.skipif(os.geteuid() != 0, reason="other owners need root")
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


def test_tcp(port: int, monkeypatch: pytest.MonkeyPatch):
    with open_socket(wanted(tcp=port)) as channel:
        assert channel.getsockname() == ("127.0.0.1", port)
        with pytest.raises(MixosError) as caught:
            open_socket(wanted(tcp=f"127.0.0.1:{port}"))
        assert caught.value.reason == "socket-busy"
    with open_socket(wanted(tcp=f"[::1]:{port}")) as channel:
        assert channel.family == socket.AF_INET6
