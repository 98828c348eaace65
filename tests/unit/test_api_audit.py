"""The audit log: the chain, its repair after a crash at any byte, rotation, everything that `verify` must notice."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.core.audit import START, Audit, AuditError, Place, seal, unseal
from tests.forking import forked
from tests.waiting import ended


def written(folder: Path, count: int, **options: int) -> Audit:
    audit = Audit(folder, **options)
    audit.open()
    for number in range(count):
        audit.append("intent", method="m", number=number)
        audit.append("outcome", call=audit.head.seq, outcome="ok")
    audit.close()
    return audit


def verified(folder: Path, anchor: Place | None = None) -> dict:
    return asyncio.run(Audit(folder).verify(anchor))


def lines(folder: Path) -> list[bytes]:
    return [line for path in Audit(folder).files() for line in path.read_bytes().splitlines(keepends=True)]


def test_the_chain_can_be_checked_without_this_program(tmp_path):
    written(tmp_path, 3)
    before = START
    for number, line in enumerate(lines(tmp_path), 1):
        entry = json.loads(line)
        assert (entry["seq"], entry["prev"]) == (number, before)
        body = line.replace(b',"hash":"%s"' % entry["hash"].encode(), b"").rstrip(b"\n")
        before = hashlib.sha256(body).hexdigest()
        assert entry["hash"] == before


def test_a_restart_goes_on(tmp_path):
    written(tmp_path, 2)
    audit = Audit(tmp_path)
    audit.open()
    assert audit.append("started") == 5
    audit.close()
    assert verified(tmp_path) | {"head": ""} == {
        "ok": True, "entries": 5, "first": 1, "last": 5, "head": "", "complete": True, "anchored": None,
        "problem": None,
    }  # fmt: skip


@pytest.mark.parametrize("cut", range(1, 200, 7))
def test_a_torn_end_is_repaired_and_recorded(tmp_path, cut):
    written(tmp_path, 3)
    (path,) = Audit(tmp_path).files()
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    kept = data[:-cut].count(b"\n")
    audit = Audit(tmp_path)
    audit.open()
    audit.close()
    torn = data[:-cut].rpartition(b"\n")[2]
    entries = [json.loads(line) for line in lines(tmp_path)]
    repaired = [entry for entry in entries if entry["kind"] == "repaired"]
    assert [(one["bytes"], one["sha256"]) for one in repaired] == (
        [(len(torn), hashlib.sha256(torn).hexdigest())] if torn else []
    )
    assert entries[:kept] == [json.loads(line) for line in data.splitlines()[:kept]]
    assert verified(tmp_path)["ok"]


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\n", b"{}\n", b'{"seq":99}\n', b"\xff\xfe\n\n"])
def test_whatever_a_power_cut_left_behind_is_cut_off(tmp_path, tail):
    written(tmp_path, 1)
    (path,) = Audit(tmp_path).files()
    path.write_bytes(path.read_bytes() + tail)
    audit = Audit(tmp_path)
    audit.open()
    audit.close()
    assert verified(tmp_path)["ok"]
    assert json.loads(lines(tmp_path)[-1])["bytes"] == len(tail)


def test_an_intent_without_outcome_becomes_unknown_once(tmp_path):
    audit = Audit(tmp_path)
    audit.open()
    call = audit.append("intent", method="m")
    audit.close()
    for _ in range(2):
        audit = Audit(tmp_path)
        audit.open()
        audit.close()
    outcomes = [json.loads(line) for line in lines(tmp_path)[1:]]
    assert [(one["kind"], one["call"], one["outcome"]) for one in outcomes] == [("outcome", call, "unknown")]


def test_rotation_carries_the_chain_over(tmp_path):
    audit = written(tmp_path, 100, max_file=2000, keep=3)
    assert len(audit.files()) == 3
    assert all(path.stat().st_size <= 2000 for path in audit.files())
    found = verified(tmp_path)
    assert (found["ok"], found["complete"], found["last"]) == (True, False, 200)
    later = Audit(tmp_path, max_file=2000, keep=3)
    later.open()
    assert later.append("started") == 201
    later.close()
    assert verified(tmp_path)["ok"]


def test_entries_are_found_across_files(tmp_path):
    written(tmp_path, 50, max_file=4000, keep=100)
    audit = Audit(tmp_path)
    numbers = [one["seq"] for one in asyncio.run(audit.entries(1000))]
    assert numbers == list(range(1, 101))
    assert [one["seq"] for one in asyncio.run(audit.entries(3, before=50))] == [47, 48, 49]
    assert [one["number"] for one in asyncio.run(audit.entries(2, kind="intent"))] == [48, 49]


def changed(data: list[bytes], how: str) -> list[bytes]:
    if how == "edited":
        return [*data[:4], data[4].replace(b'"m"', b'"n"'), *data[5:]]
    if how == "resealed":
        entry = json.loads(data[4])
        body = {name: value for name, value in entry.items() if name not in ("prev", "hash")}
        return [*data[:4], seal({**body, "method": "n"}, entry["prev"])[0], *data[5:]]
    if how == "removed":
        return [*data[:4], *data[5:]]
    if how == "swapped":
        return [*data[:4], data[5], data[4], *data[6:]]
    if how == "doubled":
        return [*data[:5], *data[4:]]
    if how == "inserted":
        return [*data[:4], b"\n", *data[4:]]
    return data[1:]


@pytest.mark.parametrize("how", ["edited", "resealed", "removed", "swapped", "doubled", "inserted"])
def test_every_change_is_noticed(tmp_path, how):
    written(tmp_path, 5)
    (path,) = Audit(tmp_path).files()
    path.write_bytes(b"".join(changed(lines(tmp_path), how)))
    found = verified(tmp_path)
    assert found["ok"] is False
    assert found["problem"]["line"] in (5, 6)


def test_the_first_entries_cannot_go_unnoticed(tmp_path):
    written(tmp_path, 5)
    (path,) = Audit(tmp_path).files()
    path.write_bytes(b"".join(lines(tmp_path)[1:]))
    assert verified(tmp_path)["complete"] is False


def test_an_anchor_shows_a_cut_end_and_a_rewritten_chain(tmp_path):
    written(tmp_path / "a", 5)
    noted = Place(10, json.loads(lines(tmp_path / "a")[-1])["hash"])
    assert verified(tmp_path / "a", noted)["ok"]
    (path,) = Audit(tmp_path / "a").files()
    path.write_bytes(b"".join(lines(tmp_path / "a")[:-2]))
    assert verified(tmp_path / "a")["ok"]
    assert verified(tmp_path / "a", noted)["ok"] is False
    written(tmp_path / "b", 6)
    assert verified(tmp_path / "b", noted) | {"head": ""} == {
        "ok": False, "entries": 12, "first": 1, "last": 12, "head": "", "complete": True, "anchored": False,
        "problem": None,
    }  # fmt: skip


def test_long_members_are_kept_as_digest(tmp_path):
    audit = Audit(tmp_path)
    audit.open()
    audit.append("intent", params={"text": "x" * 100_000})
    audit.close()
    (line,) = lines(tmp_path)
    assert len(line) < 500
    assert json.loads(line)["params"]["bytes"] == 100_012


def test_a_full_disk_takes_the_oldest_file_and_then_refuses(tmp_path, monkeypatch):
    written(tmp_path, 100, max_file=2000, keep=5)
    audit = Audit(tmp_path, max_file=1 << 20, keep=5)
    audit.open()
    real, full = os.write, [1]

    def write(descriptor: int, data: bytes) -> int:
        if full[0]:
            full[0] -= 1
            real(descriptor, data[:10])  # part of it still fits
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    before = len(audit.files())
    assert audit.append("started")
    assert len(audit.files()) == before - 1
    full[0] = 10
    with pytest.raises(AuditError) as caught:
        audit.append("started")
    assert caught.value.reason == "audit-failed"
    full[0] = 0
    audit.append("started")
    audit.close()
    assert verified(tmp_path)["ok"]


def test_entries_of_one_moment_share_a_sync(tmp_path, monkeypatch):
    async def main() -> list[int]:
        return await asyncio.gather(*(audit.record("started") for _ in range(50)))

    calls: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (calls.append(1), real(descriptor)))
    audit = Audit(tmp_path)
    audit.open()
    assert asyncio.run(main()) == list(range(1, 51))
    audit.close()
    assert 1 <= len(calls) < 50


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 13])
def test_kill_at_any_moment_leaves_a_chain(tmp_path, after):
    """A writer that is killed while it writes, rotates and drops: what it had reported as durable is there."""
    reader, writer = os.pipe()

    def write() -> None:
        audit = Audit(tmp_path, max_file=3000, keep=4)
        audit.open()
        while True:
            seq = asyncio.run(audit.record("intent", method="m"))
            os.write(writer, b"%d\n" % seq)

    child = forked(write)
    os.close(writer)
    with os.fdopen(reader) as reported:
        for _ in range(after * 7 + 1):
            last = int(reported.readline())
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        last = max([last, *(int(line) for line in reported if line.endswith("\n"))])
    audit = Audit(tmp_path, max_file=3000, keep=4)
    audit.open()
    audit.close()
    found = verified(tmp_path)
    assert found["ok"]
    assert found["last"] >= last


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_no_line_but_a_sealed_one_is_an_entry(line):
    assert unseal(line) is None


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=4))
def test_what_is_sealed_is_read_back(body):
    entry = {"seq": 1, **{f"x{name}": value for name, value in body.items()}}
    line, digest = seal(entry, START)
    assert line.count(b"\n") == 1
    assert unseal(line[:-1]) == {**entry, "prev": START, "hash": digest}
