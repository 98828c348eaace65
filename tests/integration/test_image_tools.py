"""The image formats against the reference tools: sgdisk, sfdisk, veritysetup, fsck.vfat, mtools, objcopy."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from buildsys.run import CLEAN_ENV, run
from common.disk import fat, fatread, gpt, verity
from common.efi import pe, uki
from daemon.firstboot import grow_partition
from tests.images import RELEASE, kernel

pytestmark = pytest.mark.integration
STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
ESP_SIZE = 256 << 20


def tool(name: str) -> str:
    """The path of a program; where CI runs everything must be there."""
    found = shutil.which(name, path=CLEAN_ENV["PATH"])
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing on a CI host")
        pytest.skip(f"this host has no {name}")
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    table = gpt.Table(
        UUID("ede8dde4-eeda-47bf-9ca6-f641174806c2"),
        (64 << 20) // 512,
        (
            gpt.Partition(1, gpt.TYPE_ESP, UUID(int=1), 2048, 4095, "mixos-esp"),
            gpt.Partition(
                2, gpt.TYPE_ROOT_X86_64, UUID(int=2), 4096, 65535, "mixos-root-a \N{GREEK SMALL LETTER PI}", 1 << 60
            ),
            gpt.Partition(7, gpt.TYPE_ROOT_VERITY_X86_64, UUID(int=3), 65536, 67583, "x" * 36),
        ),
    )
    with path.open("rb+") as file:
        gpt.write(file.fileno(), table)
    return path


def test_sgdisk_accepts_the_table(disk: Path) -> None:
    assert b"No problems found" in run([tool("sgdisk"), "-v", disk]).stdout
    info = run([tool("sgdisk"), "-i", "2", disk]).text
    assert "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709" in info
    assert "Attribute flags: 1000000000000000" in info


def test_sfdisk_reads_the_same(disk: Path) -> None:
    lines = run([tool("sfdisk"), "--dump", disk], env={"LC_ALL": "C.UTF-8"}).text.splitlines()
    assert "label-id: EDE8DDE4-EEDA-47BF-9CA6-F641174806C2" in lines
    sizes = [line.replace(" ", "").split(",")[:2] for line in lines if "start=" in line]
    assert [[one.rpartition("=")[2] for one in pair] for pair in sizes] == [
        ["2048", "2048"],
        ["4096", "61440"],
        ["65536", "2048"],
    ]


def test_we_read_what_sgdisk_wrote(tmp_path: Path) -> None:
    path = tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(32 << 20)
    run([tool("sgdisk"), "-o", "-n", "1:2048:4095", "-c", "1:one", "-t", "1:ef00", "-n", "3:8192:+1M", path])
    table = gpt.read(path)
    assert [(part.index, part.first, part.last, part.name) for part in table.partitions] == [
        (1, 2048, 4095, "one"),
        (3, 8192, 10239, ""),
    ]
    assert table.partitions[0].type == gpt.TYPE_ESP


# case: B4
@pytest.mark.parametrize(
    "script", ["", "first-lba: 2048\n", "table-length: 64\n", "last-lba: 60000\n", "grain: 4096\n"]
)
def test_we_read_and_grow_what_sfdisk_wrote(tmp_path: Path, script: str) -> None:
    path = tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    text = f"label: gpt\n{script}\nstart=4096, size=8192, name=one\nstart=12288, size=2048, name=mixos-data\n"
    run([tool("sfdisk"), "-q", path], stdin=text.encode())
    table = gpt.read(path)
    assert [(part.first, part.sectors, part.name) for part in table.partitions] == [
        (4096, 8192, "one"),
        (12288, 2048, "mixos-data"),
    ]
    os.truncate(path, 96 << 20)
    assert grow_partition(path, path)
    assert gpt.read(path).find("mixos-data").last > (95 << 20) // 512 - (script.startswith("last") * 72000) - 2048
    assert b"No problems found" in run([tool("sgdisk"), "-v", path]).stdout


# case: B4
@pytest.mark.parametrize("options", [["-S", "56"], ["-S", "256"], ["-j", "1024"]])
def test_we_read_and_grow_what_sgdisk_made_otherwise(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    run([tool("sgdisk"), "-o", *options, "-n", "1:4096:8191", "-c", "1:mixos-data", path])
    assert grow_partition(path, path)
    assert (gpt.read(path).find("mixos-data").last + 1) * 512 % gpt.ALIGN == 0
    assert b"No problems found" in run([tool("sgdisk"), "-v", path]).stdout


def test_sgdisk_accepts_a_grown_table(disk: Path) -> None:
    os.truncate(disk, 128 << 20)
    with disk.open("rb+") as file:
        read = gpt.read(file.fileno())
        grown = read.grown(read.partitions[-1])
        gpt.write(file.fileno(), gpt.Table(grown.disk_id, grown.sectors, grown.partitions))
    assert b"No problems found" in run([tool("sgdisk"), "-v", disk]).stdout


@pytest.mark.parametrize("blocks", [1, 2, 128, 129, 16384, 16385])
def test_verity_tree_equals_veritysetup(tmp_path: Path, blocks: int) -> None:
    data = tmp_path / "data"
    data.write_bytes(hashlib.shake_256(b"data").digest(4096 * min(blocks, 500)))
    os.truncate(data, blocks * 4096)
    salt = bytes(range(32))
    argv = [tool("veritysetup"), "format", "--no-superblock", "--salt", salt.hex(), data, tmp_path / "tree"]
    output = run(argv).text
    fd = os.open(data, os.O_RDONLY)
    tree = verity.build(fd, blocks * 4096, salt)
    os.close(fd)
    assert tree.root.hex() in output
    assert (tmp_path / "tree").read_bytes() == tree.hashes


FILES = {
    "EFI/BOOT/BOOTX64.EFI": b"x" * 123456,
    "EFI/Linux/mixos_0.1.0+3.efi": os.urandom(3 << 20),
    "EFI/Linux/mixos_0.1.0-rc.1+3.efi": b"y",
    "loader/loader.conf": b"timeout 0\n",
    "mixos-preseed.toml": b"",
}


@pytest.fixture(params=[(512, ESP_SIZE), (4096, 260 << 20)], ids=["512", "4096"])
def esp(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "esp"
    sector, size = request.param
    with path.open("wb+") as file:
        file.truncate(size)
        fat.write(
            file.fileno(), 0, size, FILES, volume_id=0xA4BF764B, label="MIXOS-ESP", epoch=1703030400, sector=sector
        )
    return path


def test_fsck_finds_nothing(esp: Path) -> None:
    run([tool("fsck.vfat"), "-n", "-v", esp])


def test_mtools_read_the_files(esp: Path, tmp_path: Path) -> None:
    listing = run([tool("mdir"), "-b", "-/", "-i", esp, "::"]).text.split("\n")
    assert sorted(line.removeprefix("::/") for line in listing if not line.endswith("/")) == sorted(FILES)
    for number, (name, content) in enumerate(FILES.items()):
        run([tool("mcopy"), "-i", esp, f"::{name}", tmp_path / str(number)])
        assert (tmp_path / str(number)).read_bytes() == content


def test_we_read_what_mtools_changed(esp: Path, tmp_path: Path) -> None:
    """The boot manager renames files, Linux writes new ones: the reader must follow."""
    (tmp_path / "new").write_bytes(b"n" * 70000)
    run([tool("mren"), "-i", esp, "::EFI/Linux/mixos_0.1.0+3.efi", "::EFI/Linux/mixos_0.1.0+2-1.efi"])
    run([tool("mdel"), "-i", esp, "::EFI/BOOT/BOOTX64.EFI"])
    run([tool("mcopy"), "-i", esp, tmp_path / "new", "::EFI/Linux/another long name.efi"])
    want = {**FILES, "EFI/Linux/another long name.efi": b"n" * 70000}
    del want["EFI/BOOT/BOOTX64.EFI"]
    want["EFI/Linux/mixos_0.1.0+2-1.efi"] = want.pop("EFI/Linux/mixos_0.1.0+3.efi")
    with esp.open("rb") as file:
        assert fatread.read_files(file.fileno(), 0, esp.stat().st_size) == want


def test_we_read_what_mkfs_made(tmp_path: Path) -> None:
    path = tmp_path / "other"
    run([tool("mkfs.vfat"), "-C", "-F", "32", "-n", "OTHER", path, str(ESP_SIZE // 1024)])
    (tmp_path / "in").write_bytes(b"hello")
    run([tool("mmd"), "-i", path, "::lower"])
    run([tool("mcopy"), "-i", path, tmp_path / "in", "::lower/hello.txt"])
    with path.open("rb") as file:
        assert fatread.read_files(file.fileno(), 0, ESP_SIZE) == {"lower/hello.txt": b"hello"}


def test_objcopy_reads_our_sections(tmp_path: Path) -> None:
    """The appender on the real stub, read by binutils."""
    if not STUB.exists():
        pytest.skip("the package systemd-boot-efi is not installed here; the boot tests use the pinned one")
    image = tmp_path / "uki.efi"
    image.write_bytes(uki.build(STUB.read_bytes(), kernel(), "root=/dev/dm-0", "ID=mixos\n", RELEASE))
    want = {".osrel": b"ID=mixos\n", ".cmdline": b"root=/dev/dm-0", ".uname": RELEASE.encode(), ".linux": kernel()}
    for name, content in want.items():
        run([tool("objcopy"), "-O", "binary", f"--only-section={name}", image, tmp_path / "out"])
        assert (tmp_path / "out").read_bytes().rstrip(b"\0") == content.rstrip(b"\0")
    before, after = (pe.parse(data) for data in (STUB.read_bytes(), image.read_bytes()))
    assert after.sections[: len(before.sections)] == before.sections


def test_a_full_root_is_hashed_quickly_enough_to_notice(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """64 MiB: the time is recorded, not judged; the root is checked against veritysetup."""
    data = tmp_path / "data"
    data.write_bytes(os.urandom(64 << 20))
    fd = os.open(data, os.O_RDONLY)
    started = time.monotonic()
    tree = verity.build(fd, 64 << 20, b"salt")
    record_property("seconds", time.monotonic() - started)
    os.close(fd)
    argv = [tool("veritysetup"), "format", "--no-superblock", "--salt", b"salt".hex(), data, tmp_path / "tree"]
    assert tree.root.hex() in run(argv).text
