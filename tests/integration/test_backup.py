"""Backups through the daemon's socket and the command line; and a restore that is really killed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.client import connection as client
from daemon.client import mixctl
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.core.parts import Source
from daemon.parts.backup import archive
from daemon.parts.backup.part import Backup, Restore, _Made, manifest_now
from daemon.parts.backup.restore import Plan, Restorer
from daemon.parts.backup.sealed import seal
from tests.backups import pieces, prepared, restorer, snapshot, write
from tests.daemons import Running, running
from tests.waiting import PATIENCE, ended, eventually

pytestmark = pytest.mark.integration

SECRET = "correct horse battery"


class Device(io.BytesIO):
    """Standard input or output of `mixctl`."""

    @property
    def buffer(self) -> io.BytesIO:
        return self


def place(base: Path) -> Context:
    context = Context(base / "run", base / "var/lib/mixos", base / "etc/mixos", base / "usr", base / "log")
    write(base / "etc/hostname", "kitchen\n")
    write(context.etc / "network.toml", "# one\n")
    write(context.etc / "units/web.toml", '[service]\ncommand = ["/bin/true"]\nstate-directory = "web"\n')
    write(context.state / "vpn/wg0.key", "private", 0o600)
    write(base / "var/lib/web/data", "x" * 200_000)
    return context


@pytest.fixture
def mixos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Context, Running]]:
    context = place(tmp_path / "device")
    (tmp_path / "d").mkdir()
    with running(tmp_path / "d", more=[Source("backup", lambda: Backup(context))]) as found:
        for name in ("call", "stream"):
            real = getattr(client, name)
            monkeypatch.setattr(
                client, name, lambda method, params, real=real, **more: real(method, params, found.path, **more)
            )
        yield context, found


@pytest.fixture
def secret(tmp_path: Path) -> str:
    write(tmp_path / "secret", f"{SECRET}\n", 0o600)
    return str(tmp_path / "secret")


def test_create_show_verify_restore(mixos, tmp_path, secret, capsys):
    context, _ = mixos
    file, options = str(tmp_path / "file"), ["--passphrase-file", secret]
    assert mixctl.main(["backup", "create", file, "--state", "web", "--json", *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["encrypted"], summary["left-out"], summary["backup"]["state"]) == (True, [], {"web": "web"})
    assert Path(file).stat().st_mode & 0o777 == 0o600
    assert Path(file).stat().st_size == summary["bytes"]
    assert mixctl.main(["backup", "create", file, *options]) == 2  # it is there

    assert mixctl.main(["backup", "show", file, "--json", *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"path": "var/lib/web/data", "kind": "file", "bytes": 200_000, "mode": "0644"} in shown["files"]
    assert mixctl.main(["backup", "show", file, *options]) == 0
    assert mixctl.main(["backup", "verify", file, *options]) == 0

    write(context.etc / "network.toml", "# two\n")
    write(context.etc.parent.parent / "var/lib/web/data", "y")
    (context.etc / "units/web.toml").unlink()
    before = snapshot(Backup(context).trees)
    capsys.readouterr()
    assert mixctl.main(["backup", "restore", file, "--dry-run", "--json", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changed"] == ["etc/mixos/network.toml", "etc/mixos/units/web.toml", "var/lib/web"]
    after = snapshot(Backup(context).trees)
    assert {name: after[name] for name in before} == before
    assert mixctl.main(["backup", "restore", file, "--json", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["restart"], told["reload"], told["reboot"]) == (["web"], True, False)
    assert (context.etc / "network.toml").read_text() == "# one\n"
    assert (context.etc.parent.parent / "var/lib/web/data").stat().st_size == 200_000
    assert not (context.state / "backup/spool").exists()
    logged = b"".join(path.read_bytes() for path in (tmp_path / "d/log/audit").glob("*"))
    assert b"backup.restore" in logged
    assert SECRET.encode() not in logged


def test_through_standard_output_and_input(mixos, monkeypatch):
    """`ssh host -- mixctl backup create - --passphrase-file -`: the passphrase is the first line of the input."""
    context, _ = mixos
    monkeypatch.setattr(sys, "stdin", Device(f"{SECRET}\n".encode()))
    out = Device()
    monkeypatch.setattr(sys, "stdout", out)
    assert mixctl.main(["backup", "create", "-", "--passphrase-file", "-"]) == 0
    data = out.getvalue()
    assert data.startswith(b"MIXOSBK\n")
    write(context.etc / "network.toml", "# two\n")
    monkeypatch.setattr(sys, "stdin", Device(f"{SECRET}\n".encode() + data))
    assert mixctl.main(["backup", "restore", "-", "--passphrase-file", "-", "--only", "settings"]) == 0
    assert (context.etc / "network.toml").read_text() == "# one\n"


def test_what_goes_wrong(mixos, tmp_path, secret, capsys):
    context, found = mixos
    file, options = str(tmp_path / "file"), ["--json", "--passphrase-file", secret]

    def ends(*arguments: str) -> str:
        capsys.readouterr()
        assert mixctl.main(["backup", *arguments]) != 0
        return str(json.loads(capsys.readouterr().err.splitlines()[-1])["reason"])

    assert ends("create", file, "--state", "db", *options) == "backup-no-state"
    assert ends("create", file, "--plain", "--json") == "backup-plain"
    assert not list(tmp_path.glob("*file*"))  # nothing half is left
    assert mixctl.main(["backup", "create", file, "--plain", "--no-secrets"]) == 0
    assert ends("restore", file, *options) == "backup-not-encrypted"
    assert mixctl.main(["backup", "restore", file, "--plain"]) == 0
    assert mixctl.main(["backup", "create", file, "--force", "--state", "web", *options]) == 0
    assert ends("restore", file, "--plain", "--json") == "backup-passphrase-needed"
    assert ends("restore", file, "--only", "logs", *options) == "backup-section"
    assert ends("show", str(tmp_path / "none"), *options) == "backup-file"
    data = Path(file).read_bytes()
    Path(file).write_bytes(data[:-1])
    assert ends("restore", file, *options) == "backup-damaged"
    Path(file).write_bytes(data[:9] + b"\2" + data[10:])
    assert ends("restore", file, *options) == "backup-too-new"
    Path(file).write_text("something else")
    assert ends("restore", file, *options) == "backup-format"
    assert found.reason("backup.restore", {"id": "0-" + "0" * 32}) == "backup-upload"
    assert found.reason("backup.restore", {"id": "../../etc/passwd"}) == "backup-upload"
    assert found.reason("backup.upload", {"data": "!"}) == "backup-upload-data"
    ident = found.call("backup.upload", {"data": "AAAA"})["id"]
    assert found.reason("backup.upload", {"id": ident, "offset": 4, "data": "AAAA"}) == "backup-upload-gap"
    assert found.call("backup.upload", {"id": ident, "offset": 0, "data": "AAAA"})["size"] == 3
    assert (context.state / "backup/spool").stat().st_mode & 0o777 == 0o700


def test_a_restore_whose_caller_hangs_up_is_finished_and_told(tmp_path, monkeypatch):
    context = place(tmp_path / "device")
    part, begun, go, found = Backup(context), threading.Event(), threading.Event(), []
    made = _Made(part.trees, manifest_now(True, {}))
    data = b"".join(seal(archive.write(made.items()), SECRET, 10))
    write(context.etc / "network.toml", "# two\n")
    real = part.restorer.prepare

    def prepare(*arguments: Any) -> Plan:
        begun.set()
        go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(part.restorer, "prepare", prepare)

    async def listen() -> None:
        async for event in context.events.listen():
            found.append(event.topic)

    async def script() -> None:
        listening = asyncio.create_task(listen())
        ident = part.spool.begin(0)
        part.spool.append(0, ident, 0, data)
        params = Restore.model_validate({"id": ident, "passphrase": SECRET})
        calling = asyncio.create_task(part.restore(Caller(Role.ADMIN, 0, 0, 1, "root", "local"), params))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        assert part._work is not None
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        go.set()
        await asyncio.wait([part._work], timeout=PATIENCE)
        await eventually(lambda: len(found) == 2)
        listening.cancel()

    asyncio.run(script())
    assert (context.etc / "network.toml").read_text() == "# one\n"
    assert found == ["config.restored", "backup.restored"]


def test_a_restore_that_is_killed(tmp_path):
    """SIGKILL at some of the steps, in another process; what the next start finds is whole, old or new."""
    trees, data, _ = prepared(tmp_path / "wanted")
    one = restorer(trees)
    one.apply(one.prepare(pieces(data)), "me")
    wanted = snapshot(trees)
    for number in (0, 1, 2, 5, 9, 14):
        trees, data, before = prepared(tmp_path / str(number))
        child = os.fork()
        if child == 0:
            _restore_until(restorer(trees).journal, trees, data, number)
        assert ended(child) == -signal.SIGKILL
        restorer(trees).recover()
        assert snapshot(trees) == (before if number == 0 else wanted)


def _restore_until(journal: Path, trees: object, data: bytes, number: int) -> None:
    count = iter(range(number + 1))

    def step(_: str) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        one = Restorer(trees, journal, step)  # type: ignore[arg-type]
        one.apply(one.prepare(pieces(data)), "me")
    finally:
        os._exit(1)
