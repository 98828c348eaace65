"""PE sections and unified kernel images: determinism, exact contents, refusals, fuzzing."""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.efi import pe, uki
from common.errors import FormatError
from tests.images import RELEASE, STUB, kernel, pe_image


@pytest.fixture(scope="module")
def image() -> bytes:
    return uki.build(STUB, kernel(), "root=/dev/dm-0 quiet", "ID=mixos\n", RELEASE)


def test_reads_back(image: bytes) -> None:
    found = uki.read_uki(image)
    assert (found.cmdline, found.os_release, found.uname) == ("root=/dev/dm-0 quiet", "ID=mixos\n", RELEASE)
    assert [one.name for one in found.sections] == [".text", ".sbat", ".osrel", ".cmdline", ".uname", ".linux"]
    assert pe.parse(image).content(image, ".linux") == kernel()


def test_a_value_has_an_end() -> None:
    text = f"ID=mixos\nIMAGE_VERSION='{'9.' * 60_000}'\n"
    found = uki.read_uki(uki.build(STUB, kernel(), "quiet", text, RELEASE))
    assert found.identity("IMAGE_VERSION") == ("9." * 60_000)[: uki.MAX_VALUE]


def test_a_stub_takes_no_initramfs_from_others() -> None:
    stub = STUB.replace(b"codecodecodecodecodecode", b"acquire_previous_initrd\0")
    with pytest.raises(uki.UkiError) as caught:
        uki.build(stub, kernel(), "noinitrd", "ID=mixos\n", RELEASE)
    assert caught.value.reason == "uki-stub"


def test_a_stub_finds_no_smbios_tables() -> None:
    """It would take words for the kernel from there, whatever was signed."""
    extra, tables = (
        b"io.systemd.stub.kernel-cmdline-extra",
        [bytes.fromhex("4415fdf294972c4a"), b"1-\x9d\xeb\x88-\xd3\x11"],
    )
    stub = pe_image([(".text", b"\xb8".join([b"", *tables, b""])), (".rodata", extra)])
    found = uki.build(stub, kernel(), "root=/dev/dm-0", "ID=mixos\n", RELEASE)
    assert extra in found
    assert not [half for half in tables if half in found]
    for odd in (stub.replace(tables[0], bytes(8)), stub.replace(tables[0], tables[1])):
        with pytest.raises(FormatError) as caught:
            uki.build(odd, kernel(), "root=/dev/dm-0", "ID=mixos\n", RELEASE)
        assert caught.value.reason == "uki-smbios"


def test_deterministic(image: bytes) -> None:
    assert uki.build(STUB, kernel(), "root=/dev/dm-0 quiet", "ID=mixos\n", RELEASE) == image


def test_layout_follows_the_specification(image: bytes) -> None:
    parsed = pe.parse(image)
    end = 0
    for section in parsed.sections:
        assert section.address % parsed.section_alignment == 0
        assert section.offset % parsed.file_alignment == 0
        assert section.stored % parsed.file_alignment == 0
        assert section.address >= end
        end = section.address + section.size
    assert parsed.image_size == -(-end // parsed.section_alignment) * parsed.section_alignment
    assert parsed.table + 40 * len(parsed.sections) <= parsed.headers_size
    assert struct.unpack_from("<II", image, parsed.optional - 12) == (0, 0)  # no symbol table


def test_checksum_by_the_slow_definition(image: bytes) -> None:
    at = pe.parse(image).optional + 64
    blank = image[:at] + bytes(4) + image[at + 4 :]
    total = 0
    for (word,) in struct.iter_unpack("<H", blank + bytes(len(blank) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    assert struct.unpack_from("<I", image, at)[0] == total + len(blank)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: uki.build(STUB, kernel(), "x" * 2048, "ID=x", RELEASE), "uki-cmdline"),
        (lambda: uki.build(STUB, kernel(), "a\nb", "ID=x", RELEASE), "uki-cmdline"),
        (lambda: uki.build(STUB, kernel(), "ü", "ID=x", RELEASE), "uki-cmdline"),
        (lambda: uki.build(STUB, kernel(), "ok", "ID=x", "6.1.0"), "uki-uname"),
        (lambda: uki.build(STUB, kernel(), "ok", "ID=x", ""), "uki-uname"),
        (lambda: uki.build(STUB, bytes(8192), "ok", "ID=x", RELEASE), "uki-kernel"),
        (lambda: uki.build(b"MZ" + bytes(100), kernel(), "ok", "ID=x", RELEASE), "pe-magic"),
        (lambda: pe.append(pe_image([(".a", b"x")], signed=True), [(".b", b"y")]), "pe-signed"),
        (lambda: pe.append(pe_image([(".a", b"x")]), [(".a", b"y")]), "pe-section"),
        (lambda: pe.append(pe_image([(".a", b"x")]), [(".b", b"")]), "pe-section"),
        (lambda: pe.append(pe_image([(".a", b"x")]), [(".muchtoolong", b"y")]), "pe-section"),
        (lambda: pe.append(pe_image([(".a", b"x")], room=512), [(f".b{n}", b"y") for n in range(9)]), "pe-no-room"),
        (lambda: uki.read_uki(STUB), "pe-section"),
    ],
)
def test_refusals(call, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        call()
    assert caught.value.reason == reason


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_images_only_raise_format_errors(image: bytes, data: st.DataObject) -> None:
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 1023))
        damaged[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    length = data.draw(st.integers(0, len(damaged)))
    with contextlib.suppress(FormatError):  # any other class of error fails the test
        uki.read_uki(bytes(damaged[:length]))
