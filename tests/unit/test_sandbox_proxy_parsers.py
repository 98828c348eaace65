"""What clients say: one meaning or a refusal, for bytes that real clients send and for any other."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.linux.sandbox.proxy_rules import DeniedError
from daemon.parts.sandbox import proxy_http as http
from daemon.parts.sandbox.proxy_tls import MAX_HELLO, Hello, client_hello
from tests.clienthello import extended, hello, named, records

REASONS = {"malformed", "framing", "host-mismatch", "name-invalid", "command", "not-tls"}


def refused(data: bytes) -> str:
    with pytest.raises(DeniedError) as caught:
        http.request(data)
    return caught.value.reason


# -- HTTP --------------------------------------------------------------------------------------------------------------


def test_a_tunnel() -> None:
    found = http.request(b"CONNECT Api.Example.org:443 HTTP/1.1\r\nHost: api.example.org:443\r\nUser-Agent: x\r\n\r\n")
    assert (found.head.method, found.to.host, found.to.port, found.length) == ("CONNECT", "api.example.org", 443, 0)
    assert str(http.request(b"CONNECT [2001:DB8::1]:443 HTTP/1.0\r\n\r\n").to) == "[2001:db8::1]:443"


def test_a_plain_request_is_written_anew() -> None:
    found = http.request(
        b"POST http://Example.org/a?b=c HTTP/1.1\r\nHOST:example.org\r\nProxy-Connection: keep-alive\r\n"
        b"Proxy-Authorization: Basic eA==\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
        b"TE: trailers\r\nUpgrade: h2c\r\nAccept:  text/html \r\nEmpty:\r\nContent-Length: 5\r\n\r\n"
    )
    assert (found.length, found.path) == (5, "/a?b=c")
    assert http.forward(found) == (
        b"POST /a?b=c HTTP/1.1\r\nHost: example.org\r\naccept: text/html\r\nempty: \r\nContent-Length: 5\r\n"
        b"Connection: close\r\n\r\n"
    )
    assert http.forward(found, to_proxy="Basic eA==").startswith(
        b"POST http://example.org/a?b=c HTTP/1.1\r\nHost: example.org\r\n"
    )
    assert b"\r\nProxy-Authorization: Basic eA==\r\n" in http.forward(found, to_proxy="Basic eA==")


def test_connection_cannot_take_away_what_frames_the_message() -> None:
    found = http.request(
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nConnection: content-length, host\r\nContent-Length: 3\r\n\r\n"
    )
    assert b"\r\nContent-Length: 3\r\n" in http.forward(found)
    assert b"\r\nHost: a.test\r\n" in http.forward(found)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET https://a.test/ HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http://a.test/ HTTP/2.0\r\nHost: a.test", "malformed"),
        (b"GET  http://a.test/ HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http://a.test/ HTTP/1.1 \r\nHost: a.test", "malformed"),
        (b"GET http://a.test/#f HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http://a.test@b.test/ HTTP/1.1\r\nHost: b.test", "malformed"),
        (b"GET http://a.test\\@b.test/ HTTP/1.1\r\nHost: b.test", "malformed"),
        (b"GET http://a.test:80:80/ HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http://a.test:/ HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http:///x HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http://a.test:0/ HTTP/1.1\r\nHost: a.test", "name-invalid"),
        (b"GET http://127.1/ HTTP/1.1\r\nHost: 127.1", "name-invalid"),
        (b"GET http://[::1%25lo]/ HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http://[127.0.0.1]/ HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http://a.test%00.b.test/ HTTP/1.1\r\nHost: a.test", "name-invalid"),
        (b"GET http://a.test/ HTTP/1.1", "host-mismatch"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: b.test", "host-mismatch"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test:81", "host-mismatch"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: a.test", "host-mismatch"),
        (b"CONNECT a.test:443 HTTP/1.1\r\nHost: b.test:443", "host-mismatch"),
        (b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:80", "host-mismatch"),
        (b"CONNECT a.test HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"CONNECT u@a.test:443 HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1", "framing"),
        (b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nContent-Length: 1", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1, 1", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: +1", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0x1", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9999999999999999", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length:", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked, chunked", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: identity", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: \x0bchunked", "malformed"),
        (b"GET http://a.test/ HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked", "framing"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX : 1", "malformed"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n folded", "malformed"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX: a\nY: b", "malformed"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX: a\rY: b", "malformed"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX: a\0b", "malformed"),
        (b"GET http://a.test/ HTTP/1.1\nHost: a.test", "malformed"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nnothing", "malformed"),
        (b"\r\nGET http://a.test/ HTTP/1.1\r\nHost: a.test", "malformed"),
        (b"GET http://a.test/ HTTP/1.1" + b"\r\nX: 1" * 101, "malformed"),
        (b"GET http://a.test/ HTTP/1.1\r\nX: " + b"x" * http.MAX_HEAD, "malformed"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(lines: bytes, reason: str) -> None:
    assert refused(lines + http.END) == reason


@pytest.mark.parametrize(
    "line", [b"", b"\r\n", b"1", b"g\r\n", b"1;x=y\r\n", b"-1\r\n", b"0x1\r\n", b" 1\r\n", b"1" * 13 + b"\r\n"]
)
def test_chunk_lines_are_numbers(line: bytes) -> None:
    assert http.chunk_size(b"1aF\r\n") == 0x1AF
    with pytest.raises(DeniedError):
        http.chunk_size(line)


PIECES = st.sampled_from(
    [
        b"GET", b"CONNECT", b" ", b"  ", b"http://", b"a.test", b"b.test", b":80", b":443", b"/", b"@", b"[::1]", b"\t",
        b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r", b"\0", b"Host: a.test", b"Content-Length: 1",
        b"Transfer-Encoding: chunked",
    ]
)  # fmt: skip


@given(st.one_of(st.binary(), st.lists(st.one_of(PIECES, st.binary(max_size=3))).map(b"".join)))
@example(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\n")
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        found = http.request(data + http.END)
    except DeniedError as error:
        assert error.reason in REASONS  # noqa: PT017  # most inputs are refused, some are not
        return
    if found.head.method == "CONNECT":
        return
    written = http.forward(found, to_proxy="")
    again = http.request(written)
    assert (again.to, again.path, again.length, again.head.method) == (
        found.to,
        found.path,
        found.length,
        found.head.method,
    )
    assert written.count(http.END) == 1
    assert b"\0" not in written
    assert written.replace(b"\r\n", b"").isascii() or any(not value.isascii() for _, value in found.head.fields)
    assert not {b"\r", b"\n"} & {written.replace(b"\r\n", b"")[at : at + 1] for at in range(len(written))}


# -- SOCKS 5 -----------------------------------------------------------------------------------------------------------


def test_socks_targets() -> None:
    name = b"\x05\x01\x00\x03\x06a.test\x01\xbb"
    assert http.socks_length(name[:5]) == len(name)
    assert str(http.socks_target(name)) == "a.test:443"
    assert str(http.socks_target(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")) == "127.0.0.1:80"
    mapped = b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\x7f\x00\x00\x01\x00\x50"
    assert str(http.socks_target(mapped)) == "127.0.0.1:80"
    literal = b"\x05\x01\x00\x03\x09127.0.0.1\x00\x50"
    assert http.socks_target(literal).address is not None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", "command"),
        (b"\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", "command"),
        (b"\x05\x01\x01\x01\x7f\x00\x00\x01\x00\x50", "malformed"),
        (b"\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x50", "malformed"),
        (b"\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50", "malformed"),
        (b"\x05\x01\x00\x03\x00\x00\x50", "name-invalid"),
        (b"\x05\x01\x00\x03\x06a\0test\x01\xbb", "name-invalid"),
        (b"\x05\x01\x00\x03\x07a.test\x01\xbb", "malformed"),
        (b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", "name-invalid"),
    ],
)
def test_socks_refusals(data: bytes, reason: str) -> None:
    with pytest.raises(DeniedError) as caught:
        http.socks_target(data)
    assert caught.value.reason == reason


@given(st.binary())
def test_any_bytes_are_a_socks_request_or_refused(data: bytes) -> None:
    with contextlib.suppress(DeniedError):
        assert http.socks_target(data).port > 0


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.test", "xn--bcher-kva.example", "A.Test", None])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_name_in_a_real_hello(name: str | None, version: ssl.TLSVersion) -> None:
    assert client_hello(hello(name, maximum_version=version)) == Hello(name)


def test_a_hello_in_pieces() -> None:
    whole = hello()
    message = whole[5:]
    for data in (whole, records(message, 1), records(message, 100)):
        assert client_hello(data) == Hello("a.test")
        assert client_hello(data + b"anything behind it") == Hello("a.test")
        assert {client_hello(data[:size]) for size in range(len(data))} == {None}


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n", b"SSH-2.0-x\r\n", b"\x16\x02\x01\x00\x05", b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x50\x00", b"\x80\x2e\x01\x03\x01", b"\x17\x03\x03\x00\x05hello",
        b"\x15\x03\x01\x00\x02\x01\x00" + hello(), b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", extended(named(b"a.test"), named(b"b.test")),
        extended(named(b"a.test", b"b.test")), extended(named(b"a.test", kind=1)), extended(named(b"")),
        extended((0, b"")), extended((0, b"\x00\x03\x00\x00\x09a.test")), extended(named(b"a.test"), tail=b"x"),
        extended((0, named(b"a.test")[1] + b"x")),
    ],
)  # fmt: skip
def test_what_is_not_one_clear_hello(data: bytes) -> None:
    with pytest.raises(DeniedError) as caught:
        client_hello(data)
    assert caught.value.reason == "not-tls"


def test_a_hello_has_an_end() -> None:
    with pytest.raises(DeniedError):
        client_hello(records(b"\x01" + MAX_HELLO.to_bytes(3, "big") + bytes(MAX_HELLO - 1), 1))


@given(st.binary(max_size=600))
def test_any_bytes_are_no_hello_or_refused(data: bytes) -> None:
    for start in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
        with contextlib.suppress(DeniedError):
            found = client_hello(start + data)
            assert found is None or isinstance(found, Hello)


@given(st.integers(0, 600), st.integers(0, 255), st.integers(1, 700))
def test_a_changed_or_cut_hello(at: int, value: int, size: int) -> None:
    data = bytearray(extended(named(b"a.test"), (43, b"\x02\x03\x04"), (51, bytes(100))))
    data[at % len(data)] = value
    with contextlib.suppress(DeniedError):
        client_hello(records(bytes(data[5:]), size))
        client_hello(bytes(data[: at + 1]))
