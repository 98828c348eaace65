"""Content of calls: what is read from descriptors of others and how, transfers in pieces, and a door that gets both."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import MixosError, NotFoundError, RefusedError, RpcError
from common.tomlfile import Strict
from daemon.client.connection import call, stream
from daemon.core import rpc, spool
from daemon.core.method import ADMINS, OPERATORS, Caller, Method, Role
from daemon.core.parts import Source
from daemon.core.spool import Spool
from daemon.core.transfer import Accepts, Content, Descriptors, accepted
from daemon.doors import interface
from tests.daemons import QUICK, Running, answers, connected, request, running


@contextmanager
def closing(*numbers: int) -> Iterator[None]:
    try:
        yield
    finally:
        for number in numbers:
            with suppress(OSError):
                os.close(number)


def socket_pair() -> tuple[int, int]:
    """Over TCP: a Unix socket of this process is one of the daemon's own, which is in this process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one.detach(), server.accept()[0].detach()


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def content(number: int, accepts: Accepts = Accepts(1 << 20)) -> Content:  # noqa: B008  # immutable
    """A content of a descriptor of its own."""
    found = Content(0, accepts)
    found.attach(os.dup(number))
    return found


def file_with(tmp_path: Path, data: bytes) -> int:
    (tmp_path / "file").write_bytes(data)
    return os.open(tmp_path / "file", os.O_RDONLY)


# -- which descriptors -----------------------------------------------------------------------------------------------


def _listening(folder: Path) -> int:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "socket"))
        one.listen()
        return one.detach()


def _fifo(folder: Path) -> int:
    os.mkfifo(folder / "fifo")
    return os.open(folder / "fifo", os.O_RDWR | os.O_NONBLOCK)


def _written(folder: Path, flags: int) -> int:
    (folder / "file").write_bytes(b"x")
    return os.open(folder / "file", flags)


BAD: dict[str, Callable[[Path], int]] = {
    "folder": lambda folder: os.open(folder, os.O_RDONLY),
    "path": lambda folder: os.open(folder, os.O_PATH),
    "path of a file": lambda folder: _written(folder, os.O_PATH),
    "device": lambda _: os.open("/dev/zero", os.O_RDONLY),
    "write-only": lambda folder: _written(folder, os.O_WRONLY),
    "write end": lambda _: os.pipe()[1],
    "datagrams": lambda _: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].detach(),
    "packets": lambda _: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0].detach(),
    "listening": _listening,
    "unconnected": lambda _: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(),
    "netlink": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).detach(),
    "eventfd": lambda _: os.eventfd(1),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_safely_is_refused_and_closed(tmp_path, kind):
    number = BAD[kind](tmp_path)
    found = Content(0, Accepts(None))
    with closing(number):
        with pytest.raises(RefusedError) as caught:
            found.attach(number)
        assert caught.value.reason == "transfer-kind"
        assert caught.value.hint
        assert not is_open(number)
    found.close()


@pytest.mark.parametrize("make", [_fifo, lambda _: os.pipe()[0], lambda _: socket_pair()[0]])
def test_streams_are_refused_where_a_file_is_needed(tmp_path, make):
    number = make(tmp_path)
    with pytest.raises(RefusedError) as caught:
        Content(0, Accepts(None, streams=False)).attach(number)
    assert caught.value.reason == "transfer-kind"
    assert caught.value.hint
    assert not is_open(number)


def test_descriptors_have_one_owner_each():
    numbers = list(os.pipe())
    given = Descriptors(numbers)
    assert given.take(1) == numbers[1]
    for wrong in (1, 2):
        with pytest.raises(RefusedError) as caught:
            given.take(wrong)
        assert caught.value.reason == "transfer-descriptors"
    with pytest.raises(RefusedError):
        given.finish()
    given.close()
    assert [is_open(number) for number in numbers] == [False, True]
    given.finish()
    os.close(numbers[1])


# -- how they are read -------------------------------------------------------------------------------------------------


async def _all(one: Content) -> bytes:
    return await one.data()


async def _read(one: Content) -> bytes:
    """In a thread."""

    def read() -> bytes:
        return b"".join(iter(lambda: one.read(1000), b""))

    return await asyncio.to_thread(read)


async def _copied(one: Content) -> bytes:
    """Through a pipe with a reader who sleeps now and then."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    found: list[bytes] = []

    def read() -> None:
        while data := os.read(reader, random.choice((1, 100, 1 << 16))):
            found.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        await one.copy(writer)
    finally:
        os.close(writer)
        await asyncio.to_thread(thread.join)
        os.close(reader)
    return b"".join(found)


@pytest.mark.parametrize("how", [_all, _read, _copied])
@pytest.mark.parametrize("size", [0, 1, 300_000])
@pytest.mark.parametrize("kind", ["file", "pipe", "socket"])
def test_every_kind_is_read_in_every_way(tmp_path, kind, size, how):
    data = random.Random(size).randbytes(size)
    if kind == "file":
        number, thread = file_with(tmp_path, b"before" + data), None
        os.lseek(number, 6, os.SEEK_SET)
    else:
        number, other = socket_pair() if kind == "socket" else os.pipe()

        def write() -> None:
            with os.fdopen(other, "wb") as stream:
                stream.write(data)

        thread = threading.Thread(target=write)
        thread.start()
    with closing(number):
        one = content(number)
        flags = fcntl.fcntl(number, fcntl.F_GETFL)
        assert asyncio.run(how(one)) == data
        assert (one.taken, one.ended, one.size) == (size, True, size if kind == "file" else None)
        assert fcntl.fcntl(number, fcntl.F_GETFL) == flags
        assert kind != "file" or os.lseek(number, 0, os.SEEK_CUR) == 6
        one.close()
    if thread:
        thread.join(20)


def test_a_file_is_read_as_it_was_when_it_was_handed_over(tmp_path):
    with closing(number := file_with(tmp_path, b"x" * 1000)):
        one = content(number)
        with (tmp_path / "file").open("ab") as file:
            file.write(b"more")
        assert asyncio.run(one.data()) == b"x" * 1000
        one = content(number)
        os.truncate(tmp_path / "file", 10)
        with pytest.raises(RefusedError) as caught:
            asyncio.run(one.data())
        assert caught.value.reason == "transfer-changed"


def test_files_without_size_are_not_read_for_others():
    """Some files of /proc answer whatever the process that reads may know."""
    with closing(number := os.open("/proc/self/stat", os.O_RDONLY)):
        assert asyncio.run(content(number).data()) == b""


def test_limits(tmp_path):
    with closing(number := file_with(tmp_path, b"x" * 11)):
        one = Content(0, Accepts(10))
        with pytest.raises(RefusedError) as caught:
            one.attach(os.dup(number))
        assert caught.value.reason == "transfer-too-big"
        one.close()
    reader, writer = os.pipe()
    with closing(reader, writer):
        os.write(writer, b"x" * 11)
        with pytest.raises(RefusedError) as caught:
            asyncio.run(content(reader, Accepts(10)).data())
        assert caught.value.reason == "transfer-too-big"
        for how in (_all, _read, _copied):
            with pytest.raises(RefusedError) as caught:
                asyncio.run(how(content(reader, Accepts(10, idle=0.05))))
            assert caught.value.reason == "transfer-idle"


def test_who_takes_the_bytes_first_does_not_make_us_wait(tmp_path, monkeypatch):
    """A pipe may be read by others as well: being told that there is something is no promise."""
    reader, writer = os.pipe()
    with closing(reader, writer):
        one = content(reader, Accepts(10, idle=0.2))

        async def told(_: int) -> None:
            os.write(writer, b"x")
            os.read(reader, 1)
            await asyncio.sleep(0.01)

        monkeypatch.setattr("daemon.core.transfer.readable", told)
        with pytest.raises(RefusedError) as caught:
            asyncio.run(asyncio.wait_for(_until(one), 20))
        assert caught.value.reason == "transfer-idle"


async def _until(one: Content) -> bytes:
    asyncio.get_running_loop().call_later(0.1, setattr, one, "accepts", Accepts(10, idle=0.0))
    return await one.data()


def test_closing_ends_a_thread_that_waits():
    reader, writer = os.pipe()
    with closing(reader, writer):
        one = content(reader, Accepts(None, idle=None))
        own = one._source.descriptor  # type: ignore[union-attr]
        reasons: list[str] = []

        def read() -> None:
            try:
                one.read(10)
            except MixosError as error:
                reasons.append(error.reason)

        thread = threading.Thread(target=read)
        thread.start()
        while not one._reading:
            time.sleep(0.001)
        one.close()
        thread.join(20)
        assert reasons == ["transfer-gone"]
        assert not is_open(own)
        one.close()


def test_a_parameter_says_how_it_is_taken():
    class Many(Strict):
        must_be: Annotated[Content, Accepts(5)]
        may_be: Annotated[Content, Accepts(None, streams=False)] | None = None
        other: int = 0

    assert accepted(Many) == {"must-be": Accepts(5), "may-be": Accepts(None, streams=False)}
    schema = Many.model_json_schema()["properties"]
    assert (schema["must-be"]["format"], schema["must-be"]["type"]) == ("content", ["integer", "string"])
    assert interface.signature(Many.model_fields["must_be"].annotation) == "s"
    found = Many.model_validate({"must-be": 0, "may-be": "id"})
    assert found.model_dump(mode="json", by_alias=True, exclude_unset=True) == {
        "must-be": {"kind": "none", "bytes": None},
        "may-be": {"kind": "none", "bytes": None},
    }
    for wrong in (-1, rpc.MAX_DESCRIPTORS, True, 1.0, "", "x" * 65, None, [0]):
        with pytest.raises(ValueError, match="must-be"):
            Many.model_validate({"must-be": wrong})


# -- in pieces ---------------------------------------------------------------------------------------------------------


def read_all(number: int) -> bytes:
    with closing(number):
        return os.pread(number, 1 << 20, 0)


@settings(max_examples=50, deadline=None)
@given(
    st.binary(min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 100)), max_size=20),
)
def test_pieces_come_together_however_often_they_are_repeated(data, tries):
    with running_spool() as one:
        name = one.begin(1, "a.b", len(data), hashlib.sha256(data).hexdigest())
        there = 0
        for at, size in tries:
            piece = data[at : at + size]
            if at > there:
                assert refused(one.write, 1, name, at, piece) == "transfer-gap"
            else:
                there = max(there, at + len(piece))
                assert one.write(1, name, at, piece) == there
        assert one.write(1, name, there, data[there:]) == len(data)
        assert one.write(1, name, 0, data[:10]) == len(data)
        assert read_all(one.open(1, name, "a.b")) == data
        assert list(one.folder.iterdir()) == []  # nothing has a name


@contextmanager
def running_spool(clock: Callable[[], float] = time.monotonic) -> Iterator[Spool]:
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"spool-{random.randrange(1 << 60):x}"  # of a test
    one = Spool(folder, clock)
    try:
        yield one
    finally:
        one.clear()
        assert not folder.exists()


def refused(act: Callable[..., object], *arguments: object) -> str:
    with pytest.raises((RefusedError, NotFoundError)) as caught:
        act(*arguments)
    return str(caught.value.reason)


def test_transfers_are_bounded_and_ones_own():
    now = [0.0]
    with running_spool(lambda: now[0]) as one:
        name = one.begin(1, "a.b", 4, hashlib.sha256(b"abcd").hexdigest())
        assert one.folder.stat().st_mode & 0o777 == 0o700
        assert refused(one.write, 2, name, 0, b"a") == "transfer-unknown"
        assert refused(one.open, 2, name, "a.b") == "transfer-unknown"
        assert refused(one.cancel, 2, name) == "transfer-unknown"
        assert refused(one.write, 1, name, 1, b"a") == "transfer-gap"
        assert refused(one.write, 1, name, 0, b"abcde") == "transfer-too-big"
        assert one.write(1, name, 0, b"ab") == 2
        for other in (b"x", b"ax", b"xbcd"):
            assert refused(one.write, 1, name, 0, other) == "transfer-conflict"
        assert one.get(1, name).received == 2
        assert refused(one.open, 1, name, "a.b") == "transfer-incomplete"
        assert one.write(1, name, 1, b"bcd") == 4
        assert refused(one.open, 1, name, "a.c") == "transfer-purpose"
        assert read_all(one.open(1, name, "a.b")) == b"abcd"
        one.cancel(1, name)
        assert refused(one.get, 1, name) == "transfer-unknown"

        name = one.begin(1, "a.b", 4, hashlib.sha256(b"abcd").hexdigest())
        assert refused(one.write, 1, name, 0, b"abce") == "transfer-digest"
        assert refused(one.get, 1, name) == "transfer-unknown"

        names = [one.begin(1, "a.b", 1, None) for _ in range(spool.MOST)]
        assert refused(one.begin, 1, "a.b", 1, None) == "transfer-limit"
        other = one.begin(2, "a.b", 1, None)
        assert (list(one.of(1)), list(one.of(2))) == (names, [other])
        now[0] = spool.IDLE - 1
        one.get(1, names[0])
        now[0] = spool.IDLE + 1
        assert list(one.of(1)) == names[:1]  # to be listed is no use of it
        assert one.status() == {"transfers": 1, "bytes": 0}
        assert refused(one.begin, 1, "a.b", spool.BYTES, None) == "transfer-limit"
        one.cancel(1, names[0])
        assert one.begin(1, "a.b", 1, None)


def test_the_disk_is_not_filled(monkeypatch):
    with running_spool() as one:
        one.folder.mkdir()
        disk = os.statvfs(one.folder)
        monkeypatch.setattr(spool, "BYTES", 1 << 60)
        assert refused(one.begin, 1, "a.b", disk.f_bavail * disk.f_frsize, None) == "transfer-space"
        assert one.status()["transfers"] == 0


# -- through the door --------------------------------------------------------------------------------------------------


class One(Strict):
    content: Annotated[Content, Accepts(1 << 24, idle=20.0)]
    word: str = ""


class Maybe(Strict):
    content: Annotated[Content, Accepts(100, streams=False)] | None = None
    second: Annotated[Content, Accepts(100)] | None = None


class Reader:
    """A part whose methods take content."""

    name = "reader"

    def __init__(self) -> None:
        self.done: list[str] = []

    def methods(self) -> Sequence[Method]:
        return (
            Method("reader.digest", "The SHA-256 of it.", self.digest, OPERATORS, One),
            Method("reader.set", "Changes something with it.", self.set, OPERATORS, One, changes=True, seconds=60.0),
            Method("reader.both", "None, one or two.", self.both, OPERATORS, Maybe, changes=True),
            Method("reader.items", "It as a stream.", self.items, ADMINS, One),
        )

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def status(self) -> Mapping[str, Any]:
        return {}

    async def digest(self, _: Caller, params: One) -> dict[str, Any]:
        data = await params.content.data()
        return {"word": params.word, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    async def set(self, _: Caller, params: One) -> int:
        def read() -> int:
            return sum(map(len, iter(lambda: params.content.read(4096), b"")))

        size = await asyncio.to_thread(read)
        self.done.append(params.word)
        return size

    async def both(self, _: Caller, params: Maybe) -> list[str | None]:
        return [one and (await one.data()).decode() for one in (params.content, params.second)]

    async def items(self, _: Caller, params: One) -> AsyncIterator[int]:
        async for piece in params.content.pieces():
            yield len(piece)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[Running, Reader]]:
    part = Reader()
    with running(tmp_path, limits=QUICK, more=[Source("reader", lambda: part)]) as found:
        yield found, part


@contextmanager
def nothing_left() -> Iterator[None]:
    """The daemon is in this process: every descriptor that comes must be closed again."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline, "descriptors are left open"
        time.sleep(0.01)


def reason(path: Path, method: str, params: Mapping[str, object], descriptors: Sequence[int] = ()) -> str:
    with pytest.raises(RpcError) as caught:
        call(method, params, path, descriptors=descriptors)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["file", "pipe", "socket"])
def test_a_descriptor_goes_with_a_call(device, tmp_path, kind):
    running_, part = device
    data = os.urandom(2_000_000)
    with nothing_left():
        if kind == "file":
            number, thread = file_with(tmp_path, data), None
        else:
            number, other = socket_pair() if kind == "socket" else os.pipe()
            stream_ = os.fdopen(other, "wb")
            thread = threading.Thread(target=lambda: (stream_.write(data), stream_.close()))
            thread.start()
        with closing(number):
            digest = call("reader.digest", {"content": 0}, running_.path, descriptors=[number])
        if thread:
            thread.join(20)
    assert (digest["bytes"], digest["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    with closing(number := file_with(tmp_path, data)), nothing_left():
        assert call("reader.set", {"content": 0, "word": "w"}, running_.path, descriptors=[number]) == len(data)
        assert sum(stream("reader.items", {"content": 0}, running_.path, descriptors=[number])) == len(data)
    assert part.done == ["w"]
    intents = [one for one in running_.audit() if one.get("method") == "reader.set"]
    assert intents[0]["params"] == {"content": {"kind": "file", "bytes": len(data)}, "word": "w"}


def test_descriptors_must_be_those_that_the_call_names(device, tmp_path):
    running_, _ = device
    path = running_.path
    (tmp_path / "small").write_bytes(b"small")
    small, folder = os.open(tmp_path / "small", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    reader, writer = os.pipe()
    with closing(small, folder, reader, writer), nothing_left():
        both = call("reader.both", {"content": 1, "second": 0}, path, descriptors=[small, small])
        assert both == ["small", "small"]
        assert call("reader.both", {}, path) == [None, None]
        for many in (1, rpc.MAX_DESCRIPTORS + 1, 200):  # whoever counts them, it is one error
            with pytest.raises(RpcError) as caught:
                call("ping", {}, path, descriptors=[small] * many)
            assert (caught.value.reason, caught.value.exit_code) == ("transfer-descriptors", 7)
            assert caught.value.hint
        for method, params, numbers, expected in (
            ("reader.both", {}, [small], "transfer-descriptors"),
            ("reader.both", {"content": 0}, [], "transfer-descriptors"),
            ("reader.both", {"content": 0}, [small, small], "transfer-descriptors"),
            ("reader.both", {"content": 1}, [small], "transfer-descriptors"),
            ("reader.both", {"content": 0, "second": 0}, [small], "transfer-descriptors"),
            ("reader.both", {"content": 0}, [reader], "transfer-kind"),
            ("reader.both", {"content": 0, "second": 1}, [small, folder], "transfer-kind"),
            ("reader.both", {"content": 0, "idempotency": "k"}, [small], "rpc-params"),
            ("reader.both", {"content": 9}, [small], "rpc-params"),
            ("reader.digest", {"content": 0, "word": 1}, [small], "rpc-params"),
            ("reader.none", {"content": 0}, [small], "rpc-method"),
            ("stream.cancel", {"stream": 1}, [small], "transfer-descriptors"),
            ("ping", {}, [small] * rpc.MAX_DESCRIPTORS, "transfer-descriptors"),
            ("ping", {}, [small] * (rpc.MAX_DESCRIPTORS + 1), "transfer-descriptors"),
            ("ping", {}, [small] * 200, "transfer-descriptors"),
        ):
            assert reason(path, method, params, numbers) == expected, (method, params, numbers)
        assert call("ping", {}, path) == "pong"


@pytest.mark.parametrize("method", ["reader.digest", "reader.items"])
def test_a_connection_to_the_daemon_is_no_content(device, method):
    """The daemon would hold it open itself."""
    running_, _ = device
    with nothing_left(), connected(running_.path) as channel:
        socket.send_fds(channel, [request(method, content=0)], [channel.fileno()])
        channel.shutdown(socket.SHUT_WR)
        assert answers(channel) == ["transfer-kind"]


def test_a_stream_too_many_keeps_no_descriptor(device):
    running_, _ = device
    reader, writer = os.pipe()
    with closing(reader, writer), nothing_left(), connected(running_.path) as channel:
        for number in range(QUICK.streams + 1):
            socket.send_fds(channel, [request("reader.items", number, content=0)], [reader])
        channel.shutdown(socket.SHUT_WR)
        assert answers(channel)[-1] == "stream-limit"


def test_a_role_that_may_not_call_leaves_nothing(tmp_path):
    with running(tmp_path, Role.VIEWER, more=[Source("reader", Reader)]) as found, nothing_left():
        assert reason(found.path, "reader.digest", {"content": 0}, [0]) == "role-denied"
        assert reason(found.path, "transfer.begin", {"purpose": "reader.digest", "size": 1}) == "role-denied"
    with running(tmp_path, None) as found, connected(found.path) as channel, nothing_left():
        with suppress(BrokenPipeError):
            socket.send_fds(channel, [request("ping")], [0])
        assert answers(channel) == ["role-none"]


def test_lines_keep_their_descriptors_apart(device, tmp_path):
    """Many calls at once, each with its own, in whatever pieces they arrive: a descriptor may come with any byte of
    its line."""
    running_, _ = device
    files = []
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(b"x" * number)
        files.append(os.open(tmp_path / f"{number}", os.O_RDONLY))
    dice = random.Random(7)
    with closing(*files), nothing_left(), connected(running_.path) as channel:
        expected = []
        for turn in range(100):
            number, line = dice.randrange(4), b""
            named = dice.random() < 0.6
            line = request("reader.digest", turn, content=0) if named else request("ping", turn)
            cuts = sorted(dice.sample(range(1, len(line)), dice.randrange(4)))
            pieces = [line[a:b] for a, b in zip([0, *cuts], [*cuts, len(line)], strict=True)]
            chosen = dice.randrange(len(pieces))
            for index, piece in enumerate(pieces):
                socket.send_fds(channel, [piece], [files[number]] if named and index == chosen else [])
            expected.append(number if named else None)
        channel.shutdown(socket.SHUT_WR)
        found = [None if one == "pong" else one["bytes"] for one in answers(channel)]
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([request("ping"), request("reader.both", content=0), request("reader.both")]),
                st.binary(max_size=60),
                st.just(b"\n"),
            ),
            st.integers(0, 6),
        ),
        max_size=8,
    ),
    st.integers(1, 50),
)
def test_whatever_comes_leaves_no_descriptor(fuzzed, pieces, cut):
    """Torn lines, garbage, any number of descriptors with any byte; the daemon answers afterwards."""
    path, file = fuzzed
    with nothing_left(), connected(path) as channel, suppress(BrokenPipeError, ConnectionResetError):
        for data, count in pieces:
            socket.send_fds(channel, [data[:cut] or b"{"], [file] * count)
            channel.sendall(data[cut:])
        channel.shutdown(socket.SHUT_WR)
        answers(channel)
    assert call("ping", {}, path) == "pong"


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "empty").touch()
    number = os.open(folder / "empty", os.O_RDONLY)
    with closing(number), running(folder, limits=QUICK, more=[Source("reader", Reader)]) as found:
        yield found.path, number


@pytest.mark.parametrize("method", ["reader.set", "reader.digest"])
def test_who_leaves_before_all_is_there_ends_the_call(device, method):
    """Also a change, while it is only reading; who leaves later does not."""
    running_, part = device
    reader, writer = os.pipe()
    with closing(reader, writer), nothing_left():
        channel = connected(running_.path)
        socket.send_fds(channel, [request(method, content=0, word="never")], [reader])
        os.write(writer, b"some")
        assert b"transfer.progress" in channel.recv(1000)
        channel.close()
    assert part.done == []
    outcomes = [one["outcome"] for one in running_.audit() if one.get("kind") == "outcome"]
    assert outcomes == (["cancelled"] if method == "reader.set" else [])


def test_progress_is_told(device):
    running_, _ = device
    reader, writer = os.pipe()
    told: list[tuple[int, int | None]] = []

    def progress(count: int, size: int | None) -> None:
        told.append((count, size))
        if len(told) < 3:
            os.write(writer, bytes(1000))
        elif is_open(writer):
            os.close(writer)

    with closing(reader, writer):
        size = call("reader.set", {"content": 0}, running_.path, descriptors=[reader], progress=progress)
    assert size == 2000
    assert told[0] == (0, None)
    assert [count for count, _ in told] == sorted(count for count, _ in told)


def test_content_in_pieces(device):
    running_, part = device
    path, data = running_.path, os.urandom(100_000)
    digest = hashlib.sha256(data).hexdigest()
    begun = call("transfer.begin", {"purpose": "reader.set", "size": len(data), "sha256": digest}, path)
    ident, piece = begun["id"], begun["piece"]
    assert reason(path, "reader.set", {"content": ident}) == "transfer-incomplete"
    at = 0
    while at < len(data):
        part_ = base64.b64encode(data[at : at + piece]).decode()
        at = call("transfer.write", {"id": ident, "offset": at, "data": part_}, path)["received"]
    assert call("transfer.status", {"id": ident}, path) == {
        "purpose": "reader.set",
        "size": len(data),
        "received": len(data),
    }
    assert running_.call("status")["parts"]["transfer"]["bytes"] == len(data)
    row = {"id": ident, "purpose": "reader.set", "size": len(data), "received": len(data)}
    assert call("transfer.list", {}, path) == [row]
    assert reason(path, "reader.digest", {"content": ident}) == "transfer-purpose"
    for word in ("once", "again"):
        assert call("reader.set", {"content": ident, "word": word}, path) == len(data)
    call("transfer.cancel", {"id": ident}, path)
    assert reason(path, "reader.set", {"content": ident}) == "transfer-unknown"
    assert part.done == ["once", "again"]
    for params, expected in (
        ({"purpose": "ping", "size": 1}, "transfer-purpose"),
        ({"purpose": "reader.none", "size": 1}, "rpc-method"),
        ({"purpose": "reader.set", "size": (1 << 24) + 1}, "transfer-too-big"),
        ({"purpose": "reader.set", "size": 0}, "rpc-params"),
    ):
        assert reason(path, "transfer.begin", params) == expected
    ident = call("transfer.begin", {"purpose": "reader.set", "size": 1}, path)["id"]
    assert reason(path, "transfer.write", {"id": ident, "offset": 0, "data": "!"}) == "transfer-data"


def test_a_client_hears_how_far_its_upload_is(tmp_path):
    """Reading what was uploaded before takes time as well, without a descriptor in the call."""
    path = tmp_path / "socket"

    def serve(listener: socket.socket) -> None:
        channel, _ = listener.accept()
        with channel:
            channel.recv(4096)
            progress = {"jsonrpc": "2.0", "method": "transfer.progress", "params": {"call": 1, "bytes": 0, "size": 9}}
            channel.sendall(json.dumps(progress).encode() + b"\n" + rpc.encode_result(1, "done"))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        assert call("reader.set", {"content": "0123"}, path) == "done"
        server.join()
