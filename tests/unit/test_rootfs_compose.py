"""Root composition: conflicts, dependencies, the root manifest, and images with equal bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from buildsys.job import Job
from common.errors import CheckError
from packages.mix.artifact import Attribute, Metadata, write_artifact
from rootfs.compose import compose, read_root
from rootfs.pack import squash, write_tar

EPOCH = 1_700_000_000


def job(tmp_path: Path, name: str, inputs: dict[str, Path], jobs: int = 1, **params) -> Job:
    out, work = tmp_path / name, tmp_path / f"{name}-work"
    out.mkdir()
    work.mkdir()
    return Job(inputs, out, work, params, EPOCH, jobs)


def artifact(tmp_path: Path, name: str, files: dict[str, bytes | str | None], depends=(), attributes=()) -> Path:
    """An artifact: path → content, symbolic link target (text) or folder (None)."""
    tree, out = tmp_path / f"{name}-tree", tmp_path / f"pkg-{name}"
    tree.mkdir()
    out.mkdir()
    for path, content in files.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            target.mkdir(exist_ok=True)
        elif isinstance(content, str):
            target.symlink_to(content)
        else:
            target.write_bytes(content)
    write_artifact(tree, out, Metadata(name, "1", "s", "MIT", "", depends, (), attributes))
    return out


def composed(tmp_path, *artifacts: Path, name="root", **params) -> Path:
    inputs = {path.name: path for path in artifacts}
    work = job(tmp_path, name, inputs, packages=list(inputs), version="0.1.0", **params)
    compose(work)
    return work.out


def sample(tmp_path) -> Path:
    capability = Attribute("usr/bin/x", 0o755, xattrs={"security.capability": b"\x01\0\0\x02\xff\x80" + bytes(14)})
    return composed(
        tmp_path,
        artifact(tmp_path, "base", {"bin": "usr/bin", "usr/bin": None, "tmp": None, "home/u": None}, attributes=[
            Attribute("tmp", 0o1777), Attribute("home/u", 0o700, 1000, 1000)]),
        artifact(tmp_path, "tool", {"usr/bin/x": b"x" * 300_000}, ["base"], [capability]),
    )  # fmt: skip


def test_compose(tmp_path):
    root = sample(tmp_path)
    document = json.loads((root / "manifest.json").read_text())
    rows = {row["path"]: row for row in document["files"]}
    assert list(rows) == ["bin", "home", "home/u", "tmp", "usr", "usr/bin", "usr/bin/x"]
    assert rows["usr/bin/x"]["package"] == "tool"
    assert rows["usr/bin"]["package"] == "base"
    assert rows["tmp"]["mode"] == "1777"
    assert rows["home/u"]["uid"] == 1000
    assert [package["name"] for package in document["packages"]] == ["base", "tool"]
    assert document["epoch"] == EPOCH
    assert (root / "files/usr/bin/x").read_bytes() == b"x" * 300_000


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"usr/a": b"1"}, {"usr/a": b"1"}),
        ({"usr/a": b"1"}, {"usr/a/b": b"1"}),
        ({"usr/a": None}, {"usr/a": "b"}),
        ({"bin": "usr/bin"}, {"bin/x": b"1"}),
    ],
)
def test_conflict_names_both_packages(tmp_path, one, two):
    with pytest.raises(CheckError) as caught:
        composed(tmp_path, artifact(tmp_path, "one", one), artifact(tmp_path, "two", two))
    assert caught.value.reason == "file-conflict"
    assert "one (" in caught.value.message
    assert "two (" in caught.value.message


def test_folders_must_agree(tmp_path):
    one = artifact(tmp_path, "one", {"usr/a": None})
    two = artifact(tmp_path, "two", {"usr/a/b": b""}, attributes=[Attribute("usr/a", 0o700)])
    with pytest.raises(CheckError) as caught:
        composed(tmp_path, one, two)
    assert caught.value.reason == "file-conflict"


def test_dependencies(tmp_path):
    with pytest.raises(CheckError) as caught:
        composed(tmp_path, artifact(tmp_path, "one", {"a": b""}, ["gone"]))
    assert caught.value.reason == "package-missing"
    one = tmp_path / "pkg-one"
    again = tmp_path / "again"
    shutil.copytree(one, again)
    with pytest.raises(CheckError) as caught:
        composed(tmp_path, one, again, name="root2")
    assert caught.value.reason == "package-twice"


def test_damaged_artifact_is_refused(tmp_path):
    one = artifact(tmp_path, "one", {"a": b"1"})
    (one / "files/a").write_bytes(b"2")
    with pytest.raises(CheckError) as caught:
        composed(tmp_path, one)
    assert caught.value.reason == "file-hash"


def test_elf_rules_hold_for_the_image(tmp_path):
    one = artifact(tmp_path, "one", {"a": b"\x7fELF"})
    with pytest.raises(CheckError) as caught:
        composed(tmp_path, one)
    assert caught.value.reason == "elf-rules"
    composed(tmp_path, one, name="waived", elf={"waivers": [{"path": "a", "problem": "damaged", "reason": "test"}]})


def test_tar_carries_what_the_manifest_says(tmp_path):
    root = sample(tmp_path)
    write_tar(read_root(root), tmp_path / "t.tar", EPOCH)
    with tarfile.open(tmp_path / "t.tar") as tar:
        members = {member.name: member for member in tar}
    assert (members["home/u"].uid, members["home/u"].mode) == (1000, 0o700)
    value = members["usr/bin/x"].pax_headers["SCHILY.xattr.security.capability"]
    assert value.encode("utf-8", "surrogateescape")[:6] == b"\x01\0\0\x02\xff\x80"
    assert {member.mtime for member in members.values()} == {EPOCH}


@pytest.mark.integration
def test_image_bytes_do_not_depend_on_threads_or_place(tmp_path):
    digests = set()
    for number, jobs in enumerate((1, 2, 5)):
        place = tmp_path / f"place{number}"
        place.mkdir()
        work = job(place, "image", {"root": sample(place)}, jobs, filesystem="squashfs")
        squash(work)
        digests.add(hashlib.sha256((work.out / "root.squashfs").read_bytes()).hexdigest())
    assert len(digests) == 1
    assert (work.out / "root.squashfs").stat().st_size % 4096 == 0


@pytest.mark.integration
def test_limit_and_unknown_format(tmp_path):
    root = sample(tmp_path)
    with pytest.raises(CheckError) as caught:
        squash(job(tmp_path, "a", {"root": root}, limit=10))
    assert caught.value.reason == "image-too-big"
    with pytest.raises(CheckError) as caught:
        squash(job(tmp_path, "b", {"root": root}, filesystem="ext2"))
    assert caught.value.reason == "filesystem-unknown"
    with pytest.raises(CheckError) as caught:
        squash(job(tmp_path, "c", {"root": root}, filesystem="erofs"))
    assert caught.value.reason == "erofs-ownership"


@pytest.mark.integration
def test_erofs(tmp_path):
    root = composed(tmp_path, artifact(tmp_path, "one", {"usr/a": b"1" * 100_000}))
    images = []
    for name in ("a", "b"):
        work = job(tmp_path, name, {"root": root}, filesystem="erofs", seed="0.1.0")
        squash(work)
        images.append((work.out / "root.erofs").read_bytes())
    assert images[0] == images[1]
    assert images[0][1024:1028] == b"\xe2\xe1\xf5\xe0"  # EROFS_SUPER_MAGIC_V1
