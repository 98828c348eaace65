"""The store survives being killed at every step, damage, and two builders at once."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from buildsys.errors import StoreError
from buildsys.store import Store

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
    child = os.fork()
    if child == 0:

        def hook(name: str) -> None:
            if name == step:
                reached.write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)

        commit(Store(tmp_path / "store", hook))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
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
        Store(tmp_path).collect(set())
    assert caught.value.reason == "store-busy"
    assert store.collect({kept.output}) > 0
    assert store.result("1" * 64) is not None
    assert store.digests() == [kept.output]
    assert gone.output != kept.output


def test_an_unusable_place_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "file" / "store")
    assert caught.value.reason == "store-unusable"
