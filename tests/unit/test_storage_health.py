"""SMART: bytes as the specifications lay them out, and bytes that nobody laid out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import MixosError
from daemon.parts.storage import ata, health, nvme
from daemon.parts.storage.verdict import HealthError


def page(critical: int = 0, used: int = 3, spare: int = 100) -> bytes:
    """A health log page: NVMe base specification 2.0, figure 207."""
    block = bytearray(512)
    struct.pack_into("<BHBBB", block, 0, critical, 273 + 41, spare, 10, used)
    for offset, value in ((32, 2000), (48, 1 << 70), (112, 12), (128, 34567), (144, 5), (160, 7)):
        block[offset : offset + 16] = value.to_bytes(16, "little")
    return bytes(block)


def test_nvme_page():
    assert nvme.parse(page()) == {
        "state": "ok",
        "findings": [],
        "temperature": 41,
        "spare-percent": 100,
        "spare-threshold": 10,
        "used-percent": 3,
        "read": 2000 * 512_000,
        "written": (1 << 70) * 512_000,
        "power-cycles": 12,
        "power-on-hours": 34567,
        "unsafe-shutdowns": 5,
        "media-errors": 7,
    }


@pytest.mark.parametrize(
    ("critical", "used", "state", "slugs"),
    [
        (0x01, 0, "failing", ["spare-low"]),
        (0x02, 0, "warning", ["temperature"]),
        (0x0C, 0, "failing", ["unreliable", "read-only"]),
        (0x30, 101, "failing", ["no-backup", "memory-region", "worn"]),
        (0x00, 100, "warning", ["worn"]),
    ],
)
def test_nvme_warnings(critical, used, state, slugs):
    found = nvme.parse(page(critical, used))
    assert (found["state"], [one["slug"] for one in found["findings"]]) == (state, slugs)


def test_nvme_command_bytes():
    """struct nvme_passthru_cmd: get log page, 512 bytes (127 dwords after the first) of page 2, all name spaces."""
    block = nvme.command(0x1122334455667788)
    assert len(block) == 72
    assert block[:8] == bytes([2, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF])
    assert block[24:32] == 0x1122334455667788.to_bytes(8, "little")
    assert struct.unpack_from("<II", block, 36) == (512, 127 << 16 | 2)


def smart(*attributes: tuple[int, bytes]) -> bytes:
    block = bytearray(512)
    block[0:2] = b"\x10\0"
    for number, (ident, raw) in enumerate(attributes):
        struct.pack_into("<BHBB6s", block, 2 + 12 * number, ident, 0x32, 100, 100, raw)
    block[511] = -sum(block) & 0xFF
    return bytes(block)


def test_ata_page_and_verdict():
    hours = (4321).to_bytes(4, "little") + b"\x07\x09"  # minutes in the upper bytes
    block = smart((5, b"\x02\0\0\0\0\0"), (9, hours), (194, b"\x24\0\x10\0\x2d\0"), (197, b"\x03\0\0\0\0\0"))
    facts = ata.parse(block)
    assert facts == {"temperature": 36, "reallocated": 2, "power-on-hours": 4321, "pending": 3}
    assert ata.judge(facts, False)["state"] == "warning"
    found = ata.judge(facts, True)
    assert (found["state"], [one["slug"] for one in found["findings"]]) == ("failing", ["threshold", "pending"])
    assert ata.judge(ata.parse(smart((9, hours))), False)["state"] == "ok"


def test_ata_commands():
    assert ata.command(0xD0).hex() == "85080e00d0000100" + "00004f00c200b000"
    assert ata.command(0xDA).hex() == "85062000da000000" + "00004f00c200b000"


def descriptor(mid: int, high: int, before: bytes = b"") -> bytes:
    registers = bytes([0x09, 0x0C, 0, 0, 0, 0, 0, 0, 0, mid, 0, high, 0, 0x50])
    return bytes([0x72, 1, 0, 0x1D, 0, 0, 0, len(before) + 14]) + before + registers


def fixed(mid: int, high: int) -> bytes:
    return bytes([0x70, 0, 1, 0, 0x50, 0, 0, 10, 0, 0, mid, high, 0, 0x1D, 0, 0, 0, 0])


@pytest.mark.parametrize("make", [descriptor, fixed, lambda mid, high: descriptor(mid, high, b"\x00\x04abcd")])
def test_ata_return_status(make):
    assert ata.exceeded(make(0x4F, 0xC2)) is False
    assert ata.exceeded(make(0xF4, 0x2C)) is True
    for sense in (make(0, 0), make(0x4F, 0x2C), make(0x4F, 0xC2)[:10], b"", b"\x72", b"\x72" + bytes(7)):
        with pytest.raises(HealthError) as caught:
            ata.exceeded(sense)
        assert caught.value.reason == "smart-format"


@pytest.mark.parametrize("block", [b"", bytes(512), bytes(511), smart((9, bytes(6)))[:-1] + b"\x01"])
def test_damaged_pages(block):
    with pytest.raises(HealthError):
        ata.parse(block)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.binary(max_size=40))
def test_garbage(block, sense):
    for parse, data in (
        (nvme.parse, block),
        (ata.parse, block),
        (ata.exceeded, sense),
        (ata.exceeded, b"\x72" + sense),
    ):
        try:
            parse(data)
        except HealthError as error:
            assert error.reason == "smart-format"  # noqa: PT017  # it may also fit
    padded = bytearray(block[:511].ljust(511, b"\1"))
    facts = ata.parse(bytes(padded) + bytes([-sum(padded) & 0xFF]))
    assert ata.judge(facts, False)["state"] in ("ok", "warning")
    assert nvme.parse(bytes(padded) + b"\1")["state"] in ("ok", "warning", "failing")


@pytest.mark.parametrize(
    ("life", "end", "state", "used"),
    [("0x01 0x02", "0x01", "ok", 20), ("0x0b 0x01", "0x01", "warning", 110), ("0x05 0x05", "0x03", "failing", 50)],
)
def test_mmc(tmp_path, life, end, state, used):
    (tmp_path / "life_time").write_text(f"{life}\n")
    (tmp_path / "pre_eol_info").write_text(f"{end}\n")
    found = health.mmc(tmp_path)
    assert (found["state"], found["used-percent"]) == (state, used)


def test_a_card_without_figures_and_disks_without_smart(tmp_path):
    assert health.mmc(tmp_path)["findings"][0]["slug"] == "no-smart"
    (tmp_path / "sys/block/vda/device").mkdir(parents=True)
    (row,) = health.health(tmp_path)
    assert (row["kind"], row["state"], row["findings"][0]["slug"]) == ("virtio", "unknown", "no-smart")


def test_a_disk_that_is_not_there_or_refuses(tmp_path):
    (tmp_path / "sys/block/nvme0n1/device").mkdir(parents=True)
    (tmp_path / "sys/block/sda/device").mkdir(parents=True)
    (tmp_path / "sys/block/sda/device/vendor").write_text("ATA     \n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sda").write_text("a file knows no SG_IO")
    (tmp_path / "dev/nvme0n1").write_text("nor an NVMe command")
    assert [(row["kind"], row["findings"][0]["slug"]) for row in health.health(tmp_path)] == [
        ("nvme", "smart-refused"),
        ("ata", "smart-refused"),
    ]
    (tmp_path / "dev/sda").unlink()
    with pytest.raises(MixosError):
        ata.read(tmp_path / "dev/sda")
