"""The daemon behind its socket: calls, roles, parameters, streams, limits, garbage, parts that fail."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import select
import socket
import stat
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildsys.run import run
from common.errors import NotFoundError, RpcError, UnreachableError
from common.tomlfile import Strict
from daemon import reference
from daemon.client.connection import call
from daemon.core import limits, rpc
from daemon.core.limits import Bucket
from daemon.core.manifest import manifests
from daemon.core.method import EVERYONE, Method, Role, holds_secrets
from daemon.core.params import fields, validate
from daemon.core.part import Context
from daemon.core.parts import Source, source
from daemon.core.peer import Credentials
from daemon.doors import server
from tests.daemons import QUICK, Running, Sample, Text, Word, answers, connected, request, running
from tests.hostpackages import ROOT
from tests.waiting import PATIENCE, joined, until


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as found:
        yield found


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, limits=QUICK) as found:
        yield found


def converse(path: Path, data: bytes, seconds: float = 10) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(seconds)
        channel.connect(str(path))
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            channel.sendall(data)
        with suppress(ConnectionResetError):
            while chunk := channel.recv(65536):
                answer += chunk
        return answer


# -- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shared", "mode"), [(True, 0o660), (False, 0o600)])
def test_who_may_come_to_the_socket(tmp_path, shared, mode):
    place = Context(tmp_path, tmp_path / "state", tmp_path, tmp_path, tmp_path / "log", shared=shared)
    with running(tmp_path, context=place) as found:
        assert stat.S_IMODE(found.path.stat().st_mode) == mode


def test_call(device):
    assert device.call("ping") == "pong"
    assert device.call("sample.echo", {"text": "ä"}) == {"text": "ä", "count": 1}


def test_status_shows_every_part(device):
    parts = device.call("status")["parts"]
    assert {name: one["state"] for name, one in parts.items()} == dict.fromkeys(
        ("system", "api", "transfer", "sample", "dbus"), "running"
    )
    assert parts["sample"]["calls"] == 0


@pytest.mark.parametrize(
    ("name", "params", "reason", "exit_code"),
    [
        ("nothing", {}, "rpc-method", 11),
        ("sample.broken", {}, "rpc-internal", 11),
        ("sample.full", {}, "storage-full", 11),
        ("sample.slow", {}, "rpc-timeout", 11),
        ("sample.unsayable", {}, "rpc-answer", 11),
        ("sample.fail", {"text": "a"}, "sample-unknown", 4),
        ("ping", {"x": 1}, "rpc-params", 2),
        ("sample.echo", {}, "rpc-params", 2),
        ("sample.echo", {"text": "longer than ten"}, "rpc-params", 2),
        ("sample.echo", {"text": "a", "secret_word": "b"}, "rpc-params", 2),
        ("sample.echo", {"text": "\ud800"}, "rpc-params", 2),
        ("sample.echo", {"text": "a", "secret-word": "\ud800"}, "rpc-params", 2),
        ("sample.echo", {"text": "a", "idempotency": "b"}, "rpc-params", 2),
        ("sample.set", {"text": "a", "idempotency": ""}, "rpc-params", 2),
        ("sample.set", {"text": "a", "idempotency": 5}, "rpc-params", 2),
        ("api.version", {"client": 99}, "api-version", 7),
    ],
)
def test_errors(device, name, params, reason, exit_code):
    with pytest.raises(RpcError) as caught:
        device.call(name, params)
    assert (caught.value.reason, caught.value.exit_code) == (reason, exit_code)
    assert "secret" not in caught.value.message.replace("secret_word", "").replace("secret-word", "")


@pytest.mark.parametrize(
    ("name", "params", "word"),
    [
        ("sample.ecoh", {}, "sample.echo"),
        ("sample.echo", {"text": "a", "cuont": 3}, "count"),
        ("sample.echo", {"count": 0, "text": ""}, "count"),
        ("sample.echo", {}, "text"),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_near(device, name, params, word):
    with pytest.raises(RpcError) as caught:
        device.call(name, params)
    assert word in f"{caught.value.message} {caught.value.hint}"


def test_what_a_parameter_must_be_is_told_in_words():
    told = list[str]()
    for method in reference.methods():
        for name, value in itertools.product(fields(method.params), ("\n", ["\n"], {"\n": "\n"})):
            try:
                validate(method, {name: value})
            except RpcError as error:
                told += error.message.splitlines()
    assert any(line.startswith("path: ") for line in told)
    assert [line for line in told if "pattern" in line] == []


def test_notification_has_no_answer(device):
    requests = b'{"jsonrpc":"2.0","method":"ping"}\n' + rpc.encode_request("ping", {}, 2)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(device.path))
        channel.sendall(requests)
        assert rpc.decode_answer(channel.recv(4096), 2) == "pong"


def test_methods_describe_themselves(device):
    found = {one["name"]: one for one in device.call("api.methods")}
    assert set(found) >= {"ping", "status", "api.version", "events.follow", "audit.list", "sample.echo"}
    echo, count = found["sample.echo"], found["sample.count"]
    assert echo["params"]["required"] == ["text"]
    assert echo["params"]["additionalProperties"] is False
    assert (echo["stream"], count["stream"], count["seconds"]) == (False, True, None)
    assert (echo["idempotency"], found["sample.set"]["idempotency"]) == (False, True)
    assert [one["name"] for one in device.call("api.methods", {"name": "audit"})] == ["audit.list", "audit.verify"]
    assert device.reason("api.methods", {"name": "nothing"}) == "method-unknown"


# -- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role))
def test_every_method_enforces_its_roles(tmp_path, role):
    with running(tmp_path, role) as device:
        methods = dict(device.daemon.dispatcher.methods)
        offered = {one["name"] for one in device.call("api.methods")}
        assert offered == {name for name, method in methods.items() if role in method.roles}
        for name, method in methods.items():
            if role not in method.roles:
                assert device.reason(name, {"text": "a"}) == "role-denied"
        denied = [entry["method"] for entry in device.audit() if entry["kind"] == "denied"]
        expected = [name for name, method in methods.items() if role not in method.roles]
        assert denied == expected[:10], "of a flood only some"


def test_an_account_without_a_role_is_turned_away(tmp_path):
    with running(tmp_path, None) as device:
        assert device.reason("ping") == "role-none"


# case: H8
def test_what_sandboxes_were_refused_does_not_push_out_the_audit(tmp_path):
    """A target every second for a day, from many sandboxes; what somebody did comes after it."""
    facts = {"host": "x.test", "port": 1, "reason": "name-denied", "more": 2}
    with running(tmp_path) as device:
        events, loop = device.daemon.context.events, device.loop
        for number in range(86_400 // 500):
            for _ in range(500):  # as many as a listener keeps, then it listens
                loop.call_soon_threadsafe(partial(events.publish, "sandbox.denied", f"s{number}", **facts))
            device.call("ping")
        device.call("sample.set", {"text": "done"})
        entries = device.audit()
    assert len(entries) < 20
    assert [one["method"] for one in entries if one["kind"] == "intent"] == ["sample.set"]


def test_a_sample_counts_what_it_leaves_out():
    now = 0.0
    sample = limits.Sample(lambda: now)
    assert [sample.take(2) for _ in range(12)] == [0] * 10 + [None] * 2
    now = 300.0
    assert [sample.take(), sample.take()] == [6, None]


# case: H8
def test_denied_calls_are_audited_within_bounds(tmp_path):
    with running(tmp_path, Role.VIEWER) as device:
        for _ in range(50):
            assert device.reason("reboot") == "role-denied"
        denied = [entry for entry in device.audit() if entry["kind"] == "denied"]
        assert len(denied) == 10
        assert {entry["method"] for entry in denied} == {"reboot"}


def test_the_audit_says_that_a_trial_was_undone(tmp_path):
    place = Context(tmp_path, tmp_path / "state", tmp_path / "etc", tmp_path, tmp_path / "log", shared=False)
    more = [source(one, place) for one in manifests() if one.name in ("change", "proxy")]
    with running(tmp_path, more=more, context=place) as device:
        device.call("proxy.set", {"http": "http://192.0.2.1:3128", "confirm": 1})
        until(lambda: [one for one in device.audit() if one["kind"] == "reverted"])
        (entry,) = device.call("audit.list", {"kind": "reverted"})
    assert (int(entry["change"]), entry["what"]) == (1, "proxy set")
    assert {"who", "reason"} <= entry.keys()


def test_the_caller_is_the_kernels_and_the_origin_is_claimed(device, tmp_path):
    key = tmp_path / "auth"
    key.write_text("publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMtidA45oOo6cjipaVn1Wa8X8fm6UFV/P7AnYhRpaHob\n")
    environment = {"SSH_CONNECTION": "192.0.2.7 1 192.0.2.1 22", "SSH_USER_AUTH": str(key), "PATH": os.environ["PATH"]}
    found = json.loads(asked_by(environment, device.path))
    assert (found["uid"], found["role"]) == (os.getuid(), "admin")
    assert found["origin"] == "ssh 192.0.2.7 (claimed)"
    # The same key's fingerprint as `ssh-keygen -lf` prints it.
    assert found["name"].endswith(" (claimed key SHA256:mIbVn0ivU0uNGr7FLdB3jP+JHyTiCi/McNYN+zGV2/I)")


@pytest.mark.parametrize("claim", ["fifo", "link", "/etc/shadow", "relative", "missing", "device"])
def test_a_claimed_file_cannot_hold_up_or_tell_anything(device, tmp_path, claim):
    (tmp_path / "target").write_text("publickey ssh-ed25519 AAAA\n")
    place = {"fifo": tmp_path / "fifo", "link": tmp_path / "link", "device": Path("/dev/zero")}.get(claim, Path(claim))
    if claim == "fifo":
        os.mkfifo(place)
    if claim == "link":
        place.symlink_to(tmp_path / "target")
    environment = {"SSH_CONNECTION": "evil\nname 1 2 3", "SSH_USER_AUTH": str(place), "PATH": os.environ["PATH"]}
    found = json.loads(asked_by(environment, device.path))
    assert "key" not in found["name"]
    assert found["origin"] == "local (claimed)"


TERMINAL = """
import os
from daemon.core.method import Role
from daemon.core.peer import Credentials, identify

if "SSH_USER_AUTH" in os.environ:
    identify(Credentials(os.getpid(), os.getuid(), 0), {os.getuid(): Role.ADMIN})
    print(open("/proc/self/stat").read().rpartition(")")[2].split()[4])
else:
    os.getsid(0) == os.getpid() or os.setsid()
    _, terminal = os.openpty()
    os.set_inheritable(_, True)
    os.environ["SSH_USER_AUTH"] = os.ttyname(terminal)
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], sys.argv[1]])
"""


def test_a_claimed_terminal_does_not_become_the_daemons():
    """Whoever hangs it up would end the daemon, which leads a session."""
    code = f"import sys{TERMINAL}"
    assert run([sys.executable, "-c", code, code], env=dict(os.environ), cwd=ROOT).stdout.strip() == b"0"


def asked_by(environment: Mapping[str, str], path: Path) -> bytes:
    """The answer of `sample.who` to a process with this environment."""
    ask = f"call('sample.who', {{}}, {str(path)!r})"
    code = f"import json; from daemon.client.connection import call; print(json.dumps({ask}))"
    return run([sys.executable, "-c", code], env=dict(environment), cwd=ROOT).stdout


# -- streams ---------------------------------------------------------------------------------------------------------


def test_stream(device):
    assert list(device.stream("sample.count", {"text": "a", "count": 1000})) == list(range(1000))


@pytest.mark.parametrize(("text", "reason"), [("fail", "sample-unknown"), ("broken", "rpc-internal")])
def test_a_stream_ends_with_its_error(device, text, reason):
    items = []
    with pytest.raises(RpcError) as caught:
        items.extend(device.stream("sample.count", {"text": text, "count": 3}))
    assert caught.value.reason == reason


def test_a_reader_who_leaves_ends_the_stream(device):
    items = device.stream("sample.count", {"text": "wait"})
    assert next(items) == 0
    items.close()
    assert device.sample.closed.wait(5)


def test_cancel_and_calls_beside_a_stream(device):
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(str(device.path))
        reader = channel.makefile("rb")
        channel.sendall(rpc.encode_request("sample.count", {"text": "wait"}, 1))
        number = rpc.decode_answer(reader.readline(), 1)["stream"]
        assert rpc.decode_stream(reader.readline(), number) == (True, 0)
        channel.sendall(rpc.encode_request("ping", {}, 2))
        assert rpc.decode_answer(reader.readline(), 2) == "pong"
        for params, found in (({"stream": [1]}, False), ({"stream": 99}, False), ({}, False)):
            channel.sendall(rpc.encode_request("stream.cancel", params, 3))
            assert rpc.decode_answer(reader.readline(), 3) is found
        channel.sendall(rpc.encode_request("stream.cancel", {"stream": number}, 4))
        lines = [reader.readline(), reader.readline()]
        assert rpc.encode_end(number, None) in lines
        assert rpc.encode_result(4, True) in lines
    assert device.sample.closed.wait(5)


def test_streams_of_one_connection_are_limited_and_do_not_idle(quick):
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(str(quick.path))
        reader = channel.makefile("rb")
        for ident in range(4):
            channel.sendall(rpc.encode_request("sample.count", {"text": "wait"}, ident))
        answers = [json.loads(reader.readline()) for _ in range(7)]
        refused = [one["error"]["data"]["reason"] for one in answers if "error" in one]
        assert refused == ["stream-limit"]
        time.sleep(3 * QUICK.idle)
        channel.sendall(rpc.encode_request("ping", {}, 9))
        assert rpc.decode_answer(reader.readline(), 9) == "pong"


# case: H6
def test_streams_of_one_account_are_limited(tmp_path):
    """Over all of its connections; one that has ended counts no longer."""
    limits = replace(QUICK, streams_per_uid=2, idle=20.0)
    with running(tmp_path, limits=limits) as device, connected(device.path) as one, connected(device.path) as two:
        lines = {channel: channel.makefile("rb") for channel in (one, two)}

        def begin(channel: socket.socket) -> bool:
            channel.sendall(rpc.encode_request("sample.count", {"text": "wait"}, 1))
            answer = next(one for one in map(json.loads, lines[channel]) if one.get("id") == 1)
            assert "result" in answer or answer["error"]["data"]["reason"] == "stream-limit"
            return "result" in answer

        assert [begin(one), begin(two), begin(two), begin(one)] == [True, True, False, False]
        one.sendall(rpc.encode_request("stream.cancel", {"stream": 1}, 2))
        until(lambda: begin(two))


# case: H6
def test_a_stream_whose_reader_never_comes_back_ends(tmp_path):
    with running(tmp_path, limits=replace(QUICK, stalled=0.3)) as device, connected(device.path) as channel:
        channel.sendall(rpc.encode_request("sample.count", {"text": "big", "count": 200}, 1))
        assert device.sample.closed.wait(PATIENCE)


def test_who_does_not_read_answers_is_dropped_with_the_reason(tmp_path, monkeypatch):
    """The last words are for a reader who wakes within the linger time."""
    limits, dropped = replace(QUICK, linger=30.0), threading.Event()
    monkeypatch.setattr(server, "log", lambda _, text: dropped.set() if text.endswith("dropped") else None)
    with running(tmp_path, limits=limits) as device, socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(20)
        channel.connect(str(device.path))
        channel.sendall(b"".join(rpc.encode_request("api.methods", {}, ident) for ident in range(600)))
        assert dropped.wait(60)
        lines = channel.makefile("rb").readlines()
    assert len(lines) < 600
    assert b'"rpc-slow"' in lines[-1]


def test_a_stream_waits_for_its_reader(quick):
    """As long as nobody asks for an answer on the same connection: `mixctl service logs -f | less`."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(str(quick.path))
        channel.sendall(rpc.encode_request("sample.count", {"text": "big", "count": 200}, 1))
        time.sleep(3 * QUICK.slow)
        assert not quick.sample.closed.is_set()
        lines = channel.makefile("rb")
        rpc.decode_answer(lines.readline(), 1)
        items = list(iter(lambda: rpc.decode_stream(lines.readline(), 1), (False, None)))
    assert len(items) == 200


def test_a_reader_that_paused_does_not_hold_up_the_end(tmp_path):
    limits = replace(QUICK, slow=600.0)
    with socket.socket(socket.AF_UNIX) as channel:
        with running(tmp_path, limits=limits) as device:
            channel.connect(str(device.path))
            channel.sendall(rpc.encode_request("sample.count", {"text": "big", "count": 200}, 1))
            assert select.select([channel], [], [], 20)[0]
            until(lambda: queued(channel) > 64 << 10)  # and then it is not read
        assert device.sample.closed.is_set()


def queued(channel: socket.socket) -> int:
    """Bytes that have arrived and are not read (unix(7), SIOCINQ)."""
    return int(struct.unpack("i", fcntl.ioctl(channel, termios.FIONREAD, bytes(4)))[0])


def test_events(device):
    done = threading.Event()

    def publish() -> None:
        while not done.wait(0.02):
            device.loop.call_soon_threadsafe(device.daemon.context.events.publish, "other.done", "y")
            device.loop.call_soon_threadsafe(device.daemon.context.events.publish, "sample.done", "x")

    thread = threading.Thread(target=publish)
    thread.start()
    items = device.stream("events.follow", {"prefix": "sample."})
    event = next(items)
    items.close()
    done.set()
    joined(thread)
    assert (event["topic"], event["subject"], event["data"]) == ("sample.done", "x", {})


# -- changes: audit and keys -----------------------------------------------------------------------------------------


def test_a_change_is_audited_before_and_after(device):
    assert device.call("sample.hush", {"text": "a", "secret-word": "a password"}) == "a 1"
    device.reason("sample.fail", {"text": "b"})
    assert list(device.stream("sample.change", {"text": "c", "count": 2})) == [0, 1]
    device.call("sample.echo", {"text": "d"})
    entries = [entry for entry in device.audit() if entry["kind"] in ("intent", "outcome")]
    assert [(one["kind"], one.get("method") or one["outcome"]) for one in entries] == [
        ("intent", "sample.hush"),
        ("outcome", "ok"),
        ("intent", "sample.fail"),
        ("outcome", "sample-unknown"),
        ("intent", "sample.change"),
        ("outcome", "ok"),
    ]
    assert [entry["call"] for entry in entries[1::2]] == [entry["seq"] for entry in entries[::2]]
    assert entries[0]["uid"] == os.getuid()
    assert "a password" not in json.dumps(entries)
    assert device.call("audit.verify")["ok"] is True
    assert [one["method"] for one in device.call("audit.list", {"method": "sample.hush"})] == ["sample.hush"]
    assert len(device.call("audit.list", {"limit": 2})) == 2


def test_nothing_is_changed_without_the_audit(tmp_path):
    (tmp_path / "log").write_text("in the way")
    with running(tmp_path) as device:
        assert device.call("ping") == "pong"
        assert device.reason("sample.set", {"text": "a"}) == "audit-failed"
        assert device.reason("sample.set", {"text": "a", "idempotency": "k"}) == "audit-failed"
        assert device.sample.calls == []


def test_a_key_makes_a_change_once(tmp_path):
    with running(tmp_path) as device:
        assert device.call("sample.set", {"text": "a", "idempotency": "k"}) == "a 1"
        assert device.call("sample.set", {"text": "a", "idempotency": "k"}) == "a 1"
        assert device.reason("sample.set", {"text": "b", "idempotency": "k"}) == "idempotency-mismatch"
        assert device.reason("sample.fail", {"text": "a", "idempotency": "k"}) == "idempotency-mismatch"
        for _ in range(2):
            assert device.reason("sample.fail", {"text": "x", "idempotency": "f"}) == "sample-unknown"
            assert device.reason("sample.fail", {"text": "again", "idempotency": "r"}) == "sample-busy"
        assert device.sample.calls == ["a", "x", "again", "again"]
    with running(tmp_path) as device:
        assert device.call("sample.set", {"text": "a", "idempotency": "k"}) == "a 1"
        assert device.sample.calls == []


def test_no_key_is_kept_for_a_call_that_may_have_a_secret_in_it(device):
    """Its record would hold a digest of the secret, which a fast machine guesses."""
    assert device.reason("sample.hush", {"text": "a", "secret-word": "x", "idempotency": "k"}) == "rpc-params"
    assert device.sample.calls == []
    found = {one["name"]: one["idempotency"] for one in device.call("api.methods", {"name": "sample"})}
    assert (found["sample.set"], found["sample.hush"]) == (True, False)


def test_secrets_are_found_however_deep_they_are():
    class Deep(Strict):
        words: tuple[Word, ...] = ()

    class Map(Strict):
        by_name: dict[str, Deep] | None = None

    assert [holds_secrets(one) for one in (Text, Word, Deep, Map, str)] == [False, True, True, True, False]


def test_every_secret_of_the_real_methods_is_without_key():
    for method in reference.methods():
        told = json.dumps(method.params.model_json_schema(by_alias=True))
        assert not (method.takes_key and '"writeOnly": true' in told), method.name


# -- parts -----------------------------------------------------------------------------------------------------------


class Odd(Sample):
    """A part that goes wrong somewhere."""

    def __init__(self, name: str, wrong: str) -> None:
        super().__init__()
        self.name, self.wrong = name, wrong

    async def start(self) -> None:
        if self.wrong == "start":
            raise NotFoundError("no such thing", reason="odd-missing")

    async def stop(self) -> None:
        if self.wrong == "stop":
            raise RuntimeError("no")

    def methods(self) -> Sequence[Method]:
        if self.wrong == "duplicate":
            return super().methods()
        return (Method(f"{self.name}.x", "X.", self.who, EVERYONE),)

    def status(self) -> Mapping[str, Any]:
        if self.wrong == "status":
            raise RuntimeError("no")
        return {"state": "on", "error": "none", "seconds": -1, "more": 1} if self.wrong == "boast" else {}


def test_a_part_that_fails_is_left_out(tmp_path):
    def importing() -> Sample:
        raise ImportError("no module")

    more = [
        Source("imports", importing),
        *(
            Source(f"odd-{one}", lambda one=one: Odd(f"odd-{one}", one))
            for one in ("start", "stop", "status", "duplicate", "boast")
        ),
        Source("good", lambda: Odd("good", "")),
    ]
    with running(tmp_path, more=more) as device:
        parts = device.call("status")["parts"]
        assert {
            name: one["state"]
            for name, one in parts.items()
            if name not in ("system", "api", "transfer", "dbus", "sample")
        } == {
            "imports": "failed",
            "odd-start": "failed",
            "odd-stop": "running",
            "odd-status": "running",
            "odd-duplicate": "failed",
            "odd-boast": "running",
            "good": "running",
        }
        assert (parts["odd-boast"]["error"], parts["odd-boast"]["more"]) == (None, 1)
        assert parts["odd-boast"]["seconds"] >= 0
        assert parts["odd-status"]["problem"] == "RuntimeError: no"
        assert parts["odd-start"]["error"] == "odd-missing"
        assert parts["odd-duplicate"]["error"] == "method-duplicate"
        assert device.reason("odd-start.x") == "part-failed"
        assert device.reason("imports.anything") == "part-failed"
        assert device.call("good.x")["uid"] == os.getuid()
        assert device.call("sample.echo", {"text": "a"})["text"] == "a"


def test_the_daemon_answers_while_parts_start(tmp_path):
    release = threading.Event()

    def late() -> Sample:
        assert release.wait(20)
        return Odd("late", "")

    def ask() -> None:
        path = tmp_path / "mixosd.sock"
        try:
            assert call("ping", {}, path, patience=10) == "pong"
            with pytest.raises(RpcError) as caught:
                call("late.x", {}, path)
            answers.append((caught.value.reason, caught.value.retryable))
            threading.Timer(0.5, release.set).start()
            answers.append(call("late.x", {}, path, patience=30)["role"])
        finally:
            release.set()

    answers: list[object] = []
    thread = threading.Thread(target=ask)
    thread.start()
    with running(tmp_path, more=[Source("late", late)]) as device:
        joined(thread)
        assert answers == [("part-starting", True), "admin"]
        assert device.call("late.x")


# -- limits and garbage ----------------------------------------------------------------------------------------------


def test_garbage_closes_the_connection(device):
    good = rpc.encode_request("ping", {}, 1)
    answers = [json.loads(line) for line in converse(device.path, good + b"garbage\n" + good).splitlines()]
    assert [("result" in answer) for answer in answers] == [True, False]
    assert answers[1]["error"]["code"] == rpc.PARSE_ERROR


def test_long_line_closes_the_connection(device):
    answer = json.loads(converse(device.path, b"x" * (rpc.MAX_LINE + 10)))
    assert answer["error"]["data"]["reason"] == "rpc-too-long"
    assert device.call("ping") == "pong"


def test_the_longest_line_is_served(device):
    line = rpc.encode_request("ping", {}, 1)
    line = line[:-1].ljust(rpc.MAX_LINE - 1) + b"\n"
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(PATIENCE)
        channel.connect(str(device.path))
        channel.sendall(line)
        assert rpc.decode_answer(channel.recv(4096), 1) == "pong"


def test_idle_and_cut_connections_end(quick):
    assert converse(quick.path, b"") == b""
    assert converse(quick.path, b'{"jsonrpc"') == b""
    assert quick.call("ping") == "pong"


def test_a_line_that_comes_byte_by_byte_does_not_hold_a_connection(quick):
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(quick.path))
        channel.settimeout(0.05)
        ended = False
        for _ in range(200):
            try:
                channel.sendall(b"{")
                ended = channel.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break
        assert ended


def test_too_many_connections_of_one_account(quick):
    held = []
    for _ in range(QUICK.per_admin):
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(str(quick.path))
        held.append(channel)
    assert quick.reason("ping") == "rpc-busy"
    for channel in held:
        channel.close()
    for _ in range(200):  # until the server has seen that they are closed
        try:
            assert quick.call("ping") == "pong"
            break
        except RpcError:
            time.sleep(0.02)
    else:
        pytest.fail("the connections were never given back")


def test_a_flood_of_one_account_keeps_nobody_else_out(tmp_path, monkeypatch):
    """Those that are refused do not count, not even while they are being told so."""
    uids = iter([4711] * (QUICK.per_uid + 7) + [os.getuid()])
    monkeypatch.setattr(server, "credentials", lambda peer: Credentials(os.getpid(), next(uids), 0))
    with running(tmp_path, limits=QUICK, accounts={4711: Role.VIEWER, os.getuid(): Role.ADMIN}) as device:
        channels = [socket.socket(socket.AF_UNIX) for _ in range(QUICK.per_uid + 8)]
        for channel in channels[: QUICK.per_uid]:
            channel.settimeout(PATIENCE)
            channel.connect(str(device.path))
            channel.sendall(rpc.encode_request("ping", {}, 1))
            assert rpc.decode_answer(channel.recv(4096), 1) == "pong"
        held = threading.Event()
        device.loop.call_soon_threadsafe(held.wait, 30)  # so that all of them are accepted at one time
        for channel in channels[QUICK.per_uid :]:
            channel.settimeout(PATIENCE)
            channel.connect(str(device.path))
        channels[-1].sendall(rpc.encode_request("ping", {}, 1))
        held.set()
        assert rpc.decode_answer(channels[-1].recv(4096), 1) == "pong"
        for channel in channels:
            channel.close()


def hang_up(device: Running, name: str) -> None:
    """Call a method that waits, and leave."""
    device.sample.waiting.clear()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(device.path))
        channel.sendall(rpc.encode_request(name, {}, 1))
        assert device.sample.waiting.wait(10)


def test_who_hangs_up_ends_a_question_but_not_a_change(quick):
    connections = quick.daemon.server._open
    hang_up(quick, "sample.work")
    for _ in range(2):  # the server looks at every connection between the ends of two questions
        hang_up(quick, "sample.wait")
        assert quick.sample.closed.wait(10)
        quick.sample.closed.clear()
        until(lambda: sum(connections.values()) == 1)
    assert quick.sample.calls == []
    quick.sample.go.set()
    until(lambda: not connections)
    assert quick.sample.calls == ["done"]


def test_who_only_ends_what_it_says_still_gets_its_answer(quick, monkeypatch):
    looks: list[bool] = []
    real = server._hung_up
    monkeypatch.setattr(server, "_hung_up", lambda fd: looks.append(real(fd)) or looks[-1])
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(str(quick.path))
        channel.sendall(rpc.encode_request("sample.wait", {}, 1))
        channel.shutdown(socket.SHUT_WR)
        assert quick.sample.waiting.wait(10)
        looks.clear()
        until(lambda: len(looks) > 1)
        quick.sample.go.set()
        assert rpc.decode_answer(channel.recv(4096), 1) is None


def test_ten_thousand_attempts_to_connect(quick):
    """A flood opens no more than the limit, and the daemon answers afterwards."""
    before = memory()
    held: list[socket.socket] = []
    for _ in range(10_000):
        channel = socket.socket(socket.AF_UNIX)
        channel.setblocking(False)
        try:
            channel.connect(str(quick.path))
            held.append(channel)
        except BlockingIOError:
            channel.close()
        if len(held) > 500:
            held.pop(0).close()
    assert sum(quick.daemon.server._open.values()) <= 500 + QUICK.connections
    for channel in held:
        channel.close()
    assert eventually_answers(quick)
    assert memory() - before < 48 << 20


def test_floods_of_garbage_leave_the_daemon_answering_and_small(quick):
    generator = random.Random(1)
    before = memory()

    def flood(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(60):
            kind = source.randrange(4)
            data = {
                0: source.randbytes(source.randrange(1, 70_000)),
                1: b"[" * 60_000 + b"\n",
                2: rpc.encode_request("sample.echo", {"text": "a" * 60_000}, 1),
                3: b'{"jsonrpc":"2.0","method":"ping","id":' + b"9" * 5000 + b"}\n",
            }[kind]
            try:
                with socket.socket(socket.AF_UNIX) as channel:
                    channel.settimeout(5)
                    channel.connect(str(quick.path))
                    channel.sendall(data)
                    if source.random() < 0.5:
                        channel.recv(4096)
            except OSError:
                pass

    threads = [threading.Thread(target=flood, args=(generator.randrange(1 << 30),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    joined(*threads)
    assert eventually_answers(quick)
    assert memory() - before < 48 << 20


def eventually_answers(device: Running) -> bool:
    for _ in range(500):
        try:
            return bool(device.call("ping") == "pong")
        except (RpcError, UnreachableError):
            time.sleep(0.02)
    return False


def memory() -> int:
    """Bytes of this process, in which the server runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_faster_calls_wait(tmp_path):
    with running(tmp_path, limits=replace(QUICK, rate=1000, burst=10, idle=30)) as device:
        lines = b"".join(rpc.encode_request("ping", {}, number) for number in range(100))
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(20)
            channel.connect(str(device.path))
            channel.sendall(lines)
            reader = channel.makefile("rb")
            assert [rpc.decode_answer(reader.readline(), number) for number in range(100)] == ["pong"] * 100


def test_token_bucket():
    now = [0.0]
    bucket = Bucket(10, 2, lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now[0] = 0.1
    assert [bucket.take(), bucket.take()] == [True, False]
    now[0] = 100.0
    assert [bucket.delay() for _ in range(4)] == pytest.approx([0, 0, 0.1, 0.2])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("fuzz"), Role.AGENT) as found:
        yield found


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["ping", "sample.echo", "sample.fail", "stream.cancel", "api.version", "api.methods", "audit.list"])
    | st.text(max_size=70),
    st.dictionaries(
        st.sampled_from(["text", "count", "idempotency", "client", "stream"]) | st.text(max_size=8), JSON, max_size=4
    ),
)
def test_any_call_is_answered(fuzzed, name, params):
    line = json.dumps({"jsonrpc": "2.0", "id": 7, "method": name, "params": params}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(str(fuzzed.path))
        channel.sendall(line)
        answer = json.loads(channel.makefile("rb").readline())
    assert answer["jsonrpc"] == "2.0"
    assert ("result" in answer) != ("error" in answer)
    if "error" in answer:
        assert answer["error"]["data"]["reason"] != "rpc-internal"


def test_a_call_without_newline_before_the_half_close_is_answered(tmp_path):
    with running(tmp_path) as device, connected(device.path) as channel:
        channel.sendall(request("sample.echo", text="a").removesuffix(b"\n"))
        channel.shutdown(socket.SHUT_WR)
        assert answers(channel) == [{"text": "a", "count": 1}]
    with running(tmp_path) as device, connected(device.path) as channel:
        channel.sendall(request("sample.echo", text="a")[:-5])
        channel.shutdown(socket.SHUT_WR)
        assert answers(channel) == ["rpc-json"]
