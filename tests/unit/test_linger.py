"""Descriptors that would be waited for when they are closed hold up nobody."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from daemon.core.method import Role
from daemon.core.transfer import Accepts, Content
from daemon.linux import foreign
from tests.daemons import answers, connected, request, running
from tests.forking import forked
from tests.waiting import PATIENCE


def lingering() -> tuple[socket.socket, list[socket.socket]]:
    """A socket whose last close(2) waits for hours, since its other end reads nothing; and what keeps that end."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    ours.setblocking(False)
    try:
        while True:
            ours.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7200))
    return ours, [listener, theirs]


def handed(stream: socket.socket, data: bytes, count: int = 1) -> list[socket.socket]:
    """Send some; only the message has them then."""
    made = [lingering() for _ in range(count)]
    socket.send_fds(stream, [data], [one.fileno() for one, _ in made])
    for one, _ in made:
        one.close()
    return [other for _, others in made for other in others]


def ends(work: Callable[[], object], others: list[socket.socket]) -> bool:
    """Whether it does, without the other ends; in any case it does with them."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE / 3)
    ended = not thread.is_alive()
    for one in others:
        one.close()
    thread.join()
    return ended


def test_closing_one():
    one, others = lingering()
    assert ends(lambda: foreign.release(one.detach()), others)


def test_closing_a_connection_with_one_in_it():
    ours, theirs = socket.socketpair()
    with theirs:
        others = handed(theirs, b"x")
        assert ends(lambda: foreign.close(ours), others)


def test_one_within_a_content(tmp_path):
    one, others = lingering()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "s"))
        listener.listen()

        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(os.fspath(tmp_path / "s"))
                socket.send_fds(stream, [b"x"], [one.fileno()])

        pid = forked(connect)  # another process, whose connection is taken for content
        theirs, _ = listener.accept()
        os.waitpid(pid, 0)
    one.close()
    content = Content(0, Accepts(None))
    content.attach(theirs.detach())
    assert ends(lambda: content.read(10), others)
    content.close()


@pytest.mark.parametrize(("count", "expected"), [(1, "transfer-descriptors"), (9, "transfer-descriptors")])
def test_callers_that_hand_them_over(tmp_path, count, expected):
    with running(tmp_path, Role.VIEWER) as found, connected(found.path) as channel:
        others = handed(channel, request("ping"), count)
        channel.shutdown(socket.SHUT_WR)
        assert ends(lambda: found.call("ping"), others)
        assert answers(channel) == [expected]
