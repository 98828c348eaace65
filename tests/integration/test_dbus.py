"""The daemon on a real bus: dbus-daemon with the device's configuration; busctl and gdbus as several accounts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from buildsys.run import Completed, Process, run, spawn
from common.errors import RpcError
from common.tomlfile import Strict
from daemon.core.method import ADMINS, Caller, Method, Role
from daemon.core.parts import Source
from daemon.core.transfer import Accepts, Content
from daemon.doors.busdoor import fits
from daemon.doors.interface import by_part, describe
from tests.daemons import Running, running
from tests.hostpackages import ROOT
from tests.waiting import PATIENCE, ended

pytestmark = pytest.mark.integration

ACCOUNTS = {0: Role.ADMIN, 1001: Role.OPERATOR, 1002: Role.VIEWER, 1003: Role.AGENT}
MIXOS = 900  # the group
NAMES = {1001: "operator", 1002: "viewer", 1003: "agent", 4711: "without-role", 4712: "without-group"}


class Bus:
    """A dbus-daemon of this test's own, with the device's files."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "bus")
        self.address = f"unix:path={self.path}"
        self._process: Process | None = None
        self._passwd, self._group = str(folder / "passwd"), str(folder / "group")
        people = ["root:x:0:0::/:", *(f"{name}:x:{uid}:{uid}::/:" for uid, name in NAMES.items())]
        Path(self._passwd).write_text("\n".join(people) + "\n")
        Path(self._group).write_text(f"mixos:x:{MIXOS}:{','.join(NAMES[uid] for uid in NAMES if uid != 4712)}\n")

    def start(self) -> None:
        config = f"--config-file={ROOT}/daemon/dbus/system.conf"
        argv = ["dbus-daemon", config, f"--address={self.address}", "--nofork", "--nopidfile", "--nosyslog"]
        # The bus alone sees the device's accounts: it looks up the groups of whoever connects.
        script = 'mount --bind "$1" /etc/passwd && mount --bind "$2" /etc/group && shift 2 && exec "$@"'
        self._process = spawn(["unshare", "--mount", "sh", "-c", script, "sh", self._passwd, self._group, *argv])
        for _ in range(500):
            with socket.socket(socket.AF_UNIX) as channel:
                if channel.connect_ex(self.path) == 0:
                    break
            time.sleep(0.02)
        else:
            pytest.fail("dbus-daemon does not listen")
        Path(self.path).chmod(0o666)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None
            Path(self.path).unlink(missing_ok=True)

    def ask(self, *argv: str, uid: int = 0) -> Completed:
        """A program's answer, run as an account of the device."""
        groups = "--clear-groups" if uid == 4712 else f"--groups={MIXOS}"
        account = ["setpriv", f"--reuid={uid}", f"--regid={uid}", groups] if uid else []
        environment = {"DBUS_SYSTEM_BUS_ADDRESS": self.address}
        return run([*account, *argv], env=environment, split=True, allow=(0, 1), timeout=60)

    def busctl(self, *argv: str, uid: int = 0) -> Completed:
        return self.ask("busctl", f"--address={self.address}", "--json=short", *argv, uid=uid)

    def call(self, place: str, interface: str, member: str, *argv: str, uid: int = 0) -> Any:
        """The result of a method, without types."""
        found = self.busctl("call", "org.mixos", place, interface, member, *argv, uid=uid)
        assert found.status == 0, found.stderr
        data = plain(json.loads(found.stdout)["data"])
        return data[0] if data else None


def plain(value: Any) -> Any:
    """busctl's JSON without the types of variants."""
    if isinstance(value, dict):
        return (
            plain(value["data"])
            if set(value) == {"type", "data"}
            else {name: plain(one) for name, one in value.items()}
        )
    return [plain(one) for one in value] if isinstance(value, list) else value


@contextmanager
def on_the_bus(folder: Path, bus: Bus) -> Iterator[Running]:
    with running(folder, bus=bus.path, accounts=ACCOUNTS) as device:
        connected(device)
        yield device


def connected(device: Running) -> None:
    for _ in range(1000):
        if device.call("status")["parts"]["dbus"]["connected"]:
            return
        time.sleep(0.02)
    pytest.fail("the daemon does not come onto the bus")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    if os.geteuid():
        pytest.skip("other accounts need root")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == tmp_path.owner() and parent.is_relative_to(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o755)  # other accounts come here
    found = Bus(tmp_path)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def device(tmp_path: Path, bus: Bus) -> Iterator[Running]:
    with on_the_bus(tmp_path, bus) as found:
        yield found


SAMPLE = ("/org/mixos/sample", "org.mixos.Sample1")


def test_typed_calls(bus, device):
    assert bus.call("/org/mixos", "org.mixos.Manager1", "Ping") == "pong"
    assert bus.call(*SAMPLE, "Echo", "sa{sv}", "hi", "0") == {"text": "hi", "count": 1}
    assert bus.call(*SAMPLE, "Echo", "s", "hi") == {"text": "hi", "count": 1}
    assert bus.call(*SAMPLE, "Echo", "sa{sv}", "hi", "1", "count", "x", "7")["count"] == 7
    found = bus.call("/org/mixos", "org.mixos.Manager1", "Status")
    assert found["parts"]["sample"]["state"] == "running"
    entries = bus.call("/org/mixos/audit", "org.mixos.Audit1", "List", "a{sv}", "1", "limit", "x", "5")
    assert entries[0]["kind"] == "started"


@pytest.mark.parametrize(
    ("member", "argv", "error"),
    [
        ("Echo", ["sa{sv}", "much longer than ten", "0"], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Echo", ["sa{sv}", "a", "1", "cuont", "x", "1"], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Echo", ["sa{sv}", "a", "1", "text", "s", "b"], "org.mixos.Error.DbusSignature"),
        ("Echo", ["x", "1"], "org.mixos.Error.DbusSignature"),
        ("Echo", [], "org.mixos.Error.DbusSignature"),
        ("Fail", ["s", "a"], "org.mixos.Error.SampleUnknown"),
        ("Broken", [], "org.mixos.Error.RpcInternal"),
        ("Slow", [], "org.freedesktop.DBus.Error.Timeout"),
        ("Unsayable", [], "org.mixos.Error.RpcAnswer"),
        ("Nothing", [], "org.freedesktop.DBus.Error.UnknownMethod"),
        ("Count", ["s", "a"], "org.freedesktop.DBus.Error.UnknownMethod"),
    ],
)
def test_errors(bus, device, member, argv, error):
    found = asyncio.run(asked(bus, *SAMPLE, member, *argv_of(argv)))
    assert found.message_type is MessageType.ERROR
    assert found.error_name == error
    assert "secret detail" not in found.body[0]


def argv_of(argv: list[str]) -> tuple[str, list[Any]]:
    """busctl's arguments as signature and body."""
    if not argv:
        return "", []
    code, *words = argv
    body: list[Any] = [int(words[0]) if code == "x" else words[0]]
    if code == "sa{sv}":
        rest = words[2:]
        body.append({rest[0]: Variant(rest[1], int(rest[2]) if rest[1] == "x" else rest[2])} if rest else {})
    return code, body


async def asked(bus: Bus, place: str, interface: str, member: str, code: str = "", body: Any = ()) -> Message:
    """The reply of the daemon."""
    connection = await MessageBus(bus_address=bus.address).connect()
    try:
        reply = await connection.call(Message("org.mixos", place, interface, member, signature=code, body=list(body)))
    finally:
        connection.disconnect()
    assert reply is not None
    return reply


def test_errors_say_what_the_socket_says(bus, device):
    found = asyncio.run(asked(bus, *SAMPLE, "Fail", "s", ["a"]))
    assert found.body == ["there is none\nlook"]
    shown = bus.ask(
        "gdbus", "call", "--system", "-d", "org.mixos", "-o", SAMPLE[0], "-m", f"{SAMPLE[1]}.Fail", "a", "{}"
    )
    assert shown.status == 1
    assert b"org.mixos.Error.SampleUnknown: there is none" in shown.stderr
    assert b"there is none" in bus.busctl("call", "org.mixos", *SAMPLE, "Fail", "s", "a").stderr


def test_introspection_with_both_programs(bus, device):
    tree = bus.ask("busctl", f"--address={bus.address}", "tree", "--list", "org.mixos").stdout.decode().split()
    assert set(tree) >= {"/org/mixos", "/org/mixos/sample", "/org/mixos/api", "/org/mixos/audit"}
    text = bus.ask("busctl", f"--address={bus.address}", "introspect", "org.mixos", *SAMPLE).stdout.decode()
    assert re.search(r"^\.Echo\s+method\s+sa\{sv\}\s+a\{sv\}", text, re.MULTILINE)
    assert re.search(r"^\.Set\s+method\s+sa\{sv\}\s+s\s", text, re.MULTILINE)
    assert re.search(r"^\.Event\s+signal\s+ssda\{sv\}", text, re.MULTILINE)
    shown = bus.ask("gdbus", "introspect", "--system", "-d", "org.mixos", "-o", "/org/mixos", "-r")
    assert shown.status == 0, shown.stderr
    interfaces = set(re.findall(r"interface (org\.mixos\.\w+) \{", shown.stdout.decode()))
    assert interfaces >= {"org.mixos.Manager1", "org.mixos.Sample1", "org.mixos.Api1", "org.mixos.Audit1"}


def test_every_object_that_is_described_answers(bus, device):
    for part in by_part(device.daemon.dispatcher.methods.values()):
        place = "/org/mixos" if part == "manager" else f"/org/mixos/{part}"
        found = asyncio.run(asked(bus, place, "org.freedesktop.DBus.Introspectable", "Introspect"))
        assert found.body[0] == describe(by_part(device.daemon.dispatcher.methods.values()), place)


def test_answers_have_the_signatures_that_are_described(bus, device):
    """Down to the members of records, and for lists that are empty."""
    version = asyncio.run(asked(bus, "/org/mixos/api", "org.mixos.Api1", "Version"))
    assert version.signature == "a{sv}"
    assert {name: one.signature for name, one in version.body[0].items()} == {
        "version": "x",
        "oldest": "x",
        "role": "s",
        "max-request": "x",
        "max-answer": "x",
    }
    schema = asyncio.run(
        asked(bus, "/org/mixos/api", "org.mixos.Api1", "Schema", "a{sv}", [{"name": Variant("s", "audit.list")}])
    )
    assert schema.signature == "a{sa{sv}}"
    assert schema.body[0]["audit.list"]["stream"].signature == "b"
    status = asyncio.run(asked(bus, "/org/mixos", "org.mixos.Manager1", "Status"))
    signatures = {name: one.signature for name, one in status.body[0].items()}
    expected = {"boot_times": "a{sd}", "load": "ad", "network": "aa{sv}", "parts": "a{sa{sv}}"}
    assert signatures.items() >= expected.items()


def test_properties(bus, device):
    status = bus.busctl("get-property", "org.mixos", "/org/mixos", "org.mixos.Manager1", "Status")
    assert json.loads(status.stdout)["type"] == "a{sv}"
    version = bus.busctl("get-property", "org.mixos", "/org/mixos", "org.mixos.Manager1", "Version")
    assert json.loads(version.stdout) == {"type": "s", "data": "unknown"}
    both = asyncio.run(
        asked(bus, "/org/mixos", "org.freedesktop.DBus.Properties", "GetAll", "s", ["org.mixos.Manager1"])
    )
    assert set(both.body[0]) == {"Version", "Status"}
    argv = ("call", "org.mixos", "/org/mixos", "org.freedesktop.DBus.Properties", "GetAll", "s", "org.mixos.Manager1")
    agents = bus.busctl(*argv, uid=1003)
    assert list(json.loads(agents.stdout)["data"][0]) == ["Version"]
    assert not [one for one in device.audit() if one["kind"] == "denied"]
    for body, error in (
        (["org.mixos.Manager1", "Nothing"], "UnknownProperty"),
        (["org.mixos.Other1", "Version"], "UnknownProperty"),
    ):
        found = asyncio.run(asked(bus, "/org/mixos", "org.freedesktop.DBus.Properties", "Get", "ss", body))
        assert found.error_name == f"org.freedesktop.DBus.Error.{error}"
    found = asyncio.run(
        asked(bus, "/org/mixos", "org.freedesktop.DBus.Properties", "Set", "ssv",
              ["org.mixos.Manager1", "Version", Variant("s", "x")])
    )  # fmt: skip
    assert found.error_name == "org.freedesktop.DBus.Error.PropertyReadOnly"


def test_roles_come_from_the_account_that_the_bus_names(bus, device):
    assert bus.call(*SAMPLE, "Who")["role"] == "admin"
    for uid, role in ((1001, "operator"), (1002, "viewer"), (1003, "agent")):
        found = bus.call(*SAMPLE, "Who", uid=uid)
        assert (found["uid"], found["role"]) == (uid, role)
    assert bus.call(*SAMPLE, "Set", "s", "a", uid=1001) == "a 1"
    for uid in (1002, 1003):
        denied = bus.busctl("call", "org.mixos", *SAMPLE, "Set", "s", "a", uid=uid)
        assert denied.status == 1
    assert device.sample.calls == ["a"]
    entries = [one for one in device.audit() if one["kind"] in ("intent", "denied")]
    assert [(one["kind"], one["uid"]) for one in entries] == [("intent", 1001), ("denied", 1002), ("denied", 1003)]
    assert bus.busctl("get-property", "org.mixos", "/org/mixos", "org.mixos.Manager1", "Status", uid=1003).status == 1


def test_who_is_not_in_the_group_or_has_no_role_gets_nothing(bus, device):
    for uid in (4711, 4712):
        refused = bus.busctl("call", "org.mixos", "/org/mixos", "org.mixos.Manager1", "Ping", uid=uid)
        assert (refused.status, refused.stdout) == (1, b"")
    denied = [one for one in device.audit() if one["kind"] == "denied"]
    assert denied == []  # whoever has no role is not worth an entry: the bus and the door are the bounds


def as_account(uid: int, gid: int, work: Callable[[], str]) -> str:
    """What `work` returns in a process of that account, or the name of what it raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writer, work().encode())
        except BaseException as error:  # noqa: BLE001
            os.write(writer, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    ended(child)
    return said


def test_roles_on_the_socket_come_from_the_kernel(device):
    device.path.chmod(0o666)
    for uid, expected in ((1001, "operator"), (1002, "viewer"), (1003, "agent"), (4711, "role-none")):

        def ask() -> str:
            try:
                return str(device.call("sample.who")["role"])
            except RpcError as error:
                return error.reason

        assert as_account(uid, uid, ask) == expected


def test_nobody_else_can_take_the_name(bus):
    async def take() -> str:
        connection = await MessageBus(bus_address=bus.address).connect()
        return str(await connection.request_name("org.mixos"))

    assert as_account(1001, MIXOS, lambda: asyncio.run(take())) == "DBusError"


def test_a_key_makes_a_change_once(bus, device):
    argv = ["Set", "sa{sv}", "a", "1", "idempotency", "s", "k"]
    assert [bus.call(*SAMPLE, *argv) for _ in range(2)] == ["a 1", "a 1"]
    assert device.call("sample.set", {"text": "a", "idempotency": "k"}) == "a 1"


def listen(bus: Bus, uid: int, heard: list[Message], ready: threading.Event, done: threading.Event) -> None:
    async def main() -> None:
        connection = await MessageBus(bus_address=bus.address).connect()
        connection.add_message_handler(lambda message: heard.append(message) if message.member == "Event" else None)
        rule = Message("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch",
                       signature="s", body=["type='signal',sender='org.mixos'"])  # fmt: skip
        await connection.call(rule)
        ready.set()
        while not heard and not done.is_set():
            await asyncio.sleep(0.01)
        connection.disconnect()

    asyncio.run(main())


def test_events_are_signals_of_their_part(bus, device):
    heard: list[Message] = []
    ready, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=listen, args=(bus, 0, heard, ready, done))
    thread.start()
    assert ready.wait(10)
    device.loop.call_soon_threadsafe(lambda: device.daemon.context.events.publish("sample.odd", "x", what={1, 2}))
    event = ("sample.done", "x\0y\ud800")
    device.loop.call_soon_threadsafe(
        lambda: device.daemon.context.events.publish(*event, code=1, names=["a"], none=None)
    )
    thread.join(10)
    done.set()
    (message,) = heard
    assert (message.path, message.interface, message.signature) == (*SAMPLE, "ssda{sv}")
    what, subject, at, data = message.body
    assert (what, subject, isinstance(at, float)) == ("done", "x\ufffdy?", True)
    assert {name: value.value for name, value in data.items()} == {"code": 1, "names": ["a"]}


def test_the_daemon_comes_back_with_the_bus_and_never_waits_for_it(tmp_path, bus):
    bus.stop()
    with running(tmp_path, bus=bus.path, accounts=ACCOUNTS) as device:
        found = device.call("status")["parts"]["dbus"]
        assert (found["state"], found["connected"], found["process"]["pid"]) == ("running", False, None)
        for _ in range(2):
            bus.start()
            connected(device)
            assert bus.call("/org/mixos", "org.mixos.Manager1", "Ping") == "pong"
            bus.stop()
            assert device.call("ping") == "pong"


@pytest.mark.parametrize("words", [b"", b"REJECTED EXTERNAL\r\n", b"ERROR\r\n", b"x" * 5000, b"OK abc\r\n"])
def test_a_bus_that_hangs_up_or_talks_nonsense_does_not_stop_the_daemon(tmp_path, words):
    """What is at the bus's address answers the handshake with `words` and hangs up."""
    seen = threading.Semaphore(0)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "bus"))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.settimeout(PATIENCE)
                    peer.recv(100)
                    peer.sendall(words)
                seen.release()

        thread = threading.Thread(target=serve)
        thread.start()
        with running(tmp_path, bus=str(tmp_path / "bus")) as device:
            assert seen.acquire(timeout=20)
            assert seen.acquire(timeout=20)
            assert device.call("ping") == "pong"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_bus_that_is_silent_does_not_stop_the_daemon(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "bus"))
        server.listen()
        with running(tmp_path, bus=str(tmp_path / "bus")) as device:
            assert device.call("ping") == "pong"
            assert device.call("status")["parts"]["dbus"]["connected"] is False


def test_a_flood_of_calls_is_refused_in_part_and_answered_after(bus, device):
    async def flood() -> list[Message]:
        connection = await MessageBus(bus_address=bus.address).connect()
        call = [Message("org.mixos", SAMPLE[0], SAMPLE[1], "Slow") for _ in range(40)]
        found = await asyncio.gather(*(connection.call(one) for one in call))
        last = await connection.call(Message("org.mixos", "/org/mixos", "org.mixos.Manager1", "Ping"))
        connection.disconnect()
        return [*found, last]

    *replies, last = asyncio.run(flood())
    found = [one.error_name.rpartition(".")[2] for one in replies]
    assert found.count("Timeout") == 8
    assert found.count("LimitsExceeded") == 32
    assert last.body == ["pong"]


def test_a_large_call_is_refused_and_a_huge_one_ends_its_sender(bus, device):
    """A request may be as long as on the socket; what is far longer the bus does not let through."""

    async def send(count: int) -> str:
        connection = await MessageBus(bus_address=bus.address).connect()
        body = [{f"k{number}": Variant("as", ["x"]) for number in range(count)}]
        message = Message("org.mixos", "/org/mixos/api", "org.mixos.Api1", "Version", signature="a{sv}", body=body)
        try:
            found = await asyncio.wait_for(connection.call(message), 20)
        except (EOFError, OSError):
            return "ended"
        connection.disconnect()
        return str(found.error_name).rpartition(".")[2]

    assert asyncio.run(send(500)) == "InvalidArgs"
    assert asyncio.run(send(10_000)) == "LimitsExceeded"
    assert asyncio.run(send(40_000)) == "ended"
    assert device.call("status")["parts"]["dbus"]["connected"]
    assert bus.call("/org/mixos", "org.mixos.Manager1", "Ping") == "pong"


@pytest.mark.parametrize(
    ("value", "limit", "expected"),
    [
        ("x" * 100, 108, True),
        ("x" * 101, 108, False),
        ([[], [1, 2.0, True]], 48, True),
        ([[], [1, 2.0, True]], 47, False),
        ({"a": Variant("s", "bc")}, 8 + 9 + 8 + 10, True),
        ({"a": Variant("s", "bc")}, 8 + 9 + 8 + 9, False),
    ],
)
def test_how_large_a_value_is(value, limit, expected):
    assert fits(value, limit) is expected


def test_a_crowd_of_calls_lets_others_have_their_turn(bus, device):
    """Thousands at once on one connection: every one is answered, and the socket answers meanwhile."""

    async def flood() -> list[Message]:
        connection = await MessageBus(bus_address=bus.address).connect()
        found = [
            await asyncio.gather(
                *(connection.call(Message("org.mixos", "/org/mixos", "org.mixos.Manager1", "Ping")) for _ in range(60))
            )
            for _ in range(10)
        ]
        assert device.call("ping") == "pong"
        connection.disconnect()
        return [one for some in found for one in some]

    replies = asyncio.run(flood())
    assert {one.error_name or "answered" for one in replies} <= {
        "answered",
        "org.freedesktop.DBus.Error.LimitsExceeded",
    }
    assert len(replies) == 600


def test_mapping_of_results(bus, device):
    found: Mapping[str, Any] = bus.call("/org/mixos/api", "org.mixos.Api1", "Version", "a{sv}", "0")
    assert found["role"] == "admin"
    assert found["max-request"] == 65536


class Takes:
    """A part with a method that takes content."""

    name = "takes"

    def methods(self) -> list[Method]:
        return [Method("takes.text", "Says what it was given.", self.text, ADMINS, Given, changes=True)]

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {}

    async def text(self, _: Caller, params: Given) -> str:
        return (await params.content.data()).decode()


class Given(Strict):
    content: Annotated[Content, Accepts(1000)]


def test_content_comes_in_pieces(tmp_path, bus):
    """No descriptors come over the bus: what a method needs is sent before, and named by its id."""
    place, name = "/org/mixos/transfer", "org.mixos.Transfer1"
    more = [Source("takes", Takes)]
    with running(tmp_path / "d", bus=bus.path, accounts=ACCOUNTS, more=more) as device:
        connected(device)
        begun = bus.call(place, name, "Begin", "sxa{sv}", "takes.text", "5", "0")
        assert bus.call(place, name, "Write", "sxs", begun["id"], "0", "aGVs")["received"] == 3
        assert bus.call(place, name, "Write", "sxs", begun["id"], "3", "bG8=")["received"] == 5
        assert bus.call("/org/mixos/takes", "org.mixos.Takes1", "Text", "sa{sv}", begun["id"], "0") == "hello"
        argv = ["call", "org.mixos", place, name, "Status", "s", begun["id"]]
        assert bus.busctl(*argv, uid=1001).status == 1  # somebody else's
        argv = ["call", "org.mixos", place, name, "Begin", "sxa{sv}", "takes.text", "5", "0"]
        assert bus.busctl(*argv, uid=1001).status == 1
