"""Reading what apt says: mirrors out of its configuration, and records of packages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildsys import apt
from buildsys.apt import dated, newer, parse_offer, take_newer
from common.errors import FetchError

RECORD = {
    "Package": "linux-source-6.12",
    "Version": "6.12.117-1~deb12u1",
    "Description": "a kernel\n continued: over lines\n .",
    "Filename": "pool/main/l/linux/linux-source-6.12_6.12.117-1~deb12u1_all.deb",
    "Size": "1000",
    "SHA256": "a" * 64,
}


def text(**changes: str | None) -> str:
    fields = {**RECORD, **changes}
    return "\n".join(f"{name}: {value}" for name, value in fields.items() if value is not None)


def test_a_record_becomes_a_source():
    source = parse_offer(text())
    assert (source.name, source.version, source.size) == ("linux-source-6.12", "6.12.117-1~deb12u1", 1000)
    assert source.file == "linux-source-6.12_6.12.117-1~deb12u1_all.deb"
    assert source.pool == RECORD["Filename"]


@pytest.mark.parametrize(
    "changes",
    [{"SHA256": None}, {"SHA256": "a" * 63}, {"Size": "many"}, {"Size": "0"}, {"Size": "-5"}, {"Version": None}]
    + [{"Filename": name} for name in (None, "", "pool/../../etc/passwd\0", "./a.deb", "pool/a b.deb")]
    + [{"Package": name} for name in (None, "", "-oDir::Etc=/", "A", "a/b", "a\tb")],
)
def test_records_that_are_not_understood(changes: dict[str, str | None]):
    with pytest.raises(FetchError) as caught:
        parse_offer(text(**changes))
    assert caught.value.reason == "apt-unknown"


@given(st.text())
def test_any_text_is_a_record_or_refused(content: str):
    with pytest.raises(FetchError):
        parse_offer(content)


@pytest.mark.parametrize(
    ("listing", "sites"),
    [
        ("", []),
        ("E: The method driver is missing", []),
        (
            "'http://a.example/debian/dists/bookworm/InRelease' a_InRelease 0 \n"
            "'http://a.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' a_Packages 0 \n"
            "'https://b.example//debian-security//dists/bookworm-security/InRelease' b 0 \n"
            "'file:/mnt/dists/stable/InRelease' c 0 \n'cdrom://x/dists/y/Release' d 0 \n"
            "'http://flat.example/./InRelease' e 0 ",
            ["http://a.example/debian", "https://b.example//debian-security", "file:/mnt"],
        ),
    ],
)
def test_the_mirrors_of_a_configuration(monkeypatch: pytest.MonkeyPatch, listing: str, sites: list[str]):
    monkeypatch.setattr(apt, "configured", lambda: listing)
    assert apt.sites() == sites


def test_the_date_of_an_archive(tmp_path: Path):
    release = tmp_path / "a_InRelease"
    for content, when in (
        ("", 0),
        ("Date: yesterday\n", 0),
        ("Date: Thu, 01 Jan 1970 00:16:40 UTC\n", 1000),
        ("-----BEGIN PGP SIGNED MESSAGE-----\n\nOrigin: x\nDate: Thu, 01 Jan 1970 00:16:40 UTC\nSuite: y\n", 1000),
        ("x" * (1 << 16) + "\nDate: Thu, 01 Jan 1970 00:16:40 UTC\n", 0),
    ):
        release.write_text(content)
        assert dated(release) == when
    assert dated(tmp_path / "nowhere") == 0.0


def test_newer_lists_replace_older_ones_of_the_same_archive(tmp_path: Path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder, minute, archives in ((theirs, 30, "ab[d"), (ours, 20, "bc[d")):
        folder.mkdir()
        for archive in archives:
            made = 40 if (folder, archive) == (ours, "b") else minute
            (folder / f"{archive}_InRelease").write_text(f"Date: Thu, 01 Jan 1970 00:{made}:00 UTC\n")
            (folder / f"{archive}_Packages{'' if folder == theirs else '.lz4'}").write_text(folder.name)
    (theirs / "partial").mkdir()
    (theirs / "lock").touch()
    take_newer(theirs, ours)
    found = {path.name: path.read_text() for path in ours.glob("*_Packages*")}
    assert found == {
        "a_Packages": "theirs",
        "b_Packages.lz4": "ours",
        "c_Packages.lz4": "ours",
        "[_Packages": "theirs",
        "d_Packages": "theirs",
    }
    assert not (ours / "lock").exists()
    take_newer(tmp_path / "nowhere", ours)


def test_versions_are_ordered_as_dpkg_does():
    assert newer("6.12.117-1~deb12u1", "6.12.9-1")
    assert newer("1:1", "9")
    assert not newer("6.12.1~rc1-1", "6.12.1-1")
    assert not newer("1", "1")
