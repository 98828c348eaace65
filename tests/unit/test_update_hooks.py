"""Hooks of a release: what is kept of them, and what comes of how they end. The sandbox itself: tests/integration."""

import asyncio
import base64
import hashlib
from dataclasses import replace

import pytest

from common.bundle import manifest
from common.bundle.order import Hook, Piece
from common.errors import DiskError, MixosError, RefusedError
from daemon.core.part import Context
from daemon.parts.sandbox.confined import Result
from daemon.parts.update.hooks import MAX_SAID, Hooks
from tests.releases import text


def order_of(*programs, seconds=30):
    hooks = [Hook("before-stage", seconds, Piece(0, len(one), hashlib.sha256(one).digest())) for one in programs]
    return replace(manifest.parse(text()).order(0, "ab" * 32), hooks=tuple(hooks))


def given(*programs):
    return {hashlib.sha256(one).hexdigest(): base64.b64encode(one).decode() for one in programs}


@pytest.fixture
def context(tmp_path):
    return Context(run=tmp_path / "run", state=tmp_path / "state", etc=tmp_path / "etc")


@pytest.fixture
def kept(context):
    return Hooks(context)


def ask(kept, order, result, monkeypatch):
    """How the first hook of an order ends that the sandbox ends in this way; the policy that it was asked with."""
    policies = []

    async def confined(context, policy, program, most):
        policies.append(policy)
        if isinstance(result, MixosError):
            raise result
        return result

    monkeypatch.setattr("daemon.parts.update.hooks.function", {"confined": confined}.__getitem__)
    asyncio.run(kept.ask(order, order.hooks[0], "1.0.0"))
    return policies[0]


def test_only_those_of_the_releases_at_hand_are_kept(kept):
    kept.keep([order_of(b"a", b"b")], given(b"a", b"b", b"c"))
    assert kept.there() == sorted(given(b"a", b"b"))
    kept.keep([order_of(b"d"), order_of(b"b")], given(b"d"))
    assert kept.there() == sorted(given(b"b", b"d"))
    kept.keep([], {})
    assert kept.there() == []


@pytest.mark.parametrize("words", ["", "AA=", "!", base64.b64encode(b"another").decode()])
def test_what_is_not_its_hash_is_not_there(kept, words, monkeypatch):
    order = order_of(b"a")
    kept.keep([order], {next(iter(given(b"a"))): words})
    assert kept.there() == []
    with pytest.raises(RefusedError) as caught:
        ask(kept, order, Result(0, False, b"", b""), monkeypatch)
    assert caught.value.reason == "update-hook-lost"


def test_a_disk_that_takes_nothing(kept, context):
    (context.state / "update").mkdir(parents=True)
    (context.state / "update/hooks").write_bytes(b"no folder")
    assert kept.there() == []
    with pytest.raises(DiskError) as caught:
        kept.keep([order_of(b"a")], given(b"a"))
    assert caught.value.reason == "update-hook-kept"


def test_one_is_run_with_nothing_that_a_profile_does_not_give(kept, monkeypatch):
    order = order_of(b"a", seconds=7)
    kept.keep([order], given(b"a"))
    policy = ask(kept, order, Result(0, False, b"all is well", b""), monkeypatch)
    assert (policy.network, policy.user, policy.seccomp, policy.limits.wall) == ("none", "dynamic", "strict", 7.0)
    assert policy.require == ("landlock", "memory", "pids", "account")
    assert (policy.read_write, policy.asked_read_write, policy.capabilities) == ((), (), ())
    told = {name: value for name, value in policy.environment.items() if name.startswith("MIXOS_")}
    assert told == {"MIXOS_HOOK": "before-stage", "MIXOS_RUNNING": "1.0.0", "MIXOS_RELEASE": "1.2.3"}


@pytest.mark.parametrize(
    ("result", "reason", "words"),
    [
        (Result(1, False, b"first\nthe disk is too small\n\n", b"noise"), "update-hook", "the disk is too small"),
        (Result(1, False, b" \n", b"sh: x: not found\n"), "update-hook", "sh: x: not found"),
        (Result(1, False, b"\xff\x1b[2J\r", b""), "update-hook", "\ufffd\\x1b[2J"),
        (Result(1, False, b"x" * MAX_SAID, b""), "update-hook", "x" * 297 + "..."),
        (Result(7, False, b"", b""), "update-hook", "it ended with status 7"),
        (Result(137, False, b"", b""), "update-hook", "it ended by signal 9"),
        (Result(124, True, b"words", b""), "update-hook", "it did not end within 30 s"),
        (Result(0, True, b"", b""), "update-hook", "it did not end within 30 s"),
        (MixosError("it says too much", reason="program-output"), "update-hook", "it says too much"),
        (MixosError("it is late", reason="program-timeout"), "update-hook", "it is late"),
        (MixosError("no walls", reason="sandbox-refused"), "update-hook-sandbox", "cannot be run confined: no walls"),
        (MixosError("no program", reason="program-missing"), "update-hook-sandbox", "no program"),
    ],
)
def test_how_one_refuses(kept, result, reason, words, monkeypatch):
    order = order_of(b"a")
    kept.keep([order], given(b"a"))
    with pytest.raises(RefusedError) as caught:
        ask(kept, order, result, monkeypatch)
    assert caught.value.reason == reason
    assert caught.value.message.endswith(words)


def test_a_profile_that_an_administrator_has_broken_lets_nothing_run(kept, context, monkeypatch):
    (context.etc / "profiles").mkdir(parents=True)
    (context.etc / "profiles/update-hook.toml").write_text('network = "host"\n')
    order = order_of(b"a")
    kept.keep([order], given(b"a"))
    with pytest.raises(RefusedError) as caught:
        ask(kept, order, Result(0, False, b"", b""), monkeypatch)
    assert caught.value.reason == "update-hook-sandbox"
