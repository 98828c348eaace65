"""What a build says of the image that it exports."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from buildsys import export
from buildsys.events import Note
from buildsys.project import Project
from buildsys.revision import Revision
from tests.hostpackages import ROOT

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMtidA45oOo6cjipaVn1Wa8X8fm6UFV/P7AnYhRpaHob"
KEYS = {
    "none": "",
    "one": f'[[settings.ssh.keys]]\nkey = "{KEY}"\n',
    "expired": f'[[settings.ssh.keys]]\nkey = "{KEY}"\nexpires = 2020-01-01\n',
}


@pytest.mark.parametrize("keys", KEYS)
def test_an_image_that_lets_nobody_in_is_told(tmp_path, monkeypatch, keys):
    config = tmp_path / "mixos.toml"
    config.write_text((ROOT / "mixos.toml").read_text() + KEYS[keys])
    events = []
    session = SimpleNamespace(project=Project.at(tmp_path, config), executor=SimpleNamespace(sink=events.append))
    monkeypatch.setattr(export, "_is_current", lambda *record: True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    export.export(session, dict.fromkeys(export.SHOWN, SimpleNamespace(output="")), Revision(None))
    assert [event.level for event in events if isinstance(event, Note)] == ["warning"] * (keys != "one")
