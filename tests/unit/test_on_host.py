"""The command line of `mixosd` on an ordinary host."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from buildsys.cli.main import cli
from daemon.core.worker.forks import Forks
from daemon.main import _folder
from daemon.mixosd import on_host


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("", None),
        ("--folder", None),
        ("--part config", None),
        ("--folder a", "a"),
        ("--folder=a --part config", "a"),
        ("--folder a --folder b", "b"),
    ],
)
def test_the_watchdog_writes_where_the_daemon_reads(words: str, folder: str | None):
    assert _folder(words.split()) == folder


def test_what_is_tried_can_be_confirmed_with_any_parts(tmp_path: Path):
    found = on_host(["--folder", str(tmp_path), "--part", "config"], Forks())
    assert {"change", "config"} <= set(found.parts.status())
    assert "service" not in found.parts.status()


@pytest.mark.parametrize(
    "words", [["--fold", "/tmp/x"], ["--folder", "/tmp/" + "x" * 120], ["--folder", ""], ["--part", "config"]]
)
def test_a_wrong_command_line(words: list[str]):
    with pytest.raises(SystemExit) as caught:
        on_host(words, Forks())
    assert caught.value.code == 2


def test_no_folder_is_not_the_current_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("buildsys.cli.daemon.open_session", None)
    assert CliRunner().invoke(cli, ["daemon", "--folder", ""]).exit_code == 2
