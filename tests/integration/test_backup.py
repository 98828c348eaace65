"""Backups through the daemon's socket and the command line; and a restore that is really killed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from buildsys.run import spawn
from daemon.client import connection as client
from daemon.client import mixctl
from daemon.core.change.applier import Wish
from daemon.core.change.files import Trees
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.core.parts import Source
from daemon.parts.backup import archive
from daemon.parts.backup.part import Backup, Restore, _Made, manifest_now
from daemon.parts.backup.restore import Plan, Restorer
from daemon.parts.backup.sealed import seal
from tests.backups import pieces, prepared, restore, snapshot, write
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
    context.changes.call = _read_again
    (tmp_path / "d").mkdir()
    with running(tmp_path / "d", more=[Source("backup", lambda: Backup(context))]) as found:
        for name in ("call", "stream"):
            real = getattr(client, name)
            monkeypatch.setattr(
                client, name, lambda method, params, real=real, **more: real(method, params, found.path, **more)
            )
        yield context, found


async def _read_again(_: Caller, __: str) -> None:
    """By the parts whose files were restored, which are not here."""


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
    assert told["changed-files"] == ["etc/mixos/network.toml", "etc/mixos/units/web.toml", "var/lib/web"]
    after = snapshot(Backup(context).trees)
    assert {name: after[name] for name in before} == before
    assert mixctl.main(["backup", "restore", file, "--json", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["restart"], told["reload"], told["reboot"]) == (["web"], True, False)
    assert (context.etc / "network.toml").read_text() == "# one\n"
    assert (context.etc.parent.parent / "var/lib/web/data").stat().st_size == 200_000
    logged = b"".join(path.read_bytes() for path in (tmp_path / "d/log/audit").glob("*"))
    assert b"backup.restore" in logged
    assert SECRET.encode() not in logged


@contextmanager
def standard_input(data: bytes) -> Iterator[None]:
    """Standard input is a pipe with this."""
    reader, writer = os.pipe()
    kept = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)

    def feed() -> None:
        with os.fdopen(writer, "wb") as stream:
            stream.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        thread.join(20)


def test_through_standard_output_and_input(mixos, monkeypatch):
    """`ssh host -- mixctl backup create - --passphrase-file -`: the passphrase is the first line of the input."""
    context, _ = mixos
    out = Device()
    monkeypatch.setattr(sys, "stdout", out)
    with standard_input(f"{SECRET}\n".encode()):
        assert mixctl.main(["backup", "create", "-", "--passphrase-file", "-"]) == 0
    data = out.getvalue()
    assert data.startswith(b"MIXOSBK\n")
    write(context.etc / "network.toml", "# two\n")
    with standard_input(f"{SECRET}\n".encode() + data):
        assert mixctl.main(["backup", "restore", "-", "--passphrase-file", "-", "--only", "settings"]) == 0
    assert (context.etc / "network.toml").read_text() == "# one\n"


def test_what_goes_wrong(mixos, tmp_path, secret, capsys):
    _, found = mixos
    file, options = str(tmp_path / "file"), ["--json", "--passphrase-file", secret]

    def ends(*arguments: str) -> str:
        capsys.readouterr()
        assert mixctl.main(["backup", *arguments]) != 0
        return str(json.loads(capsys.readouterr().err.splitlines()[-1])["reason"])

    assert ends("create", file, "--state", "db", *options) == "backup-no-state"
    assert ends("create", file, "--plain", "--json") == "backup-plain"
    assert not list(tmp_path.glob("*file*"))  # nothing half is left
    os.mkfifo(tmp_path / "special")
    assert ends("create", str(tmp_path / "special"), "--force", *options) == "backup-file"
    assert (tmp_path / "special").is_fifo()  # so a device is not replaced either
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
    assert ends("restore", str(tmp_path), *options) == "transfer-kind"
    assert ends("restore", "/dev/null", *options) == "transfer-kind"
    assert ends("restore", str(tmp_path / "none"), *options) == "file-unreadable"
    assert found.reason("backup.restore", {"content": 0}) == "transfer-descriptors"
    assert found.reason("backup.restore", {"content": "../../etc/passwd"}) == "transfer-unknown"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("open_end", [True, False], ids=["hangs", "ends"])
def test_a_client_that_is_killed_before_all_is_there_leaves_nothing(mixos, tmp_path, secret, share, open_end):
    """Whether or not the pipe that it handed over goes on."""
    context, found = mixos
    file = tmp_path / "file"
    (context.etc.parent.parent / "var/lib/web/data").write_bytes(os.urandom(200_000))
    assert mixctl.main(["backup", "create", str(file), "--state", "web", "--passphrase-file", secret]) == 0
    data = file.read_bytes()
    write(context.etc / "network.toml", "# two\n")
    before, opened = snapshot(Backup(context).trees), descriptors()
    reader, writer = os.pipe()
    words = ["backup", "restore", "-", "--passphrase-file", secret]
    argv = [Path(sys.executable).with_name("mixctl"), *words]
    with (tmp_path / "said").open("wb") as log, os.fdopen(reader, "rb") as stdin:
        process = spawn(argv, env={"MIXOS_SOCKET": str(found.path)}, stdin=stdin, log=log)
    os.write(writer, data[: int(len(data) * share)])
    until(lambda: found.call("status")["parts"]["backup"]["busy"])
    process.kill()
    process.wait(20)
    if not open_end:
        os.close(writer)
    until(lambda: not found.call("status")["parts"]["backup"]["busy"])
    if open_end:
        os.close(writer)
    assert snapshot(Backup(context).trees) == before
    assert not [path for path in context.etc.parent.parent.rglob("*") if ".mixos-restore" in path.name]
    until(lambda: descriptors() <= opened)
    assert mixctl.main(["backup", "restore", str(file), "--passphrase-file", secret]) == 0
    assert (context.etc / "network.toml").read_text() == "# one\n"


def descriptors() -> int:
    """Open ones of this process, which the daemon is in."""
    return len(list(Path("/proc/self/fd").iterdir()))


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_restore_whose_caller_hangs_up_is_finished_and_told(tmp_path, monkeypatch):
    context = place(tmp_path / "device")
    part, begun, go, found = Backup(context), threading.Event(), threading.Event(), []
    made = _Made(part.trees, manifest_now(True, {}))
    file = tmp_path / "file"
    file.write_bytes(b"".join(seal(archive.write(made.items()), SECRET, 10)))
    write(context.etc / "network.toml", "# two\n")
    real = Restorer.prepare

    def prepare(*arguments: Any) -> Plan:
        begun.set()
        go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(Restorer, "prepare", prepare)

    async def listen() -> None:
        async for event in context.events.listen():
            found.append(event.topic)

    async def script() -> None:
        listening = asyncio.create_task(listen())
        params = Restore.model_validate({"content": 0, "passphrase": SECRET})
        params.content.attach(os.open(file, os.O_RDONLY))
        calling = asyncio.create_task(part.restore(Caller(Role.ADMIN, 0, 0, 1, "root", "local"), params))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        assert part._work is not None
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        go.set()
        await asyncio.wait([part._work], timeout=PATIENCE)
        params.content.close()
        await eventually(lambda: "backup.restored" in found)
        listening.cancel()

    asyncio.run(script())
    assert (context.etc / "network.toml").read_text() == "# one\n"
    assert [topic for topic in found if topic.endswith(("made", "restored"))] == ["change.made", "backup.restored"]


def test_a_restore_that_is_killed(tmp_path):
    """SIGKILL at every step of the change, in another process; what the next start finds is whole, old or new."""
    trees, data, _ = prepared(tmp_path / "wanted")
    restore(trees, data)
    wanted, outcomes = _without_journal(snapshot(trees)), []
    for number in range(100):
        trees, data, before = prepared(tmp_path / str(number))
        child = os.fork()
        if child == 0:
            _restore_until(trees, data, number)
        status = ended(child)
        _context(trees).changes.open()
        now = _without_journal(snapshot(trees))
        assert now in (_without_journal(before), wanted), number
        outcomes.append(now == wanted)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert outcomes == sorted(outcomes)  # first it never was, from the record on it has happened
    assert {False, True} == set(outcomes)


def _without_journal(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if "lib/mixos/changes" not in name}


def _context(trees: Trees) -> Context:
    return Context(state=trees.lib / "mixos", etc=trees.etc / "mixos", run=trees.lib.parent / "run")


def _restore_until(trees: Trees, data: bytes, number: int) -> None:
    count, code = iter(range(number)), 1

    def step(_: str) -> None:
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        changes = _context(trees).changes
        changes.step = step
        name = changes.number()
        plan = Restorer(trees, name).prepare(pieces(data))
        me = Caller(Role.ADMIN, 0, 0, 1, "me", "local")
        asyncio.run(changes.make(me, Wish(), "restore", staged=(name, plan.renames())))
        code = 0
    finally:
        os._exit(code)
