"""Flashing onto a real block device: a loop device, as root."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildsys.run import CLEAN_ENV, CommandError, run
from common.disk import gpt
from common.errors import ImageError
from image import blockdev, flash
from tests.images import ROOT, SMALL, Bench

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Bench(tmp_path_factory.mktemp("flash"), ROOT).image()


@pytest.fixture
def loop(tmp_path: Path, image: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("losetup", path=CLEAN_ENV["PATH"]) is None:
        pytest.skip("loop devices need root and losetup")
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(image.stat().st_size + (32 << 20))
        file.seek(-4096, os.SEEK_END)
        file.write(b"old backup table" * 256)
    try:
        device = Path(run(["losetup", "--find", "--show", backing]).text)
    except CommandError:
        pytest.skip("this host gives no loop device")
    yield device
    run(["losetup", "--detach", device])


def test_whole_device(loop: Path, image: Path) -> None:
    asked: list[blockdev.Device] = []
    flash.flash(image, loop, lambda device: bool(asked.append(device) or True))
    assert asked[0].block
    assert asked[0].size == image.stat().st_size + (32 << 20)
    table = gpt.read(loop)
    assert table.problems == ()
    assert table.partitions == gpt.read(image).partitions
    assert table.sectors * 512 == asked[0].size


def test_a_disk_with_sectors_of_4096_bytes(loop: Path, tmp_path: Path) -> None:
    """It says what sectors it has, and sees the partitions where they were."""
    image = Bench(tmp_path / "large", ROOT, layout={**SMALL, "esp": 260}).image()
    run(["losetup", "--detach", loop])
    os.truncate(tmp_path / "backing", 400 << 20)
    try:
        run(["losetup", "--partscan", "--sector-size", "4096", loop, tmp_path / "backing"])
    except CommandError:
        pytest.skip("this host's loop devices have one sector size only")
    assert flash.flash(image, loop, lambda device: device.sector_size == 4096).table_reread
    made = {part.index: (part.offset, part.size) for part in gpt.read(image).partitions}
    assert gpt.read(loop).geometry.sector == 4096
    folder = Path("/sys/block") / loop.name
    seen = {
        int((part / "partition").read_text()): tuple(int((part / name).read_text()) * 512 for name in ("start", "size"))
        for part in folder.glob(f"{loop.name}p*")
    }
    assert seen in (made, {})  # a kernel that reads no GPT sees none


def test_device_that_is_claimed(loop: Path, image: Path) -> None:
    """Someone holds the device exclusively, which no table in /proc shows."""
    holder = os.open(loop, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(ImageError) as caught:
            flash.flash(image, loop, lambda device: True)
    finally:
        os.close(holder)
    assert caught.value.reason == "device-in-use"


def test_mounted_device(loop: Path, image: Path, tmp_path: Path) -> None:
    run(["mkfs.ext4", "-q", loop])
    (tmp_path / "mnt").mkdir()
    try:
        run(["mount", loop, tmp_path / "mnt"])
    except CommandError:
        pytest.skip("this host's kernel mounts no ext4 file system")
    try:
        with pytest.raises(ImageError) as caught:
            flash.flash(image, loop, lambda device: True)
    finally:
        run(["umount", tmp_path / "mnt"])
    assert caught.value.reason == "device-in-use"
    with loop.open("rb") as file:
        assert file.read(4096)[1080:1082] == b"\x53\xef"  # the file system's magic number is still there


def test_too_small_device(image: Path, tmp_path: Path, loop: Path) -> None:
    run(["losetup", "--detach", loop])
    os.truncate(tmp_path / "backing", 8 << 20)
    run(["losetup", loop, tmp_path / "backing"])
    with pytest.raises(ImageError) as caught:
        flash.flash(image, loop, lambda device: True)
    assert caught.value.reason == "disk-too-small"


# case: B9
def test_another_disk_under_the_name_that_was_confirmed(loop: Path, image: Path, tmp_path: Path) -> None:
    backing = tmp_path / "another"
    with backing.open("wb") as file:
        file.truncate(loop_size := image.stat().st_size + (32 << 20))
    other = Path(run(["losetup", "--find", "--show", backing]).text)
    name = tmp_path / "by-id"
    name.symlink_to(loop)

    def swap(device: blockdev.Device) -> bool:
        assert device.size == loop_size
        name.unlink()
        name.symlink_to(other)
        return True

    try:
        with pytest.raises(ImageError) as caught:
            flash.flash(image, name, swap)
    finally:
        run(["losetup", "--detach", other])
    assert caught.value.reason == "device-changed"
    assert not backing.read_bytes().strip(b"\0")


# case: B9
def test_a_disk_that_is_mounted_while_the_question_is_asked(loop: Path, image: Path, tmp_path: Path) -> None:
    run(["mkfs.ext4", "-q", loop])
    (tmp_path / "mnt").mkdir()

    def mount(device: blockdev.Device) -> bool:
        try:
            run(["mount", loop, tmp_path / "mnt"])
        except CommandError:
            pytest.skip("this host's kernel mounts no ext4 file system")
        return True

    try:
        with pytest.raises(ImageError) as caught:
            flash.flash(image, loop, mount)
    finally:
        run(["umount", tmp_path / "mnt"], allow=range(256))
    assert caught.value.reason == "device-in-use"


# case: B8
def test_a_disk_that_can_only_be_read(loop: Path, image: Path, tmp_path: Path) -> None:
    run(["losetup", "--detach", loop])
    run(["losetup", "--read-only", loop, tmp_path / "backing"])
    with pytest.raises(ImageError) as caught:
        flash.flash(image, loop, lambda device: pytest.fail("it was asked about"))
    assert caught.value.reason == "read-only"


# case: B8
def test_a_disk_that_fails_while_it_is_written(loop: Path, image: Path, tmp_path: Path) -> None:
    """A loop device on a file system that is full."""
    small = tmp_path / "small"
    small.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small])
    run(["losetup", "--detach", loop])
    try:
        with (small / "backing").open("wb") as file:
            file.truncate(image.stat().st_size)
        run(["losetup", loop, small / "backing"])
        with pytest.raises(ImageError) as caught:
            flash.flash(image, loop, lambda device: True)
    finally:
        run(["losetup", "--detach", loop], allow=range(256))
        run(["umount", "--lazy", small])
        run(["losetup", loop, tmp_path / "backing"], allow=range(256))
    assert (caught.value.reason, caught.value.exit_code) == ("write-failed", 8)
    assert str(loop) in caught.value.message
