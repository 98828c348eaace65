"""Signing on the host: the signed image is the unsigned one but for its signature, and other tools say so too."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from buildsys.project import Project
from buildsys.run import run
from buildsys.vm import Vm
from common.disk import gpt
from common.efi import measure, pe, uki
from common.errors import ImageError
from image import esp, secureboot
from image.host import opened
from tests.images import RELEASE, ROOT, STUB, Bench, kernel, pe_image
from tests.secureboot import keys, signer

IMAGE = pe_image([(".text", b"code" * 300), (".data", b"x" * 1000)])
ODD = IMAGE + b"trailing"  # 8 bytes, and then 3
UKI = uki.build(STUB, kernel(), "root=/dev/dm-0", "ID=mixos\n", RELEASE)


def reason(call: object, *arguments: object) -> str:
    with pytest.raises(ImageError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.reason


@pytest.mark.parametrize("image", [IMAGE, ODD, ODD + b"abc", UKI])
def test_the_digest_is_what_sbsign_signed(image: bytes) -> None:
    signed = secureboot.sign(image, signer("db"))
    assert pe.parse(signed).signed
    # The message that was signed holds the digest of the image (SpcIndirectDataContent).
    assert pe.authenticode(signed) in pe.signatures(signed)[0]
    assert pe.unsigned(signed) == pe.unsigned(image)
    assert pe.authenticode(signed) == pe.authenticode(pe.unsigned(image))


def test_a_signature_is_checked() -> None:
    signed = secureboot.sign(IMAGE, signer("db"))
    secureboot.verify(signed, signer("db").certificate)
    assert reason(secureboot.verify, signed, signer("other").certificate) == "secureboot-signature"
    assert reason(secureboot.verify, IMAGE, signer("db").certificate) == "secureboot-signature"
    changed = signed.replace(b"codecode", b"evilcode", 1)
    assert reason(secureboot.verify, changed, signer("db").certificate) == "secureboot-signature"
    assert reason(secureboot.check_signed, IMAGE, changed, signer("db")) == "secureboot-other"
    assert reason(secureboot.check_signed, IMAGE, signed, signer("other")) == "secureboot-signer"
    assert reason(secureboot.sign, signed, signer("db")) == "secureboot-signed"


def test_bits_of_an_image_that_change_its_digest() -> None:
    """All of it but the checksum and the place of the certificate table."""
    headers = pe.parse(IMAGE)
    free = {
        *range(headers.optional + 64, headers.optional + 68),
        *range(headers.optional + 144, headers.optional + 152),
    }
    for at in (
        0x30,
        headers.optional + 16,
        headers.optional + 64,
        headers.optional + 68,
        headers.table - 1,
        1100,
        2500,
    ):
        data = bytearray(IMAGE)
        data[at] ^= 1
        assert (pe.authenticode(bytes(data)) == pe.authenticode(IMAGE)) == (at in free), at


def test_sections_may_not_lie_over_each_other() -> None:
    data = bytearray(IMAGE)
    headers = pe.parse(IMAGE)
    struct.pack_into("<I", data, headers.table + 40 + 16, 1 << 10)
    struct.pack_into("<I", data, headers.table + 16, 2048)
    struct.pack_into("<I", data, headers.table + 40 + 20, headers.sections[0].offset)
    with pytest.raises(pe.PeError):
        pe.authenticode(bytes(data))


def test_the_key_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one in a token is asked for by its name."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[list[str]] = []

    def recorded(argv: list[object], **options: object) -> None:
        seen.append([str(word) for word in argv])
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or b"PRIVATE" not in path.read_bytes()
        raise ImageError("enough", reason="enough")

    monkeypatch.setattr(secureboot, "run", recorded)
    token = secureboot.Signer(signer("db").certificate, "pkcs11:token=release;object=db")
    when = datetime.now(UTC)
    for by in (signer("db"), token):
        assert reason(secureboot.sign, IMAGE, by) == "enough"
        assert reason(secureboot.update, "db", [], by, when) == "enough"
        assert reason(secureboot.with_policy, UKI, by) == "enough"
    assert [("pkcs11:token=release;object=db" in argv, "pkcs11" in argv) for argv in seen[3:]] == [(True, True)] * 3


# --- policy of a TPM --------------------------------------------------------------------------------------------------


def test_the_policy_is_signed(tmp_path: Path) -> None:
    carried = secureboot.with_policy(UKI, signer("policy"))
    assert [one.name for one in pe.parse(carried).sections][-2:] == [".pcrpkey", ".pcrsig"]
    (entry,) = json.loads(pe.parse(carried).content(carried, ".pcrsig"))["sha256"]
    assert (entry["pcrs"], entry["pol"]) == ([11], measure.policy(measure.pcr(carried)).hex())
    for name, data in {
        "key": pe.parse(carried).content(carried, ".pcrpkey"),
        "sig": base64.b64decode(entry["sig"]),
        "pol": bytes.fromhex(entry["pol"]),
    }.items():
        (tmp_path / name).write_bytes(data)
    run(["openssl", "dgst", "-sha256", "-verify", "key", "-signature", "sig", "pol"], cwd=tmp_path)
    # The fingerprint is that of the bare RSA key, as systemd-measure 252 has it.
    words = ["-pubin", "-in", "key", "-RSAPublicKey_out", "-outform", "DER"]
    der = run(["openssl", "rsa", *words], cwd=tmp_path, split=True).stdout
    assert entry["pkfp"] == hashlib.sha256(der).hexdigest()


# --- whether vendors' keys may go -------------------------------------------------------------------------------------


def test_a_bare_replacement_needs_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.efi.eventlog.option_roms", len)  # of a log that has one for each byte
    secureboot.check_replacement(b"", certain=False)
    secureboot.check_replacement(None, certain=True)
    assert reason(lambda: secureboot.check_replacement(None, certain=False)) == "secureboot-replace"
    assert reason(lambda: secureboot.check_replacement(b"1", certain=True)) == "secureboot-option-roms"
    when, one = datetime.now(UTC), keys().entry(keys().db)
    assert reason(secureboot.enrolment, keys(), when) == "secureboot-replace"
    assert reason(secureboot.enrolment, keys(), when, secureboot.Vendors(kek=(one,))) == "secureboot-replace"
    assert reason(lambda: secureboot.enrolment(keys(), when, event_log=b"1")) == "secureboot-option-roms"
    assert secureboot.enrolment(keys(), when, secureboot.Vendors(db=(one,)))


# --- the disk ---------------------------------------------------------------------------------------------------------


def on_esp(disk: Path, name: str = esp.NAME) -> dict[str, bytes]:
    with opened(disk) as descriptor:
        return esp.read(descriptor, gpt.read(descriptor).find(name))


def test_a_signed_disk_differs_in_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.images.LOADER", IMAGE)
    image = Bench(tmp_path / "made", ROOT).image()
    before = image.read_bytes()
    signed = tmp_path / "signed.img"
    files = secureboot.enrolment(keys(), datetime.now(UTC), certain=True)
    secureboot.sign_disk(image, signed, keys().db, files, 1703030400, policy=signer("policy"))
    assert image.read_bytes() == before
    plain, found = on_esp(image), on_esp(signed)
    assert set(found) == {*plain, *files}
    assert {path: found[path] for path in files} == files
    for path, data in plain.items():
        if path.startswith("EFI/Linux/"):
            assert pe.unsigned(found[path]) == pe.unsigned(secureboot.with_policy(data, signer("policy")))
        elif path.endswith((".efi", ".EFI")):
            assert pe.unsigned(found[path]) == pe.unsigned(data)
    assert found["loader/loader.conf"].splitlines()[-1] == b"secure-boot-enroll if-safe"
    with opened(image) as one, opened(signed) as other:
        table = gpt.read(one)
        assert gpt.read(other) == table
    plain, found = on_esp(image, esp.SECOND), on_esp(signed, esp.SECOND)
    assert set(found) == set(plain)
    assert all(pe.parse(data).signed for path, data in found.items() if path.lower().endswith(".efi"))
    after = signed.read_bytes()
    end = 0
    for part in (*map(table.find, (esp.NAME, esp.SECOND)), None):
        start = part.offset if part else len(before)
        assert after[end:start] == before[end:start]
        end = part.offset + part.size if part else start


def test_a_disk_that_cannot_be_signed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.images.LOADER", b"MZ, and no PE image")
    image = Bench(tmp_path / "made", ROOT).image()
    with pytest.raises(ImageError):
        secureboot.sign_disk(image, tmp_path / "signed.img", keys().db, {}, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_the_image_of_a_machine_is_signed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the image or the keys are others."""
    monkeypatch.setattr("tests.images.LOADER", IMAGE)
    bench = Bench(tmp_path / "made", ROOT)
    vm = Vm(cast(Project, SimpleNamespace(image_file=bench.image())), tmp_path / "run")
    loaded: list[str] = []

    def load() -> secureboot.Keys:
        loaded.append("")
        return keys()

    signed = vm.signed_image(b"certificates", load)
    made = signed.stat().st_mtime_ns
    assert vm.signed_image(b"certificates", load).stat().st_mtime_ns == made
    assert len(loaded) == 1
    vm.signed_image(b"others", load)
    assert len(loaded) == 2
    vm.image.touch()
    vm.signed_image(b"others", load)
    assert len(loaded) == 3
