"""A factory reset of a real block device: loop devices, as root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from buildsys.run import CLEAN_ENV, CommandError, run
from common.disk import gpt
from daemon import erase, firstboot

pytestmark = pytest.mark.integration
MIB = 1 << 20
AT, SIZE = 4 * MIB, 64 * MIB
SECRET = b"what nobody is to read"


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """A disk image, its device, and its data partition's: full of what somebody left."""
    if os.geteuid() != 0 or shutil.which("losetup", path=CLEAN_ENV["PATH"]) is None:
        pytest.skip("loop devices need root and losetup")
    image = tmp_path / "image"
    part = gpt.Partition(1, gpt.TYPE_LINUX_DATA, UUID(int=1), AT // 512, (AT + SIZE) // 512 - 1, firstboot.PARTITION)
    with image.open("w+b") as stream:
        stream.truncate(AT + SIZE + MIB)
        gpt.write(stream.fileno(), gpt.Table(UUID(int=9), (AT + SIZE + MIB) // 512, (part,)))
        for at in range(AT, AT + SIZE, MIB):
            os.pwrite(stream.fileno(), SECRET * 40000, at)
    made: list[Path] = []
    try:
        for words in ([], ["--offset", str(AT), "--sizelimit", str(SIZE)]):
            made.append(Path(run(["losetup", "--find", "--show", *words, image]).text))
    except CommandError:
        for device in made:
            run(["losetup", "--detach", device])
        pytest.skip("this host gives no loop device")
    yield image, *made
    for device in made:
        run(["losetup", "--detach", device])


@pytest.mark.parametrize("how", ["erase", "overwrite"])
def test_a_device_is_erased(devices: tuple[Path, Path, Path], how: erase.How) -> None:
    image, disk, data = devices
    with disk.open("r+b") as stream:
        erase.want(stream.fileno(), how)
    assert firstboot.main(["erase", str(disk), str(data)]) == 0
    table = gpt.read(disk)
    assert (erase.wanted(table), table.problems) == ((table.find(firstboot.PARTITION), None), ())
    run(["e2fsck", "-f", "-n", data])
    run(["sync", image])
    left = image.read_bytes()
    assert SECRET not in left[AT : AT + MIB]
    assert SECRET not in left  # these devices have discard, and zeros are read where nothing is
    assert "lost+found" in run(["debugfs", "-R", "ls -p /", data]).text
    holder = os.open(data, os.O_RDWR | os.O_EXCL)  # as a mount does
    try:
        assert firstboot.main(["erase", str(disk), str(data)]) == 8
    finally:
        os.close(holder)
    assert erase.wanted(gpt.read(disk))[1] is None
    assert "lost+found" in run(["debugfs", "-R", "ls -p /", data]).text
