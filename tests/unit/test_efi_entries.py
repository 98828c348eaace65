"""Entries of the boot loader: names with counters, and their order, with systemd's own comparison as oracle."""

import base64
import hashlib
import itertools
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from common.disk import fat
from common.efi import entries
from common.efi.entries import Entry, compare_versions, in_order, read_name

GOLDEN = Path(__file__).with_suffix(".golden")


@pytest.mark.parametrize(
    ("name", "left", "done"),
    [
        ("k3v7q+3.efi", 3, 0),
        ("k3v7q+2-1.efi", 2, 1),
        ("k3v7q+0-3.efi", 0, 3),
        ("k3v7q.efi", None, 0),
        ("K3V7Q+2-1.EFI", 2, 1),
        ("RESCUE.EFI", None, 0),
        ("odd+name+x.efi", None, 0),
        ("odd+1+2.efi", 2, 0),
        ("odd+03-00.efi", 3, 0),
        ("odd+\u0663.efi", None, 0),
    ],
)
def test_a_name_tells_its_counter(name, left, done):
    entry = read_name(name)
    assert (entry.left, entry.done, entry.version) == (left, done, "")
    assert entry.name.lower() == name.lower()


@pytest.mark.parametrize("name", ["", ".efi", "+3.efi", "k3v7q+3.efi.new", "readme.txt", "k3v7q+3", entries.COMING])
def test_what_the_loader_does_not_look_at(name):
    assert read_name(name) is None


def test_the_name_is_made_of_the_root_hash():
    digest = hashlib.sha256(b"root").digest()
    stem = entries.image_name(digest)
    assert re.fullmatch("[a-z2-7]{5}", stem)
    assert int.from_bytes(base64.b32decode(stem.upper() + "AAA")) >> 15 == int.from_bytes(digest[:4]) >> 7
    assert len({entries.image_name(hashlib.sha256(b"%d" % number).digest()) for number in range(1000)}) == 1000


def test_names_are_as_short_as_firmware_can_change_at_once():
    """One slot of a long name has 13 characters, and the short name has another; one in capitals needs no more."""
    for entry in (Entry("k3v7q", 0, 4), Entry("k3v7q", 4), Entry("k3v7q", 1, 3)):
        assert len(entry.name) <= 13
        assert len(fat.long_slots(entry.name, b"K3V7Q_~1EFI")) == 1
    for name in (entries.RESCUE, entries.COMING):
        assert fat.long_slots(name, fat.short_name(name, set())) == []


def _named(name, version, sort_key=entries.SORT_KEY):
    return replace(read_name(name), version=version, sort_key=sort_key)


RESCUE = _named(entries.RESCUE, "1.9", entries.RESCUE_SORT_KEY)


def test_good_ones_come_first_then_the_newest():
    given = [_named("a+3.efi", "1.9"), _named("z+0-3.efi", "1.10"), _named("b+1-2.efi", "1.10~rc1")]
    assert [entry.stem for entry in in_order([RESCUE, *given])] == ["b", "a", "RESCUE", "z"]


def test_with_none_good_the_rescue_comes_first():
    found = in_order([_named("b+0-3.efi", "2"), _named("a+0-4.efi", "1"), RESCUE])
    assert found[0] is RESCUE


def test_of_one_version_the_one_with_more_tries_is_taken():
    """Two names of one image: what a rename that was cut off may leave."""
    found = in_order([_named("a+2-1.efi", "1"), _named("a+3.efi", "1")])
    assert found[0].left == 3


def test_bless_and_give_up():
    entry = read_name("k3v7q+2-1.efi")
    assert not entry.good
    assert entry.blessed().name == "k3v7q+4.efi"
    assert entry.blessed().good
    assert read_name("k3v7q+1-3.efi").good
    assert entry.given_up().name == "k3v7q+0-3.efi"
    assert entry.given_up().bad


def _versions():
    chance = random.Random(7)
    fixed = [
        "",
        "1",
        "1.0",
        "1.0.0",
        "1.0~rc1",
        "1.0^post",
        "1.0-1",
        "1.0-2",
        "1a",
        "1b",
        "a",
        "ab",
        "01",
        "1.10",
        "1.9",
    ]
    made = ["".join(chance.choices("0123ab.~^-_+", k=chance.randint(1, 8))) for _ in range(60)]
    return fixed + made


def test_the_order_of_versions_is_total():
    found = _versions()
    for one, other in itertools.product(found, repeat=2):
        assert compare_versions(one, other) == -compare_versions(other, one)


def test_the_order_is_systemds():
    lines = GOLDEN.read_text("utf-8").splitlines()[1:]
    assert len(lines) > 100
    for one, other, order in map(str.split, lines):
        assert compare_versions(one, other) == {"<": -1, "=": 0, ">": 1}[order], (one, other)


def test_the_folder_is_the_one_of_unified_images():
    assert entries.FOLDER == "EFI/Linux"
