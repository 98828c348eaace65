"""Preseed: applied as a whole or not at all, recorded only at the end, the same result when repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.settings.model import Settings
from common.settings.render import render
from daemon import preseed
from daemon.core.change import files


@pytest.fixture
def root(tmp_path):
    """A device's tree with an image's settings already rendered."""
    for folder in ("usr/lib/mixos", "run/mixos", "data/mixos", "boot", "etc"):
        (tmp_path / folder).mkdir(parents=True)
    defaults = Settings(hostname="image")
    (tmp_path / preseed.DEFAULTS).write_text(json.dumps(defaults.as_mapping()))
    for path, file in render(defaults).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(file.data)
        (tmp_path / path).chmod(file.mode)
    return tmp_path


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted((root / "etc").rglob("*")) if path.is_file()
    }


def apply(root: Path, text: str, record: str = "sum 1") -> int:
    (root / "boot/mixos-preseed.toml").write_text(text)
    return preseed.apply(root / "boot/mixos-preseed.toml", root / "data/mixos", record, root)


def result(root: Path) -> dict[str, object]:
    return json.loads((root / preseed.RESULT).read_text())


def test_applied(root, capsys):
    before = snapshot(root)
    assert apply(root, 'hostname = "field"\n') == 0
    after = snapshot(root)
    assert {path for path in after if after[path] != before[path]} == {"etc/hostname", "etc/hosts"}
    assert result(root)["changed"] == ["etc/hostname", "etc/hosts"]
    assert (root / "data/mixos/preseed.applied").read_text() == "sum 1\n"
    assert not (root / "etc/.preseed").exists()


def test_repeated_and_replaced(root):
    assert apply(root, 'hostname = "one"\ntimezone = "Asia/Tokyo"\n') == 0
    assert apply(root, 'hostname = "one"\ntimezone = "Asia/Tokyo"\n', "sum 2") == 0
    assert result(root)["changed"] == []
    assert apply(root, 'hostname = "two"\n') == 0  # what the new file leaves out is the image's again
    assert (root / "etc/timezone").read_text() == "UTC\n"


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ('hostname = "good"\nhostnam = "x"\n', 3, "settings-unknown-key"),
        ('hostname = "good"\n[network]\nmode = "static"\n', 3, "settings-value"),
        ('hostname = "good', 3, "settings-syntax"),
        ("#" * 70_000, 3, "settings-too-big"),
    ],
)
def test_malformed_changes_nothing(root, capsys, text, code, reason):
    before = snapshot(root)
    assert apply(root, text) == code
    assert snapshot(root) == before
    assert result(root)["reason"] == reason
    assert not (root / "data/mixos/preseed.applied").exists()
    assert "mixos-preseed.toml" in capsys.readouterr().err


@pytest.mark.parametrize("number", range(3))
def test_failure_while_staging_changes_nothing(root, monkeypatch, number):
    before, calls = snapshot(root), []
    real = files.write_durably

    def full(path, data, mode):
        calls.append(path)
        if len(calls) > number:
            raise OSError(28, "No space left on device")
        real(path, data, mode)

    monkeypatch.setattr(files, "write_durably", full)
    assert apply(root, 'hostname = "x"\ntimezone = "Asia/Tokyo"\n') == 1
    assert len(calls) == number + 1
    assert snapshot(root) == before
    assert result(root)["reason"] == "preseed-io"
    assert not (root / "data/mixos/preseed.applied").exists()


@pytest.mark.parametrize("number", range(4))
def test_cut_between_renames_is_finished_by_the_next_boot(root, monkeypatch, number):
    text, renames = 'hostname = "x"\ntimezone = "Asia/Tokyo"\n', []
    real = Path.rename

    def cut(self, target):
        renames.append(target)
        if len(renames) > number:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            apply(root, text)
    assert len(renames) == number + 1
    assert not (root / "data/mixos/preseed.applied").exists()
    assert apply(root, text) == 0
    assert (root / "etc/hostname").read_text() == "x\n"
    assert (root / "etc/timezone").read_text() == "Asia/Tokyo\n"


def test_usage(capsys):
    assert preseed.main([]) == 2
