"""A restore that says who may log in: on trial for whoever it could cut off, and undone whatever happens."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from daemon.core.change import files, record
from daemon.core.change.applier import Wish
from daemon.core.change.engine import Changes
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.parts.backup import login
from daemon.parts.backup.login import Login
from daemon.parts.backup.part import Backup, Restore
from tests import backups

LOCAL = Caller(Role.ADMIN, os.geteuid(), 0, 1, "ada", "local")
REMOTE = LOCAL._replace(connection="192.0.2.7 50000 192.0.2.1 22")
MINE, OTHERS, SSHD = "etc/ssh/authorized_keys/ada", "etc/ssh/authorized_keys/eve", "etc/ssh/sshd_config.d/50-x.conf"
ONE, TWO = b"ssh-ed25519 AAAA ada\n", b'from="192.0.2.0/24" ssh-ed25519 BBBB ada\n'
BEFORE = {MINE: ONE + TWO, OTHERS: ONE, SSHD: b"Banner none\n"}
GOOD, TRY = Wish(force=True), Wish(confirm=600)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: hundreds of changes are made durable here."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _ada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "_account", lambda _: "ada")


def device(base: Path) -> Context:
    context = Context(*(base / name for name in ("run", "var/lib/mixos", "etc/mixos", "lib", "log")))
    for folder in (context.run, context.state, context.etc):
        folder.mkdir(parents=True, exist_ok=True)
    return context


def write(base: Path) -> None:
    for name, data in BEFORE.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(data)
        (base / name).chmod(0o640 if name == SSHD else 0o644)
        if os.geteuid() == 0:
            os.chown(base / name, 7, 8)


def there(base: Path) -> dict[str, tuple[bytes, tuple[int, ...]]]:
    return {
        path.relative_to(base).as_posix(): (path.read_bytes(), login._rights(path))
        for path in (base / "etc/ssh").rglob("*")
        if path.is_file()
    }


def run(base: Path, work: Callable[[Changes], Awaitable[Any]], step: files.Step = files.nothing) -> Any:
    """A daemon that starts, works and ends."""

    async def whole() -> Any:
        changes = device(base).changes
        changes.step = step
        await changes.start(Login(changes.places))
        try:
            return await work(changes)
        finally:
            await changes.stop()

    return asyncio.run(whole())


async def nothing(_: Changes) -> None:
    """Starting was all."""


def change(contents: Mapping[str, bytes | None], wish: Wish, caller: Caller = REMOTE) -> Callable[[Changes], Any]:
    return lambda changes: changes.make(caller, wish, "restore", contents)


# case: H7
@pytest.mark.parametrize(
    ("contents", "cuts"),
    [
        ({MINE: None}, True),
        ({MINE: ONE}, True),
        ({MINE: ONE + TWO.replace(b"192.0.2", b"203.0.113")}, True),
        ({MINE: TWO + b"# a new one\n" + ONE + b"ssh-ed25519 CCCC\n"}, False),
        ({OTHERS: None}, False),
        ({"etc/ssh/authorized_keys/new": ONE}, False),
        ({SSHD: b"AllowUsers eve\n"}, True),
        ({SSHD: None}, True),
        ({"etc/ssh/sshd_config.d/60-y.conf": b"Port 2222\n"}, True),
        (BEFORE, False),
    ],
)
def test_what_could_cut_off_who_came_by_ssh_is_on_trial(tmp_path, contents, cuts):
    write(tmp_path)
    answer = run(tmp_path, change(contents, Wish()))
    assert (answer["cuts-off"], answer["confirm"] is not None) == (cuts, cuts)
    after = {name: data for name, (data, _) in there(tmp_path).items()}
    wanted = {name: data for name, data in {**BEFORE, **contents}.items() if data is not None}
    assert after == wanted  # also on trial: the next login is what it is about
    for caller, wish in ((LOCAL, Wish()), (REMOTE, GOOD)):
        base = tmp_path / f"{caller.connection}{wish.force}"
        write(base)
        assert run(base, change(contents, wish, caller))["confirm"] is None


# case: H7
def test_a_restore_that_takes_the_callers_key_is_on_trial(tmp_path):
    old = backups.device(tmp_path / "old")
    content, secret = io.BytesIO(backups.backup(old)), SecretStr(backups.SECRET)
    base = tmp_path / "new"
    write(base)
    before = there(base)

    async def work() -> Any:
        context = device(base)
        backup = Backup(context)
        await backup.start()
        answer = await backup.restore(REMOTE, Restore.model_construct(content=content, passphrase=secret))
        assert not (base / MINE).exists()
        assert not (base / "etc/hostname").exists()
        await context.changes.revert(context.changes.find(), "by ada")
        await context.changes.stop()
        return answer

    assert asyncio.run(work())["cuts-off"]
    assert there(base) == before


CONTENTS = {MINE: ONE, OTHERS: None, SSHD: b"AllowUsers eve\n", "etc/ssh/authorized_keys/new": ONE}


def test_a_trial_ends_with_what_was_there_or_is_kept(tmp_path):
    write(tmp_path)
    before = there(tmp_path)

    async def work(changes: Changes, keep: bool) -> None:
        await change(CONTENTS, TRY)(changes)
        one = changes.find()
        await (changes.confirm(REMOTE, one) if keep else changes.revert(one, "by ada"))

    run(tmp_path, lambda changes: work(changes, False))
    assert there(tmp_path) == before
    run(tmp_path, lambda changes: work(changes, True))
    after = {name: data for name, (data, _) in there(tmp_path).items()}
    assert after == {name: data for name, data in {**BEFORE, **CONTENTS}.items() if data is not None}
    assert not [*tmp_path.glob("etc/.mixos-change-*"), *tmp_path.glob("var/lib/mixos/changes/*.json")]


def killed(base: Path, work: Callable[[Changes], Awaitable[Any]], number: int) -> bool:
    """Whether a daemon was killed at its step of that number; else it ended before."""
    if (pid := os.fork()) == 0:
        seen = iter(range(number))
        try:
            run(base, work, lambda _: None if next(seen, None) is not None else os._exit(9))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.parametrize("boot", ["same", "another"])
@pytest.mark.parametrize("wish", [TRY, GOOD])
def test_a_daemon_that_is_killed_at_any_step(tmp_path, monkeypatch, wish, boot):
    """All of it is there or nothing; a trial that had begun goes on in the same boot, and ends with another one."""
    kills = 0
    for number in range(60):
        base = tmp_path / str(number)
        write(base)
        before = there(base)
        if not killed(base, change(CONTENTS, wish), number):
            break
        kills += 1
        with monkeypatch.context() as patched:
            if boot == "another":
                (base / "boot_id").write_text("another\n")
                patched.setattr(record, "BOOT_ID", base / "boot_id")
            tried = run(base, _waiting)
            after = there(base)
            done = {name: data for name, (data, _) in after.items()} == {
                name: data for name, data in {**BEFORE, **CONTENTS}.items() if data is not None
            }
            assert done or after == before, number
            assert not (tried and boot == "another")
            assert boot == "same" or wish is GOOD or after == before, number
    assert kills > 5


async def _waiting(changes: Changes) -> bool:
    return bool(changes.waiting)
