"""JSON-RPC: framing, limits, refusal of garbage; and the server end to end over a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import mixosd, power, rpc
from daemon.client import call
from daemon.errors import RpcError, UnreachableError


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "rpc-json"),
        (b"\xff", "rpc-json"),
        (b"{", "rpc-json"),
        (b"[" * 60_000, "rpc-json"),
        (b"9" * 60_000, "rpc-json"),
        (b'{"jsonrpc":"2.0","method":"a","method":"b"}', "rpc-json"),
        (b'{"jsonrpc":"2.0","method":"a","id":NaN}', "rpc-json"),
        (b"[]", "rpc-request"),
        (b"{}", "rpc-request"),
        (b'[{"jsonrpc":"2.0","method":"a","id":1}]', "rpc-request"),
        (b'{"jsonrpc":"1.0","method":"a"}', "rpc-request"),
        (b'{"jsonrpc":"2.0","method":1}', "rpc-request"),
        (b'{"jsonrpc":"2.0","method":"a","params":[1]}', "rpc-request"),
        (b'{"jsonrpc":"2.0","method":"a","id":true}', "rpc-request"),
        (b'{"jsonrpc":"2.0","method":"a","id":{}}', "rpc-request"),
        (b'{"jsonrpc":"2.0","method":"a","x":1}', "rpc-request"),
        (b" " * (rpc.MAX_LINE + 1), "rpc-too-long"),
    ],
)
def test_garbage(line, reason):
    with pytest.raises(rpc.GarbageError) as caught:
        rpc.decode_request(line)
    assert caught.value.reason == reason


def test_round_trip():
    request = rpc.decode_request(rpc.encode_request("status", {"a": 1}, 7))
    assert (request.method, request.params, request.id, request.notification) == ("status", {"a": 1}, 7, False)
    assert rpc.decode_request(b'{"jsonrpc":"2.0","method":"x"}').notification
    assert rpc.decode_answer(rpc.encode_result(7, {"b": "ä"}), 7) == {"b": "ä"}
    with pytest.raises(RpcError) as caught:
        rpc.decode_answer(rpc.encode_error(7, RpcError("no", code=-5, reason="why")), 7)
    assert (caught.value.code, caught.value.reason) == (-5, "why")


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_line_is_a_request_or_garbage(line):
    try:
        request = rpc.decode_request(line)
    except rpc.GarbageError as error:
        answer = rpc.encode_error(None, error)
        assert answer.count(b"\n") == 1
        return
    assert isinstance(request.method, str)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_answer_is_decoded_or_an_rpc_error(line):
    with pytest.raises(RpcError):
        rpc.decode_answer(line, 1)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running server with three methods; yields the path of its socket."""
    path = tmp_path / "s"
    monkeypatch.setattr(mixosd, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(mixosd, "log", lambda level, text: None)
    ready, holder = threading.Event(), {}

    async def echo(_):
        return {"pong": True}

    async def broken(_):
        raise ValueError("secret detail")

    async def slow(_):
        await asyncio.sleep(60)

    async def main():
        stop = asyncio.Event()
        holder.update(loop=asyncio.get_running_loop(), stop=stop)
        task = asyncio.create_task(
            mixosd.serve(path, "no-such-group", {"echo": echo, "broken": broken, "slow": slow}, stop)
        )
        while not path.exists():
            await asyncio.sleep(0.01)
        ready.set()
        await task

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(5)
    yield path
    holder["loop"].call_soon_threadsafe(holder["stop"].set)
    thread.join(5)
    assert not thread.is_alive()
    assert not path.exists()


def converse(path, data: bytes) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(5)
        channel.connect(str(path))
        channel.sendall(data)
        answer = b""
        while chunk := channel.recv(65536):
            answer += chunk
        return answer


def test_call(server):
    assert stat.S_IMODE(server.stat().st_mode) == 0o660
    assert call("echo", {}, server) == {"pong": True}


@pytest.mark.parametrize(
    ("method", "params", "reason"),
    [("nothing", {}, "rpc-method"), ("broken", {}, "rpc-internal"), ("echo", {"x": 1}, "rpc-params")],
)
def test_errors(server, method, params, reason):
    with pytest.raises(RpcError) as caught:
        call(method, params, server)
    assert caught.value.reason == reason
    assert "secret" not in caught.value.message


def test_garbage_closes_the_connection(server):
    good = rpc.encode_request("echo", {}, 1)
    answers = [json.loads(line) for line in converse(server, good + b"garbage\n" + good).splitlines()]
    assert [("result" in answer) for answer in answers] == [True, False]
    assert answers[1]["error"]["code"] == rpc.PARSE_ERROR


def test_long_line_closes_the_connection(server):
    answer = json.loads(converse(server, b"x" * (rpc.MAX_LINE + 10)))
    assert answer["error"]["data"]["reason"] == "rpc-too-long"
    assert call("echo", {}, server) == {"pong": True}


def test_idle_and_cut_connections_end(server):
    assert converse(server, b"") == b""
    assert converse(server, b'{"jsonrpc"') == b""
    assert call("echo", {}, server) == {"pong": True}


def test_notification_has_no_answer(server):
    answers = converse(server, b'{"jsonrpc":"2.0","method":"echo"}\n' + rpc.encode_request("echo", {}, 2)).splitlines()
    assert [json.loads(answer)["id"] for answer in answers] == [2]


def test_too_many_connections(server):
    held = []
    for _ in range(mixosd.MAX_CONNECTIONS):
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(str(server))
        held.append(channel)
    with pytest.raises(RpcError) as caught:
        call("echo", {}, server)
    assert caught.value.reason == "rpc-busy"
    for channel in held:
        channel.close()


def test_second_instance_is_refused(tmp_path):
    held = mixosd.lock(tmp_path / "lock")
    with pytest.raises(mixosd.BusyError) as caught:
        mixosd.lock(tmp_path / "lock")
    assert caught.value.exit_code == 12
    os.close(held)
    os.close(mixosd.lock(tmp_path / "lock"))


def test_no_daemon(tmp_path):
    with pytest.raises(UnreachableError) as caught:
        call("ping", {}, tmp_path / "none")
    assert caught.value.reason == "daemon-unreachable"


def test_patience_waits_for_a_starting_daemon(tmp_path):
    path = tmp_path / "late"

    def serve_later():
        time.sleep(0.5)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(rpc.encode_result(1, "pong"))

    thread = threading.Thread(target=serve_later)
    thread.start()
    assert call("ping", {}, path, patience=30) == "pong"
    thread.join()


def test_power_button_events():
    def event(kind, code, value):
        return b"\0" * 16 + kind.to_bytes(2, "little") + code.to_bytes(2, "little") + value.to_bytes(4, "little")

    assert power.pressed(event(1, 116, 1) + event(0, 0, 0))
    assert not power.pressed(event(1, 116, 0))
    assert not power.pressed(event(1, 30, 1))
    assert not power.pressed(b"short")
