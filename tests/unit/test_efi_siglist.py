"""Databases of Secure Boot: their bytes, their signed updates, and which image firmware would refuse."""

from __future__ import annotations

import functools
import hashlib
import random
import struct
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virt.firmware.efi import siglist as oracle

from buildsys.run import run
from common.efi import pe, pkcs7, siglist
from common.errors import FormatError, ImageError
from image import secureboot
from tests.images import pe_image
from tests.secureboot import OWNER, content_info, keys, signer

IMAGE = pe_image([(".text", b"code" * 300), (".data", b"x" * 1000)])
WHEN = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
CERT_SHA256 = UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")


def entry(data: bytes, kind: UUID = siglist.SHA256) -> siglist.Signature:
    return siglist.Signature(kind, OWNER, data)


def of(name: str, issuer: str | None = None) -> siglist.Signature:
    return entry(signer(name, issuer).der, siglist.X509)


kinds = st.sampled_from([siglist.SHA256, siglist.X509, CERT_SHA256])
entries = st.lists(st.builds(siglist.Signature, kinds, st.uuids(), st.binary(min_size=1, max_size=60)), max_size=12)


@settings(deadline=None)
@given(entries)
def test_what_is_written_is_read(signatures: list[siglist.Signature]) -> None:
    data = siglist.write(signatures)
    assert siglist.read(data) == tuple(signatures)
    assert siglist.read_variable(b"\x27\0\0\0" + data) == tuple(signatures)


def test_virt_firmware_reads_and_writes_the_same() -> None:
    ours = siglist.write([of("PK"), of("db"), entry(bytes(32)), entry(bytes([1]) * 32)])
    theirs = oracle.EfiSigDB(ours)
    assert [str(one.guid) for one in theirs] == [str(siglist.X509)] * 2 + [str(siglist.SHA256)]
    assert bytes(theirs) == ours


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 1 << 32))
def test_damaged_databases_end_in_an_error(tail: bytes, seed: int) -> None:
    data = bytearray(siglist.write([of("PK"), entry(bytes(32)), entry(bytes(32))]) + tail)
    chance = random.Random(seed)
    for _ in range(3):
        data[chance.randrange(60)] = chance.randrange(256)
    for read in (siglist.read, siglist.read_update):
        with suppress(siglist.SignatureListError):
            read(bytes(data[chance.randrange(4) :]))


def test_a_database_is_bounded() -> None:
    with pytest.raises(FormatError):
        siglist.read(bytes(siglist.MAX_DATABASE + 1))


@pytest.mark.parametrize("append", [False, True])
def test_an_update_is_signed_over_its_content(append: bool, tmp_path: Path) -> None:
    content = [of("db"), entry(bytes(32))]
    found = siglist.read_update(secureboot.update("db", content, signer("KEK"), WHEN, append=append))
    assert (found.signatures, found.time) == (tuple(content), WHEN)
    assert [one.data for one in pkcs7.certificates(found.signature)] == [signer("KEK").der]
    for name, data in {
        "signature": content_info(found.signature),
        "content": siglist.to_be_signed("db", content, WHEN, append=append),
        "other": siglist.to_be_signed("db", content, WHEN, append=not append),
        "certificate": signer("KEK").certificate,
    }.items():
        (tmp_path / name).write_bytes(data)

    def verified(name: str) -> bool:
        words = ["-inform", "DER", "-in", "signature", "-content", name, "-binary", "-noverify", "-out", "/dev/null"]
        return run(["openssl", "smime", "-verify", *words], cwd=tmp_path, allow=range(256)).status == 0

    assert verified("content")
    assert not verified("other")


def test_what_databases_hold_after_an_update() -> None:
    present = {"db": (of("db"),), "dbx": (entry(bytes(32)),)}
    update = siglist.Update(WHEN, b"", (entry(bytes(32)), entry(bytes([1]) * 32)))
    assert siglist.after(present, "dbx", update, append=True) == {"db": (of("db"),), "dbx": update.signatures}
    assert siglist.after(present, "db", update, append=False) == {"db": update.signatures, "dbx": present["dbx"]}
    assert siglist.written(b"update", append=False) == b"\x27\0\0\0update"
    assert siglist.written(b"update", append=True) == b"\x67\0\0\0update"


def test_enrolment_keeps_what_is_to_be_kept() -> None:
    vendors = secureboot.Vendors(kek=(of("maker KEK"),), db=(of("Microsoft"), entry(bytes(32))))
    files = secureboot.enrolment(keys(), WHEN, vendors)
    lists = {path.rpartition("/")[2]: siglist.read_update(data).signatures for path, data in files.items()}
    assert lists == {
        "PK.auth": (of("PK"),),
        "KEK.auth": (of("KEK"), of("maker KEK")),
        "db.auth": (of("db"), of("Microsoft"), entry(bytes(32))),
    }


# --- what would not start ---------------------------------------------------------------------------------------------


@functools.cache
def signed_image() -> bytes:
    return secureboot.sign(IMAGE, signer("db"))


def refused(image: bytes, dbx: list[siglist.Signature], db: list[siglist.Signature] | None = None) -> bool:
    known = [of("db")] if db is None else db
    why = siglist.refusal(image, siglist.write(known), siglist.write(dbx))
    assert siglist.refused({"slot": image}, known, dbx) == ({} if why is None else {"slot": why})
    return why is not None


def test_what_is_signed_by_db_starts_until_it_is_revoked() -> None:
    signed = secureboot.sign(IMAGE, signer("db"))
    assert not refused(signed, [])
    assert not refused(signed, [entry(bytes(32)), of("other"), entry(bytes(32 + 16), CERT_SHA256)])
    assert refused(signed, [], [of("other")])
    assert refused(signed, [entry(pe.authenticode(signed))])
    assert refused(signed, [of("db")])
    tbs = pkcs7.certificate(signer("db").der).signed
    assert refused(signed, [entry(hashlib.sha256(tbs).digest() + bytes(16), CERT_SHA256)])


def test_an_issuer_counts_too() -> None:
    signed = secureboot.sign(IMAGE, signer("leaf", "authority"))
    assert not refused(signed, [], [of("authority")])
    assert refused(signed, [of("authority")], [of("leaf", "authority")])
    digest = hashlib.sha256(pkcs7.certificate(signer("authority").der).signed).digest()
    assert refused(signed, [entry(digest + bytes(16), CERT_SHA256)], [of("authority")])


@pytest.mark.parametrize(
    "by",
    [
        signer("authority", number=2),
        signer("authority", "AUTHORITY", key="successor"),
        signer("leaf", "authority", means="stranger"),
    ],
    ids=["renewed", "of its name", "of another key"],
)
def test_who_firmware_does_not_take_for_an_issuer(by: secureboot.Signer, tmp_path: Path) -> None:
    """A certificate that names itself has no other issuer, and one that names a key only that."""
    for name, one in {"by": by, "known": signer("authority")}.items():
        (tmp_path / name).write_bytes(one.certificate)
    words = ["-partial_chain", "-no_check_time", "-trusted", "known", "by"]
    assert run(["openssl", "verify", *words], cwd=tmp_path, allow=range(256)).status != 0
    assert refused(secureboot.sign(IMAGE, by), [], [of("authority")])
    assert not refused(secureboot.sign(IMAGE, by), [], [entry(by.der, siglist.X509)])
    assert refused(secureboot.sign(IMAGE, by), [of("authority")], [entry(by.der, siglist.X509)])


def test_what_is_no_certificate_in_db_keeps_nothing_from_starting() -> None:
    odd, name = entry(of("other").data + b"\0", siglist.X509), pkcs7.certificate(of("other").data).subject
    nameless = entry(of("other").data.replace(name, name[:2] + b"\x30" + name[3:]), siglist.X509)
    assert not refused(signed_image(), [], [odd, nameless, of("db")])
    assert refused(secureboot.sign(IMAGE, signer("other")), [], [odd, of("db")])
    assert refused(signed_image(), [odd])


def test_an_unsigned_image_starts_by_its_hash_only() -> None:
    assert refused(IMAGE, [])
    assert not refused(IMAGE, [], [entry(pe.authenticode(IMAGE))])


@pytest.mark.parametrize("odd", [entry(bytes(31)), entry(bytes(20), CERT_SHA256), entry(bytes(32), UUID(int=1))])
def test_what_cannot_be_judged_is_refused(odd: siglist.Signature) -> None:
    assert refused(secureboot.sign(IMAGE, signer("db")), [odd])


def test_only_an_authority_issues() -> None:
    signed = secureboot.sign(IMAGE, signer("leaf", "issued"))
    assert not refused(signed, [], [of("leaf", "issued")])
    assert not refused(signed, [], [of("issued")])
    assert refused(signed, [], [of("issued", "authority")])


def test_a_name_is_no_key() -> None:
    """An issuer, or a signer, of the name that db has: its signature is verified, by the key in db."""
    signed = secureboot.sign(IMAGE, signer("leaf", "authority"))
    assert refused(signed, [], [entry(signer("authority", key="stranger").der, siglist.X509)])
    assert refused(secureboot.sign(IMAGE, signer("db", key="stranger")), [])
    assert refused(secureboot.sign(IMAGE, signer("leaf", "authority", key="stranger")), [], [of("leaf", "authority")])


def test_a_successor_of_the_same_name_is_not_revoked_with_its_predecessor() -> None:
    """Who has signed itself has no issuer."""
    successor = signer("db", key="successor")
    signed = secureboot.sign(IMAGE, successor)
    known = [of("db"), entry(successor.der, siglist.X509)]
    assert not refused(signed, [of("db")], known)
    assert refused(signed, [entry(successor.der, siglist.X509)], known)
    assert refused(secureboot.sign(IMAGE, signer("db", "authority", key="successor")), [of("authority")], known)


def test_another_certificate_of_a_key_counts_as_its_issuer() -> None:
    """What an extension says of the issuer may have firmware take it for that, also when it has signed itself."""
    signed = secureboot.sign(IMAGE, signer("authority", number=2))
    known = [of("authority"), entry(signer("authority", number=2).der, siglist.X509)]
    assert refused(signed, [of("authority")], known)


@pytest.mark.parametrize(
    ("issuer", "text"),
    [
        ("authority", "PrintableString"),
        ("authority", "BMPString"),
        ("authority", "T61String"),
        ("AUTHORITY", "UTF8String"),
        (" Authority ", "UniversalString"),
    ],
)
def test_names_are_compared_as_firmware_does(issuer: str, text: str, tmp_path: Path) -> None:
    leaf = signer("leaf", issuer, text=text)
    known = [entry(leaf.der, siglist.X509)]
    (tmp_path / "leaf").write_bytes(leaf.certificate)
    (tmp_path / "authority").write_bytes(signer("authority").certificate)
    words = ["-partial_chain", "-no_check_time", "-trusted", "authority", "leaf"]
    assert run(["openssl", "verify", *words], cwd=tmp_path, allow=range(256)).status == 0
    signed = secureboot.sign(IMAGE, leaf)
    assert not refused(signed, [], known)
    assert not refused(signed, [], [of("authority")])
    assert refused(signed, [of("authority")], known)


def test_a_signature_counts_for_its_image_alone() -> None:
    signed, other = signed_image(), pe_image([(".text", b"evil" * 300), (".data", b"x" * 1000)])
    at = pe.parse(signed).certificates[0]
    moved = bytearray(secureboot.sign(other, signer("stranger"))[:at] + signed[at:])
    struct.pack_into("<II", moved, pe.parse(other).optional + 112 + 4 * 8, *pe.parse(signed).certificates)
    assert pe.signatures(bytes(moved)) == pe.signatures(signed)
    why = siglist.refusal(bytes(moved), siglist.write([of("db")]), b"")
    assert why == "its signature is wrong, or is of another image"


def test_databases_that_cannot_be_read_refuse_all() -> None:
    assert siglist.refusal(signed_image(), siglist.write([of("db")]), b"") is None
    for db, dbx in ((b"x", b""), (siglist.write([of("db")]), b"x"), (b"", b""), (bytes(siglist.MAX_DATABASE + 1), b"")):
        assert siglist.refusal(signed_image(), db, dbx)
    assert siglist.refusal(b"MZ no image", siglist.write([of("db")]), b"")


def test_a_bit_that_changes_is_refused() -> None:
    """Anywhere, but for few that no signature is over, with which sbverify starts it, too."""
    signed = signed_image()
    start = pe.parse(signed).certificates[0]
    checked = range(pe.parse(signed).optional + 64, pe.parse(signed).optional + 68)
    db = siglist.write([of("db")])
    started = []
    for at in sorted({*range(0, start, 9), *checked, *range(start, len(signed))}):
        data = bytearray(signed)
        data[at] ^= 1
        if siglist.refusal(bytes(data), db, b"") is None:
            secureboot.verify(bytes(data), signer("db").certificate)
            started.append(at)
    assert started[:4] == list(checked)
    assert len(started[4:]) < 11  # the length and the versions of the signature, up to seven bytes that fill it up
    assert all(at >= start for at in started[4:])


@pytest.mark.parametrize("seed", range(12))
def test_sbverify_says_the_same(seed: int) -> None:
    """Of an image that was changed somewhere, signed with a certificate in db or by its issuer."""
    by = signer("db") if seed % 2 else signer("leaf", "db")
    data = bytearray(secureboot.sign(IMAGE, by))
    if seed > 1:
        data[random.Random(seed).randrange(1024, pe.parse(data).certificates[0])] ^= 1
    try:
        secureboot.verify(bytes(data), signer("db").certificate)
    except ImageError:
        assert refused(bytes(data), [])
    else:
        assert not refused(bytes(data), [])


@settings(deadline=None)
@given(st.integers(0, 1 << 32))
def test_damaged_images_are_judged(seed: int) -> None:
    signed = signed_image()
    chance = random.Random(seed)
    start = pe.parse(signed).certificates[0]
    data = bytearray(signed)
    for low, high in ((0, 500), (start, start + 200), (0, len(signed))):
        if chance.random() < 0.5:
            data[chance.randrange(low, high)] = chance.choice((0, 1, 0x80, 0xFF))
    damaged = bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])
    refused(damaged, [])
    with suppress(pe.PeError):
        pe.unsigned(damaged)


def test_a_certificate_table_must_be_the_end() -> None:
    signed = signed_image()
    headers = pe.parse(signed)
    at = headers.optional + 112 + 4 * 8
    for place, size in ((headers.certificates[0] - 8, headers.certificates[1] + 8), (headers.certificates[0], 8)):
        data = bytearray(signed)
        struct.pack_into("<II", data, at, place, size)
        with pytest.raises(FormatError):
            pe.unsigned(bytes(data))
