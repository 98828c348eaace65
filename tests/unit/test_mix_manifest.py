"""The strict manifest reader: round trip, every refusal, and nothing but ArtifactError for any bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ArtifactError
from packages.mix.manifest import MAX_MANIFEST, Entry, Manifest, decode, open_artifact, path_problem, sort_key

HASH = "0" * 64


def manifest(*entries: Entry) -> Manifest:
    return Manifest("zlib", "1.3.1", "s", "Zlib", "", ("musl",), entries)


def document(**change):
    value = json.loads(manifest(Entry("usr", "dir", 0o755)).encode())
    value.update(change)
    return json.dumps(value).encode()


def row(**change):
    return {"path": "f", "type": "file", "mode": "0644", "uid": 0, "gid": 0, "size": 1, "sha256": HASH, **change}


def reason(data: bytes) -> str:
    with pytest.raises(ArtifactError) as caught:
        decode(data, "test")
    return caught.value.reason


def test_round_trip_is_canonical():
    original = manifest(
        Entry("usr", "dir", 0o755),
        Entry("usr/ä", "symlink", 0o777, target="../x"),
        Entry("usr/b", "file", 0o4755, 3, 4, 12, "a" * 64, xattrs={"security.capability": b"\x00\xff"}),
    )
    entries = tuple(sorted(original.files, key=lambda entry: sort_key(entry.path)))
    original = manifest(*entries)
    data = original.encode()
    assert decode(data, "test") == original
    assert decode(data, "test").encode() == data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "manifest-json"),
        (b"\xff\xfe", "manifest-json"),
        (b"[" * 100_000, "manifest-json"),
        (b'{"a":1,"a":2}', "manifest-json"),
        (b'{"format":NaN}', "manifest-json"),
        (b'{"format":1.0}', "manifest-json"),
        (b"[]", "manifest-schema"),
        (b" " * (MAX_MANIFEST + 1), "manifest-too-big"),
        (document(format=2), "manifest-format"),
        (document(format=True), "manifest-format"),
        (document(extra=1), "manifest-schema"),
        (document(name="../x"), "manifest-schema"),
        (document(version=""), "manifest-schema"),
        (document(summary="a\nb"), "manifest-schema"),
        (document(depends=["UPPER"]), "manifest-schema"),
        (document(files={}), "manifest-schema"),
        (document(files=["x"]), "manifest-schema"),
        (document(files=[row(type="fifo")]), "manifest-schema"),
        (document(files=[row(extra=1)]), "manifest-schema"),
        (document(files=[row(mode="755")]), "manifest-schema"),
        (document(files=[row(uid=True)]), "manifest-schema"),
        (document(files=[row(gid=65534)]), "manifest-schema"),
        (document(files=[row(size=-1)]), "manifest-schema"),
        (document(files=[row(sha256="X")]), "manifest-schema"),
        (document(files=[row(xattrs={"trusted.x": ""})]), "manifest-schema"),
        (document(files=[row(xattrs={"user.x": "!"})]), "manifest-schema"),
        (document(files=[row(path="/etc")]), "path-unsafe"),
        (document(files=[row(path="../etc")]), "path-unsafe"),
        (document(files=[row(path="a//b")]), "path-unsafe"),
        (document(files=[row(path="a\u0000b")]), "path-unsafe"),
        (document(files=[row(path="a\ud800")]), "path-unsafe"),
        (document(files=[row(path="a/b")]), "path-unsafe"),
        (document(files=[row(path=1)]), "path-unsafe"),
        (document(files=[row(), row()]), "manifest-order"),
        (document(files=[row(path="g"), row()]), "manifest-order"),
    ],
)
def test_refusals(data, expected):
    assert reason(data) == expected


def test_file_below_a_symbolic_link_is_refused():
    link = {"path": "lib", "type": "symlink", "mode": "0777", "uid": 0, "gid": 0, "target": "/etc"}
    assert reason(document(files=[link, row(path="lib/passwd")])) == "path-unsafe"
    link["target"] = ""
    assert reason(document(files=[link])) == "path-unsafe"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_give_an_artifact_error(data):
    with pytest.raises(ArtifactError):
        decode(data, "fuzz")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["file", "dir", "symlink", "0644"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*row(), "target", "xattrs"]), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(st.lists(JSON, max_size=4))
def test_any_files_are_read_or_refused(files):
    data = document(files=files)
    try:
        result = decode(data, "fuzz")
    except ArtifactError:
        return
    assert decode(result.encode(), "again") == result
    for entry in result.files:
        assert path_problem(entry.path) is None


@settings(deadline=None)
@given(st.text(max_size=60))
def test_accepted_paths_stay_inside(path):
    if path_problem(path) is None:
        assert not Path(path).is_absolute()
        assert ".." not in path.split("/")


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "files/usr").mkdir(parents=True)
    (tmp_path / "files/usr/a").write_bytes(b"x")
    (tmp_path / "files/usr/l").symlink_to("a")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    entries = (
        Entry("usr", "dir", 0o755),
        Entry("usr/a", "file", 0o644, size=1, sha256=digest),
        Entry("usr/l", "symlink", 0o777, target="a"),
    )
    (tmp_path / "manifest.json").write_bytes(manifest(*entries).encode())
    return tmp_path


def test_open_artifact(artifact):
    assert [entry.path for entry in open_artifact(artifact).manifest.files] == ["usr", "usr/a", "usr/l"]


def change(artifact: Path, what: str) -> None:
    target = artifact / "files/usr/a"
    if what == "content":
        target.write_bytes(b"y")
    elif what == "size":
        target.write_bytes(b"xx")
    elif what == "missing":
        target.unlink()
    elif what == "extra":
        (artifact / "files/b").write_bytes(b"")
    elif what == "swapped":
        target.unlink()
        target.symlink_to("/etc/passwd")
    elif what == "target":
        (artifact / "files/usr/l").unlink()
        (artifact / "files/usr/l").symlink_to("/etc")
    elif what == "no manifest":
        (artifact / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("content", "file-hash"),
        ("size", "file-hash"),
        ("missing", "file-missing"),
        ("extra", "file-extra"),
        ("swapped", "file-type"),
        ("target", "file-hash"),
        ("no manifest", "manifest-missing"),
    ],
)
def test_tree_that_differs_is_refused(artifact, what, expected):
    change(artifact, what)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(artifact)
    assert caught.value.reason == expected
