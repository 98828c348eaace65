"""The rescue entry's initramfs: which files and modules it has, the archive, and the image around it."""

import json
import random
import stat
import sys
from pathlib import Path

import pytest
from backports import zstd

from buildsys.job import Job
from buildsys.run import run
from common.bundle import frames, windows
from common.bundle import plan as planning
from common.efi import entries, uki
from common.errors import CheckError
from image import assemble
from kernel import payload
from packages.mix.manifest import Entry
from rootfs import modules, rescue
from rootfs.compose import RootFile
from rootfs.cpio import write_cpio
from tests.images import ROOT, Bench

EPOCH = 1703030400


def folder(base, files):
    for path, text in files.items():
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(text)
    return base


def found(base, files, programs, always=(), without=()):
    """What `modules.main` prints for a library with these files."""
    root = folder(base, {f"usr/lib/python3.13/{path}": text for path, text in files.items()})
    question = {"programs": programs, "always": list(always), "without": list(without)}
    argv = [sys.executable, modules.__file__, str(root)]
    done = run(argv, stdin=json.dumps(question).encode())
    return {path.removeprefix("usr/lib/python3.13/") for path in json.loads(done.stdout)}


# --- modules ----------------------------------------------------------------------------------------------------------


def test_imports_are_followed_into_functions_and_packages(tmp_path):
    files = {
        "a/__init__.py": "",
        "a/b.py": "from . import c\nfrom .d import thing\n",
        "a/c.py": "def later():\n    import lazy\n",
        "a/d/__init__.py": "thing = 1\nfrom .. import e\n",
        "a/e.py": "",
        "a/unused.py": "",
        "lazy.py": "import nowhere\n",
        "other.py": "",
    }
    wanted = {"a/__init__.py", "a/b.py", "a/c.py", "a/d/__init__.py", "a/e.py", "lazy.py"}
    assert found(tmp_path, files, ["from a import b"]) == wanted


def test_what_is_only_for_types_is_not_needed(tmp_path):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import heavy\nelse:\n    import light\n"
    assert found(tmp_path, {"heavy.py": "", "light.py": ""}, [text]) == {"light.py"}


def test_packages_of_others_are_whole_without_what_is_left_out(tmp_path):
    files = {
        "site-packages/p/__init__.py": "",
        "site-packages/p/fast.cpython-313-x86_64-linux-musl.so": "",
        "site-packages/p/hidden.py": "import needed\n",
        "site-packages/p/old/__init__.py": "import unwanted\n",
        "site-packages/q.py": "",
        "lib-dynload/_quick.cpython-313-x86_64-linux-musl.so": "",
        "needed.py": "import _quick\n",
        "unwanted.py": "",
    }
    assert found(tmp_path, files, ["import p"], ["q"], ["p.old"]) == {
        "site-packages/p/__init__.py",
        "site-packages/p/fast.cpython-313-x86_64-linux-musl.so",
        "site-packages/p/hidden.py",
        "site-packages/q.py",
        "lib-dynload/_quick.cpython-313-x86_64-linux-musl.so",
        "needed.py",
    }


# --- the archive ------------------------------------------------------------------------------------------------------


def some_files(base):
    (base / "program").write_bytes(b"#!/bin/sh\n")
    return [
        RootFile(Entry("etc", "dir", 0o755), "", base),
        RootFile(Entry("etc/secret", "file", 0o600, 5, 6, size=10), "", base / "program"),
        RootFile(Entry("init", "symlink", 0o777, target="etc/secret"), "", base),
    ]


def test_the_archive_is_read_by_another_program(tmp_path):
    archive = b"".join(write_cpio(some_files(tmp_path), EPOCH))
    out = tmp_path / "out"
    out.mkdir()
    run(["cpio", "--extract", "--quiet", "--preserve-modification-time"], stdin=archive, cwd=out)
    info = (out / "etc/secret").lstat()
    assert (stat.S_IMODE(info.st_mode), int(info.st_mtime)) == (0o600, EPOCH)
    assert (out / "init").readlink() == Path("etc/secret")
    assert (out / "etc/secret").read_bytes() == b"#!/bin/sh\n"
    assert run(["cpio", "-tvn", "--quiet"], stdin=archive).text.splitlines()[1].split()[2:4] == ["5", "6"]


def test_the_archive_is_the_same_each_time(tmp_path):
    assert len({b"".join(write_cpio(some_files(tmp_path), EPOCH)) for _ in range(3)}) == 1


def test_attributes_have_no_place(tmp_path):
    file = RootFile(Entry("a", "file", 0o755, size=10, xattrs={"security.capability": b"1"}), "", tmp_path)
    with pytest.raises(CheckError) as caught:
        b"".join(write_cpio([file], EPOCH))
    assert caught.value.reason == "cpio-attributes"


def test_what_changes_in_a_file_changes_one_frame(tmp_path):
    """A file that grows, and one that is larger than a frame that a delta unpacks."""

    def packed(word):
        files = []
        for number in range(200):
            path = tmp_path / f"file{number}"
            path.write_bytes((f"content of {number}. " * 800 + (word if number == 77 else "")).encode())
            files.append(RootFile(Entry(path.name, "file", 0o644, size=path.stat().st_size), "", path))
        large = tmp_path / "large"
        large.write_bytes(random.Random(1).randbytes(payload.FRAME))
        files.append(RootFile(Entry("large", "file", 0o644, size=payload.FRAME), "", large))
        return list(rescue.pack(files, EPOCH))

    old, new = packed(""), packed("a new word " * 3000)
    assert len(old) > 4
    assert len(set(new) - set(old)) <= 3
    names = []
    for frame in old:
        archive = zstd.decompress(frame)
        names += run(["cpio", "-t", "--quiet"], stdin=archive).text.split()
        assert len(archive) <= payload.FRAME or names[-1] == "large"
        assert [run.plain for run in frames.runs(frame)] == [archive if names[-1] != "large" else None]
        assert names[-1] == "large" or frame == frames.pack(archive, payload.LEVEL)
    assert names == [*(f"file{number}" for number in range(200)), "large"]
    source, target = b"".join(old), b"".join(new)
    plan = planning.make_plan(planning.parse(target), source, planning.Payload())
    assert windows.read_plan(plan).transfer < 2000


# --- the entry --------------------------------------------------------------------------------------------------------


def test_globs_have_alternatives():
    assert list(rescue._alternatives("a{b,c}d{e,f}")) == ["abde", "abdf", "acde", "acdf"]


def test_the_entry_is_a_version_of_its_own_kind(tmp_path):
    bench = Bench(tmp_path, ROOT, cmdline="mixos.rescue=menu")
    archive = tmp_path / "initramfs"
    archive.mkdir()
    packed = zstd.compress(b"".join(write_cpio(some_files(tmp_path), EPOCH)))
    (archive / rescue.FILE).write_bytes(packed)
    bench.inputs["initramfs"] = archive
    out = tmp_path / "out"
    out.mkdir()
    assemble.rescue(Job(bench.inputs, out, tmp_path, bench.params, epoch=EPOCH, jobs=1))
    image = (out / "rescue.efi").read_bytes()
    read = uki.read_uki(image)
    assert read.identity("IMAGE_ID") == entries.RESCUE_SORT_KEY
    assert read.cmdline == "panic=10 oops=panic slab_nomerge pti=on mixos.rescue=menu"
    assert read.root_hash is None
    assert uki.pe.parse(image).content(image, ".initrd") == packed


def test_it_is_started_behind_all_that_is_not_bad():
    kinds = [
        entries.Entry("x", 0, 3, version="9"),
        entries.Entry("rescue", None, 0, entries.RESCUE_SORT_KEY, "9"),
        entries.Entry("y", 1, 2, version="1"),
        entries.Entry("z", 4, 0, version="2"),
    ]
    assert [one.stem for one in entries.in_order(kinds)] == ["z", "y", "rescue", "x"]
