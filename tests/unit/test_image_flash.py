"""Writing images: into regular files, and the refusals for disks in use, with made-up kernel tables."""

import bz2
import contextlib
import errno
import fcntl
import gzip
import lzma
import os
import struct
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from buildsys.cli.main import cli
from buildsys.run import find_tool, run
from common.disk import fatread, gpt
from common.efi import uki
from common.efi.entries import RESCUE, RESCUE_SORT_KEY
from common.errors import ConfigError, ImageError
from image import assemble, blockdev, esp, flash
from image.blockdev import Places
from tests.images import RELEASE, ROOT, SMALL, STUB, Bench, kernel


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Bench(tmp_path_factory.mktemp("flash"), ROOT).image()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose boot partition is large enough for sectors of 4096 bytes."""
    return Bench(tmp_path_factory.mktemp("large"), ROOT, layout={**SMALL, "esp": 260}).image()


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
    [
        ("hostnam = 'x'", "settings-unknown-key"),
        ("a = ", "settings-syntax"),
        ("#" * 70_000, "settings-too-big"),
        (None, "preseed-unreadable"),
    ],
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
    refused("image-damaged", lambda: flash.flash(copy, tmp_path / "disk", yes, file=True))


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
    assert blockdev.users(FakeNode.number, kernel.places) == []


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
    found = blockdev.users(FakeNode.number, kernel.places)
    assert len(found) == 2
    assert "the running system" in found[1]


def test_sector_size(tmp_path: Path, image: Path) -> None:
    device = blockdev.Device(FakeNode("/dev/sdx"), 1 << 40, True, sector_size=2048)
    refused("sector-size", lambda: flash._check(device, 1, Places()))
    refused("esp-too-small", lambda: flash.flash(image, tmp_path / "disk", yes, file=True, sector=4096))
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize("preseed", [None, 'hostname = "box"\n'])
def test_a_disk_with_sectors_of_4096_bytes(tmp_path: Path, large: Path, preseed: str | None) -> None:
    if preseed is not None:
        (tmp_path / "preseed.toml").write_text(preseed)
    size = large.stat().st_size + (64 << 20)
    target = used_file(tmp_path / "disk", size)
    named = tmp_path / "preseed.toml" if preseed is not None else None
    flash.flash(large, target, yes, file=True, sector=4096, preseed=named)
    table, made = gpt.read(target), gpt.read(large)
    assert (table.problems, table.sectors, table.geometry.sector) == ((), size // 4096, 4096)
    assert [(part.offset, part.size, part.id, part.name) for part in table.partitions] == [
        (part.offset, part.size, part.id, part.name) for part in made.partitions
    ]
    with target.open("rb") as disk, large.open("rb") as source:
        fd, place = disk.fileno(), table.find("mixos-esp")
        assert fatread.open_volume(fd, place.offset, place.size).sector == 4096
        added = {} if preseed is None else {"mixos-preseed.toml": preseed.encode()}
        assert esp.read(fd, place) == {**esp.read(source.fileno(), place), **added}
        assert os.pread(fd, len(ROOT), table.find("mixos-root-a").offset) == ROOT
    # back onto a disk with small sectors: what has large ones is read there too
    flash.flash(target, tmp_path / "small", yes, file=True)
    again = gpt.read(tmp_path / "small")
    assert again.partitions == made.partitions


def test_a_boot_partition_that_reads_back_differently(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = esp.rewrite

    def forgetful(fd: int, part: gpt.Partition, added: dict[str, bytes], epoch: int) -> None:
        real(fd, part, added, epoch)
        files = {name: content[:-1] for name, content in esp.read(fd, part).items()}
        esp.write(fd, part, files, 0, epoch)

    monkeypatch.setattr(esp, "rewrite", forgetful)
    refused("verify-failed", lambda: flash.flash(large, tmp_path / "disk", yes, file=True, sector=4096))
    with pytest.raises(gpt.GptError):
        gpt.read(tmp_path / "disk")


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMtidA45oOo6cjipaVn1Wa8X8fm6UFV/P7AnYhRpaHob"


@pytest.mark.parametrize(
    ("until", "preseed", "warned"),
    [
        ("", None, True),
        ("", 'hostname = "box"\n', True),
        ("", f'[[ssh.keys]]\nkey = "{KEY}"\n', False),
        ("", f'[[ssh.keys]]\nkey = "{KEY}"\nexpires = 2020-01-01\n', True),
        ("9999-12-31", None, False),
        ("9999-12-31", 'hostname = "box"\n', False),
        ("9999-12-31", "[ssh]\nkeys = []\n", True),
        ("2020-01-01", None, True),
        ("", "[ssh]\nkeys = 1\n", True),  # the device ignores it
    ],
)
def test_a_device_that_lets_nobody_in(until: str, preseed: str | None, warned: bool) -> None:
    identity = assemble.os_release("1.2.3", RELEASE, until)
    rescue = uki.build(STUB, kernel(), "panic=10", f"IMAGE_ID={RESCUE_SORT_KEY}\n", RELEASE, b"files")
    files = {
        f"EFI/Linux/{RESCUE}": rescue,  # says nothing of it
        "EFI/Linux/mixos.efi": uki.build(STUB, kernel(), "root=/dev/dm-0", identity, RELEASE),
    }
    assert bool(flash._login_problem(files, preseed)) == warned
    if preseed is not None:  # the same when it is on the image, as on a copy of a disk
        assert bool(flash._login_problem({**files, esp.PRESEED: preseed.encode()}, None)) == warned
    silent = uki.build(STUB, kernel(), "root=/dev/dm-0", "ID=mixos\n", RELEASE)
    assert not flash._login_problem({"EFI/Linux/mixos.efi": silent}, None)


def test_who_is_asked_is_told_that_nobody_can_log_in(tmp_path: Path, image: Path) -> None:
    seen: list[str] = []

    def no(device: blockdev.Device) -> bool:
        seen.append("asked")
        return False

    refused("not-confirmed", lambda: flash.flash(image, tmp_path / "disk", no, file=True, warn=seen.append))
    assert len(seen) == 2
    assert seen[1] == "asked"


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "xz in two streams": lambda data: (
        lzma.compress(data[:12345]) + bytes(3 << 20) + lzma.compress(data[12345:]) + bytes(4)
    ),
    "gz": lambda data: gzip.compress(data[: 50 << 20], 1) + gzip.compress(data[50 << 20 :], 1),
    "zst": lambda data: zstd(data),
    "zst behind a frame to skip": lambda data: b"\x50\x2a\x4d\x18\4\0\0\0size" + zstd(data),  # as pzstd writes it
    "zst with a window of 512 MiB": lambda data: zstd(data, "--long=29"),
    "bz2 in two streams": lambda data: bz2.compress(data[: 50 << 20], 1) + bz2.compress(data[50 << 20 :], 1),
}


def zstd(data: bytes, *options: str) -> bytes:
    return run([find_tool("zstd"), "-1", "-c", "-q", *options], stdin=data, split=True).stdout


@pytest.fixture(scope="module")
def packed(image: Path) -> dict[str, bytes]:
    content = image.read_bytes()
    return {name: pack(content) for name, pack in PACKERS.items()}


# case: B14
@pytest.mark.parametrize("kind", PACKERS)
def test_packed_images(tmp_path: Path, image: Path, packed: dict[str, bytes], kind: str) -> None:
    (tmp_path / "image").write_bytes(packed[kind])  # whatever it is called
    seen: list[tuple[str, int, int]] = []
    done = flash.flash(
        tmp_path / "image", tmp_path / "disk", yes, file=True, progress=lambda *found: seen.append(found)
    )
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()
    assert done.written == flash.flash(image, tmp_path / "plain", yes, file=True).written  # no more than that
    size = len(packed[kind])
    assert [found for found in seen if found[0] == "unpack"][-1] == ("unpack", size, size)


# case: B14
@pytest.mark.parametrize("kind", ["xz", "gz", "zst", "bz2 in two streams"])
@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_packed_image_is_checked_before_the_first_write(
    tmp_path: Path, packed: dict[str, bytes], kind: str, harm: str
) -> None:
    data = packed[kind]
    middle = len(data) // 2
    harmed = data[:-20] if harm == "cut" else data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    (tmp_path / "image").write_bytes(harmed)
    target = used_file(tmp_path / "disk", 300 << 20)
    before = target.read_bytes()
    refused("image-damaged", lambda: flash.flash(tmp_path / "image", target, yes, file=True))
    assert target.read_bytes() == before


# case: B14
@pytest.mark.parametrize("kind", ["xz", "gz", "zst", "plain"])
def test_a_pipe_may_bring_an_image_in_pieces(tmp_path: Path, image: Path, packed: dict[str, bytes], kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    data = packed.get(kind) or image.read_bytes()

    def bring() -> None:
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            for at in range(20):  # the next byte comes when this one was read
                pipe.write(data[at : at + 1])
                while struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]:
                    time.sleep(0.001)
            with contextlib.suppress(BrokenPipeError):
                pipe.write(data[20:])

    thread = threading.Thread(target=bring)
    thread.start()
    flash.flash(tmp_path / "pipe", tmp_path / "disk", yes, file=True)
    thread.join(30)
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()


@pytest.mark.parametrize("kind", ["xz", "gz", "zst", "bz2 in two streams"])
def test_a_packed_image_does_not_become_larger_than_the_disk(tmp_path: Path, kind: str) -> None:
    """A few bytes can unpack to any number: it ends when it does not fit, not when the host is full."""
    (tmp_path / "image").write_bytes(PACKERS[kind](bytes(64 << 20)))
    target = used_file(tmp_path / "disk", 10 << 20)
    before = target.read_bytes()
    refused("disk-too-small", lambda: flash.flash(tmp_path / "image", target, yes, file=True))
    assert target.read_bytes() == before


def test_a_file_that_cannot_be_is_refused(tmp_path: Path, image: Path) -> None:
    refused("cannot-open", lambda: flash.flash(image, tmp_path / ("x" * 300), yes, file=True))


# case: B14
@pytest.mark.parametrize("kind", ["plain", "zst", "cut"])
def test_an_image_through_a_pipe(tmp_path: Path, image: Path, packed: dict[str, bytes], kind: str) -> None:
    data = {"plain": image.read_bytes(), "zst": packed["zst"], "cut": image.read_bytes()[: 100 << 20]}[kind]
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    thread.start()
    if kind == "cut":
        with pytest.raises(ImageError) as caught:
            flash.flash(tmp_path / "pipe", tmp_path / "disk", yes, file=True)
        assert caught.value.reason == "image-damaged"
        assert caught.value.message.count("cut short") == 1
        assert not (tmp_path / "disk").exists()
    else:
        flash.flash(tmp_path / "pipe", tmp_path / "disk", yes, file=True)
        assert (tmp_path / "disk").read_bytes() == image.read_bytes()
    thread.join(30)


def test_an_image_that_needs_too_much_memory_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(zstd(bytes(1 << 20), "--long=30"))
    with pytest.raises(ImageError) as caught:
        flash.flash(tmp_path / "image", tmp_path / "disk", yes, file=True)
    assert "memory" in caught.value.message
    assert "512 MiB" in (caught.value.hint or "")


TAR = bytes(257) + b"ustar\x0000" + bytes(10_000)


# case: B14
@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04" + bytes(1 << 20), b"<html><body>404", b"hello" * 100_000, bytes(1 << 20), b"QFI\xfb", None],
)
def test_what_is_no_image_is_called_that(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        (tmp_path / "image").mkdir()
    else:
        (tmp_path / "image").write_bytes(content)
    refused("not-an-image", lambda: flash.flash(tmp_path / "image", tmp_path / "disk", yes, file=True))
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (TAR, "tar"),
        (gzip.compress(TAR, mtime=0), "tar"),
        (gzip.compress(gzip.compress(b"image"), mtime=0), "packed twice"),
        (b"\x04\x22\x4d\x18" + bytes(100), "lz4"),
        (b'<?xml version="1.0" ?>\n<bmap version="2.0">', "XML"),
        (b"\x3a\xff\x26\xed" + bytes(5000), "Android"),
        (b"KDMV" + bytes(5000), "VMware"),
    ],
    ids=("tar", "tar.gz", "gz twice", "lz4", "bmap", "sparse", "vmdk"),
)
def test_what_people_take_for_an_image_has_its_name(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(ImageError) as caught:
        flash.flash(tmp_path / "image", tmp_path / "disk", yes, file=True)
    assert caught.value.reason == "not-an-image"
    assert what in caught.value.message
    assert caught.value.hint


# case: B20
def test_a_flash_that_is_not_confirmed_leaves_nothing(tmp_path: Path, image: Path) -> None:
    refused("not-confirmed", lambda: flash.flash(image, tmp_path / "disk", lambda device: False, file=True))
    assert not (tmp_path / "disk").exists()
    (tmp_path / "empty").touch()
    refused("not-confirmed", lambda: flash.flash(image, tmp_path / "empty", lambda device: False, file=True))
    assert (tmp_path / "empty").stat().st_size == 0


# case: B20
def test_the_disk_of_a_running_machine_is_left_alone(tmp_path: Path, image: Path) -> None:
    """QEMU takes locks of open file descriptions on single bytes of its disks."""
    target = used_file(tmp_path / "disk", image.stat().st_size)
    with target.open("rb") as machine:
        fcntl.fcntl(machine, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0))
        refused("device-in-use", lambda: flash.flash(image, target, yes, file=True))
    assert target.read_bytes()[:4096] == b"\xa5" * 4096
    flash.flash(image, target, yes, file=True)


# case: B9
@pytest.mark.parametrize("change", ["another file", "a link", "a file that came"])
def test_what_was_confirmed_is_what_is_written(tmp_path: Path, image: Path, change: str) -> None:
    other = used_file(tmp_path / "other", image.stat().st_size)
    before = other.read_bytes()
    target = tmp_path / "disk"
    if change != "a file that came":
        used_file(target, image.stat().st_size)

    def swap(device: blockdev.Device) -> bool:
        target.unlink(missing_ok=True)
        if change == "a link":
            target.symlink_to(other)
        else:
            os.link(other, target)
        return True

    refused("device-changed", lambda: flash.flash(image, target, swap, file=True))
    assert other.read_bytes() == before


# case: B8
@pytest.mark.parametrize("call", ["pwrite", "fsync", "pread"])
def test_a_disk_that_fails_is_named(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    real = getattr(os, call)
    target = tmp_path / "disk"

    def failing(fd: int, *rest: object) -> object:
        if Path(f"/proc/self/fd/{fd}").readlink() == target:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, *rest)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(ImageError) as caught:
        flash.flash(image, target, yes, file=True)
    assert (caught.value.reason, caught.value.exit_code) == ("write-failed", 8)
    assert str(target) in caught.value.message
    assert caught.value.hint is not None


# case: B8
def test_a_disk_that_can_only_be_read_is_not_asked_about(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    (kernel.disk / "ro").write_text("1\n")
    device = blockdev.inspect(FakeNode("/dev/sdx"), kernel.places)
    refused("read-only", lambda: flash._check(device, 1, kernel.places))


def test_standard_input_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello\n")
    saved = os.dup(0)
    try:
        with (tmp_path / "text").open("rb") as stream:
            os.dup2(stream.fileno(), 0)
        with pytest.raises(ImageError) as caught:
            flash.flash(Path("-"), tmp_path / "disk", yes, file=True)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert caught.value.message.startswith("standard input is no disk image: ")


def test_a_missing_right_is_told_by_who_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an ordinary user: the command line is right, and what to do is said."""
    (tmp_path / "image").write_bytes(b"hello\n")
    (tmp_path / "disk").touch()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    result = CliRunner().invoke(cli, ["flash", "--file", "--yes", str(tmp_path / "image"), str(tmp_path / "disk")])
    assert isinstance(result.exception, ImageError)
