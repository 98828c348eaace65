"""The methods of supervision and `mixctl service`, against a manager with real shims."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from common.errors import MixosError
from daemon.core.method import ADMINS, OPERATORS, PEOPLE, Caller, Method, Role
from daemon.core.part import Context
from daemon.parts.service import verbs as cli
from daemon.parts.service.part import Manager
from tests.supervision import SLEEP, managed, shell, unit
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.integration
ME = Caller(Role.ADMIN, 0, 0, 1, "root", "local")


class Client:
    """Calls methods as a server does: parameters through the model, the answer through JSON."""

    def __init__(self, manager: Manager) -> None:
        self.methods: dict[str, Method] = {method.name: method for method in manager.methods()}

    async def call(self, name: str, /, **params: object) -> Any:
        method = self.methods[name]
        result = await method.handler(ME, method.params.model_validate(params))  # type: ignore[misc]
        return json.loads(json.dumps(result))

    async def items(self, name: str, /, **params: object) -> list[Any]:
        method = self.methods[name]
        return [json.loads(json.dumps(item)) async for item in method.handler(ME, method.params.model_validate(params))]  # type: ignore[union-attr]


def test_roles(place: Context):
    found = {method.name: method.roles for method in Manager(place).methods()}
    looking = {"list", "show", "graph", "check", "logs"}
    running = {"start", "stop", "restart", "kill", "reset"}
    deciding = {"enable", "disable", "reload", "shutdown"}
    assert found == {
        **{f"service.{name}": PEOPLE for name in looking},
        **{f"service.{name}": OPERATORS for name in running},
        **{f"service.{name}": ADMINS for name in deciding},
    }
    for method in Manager(place).methods():
        assert method.changes == (method.roles != PEOPLE)
        assert method.stream == (method.name == "service.logs")


def test_all_methods(place: Context):
    about, limits = "description = 'is good'\nwants = ['one']", "[limits]\nmemory = '64M'\npids = 100"
    unit(place, "good", shell(f"echo hello; echo oops >&2; {SLEEP}", unit_=about, rest=limits))
    unit(place, "one", shell("echo once", kind="oneshot"))
    unit(place, "bad", shell("echo why; exit 3", more="restart = 'no'"))
    unit(place, "broken", "[unit]\nrequires = ['god']\n")

    async def main() -> None:
        async with managed(place) as manager:
            client = Client(manager)
            (row,) = await client.call("service.start", names=["good"])
            assert (row["name"], row["state"]) == ("good", "running")
            with pytest.raises(MixosError) as caught:
                await client.call("service.start", names=["bad"])
            assert caught.value.reason in ("service-exit", "service-signal")
            with pytest.raises(MixosError) as caught:
                await client.call("service.show", name="god")
            assert (caught.value.reason, "good" in str(caught.value.hint)) == ("unit-unknown", True)

            listed = await client.call("service.list")
            assert {one["name"]: one["state"] for one in listed["units"]} == {
                "good": "running", "one": "done", "bad": "failed",
            }  # fmt: skip
            assert "did you mean 'good'?" in listed["broken"]["broken"]

            facts = await client.call("service.show", name="good")
            assert facts["pid"] > 0
            assert facts["not_enforced"] == (["memory", "pids"] if set(manager.missing) >= {"memory", "pids"} else [])
            assert facts["definition"]["limits"]["memory"] == 64 << 20
            problems = await client.call("service.check")
            assert {(one["unit"], one["level"]) for one in problems} >= {("broken", "error")}
            assert "other.tml" not in {one["unit"] for one in problems}
            (place.etc / "units" / "other.tml").touch()
            problems = await client.call("service.check")
            assert ("other.tml", "unit-not-read") in {(one["unit"], one["reason"]) for one in problems}
            assert ("good", "warning") in {(one["unit"], one["level"]) for one in problems} or not manager.missing

            graph = await client.call("service.graph", names=["good"])
            assert graph["text"] == "good\n  wants one"
            await eventually(lambda: (place.log / "units" / "good").is_dir())
            texts: list[tuple[str, str]] = []
            async with asyncio.timeout(PATIENCE):
                while len([one for one in texts if one[0] != "shim"]) < 2:
                    records = await client.items("service.logs", names=["good"])
                    texts = [(one["stream"], one["text"]) for one in records]
            assert ("stdout", "hello") in texts
            assert ("stderr", "oops") in texts

            await client.call("service.kill", name="good", signal="KILL")
            await eventually(lambda: manager.services["good"].history.ends)
            assert manager.services["good"].history.ends[0].signal == signal.SIGKILL
            assert (await client.call("service.reset"))["reset"] == ["bad"]
            assert (await client.call("service.restart", names=["good"]))[0]["state"] == "running"
            assert (await client.call("service.stop", names=["good"]))["units"][0]["state"] == "inactive"
            with pytest.raises(MixosError) as caught:
                await client.call("service.kill", name="good")
            assert caught.value.reason == "service-not-running"

            await client.call("service.enable", names=["good"])
            unit(place, "bad", shell("exit 4"))
            assert (await client.call("service.reload"))["changed"] == ["bad"]
            assert manager.status()["broken"] == ["broken"]

    asyncio.run(main())


def test_following_a_log(place: Context):
    unit(place, "talk", shell("while :; do echo tick; sleep 0.1; done"))

    async def main() -> None:
        async with managed(place) as manager:
            client = Client(manager)
            await client.call("service.start", names=["talk"])
            method = client.methods["service.logs"]
            stream = method.handler(
                ME, method.params.model_validate({"names": ["talk"], "follow": True, "boot": "current"})
            )
            heard = 0
            async for record in stream:  # type: ignore[union-attr]
                heard += record["text"] == "tick"
                if heard == 5:
                    break
            await stream.aclose()  # type: ignore[union-attr]

    asyncio.run(main())


def test_facts_are_new(place: Context, monkeypatch: pytest.MonkeyPatch):
    """Lines that were dropped since the last event; times after somebody has set the clock."""
    text = shell("until test -e $GO; do sleep 0.05; done; seq 1000; exec sleep 1000",
                 more=f"environment = {{ GO = '{place.log}/go' }}", rest="[logs]\nrate = 1")  # fmt: skip
    unit(place, "flood", text)

    async def main() -> None:
        async with managed(place) as manager:
            client = Client(manager)
            began = time.time()
            await client.call("service.start", names=["flood"])
            (place.log / "go").touch()
            async with asyncio.timeout(PATIENCE):
                while (await client.call("service.show", name="flood"))["log"]["dropped"] < 900:
                    await asyncio.sleep(0.05)
            monkeypatch.setattr("time.time", lambda: began + 1e9)
            assert (await client.call("service.show", name="flood"))["since"] > began + 1e9 - 2 * PATIENCE

    asyncio.run(main())


def test_what_is_not_in_force_or_not_there_is_told_apart(place: Context):
    unit(place, "good", shell(SLEEP))
    unit(place, "broken", "[servce]\n")
    (place.log / "units" / "bygone").mkdir(parents=True)

    async def main() -> None:
        async with managed(place) as manager:
            client = Client(manager)
            for name, reason in (("broken", "unit-broken"), ("god", "unit-unknown")):
                calls = [("show", {"name": name})]
                calls += [
                    (verb, {"names": [name]}) for verb in ("start", "stop", "restart", "enable", "disable", "reset")
                ]
                for verb, params in calls:
                    with pytest.raises(MixosError) as caught:
                        await client.call(f"service.{verb}", **params)
                    assert caught.value.reason == reason, verb
                with pytest.raises(MixosError) as caught:
                    await client.items("service.logs", names=["good", name])
                assert caught.value.reason == reason
            assert await client.items("service.logs", names=["bygone", "good"]) == []  # its unit is gone, not its log
            manager.closing = True
            with pytest.raises(MixosError) as caught:
                await client.call("service.restart", names=["good"])
            assert caught.value.reason == "shutting-down"

    asyncio.run(main())


# -- mixctl service --------------------------------------------------------------------------------------------------


@pytest.fixture
def mixctl(place: Context, monkeypatch: pytest.MonkeyPatch):
    """Runs a command line of `mixctl service` with a manager behind it, in this process."""

    def run(lines: list[list[str]]) -> list[Result]:
        results: list[Result] = []

        async def main() -> None:
            async with managed(place) as manager:
                client, loop = Client(manager), asyncio.get_running_loop()

                def ask(method: str, params: dict[str, object] | None = None, *, seconds: float = 15.0) -> Any:
                    return asyncio.run_coroutine_threadsafe(client.call(method, **(params or {})), loop).result()

                def follow(method: str, params: dict[str, object] | None = None) -> list[Any]:
                    return asyncio.run_coroutine_threadsafe(client.items(method, **(params or {})), loop).result()

                monkeypatch.setattr(cli, "ask", ask)
                monkeypatch.setattr(cli, "follow", follow)
                for line in lines:
                    results.append(await asyncio.to_thread(CliRunner().invoke, cli.service, line))

        asyncio.run(main())
        return results

    return run


def test_the_command_line(place: Context, mixctl):
    unit(place, "good", shell("printf 'hello\\033[2J\\n'; exec sleep 1000", unit_="description = 'is good'"))
    unit(place, "bad", shell("exit 3", more="restart = 'no'"))
    unit(place, "broken", "[servce]\n")
    started, failed, listed, as_json, shown, checked, said, order, stopped, reloaded = mixctl(
        [
            ["start", "good"],
            ["start", "bad"],
            ["list"],
            ["list", "--json", "--failed"],
            ["show", "good"],
            ["check"],
            ["logs", "good", "-n", "10", "--since", "1h"],
            ["graph", "good", "--order"],
            ["stop", "good", "--json"],
            ["reload"],
        ]
    )
    assert (started.exit_code, started.output) == (0, "good: running\n")
    assert isinstance(failed.exception, MixosError)
    table = [line.split() for line in listed.output.splitlines()]
    assert table[0][:7] == ["UNIT", "STATE", "SINCE", "PID", "MEMORY", "RESTARTS", "BOOT"]
    assert {row[0]: row[1] for row in table[1:3]} == {"bad": "failed", "good": "running"}
    assert table[3][0] == "BROKEN"
    assert [one["name"] for one in json.loads(as_json.output)["units"]] == ["bad"]
    assert "is good" in shown.output
    assert (checked.exit_code, "servce" in checked.output) == (3, True)
    assert "hello" in said.output
    assert "\x1b" not in said.output  # a service does not clear our screen
    assert order.output == "1. good\n"
    assert json.loads(stopped.output)["stopped"] == ["good"]
    assert reloaded.exit_code == 3


def test_every_command_has_help_with_an_example():
    group = cli.service
    for name, command in group.commands.items():
        text = command.get_help(click.Context(command))
        assert "Example:" in text, name
        assert f"mixctl service {name}" in text
        assert "--json" in text


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", -600.0), ("2h", -7200.0), ("2001-09-09T01:46:40", 0.0), ("2001-09-09T01:46:41", 1.0)]
)
def test_moments(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch):
    import time

    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    try:
        assert cli.moment(text, 1_000_000_000.0) - 1_000_000_000 == seconds
        with pytest.raises(click.BadParameter):
            cli.moment("yesterday", 0.0)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_shipped_units_name_programs_of_the_device():
    root = Path(__file__).resolve().parents[2] / "daemon" / "units"
    for path in root.glob("*.toml"):
        assert "/usr/local" not in path.read_text()
