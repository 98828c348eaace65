"""Choosing and reading kernel sources, unpacking them, and the configure action on a tiny stand-in for a kernel."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernel
from buildsys.job import Job
from buildsys.lock import load_lock
from buildsys.run import CommandError, run
from common.errors import CheckError, ConfigError
from kernel.config import MAKE_VARIABLES, configure
from kernel.patches import read_series, stage
from kernel.source import FALLBACKS, OLDEST, PINNED, Selection, parse_makefile, parse_selection, source_version
from kernel.version import Version

KERNEL = Path(kernel.__file__).parent
UNPACK = KERNEL / "unpack.sh"

# `allnoconfig` of this kernel grants what is asked, except what LOSE names; that is all the action needs to see.
MAKEFILE = """\
VERSION = {version[0]}
PATCHLEVEL = {version[1]}
SUBLEVEL = {version[2]}
EXTRAVERSION =
LOSE = NOTHING
allnoconfig:
\tgrep -v 'CONFIG_$(LOSE)[= ]' $(KCONFIG_ALLCONFIG) > $(O)/.config
\techo 'CONFIG_CC_VERSION_TEXT="cc 1"' >> $(O)/.config
\techo 'CONFIG_THREAD_INFO_IN_TASK=y' >> $(O)/.config
olddefconfig:
\t$(SETTLE)
"""


def tree(place: Path, version: tuple[int, int, int] = (6, 6, 8), lose: str = "NOTHING", settle: str = "true") -> Path:
    text = MAKEFILE.format(version=version).replace("LOSE = NOTHING", f"LOSE = {lose}").replace("$(SETTLE)", settle)
    for name, content in {
        "Makefile": text,
        "Kconfig": "".join(f"config {symbol}\n" for symbol in (KERNEL / "symbols-6.6-x86.txt").read_text().split("\n")),
        "drivers/net/tiny.c": "int tiny;\n",
        "drivers/net/Kconfig": "config TINY\n",
        "scripts/kconfig/conf.c": "int main(void) { return 0; }\n",
        "tools/Makefile": "VERSION = 9\n",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    return place


def tarball(source: Path, target: Path, top: str = "linux-6.6.8") -> Path:
    with tarfile.open(target, "w:xz") as archive:
        archive.add(source / "drivers", f"{top}/drivers")
        archive.add(source, top)
    return target


def deb(inner: Path, target: Path, member: str = "usr/src/linux-source-6.6.tar.xz") -> Path:
    """A Debian package as deb(5) has it: an ar archive of debian-binary, control.tar.xz and data.tar.xz."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        archive.add(inner, f"./{member}")
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w:xz"):
        pass
    with target.open("wb") as out:
        out.write(b"!<arch>\n")
        members = {"debian-binary": b"2.0\n", "control.tar.xz": control.getvalue(), "data.tar.xz": data.getvalue()}
        for name, content in members.items():
            out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            out.write(content + b"\n" * (len(content) % 2))
    return target


def test_the_pin_and_the_fallbacks():
    assert str(PINNED) == "6.6.8"
    assert PINNED > OLDEST
    assert FALLBACKS == ("linux-source-6.12",)
    assert all(Version.parse(package.removeprefix("linux-source-")) >= OLDEST for package in FALLBACKS)
    locked = load_lock(KERNEL.parent / "sources.lock")["linux-fallback"]
    assert locked.file.startswith(f"{FALLBACKS[0]}_{locked.version}_")


def test_selections(tmp_path: Path):
    assert parse_selection("auto", tmp_path) == Selection("auto")
    assert parse_selection("auto", tmp_path).may_fall_back
    assert not parse_selection("pinned", tmp_path).may_fall_back
    (tmp_path / "linux").mkdir()
    assert parse_selection("linux", tmp_path) == Selection("path", tmp_path / "linux")
    (tmp_path / "loop").symlink_to("loop")
    for wrong in ("", "pined", "missing.tar.xz", "~nobody-of-that-name/linux", "loop", "a\0b"):
        with pytest.raises(ConfigError) as caught:
            parse_selection(wrong, tmp_path)
        assert caught.value.reason == "kernel-source"


@given(st.tuples(*[st.integers(0, 9999)] * 3))
def test_the_makefile_gives_the_version(version: tuple[int, int, int]):
    assert parse_makefile(MAKEFILE.format(version=version), "w") == Version(*version)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "VERSION = 6\nPATCHLEVEL = 6\n",
        "VERSION = x\nPATCHLEVEL = 6\nSUBLEVEL = 8\n",
        "VERSION = 6\nPATCHLEVEL = 6\nSUBLEVEL = " + "8" * 5000,
    ],
)
def test_a_makefile_of_something_else(text: str):
    with pytest.raises(ConfigError) as caught:
        parse_makefile(text, "w")
    assert caught.value.reason == "kernel-source"


def test_the_version_of_every_form_of_source(tmp_path: Path):
    source = tree(tmp_path / "t", (6, 7, 1))
    archive = tarball(source, tmp_path / "linux.tar.xz")
    for form in (source, archive, deb(archive, tmp_path / "linux-source.deb")):
        assert source_version(form) == Version(6, 7, 1)


def test_forms_that_other_distributions_and_people_give_it(tmp_path: Path):
    source = tree(tmp_path / "t", (6, 8, 12))
    (source / "z").mkdir()  # behind the Makefile, and with one of its own
    (source / "z/Makefile").write_text("VERSION = 1\n")
    plain = tmp_path / "linux.tar"
    run(["tar", "--create", f"--file={plain}", "./t"], cwd=tmp_path)
    for program, end in (("gzip", "gz"), ("bzip2", "bz2"), ("zstd", "zst"), ("xz", "xz")):
        packed = tmp_path / f"linux.tar.{end}"
        packed.write_bytes(run([program, "--stdout", plain], split=True).stdout)
        nameless = tmp_path / f"0123{end}"  # as the distfiles have it
        nameless.write_bytes(packed.read_bytes())
        for form in (packed, nameless):
            assert source_version(form) == Version(6, 8, 12), form
            assert run(["sh", UNPACK, form, tmp_path / f"out-{form.name}"]).text == str(tmp_path / f"out-{form.name}")
        for kind in ("xz", "zstd", "gzip"):
            root = tmp_path / f"deb-{end}-{kind}"
            (root / "DEBIAN").mkdir(parents=True)
            (root / "DEBIAN/control").write_text(
                "Package: linux-source\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
            )
            inner = root / f"usr/src/linux-source-6.8.0/linux-source-6.8.0.tar.{end}"
            inner.parent.mkdir(parents=True)
            inner.write_bytes(packed.read_bytes())
            (root / f"usr/src/linux-source-6.8.0.tar.{end}").symlink_to(
                f"linux-source-6.8.0/linux-source-6.8.0.tar.{end}"
            )
            package = tmp_path / f"linux-{end}-{kind}.deb"
            run(["dpkg-deb", f"-Z{kind}", "-z1", "--root-owner-group", "--build", root, package])
            assert source_version(package) == Version(6, 8, 12), package
            target = tmp_path / f"out-{package.name}"
            assert run(["sh", UNPACK, package, target]).text == str(target)
            assert (target / "drivers/net/tiny.c").is_file()


def test_sources_that_are_refused(tmp_path: Path):
    garbage = tmp_path / "garbage"
    garbage.write_bytes(bytes(range(256)) * 40)
    empty = tmp_path / "empty"
    empty.touch()
    truncated = tmp_path / "truncated.tar.xz"
    archive = tarball(tree(tmp_path / "t"), tmp_path / "linux.tar.xz")
    truncated.write_bytes(archive.read_bytes()[:200])
    half = tmp_path / "half.deb"
    half.write_bytes(deb(archive, tmp_path / "whole.deb").read_bytes()[:100])
    (tmp_path / "folder").mkdir()
    other = deb(archive, tmp_path / "other.deb", "usr/share/doc/readme")
    for source in (garbage, empty, truncated, half, other, tmp_path / "folder", tmp_path / "nowhere"):
        with pytest.raises(ConfigError) as caught:
            source_version(source)
        assert caught.value.reason == "kernel-source", source
    with pytest.raises(ConfigError) as caught:
        source_version(tree(tmp_path / "old", (5, 15, 99)))
    assert caught.value.reason == "kernel-too-old"


def test_unpacking_every_form_of_source(tmp_path: Path):
    source = tree(tmp_path / "t")
    archive = tarball(source, tmp_path / "linux.tar.xz")
    package = deb(archive, tmp_path / "linux-source.deb")
    assert run(["sh", UNPACK, source, tmp_path / "unused"]).text == str(source)
    assert not (tmp_path / "unused").exists()
    for number, form in enumerate((archive, package)):
        whole, part = tmp_path / f"whole{number}", tmp_path / f"part{number}"
        assert run(["sh", UNPACK, form, whole]).text == str(whole)
        assert run(["sh", UNPACK, form, part, "kconfig"]).text == str(part)
        assert (whole / "drivers/net/tiny.c").is_file()
        assert not (part / "drivers/net/tiny.c").exists()
        assert (part / "drivers/net/Kconfig").is_file()
        assert (part / "scripts/kconfig/conf.c").is_file()


def test_unpacking_refuses_what_is_no_source(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    built = tree(tmp_path / "built")
    (built / ".config").touch()
    (tmp_path / "garbage").write_bytes(b"!<arch>\nnothing")
    for source in (tmp_path / "folder", built, tmp_path / "garbage"):
        with pytest.raises(CommandError):
            run(["sh", UNPACK, source, tmp_path / "out"])


def job(tmp_path: Path, source: Path, **params: Any) -> Job:
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    return Job({"linux": source, "kernel": KERNEL}, out, work, {"today": "2026-11-01", **params}, 0, 1)


def test_configure_writes_what_the_build_and_the_image_need(tmp_path: Path):
    task = job(tmp_path, tree(tmp_path / "t"))
    configure(task)
    assert sorted(path.name for path in task.out.iterdir()) == ["cmdline", "config", "patches", "report.json"]
    names = sorted(path.name for path in (task.out / "patches").iterdir())
    assert names == ["01-dm-init-wait.patch", "02-zstd-frames.patch"]
    assert "CONFIG_DM_INIT=y\n" in (task.out / "config").read_text()
    line = (task.out / "cmdline").read_text()
    assert line.endswith("\n")
    assert "oops=panic" in line.split()
    report = json.loads((task.out / "report.json").read_text())
    assert report["kernel"] == "6.6.8"
    assert report["compiler"] == "cc 1"
    assert report["requested"]["EFI_STUB"] == report["final"]["EFI_STUB"] == "y"
    assert report["hardening"]["met"] + report["hardening"]["waived"] == report["hardening"]["all"]
    # On the line that the fragments are written for, nothing is waived but what it does not have at all.
    assert {entry["kind"] for entry in report["waived"]} == {"absent"}


@pytest.mark.parametrize(
    ("lose", "reason"),
    [("SQUASHFS", "kconfig-dropped"), ("THREAD_INFO_IN_TASK", None), ("DM_VERITY", "kconfig-dropped")],
)
def test_configure_refuses_a_kernel_that_drops_something(tmp_path: Path, lose: str, reason: str | None):
    task = job(tmp_path, tree(tmp_path / "t", lose=lose))
    if reason is None:
        configure(task)
        return
    with pytest.raises(CheckError) as caught:
        configure(task)
    assert caught.value.reason == reason
    assert lose in caught.value.message
    assert list(task.out.iterdir()) == []


def test_configure_refuses_a_configuration_that_does_not_settle(tmp_path: Path):
    task = job(tmp_path, tree(tmp_path / "t", settle="echo CONFIG_EXTRA=y >> $(O)/.config"))
    with pytest.raises(CheckError) as caught:
        configure(task)
    assert caught.value.reason == "kconfig-unstable"


# case: B24
def test_what_a_tree_is_built_for_is_said_by_us(tmp_path: Path):
    """Trees of vendors bring a processor, a compiler and a linker of their own."""
    source = tree(tmp_path / "t")
    makefile = source / "Makefile"
    theirs = "ARCH ?= arm64\nCROSS_COMPILE = aarch64-linux-gnu-\nLLVM = 1\nCC = clang\nLD = ld.lld\nHOSTCC = clang\n"
    ours = "x86_64,,,gcc,ld,gcc"
    check = '\t[ "$(ARCH),$(CROSS_COMPILE),$(LLVM),$(CC),$(LD),$(HOSTCC)" = "' + ours + '" ]\n'
    makefile.write_text(theirs + makefile.read_text().replace("allnoconfig:\n", "allnoconfig:\n" + check))
    configure(job(tmp_path, source))
    script = (KERNEL / "build.sh").read_text().replace("\\\n", " ")
    assert f'O="$out" {" ".join(MAKE_VARIABLES)} "$@"' in " ".join(script.split())


def test_configure_needs_a_date(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        configure(job(tmp_path, tree(tmp_path / "t"), today="soon"))
    assert caught.value.reason == "kernel-today"


def test_patches_go_to_the_versions_they_are_for(tmp_path: Path):
    series = read_series(KERNEL / "patches")
    names = [patch.path.name for patch in stage(series, Version(6, 6, 8), tmp_path / "a")]
    assert names == ["dm-init-wait.patch", "zstd-frames.patch"]
    assert [patch.path.name for patch in stage(series, Version(6, 1, 9), tmp_path / "b")] == ["zstd-frames.patch"]
    assert (tmp_path / "b").is_dir()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[[patch]\n",
        "[other]\n",
        '[[patch]]\nfile = "b.patch"\nversions = "any"\nreason = "r"\n',
        '[[patch]]\nfile = "a.patch"\nversions = "any"\n',
        '[[patch]]\nfile = "a.patch"\nversions = "any"\nreason = 1\n',
        '[[patch]]\nfile = "a.patch"\nversions = "any"\nreason = "r"\nother = "x"\n',
    ],
)
def test_series_that_are_refused(tmp_path: Path, body: str):
    (tmp_path / "a.patch").touch()
    (tmp_path / "series.toml").write_text(body)
    with pytest.raises(ConfigError) as caught:
        read_series(tmp_path)
    assert caught.value.reason == "patch-series"
