"""Root composition: conflicts, dependencies, the root manifest, and images with equal bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from buildsys.job import Job
from common.errors import CheckError
from packages.mix.artifact import Attribute, Metadata, write_artifact
from packages.mix.manifest import Entry
from rootfs import pack
from rootfs.compose import compose, read_root
from rootfs.pack import compare, squash
from rootfs.squashfs import read_squashfs

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


ODD_LINKS = {
    "b": "../../share/c/é.crt",
    "absolute": "/usr/share/é",
    "dotted": "./é",
    "long": "../" * 40 + "x",
    "long-absolute": "/" + "y" * 300,
    "plain": "../../share/c/e.crt",
    "an -> arrow": "a -> b",
}


def odd_root(tmp_path) -> Path:
    """Links, names, sizes and attributes on which readers of archives differ."""
    tool = Attribute("usr/bin/t", 0o4755, 3, 4, {"security.capability": bytes(range(20)), "user.empty": b""})
    again = Attribute("usr/bin/u", xattrs={"security.capability": bytes(range(20)), "user.long": b"\xff=\n" * 90})
    deep = "/".join(["d" * 200, "é" * 60, "x" * 120])
    files: dict[str, bytes | str | None] = {
        "usr/lib/c": None,
        **{f"usr/lib/c/{name}": target for name, target in ODD_LINKS.items()},
        **{f"usr/share/many/{number:04}": b"%d" % number for number in range(700)},
        "usr/bin/t": b"t" * 131072 + b"tail",
        "usr/bin/u": hashlib.shake_256(b"u").digest(300_000),
        "usr/share/empty": b"",
        "usr/share/zeros": bytes(400_000),
        "usr/share/zeros-again": bytes(400_000),
        f"usr/{deep}": b"deep",
        f"usr/{deep}-link": "../" + deep,
    }
    return composed(tmp_path, artifact(tmp_path, "odd", files, (), [tool, again]))


# case: B2
@pytest.mark.integration
def test_the_image_is_what_the_manifest_says(tmp_path):
    root = odd_root(tmp_path)
    work = job(tmp_path, "image", {"root": root})
    squash(work)
    found = read_squashfs(work.out / "root.squashfs", work.work)
    assert {name: found[f"usr/lib/c/{name}"].target for name in ODD_LINKS} == ODD_LINKS
    assert found.pop("") == Entry("", "dir", 0o755)
    assert found == {file.entry.path: file.entry for file in read_root(root)}


@pytest.mark.integration
def test_a_folder_of_more_names_than_a_short_inode_holds(tmp_path):
    names = {f"usr/{'n' * 40}{number:05}": b"%d" % (number % 7) for number in range(3000)}
    root = composed(tmp_path, artifact(tmp_path, "one", {**names, "usr/sub/a": b"1", "usr/n": "x"}))
    work = job(tmp_path, "image", {"root": root})
    squash(work)  # compares
    found = read_squashfs(work.out / "root.squashfs", work.work)
    assert len(found) == 3000 + 5  # with /, usr, sub, a, n


# case: B2
@pytest.mark.integration
@pytest.mark.parametrize("filesystem", ["squashfs", "erofs"])
def test_an_image_that_differs_is_refused(tmp_path, monkeypatch, filesystem):
    """What makes the image is handed another tree than the manifest's."""
    root = composed(tmp_path, artifact(tmp_path, "one", {"usr/a": b"1" * 100_000, "usr/l": "../a", "usr/d": None}))
    changes = [{"mode": 0o700}, {"target": "a"}, {"path": "usr/b"}]
    real = read_root(root)
    for number, change in enumerate(changes):
        kind = "symlink" if "target" in change else "file"
        other = [
            dataclasses.replace(
                file, entry=dataclasses.replace(file.entry, **(change if file.entry.type == kind else {}))
            )
            for file in real
        ]
        made = job(tmp_path, f"image{number}", {"root": root}, filesystem=filesystem)
        monkeypatch.setattr(f"rootfs.pack._{filesystem}", swapped(filesystem, other))
        with pytest.raises(CheckError) as caught:
            squash(made)
        monkeypatch.undo()
        assert caught.value.reason == "image-differs"
    squash(job(tmp_path, "good", {"root": root}, filesystem=filesystem))


def swapped(filesystem, files):
    """The maker of an image, given other files than its caller says."""
    real = getattr(pack, f"_{filesystem}")
    return lambda job, _, image: real(job, files, image)


@pytest.mark.parametrize(
    "change",
    [{"uid": 1}, {"gid": 1}, {"mode": 0o4755}, {"size": 2}, {"sha256": "0" * 64}, {"xattrs": {"user.x": b""}}, None],
)
def test_every_difference_counts(tmp_path, change):
    (file, *_) = read_root(composed(tmp_path, artifact(tmp_path, "one", {"a": b"1"})))
    found = {"": Entry("", "dir", 0o755), "a": file.entry}
    compare([file], found)
    other = {"": found[""]} if change is None else {**found, "a": dataclasses.replace(file.entry, **change)}
    for manifest, image in ((found, other), (other, found)):
        rows = [dataclasses.replace(file, entry=entry) for path, entry in manifest.items() if path]
        with pytest.raises(CheckError) as caught:
            compare(rows, image)
        assert caught.value.reason == "image-differs"


@pytest.mark.integration
def test_a_damaged_image_is_an_error_of_its_own(tmp_path):
    work = job(tmp_path, "image", {"root": odd_root(tmp_path)})
    squash(work)
    image = work.out / "root.squashfs"
    whole = image.read_bytes()
    for at in (0, 12, 20, 48, 64, 72, 80):
        image.write_bytes(whole[:at] + b"\xfe\xff\xff\x7f" + whole[at + 4 :])
        with pytest.raises(CheckError) as caught:
            read_squashfs(image, work.work)
        assert caught.value.reason == "image-unreadable"
