"""Configuration that was put back is put in force: by which methods, for whom, and what is told when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import RefusedError
from daemon import reference
from daemon.core import manifest
from daemon.core.change.applier import Wish
from daemon.core.method import ADMINS, OPERATORS, Caller, Method, Nothing, Role
from daemon.core.part import Context
from daemon.core.parts import Source, source
from daemon.mixosd import Daemon
from tests.waiting import eventually


class Fake:
    """A part with one method that notes its callers."""

    def __init__(self, name: str, act: Callable[[], None] = lambda: None) -> None:
        self.name, self.act = name.partition(".")[0], act
        self.method = name
        self.callers: list[Caller] = []

    def methods(self) -> Sequence[Method]:
        return (Method(self.method, "For a test.", self.call, ADMINS | OPERATORS, changes=True),)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def status(self) -> Mapping[str, Any]:
        return {}

    async def call(self, caller: Caller, _: Nothing) -> None:
        self.callers.append(caller)
        self.act()


def refuse() -> None:
    raise RefusedError("this would shut you out", reason="sample-refused")


def test_files_that_were_changed_are_put_in_force(tmp_path: Path):
    """For whoever changed them, with an entry in the audit for each call; what fails is told, the files stay."""
    files = ["units/hello.toml", "enabled.toml", "vpn.toml", "metrics.toml", "profiles/tool.toml", "lists/x"]
    parts = [Fake("service.reload"), Fake("vpn.apply", refuse), Fake("metrics.reload")]
    daemon = Daemon(folders(tmp_path), [Source(part.name, lambda part=part: part) for part in parts], {}, bus="/none")
    me = Caller(Role.ADMIN, 0, 0, 1, "me", "here")

    async def main() -> Any:
        async with serving(daemon, [part.name for part in parts]):
            contents = {f"etc/mixos/{name}": b"" for name in files}
            return await daemon.context.changes.make(me, Wish(), "undo", contents)

    answer = asyncio.run(main())
    assert [(one["method"], one["reason"]) for one in answer["problems"]] == [
        ("firewall.apply", "rpc-method"),  # there is no such part
        ("vpn.apply", "sample-refused"),
    ]
    (caller,) = parts[0].callers
    assert caller == me
    audit = [json.loads(line) for path in (tmp_path / "log/audit").iterdir() for line in path.read_text().splitlines()]
    assert [entry["method"] for entry in audit if entry["kind"] == "intent"] == [
        "service.reload",
        "vpn.apply",
        "metrics.reload",
    ]


def folders(tmp_path: Path) -> Context:
    context = Context(*(tmp_path / name for name in ("run", "state", "etc", "lib", "log")))
    for folder in (context.run, context.etc, context.state):
        folder.mkdir()
    return context


@contextlib.asynccontextmanager
async def serving(daemon: Daemon, parts: Sequence[str]) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(daemon.run(stop, "no-such-group"))
    await eventually(lambda: all(daemon.parts.status()[name]["state"] == "running" for name in parts))
    yield
    stop.set()
    await task


def test_every_method_is_there_and_takes_no_parameters():
    known = {method.name: method for method in reference.methods()}
    for name in {file.apply for file in manifest.known_files() if file.apply}:
        assert known[name].changes
        assert not [field for field in known[name].params.model_fields.values() if field.is_required()]


@pytest.mark.parametrize(
    ("files", "methods"),
    [
        ([], []),
        (["profiles/x.toml", "network.conf"], []),
        (["units/a.toml", "units/b.toml", "network.toml"], ["service.reload", "net.apply"]),
        (["proxy.secret.toml"], ["proxy.apply"]),
        (["firewall.toml", "lists/blocked"], ["firewall.apply"]),
    ],
)
def test_methods_of_files(files: list[str], methods: list[str]):
    assert manifest.methods_for(files) == methods


def test_an_undone_setting_is_in_force_again(tmp_path: Path):
    """With the real parts: what `proxy.show` and the environment of services say after `config.undo`."""
    context = folders(tmp_path)
    names = ("config", "proxy")
    daemon = Daemon(
        context, [source(one, context) for one in manifest.manifests() if one.name in names], {}, bus="/nonexistent/bus"
    )
    me = Caller(Role.ADMIN, 0, 0, 1, "me", "ssh 192.0.2.7 (claimed)")

    async def call(name: str, **params: object) -> Any:
        return await daemon.dispatcher.call(me, daemon.dispatcher.prepare(me, name, params))

    async def main() -> tuple[Any, str]:
        async with serving(daemon, names):
            for port in (1, 2):
                await call("proxy.set", http=f"http://192.0.2.1:{port}")
                # the first is what was there at the start
                await eventually(lambda port=port: daemon.parts.status()["config"]["revision"] > port)
            assert (await call("config.undo"))["applied"]
            shown = await call("proxy.show")
            return shown["http"], (context.run / "proxy.env").read_text()

    shown, environment = asyncio.run(main())
    assert shown == "http://192.0.2.1:1"
    assert "HTTP_PROXY=http://192.0.2.1:1\n" in environment
