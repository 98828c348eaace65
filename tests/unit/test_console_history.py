"""The history file: private, bounded, without secrets, and never a reason to stop."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.client.console.history import LINES, MAX_BYTES, History


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".mixctl_history"


def test_lines_are_kept_for_the_next_session(path):
    first, second = History(path), History(path)
    first.add("status")
    second.add("service list")
    first.add("service list")
    assert History(path).lines == ["status", "service list", "service list"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "line",
    [
        "", "   ", " status", "vpn add-peer --psk abc", "agent key set --token x", "wifi join --passphrase=x",
        "x --password y", "llm API-KEY z", "vpn import --private-key k",
        "proxy set http://user:hush@proxy.example.org:3128",
    ],
)  # fmt: skip
def test_what_is_not_kept(path, line):
    history = History(path)
    history.add(line)
    assert history.lines == []
    assert not path.exists()


def test_a_repetition_is_kept_once(path):
    history = History(path)
    for _ in range(3):
        history.add("status")
    assert History(path).lines == ["status"]


def test_it_is_bounded_in_lines_and_bytes(path):
    history = History(path)
    for number in range(LINES + 5):
        history.add(f"ping {number}")
    assert len(history.lines) == LINES
    assert history.lines[-1] == f"ping {LINES + 4}"
    long = "x" * 8000
    for number in range(2 * MAX_BYTES // 8000):
        history.add(f"{number}{long}")
        assert path.stat().st_size <= MAX_BYTES + 9000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert History(path).lines[-1] == history.lines[-1]


def test_an_open_file_is_closed_to_others(path):
    path.write_text("old\n")
    path.chmod(0o644)
    History(path).add("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nowhere"])
def test_what_is_no_file_of_ours_is_left_alone(path, tmp_path, kind):
    target = tmp_path / "target"
    target.write_text("precious\n")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "missing" / "file"
    history = History(path)
    assert history.lines == []
    history.add("status")
    assert history.lines == ["status"]
    assert target.read_text() == "precious\n"


@given(st.binary(max_size=300))
def test_any_content_is_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("history") / "file"
    path.write_bytes(data)
    assert all(line.isprintable() and line for line in History(path).lines)


def test_only_the_end_of_a_huge_file_is_read(path):
    path.write_bytes(b"first\n" + b"y" * MAX_BYTES + b"\nlast\n")
    assert History(path).lines == ["last"]
