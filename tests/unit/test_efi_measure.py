"""What the stub measures, the policy that follows, and the log of firmware's measurements."""

from __future__ import annotations

import hashlib
import random
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.efi import eventlog, measure, pe, uki
from common.errors import FormatError
from tests.images import RELEASE, STUB, kernel, pe_image

UKI = uki.build(STUB, kernel(), "root=/dev/dm-0", "ID=mixos\n", RELEASE)


def extended(*measured: bytes) -> bytes:
    value = bytes(32)
    for one in measured:
        value = hashlib.sha256(value + hashlib.sha256(one).digest()).digest()
    return value


def test_sections_are_measured_with_their_names_the_kernel_first() -> None:
    parts = {
        ".linux": kernel(),
        ".osrel": b"ID=mixos\n",
        ".cmdline": b"root=/dev/dm-0",
        ".uname": RELEASE.encode(),
        ".sbat": b"sbat",
    }
    expected = extended(*(piece for name, data in parts.items() for piece in (name.encode() + b"\0", data)))
    assert measure.pcr(UKI) == expected
    # A signature of the expected value is no part of it; the key that checks it is.
    assert measure.pcr(pe.append(UKI, [(".pcrsig", b"{}")])) == expected
    assert measure.pcr(pe.append(UKI, [(".pcrpkey", b"key")])) != expected


def test_systemd_measure_says_the_same() -> None:
    """`systemd-measure calculate --phase=:` of systemd 252, of the same sections."""
    sections = [(".osrel", b"ID=mixos\n"), (".cmdline", b"root=/dev/dm-0"), (".linux", kernel()), (".pcrpkey", b"key")]
    image = pe.append(pe_image([(".text", b"stub")]), sections)
    assert measure.pcr(image).hex() == "7eb2e7910d9b0c81b28c5bb992ee9df96ca9fab39729a83d489a3be128722857"
    assert measure.pcr(image, "sha384").hex() == (
        "5fb968598c4294815ab3cec64ab6c2e5e462ac810ddd7c14f083eda15bd810438c415d88d3898959f85bae25c396cac0"
    )


def test_a_section_of_nothing_but_memory_is_refused() -> None:
    image = bytearray(UKI)
    headers = pe.parse(UKI)
    number = [one.name for one in headers.sections].index(".osrel")
    struct.pack_into("<I", image, headers.table + number * 40 + 8, 5000)
    with pytest.raises(pe.PeError):
        measure.pcr(bytes(image))


def test_the_policy_is_that_of_systemd_measure() -> None:
    """`pol` of `systemd-measure sign` for an image whose PCR 11 has this value."""
    value = bytes.fromhex("270f1f402a24291e89b53fbf868846c8139dad99a287fed172648ca603e567f8")
    assert measure.policy(value).hex() == "5a3ac2876ca13c40609c38a8b221d9cc14789ed4227ea06d2163ce3963d167f2"


# --- the log ----------------------------------------------------------------------------------------------------------


def log(events: list[tuple[int, int, bytes]]) -> bytes:
    banks = ((4, 20), (11, 32))
    head = b"Spec ID Event03\0" + bytes(4) + bytes([0, 2, 0, 2]) + struct.pack("<I", len(banks))
    head += b"".join(struct.pack("<HH", *bank) for bank in banks) + b"\0"
    out = struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(head)) + head
    for pcr, kind, data in events:
        digests = b"".join(struct.pack("<H", algorithm) + bytes(size) for algorithm, size in banks)
        out += struct.pack("<III", pcr, kind, len(banks)) + digests + struct.pack("<I", len(data)) + data
    return out


def test_option_roms_are_drivers_in_pcr_2() -> None:
    separator, driver, runtime, application = 4, 0x80000004, 0x80000005, 0x80000003
    found = log(
        [(0, driver, b"own"), (2, separator, bytes(4)), (2, driver, b"a"), (2, runtime, b""), (4, application, b"b")]
    )
    assert eventlog.option_roms(found) == 2
    assert eventlog.option_roms(log([(2, separator, bytes(4))])) == 0


@pytest.mark.parametrize("cut", [1, 30, 50, 70, 100])
def test_a_log_that_is_cut_off_is_an_error(cut: int) -> None:
    whole = log([(2, 4, b"four")])
    with pytest.raises(FormatError, match="event log"):
        eventlog.option_roms(whole[:cut])


@settings(deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_damaged_log_ends(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(log([(2, 4, bytes(40)), (11, 13, b"text")] * 4))
    for _ in range(4):
        data[chance.randrange(len(data))] = chance.randrange(256)
    with suppress(eventlog.EventLogError):
        eventlog.option_roms(bytes(data))
