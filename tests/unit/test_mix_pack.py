"""Making artifacts: exclusion, attributes, normalised modes, refusals, equal bytes for equal trees."""

from __future__ import annotations

import base64
import os

import pytest

from buildsys.job import Job
from common.errors import CheckError
from packages.mix.artifact import glob_pattern, open_artifact, pack

META = {"name": "demo", "version": "1", "summary": "s", "license": "MIT", "homepage": ""}


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "dest"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/include/deep").mkdir(parents=True)
    (root / "usr/lib").mkdir()
    (root / "var/empty").mkdir(parents=True)
    (root / "usr/bin/x").write_bytes(b"program")
    (root / "usr/bin/x").chmod(0o700)
    (root / "usr/include/deep/a.h").write_bytes(b"")
    (root / "usr/lib/liba.a").write_bytes(b"")
    (root / "usr/lib/liba.so").symlink_to("liba.so.1")
    return root


def run(tmp_path, tree, folder="out", **params):
    out, work = tmp_path / folder, tmp_path / f"{folder}-work"
    out.mkdir()
    work.mkdir()
    pack(Job({"build": tree}, out, work, {**META, **params}, 0, 1))
    return out


def test_pack(tmp_path, tree):
    attribute = {"path": "usr/bin/x", "mode": "4711", "owner": 3, "group": 4, "xattrs": {"user.x": "AP8="}}
    out = run(tmp_path, tree, exclude=["usr/include/**", "usr/lib/*.a"], attributes=[attribute])
    artifact = open_artifact(out)
    entries = {entry.path: entry for entry in artifact.manifest.files}
    assert list(entries) == ["usr", "usr/bin", "usr/bin/x", "usr/lib", "usr/lib/liba.so", "var", "var/empty"]
    program = entries["usr/bin/x"]
    assert (program.mode, program.uid, program.gid) == (0o4711, 3, 4)
    assert program.xattrs == {"user.x": base64.b64decode("AP8=")}
    assert entries["usr/lib/liba.so"].target == "liba.so.1"
    assert artifact.source(program).stat().st_mode & 0o7777 == 0o755


def test_modes_do_not_depend_on_the_umask(tmp_path, tree):
    first = run(tmp_path, tree, "one")
    (tree / "usr/bin/x").chmod(0o755)
    (tree / "usr").chmod(0o700)
    second = run(tmp_path, tree, "two")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("prepare", "params", "expected"),
    [
        (lambda tree: (tree / "usr/bin/x").chmod(0o4755), {}, "mode-undeclared"),
        (lambda tree: os.mkfifo(tree / "pipe"), {}, "file-special"),
        (lambda tree: (tree / "a\nb").write_bytes(b""), {}, "path-unsafe"),
        (lambda tree: None, {"attributes": [{"path": "usr/bin/y", "mode": "0755"}]}, "attribute-unmatched"),
        (lambda tree: None, {"exclude": ["**"]}, "package-empty"),
        (lambda tree: None, {"name": "Not A Name"}, "manifest-schema"),
    ],
)
def test_refusals(tmp_path, tree, prepare, params, expected):
    prepare(tree)
    with pytest.raises(CheckError) as caught:
        run(tmp_path, tree, **params)
    assert caught.value.reason == expected


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("usr/lib/*.a", "usr/lib/x.a", True),
        ("usr/lib/*.a", "usr/lib/y/x.a", False),
        ("usr/include/**", "usr/include/a/b.h", True),
        ("usr/include/**", "usr/include", False),
        ("**/*.pyc", "a/b/c.pyc", True),
        ("**/*.pyc", "c.pyc", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("lib[ab].so", "liba.so", True),
        ("lib[!ab].so", "liba.so", False),
        ("a.b", "axb", False),
    ],
)
def test_globs(glob, path, matches):
    assert bool(glob_pattern(glob).fullmatch(path)) is matches
