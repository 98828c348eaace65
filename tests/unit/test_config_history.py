"""The history of configuration: what is kept, what an undo restores, and what a cut in between leaves."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import ConfigError, MixosError, NotFoundError, RefusedError
from daemon.core.change.applier import Wish
from daemon.core.manifest import manifests
from daemon.core.method import Caller, Nothing, Role
from daemon.core.part import Context
from daemon.core.parts import source
from daemon.parts.config import history as history_module
from daemon.parts.config.history import MAX_FILE, History
from daemon.parts.config.part import BY_HAND, Config, Named, Page, Put, Removed, Target
from tests.daemons import running

ADMIN = Caller(Role.ADMIN, 1000, 1000, 1, "admin", "local")


@pytest.fixture
def history(tmp_path: Path) -> History:
    (tmp_path / "etc").mkdir()
    return History(tmp_path / "etc", tmp_path / "store")


def write(history: History, path: str, text: str, mode: int = 0o644) -> None:
    target = history.folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(mode)


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o7777)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_revision_is_made_only_when_something_changed(history: History):
    write(history, "a.toml", "x = 1\n")
    first = history.record("admin", "net.apply", 1.0)
    assert first is not None
    assert first.id == 1
    assert history.record("admin", "again", 2.0) is None
    (history.folder / "a.toml").chmod(0o600)
    second = history.record("admin", "mode", 3.0)
    assert second is not None
    assert [revision.id for revision in history.revisions()] == [1, 2]
    assert history.last() == second


def test_diff_names_the_lines(history: History):
    write(history, "units/a.toml", "x = 1\ny = 2\n")
    history.record("admin", "one", 1.0)
    write(history, "units/a.toml", "x = 1\ny = 3\n")
    write(history, "b.bin", "")
    (history.folder / "b.bin").write_bytes(b"\xff\xfe")
    history.record("admin", "two", 2.0)
    text = history.changes(history.get(1).files, history.get(2).files)
    assert "-y = 2\n+y = 3\n" in text
    assert "+++ b.bin\n(not text" in text
    assert history.changes(history.get(2).files, history.current()) == ""


def test_files_of_many_equal_lines_are_not_pondered(history: History, monkeypatch: pytest.MonkeyPatch):
    before, after = ([f"{number * step % 150}\n" for number in range(12_000)] for step in (1, 7))
    write(history, "list", "".join(before))
    first = history.record("admin", "one", 1.0)
    write(history, "list", "".join(after))
    monkeypatch.setattr(history_module.difflib, "unified_diff", None)
    assert first is not None
    lines = history.changes(first.files, history.current()).splitlines(keepends=True)
    assert lines[:3] == ["--- a/list\n", "+++ b/list\n", "@@ -1,12000 +1,12000 @@\n"]
    assert [line[1:] for line in lines[3:] if line[0] == "-"] == before
    assert [line[1:] for line in lines[3:] if line[0] == "+"] == after


def test_a_torn_line_is_dropped_and_does_not_spoil_the_next(history: History):
    write(history, "a.toml", "x = 1\n")
    history.record("admin", "one", 1.0)
    with (history.store / "revisions.jsonl").open("ab") as stream:
        stream.write(b'{"id":2,"at":')
    write(history, "a.toml", "x = 2\n")
    history.record("admin", "two", 2.0)
    assert [(revision.id, revision.why) for revision in history.revisions()] == [(1, "one"), (2, "two")]


def test_a_full_disk_leaves_no_part_of_a_line(history: History, monkeypatch: pytest.MonkeyPatch):
    write(history, "a.toml", "x = 1\n")
    history.record("admin", "one", 1.0)
    before = (history.store / "revisions.jsonl").read_bytes()
    write(history, "a.toml", "x = 2\n")
    history.current()  # its object is there already: the disk becomes full within the line
    real, room = os.write, [30]

    def full(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        count = real(descriptor, data[: room[0]])
        room[0] -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="full"):
            history.record("admin", "two", 2.0)
    assert (history.store / "revisions.jsonl").read_bytes() == before
    assert history.record("admin", "two", 3.0) is not None
    assert [revision.id for revision in history.revisions()] == [1, 2]


def test_what_is_remembered_of_unchanged_files_hides_no_change(history: History, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(history_module, "_SETTLED", -(10**12))  # everything is remembered at once
    for name in ("a", "b"):
        write(history, name, "1\n")
    first = history.record("admin", "one", 1.0)
    assert first is not None
    assert history.record("admin", "same", 2.0) is None
    write(history, "a", "22\n")
    (history.folder / "b").chmod(0o600)
    second = history.record("admin", "two", 3.0)
    assert second is not None
    assert [path for path in "ab" if second.files[path] != first.files[path]] == ["a", "b"]
    for path in (history.store / "objects").iterdir():  # a restore of a backup brought another store
        path.unlink()
    history.current()
    assert {history.content(digest) for digest, _ in second.files.values()} == {b"1\n", b"22\n"}


def test_kept_content_that_was_cut_off_is_kept_again(history: History):
    write(history, "a.toml", "x = 1\n")
    revision = history.record("admin", "one", 1.0)
    assert revision is not None
    (history.store / "objects" / revision.files["a.toml"][0]).write_bytes(b"")
    history.current()
    assert history.content(revision.files["a.toml"][0]) == b"x = 1\n"


def test_damaged_content_is_never_restored(history: History):
    write(history, "a.toml", "x = 1\n")
    revision = history.record("admin", "one", 1.0)
    assert revision is not None
    (history.store / "objects" / revision.files["a.toml"][0]).write_bytes(b"x = 9\n")
    with pytest.raises(RefusedError) as caught:
        history.content(revision.files["a.toml"][0])
    assert caught.value.reason == "history-damaged"


def test_what_is_too_long_is_noted_and_not_kept(history: History):
    (history.folder / "long").write_bytes(bytes(MAX_FILE + 1))
    revision = history.record("admin", "one", 1.0)
    assert revision is not None
    assert history.record("admin", "one", 1.0) is None
    assert not [*(history.store / "objects").iterdir()]
    (history.folder / "long").write_bytes(bytes(MAX_FILE + 2))
    changed = history.record("admin", "two", 2.0)
    assert changed is not None
    assert "long" in history.changes(revision.files, changed.files)


def test_too_many_files_are_refused(history: History, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(history_module, "MAX_FILES", 1)
    for name in ("a", "b"):
        write(history, name, "")
    with pytest.raises(RefusedError) as caught:
        history.record("admin", "one", 1.0)
    assert caught.value.reason == "history-too-big"


def test_links_and_hidden_files_are_left_out(history: History, tmp_path: Path):
    (tmp_path / "secret").write_text("s")
    (history.folder / "link").symlink_to(tmp_path / "secret")
    (history.folder / ".a.toml.new").write_text("half")
    assert history.current() == {}


def test_prune_forgets_content_that_nothing_names(history: History):
    for number in range(5):
        write(history, "a.toml", f"x = {number}\n")
        history.record("admin", str(number), float(number))
    history.prune(2)
    assert [revision.id for revision in history.revisions()] == [4, 5]
    assert len(list((history.store / "objects").iterdir())) == 2


def test_revisions_that_do_not_exist(history: History):
    for number in (0, 1, -1):
        with pytest.raises(NotFoundError) as caught:
            history.get(number)
        assert caught.value.reason == "revision-missing"


@given(st.binary(max_size=200))
def test_no_list_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "revisions.jsonl").write_bytes(data)
    found = list(History(folder, folder).revisions())
    assert History(folder, folder).last() == (found[-1] if found else None)


def part(tmp_path: Path) -> Config:
    context = Context(etc=tmp_path / "etc/mixos", state=tmp_path / "var/lib/mixos")
    context.etc.mkdir(parents=True, exist_ok=True)
    context.state.mkdir(parents=True, exist_ok=True)
    return Config(context)


def old_undo(config: Config, text: str) -> Path:
    """The journal of an undo that version 0.1 was cut off in."""
    path = config.context.state / "config/undo.json"
    path.write_text(text)
    return path


def test_the_part_records_hand_made_changes_and_undoes(tmp_path: Path):
    config = part(tmp_path)
    write(config.history, "a.toml", "x = 1\n")
    asyncio.run(config.start())
    write(config.history, "a.toml", "x = 2\n")
    config.record("admin", "net.set")
    answer = asyncio.run(config.undo(ADMIN, Target()))
    assert (answer["revision"], answer["changed-files"], answer["applied"]) == (1, ["a.toml"], True)
    assert (config.context.etc / "a.toml").read_text() == "x = 1\n"
    rows = asyncio.run(config.revisions(ADMIN, Page()))
    assert [(row["id"], row["who"]) for row in rows] == [(3, "admin"), (2, "admin"), (1, BY_HAND)]  # type: ignore[attr-defined]


def undone(tmp_path: Path, change: Callable[[Config], None]) -> None:
    """After `change` an undo brings the folder back to what it was."""
    config = part(tmp_path)
    config.record("admin", "one")
    before = tree(config.context.etc)
    change(config)
    config.record("admin", "two")
    asyncio.run(config.undo(ADMIN, Target(revision=1)))
    assert tree(config.context.etc) == before


def test_an_undo_brings_back_content_modes_and_absence(tmp_path: Path):
    def change(config: Config) -> None:
        write(config.history, "a.toml", "x = 2\n", 0o644)
        write(config.history, "new/b.toml", "y = 1\n")

    write(part(tmp_path).history, "a.toml", "x = 1\n", 0o600)
    undone(tmp_path, change)


def test_what_stands_in_the_place_of_a_file_or_folder(tmp_path: Path):
    def change(config: Config) -> None:
        folder = config.context.etc
        (folder / "a/b.toml").unlink()
        (folder / "a").rmdir()
        (folder / "c").unlink()
        write(config.history, "a", "now a file\n")
        write(config.history, "c/d/e.toml", "now a folder\n")

    history = part(tmp_path).history
    write(history, "a/b.toml", "x = 1\n")
    write(history, "c", "y = 1\n")
    undone(tmp_path, change)


def test_an_undo_of_an_undo(tmp_path: Path):
    config = part(tmp_path)
    for text in ("x = 1\n", "x = 2\n"):
        write(config.history, "a.toml", text)
        config.record("admin", "set")
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        asyncio.run(config.undo(ADMIN, Target()))
        assert (config.context.etc / "a.toml").read_text() == text


def test_an_undo_loses_no_later_change(tmp_path: Path):
    """What was edited by hand since becomes a revision first."""
    config = part(tmp_path)
    for text in ("x = 1\n", "x = 2\n"):
        write(config.history, "a.toml", text)
        config.record("admin", "set")
    write(config.history, "a.toml", "x = 3\n")
    asyncio.run(config.undo(ADMIN, Target(revision=1)))
    assert (config.context.etc / "a.toml").read_text() == "x = 1\n"
    asyncio.run(config.undo(ADMIN, Target()))
    assert (config.context.etc / "a.toml").read_text() == "x = 3\n"


def test_an_undo_behind_another_change_undoes_that_as_well(tmp_path: Path):
    config = part(tmp_path)
    write(config.history, "a.toml", "x = 1\n")
    write(config.history, "b.toml", "y = 1\n")
    config.record("admin", "one")
    before = tree(config.context.etc)
    write(config.history, "a.toml", "x = 2\n")
    config.record("admin", "two")

    async def scenario() -> None:
        changes = config.context.changes
        async with changes._lock:
            first = asyncio.ensure_future(changes.make(ADMIN, Wish(), "other", {"etc/mixos/b.toml": b"y = 2\n"}))
            await asyncio.sleep(0.05)
            second = asyncio.ensure_future(config.undo(ADMIN, Target(revision=1)))
            await asyncio.sleep(0.2)
        await asyncio.gather(first, second)
        assert second.result()["changed-files"] == ["a.toml", "b.toml"]

    asyncio.run(scenario())
    assert tree(config.context.etc) == before


@pytest.mark.parametrize(("then", "now"), [(0, 1), (1, 0), (1, 2), (None, 1), (1, None), (2, 2)])
def test_an_undo_leaves_what_is_too_long_as_it_is_and_says_so(tmp_path: Path, then: int | None, now: int | None):
    """then, now: bytes of it beyond the most that is kept; it was as long at the end, but for the last case."""
    config = part(tmp_path)
    long = config.context.etc / "lists/long.txt"
    long.parent.mkdir()
    for size, text in ((then, "x = 1\n"), (now, "x = 2\n")):
        write(config.history, "a.toml", text)
        if size is None:
            long.unlink(missing_ok=True)
        elif not long.exists() or long.stat().st_size != MAX_FILE + size:
            long.write_bytes(bytes(MAX_FILE + size))
        config.record("admin", "one")
    answer = asyncio.run(config.undo(ADMIN, Target()))
    assert answer["changed-files"] == ["a.toml"]
    assert answer["stays"] == ([] if then == now else ["lists/long.txt"])
    assert (long.stat().st_size if long.exists() else None) == (None if now is None else MAX_FILE + now)


def test_an_undo_that_would_lose_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = part(tmp_path)
    write(config.history, "a.toml", "x = 1\n")
    config.record("admin", "one")
    monkeypatch.setattr(history_module, "MAX_FILES", 1)
    write(config.history, "b.toml", "")
    write(config.history, "a.toml", "x = 2\n")
    with pytest.raises(MixosError) as caught:
        asyncio.run(config.undo(ADMIN, Target(revision=1)))
    assert caught.value.reason == "history-failed"
    assert (config.context.etc / "a.toml").read_text() == "x = 2\n"


def test_an_undo_that_fails_is_taken_back_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = part(tmp_path)
    for text in ("x = 1\n", "x = 2\n"):
        write(config.history, "a.toml", text)
        write(config.history, "b.toml", text)
        config.record("admin", "set")
    before = tree(config.context.etc)

    def full(name: str) -> None:
        if name == "done etc/mixos/a.toml":
            raise OSError(errno.ENOSPC, "full")

    config.context.changes.step = full
    with pytest.raises(MixosError) as caught:
        asyncio.run(config.undo(ADMIN, Target()))
    assert caught.value.reason == "change-files"
    assert tree(config.context.etc) == before
    asyncio.run(part(tmp_path).start())
    assert tree(config.context.etc) == before


def test_damaged_content_is_found_before_anything_changes(tmp_path: Path):
    config = part(tmp_path)
    for text in ("1\n", "2\n"):
        for name in ("a", "b"):
            write(config.history, name, name + text)
        config.record("admin", "set")
    (config.history.store / "objects" / config.history.get(1).files["b"][0]).unlink()
    with pytest.raises(MixosError) as caught:
        asyncio.run(config.undo(ADMIN, Target()))
    assert caught.value.reason == "history-damaged"
    assert (config.context.etc / "a").read_text() == "a2\n"


@pytest.mark.parametrize("text", ["", "{", '{"revision": 99, "who": "x", "origin": "y"}', '{"revision": "x"}', "7"])
def test_no_journal_keeps_the_part_from_starting(tmp_path: Path, text: str):
    config = part(tmp_path)
    write(config.history, "a.toml", "x = 1\n")
    config.record("admin", "one")
    journal = old_undo(config, text)
    asyncio.run(config.start())
    assert config.status() == {"revision": 1}
    assert not journal.exists()


def test_an_undo_that_was_cut_off_is_finished_at_the_next_start(tmp_path: Path):
    config = part(tmp_path)
    write(config.history, "a.toml", "x = 1\n")
    write(config.history, "b.toml", "y = 1\n")
    config.record("admin", "one")
    write(config.history, "a.toml", "x = 2\n")
    write(config.history, "b.toml", "y = 2\n")
    config.record("admin", "two")
    journal = old_undo(config, json.dumps({"revision": 1, "who": "admin", "origin": "local"}))
    write(config.history, "a.toml", "x = 1\n")  # as far as the undo came
    asyncio.run(part(tmp_path).start())
    assert (config.context.etc / "b.toml").read_text() == "y = 1\n"
    assert not journal.exists()


def test_a_revision_says_what_was_done_not_what_it_led_to(tmp_path: Path):
    """Parts that read their files again, and a confirmation, are in the history as what they belong to."""
    places = dict.fromkeys(("run", "lib", "log", "cgroups"), tmp_path / "d")
    context = replace(part(tmp_path).context, shared=False, **places)
    wanted = [source(one, context) for one in manifests() if one.name in ("change", "config", "metrics", "proxy")]
    with running(tmp_path / "d", more=wanted, context=context) as device:
        device.call("config.put", {"path": "metrics.toml", "text": "[prometheus]\n"})
        device.call("config.put", {"path": "proxy.toml", "text": 'http = "http://192.0.2.1:3128"\n', "confirm": 600})
        device.call("change.confirm")
        device.call("proxy.clear")
        rows = device.call("config.history")
    assert [row["why"] for row in rows][:3] == ["proxy.clear", "config put proxy.toml", "config put metrics.toml"]


# -- files that people write -------------------------------------------------------------------------------------------


def test_a_file_is_written_read_and_removed(tmp_path: Path):
    config = part(tmp_path)
    me = ADMIN

    async def main() -> None:
        put = Put.model_validate({"path": "units/hello.toml", "text": "[unit]\n"})
        answer = await config.put(me, put)
        assert (answer["changed-files"], answer["apply"]) == (["units/hello.toml"], ["service.reload"])
        assert [one["method"] for one in answer["problems"]] == ["service.reload"]  # there is nobody to call here
        file = config.context.etc / "units/hello.toml"
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o644, 0o755)
        assert await config.get(me, Named(path=put.path)) == {"path": put.path, "text": "[unit]\n"}
        (config.context.etc / "proxy.secret.toml").write_text("x = 1\n")
        (config.context.etc / "network.conf").write_text("x\n")
        assert await config.files(me, Nothing()) == [{"path": "units/hello.toml", "size": 7}]
        file.chmod(0o600)
        await config.put(me, put)
        assert file.stat().st_mode & 0o777 == 0o600
        assert (await config.remove(me, Removed(path=put.path)))["apply"] == ["service.reload"]
        with pytest.raises(NotFoundError) as caught:
            await config.remove(me, Removed(path=put.path))
        assert caught.value.reason == "config-missing"

    asyncio.run(main())


def test_what_is_no_toml_is_not_written(tmp_path: Path):
    config = part(tmp_path)
    with pytest.raises(ConfigError) as caught:
        asyncio.run(
            config.put(Caller(Role.ADMIN, 0, 0, 1, "me", ""), Put.model_validate({"path": "vpn.toml", "text": "["}))
        )
    assert caught.value.reason == "config-syntax"
    assert not (config.context.etc / "vpn.toml").exists()


@pytest.mark.parametrize(
    "path",
    ["", "../x.toml", "/etc/x.toml", "units/../x.toml", "units/a/b.toml", ".x.toml", "units/x.toml\n", "lists/a/b",
     "lists/../x", "units/X.toml", "a" * 80 + ".toml"],
)  # fmt: skip
def test_what_is_no_path_of_the_configuration(path: str):
    with pytest.raises(ValidationError):
        Put.model_validate({"path": path, "text": ""})


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("fierwall.toml", "did you mean firewall.toml?"),
        ("proxy.secret.toml", "did you mean proxy.toml?"),
        ("network.conf", "did you mean network.toml?"),
        ("vpn/wg0.key", None),
        ("units/hello.tml", "did you mean units/*.toml?"),
        ("anything.toml", None),
    ],
)
def test_a_file_that_no_part_knows_is_refused(tmp_path: Path, path: str, hint: str | None):
    config = part(tmp_path)
    (config.context.etc / path).parent.mkdir(parents=True, exist_ok=True)
    (config.context.etc / path).touch()
    me = Caller(Role.ADMIN, 0, 0, 1, "me", "")
    put = Put.model_validate({"path": path, "text": "x = 1"})
    for call in (config.put(me, put), config.get(me, Named(path=path)), config.remove(me, Named(path=path))):
        with pytest.raises(NotFoundError) as caught:
            asyncio.run(call)
        assert caught.value.reason == "config-unknown-file"
        if hint is not None:
            assert caught.value.hint == hint
    assert (config.context.etc / path).read_text() == ""
    assert path not in [row["path"] for row in asyncio.run(config.files(me, Nothing()))]


# case: D11
@pytest.mark.parametrize("text", ["", "\n", " \t\r\n"])
@pytest.mark.parametrize("path", ["units/ok.toml", "firewall.toml", "enabled.toml"])
def test_nothing_is_no_content(tmp_path: Path, path: str, text: str):
    config = part(tmp_path)
    write(config.history, path, "# as it is\n")
    with pytest.raises(RefusedError) as caught:
        asyncio.run(config.put(ADMIN, Put.model_validate({"path": path, "text": text})))
    assert caught.value.reason == "config-empty"
    assert (config.context.etc / path).read_text() == "# as it is\n"


# case: D2
# case: D22
def test_what_another_unit_requires_is_neither_removed_nor_broken(tmp_path: Path):
    config = part(tmp_path)
    me = Caller(Role.ADMIN, 0, 0, 1, "me", "")
    write(config.history, "units/db.toml", "[unit]\n")
    write(config.history, "units/web.toml", "[unit]\nrequires = ['db']\n")
    write(config.history, "units/log.toml", "[unit]\nwants = ['db']\n")
    write(config.history, "units/odd.toml", "[unit]\nrequires = ['nobody']\n")  # which was broken before
    db = "units/db.toml"
    with pytest.raises(ConfigError) as caught:
        asyncio.run(config.remove(me, Removed.model_validate({"path": db})))
    assert caught.value.reason == "unit-needed"
    with pytest.raises(ConfigError) as caught:
        asyncio.run(config.put(me, Put.model_validate({"path": db, "text": "[unit]\nrequires = ['web']\n"})))
    assert caught.value.reason == "unit-broken"
    assert (config.context.etc / "units/db.toml").read_text() == "[unit]\n"
    for name in ("web", "db", "odd", "log"):
        asyncio.run(config.remove(me, Removed.model_validate({"path": f"units/{name}.toml"})))
    assert not [*(config.context.etc / "units").iterdir()]


def test_a_unit_of_the_image_takes_the_place_of_one_that_is_removed(tmp_path: Path):
    config = part(tmp_path)
    config.context = replace(config.context, lib=tmp_path / "lib")
    shipped = config.context.lib / "units/db.toml"
    shipped.parent.mkdir(parents=True)
    shipped.write_text("[unit]\n")
    write(config.history, "units/db.toml", "[unit]\n")
    write(config.history, "units/web.toml", "[unit]\nrequires = ['db']\n")
    asyncio.run(config.remove(ADMIN, Removed.model_validate({"path": "units/db.toml"})))


# case: D22
@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("firewall.toml", "[rulse.a]\n", "config-unknown-key"),
        ("network.toml", "nonsense = 1\n", "config-unknown-key"),
        ("vpn.toml", "[interface.wg0]\nport = 'x'\n", "config-value"),
        ("mdns.toml", "enabled = 3\n", "config-value"),
        ("metrics.toml", "x = 1\n", "config-unknown-key"),
        ("proxy.toml", "htpp = ''\n", "config-unknown-key"),
        ("profiles/mine.toml", "netwrok = 'none'\n", "config-unknown-key"),
        ("units/hello.toml", "[service]\n", "config-missing-key"),
        ("units/hello.toml", "[service]\ncommand = [7]\n", "config-value"),
        ("units/hello.toml", "[unit]\nrequires = ['nobody']\n", "unit-broken"),
        ("units/hello.toml", "[unit]\nrequires = ['hello']\n", "unit-broken"),
        ("units/hello.toml", "[unit]\nafter = ['other']\n", "unit-broken"),
        ("units/_x.toml", "[unit]\n", "unit-name"),
        ("enabled.toml", "enable = 'x'\n", "config-value"),
    ],
)
def test_content_is_checked_by_its_part_before_it_is_written(tmp_path: Path, path: str, text: str, reason: str):
    config = part(tmp_path)
    me = Caller(Role.ADMIN, 0, 0, 1, "me", "")
    write(config.history, "units/other.toml", "[unit]\nafter = ['hello']\n")
    with pytest.raises(ConfigError) as caught:
        asyncio.run(config.put(me, Put.model_validate({"path": path, "text": text})))
    assert caught.value.reason == reason
    assert caught.value.message.startswith(f"{path}:")
    assert not (config.context.etc / path).exists()
