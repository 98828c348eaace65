"""The data partition: growing the table, recognising what is on it, and leaving foreign data alone."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from common.disk import gpt
from common.errors import DiskError
from daemon import firstboot

MIB = 1 << 20


def disk(tmp_path, *names: str, mib: int = 8, sector: int = 512):
    """A disk image with partitions of 1 MiB, made for `mib` MiB."""
    path = tmp_path / "disk"
    sectors = mib * 2048
    parts = tuple(
        gpt.Partition(index, gpt.TYPE_LINUX_DATA, UUID(int=index), index * 2048, index * 2048 + 2047, name)
        for index, name in enumerate(names, 1)
    )
    with path.open("w+b") as stream:
        stream.truncate(sectors * 512)
        gpt.write(stream.fileno(), gpt.Table(UUID(int=99), sectors, parts).resized(sectors * 512, sector))
    return path


@pytest.mark.parametrize("sector", gpt.SECTORS)
def test_grown_to_the_end_of_a_larger_disk(tmp_path, sector):
    path = disk(tmp_path, "mixos-root-a", "mixos-data", sector=sector)
    with path.open("r+b") as stream:
        stream.truncate(64 * MIB)
    assert firstboot.grow_partition(path, path)
    table = gpt.read(path)
    assert (table.problems, table.geometry.sector) == ((), sector)
    assert table.find("mixos-root-a").size == MIB
    assert table.find("mixos-data").size == 61 * MIB
    before = path.read_bytes()
    assert not firstboot.grow_partition(path, path)
    assert path.read_bytes() == before


# case: B4
def test_data_grows_up_to_what_follows_it(tmp_path):
    path = disk(tmp_path, "mixos-data", "other")
    assert not firstboot.grow_partition(path, path)
    table = gpt.read(path)
    moved = replace(table.find("other"), first=5 * 2048 + 100, last=6 * 2048)
    with path.open("r+b") as stream:
        gpt.write(stream.fileno(), table.replaced(moved))
    assert firstboot.grow_partition(path, path)
    table = gpt.read(path)
    assert (table.find("mixos-data").size, table.find("other")) == (4 * MIB, moved)


def test_damaged_table_is_reported(tmp_path, capsys):
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    assert firstboot.main(["prepare", str(path), str(path)]) == 8
    assert "gpt-" in capsys.readouterr().err


def ext4(blocks: int, shift: int = 2) -> bytes:
    """The start of an ext4 file system with `blocks` blocks of 1 KiB << shift."""
    head = bytearray(128 << 10)
    head[1024 + 4 : 1024 + 8] = (blocks & 0xFFFFFFFF).to_bytes(4, "little")
    head[1024 + 0x18] = shift
    head[1024 + 0x38 : 1024 + 0x3A] = b"\x53\xef"
    head[1024 + 0x60] = 0x80
    head[1024 + 0x150 : 1024 + 0x154] = (blocks >> 32).to_bytes(4, "little")
    return bytes(head)


def prepared(tmp_path, head: bytes, size: int):
    """The programs that `prepare` runs on a partition that starts with `head`."""
    path = tmp_path / "part"
    path.write_bytes(head)
    with path.open("r+b") as stream:
        stream.truncate(size)
    runs = []
    firstboot.prepare(path, lambda argv, allow=(0,): runs.append(argv[0]))
    return runs


def test_blank_is_formatted(tmp_path):
    assert prepared(tmp_path, b"", 16 * MIB) == [firstboot.MKE2FS]


def test_small_file_system_is_fitted(tmp_path):
    assert prepared(tmp_path, ext4(4096), 1024 * MIB) == [firstboot.E2FSCK, firstboot.RESIZE2FS]


def test_fitting_file_system_is_left(tmp_path):
    assert prepared(tmp_path, ext4(4096), 16 * MIB) == []


def test_size_of_a_large_file_system(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(ext4((1 << 33) + 5))
    assert firstboot.inspect(path) == firstboot.FileSystem(((1 << 33) + 5) * 4096)


@pytest.mark.parametrize("head", [b"LUKS\xba\xbe" + bytes(MIB), b"\0" * 4096 + b"x" + bytes(MIB), b"XFSB" + bytes(MIB)])
def test_foreign_data_is_never_touched(tmp_path, head):
    with pytest.raises(DiskError) as caught:
        prepared(tmp_path, head, 16 * MIB)
    assert caught.value.reason == "disk-not-blank"


def test_usage(capsys):
    assert firstboot.main(["format"]) == 2
