"""Writing images: into regular files, and the refusals for disks in use, with made-up kernel tables."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import ConfigError, ImageError
from image import blockdev, esp, flash, gpt
from image.blockdev import Places
from tests.images import ROOT, Bench


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Bench(tmp_path_factory.mktemp("flash"), ROOT).image()


def yes(device: blockdev.Device) -> bool:
    return True


def used_file(path: Path, size: int) -> Path:
    """A target full of old data, every byte 0xA5 where it matters."""
    with path.open("wb") as out:
        out.truncate(size)
        for at in range(0, size, 8 << 20):
            out.seek(at)
            out.write(b"\xa5" * (2 << 20))
        out.seek(size - (1 << 20))
        out.write(b"\xa5" * (1 << 20))
    return path


def test_into_a_new_file(tmp_path: Path, image: Path) -> None:
    done = flash.flash(image, tmp_path / "disk", yes, file=True)
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()
    assert 0 < done.written < image.stat().st_size


def test_over_old_data_on_a_larger_disk(tmp_path: Path, image: Path) -> None:
    size = image.stat().st_size + (64 << 20)
    target = used_file(tmp_path / "disk", size)
    seen: list[tuple[str, int, int]] = []
    flash.flash(image, target, yes, file=True, progress=lambda *args: seen.append(args))
    table = gpt.read(target)
    assert (table.problems, table.sectors) == ((), size // 512)
    assert table.partitions == gpt.read(image).partitions
    for phase in ("write", "verify"):
        counts = [(done, total) for name, done, total in seen if name == phase]
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1]
    with target.open("rb") as disk, image.open("rb") as source:
        fd = disk.fileno()
        root = table.find("mixos-root-a")
        assert os.pread(fd, len(ROOT), root.offset) == ROOT  # zeros of the root too, although holes in the image
        for name in ("mixos-root-b", "mixos-verity-b", "mixos-data"):
            assert os.pread(fd, 1 << 20, table.find(name).offset) == bytes(1 << 20)
        assert esp.read(fd, table.find("mixos-esp")) == esp.read(source.fileno(), table.find("mixos-esp"))
        assert b"\xa5" not in os.pread(fd, 1 << 20, size - (1 << 20))


def test_preseed(tmp_path: Path, image: Path) -> None:
    (tmp_path / "preseed.toml").write_text('hostname = "box"\n')
    flash.flash(image, tmp_path / "disk", yes, file=True, preseed=tmp_path / "preseed.toml")
    with (tmp_path / "disk").open("rb") as disk:
        files = esp.read(disk.fileno(), gpt.read(disk.fileno()).find("mixos-esp"))
    assert files["mixos-preseed.toml"] == b'hostname = "box"\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [("hostnam = 'x'", "settings-unknown-key"), ("a = ", "settings-syntax"), (None, "preseed-unreadable")],
)
def test_bad_preseed_stops_before_the_first_write(tmp_path: Path, image: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "preseed.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        flash.flash(image, tmp_path / "disk", yes, file=True, preseed=tmp_path / "preseed.toml")
    assert caught.value.reason == reason
    assert not (tmp_path / "disk").exists()


def refused(reason: str, call: Callable[[], object]) -> None:
    with pytest.raises(ImageError) as caught:
        call()
    assert caught.value.reason == reason


def test_refusals_leave_the_target_alone(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "disk"
    target.write_bytes(b"\xa5" * 4096)
    refused("disk-too-small", lambda: flash.flash(image, target, yes, file=True))
    refused("not-a-block-device", lambda: flash.flash(image, target, yes))
    refused("no-device", lambda: flash.flash(image, tmp_path / "nothing", yes))
    refused("same-file", lambda: flash.flash(image, image, yes, file=True))
    refused("not-a-file", lambda: flash.flash(image, tmp_path, yes, file=True))
    assert target.read_bytes() == b"\xa5" * 4096
    os.truncate(target, image.stat().st_size)
    refused("not-confirmed", lambda: flash.flash(image, target, lambda device: False, file=True))
    assert target.read_bytes()[:4096] == b"\xa5" * 4096


def test_damaged_image(tmp_path: Path, image: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(image.read_bytes()[: 200 << 20])
    refused("gpt-geometry", lambda: flash.flash(copy, tmp_path / "disk", yes, file=True))


def test_a_disk_that_forgets_is_found_out(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped byte between writing and reading back."""
    real = os.pwrite

    def forgetful(fd: int, data: bytes, offset: int) -> int:
        root = gpt.read(image).find("mixos-root-a").offset
        if offset == root:
            return real(fd, b"!" + bytes(data)[1:], offset)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", forgetful)
    refused("verify-failed", lambda: flash.flash(image, tmp_path / "disk", yes, file=True))
    monkeypatch.undo()
    with pytest.raises(gpt.GptError):  # no table: the half-written disk does not boot
        gpt.read(tmp_path / "disk")


class Kernel:
    """A /sys and /proc of our own: one disk sdx with a partition, optionally stacked or mounted."""

    def __init__(self, base: Path) -> None:
        self.places = Places(base / "sys", base / "proc")
        self.disk = self.device("sdx", "8:0", base / "sys" / "devices" / "sdx")
        self.part = self.device("sdx1", "8:1", self.disk / "sdx1")
        (self.part / "partition").write_text("1\n")
        (base / "proc" / "self").mkdir(parents=True)
        self.mounts("0:5", "proc")
        (base / "proc" / "swaps").write_text("Filename Type Size Used Priority\n")

    def device(self, name: str, number: str, folder: Path) -> Path:
        (folder / "holders").mkdir(parents=True)
        (folder / "dev").write_text(number + "\n")
        (folder / "size").write_text("2048\n")
        link = self.places.sys / "dev" / "block" / number
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
        return folder

    def mounts(self, number: str, source: str, point: str = "/mnt/a\\040b") -> None:
        line = f"36 35 {number} / {point} rw,noatime master:1 - ext3 {source} rw,errors=continue\n"
        (self.places.proc / "self" / "mountinfo").write_text(line)


class FakeNode(type(Path())):
    """A path whose stat says that it is block device 8:0 (or `number`)."""

    number = os.makedev(8, 0)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        fields = [0o60660, 0, 0, 1, 0, 0, 0, 0, 0, 0]
        return os.stat_result(fields, {"st_rdev": self.number})


class FakePartition(FakeNode):
    number = os.makedev(8, 1)


def test_device_facts(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    (kernel.disk / "queue").mkdir()
    (kernel.disk / "queue" / "logical_block_size").write_text("4096\n")
    (kernel.disk / "device").mkdir()
    (kernel.disk / "device" / "vendor").write_text("ACME    \n")
    (kernel.disk / "device" / "model").write_text("Stick  3\n")
    device = blockdev.inspect(FakeNode("/dev/sdx"), kernel.places)
    assert (device.size, device.sector_size, device.model, device.block) == (1048576, 4096, "ACME Stick 3", True)
    refused("is-partition", lambda: blockdev.inspect(FakePartition("/dev/sdx1"), kernel.places))


def test_unused_disk(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    assert blockdev.users(FakeNode("/dev/sdx"), kernel.places) == []


@pytest.mark.parametrize(("number", "source"), [("8:0", "x"), ("8:1", "x"), ("0:33", "/dev/sdx1")])
def test_mounted(tmp_path: Path, number: str, source: str) -> None:
    kernel = Kernel(tmp_path)
    kernel.mounts(number, source)
    device = blockdev.inspect(FakeNode("/dev/sdx"), kernel.places)
    refused("device-in-use", lambda: blockdev.check_free(device, kernel.places))


def test_mounted_through_a_stack_of_holders(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    mapper = kernel.device("dm-0", "253:0", tmp_path / "sys" / "devices" / "dm-0")
    (kernel.part / "holders" / "dm-0").symlink_to(mapper)
    kernel.mounts("253:0", "/dev/mapper/root", "/")
    found = blockdev.users(FakeNode("/dev/sdx"), kernel.places)
    assert len(found) == 2
    assert "the running system" in found[1]


def test_sector_size(tmp_path: Path, image: Path) -> None:
    device = blockdev.Device(FakeNode("/dev/sdx"), 1 << 40, True, sector_size=4096)
    refused("sector-size", lambda: flash._check(device, 1, Places()))
