"""Boot sector and allocation table of a FAT32, restored from their copies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.disk import fat, fatmend, fatread
from common.disk.fat import FatError

SIZES = {512: 160 << 20, 4096: 260 << 20}
FILES = {"EFI/Linux/one.efi": bytes(range(256)) * 200, "loader/loader.conf": b"timeout 0\n", "empty": b""}


@pytest.fixture(params=SIZES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """An open file system, and its sectors."""
    sector: int = request.param
    descriptor = os.open(tmp_path / "esp", os.O_RDWR | os.O_CREAT)
    os.truncate(descriptor, 1 << 20 | SIZES[sector])
    fat.write(descriptor, 1 << 20, SIZES[sector], FILES, volume_id=7, label="ESP", epoch=0, sector=sector)
    yield descriptor, sector
    os.close(descriptor)


def flip(descriptor: int, at: int, bit: int = 0) -> None:
    old = os.pread(descriptor, 1, at)[0]
    os.pwrite(descriptor, bytes([old ^ 1 << bit]), at)


def mended(disk: tuple[int, int]) -> list[str]:
    descriptor, sector = disk
    size = SIZES[sector]
    names = [one.name for one in fatmend.mend(descriptor, 1 << 20, size, sector)]
    assert fatread.read_files(descriptor, 1 << 20, size) == FILES
    assert fatmend.faults(descriptor, 1 << 20, size, sector) == []
    return list(dict.fromkeys(names))


def test_what_is_sound_has_no_fault(disk: tuple[int, int]) -> None:
    assert mended(disk) == []


@pytest.mark.parametrize("at", [0, 11, 13, 14, 17, 21, 36, 44, 48, 50, 510])
def test_a_boot_sector_is_restored_by_its_copy(disk: tuple[int, int], at: int) -> None:
    descriptor, sector = disk
    flip(descriptor, (1 << 20) + at)
    assert mended(disk) == ["boot-sector"]
    flip(descriptor, (1 << 20) + 6 * sector + at)
    assert mended(disk) == ["boot-sector-copy"]


def test_nothing_is_made_of_two_damaged_boot_sectors(disk: tuple[int, int]) -> None:
    descriptor, sector = disk
    for place in (0, 6 * sector):
        flip(descriptor, (1 << 20) + place + 510)
    with pytest.raises(FatError) as caught:
        fatmend.mend(descriptor, 1 << 20, SIZES[sector], sector)
    assert caught.value.reason == "fat-magic"


def test_the_first_two_names_of_a_folder_follow_from_where_it_is(disk: tuple[int, int]) -> None:
    descriptor, sector = disk
    volume = fatread.open_volume(descriptor, 1 << 20, SIZES[sector])
    for folder in list(fatread.folders(volume))[1:]:
        for at in (0, 1, 11, 26, 32, 43, 59):
            flip(descriptor, volume.place(folder.clusters[0]) + at, 3)
            assert mended(disk) == ["folder"]


def test_both_at_once(disk: tuple[int, int]) -> None:
    descriptor, sector = disk
    volume = fatread.open_volume(descriptor, 1 << 20, SIZES[sector])
    (first,) = [entry.first for path, entry in fatread.files(volume) if path == "EFI/Linux/one.efi"]
    flip(descriptor, volume.fats[0] + 4 * first)
    flip(descriptor, (1 << 20) + 13, 3)
    assert mended(disk) == ["boot-sector", "table"]


def test_every_bit_of_the_first_table_that_something_uses(disk: tuple[int, int]) -> None:
    descriptor, sector = disk
    volume = fatread.open_volume(descriptor, 1 << 20, SIZES[sector])
    used = [number for number, following in enumerate(volume.chain) if following and number >= 2]
    for number in used:
        for bit in range(28):
            if volume.chain[number] > fatread.BAD_CLUSTER and bit < 3:
                continue  # an end is one whatever its three lowest bits are
            flip(descriptor, volume.fats[0] + 4 * number + bit // 8, bit % 8)
            assert fatmend.faults(descriptor, 1 << 20, SIZES[sector], sector)[0].name == "table", (number, bit)
            flip(descriptor, volume.fats[0] + 4 * number + bit // 8, bit % 8)


def test_a_second_table_that_is_damaged_is_not_believed(disk: tuple[int, int]) -> None:
    descriptor, sector = disk
    volume = fatread.open_volume(descriptor, 1 << 20, SIZES[sector])
    flip(descriptor, volume.fats[1] + 4 * 6)
    assert mended(disk) == []


def test_a_boot_sector_of_another_maker_is_left_alone(disk: tuple[int, int]) -> None:
    descriptor, sector = disk
    for place in (0, 6 * sector):
        os.pwrite(descriptor, b"mkfs.fat", (1 << 20) + place + 3)
    before = os.pread(descriptor, 1 << 20, 1 << 20)
    assert mended(disk) == []
    assert os.pread(descriptor, 1 << 20, 1 << 20) == before
