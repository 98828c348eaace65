"""Entries of the boot loader: names with counters, and their order, with systemd's own comparison as oracle."""

import itertools
import random
from pathlib import Path

import pytest

from common.efi import entries
from common.efi.entries import Entry, compare_versions, in_order, read_name

GOLDEN = Path(__file__).with_suffix(".golden")


@pytest.mark.parametrize(
    ("name", "left", "done", "version"),
    [
        ("mixos_1.2.3+3.efi", 3, 0, "1.2.3"),
        ("mixos_1.2.3+2-1.efi", 2, 1, "1.2.3"),
        ("mixos_1.2.3+0-3.efi", 0, 3, "1.2.3"),
        ("mixos_1.2~rc1.efi", None, 0, "1.2~rc1"),
        ("MIXOS_1.EFI", None, 0, ""),
        ("rescue.efi", None, 0, ""),
        ("odd+name+x.efi", None, 0, ""),
        ("odd+1+2.efi", 2, 0, ""),
    ],
)
def test_a_name_tells_its_counter(name, left, done, version):
    entry = read_name(name)
    assert (entry.left, entry.done, entry.version) == (left, done, version)
    assert entry.name.lower() == name.lower()


@pytest.mark.parametrize("name", ["", ".efi", "+3.efi", "mixos_1+3.efi.new", "readme.txt", "mixos_1+3"])
def test_what_the_loader_does_not_look_at(name):
    assert read_name(name) is None


def test_good_ones_come_first_then_the_newest():
    names = ["mixos_1.9+3.efi", "mixos_1.10+0-3.efi", "mixos_1.10~rc1+1-2.efi"]
    rescue = Entry("mixos-rescue", sort_key="mixos-rescue")
    found = in_order([rescue, *(read_name(name) for name in names)])
    assert [entry.name for entry in found] == [
        "mixos_1.10~rc1+1-2.efi",
        "mixos_1.9+3.efi",
        "mixos-rescue.efi",
        "mixos_1.10+0-3.efi",
    ]


def test_with_none_good_the_rescue_comes_first():
    rescue = Entry("mixos-rescue", sort_key="mixos-rescue")
    found = in_order([Entry("mixos_2", 0, 3, version="2"), Entry("mixos_1", 0, 3, version="1"), rescue])
    assert found[0] is rescue


def test_of_one_version_the_one_with_more_tries_is_taken():
    """Two names of one image: what a rename that was cut off may leave."""
    found = in_order([read_name("mixos_1+2-1.efi"), read_name("mixos_1+3.efi")])
    assert found[0].left == 3


def test_bless_and_give_up():
    entry = read_name("mixos_1+2-1.efi")
    assert not entry.good
    assert entry.blessed().name == "mixos_1+4.efi"
    assert entry.blessed().good
    assert read_name("mixos_1+1-3.efi").good
    assert entry.given_up().name == "mixos_1+0-3.efi"
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
