"""GPT reader and writer: round trips, damage, power cuts, refusals."""

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.disk import gpt
from tests import crashstates

SECTORS = 40000
ALIGN = gpt.ALIGN // 512  # sectors


@st.composite
def tables(draw: st.DrawFn) -> gpt.Table:
    geometry = gpt.Geometry().on(draw(st.sampled_from(gpt.SECTORS)))
    first = geometry.first_usable
    sectors = draw(st.integers(2 * first + 100, SECTORS))
    count = draw(st.integers(0, 8))
    span = sectors - 2 * first
    cuts = sorted(draw(st.sets(st.integers(0, span - 1), min_size=2 * count, max_size=2 * count)))
    indexes = sorted(draw(st.sets(st.integers(1, 128), min_size=count, max_size=count)))
    ids = draw(st.lists(st.uuids(), min_size=2 * count, max_size=2 * count, unique=True))
    names = st.text(st.characters(codec="utf-16", exclude_characters="\0", exclude_categories=["Cs"]), max_size=18)
    parts = tuple(
        gpt.Partition(
            index,
            ids[2 * number],
            ids[2 * number + 1],
            first + cuts[2 * number],
            first + cuts[2 * number + 1],
            draw(names),
            draw(st.integers(0, 2**64 - 1)),
            geometry.sector,
        )
        for number, index in enumerate(indexes)
    )
    return gpt.Table(draw(st.uuids()), sectors, parts, geometry=geometry)


def disk(path: Path, sectors: int = SECTORS, sector: int = gpt.SECTOR) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.truncate(fd, sectors * sector)
    return fd


@pytest.fixture
def sample() -> gpt.Table:
    return gpt.Table(
        UUID(int=1),
        SECTORS,
        (
            gpt.Partition(1, gpt.TYPE_ESP, UUID(int=2), 2048, 4095, "first"),
            gpt.Partition(2, gpt.TYPE_LINUX_DATA, UUID(int=3), 4096, 8191, "second", gpt.ATTRIBUTE_READ_ONLY),
        ),
    )


@pytest.fixture
def fd(tmp_path: Path, sample: gpt.Table):
    handle = disk(tmp_path / "disk")
    gpt.write(handle, sample)
    yield handle
    os.close(handle)


@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, table: gpt.Table) -> None:
    path = tmp_path_factory.mktemp("gpt") / "disk"
    fd = disk(path, table.sectors, table.geometry.sector)
    gpt.write(fd, table)
    os.close(fd)
    assert gpt.read(path) == table


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_never_gives_a_wrong_table(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes changed in one copy: the same partitions are read (from the other copy), or the disk is refused."""
    table = gpt.Table(UUID(int=1), 200, (gpt.Partition(1, gpt.TYPE_ESP, UUID(int=2), 40, 99, "one"),))
    fd = disk(tmp_path_factory.mktemp("gpt") / "disk", 200)
    gpt.write(fd, table)
    half = data.draw(st.sampled_from([range(512, 34 * 512), range(167 * 512, 200 * 512)]))
    at = data.draw(st.integers(half.start, half.stop - 64))
    os.pwrite(fd, data.draw(st.binary(min_size=1, max_size=64)), at)
    found = gpt.read(fd)
    os.close(fd)
    assert found.partitions == table.partitions
    assert found.disk_id == table.disk_id


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(min_size=0, max_size=2048))
def test_random_headers_are_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    fd = disk(tmp_path_factory.mktemp("gpt") / "disk", 200)
    os.pwrite(fd, gpt.encode_mbr(200), 0)
    os.pwrite(fd, noise, 512)
    with pytest.raises(gpt.GptError):
        gpt.read(fd)
    os.close(fd)


def test_backup_is_used_and_named(fd: int, sample: gpt.Table) -> None:
    os.pwrite(fd, b"X", 512 + 60)
    found = gpt.read(fd)
    assert (found.partitions, found.problems) == (sample.partitions, ("primary-header-crc",))


def test_damaged_entries_of_the_primary(fd: int, sample: gpt.Table) -> None:
    os.pwrite(fd, b"X", 1024 + 60)
    assert gpt.read(fd) == replace(sample, problems=("primary-entries-crc",))


def test_damaged_backup_is_reported(fd: int, sample: gpt.Table) -> None:
    os.pwrite(fd, bytes(512), (SECTORS - 1) * 512)
    assert gpt.read(fd) == replace(sample, problems=("backup-magic",))


def test_both_copies_damaged(fd: int) -> None:
    os.pwrite(fd, bytes(512), 512)
    os.pwrite(fd, bytes(512), (SECTORS - 1) * 512)
    with pytest.raises(gpt.GptError) as caught:
        gpt.read(fd)
    assert caught.value.reason == "gpt-magic"


def test_stale_table_behind_a_plain_mbr_is_not_believed(fd: int) -> None:
    os.pwrite(fd, b"\x83", 446 + 4)
    with pytest.raises(gpt.GptError) as caught:
        gpt.read(fd)
    assert caught.value.reason == "gpt-no-mbr"


def grow_last(table: gpt.Table) -> gpt.Table:
    return table.grown(table.partitions[-1])


def test_larger_disk(fd: int, sample: gpt.Table) -> None:
    """An image on a larger disk is readable, says so, and is repaired by writing it resized."""
    os.truncate(fd, 2 * SECTORS * 512)
    found = gpt.read(fd)
    assert found.problems == ("backup-not-at-end",)
    grown = grow_last(found.resized(2 * SECTORS * 512, 512))
    gpt.write(fd, replace(grown, problems=()))
    again = gpt.read(fd)
    assert again.problems == ()
    assert again.partitions[0] == sample.partitions[0]
    assert again.partitions[1].first == 4096
    assert (again.partitions[1].last + 1) % ALIGN == 0
    assert again.last_usable - again.partitions[1].last < ALIGN
    assert grow_last(again) == again


@pytest.mark.parametrize("cut", range(3))
def test_power_cut_between_the_copies(
    tmp_path: Path, sample: gpt.Table, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write ends after `cut` of the two halves: the disk still gives the old or the new table, whole."""
    fd = disk(tmp_path / "disk")
    gpt.write(fd, sample)
    changed = sample.replaced(replace(sample.partitions[1], id=UUID(int=99)))
    real, calls = os.pwrite, []

    def cutting(handle: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        return real(handle, data, offset) if len(calls) <= cut else len(data)

    monkeypatch.setattr(os, "pwrite", cutting)
    gpt.write(fd, changed)
    monkeypatch.undo()
    assert calls == [(SECTORS - 33) * 512, 0]
    found = gpt.read(fd)
    os.close(fd)
    assert found.partitions == (sample, sample, changed)[cut].partitions
    assert found.problems == ((), ("backup-differs",), ())[cut]


@pytest.mark.parametrize("sector", gpt.SECTORS)
@pytest.mark.parametrize("torn", [1, -1])
def test_what_a_cut_has_torn_is_written_before_what_is_whole(
    tmp_path: Path, sample: gpt.Table, torn: int, sector: int
) -> None:
    """Otherwise a second cut could leave a disk without a table."""
    fd = disk(tmp_path / "disk")
    before = sample.resized(SECTORS * 512, sector)
    gpt.write(fd, before)
    os.pwrite(fd, bytes(sector), torn % before.sectors * sector)
    changed = before.replaced(replace(before.partitions[1], id=UUID(int=99)))
    scratch = crashstates.Scratch(tmp_path / "disk", tmp_path / "scratch", sector=sector)
    with crashstates.recorded(fd, tmp_path / "log", sector):
        gpt.write(fd, changed)
    os.close(fd)
    cut = 0
    with crashstates.read_log(tmp_path / "log") as log:
        for state in crashstates.states(log, scratch, torn=60):
            assert gpt.read(scratch.fd).partitions in (before.partitions, changed.partitions)
            cut += state.torn
    assert cut > 2
    assert gpt.read(scratch.fd) == gpt.read(tmp_path / "disk") == changed


def test_torn_primary_after_new_backup(fd: int, sample: gpt.Table) -> None:
    changed = sample.replaced(replace(sample.partitions[1], id=UUID(int=99)))
    torn = os.pread(fd, 34 * 512, 0)
    gpt.write(fd, changed)
    os.pwrite(fd, torn[1024:], 1024)  # header new, entries old
    assert gpt.read(fd).partitions == changed.partitions


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"first": 10}, "gpt-bounds"),
        ({"last": SECTORS - 10}, "gpt-bounds"),
        ({"first": 8192}, "gpt-bounds"),
        ({"first": 3000}, "gpt-overlap"),
        ({"id": UUID(int=2)}, "gpt-duplicate-id"),
        ({"id": UUID(int=0)}, "gpt-zero-id"),
        ({"name": "x" * 37}, "gpt-name"),
        ({"name": "a\0b"}, "gpt-name"),
        ({"name": "\ud800"}, "gpt-name"),
        ({"attributes": 1 << 64}, "gpt-attributes"),
    ],
)
def test_unsound_tables_are_not_made(sample: gpt.Table, change: dict[str, object], reason: str) -> None:
    with pytest.raises(gpt.GptError) as caught:
        sample.replaced(replace(sample.partitions[1], **change))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (8, 0x00020000, "gpt-revision"),
        (12, 600, "gpt-revision"),
        (24, 7, "gpt-geometry"),
        (32, 1 << 60, "gpt-geometry"),
        (32, SECTORS, "gpt-cut-short"),
        (40, 33, "gpt-geometry"),
        (40, 3000, "gpt-bounds"),
        (40, SECTORS, "gpt-geometry"),
        (48, SECTORS - 33, "gpt-geometry"),
        (48, 1 << 63, "gpt-geometry"),
        (72, 1, "gpt-geometry"),
        (72, 1 << 50, "gpt-geometry"),
        (80, (1 << 20) // 128 + 1, "gpt-entries"),
        (84, 64, "gpt-entries"),
        (84, 192, "gpt-entries"),
        (80, 0xFFFFFFFF, "gpt-entries"),
        (84, 0, "gpt-entries"),
    ],
)
def test_hostile_headers_with_right_checksum(fd: int, field: int, value: int, reason: str) -> None:
    raw = bytearray(os.pread(fd, 512, 512))
    struct.pack_into("<Q" if field in (24, 32, 40, 48, 72) else "<I", raw, field, value)
    raw[16:20] = bytes(4)
    struct.pack_into("<I", raw, 16, zlib.crc32(raw[:92]))
    os.pwrite(fd, raw, 512)
    assert gpt.read(fd).problems == (f"primary-{reason.removeprefix('gpt-')}",)


def test_find_needs_exactly_one(sample: gpt.Table) -> None:
    assert sample.find("second").index == 2
    with pytest.raises(gpt.GptError) as caught:
        sample.find("third")
    assert caught.value.reason == "gpt-name"


def test_not_smaller_than_the_partitions(sample: gpt.Table) -> None:
    with pytest.raises(gpt.GptError) as caught:
        sample.resized(8000 * 512, 512)
    assert caught.value.reason == "gpt-bounds"


def test_too_small_disk(tmp_path: Path, sample: gpt.Table) -> None:
    fd = disk(tmp_path / "small", 20)
    for action in (lambda: gpt.write(fd, sample), lambda: gpt.read(fd)):
        with pytest.raises(gpt.GptError) as caught:
            action()
        assert caught.value.reason == "gpt-disk-too-small"
    os.close(fd)


GEOMETRIES = [
    gpt.Geometry(first_usable=2048),
    gpt.Geometry(first_usable=2048, reserve=1234),
    gpt.Geometry(entries=56, first_usable=16),
    gpt.Geometry(entries=4, first_usable=3),
    gpt.Geometry(entries=256, first_usable=66),
    gpt.Geometry(entries=130, first_usable=35),
    gpt.Geometry(entries=64, entry_size=512, first_usable=66),
    gpt.Geometry(array=2000, first_usable=2048),
]


# case: B4
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_geometries_of_others_are_read_and_kept(tmp_path: Path, sample: gpt.Table, geometry: gpt.Geometry) -> None:
    table = replace(sample, geometry=geometry)
    fd = disk(tmp_path / "disk")
    os.pwrite(fd, b"\xa5" * (2048 * 512), 0)  # a boot loader in the gap stays
    gpt.write(fd, table)
    assert gpt.read(fd) == table
    taken = geometry.array + geometry.sectors
    assert os.pread(fd, (2048 - taken) * 512, taken * 512) == b"\xa5" * ((2048 - taken) * 512)
    os.truncate(fd, 2 * SECTORS * 512)
    gpt.write(fd, replace(grow_last(gpt.read(fd)), problems=()))
    grown = gpt.read(fd)
    assert (grown.problems, grown.geometry) == ((), geometry)
    assert grown.last_usable - grown.partitions[1].last < ALIGN
    if geometry.array == 2:
        os.pwrite(fd, bytes(512), 512)
        assert gpt.read(fd) == replace(grown, problems=("primary-magic",))
    os.close(fd)


# case: B4
def test_a_larger_header_and_odd_names_are_read(fd: int, sample: gpt.Table) -> None:
    raw = bytearray(os.pread(fd, 512, 512))
    entries = bytearray(os.pread(fd, 128 * 128, 1024))
    entries[56 + 14 : 56 + 20] = b"o\0l\0d\0"  # behind "first" and its NUL
    entries[128 + 56 : 128 + 58] = b"\x00\xd8"  # half of a pair, then "econd"
    struct.pack_into("<I", raw, 12, 512)
    struct.pack_into("<I", raw, 88, zlib.crc32(entries))
    raw[16:20] = bytes(4)
    struct.pack_into("<I", raw, 16, zlib.crc32(raw))
    os.pwrite(fd, raw + entries, 512)
    found = gpt.read(fd)
    assert found.problems == ("backup-differs",)
    assert [part.name for part in found.partitions] == ["first", "\ufffdecond"]
    assert [replace(part, name="") for part in found.partitions] == [
        replace(part, name="") for part in sample.partitions
    ]


def test_the_same_bytes_in_larger_sectors(tmp_path: Path, sample: gpt.Table) -> None:
    size = 24 << 20
    table = replace(sample, problems=("backup-not-at-end",)).resized(size, 4096)
    assert (table.sectors, table.geometry.first_usable, table.last_usable) == (6144, 6, 6138)
    assert [(part.first, part.last) for part in table.partitions] == [(256, 511), (512, 1023)]
    assert [(part.offset, part.size) for part in table.partitions] == [
        (part.offset, part.size) for part in sample.partitions
    ]
    fd = disk(tmp_path / "disk", 6144, 4096)
    os.pwrite(fd, b"\xa5" * (6 * 4096), 0)
    gpt.write(fd, table)
    assert gpt.read(fd) == replace(table, problems=())
    # UEFI 2.10, 5.2.3 and 5.3.1: the MBR in the first sector, a header in the second and in the last, zeros behind
    assert os.pread(fd, 4096 - 510, 510) == b"\x55\xaa" + bytes(4096 - 512)
    assert struct.unpack_from("<II", os.pread(fd, 8, 454)) == (1, 6143)
    for at in (4096, size - 4096):
        assert os.pread(fd, 8, at) == b"EFI PART"
        assert os.pread(fd, 4096 - 92, at + 92) == bytes(4096 - 92)
    assert grow_last(gpt.read(fd)).partitions[1].size == (24 - 3) << 20
    os.pwrite(fd, bytes(4096), 4096)
    assert gpt.read(fd) == replace(table, problems=("primary-magic",))
    assert table.resized(size, 512).partitions == sample.partitions
    os.close(fd)


def test_partitions_that_larger_sectors_cannot_hold(sample: gpt.Table) -> None:
    with pytest.raises(gpt.GptError) as caught:
        sample.replaced(replace(sample.partitions[1], first=4097)).resized(24 << 20, 4096)
    assert caught.value.reason == "gpt-sector"
    with pytest.raises(gpt.GptError) as caught:
        gpt.checked(replace(sample, geometry=gpt.Geometry().on(4096)))
    assert caught.value.reason == "gpt-sector"
