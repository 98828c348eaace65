"""What a checkout is: asked of Git, for the record of a build and the gate of a release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from buildsys import export, revision
from buildsys.project import Project
from buildsys.revision import Revision
from buildsys.run import run
from common.errors import CheckError
from tests.hostpackages import ROOT


class Checkout:
    """A project in Git."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "mixos.toml").write_bytes((ROOT / "mixos.toml").read_bytes())
        (folder / "a.c").write_text("1")
        self.git("init", "-q")
        self.commit()

    @property
    def project(self) -> Project:
        return Project.at(self.folder)

    @property
    def now(self) -> Revision:
        return Revision.of(self.project)

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return run(["git", "-C", str(self.folder), *who, *words]).text

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD")

    def write(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("2")

    def refused(self, built: Revision, *others: Path) -> str:
        with pytest.raises(CheckError) as caught:
            revision.check(self.project, built, *others)
        return caught.value.reason


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    monkeypatch.delenv("MIXOS_OUT", raising=False)
    return Checkout(tmp_path / "a checkout [1]")


def test_a_commit_and_nothing_else(checkout):
    found = checkout.now
    assert found == Revision(checkout.git("rev-parse", "HEAD"))
    assert found.clean
    assert found.as_json() == {"commit": found.commit, "changes": (), "clean": True}


@pytest.mark.parametrize("name", ["a.c", "new.c", "kernel/fragments/x.config", "keys/device/root.json", "keys/tuf2"])
def test_what_could_be_in_the_image_counts(checkout, name):
    checkout.write(name)
    assert checkout.now.changes == (name,)


def test_removed_staged_and_many(checkout):
    (checkout.folder / "a.c").unlink()
    assert checkout.now.changes == ("a.c",)
    checkout.git("add", "-A")
    assert checkout.now.changes == ("a.c",)
    for number in range(9):
        checkout.write(f"n{number}")
    assert checkout.now.changes[-1] == "and 5 more"


def test_what_a_release_writes_does_not_count(checkout):
    for name in ("keys/tuf/7.targets.json", "keys/pending/8.targets.json", "out/manifest.json", "served/x.mixb"):
        checkout.write(name)
    assert Revision.of(checkout.project, checkout.folder / "served").clean
    assert checkout.now.changes == ("served/x.mixb",)


def test_a_configuration_that_is_in_no_commit(checkout, tmp_path):
    (tmp_path / "other.toml").write_bytes((ROOT / "mixos.toml").read_bytes())
    assert Revision.of(Project.at(checkout.folder, tmp_path / "other.toml")).changes == ("other.toml",)
    (checkout.folder / ".gitignore").write_text("local.toml\n")
    checkout.commit()
    (checkout.folder / "local.toml").write_bytes((ROOT / "mixos.toml").read_bytes())
    assert checkout.now.clean
    assert Revision.of(Project.at(checkout.folder, checkout.folder / "local.toml")).changes == ("local.toml",)


def test_no_checkout(checkout, tmp_path):
    (tmp_path / "plain").mkdir()
    found = Revision.of(Project.at(tmp_path / "plain", checkout.folder / "mixos.toml"))
    assert found == Revision(None)
    assert not found.clean
    assert checkout.refused(found) == "release-tree"


def test_the_gate(checkout):
    version = checkout.project.config.image.version
    built = checkout.now
    assert checkout.refused(built) == "release-tag"
    checkout.git("tag", "-a", "-m", "x", f"v{version}")
    revision.check(checkout.project, built)
    checkout.write("keys/tuf/1.targets.json")  # the release before this one, committed
    checkout.commit()
    revision.check(checkout.project, built)
    checkout.write("a.c")
    assert checkout.refused(built) == "release-tree"
    checkout.commit()
    assert checkout.refused(built) == "release-tree"
    assert checkout.refused(checkout.now) == "release-tag"
    assert checkout.refused(Revision("f" * 40)) == "release-tree"
    assert checkout.refused(Revision(built.commit, ("a.c",))) == "release-tree"


def test_what_a_checkout_configures_is_not_run(checkout, tmp_path):
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    script.chmod(0o755)
    checkout.git("config", "core.fsmonitor", str(script))
    assert checkout.now.clean
    assert not (tmp_path / "ran").exists()


def test_the_record_of_an_image_that_comes_from_another_commit(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"format": 1, "kernel": {}}))
    for one in (Revision("a" * 40, ("x",)), Revision("b" * 40)):
        export._note(path, one)
        assert json.loads(path.read_bytes())["revision"] == json.loads(json.dumps(one.as_json()))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    export._note(path, Revision("b" * 40))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
