"""Idempotency keys: across restarts, in the middle of a call, too old, too many, damaged."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from common.errors import MixosError, RefusedError
from daemon.core import keys
from daemon.core.keys import Keys


def begin(found: Keys, key: str = "k", uid: int = 0, method: str = "m", **params: object):
    return asyncio.run(found.begin(uid, key, method, params))


def finish(found: Keys, outcome: dict, key: str = "k", uid: int = 0, method: str = "m", **params: object) -> None:
    asyncio.run(found.finish(uid, key, method, params, outcome))
    found.release(uid, key)


def reason(found: Keys, *given: object, **named: object) -> str:
    with pytest.raises(RefusedError) as caught:
        begin(found, *given, **named)
    return caught.value.reason


def test_the_first_answer_is_given_again_also_after_a_restart(tmp_path: Path):
    found = Keys(tmp_path)
    assert begin(found, a=1) is None
    assert reason(found, a=1) == "idempotency-busy"
    finish(found, {"result": [1]}, a=1)
    for one in (found, Keys(tmp_path)):
        assert begin(one, a=1)["result"] == [1]
        assert reason(one, a=2) == "idempotency-mismatch"
        assert reason(one, method="n", a=1) == "idempotency-mismatch"


def test_keys_belong_to_an_account(tmp_path: Path):
    found = Keys(tmp_path)
    assert begin(found, uid=1) is None
    assert begin(found, uid=2) is None


def test_the_end_of_the_daemon_in_the_middle_is_unknown(tmp_path: Path):
    assert begin(Keys(tmp_path)) is None
    assert reason(Keys(tmp_path)) == "idempotency-unknown"


def test_a_call_that_ended_without_outcome_is_unknown(tmp_path: Path):
    found = Keys(tmp_path)
    begin(found)
    found.release(0, "k")
    assert reason(found) == "idempotency-unknown"


def test_a_forgotten_key_may_be_used_again(tmp_path: Path):
    found = Keys(tmp_path)
    begin(found)
    asyncio.run(found.forget(0, "k"))
    found.release(0, "k")
    assert begin(found, a=2) is None


@pytest.mark.parametrize("answer", ["x" * 100_000, {1, 2}])
def test_an_answer_that_cannot_be_kept_is_still_a_call_that_was_made(tmp_path: Path, answer: object):
    found = Keys(tmp_path)
    begin(found)
    finish(found, {"result": answer})
    assert reason(found) == "idempotency-answer"


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keys, "write_atomically", write)


def test_a_key_that_could_not_be_claimed_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = Keys(tmp_path)
    with monkeypatch.context() as patch:
        full(patch)
        for _ in range(2):
            with pytest.raises(MixosError) as caught:
                begin(found)
            assert caught.value.reason == "idempotency-failed"
    assert begin(found) is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MixosError) as caught:
        begin(Keys(tmp_path / "file" / "keys"))
    assert caught.value.reason == "idempotency-failed"


def test_an_outcome_that_could_not_be_kept_does_not_hide_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = Keys(tmp_path)
    begin(found)
    with monkeypatch.context() as patch:
        full(patch)
        finish(found, {"result": 1})
    assert reason(found) == "idempotency-unknown"


def test_keys_end_after_a_day_and_are_removed(tmp_path: Path):
    now = [1e9]
    found = Keys(tmp_path, lambda: now[0])
    begin(found)
    finish(found, {"result": 1})
    now[0] += keys.SECONDS - 1
    assert begin(found)["result"] == 1
    now[0] += 2
    assert begin(found, a=2) is None
    finish(found, {"result": 2}, a=2)
    now[0] += keys.SECONDS + 1
    begin(found, "other")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_clock_that_jumps_back_keeps_keys(tmp_path: Path):
    now = [1e9]
    found = Keys(tmp_path, lambda: now[0])
    begin(found)
    finish(found, {"result": 1})
    now[0] = 0.0
    assert begin(found)["result"] == 1


def test_an_account_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "PER_UID", 3)
    found = Keys(tmp_path)
    for number in range(3):
        assert begin(found, str(number)) is None
    assert reason(found, "more") == "idempotency-full"
    assert begin(found, "more", uid=10) is None
    assert reason(Keys(tmp_path), "more") == "idempotency-full"


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_record_is_unknown(tmp_path: Path, data: bytes):
    begin(Keys(tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_bytes(data)
    assert reason(Keys(tmp_path)) == "idempotency-unknown"
