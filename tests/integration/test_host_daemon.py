"""mixosd on an ordinary host: folders below one, its user the administrator, asked through `mixctl` as people do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from buildsys.cli.daemon import prepare
from buildsys.run import Completed, Process, run, spawn
from common.errors import RpcError
from daemon.client.connection import call
from daemon.core.part import Context
from tests.hostpackages import ROOT
from tests.native import native
from tests.supervision import sweep

UNIT = '[unit]\nenabled = true\n[service]\ncommand = ["/bin/sh", "-c", "echo hello; exec sleep 1000"]\n'
MIXCTL = Path(sys.executable).with_name("mixctl")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder as `mixos daemon` makes it; whatever still runs in it at the end is killed."""
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    for name in ("shim", "sandbox"):
        shutil.copy2(native(name), helpers / name)
    home = tmp_path / "d"
    prepare(home, helpers, ROOT / "daemon/linux/sandbox/profiles")
    prepare(home, helpers, ROOT / "daemon/linux/sandbox/profiles")  # a second time is no mistake
    yield home
    sweep(Context(**{name: home / name for name in ("run", "state", "etc", "lib", "log", "libexec")}))


@contextmanager
def daemon(home: Path, number: signal.Signals = signal.SIGTERM) -> Iterator[Process]:
    """A daemon until the end of the block, which ends it with this signal."""
    with (home / "said").open("ab") as log:
        process = spawn([sys.executable, "-m", "daemon.main", "--folder", str(home)], cwd=ROOT, log=log)
    try:
        yield process
    finally:
        process.send_signal(number)
        process.wait(60)


def attempt(home: Path, *words: str, stdin: bytes | None = None) -> Completed:
    path = str(home / "run/mixosd.sock")
    return run([MIXCTL, *words], env={"MIXOS_SOCKET": path}, stdin=stdin, allow=range(256), split=True)


def mixctl(home: Path, *words: str) -> Any:
    done = attempt(home, *words, "--json")
    assert done.status == 0, done.stderr
    return json.loads(done.text)


def running(home: Path) -> int:
    """The process of the unit, once it runs."""
    deadline = time.monotonic() + 60
    while (facts := mixctl(home, "service", "show", "hello"))["state"] != "running":
        assert time.monotonic() < deadline, facts
        time.sleep(0.1)
    return int(facts["pid"])


def test_units_sandboxes_and_a_successor(home: Path):
    (home / "etc/units/hello.toml").write_text(UNIT)
    with daemon(home, signal.SIGKILL):
        pid = running(home)
        status = mixctl(home, "status")
        assert {name for name, part in status["parts"].items() if part["state"] != "running"} == set()
        assert (home / "run/mixosd.sock").stat().st_mode & 0o777 == 0o600
        assert {"firewall", "net", "vpn", "storage", "backup"}.isdisjoint(status["parts"])
        assert attempt(home, "status").status == 0
        inside = "echo $$"
        done = attempt(home, "sandbox", "run", "--profile", "tool", "--", "/bin/sh", "-c", inside)
        assert done.text.splitlines()[0].isdigit()
        assert int(done.text.splitlines()[0]) < 10  # a process namespace of its own
        text = b"hello " * 100_000
        upper = attempt(home, "sandbox", "run", "--", "tr", "a-z", "A-Z", stdin=text)
        assert (upper.status, upper.stdout == text.upper()) == (0, True)
        assert attempt(home, "sandbox", "run", "--", "true", stdin=text).status == 0  # it reads nothing
    with daemon(home):
        assert running(home) == pid
        assert attempt(home, "service", "stop", "hello").status == 0
        assert not Path(f"/proc/{pid}").exists()
        again = run([sys.executable, "-m", "daemon.main", "--folder", home], cwd=ROOT, allow=range(256))
        assert again.status == 12
    assert attempt(home, "ping").status == 10


def processes(pid: int) -> set[int]:
    """A process and all below it."""
    found = {pid}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= processes(int(child))
    return found


def test_processes_of_parts_a_loop_that_stands_still_and_the_end(home: Path):
    """The endpoint of metrics as a process; SIGKILL leaves none of the processes, and is counted."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (home / "etc/metrics.toml").write_text(f'[prometheus]\nenable = true\nlisten = "127.0.0.1:{port}"\n')
    with daemon(home, signal.SIGKILL) as process:
        deadline = time.monotonic() + 60
        while not (found := mixctl(home, "status")["parts"]["metrics"].get("process")) or found["state"] != "running":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert {"account", "apparmor"} <= set(found["not-enforced"])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"mixos_uptime_seconds" in answer.read()
        below = processes(process.pid) - {process.pid}
        assert found["pid"] in below
    while any(running_still(pid) for pid in below):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with daemon(home):
        running_part(home)
        assert mixctl(home, "status")["parts"]["system"]["crashes"] == 1
    with daemon(home):
        running_part(home)
        assert mixctl(home, "status")["parts"]["system"]["crashes"] == 1


def running_part(home: Path) -> None:
    """Once all parts are up."""
    deadline = time.monotonic() + 60
    while {part["state"] for part in mixctl(home, "status")["parts"].values()} != {"running"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def running_still(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_part_alone_and_one_that_there_is_not(home: Path):
    argv = [sys.executable, "-m", "daemon.main", "--folder", str(home), "--part"]
    assert run([*argv, "nonsense"], cwd=ROOT, allow=range(256)).status == 2
    with (home / "said").open("ab") as log:
        process = spawn([*argv, "config"], cwd=ROOT, log=log)
    try:
        assert "service" not in mixctl(home, "status")["parts"]
        assert attempt(home, "config", "history").status == 0
    finally:
        process.terminate()
        process.wait(60)
    assert any((home / "state").iterdir())  # what it keeps is here and nowhere else


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_input_from_a_socket_as_sshd_gives_it(home: Path, size: int):
    data = os.urandom(size)
    with daemon(home):
        assert attempt(home, "ping").status == 0
        ours, theirs = socket.socketpair()
        sending = threading.Thread(target=lambda: (ours.sendall(data), ours.close()))
        with theirs, theirs.makefile("rb", buffering=0) as stdin, (home / "out").open("wb") as log:
            argv = [MIXCTL, "sandbox", "run", "--", "sha256sum"]
            process = spawn(argv, env={"MIXOS_SOCKET": str(home / "run/mixosd.sock")}, stdin=stdin, log=log)
        sending.start()
        assert process.wait(60) == 0
        sending.join(60)
    assert (home / "out").read_text().split()[0] == hashlib.sha256(data).hexdigest()


def test_a_client_that_is_killed_while_it_gives_input_takes_its_sandbox_along(home: Path):
    def runs() -> int:
        return int(mixctl(home, "status")["parts"]["sandbox"]["running"])

    with daemon(home):
        assert attempt(home, "ping").status == 0
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as stdin, (home / "said").open("ab") as log:
            argv = [MIXCTL, "sandbox", "run", "--", "cat"]
            process = spawn(argv, env={"MIXOS_SOCKET": str(home / "run/mixosd.sock")}, stdin=stdin, log=log)
        os.write(writer, b"something")
        until(lambda: b"something" in (home / "said").read_bytes())
        assert runs() == 1
        process.kill()
        process.wait(60)
        until(lambda: runs() == 0)
        os.close(writer)


def test_a_transfer_ends_with_its_daemon(home: Path):
    """However it ends; an earlier version's uploads are gone, too."""

    def ask(method: str, **params: object) -> Any:
        return call(method, params, home / "run/mixosd.sock", patience=60.0)

    with daemon(home, signal.SIGKILL):
        ident = ask("transfer.begin", purpose="sandbox.run", size=10)["id"]
        assert ask("transfer.write", id=ident, offset=0, data="AAAA")["received"] == 3
        assert list((home / "state/transfers").iterdir()) == []
    (home / "state/transfers/left").write_text("between making a file and taking its name")
    with daemon(home):
        with pytest.raises(RpcError) as caught:
            ask("transfer.status", id=ident)
        assert caught.value.reason == "transfer-unknown"
        assert not (home / "state/transfers").exists()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
