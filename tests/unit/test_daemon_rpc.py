"""JSON-RPC: framing, limits, refusal of garbage; errors and streams on the wire; the client without a daemon."""

from __future__ import annotations

import json
import os
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, NotFoundError, RpcError, UnreachableError
from daemon import mixosd
from daemon.client.connection import call, stream
from daemon.core import rpc
from daemon.linux import power
from tests.waiting import PATIENCE, joined


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
        (b'{"jsonrpc":"2.0","method":"a","params":{"a":1e999}}', "rpc-json"),
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


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (NotFoundError("m", reason="r", hint="h"), -32004, 4),
        (ConfigError("m", reason="r", hint="h", retryable=True), -32003, 3),
        (rpc.failure("m", code=rpc.INVALID_PARAMS, reason="r", hint="h", exit_code=2), -32602, 2),
    ],
)
def test_an_error_arrives_as_it_was_raised(error, code, exit_code):
    with pytest.raises(RpcError) as caught:
        rpc.decode_answer(rpc.encode_error(1, error), 1)
    assert caught.value.code == code
    assert caught.value.as_json() == error.as_json()
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize("data", [None, [], {"hint": 1, "exit_code": "x", "reason": None}, {"exit_code": 0}])
def test_an_error_without_usable_data_is_still_one(data):
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": "x", "message": None, "data": data}}).encode()
    with pytest.raises(RpcError) as caught:
        rpc.decode_answer(line, 1)
    assert (caught.value.reason, caught.value.exit_code, caught.value.hint) == ("rpc-error", 11, None)


def test_stream_lines():
    assert rpc.decode_stream(rpc.encode_item(3, {"a": 1}), 3) == (True, {"a": 1})
    assert rpc.decode_stream(rpc.encode_end(3, None), 3) == (False, None)
    with pytest.raises(RpcError) as caught:
        rpc.decode_stream(rpc.encode_end(3, NotFoundError("m", reason="gone")), 3)
    assert caught.value.reason == "gone"
    for line in (rpc.encode_item(4, 1), rpc.encode_result(1, {"stream": 3}), b"{}", b"[]"):
        with pytest.raises(RpcError) as caught:
            rpc.decode_stream(line, 3)
        assert caught.value.reason == "rpc-answer"


@pytest.mark.parametrize(
    ("value", "reason"),
    [({1, 2}, "rpc-answer"), (float("nan"), "rpc-answer"), ("x" * rpc.MAX_ANSWER, "rpc-answer-too-long")],
)
def test_what_cannot_be_answered(value, reason):
    with pytest.raises(RpcError) as caught:
        rpc.encode_result(1, value)
    assert caught.value.reason == reason


def test_a_file_name_that_is_no_text_can_be_answered():
    assert rpc.decode_answer(rpc.encode_result(1, os.fsdecode(b"a\xff")), 1) == os.fsdecode(b"a\xff")


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
    with pytest.raises(RpcError):
        rpc.decode_stream(line, 1)


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
            server.settimeout(PATIENCE)
            peer, _ = server.accept()
            with peer:
                peer.settimeout(PATIENCE)
                peer.recv(4096)
                peer.sendall(rpc.encode_result(1, "pong"))

    thread = threading.Thread(target=serve_later)
    thread.start()
    assert call("ping", {}, path, patience=30) == "pong"
    joined(thread)


def test_a_daemon_with_a_full_queue_is_waited_for(tmp_path):
    """connect(2) says EAGAIN then, which must not be read as "the daemon is not there"."""
    path = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(path))
        server.listen(0)
        first.connect(str(path))
        with pytest.raises(UnreachableError) as caught:
            call("ping", {}, path, timeout=0.1)
        assert caught.value.reason == "daemon-timeout"

        def serve_later():
            time.sleep(0.3)
            server.settimeout(PATIENCE)
            server.accept()[0].close()
            peer, _ = server.accept()
            with peer:
                peer.settimeout(PATIENCE)
                peer.recv(4096)
                peer.sendall(rpc.encode_result(1, "pong"))

        thread = threading.Thread(target=serve_later)
        thread.start()
        assert call("ping", {}, path, timeout=30) == "pong"
        joined(thread)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (rpc.encode_result(1, "no stream"), "rpc-answer"),
        (rpc.encode_result(1, {"stream": 1}) + rpc.encode_item(1, "a"), "daemon-gone"),
        (rpc.encode_error(1, NotFoundError("m", reason="x")), "x"),
        (b"", "daemon-unreachable"),
    ],
)
def test_a_stream_that_breaks(tmp_path, answers, reason):
    path = tmp_path / "s"

    def answer():
        server.settimeout(PATIENCE)
        peer, _ = server.accept()
        with peer:
            peer.settimeout(PATIENCE)
            peer.recv(4096)
            peer.sendall(answers)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises((RpcError, UnreachableError)) as caught:
            list(stream("x", {}, path))
        joined(thread)
    assert caught.value.reason == reason


def test_power_button_events():
    def event(kind, code, value):
        return b"\0" * 16 + kind.to_bytes(2, "little") + code.to_bytes(2, "little") + value.to_bytes(4, "little")

    assert power.pressed(event(1, 116, 1) + event(0, 0, 0))
    assert not power.pressed(event(1, 116, 0))
    assert not power.pressed(event(1, 30, 1))
    assert not power.pressed(b"short")
