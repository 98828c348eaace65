"""Layout and the assembling actions, on made-up inputs: identities, bytes, determinism, refusals."""

import json
import os
from pathlib import Path

import pytest

from common.disk import gpt, verity
from common.efi import uki
from common.efi.entries import FOLDER, image_name
from common.errors import ConfigError, ImageError
from image import deb, esp, layout
from tests import images
from tests.images import BOOT, LOADER, ROOT, SMALL, Bench, ar_member


def test_whole_image(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ROOT)
    image = bench.image()
    root_hash = (bench.inputs["verity"] / "root-hash").read_text().strip()
    table = gpt.read(image)
    assert table.problems == ()
    assert [part.name for part in table.partitions] == list(layout.NAMES.values())
    assert table.find("mixos-root-a").id.hex + table.find("mixos-verity-a").id.hex == root_hash
    with image.open("rb") as disk:
        fd = disk.fileno()
        assert os.pread(fd, len(ROOT), table.find("mixos-root-a").offset) == ROOT
        tree = verity.build(fd, len(ROOT), layout.derive("abc", "verity-salt"), table.find("mixos-root-a").offset)
        assert tree.root.hex() == root_hash
        assert os.pread(fd, len(tree.hashes), table.find("mixos-verity-a").offset) == tree.hashes
        files = esp.read(fd, table.find("mixos-esp"))
    assert files["EFI/BOOT/BOOTX64.EFI"] == files["EFI/systemd/systemd-bootx64.efi"] == LOADER
    assert b"default" not in files["loader/loader.conf"]
    boot = uki.read_uki(files[f"{FOLDER}/{image_name(tree.root)}+3.efi"])
    assert boot.cmdline == (
        "root=/dev/dm-0 ro rootfstype=squashfs rootwait=20 noinitrd rdinit=/none "
        f'dm-mod.create="{verity.dm_create(tree)}" '
        "init=/sbin/init panic=10 oops=panic slab_nomerge pti=on console=ttyS0 quiet"
    )
    assert 'IMAGE_VERSION="1.2.3"' in boot.os_release
    record = json.loads((bench.inputs["disk"] / "image.json").read_text())
    assert record["root_hash"] == root_hash
    assert image.stat().st_blocks * 512 < 4 << 20
    assert image.stat().st_size == record["sectors"] * 512 == layout.parse(SMALL).disk_sectors * 512


OBEYED = ("LoaderEntryDefault", "LoaderEntryPreferred", "LoaderEntryOneShot", "LoaderEntrySysFail")
OBEYED += ("LoaderEntryLastBooted", "LoaderConfigTimeout", "LoaderConfigTimeoutOneShot")
TOLD = ("LoaderEntries", "LoaderEntrySelected", "LoaderConfigConsoleMode", "LoaderBootCountPath")


def loader(*names: str) -> bytes:
    """A boot manager with these variables."""
    text = "".join(f"{name}\0" for name in names)
    return b"MZ #### LoaderInfo: systemd-boot 262 ####\0\0" + text.encode("utf-16-le")


def test_the_boot_manager_remembers_no_choice(tmp_path: Path) -> None:
    """What is chosen once at its menu would be started for good, whatever updates and starts say."""
    package = images.package(tmp_path / "boot.deb", {f"{BOOT}/systemd-bootx64.efi": loader(*OBEYED, *TOLD)})
    bench = Bench(tmp_path / "made", ROOT)
    bench.inputs["systemd-boot-efi"] = package
    image = bench.image()
    with image.open("rb") as disk:
        made = esp.read(disk.fileno(), gpt.read(image).find("mixos-esp"))["EFI/BOOT/BOOTX64.EFI"]
    empty = "".join(f"\0{name[1:]}\0" for name in OBEYED)  # names in the place of which there is nothing
    assert made == loader() + empty.encode("utf-16-le") + loader(*TOLD)[len(loader()) :]


@pytest.mark.parametrize(
    "names", [(*OBEYED, *TOLD, "LoaderEntryLater"), (*OBEYED[1:], *TOLD), (*OBEYED, *TOLD, OBEYED[0])]
)
def test_a_boot_manager_with_a_memory_that_is_not_known(names: tuple[str, ...]) -> None:
    with pytest.raises(ImageError) as caught:
        esp.without_memory(loader(*names))
    assert caught.value.reason == "loader-memory"


def test_same_bytes_in_another_folder(tmp_path: Path) -> None:
    first = Bench(tmp_path / "one", ROOT).image()
    second = Bench(tmp_path / "another" / "place", ROOT).image()
    with first.open("rb") as one, second.open("rb") as two:
        while block := one.read(1 << 20):
            assert block == two.read(1 << 20)
        assert two.read(1) == b""


def test_another_seed_changes_every_identity(tmp_path: Path) -> None:
    one = gpt.read(Bench(tmp_path / "1", ROOT).image())
    two = gpt.read(Bench(tmp_path / "2", ROOT, seed="abd").image())
    assert not {part.id for part in one.partitions} & {part.id for part in two.partitions}
    assert one.disk_id != two.disk_id


@pytest.mark.parametrize(
    ("params", "root", "step", "reason"),
    [
        ({"version": "1+2"}, ROOT, "uki", "bad-version"),
        ({"version": "1_2"}, ROOT, "uki", "bad-version"),
        ({"version": 3}, ROOT, "uki", "bad-parameter"),
        ({}, bytes(17 << 20), "verity", "root-too-large"),
        ({}, b"x" * 5000, "verity", "verity-size"),
        ({"cmdline": "x" * 2000}, ROOT, "uki", "uki-cmdline"),
        ({"efi-arch": "aa64"}, ROOT, "uki", "deb-missing-file"),
    ],
)
def test_refusals(tmp_path: Path, params: dict[str, object], root: bytes, step: str, reason: str) -> None:
    bench = Bench(tmp_path, root, **params)
    for name in {"verity": (), "uki": ("verity",), "disk": ("verity", "uki")}[step]:
        bench.run(name)
    with pytest.raises(ImageError) as caught:
        bench.run(step)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "values",
    [
        {**SMALL, "slots": 3},
        {**SMALL, "esp": 64},
        {**SMALL, "data": "64M"},
        {"esp": 256, "slot": 256},
        {**SMALL, "slot": -1},
        {**SMALL, "slot": True},
    ],
)
def test_bad_layouts(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        layout.parse(values)
    assert caught.value.reason == "layout-invalid"


def test_default_layout_and_a_broken_file(tmp_path: Path) -> None:
    shape = layout.load()
    assert shape.verity * (1 << 20) >= verity.tree_blocks(shape.slot * 256) * verity.BLOCK
    (tmp_path / "layout.toml").write_text("esp = ")
    with pytest.raises(ConfigError) as caught:
        layout.load(tmp_path / "layout.toml")
    assert caught.value.reason == "layout-unreadable"


def test_derivation_is_framed_and_stable() -> None:
    assert layout.derive("ab", "c") != layout.derive("a", "bc")
    assert str(layout.derive_uuid("seed", "disk")) == "31782b23-ecf1-4eb2-98db-9e14f895b4db"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "deb-magic"),
        (b"!<arch>\n", "deb-damaged"),
        (b"!<arch>\n" + b"x" * 60, "deb-damaged"),
        (b"!<arch>\n" + ar_member("data.tar.xz", b"not xz"), "deb-damaged"),
        (b"!<arch>\n" + ar_member("data.tar.xz", b"1234")[:-2], "deb-damaged"),
    ],
)
def test_damaged_packages(tmp_path: Path, raw: bytes, reason: str) -> None:
    (tmp_path / "x.deb").write_bytes(raw)
    with pytest.raises(deb.DebError) as caught:
        deb.read_files(tmp_path / "x.deb", ["a"])
    assert caught.value.reason == reason


def test_preseed_goes_onto_the_esp(tmp_path: Path) -> None:
    image = Bench(tmp_path, ROOT).image()
    before = gpt.read(image)
    esp.inject_preseed(image, "hostname = 'one'\n", 0)
    esp.inject_preseed(image, "hostname = 'two'\n", 0)
    with image.open("rb") as disk:
        files = esp.read(disk.fileno(), before.find("mixos-esp"))
    assert files["mixos-preseed.toml"] == b"hostname = 'two'\n"
    assert len(files) == 6
    assert gpt.read(image) == before
    with pytest.raises(ImageError) as caught:
        esp.inject_preseed(image, "#" * (esp.MAX_PRESEED + 1), 0)
    assert caught.value.reason == "preseed-too-large"
