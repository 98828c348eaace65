"""The part of the daemon: configuration, methods, record, endpoint, and the commands that show them."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from common import values
from common.errors import ConfigError
from daemon.core.method import ADMINS, Caller, Nothing, Role
from daemon.core.part import Context
from daemon.parts.metrics import config, part, ring
from daemon.parts.metrics import top as top_command
from daemon.parts.metrics import verbs as metrics_command
from daemon.parts.metrics.part import Metrics, Period, Top, Window
from tests.terminals import Played
from tests.waiting import PATIENCE

CALLER = Caller(Role.ADMIN, 0, 0, 1, "root", "local")


def place(folder: Path) -> Context:
    """Folders of a host."""
    return Context(run=folder, etc=folder, cgroups=folder / "none", shared=False)


def play(tmp_path, script: Callable[[Metrics], Awaitable[object]], text: str | None = None) -> Any:
    """Run `script` with a started part whose configuration is `text`."""
    if text is not None:
        (tmp_path / "metrics.toml").write_text(text)

    async def run() -> object:
        metrics = Metrics(place(tmp_path), tmp_path / "cgroup")
        await metrics.start()
        try:
            async with asyncio.timeout(PATIENCE):
                return await script(metrics)
        finally:
            await metrics.stop()

    return asyncio.run(run())


async def ask(metrics: Metrics, name: str, params: Any = None) -> Any:
    method = next(one for one in metrics.methods() if one.name == name)
    assert isinstance(params or Nothing(), method.params)
    answer = await method.handler(CALLER, params or Nothing())  # type: ignore[misc]
    return json.loads(json.dumps(answer))


def test_methods_answer_what_json_can_say(tmp_path):
    (tmp_path / "cgroup/hello").mkdir(parents=True)

    async def script(metrics: Metrics) -> tuple[Any, ...]:
        return (
            await ask(metrics, "metrics.now", Window(seconds=0.1)),
            await ask(metrics, "metrics.top", Top(seconds=0.1, count=3, sort="memory")),
            await ask(metrics, "metrics.history", Period(minutes=5)),
            await ask(metrics, "metrics.health"),
            await ask(metrics, "metrics.prometheus"),
        )

    now, top, history, health, text = play(tmp_path, script)
    assert [unit["name"] for unit in now["units"]] == ["hello"]
    assert len(top["processes"]) == 3
    assert top["process-count"] >= 3
    assert history == {"step": ring.STEP, "columns": list(ring.COLUMNS), "rows": []}
    assert health["state"] in ("ok", "warning", "critical")
    assert len(list(text_string_to_metric_families(text))) > 10


def test_nothing_runs_until_somebody_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(ring, "STEP", 0.02)

    async def script(metrics: Metrics) -> list[Any]:
        before = metrics.status()["recording"]
        await ask(metrics, "metrics.history", Period())
        while not (rows := (await ask(metrics, "metrics.history", Period()))["rows"]):
            await asyncio.sleep(0.02)
        metrics._wanted_until = 0.0  # the hour after the last question is over
        while metrics.status()["recording"]:
            await asyncio.sleep(0.02)
        return [before, rows]

    before, rows = play(tmp_path, script)
    assert before is False
    assert len(rows[0]) == len(ring.COLUMNS)


def test_the_record_can_be_kept_always(tmp_path):
    async def script(metrics: Metrics) -> bool:
        return bool(metrics.status()["recording"])

    assert play(tmp_path, script, 'history = "always"\n')


def test_a_failing_sensor_costs_a_row_not_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(ring, "STEP", 0.01)
    real, calls = part.take, []

    def take(groups: Any) -> Any:
        calls.append(groups)
        if len(calls) % 2 == 0:
            raise RuntimeError("no such sensor")
        return real(groups)

    async def script(metrics: Metrics) -> None:
        monkeypatch.setattr(part, "take", take)
        metrics._record()
        while not metrics._ring.since(0):
            await asyncio.sleep(0.01)

    play(tmp_path, script)
    assert len(calls) > 2


def test_the_endpoint_is_off_without_configuration(tmp_path):
    async def script(metrics: Metrics) -> object:
        return metrics.status()["endpoint"]

    assert play(tmp_path, script) is None


def test_the_endpoint_serves_what_prometheus_reads(tmp_path, port):
    async def script(metrics: Metrics) -> tuple[str, str]:
        def get() -> tuple[str, str]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return answer.headers["Content-Type"], answer.read().decode()

        assert metrics.status()["endpoint"] == f"127.0.0.1:{port}"
        return await asyncio.to_thread(get)

    kind, text = play(tmp_path, script, f'[prometheus]\nenable = true\nlisten = "127.0.0.1:{port}"\n')
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert "mixos_uptime_seconds" in {family.name for family in text_string_to_metric_families(text)}


def test_reload_moves_the_endpoint_and_a_mistake_stops_at_the_door(tmp_path, port):
    async def script(metrics: Metrics) -> list[Any]:
        path = tmp_path / "metrics.toml"
        states = [metrics.status()["endpoint"]]
        path.write_text(f'[prometheus]\nenable = true\nlisten = "127.0.0.1:{port}"\n')
        states.append((await ask(metrics, "metrics.reload"))["endpoint"])
        path.write_text(
            f'[prometheus]\nenable = true\nlisten = "0.0.0.0:{port}"\n'
        )  # the same port: its own is no obstacle
        states.append((await ask(metrics, "metrics.reload"))["endpoint"])
        path.write_text("[prometheus]\nenabel = true\n")
        with pytest.raises(ConfigError) as caught:
            await ask(metrics, "metrics.reload")
        states += [caught.value.reason, metrics.status()["endpoint"], metrics.status()["problem"] is not None]
        path.unlink()
        states.append((await ask(metrics, "metrics.reload"))["endpoint"])
        return [*states, metrics.status()["problem"]]

    here, everywhere = f"127.0.0.1:{port}", f"0.0.0.0:{port}"
    assert play(tmp_path, script) == [None, here, everywhere, "config-unknown-key", everywhere, True, None, None]


def test_a_port_that_is_taken_is_told(tmp_path):
    async def script(metrics: Metrics) -> tuple[str, Any]:
        with pytest.raises(ConfigError) as caught:
            await ask(metrics, "metrics.reload")
        return caught.value.reason, metrics.status()["problem"]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = f'[prometheus]\nenable = true\nlisten = "127.0.0.1:{port}"\n'
        reason, problem = play(tmp_path, script, text)
    assert reason == "metrics-listen"
    assert str(port) in problem


def test_an_endpoint_that_cannot_move_stays_where_it_is(tmp_path, port):
    async def script(metrics: Metrics) -> tuple[str, Any]:
        (tmp_path / "metrics.toml").write_text(f'[prometheus]\nenable = true\nlisten = "127.0.0.1:{taken}"\n')
        with pytest.raises(ConfigError) as caught:
            await ask(metrics, "metrics.reload")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
        return caught.value.reason, metrics.status()["endpoint"]

    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        text = f'[prometheus]\nenable = true\nlisten = "127.0.0.1:{port}"\n'
        assert play(tmp_path, script, text) == ("metrics-listen", f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["192.0.2.77", "[2001:db8::77]"])
def test_an_address_may_come_later(tmp_path, address):
    """At boot there is no lease yet."""

    async def script(metrics: Metrics) -> Any:
        return metrics.status()["endpoint"]

    text = f'[prometheus]\nenable = true\nlisten = "{address}:9100"\n'
    assert play(tmp_path, script, text) == f"{address}:9100"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[prometheus]\nlisten = "localhost:9100"', "config-value"),
        ('[prometheus]\nlisten = "127.0.0.1"', "config-value"),
        ('[prometheus]\nlisten = "127.0.0.1:0"', "config-value"),
        ('[prometheus]\nlisten = "127.0.0.1:99999"', "config-value"),
        ('[prometheus]\nlisten = "::1:9100"', "config-value"),
        ('[prometheus]\nlisten = "[127.0.0.1]:9100"', "config-value"),
        ('history = "sometimes"', "config-value"),
        ("[prometheus]\nenable = 'x'", "config-value"),
        ("[prometeus]", "config-unknown-key"),
        ("x = [", "config-syntax"),
    ],
)
def test_mistakes_of_the_configuration(tmp_path, text, reason):
    (tmp_path / "metrics.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.read(tmp_path)
    assert caught.value.reason == reason


def test_addresses_of_both_kinds():
    assert values.address("[::1]:9100") == ("::1", 9100)
    assert values.address("0.0.0.0:80") == ("0.0.0.0", 80)


def test_only_administrators_change_anything(tmp_path):
    methods = Metrics(Context(etc=tmp_path)).methods()
    assert {one.name for one in methods if one.changes} == {"metrics.reload"}
    assert all(one.roles == ADMINS for one in methods if one.changes)
    assert all(one.name.startswith("metrics.") for one in methods)


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(monkeypatch, tmp_path):
    """The commands ask a part in this process; what they asked is returned."""
    (tmp_path / "cgroup/hello").mkdir(parents=True)
    (tmp_path / "cgroup/hello/pids.current").write_text("3\n")
    asked: list[tuple[str, Any]] = []

    def answer(method: str, params: Any = None, *, seconds: float = 15.0) -> Any:
        asked.append((method, params))

        async def script(metrics: Metrics) -> object:
            found = next(one for one in metrics.methods() if one.name == method)
            given = {**(params or {}), **({"seconds": 0.1} if "seconds" in (params or {}) else {})}
            return await found.handler(CALLER, found.params.model_validate(given))  # type: ignore[misc]

        return json.loads(json.dumps(play(tmp_path, script)))

    monkeypatch.setattr(metrics_command, "ask", answer)
    monkeypatch.setattr(top_command, "ask", answer)
    return asked


def invoke(command: Any, *arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert result.exception is None, result.output
    return result.output


def test_metrics_as_table_and_json(daemon):
    assert "hello" in invoke(metrics_command.metrics)
    assert json.loads(invoke(metrics_command.metrics, "--json"))["units"][0]["tasks"] == 3
    text = invoke(metrics_command.metrics, "--prometheus")
    assert len(list(text_string_to_metric_families(text))) > 10
    assert json.loads(invoke(metrics_command.metrics, "--health", "--json"))["state"] in ("ok", "warning", "critical")
    assert json.loads(invoke(metrics_command.metrics, "--history", "5", "--json"))["rows"] == []
    assert json.loads(invoke(metrics_command.metrics, "--reload", "--json")) == {"endpoint": None}


def test_a_record_is_told_minute_by_minute():
    rows = [[60.0 * minute + second, 50.0, 1 << 20, 1.0, 0, 0, 0, 0] for minute in (5, 6) for second in (0, 10, 20)]
    text = metrics_command.record({"columns": list(ring.COLUMNS), "rows": rows})
    assert len(text.splitlines()) == 3
    assert "50.0" in text


def test_top_once(daemon):
    found = json.loads(invoke(top_command.top, "--json", "--count", "2", "--interval", "0.5"))
    assert len(found["processes"]) == 2
    assert daemon[-1] == ("metrics.top", {"seconds": 0.5, "sort": "cpu", "count": 2})
    text = invoke(top_command.top, "--sort", "name", "--rounds", "2")
    assert text.count("PID") == 2
    assert "hello" in text


def test_top_on_a_terminal_listens_to_keys(daemon, monkeypatch):
    class Keyboard(Played):
        """One key a round; then none."""

        def key(self, seconds: float | None = None) -> str | None:
            return self.keys.pop(0) if self.keys else None

    terminal = Keyboard(["m", None, "?", None, "q", None], columns=60)
    monkeypatch.setattr(top_command, "Terminal", lambda: terminal)
    invoke(top_command.top)
    assert [params["sort"] for _, params in daemon] == ["cpu", "memory", "memory"]
    screens = terminal.written.split("\x1b[H\x1b[J")[1:]
    assert len(screens) == 3
    for screen in screens:
        assert len(screen.splitlines()) < terminal.size()[1]
        assert all(len(line) < 60 for line in screen.splitlines())


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 30, "200 GiB"), (None, "-")]
)
def test_sizes(count, text):
    assert metrics_command.size(count) == text
