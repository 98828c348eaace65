"""Reading what apt says: mirrors out of its configuration, and records of packages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildsys import apt
from buildsys.apt import parse_offer, published
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
    assert parse_offer(text(Filename="./a_1_all.deb")).pool is None  # a flat archive


@pytest.mark.parametrize(
    "changes",
    [{"SHA256": None}, {"SHA256": "a" * 63}, {"Size": "many"}, {"Size": "0"}, {"Size": "-5"}, {"Version": None}]
    + [{"Filename": name} for name in (None, "", "pool/../../etc/passwd\0", "pool/main/..", "pool/a b.deb")]
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
            ["http://a.example/debian", "https://b.example//debian-security"],
        ),
    ],
)
def test_the_mirrors_of_a_configuration(monkeypatch: pytest.MonkeyPatch, listing: str, sites: list[str]):
    monkeypatch.setattr(apt, "configured", lambda: listing)
    assert apt.sites() == sites


def test_when_lists_were_made(tmp_path: Path):
    assert published(tmp_path / "nowhere") == published(tmp_path) == 0.0
    for name, when in (("a_InRelease", 1000), ("b_Release", 3000), ("c_Packages", 9000)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    assert published(tmp_path) == 3000.0
