"""FAT32 writer and reader: round trips, determinism, structure, refusals, fuzzing."""

import hashlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.disk import fat, fatread

SIZE = 160 << 20
LARGE = 260 << 20  # enough for sectors of 4096 bytes
SMALL = 64 << 20
EPOCH = 1703030400
FILES = {
    "EFI/BOOT/BOOTX64.EFI": b"loader" * 5000,
    "EFI/Linux/mixos_0.1.0+3.efi": b"kernel" * 50000,
    "EFI/Linux/mixos_0.1.1+3.efi": b"k",
    "loader/loader.conf": b"timeout 0\n",
    "loader/empty": b"",
    "README.TXT": b"short",
}


def make(path: Path, files: dict[str, bytes], offset: int = 0, size: int = SIZE, sector: int = 512) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.truncate(fd, offset + size)
    fat.write(fd, offset, size, files, volume_id=0x1234ABCD, label="MIXOS-ESP", epoch=EPOCH, sector=sector)
    return fd


@pytest.mark.parametrize(("sector", "cluster", "size"), [(512, 2048, SIZE), (512, 512, SMALL), (4096, 4096, LARGE)])
def test_round_trip_at_an_offset(tmp_path: Path, sector: int, cluster: int, size: int) -> None:
    fd = make(tmp_path / "fat", FILES, 1 << 20, size, sector)
    assert fatread.read_files(fd, 1 << 20, size) == FILES
    volume = fatread.open_volume(fd, 1 << 20, size)
    assert (volume.volume_id, volume.sector, volume.cluster) == (0x1234ABCD, sector, cluster)
    assert struct.unpack("<I", os.pread(fd, 4, (1 << 20) + 28)) == ((1 << 20) // sector,)  # BPB_HiddSec
    os.close(fd)


def test_same_bytes_every_time_and_sparse(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        fd = make(tmp_path / name, dict(reversed(FILES.items())) if name == "two" else FILES)
        digests.add(hashlib.sha256(os.pread(fd, 4 << 20, 0)).hexdigest())
        assert os.fstat(fd).st_blocks * 512 < 4 << 20
        os.close(fd)
    assert len(digests) == 1


@pytest.mark.parametrize(("sector", "size"), [(512, SIZE), (4096, LARGE)])
def test_backup_boot_sector_and_free_count(tmp_path: Path, sector: int, size: int) -> None:
    fd = make(tmp_path / "fat", FILES, size=size, sector=sector)
    assert os.pread(fd, 3 * sector, 0) == os.pread(fd, 3 * sector, 6 * sector)
    shape = fat.geometry(size, sector)
    first = os.pread(fd, shape.fat_sectors * sector, fat.RESERVED * sector)
    assert first == os.pread(fd, shape.fat_sectors * sector, (fat.RESERVED + shape.fat_sectors) * sector)
    used = sum(entry != 0 for (entry,) in struct.iter_unpack("<I", first)) - 2
    assert struct.unpack_from("<I", os.pread(fd, 512, sector), 488)[0] == shape.clusters - used
    os.close(fd)


_PARTS = st.text("abcXYZ019 ._-+~", min_size=1, max_size=40).filter(lambda one: one.rstrip(". ") == one)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=st.lists(st.lists(_PARTS, min_size=1, max_size=3).map("/".join), max_size=30), data=st.data())
def test_any_tree_round_trips(tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject) -> None:
    files = {name: data.draw(st.binary(max_size=5000)) for name in names}
    try:
        fd = make(tmp_path_factory.mktemp("fat") / "fat", files)
    except fat.FatError as error:
        # Two names that FAT cannot tell apart, or a file where a folder is needed.
        if error.reason == "fat-name":
            return
        raise
    assert fatread.read_files(fd, 0, SIZE) == files
    os.close(fd)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a/../b": b""}, "fat-name"),
        ({"a//b": b""}, "fat-name"),
        ({"": b""}, "fat-name"),
        ({"a:b": b""}, "fat-name"),
        ({"ä": b""}, "fat-name"),
        ({"x" * 256: b""}, "fat-name"),
        ({"A": b"", "a": b""}, "fat-name"),
        ({"a": b"", "a/b": b""}, "fat-name"),
        ({"big": bytes(SIZE)}, "fat-full"),
    ],
)
def test_refused_files(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(fat.FatError) as caught:
        make(tmp_path / "fat", files)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("size", "sector"),
    [
        (0, 512),
        (32 << 20, 512),
        (64 << 20, 1024),
        ((160 << 20) + 1, 512),
        (1 << 45, 512),
        (256 << 20, 4096),
        ((260 << 20) + 512, 4096),
    ],
)
def test_refused_sizes(size: int, sector: int) -> None:
    with pytest.raises(fat.FatError) as caught:
        fat.geometry(size, sector)
    assert caught.value.reason == "fat-size"


def test_no_cluster_is_read_twice(tmp_path: Path) -> None:
    """A few bytes could claim to be thousands of files of 4 GiB."""
    fd = make(tmp_path / "fat", FILES)
    chain = fatread.open_volume(fd, 0, SIZE).chain
    number = next(number for number in range(2, len(chain)) if chain[number] == number + 1)
    os.pwrite(fd, struct.pack("<I", number), fat.RESERVED * 512 + number * 4)
    with pytest.raises(fat.FatError) as caught:
        fatread.read_files(fd, 0, SIZE)
    os.close(fd)
    assert caught.value.reason == "fat-loop"


def test_all_files_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = make(tmp_path / "fat", {"A.TXT": b"a" * 5000, "B.TXT": b"b" * 5000})
    monkeypatch.setattr(fatread, "_MAX_BYTES", 9_999)
    with pytest.raises(fat.FatError) as caught:
        fatread.read_files(fd, 0, SIZE)
    os.close(fd)
    assert caught.value.reason == "fat-size"


def test_bad_label(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "fat", os.O_RDWR | os.O_CREAT)
    with pytest.raises(fat.FatError) as caught:
        fat.write(fd, 0, SIZE, {}, volume_id=0, label="much-too-long", epoch=0)
    os.close(fd)
    assert caught.value.reason == "fat-label"


def test_no_more_is_read_than_there_is(tmp_path: Path) -> None:
    """Files of one chain that claim to be 4 GiB each, and a chain that comes back to its beginning."""
    fd = make(tmp_path / "fat", {"A.TXT": b"a" * 5000, "B.TXT": b"b" * 5000})
    root = fat.geometry(SIZE, 512).place(2)
    entries = [root + at for at in range(0, 512, 32) if os.pread(fd, 11, root + at)[8:] == b"TXT"]
    first = [struct.unpack("<H", os.pread(fd, 2, at + 26))[0] for at in entries]
    os.pwrite(fd, struct.pack("<H", first[0]), entries[1] + 26)
    assert fatread.read_files(fd, 0, SIZE)["B.TXT"] == b"a" * 5000  # as after a cut in the middle of a rename
    os.pwrite(fd, b"\xff" * 4, entries[0] + 28)
    for reason in ("fat-size", "fat-loop"):
        with pytest.raises(fat.FatError) as caught:
            fatread.read_files(fd, 0, SIZE)
        assert caught.value.reason == reason
        os.pwrite(fd, struct.pack("<I", SIZE), entries[0] + 28)
        os.pwrite(fd, struct.pack("<I", first[0]), fat.RESERVED * 512 + 4 * (first[0] + 2))
    os.close(fd)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_systems_only_raise_fat_errors(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "fat"
    fd = os.open(path, os.O_RDWR) if path.exists() else make(path, FILES)
    shape = fat.geometry(SIZE, 512)
    region = data.draw(st.sampled_from([(0, 90), (fat.RESERVED * 512, 2000), (shape.place(2), 12 * shape.cluster)]))
    at = region[0] + data.draw(st.integers(0, region[1]))
    noise = data.draw(st.binary(min_size=1, max_size=16))
    saved = os.pread(fd, len(noise), at)
    os.pwrite(fd, noise, at)
    try:
        fatread.read_files(fd, 0, SIZE)
    except fat.FatError:
        pass  # any other class of error would fail the test
    finally:
        os.pwrite(fd, saved, at)
        os.close(fd)
