"""Keys: framed without ambiguity, stable, and sensitive to exactly what matters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildsys import key
from buildsys.digest import frame, matches, scan_tree, tree_digest
from buildsys.graph import Action, Call, Script

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def strict(value: object) -> object:
    """Python says True == 1; the framing must not."""
    if isinstance(value, dict):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list):
        return [strict(item) for item in value]
    return (type(value).__name__, value)


@given(VALUES, VALUES)
def test_frames_are_equal_only_for_equal_values(one: object, two: object):
    assert (frame(one) == frame(two)) == (strict(one) == strict(two))


def test_floats_have_no_place_in_keys():
    with pytest.raises(TypeError):
        frame({"a": 0.1})


def test_golden_key():
    """Drift here means that every store in the world misses: change it knowingly, with key.VERSION."""
    action = Action("demo", Script("echo hello >/out/x\n"), {}, {"A": "1"}, {"/lib/x": "/in/x"}, ("sh",))
    document = key.key_document(action, {"zlib": "0" * 64}, {"PATH": "/bin"}, {"sh": "1" * 64})
    assert key.action_key(document) == "11b33b08df11d4838609d0d33657476e1d01d37647f1c4ccb5ac2b111d4c6704"


def test_every_part_of_an_action_is_in_its_key():
    def keyed(**changes: object) -> str:
        action = replace(Action("demo", Script("true"), {}, tools=("sh",)), **changes)
        return key.action_key(key.key_document(action, {"in": "a"}, {"PATH": "/bin"}, {"sh": "1", "cc": "2"}))

    base = keyed()
    changed = [
        keyed(name="other"),
        keyed(run=Script("false")),
        keyed(run=Script("true", "kernel.payload")),
        keyed(run=Call("buildsys.worker:main")),
        keyed(run=Call("buildsys.worker:main", {"x": 1})),
        keyed(env={"A": "1"}),
        keyed(links={"/a": "b"}),
        keyed(tools=("cc",)),
    ]
    assert len({base, *changed}) == len(changed) + 1


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text(
        '"""Doc."""\nfrom image.two import f\n\n\ndef g():\n    """Doc."""\n    return f()\n'
    )
    (folder / "two.py").write_text("def f():\n    return 1\n")
    (folder / "three.py").write_text("x = 1\n")
    monkeypatch.setattr(key, "REPOSITORY", tmp_path)
    return folder


def code(module: str) -> dict[str, str]:
    key.implementation.cache_clear()
    key._normalised.cache_clear()
    return key.implementation(module)


def test_comments_layout_and_docstrings_do_not_rebuild(package: Path):
    before = code("image.one")
    (package / "one.py").write_text('"""Other."""\n# hm\nfrom image.two import f\n\ndef g():\n  return (f())\n')
    assert code("image.one") == before


def test_code_and_what_it_imports_does(package: Path):
    before = code("image.one")
    assert set(before) == {"image", "image.one", "image.two"}
    (package / "two.py").write_text("def f():\n    return 2\n")
    assert code("image.one") != before
    (package / "two.py").write_text("def f():\n    return 1\n")
    assert code("image.one") == before
    (package / "three.py").write_text("x = 2\n")
    assert code("image.one") == before


def test_an_action_runs_the_very_code_that_its_key_names(package: Path):
    before = code("image.one")
    (package / "two.py").write_text("def f():\n    return 2\n")  # edited while the build runs
    assert key.implementation("image.one") == before
    assert key.own_code("image.one")["image/two.py"] == b"def f():\n    return 1\n"


def test_why_names_the_leaf_that_differs():
    old = {"env": {"A": "1"}, "inputs": {"x": "aa"}}
    new = {"env": {"A": "2"}, "inputs": {"x": "aa", "y": "bb"}}
    assert key.differences(old, new) == ["env.A: 1 → 2", "inputs.y: absent → bb"]


def test_tree_digests_see_names_bytes_modes_and_links(tmp_path: Path):
    def digest() -> str:
        return tree_digest(scan_tree(tmp_path))

    file = tmp_path / "a"
    file.write_bytes(b"1")
    seen = {digest()}
    file.write_bytes(b"2")
    seen.add(digest())
    file.chmod(0o755)
    seen.add(digest())
    file.rename(tmp_path / "b")
    seen.add(digest())
    (tmp_path / "l").symlink_to("b")
    seen.add(digest())
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to("c")
    seen.add(digest())
    (tmp_path / "d").mkdir()
    seen.add(digest())
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("path", "pattern", "result"),
    [
        ("a/b.py", "*.py", False),
        ("b.py", "*.py", True),
        ("a/b/c.py", "**/*.py", True),
        ("c.py", "**/*.py", True),
        ("a/b", "a/**", True),
        ("ab/c", "a/**", False),
    ],
)
def test_globs(path: str, pattern: str, result: bool):
    assert matches(path, pattern) is result


# case: B2
def test_a_tool_is_its_file_and_the_libraries_that_compute(tmp_path, monkeypatch):
    names = {path.name.partition(".")[0] for path in key._libraries(key.find_tool("dpkg-deb").resolve())}
    assert "libzstd" in names
    assert not names & {"libc", "libm", "libpthread"}
    script, library = tmp_path / "tool", tmp_path / "lib.so"
    script.write_text("#!/bin/sh\n")
    assert key._libraries(script) == []
    monkeypatch.setattr(key, "find_tool", lambda name: script)
    monkeypatch.setattr(key, "_libraries", lambda program: [library])
    digests = set()
    for content in (b"one", b"two"):
        library.write_bytes(content)
        key.tool_digest.cache_clear()
        digests.add(key.tool_digest("tool"))
    key.tool_digest.cache_clear()
    assert len(digests) == 2


# case: B12
@pytest.mark.parametrize(
    "name",
    ["fstab~", "#fstab#", ".#fstab", ".fstab.swp", "fstab.orig", "fstab.rej", ".gitkeep", ".DS_Store", "Thumbs.db"],
)
def test_what_editors_leave_is_not_of_a_folder(tmp_path, name):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fstab").write_text("x")
    before = tree_digest(scan_tree(tmp_path, ("**",)))
    if name.startswith(".#"):
        (tmp_path / "etc" / name).symlink_to("me@host.1:2")
    else:
        (tmp_path / "etc" / name).write_text("y")
    assert tree_digest(scan_tree(tmp_path, ("**",))) == before
    assert name in {Path(entry.path).name for entry in scan_tree(tmp_path)}  # of a result everything counts
