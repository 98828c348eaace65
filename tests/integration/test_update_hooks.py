"""Hooks of a release in the sandbox that a device gives them: what they see, what they cannot do, and that nothing of
them is left."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.bundle import manifest
from common.bundle.order import Hook, Order, Piece
from common.errors import MixosError, RefusedError
from daemon.core.part import Context
from daemon.core.profiles import load_profile
from daemon.linux.sandbox.policy import Policy
from daemon.parts.sandbox import confined as module
from daemon.parts.update import hooks
from daemon.parts.update.hooks import Hooks
from tests.native import native
from tests.releases import text
from tests.waiting import ended, processes, until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def launchers() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hooks-", dir="/var/tmp"))
    folder.chmod(0o755)
    shutil.copy(native("sandbox"), folder / "sandbox")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def context(launchers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A device whose control groups are not there: what a policy demands of them is left out here alone."""

    def here(context: Context, name: str) -> Policy:
        found = load_profile(context, name)
        assert found.require == ("landlock", "memory", "pids", "account")
        return found.model_copy(update={"require": ("account",)})

    monkeypatch.setattr(hooks, "load_profile", here)
    run = launchers / f"run-{os.getpid()}"
    return Context(
        run=run, state=tmp_path / "state", etc=tmp_path / "etc", libexec=launchers, cgroups=tmp_path / "no-cgroup"
    )


def order_with(program: bytes, when: Any = "before-stage", seconds: int = 20) -> tuple[Order, Hook, str]:
    """A release with that hook, and the hook's hash."""
    found = manifest.parse(text())
    hook = Hook(when, seconds, Piece(0, len(program), hashlib.sha256(program).digest()))
    order = found.order(0, "ab" * 32)
    return Order(**{**order.__dict__, "hooks": (hook,)}), hook, hook.piece.sha256.hex()


def ask(context: Context, program: str | bytes, seconds: int = 20) -> str | None:
    """What the refusal says; None when it passes."""
    data = program.encode() if isinstance(program, str) else program
    order, hook, name = order_with(data, seconds=seconds)
    kept = Hooks(context)
    kept.keep([order], {name: base64.b64encode(data).decode()})
    assert kept.there() == [name]
    try:
        asyncio.run(kept.ask(order, hook, "1.0.0"))
    except RefusedError as error:
        return error.message.partition(": ")[2] if error.reason == "update-hook" else f"{error.reason}: {error.message}"
    return None


def test_a_hook_that_ends_with_0_lets_the_release_pass(context: Context) -> None:
    assert ask(context, "#!/bin/sh\necho all is well\n") is None


def test_its_last_line_is_why_not(context: Context) -> None:
    assert ask(context, "#!/bin/sh\necho looking\necho 'not on this \x1b[31mboard'\necho more >&2\nexit 3\n") == (
        "not on this \\x1b[31mboard"
    )
    assert ask(context, "#!/bin/sh\necho 'a mistake' >&2\nexit 3\n") == "a mistake"
    assert ask(context, "#!/bin/sh\nexit 3\n") == "it ended with status 3"
    assert ask(context, "#!/bin/sh\nkill -9 $$\n") == "it ended by signal 9"


def test_it_is_told_what_runs_and_what_is_to_come(context: Context) -> None:
    script = '#!/bin/sh\necho "$MIXOS_HOOK $MIXOS_RUNNING $MIXOS_RELEASE"\nexit 1\n'
    assert ask(context, script) == "before-stage 1.0.0 1.2.3"


def test_a_program_for_the_machine_runs_as_well(context: Context) -> None:
    assert ask(context, Path("/bin/true").resolve().read_bytes()) is None
    assert ask(context, Path("/bin/false").resolve().read_bytes()) == "it ended with status 1"


@pytest.mark.parametrize(
    "attempt",
    [
        "echo x >/etc/x",
        "echo x >/usr/x",
        "cat /etc/shadow",
        "ls /root",
        "ls /var/lib/mixos",
        "ls /run/mixos",
        "mount -t tmpfs none /mnt",
        "head -c 8M /dev/zero >/tmp/large",
        "grep -v -e lo: -e '|' /proc/net/dev",
        "test $(id -u) = 0",
    ],
)
def test_what_a_hook_cannot_do(context: Context, attempt: str) -> None:
    assert ask(context, f"#!/bin/sh\nif {attempt}; then echo done; else echo cannot; fi\nexit 1\n") == "cannot"


def test_it_has_no_secrets(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    try:
        assert ask(context, "#!/bin/sh\necho \"${SECRET-none} $(ls /proc/self/fd | tr '\\n' ' ')\"\nexit 1\n") in (
            "none 0 1 2 3",  # of ls itself
            "none 0 1 2 3 4",
        )
    finally:
        os.close(reader)
        os.close(writer)


def test_one_that_does_not_end_is_ended(context: Context) -> None:
    assert ask(context, "#!/bin/sh\nsleep 54321 & sleep 54321\n", seconds=1) == "it did not end within 1 s"
    until(lambda: not any(processes("54321")))


def test_one_that_talks_without_end_is_ended(context: Context) -> None:
    assert ask(context, "#!/bin/sh\nyes 65432\n") == f"it says more than {hooks.MAX_SAID} bytes"
    until(lambda: not any(processes("65432")))


def test_who_leaves_ends_it(context: Context) -> None:
    async def leave() -> None:
        program = b"#!/bin/sh\nsleep 65123\n"
        policy = hooks.load_profile(context, hooks.PROFILE)
        task = asyncio.create_task(module.confined(context, policy, program, 100))
        async with asyncio.timeout(60):
            while not any(processes("65123")):
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    until(lambda: not any(processes("65123")))
    assert list(context.run.glob("sandbox/*")) == []


def test_it_ends_with_the_daemon(context: Context) -> None:
    policy = hooks.load_profile(context, hooks.PROFILE)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            asyncio.run(module.confined(context, policy, b"#!/bin/sh\nsleep 65987 & sleep 65987\n", 100))
        os._exit(1)
    until(lambda: any(processes("65987")))
    os.kill(child, signal.SIGKILL)
    ended(child)
    until(lambda: not any(processes("65987")))


def test_without_what_it_must_have_it_does_not_run(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "load_profile", load_profile)
    order, hook, name = order_with(b"#!/bin/sh\ntouch /tmp/x\n")
    kept = Hooks(context)
    kept.keep([order], {name: "IyEvYmluL3NoCnRvdWNoIC90bXAveAo="})
    with pytest.raises(MixosError) as caught:
        asyncio.run(kept.ask(order, hook, "1.0.0"))
    assert caught.value.reason == "update-hook-sandbox"
