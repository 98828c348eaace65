"""Whatever goes wrong, `mixos` ends with a message or one JSON object and the exit code of its class."""

from __future__ import annotations

import errno
import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from buildsys.cli import main as entry
from buildsys.cli.context import emit, progress
from buildsys.events import BuildPlanned, Note
from buildsys.files import atomic_write
from common.errors import BuildError

Ended = Callable[..., tuple[int, str]]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Ended]:
    """Runs main() with a verb that raises; the exit status and standard output."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(error: BaseException, *words: str) -> tuple[int, str]:
        def fail(**_: object) -> None:
            raise error

        monkeypatch.setattr(entry.cli, "main", fail)
        monkeypatch.setattr("sys.argv", ["mixos", *words])
        with pytest.raises(SystemExit) as caught:
            entry.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().out

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (BuildError("x", reason="action-failed"), 5, "action-failed"),
        (OSError(errno.ENOSPC, "full", "/x"), 6, "disk-full"),
        (PermissionError(errno.EACCES, "no", "/x"), 6, "host-io"),
        (click.UsageError("what?"), 2, "usage"),
    ],
)
def test_every_error_is_one_json_object(ended: Ended, error: Exception, status: int, reason: str):
    code, out = ended(error, "build", "--json")
    assert code == status
    assert json.loads(out)["reason"] == reason
    assert json.loads(out)["exit_code"] == status
    assert ended(error, "build") == (status, "")


def test_the_terminal_does_not_obey_what_a_build_said(
    ended: Ended, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    said = "\x1b]0;title\x07\x1b[2J\x9b\r"
    monkeypatch.setattr("sys.stderr", stderr := io.StringIO())
    ended(BuildError(f"x failed; the end of its log:\n{said}", reason="action-failed", hint=said), "build")
    with progress(False) as sink:
        sink(Note("warning", said))
    emit({}, False, said)
    shown = stderr.getvalue() + capsys.readouterr().out
    assert shown.count("\\x1b[2J") == 4
    assert not set(shown) & set("\x1b\x07\x9b\r")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_has_its_own_status(ended: Ended, error: BaseException):
    assert ended(error, "build", "--json") == (130, "")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(**_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(entry.cli, "main", fail)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError):
        entry.main()
    signal.signal(signal.SIGTERM, handler)


def test_a_json_stream_has_objects_only_and_the_terminal_stays_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(True, tmp_path / "out" / "build.log") as sink:
        sink(BuildPlanned(3))
    shown = capsys.readouterr()
    assert [json.loads(line)["event"] for line in shown.out.splitlines()] == ["BuildPlanned"]
    assert shown.err == ""
    assert json.loads((tmp_path / "out" / "build.log").read_text())["actions"] == 3


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("buildsys.files.os.write", full)
    with pytest.raises(OSError, match="timestamp") as caught:
        atomic_write(tmp_path / "timestamp.json", b"{}")
    assert caught.value.filename == str(tmp_path / "timestamp.json")
    assert not list(tmp_path.iterdir())
