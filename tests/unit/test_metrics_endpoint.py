"""The Prometheus endpoint: its text, judged by Prometheus' own parser; its HTTP, fuzzed and flooded."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from daemon.core.figures import Family, Figures, Finding
from daemon.parts.metrics import http
from daemon.parts.metrics.exposition import text
from daemon.parts.metrics.health import health
from daemon.parts.metrics.http import Endpoint, judge
from tests.metricsamples import SAMPLE, UNIT
from tests.waiting import eventually


def families(document: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    return {
        family.name: {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(document)
    }


def test_the_text_says_what_was_sampled():
    found = families(text(SAMPLE, {"MIXOS_VERSION": "0.1.0", "MIXOS_KERNEL": "6.12"}, True))
    assert found["mixos_build_info"] == {(("kernel", "6.12"), ("version", "0.1.0")): 1.0}
    assert found["mixos_cpu_seconds"][(("mode", "user"),)] == 10.0
    assert found["mixos_memory_bytes"][(("kind", "available"),)] == 600.0
    assert found["mixos_load_average"][(("minutes", "5"),)] == 0.2
    assert found["mixos_network_receive_bytes"] == {(("interface", "eth0"),): 100.0}
    assert found["mixos_unit_oom_kills"] == {(("unit", "hello"),): 1.0}
    assert found["mixos_health_state"] == {(): 0.0}


def test_units_can_be_left_out_and_unknown_figures_are():
    assert not [name for name in families(text(SAMPLE, {}, False)) if name.startswith("mixos_unit")]
    unknown = SAMPLE._replace(units={"hello": UNIT._replace(memory=None)})
    assert "mixos_unit_memory_bytes" not in families(text(unknown, {}, True))


def test_what_other_parts_find_counts():
    def broken() -> list[Finding]:
        raise OSError(5, "I/O error")

    figures = Figures()
    figures.offer("broken", findings=broken)
    figures.offer("kettle", findings=lambda: [Finding("kettle", "warning", "cold")])
    assert families(text(SAMPLE, {}, False, figures))["mixos_health_state"] == {(): 1.0}
    assert health(SAMPLE, figures.findings()) == {
        "state": "warning", "findings": [{"check": "kettle", "state": "warning", "text": "cold"}],
    }  # fmt: skip
    figures.withdraw("kettle")
    assert families(text(SAMPLE, {}, False, figures))["mixos_health_state"] == {(): 0.0}


def test_figures_of_other_parts():
    def broken() -> list[Family]:
        raise OSError(5, "I/O error")

    figures = Figures()
    figures.offer("kettle", lambda: [Family("mixos_kettle_degrees", "gauge", "Of the water.", [({}, 80.0)])])
    figures.offer("broken", broken)
    figures.offer("spoiler", lambda: [Family("mixos_cpus", "gauge", "Named as one of ours.", [({}, -1.0)])])
    figures.offer("units", lambda: [Family("mixos_unit_x", "gauge", "Of each.", [({"unit": "web"}, 1.0)])])
    found = families(text(SAMPLE, {}, True, figures))
    assert found["mixos_kettle_degrees"] == {(): 80.0}
    assert found["mixos_unit_x"] == {(("unit", "web"),): 1.0}
    assert found["mixos_cpus"] == families(text(SAMPLE, {}, True))["mixos_cpus"]
    figures.withdraw("kettle")
    assert {"mixos_kettle_degrees", "mixos_unit_x"}.isdisjoint(families(text(SAMPLE, {}, False, figures)))


@given(st.text(st.characters(codec=None), max_size=20), st.text(st.characters(codec=None), max_size=20))
def test_any_label_survives(unit, version):
    found = families(text(SAMPLE._replace(units={unit: UNIT}), {"MIXOS_VERSION": version}, True))
    # The parser reads \r and friends as ends of lines where the format has only \n; nothing else may differ.
    if not set(unit) & set("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"):
        clean = unit.encode("utf-8", "replace").decode()
        assert found["mixos_unit_tasks"] == {(("unit", clean),): 3.0}


HOST = b"Host: x\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n", 200),
        (b"GET /metrics?x=1 HTTP/1.1\r\n" + HOST + b"Accept: */*\r\n\r\n", 200),
        (b"HEAD /metrics HTTP/1.1\r\n" + HOST + b"\r\n", 200),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /metrics/../etc HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"GET /metrics HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nBad Header: x\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b" folded\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"A: \x00\r\n\r\n", 400),
        (b"GET http://x/metrics HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"", 400),
    ],
)
def test_what_a_request_gets(head, status):
    assert judge(head).status == status


@given(st.binary(max_size=200) | st.from_regex(rb"[A-Z]{1,4} /[a-z]* HTTP/[0-9]\.[0-9]\r\n([A-Za-z: ]*\r\n){0,3}\r\n"))
def test_any_bytes_get_a_status(head):
    assert judge(head).status in http._STATUS


class InProcess:
    """What the endpoint has of mixosd, here: a listening socket, and `document`."""

    def __init__(self, document: Callable[[], str]) -> None:
        self.listener = http.listen("127.0.0.1", 0)
        self.files = [os.dup(self.listener.fileno())]
        self.port = self.listener.getsockname()[1]
        self.document = document

    async def ask(self, name: str, params: object = None, seconds: float = 0.0) -> str:
        assert name == "document"
        return self.document()


@asynccontextmanager
async def endpoint(document: Callable[[], str]) -> AsyncIterator[int]:
    """An endpoint's port."""
    place = InProcess(document)
    found = Endpoint(cast(Any, place))
    await found.start()
    try:
        yield place.port
    finally:
        await found.stop()
        place.listener.close()


def serve(client: Callable[[int], Awaitable[object]], document: Callable[[], str] = lambda: "a 1\n") -> object:
    """Run `client` against an endpoint."""

    async def both() -> object:
        async with endpoint(document) as port, asyncio.timeout(30):
            return await client(port)

    return asyncio.run(both())


async def talk(port: int, data: bytes, end: bool = False) -> bytes:
    """Send `data` and read the answer; b"" when the connection is just closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_get_and_head():
    async def client(port: int) -> tuple[bytes, bytes]:
        return (
            await talk(port, b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"),
            await talk(port, b"HEAD /metrics HTTP/1.1\r\n" + HOST + b"\r\n"),
        )

    got, head = serve(client)
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert got.endswith(b"\r\n\r\na 1\n")
    assert b"Content-Length: 4\r\n" in got
    assert head == got[: -len(b"a 1\n")]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 20_000, b"431"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + b"z" * 50_000, b"405"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_what_is_too_much(data, status):
    answer = serve(lambda port: talk(port, data))
    assert answer.split()[1] == status


def test_a_client_that_dawdles_is_told_so(monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.1)
    assert serve(lambda port: talk(port, b"GET /metr")).split()[1] == b"408"
    assert serve(lambda port: talk(port, b"GET /metr", end=True)) == b""


def test_a_document_that_fails_is_an_error_and_the_server_goes_on():
    def fail() -> str:
        raise ValueError("secret")

    async def client(port: int) -> list[bytes]:
        return [await talk(port, b"GET /metrics HTTP/1.0\r\n\r\n") for _ in range(2)]

    answers = serve(client, fail)
    assert [answer.split()[1] for answer in answers] == [b"500", b"500"]
    assert b"secret" not in answers[0]


def test_connections_are_bounded(monkeypatch):
    async def client(port: int) -> tuple[bytes, bytes]:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(http.MAX_CONNECTIONS)]
        refused = answered = b"- -"
        while refused.split()[1] != b"503":  # until all of them are accepted
            refused = await talk(port, b"GET /metrics HTTP/1.0\r\n\r\n")
        for _, writer in idle:
            writer.close()
        while answered.split()[1] != b"200":  # until all of them are gone
            answered = await talk(port, b"GET /metrics HTTP/1.0\r\n\r\n")
        return refused, answered

    refused, answered = serve(client)
    assert refused.split()[1] == b"503"
    assert answered.split()[1] == b"200"


def test_a_client_that_reads_nothing_is_cut_off(monkeypatch):
    """Closing alone would wait for it for ever, with the descriptor."""
    monkeypatch.setattr(http, "SEND_SECONDS", 0.2)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def script() -> None:
        async with endpoint(lambda: "x" * (16 << 20)) as port:
            listening = descriptors()
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", port))
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                await eventually(lambda: select.select([client], [], [], 0)[0])  # it is being answered
                await eventually(lambda: descriptors() == listening + 1)  # the client's own
            await eventually(lambda: descriptors() == listening)

    asyncio.run(script())


def test_a_flood_of_connections_is_cut_off(monkeypatch):
    async def client(port: int) -> list[bytes]:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3 * http.MAX_CONNECTIONS)]
        try:
            return [await asyncio.wait_for(reader.read(), 20) for reader, _ in held[-4:]]
        except ConnectionError:
            return []
        finally:
            for _, writer in held:
                writer.close()

    assert not any(serve(client))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=5))
def test_the_server_survives_any_bytes(chunks):
    async def client(port: int) -> bytes:
        for chunk in chunks:
            await talk(port, chunk, end=True)
        return await talk(port, b"GET /metrics HTTP/1.0\r\n\r\n")

    assert serve(client).split()[1] == b"200"
