"""Crashes of mixosd are counted; ends that it was told to are not."""

from __future__ import annotations

from daemon.core import crashes


def test_only_what_nobody_asked_for_counts(tmp_path):
    note = tmp_path / "mixosd.ended"
    assert crashes.begin(tmp_path, note) == (0, None)
    crashes.end(tmp_path)
    assert crashes.begin(tmp_path, note) == (0, None)
    found = crashes.begin(tmp_path, note)
    assert found.number == 1
    note.write_text("hung for 60 s\n")
    assert crashes.begin(tmp_path, note) == (2, "hung for 60 s")
    assert not note.exists()
    crashes.end(tmp_path)
    assert crashes.begin(tmp_path, note) == crashes.read(tmp_path) == (2, "hung for 60 s")


def test_a_damaged_count_is_none(tmp_path):
    for text in ("", "{", "[1]", "null", "[[], 1]"):
        (tmp_path / "mixosd.crashes").write_text(text)
        assert crashes.read(tmp_path) == (0, None)
