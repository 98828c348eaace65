"""The store survives being killed at every step, damage, and two builders at once."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildsys.cli.cache import kept_outputs
from buildsys.files import data_ranges, remove_tree
from buildsys.store import Store
from common.errors import StoreError
from tests.forking import forked
from tests.waiting import ended

STEPS = ("settled", "listed", "renamed", "recorded")
EPOCH = 1703030400


def fill(store: Store, text: str = "hello") -> Path:
    staged = store.stage()
    (staged / "out" / "dir").mkdir()
    (staged / "out" / "dir" / "file").write_text(text)
    (staged / "out" / "link").symlink_to("dir/file")
    return staged


def commit(store: Store, key: str = "k" * 64, text: str = "hello", action: str = "demo"):
    return store.commit(fill(store, text), action, key, {"a": 1}, 1.5, EPOCH)


def test_a_result_comes_back(tmp_path: Path):
    store = Store(tmp_path)
    result = commit(store)
    assert store.result("k" * 64) == result
    assert store.latest("demo") == result
    tree = store.tree(result.output)
    assert (tree / "link").read_text() == "hello"
    assert (tree / "dir" / "file").stat().st_mtime == EPOCH
    assert not list((tmp_path / "staging").iterdir())


def test_the_same_bytes_are_stored_once(tmp_path: Path):
    store = Store(tmp_path)
    assert commit(store, "1" * 64).output == commit(store, "2" * 64).output
    assert len(store.digests()) == 1


@pytest.mark.parametrize("step", STEPS)
def test_kill_at_every_step_leaves_nothing_or_everything(tmp_path: Path, step: str):
    reached = tmp_path / "reached"

    def hook(name: str) -> None:
        if name == step:
            reached.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)

    child = forked(lambda: commit(Store(tmp_path / "store", hook)))
    assert ended(child) == -signal.SIGKILL
    assert reached.read_text() == step  # the fault really happened
    store = Store(tmp_path / "store")
    found = store.result("k" * 64)
    assert found is None or store.damage(found.output) is None
    assert (found is not None) == (step == "recorded")
    again = commit(store)
    assert store.damage(again.output) is None


def test_damage_is_found_and_named(tmp_path: Path):
    store = Store(tmp_path)
    result = commit(store)
    assert store.damage(result.output) is None
    (store.tree(result.output) / "dir" / "file").write_text("jello")
    assert store.damage(result.output) == "dir/file"
    store.drop(result.output)
    assert store.result("k" * 64) is None


def test_a_mangled_record_is_a_miss(tmp_path: Path):
    store = Store(tmp_path)
    commit(store)
    record = tmp_path / "actions" / ("k" * 64 + ".json")
    for text in ("", "{", "[]", '{"action": 1}', record.read_text().replace("k" * 64, "j" * 64)):
        record.write_text(text)
        assert store.result("k" * 64) is None


def test_special_files_are_refused(tmp_path: Path):
    store = Store(tmp_path)
    staged = fill(store)
    os.mkfifo(staged / "out" / "pipe")
    with pytest.raises(StoreError) as caught:
        store.commit(staged, "demo", "k" * 64, {}, 0, EPOCH)
    assert caught.value.reason == "output-special-file"


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_programs_with_our_rights_are_refused_and_reached_by_nobody_else(tmp_path: Path, mode: int):
    store = Store(tmp_path)
    staged = fill(store)
    assert staged.stat().st_mode & 0o077 == 0
    (staged / "out" / "tool").touch()
    (staged / "out" / "tool").chmod(mode)
    with pytest.raises(StoreError) as caught:
        store.commit(staged, "demo", "k" * 64, {}, 0, EPOCH)
    assert caught.value.reason == "output-special-file"


def test_the_second_builder_waits_for_the_first(tmp_path: Path):
    store = Store(tmp_path)
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with Store(tmp_path).building("k", waiting.set):
            order.append("second")

    with store.building("k", lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_gc_refuses_while_a_build_runs_and_keeps_what_it_is_told(tmp_path: Path):
    store = Store(tmp_path)
    kept, gone = commit(store, "1" * 64, "a"), commit(store, "2" * 64, "b")
    with store.session(), pytest.raises(StoreError) as caught:
        Store(tmp_path).collect(set)
    assert caught.value.reason == "store-busy"
    assert store.collect(lambda: {kept.output}) > 0
    assert store.result("1" * 64) is not None
    assert store.digests() == [kept.output]
    assert gone.output != kept.output


def test_an_unusable_place_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "file" / "store")
    assert caught.value.reason == "store-unusable"


def test_a_lost_or_mangled_listing_is_made_again_from_the_tree(tmp_path: Path):
    store = Store(tmp_path)
    result = commit(store)
    listing = tmp_path / "trees" / f"{result.output}.json"
    whole, part = listing.read_bytes(), store.part_digest(result.output, "dir")
    for text in (None, b"", b"[[]]", whole.replace(b"hello", b"jello").replace(b"420", b"493"), b"\xff"):
        listing.unlink()
        if text is not None:
            listing.write_bytes(text)
        assert store.part_digest(result.output, "dir") == part
        assert listing.read_bytes() == whole
    listing.unlink()
    (store.tree(result.output) / "dir" / "file").write_text("jello")
    with pytest.raises(StoreError) as caught:
        store.part_digest(result.output, "dir")
    assert caught.value.reason == "store-damaged"


@pytest.mark.parametrize("output", ["", ".", "..", "../failed", 7, None])
def test_a_record_that_points_elsewhere_is_a_miss(tmp_path: Path, output: object):
    store = Store(tmp_path)
    result = commit(store)
    record = tmp_path / "actions" / ("k" * 64 + ".json")
    record.write_text(record.read_text().replace(json.dumps(result.output), json.dumps(output)))
    assert store.result("k" * 64) is None


def test_a_mangled_pointer_to_the_latest_result_is_none(tmp_path: Path):
    store = Store(tmp_path)
    commit(store)
    (tmp_path / "latest" / "demo").write_bytes(b"\xff\x00")
    assert store.latest("demo") is None
    store.touch_latest("demo", "k" * 64)
    assert store.latest("demo") is not None


def test_what_a_killed_build_left_is_removed_by_the_next_but_not_under_a_living_one(tmp_path: Path):
    store = Store(tmp_path)
    fill(store)
    with store.session():
        assert not list((tmp_path / "staging").iterdir())
        mine = fill(store)
        with Store(tmp_path).session():
            assert mine.exists()


def test_gc_decides_when_no_build_can_add_results_and_removes_what_is_of_no_use(tmp_path: Path):
    store = Store(tmp_path)
    result = commit(store)
    store.keep_failed(fill(store), "other")
    for left in ("trees/.x.json.1234", "actions/.y", "latest/.demo.12", "trees/" + "0" * 64 + ".json", "locks/k"):
        (tmp_path / left).write_text("")

    def choose() -> set[str]:
        with pytest.raises(BlockingIOError), (tmp_path / "locks" / "store").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return {result.output}

    assert store.collect(choose) == 0
    assert store.result("k" * 64) == result
    left = {str(path.relative_to(tmp_path)) for folder in tmp_path.iterdir() for path in folder.iterdir()}
    tree = f"trees/{result.output}"
    assert left == {tree, f"{tree}.json", f"actions/{'k' * 64}.json", "latest/demo", "locks/store"}


def test_gc_keeps_what_was_used_last(tmp_path: Path):
    store = Store(tmp_path)
    old, new = commit(store, "1" * 64, "a", "old"), commit(store, "2" * 64, "b", "new")
    for age, key in ((200, "1"), (100, "2")):
        record = tmp_path / "actions" / (key * 64 + ".json")
        os.utime(record, (record.stat().st_mtime - age,) * 2)
    assert kept_outputs(store, 1) == {new.output}
    store.touch_latest("old", "1" * 64)
    assert kept_outputs(store, 1) == {old.output}


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "disk-full"), (errno.EIO, "store-write")]
)
@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_fills_up_at_any_step_leaves_the_store_sound(tmp_path: Path, step: str, number: int, reason: str):
    def hook(name: str) -> None:
        if name == step:
            raise OSError(number, os.strerror(number))

    with pytest.raises(StoreError) as caught:
        commit(Store(tmp_path, hook))
    assert caught.value.reason == reason
    store = Store(tmp_path)
    assert all(store.damage(digest) is None for digest in store.digests())
    assert store.damage(commit(store).output) is None


def test_no_folder_to_build_in_is_an_error(tmp_path: Path):
    store = Store(tmp_path)
    (tmp_path / "staging").rmdir()
    (tmp_path / "staging").write_text("")
    with pytest.raises(StoreError) as caught:
        store.stage()
    assert caught.value.reason == "store-write"


def test_a_failed_attempt_that_cannot_be_kept_hides_no_error(tmp_path: Path):
    store = Store(tmp_path)
    (tmp_path / "failed").rmdir()
    assert store.keep_failed(fill(store), "demo") is None


def test_a_success_forgets_the_failure_before_it(tmp_path: Path):
    store = Store(tmp_path)
    kept = store.keep_failed(fill(store), "demo")
    assert kept is not None
    commit(store)
    assert not kept.exists()


def test_waiting_for_another_build_can_be_ended(tmp_path: Path):
    store = Store(tmp_path)

    def stop() -> None:
        raise InterruptedError

    with store.building("k", lambda: None), pytest.raises(InterruptedError):  # noqa: SIM117 - the inner one must fail
        with Store(tmp_path).building("k", lambda: None, stop):
            raise AssertionError


def as_nobody(action: Callable[[], None]) -> int:
    """Run `action` in a child without any rights over others' files; its exit status."""

    def work() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        action()

    return ended(forked(work))


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A folder of an ordinary user's; pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    yield folder
    remove_tree(folder)


def test_an_ordinary_user_can_remove_and_store_what_forbids_it(nobodys: Path):
    def work() -> None:
        store = Store(nobodys / "store")
        staged = fill(store)
        (staged / "build" / "secret" / "deep").mkdir(parents=True)
        (staged / "build" / "secret" / "deep" / "file").write_text("x")
        (staged / "build" / "secret" / "deep").chmod(0o555)
        (staged / "build" / "secret").chmod(0)
        (staged / "out").chmod(0o555)
        store.commit(staged, "demo", "k" * 64, {}, 0, EPOCH)
        assert not staged.exists()

    assert as_nobody(work) == 0


def test_a_hole_at_the_end_is_no_error_and_an_error_is_no_hole(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 4096)
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(1 << 20)
        assert data_ranges(file.fileno(), 1 << 20) == [(0, 4096)]
    read, write = os.pipe()
    with pytest.raises(OSError) as caught:
        data_ranges(read, 10)
    assert caught.value.errno == errno.ESPIPE
    os.close(read)
    os.close(write)
