"""The history of configuration: what is kept, what an undo restores, and what a cut in between leaves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.api.method import Caller, Role
from daemon.config.history import MAX_FILE, History
from daemon.config.part import BY_HAND, Config, Page, Target
from daemon.errors import NotFoundError, RefusedError
from daemon.part import Context

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


def test_diff_names_the_lines(history: History):
    write(history, "units/a.toml", "x = 1\ny = 2\n")
    history.record("admin", "one", 1.0)
    write(history, "units/a.toml", "x = 1\ny = 3\n")
    write(history, "b.bin", "")
    (history.folder / "b.bin").write_bytes(b"\xff\xfe")
    history.record("admin", "two", 2.0)
    text = history.changes(history.get(1).files, history.get(2).files)
    assert "-y = 2\n+y = 3\n" in text
    assert "+++ b.bin\n(not text)\n" in text
    assert history.changes(history.get(2).files, history.current()) == ""


def test_restore_brings_back_content_modes_and_absence(history: History):
    write(history, "a.toml", "x = 1\n", 0o600)
    history.record("admin", "one", 1.0)
    before = tree(history.folder)
    write(history, "a.toml", "x = 2\n", 0o644)
    write(history, "new/b.toml", "y = 1\n")
    history.record("admin", "two", 2.0)
    assert history.restore(history.get(1)) == ["a.toml", "new/b.toml"]
    assert tree(history.folder) == before


def test_a_torn_line_is_dropped_and_does_not_spoil_the_next(history: History):
    write(history, "a.toml", "x = 1\n")
    history.record("admin", "one", 1.0)
    with (history.store / "revisions.jsonl").open("ab") as stream:
        stream.write(b'{"id":2,"at":')
    write(history, "a.toml", "x = 2\n")
    history.record("admin", "two", 2.0)
    assert [(revision.id, revision.why) for revision in history.revisions()] == [(1, "one"), (2, "two")]


def test_damaged_content_is_never_restored(history: History):
    write(history, "a.toml", "x = 1\n")
    revision = history.record("admin", "one", 1.0)
    assert revision is not None
    (history.store / "objects" / revision.files["a.toml"][0]).write_bytes(b"x = 9\n")
    write(history, "a.toml", "x = 2\n")
    with pytest.raises(RefusedError) as caught:
        history.restore(revision)
    assert caught.value.reason == "history-damaged"
    assert (history.folder / "a.toml").read_text() == "x = 2\n"


def test_what_is_too_big_is_refused(history: History):
    (history.folder / "big").write_bytes(bytes(MAX_FILE + 1))
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
    assert isinstance(History(folder, folder).revisions(), list)


def part(tmp_path: Path) -> Config:
    context = Context(etc=tmp_path / "etc", state=tmp_path / "state")
    context.etc.mkdir(exist_ok=True)
    return Config(context)


def test_the_part_records_hand_made_changes_and_undoes(tmp_path: Path):
    config = part(tmp_path)
    write(config.history, "a.toml", "x = 1\n")
    asyncio.run(config.start())
    write(config.history, "a.toml", "x = 2\n")
    config.record("admin", "net.set")
    answer = asyncio.run(config.undo(ADMIN, Target()))
    assert answer == {"revision": 1, "changed": ["a.toml"]}
    assert (config.context.etc / "a.toml").read_text() == "x = 1\n"
    rows = asyncio.run(config.list(ADMIN, Page()))
    assert [(row["id"], row["who"]) for row in rows] == [(3, "admin"), (2, "admin"), (1, BY_HAND)]  # type: ignore[attr-defined]


def test_an_undo_that_was_cut_off_is_finished_at_the_next_start(tmp_path: Path):
    config = part(tmp_path)
    write(config.history, "a.toml", "x = 1\n")
    write(config.history, "b.toml", "y = 1\n")
    config.record("admin", "one")
    write(config.history, "a.toml", "x = 2\n")
    write(config.history, "b.toml", "y = 2\n")
    config.record("admin", "two")
    config.journal.write_text(json.dumps({"revision": 1, "who": "admin"}))
    write(config.history, "a.toml", "x = 1\n")  # as far as the undo came
    asyncio.run(part(tmp_path).start())
    assert (config.context.etc / "b.toml").read_text() == "y = 1\n"
    assert not config.journal.exists()
