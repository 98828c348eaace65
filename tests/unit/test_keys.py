"""Keys that sign releases: who can read them, what opens them, how roots follow each other."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.api.metadata import Metadata

from buildsys.cli.context import Context
from buildsys.cli.keys import keys as command
from buildsys.keys import payload, secureboot, tuf
from buildsys.keys import private as privates
from buildsys.keys.private import Passphrase, Private
from buildsys.keys.public import Public, dump
from common.efi import pe, pkcs7, siglist
from common.errors import HostError, KeysError
from common.trust.metadata import Kept, Trusted
from tests.hostpackages import ROOT
from tests.images import pe_image

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def private(tmp_path: Path) -> Private:
    return Private(tmp_path / "private", Passphrase(none=True))


@pytest.fixture
def public(tmp_path: Path) -> Public:
    found = Public(tmp_path / "keys")
    found.make()
    return found


def given(text: bytes) -> Passphrase:
    """A passphrase that comes through a pipe."""
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    return Passphrase(reader)


def refusal(reason: str, call: object, *arguments: object, **named: object) -> None:
    with pytest.raises(KeysError) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    assert caught.value.reason == reason
    assert caught.value.exit_code == 13


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_a_key_that_two_make_at_once_is_one(private: Private, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """A bundle that was encrypted with one that is gone could not be read again."""
    both, write = threading.Barrier(2), privates.atomic_write

    def slowly(*words: Any) -> None:
        both.wait(60)  # neither has found one
        write(*words)

    def no_links(*words: object) -> None:
        raise PermissionError(errno.EPERM, "link")

    if links:
        monkeypatch.setattr(privates, "atomic_write", slowly)
    else:
        monkeypatch.setattr(privates.os, "link", no_links)
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(payload.new_key, private, bytes(32)) for _ in range(2 if links else 1)]
    assert {one.result() for one in made} == {payload.key_of(private, bytes(32))}
    monkeypatch.setattr(privates, "atomic_write", write)
    refusal("keys-there", private.write, payload.KIND, "payload.key", X25519PrivateKey.generate())
    assert [path.name for path in (private.folder / payload.KIND).iterdir()] == ["payload.key"]


def test_a_key_is_written_once(private: Private, monkeypatch: pytest.MonkeyPatch) -> None:
    both, write = threading.Barrier(2), privates.atomic_write
    monkeypatch.setattr(privates, "atomic_write", lambda *words: (both.wait(60), write(*words)))
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(private.write, "tuf", "a.pem", X25519PrivateKey.generate()) for _ in range(2)]
    assert sorted(one.exception() is None for one in made) == [False, True]


def test_private_keys_are_for_their_owner_alone(private: Private):
    old = os.umask(0)
    try:
        tuf.new_key(private, "root-1")
    finally:
        os.umask(old)
    paths = [private.folder, *private.folder.rglob("*")]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths} == {
        "private": 0o700,
        "tuf": 0o700,
        "root-1.pem": 0o600,
    }


@pytest.mark.parametrize("place", ["", "tuf", "tuf/root-1.pem"])
@pytest.mark.parametrize("mode", [0o040, 0o004, 0o010])
def test_keys_that_others_can_read_are_not_used(private: Private, place: str, mode: int):
    tuf.new_key(private, "root-1")
    path = private.folder / place
    path.chmod(path.stat().st_mode | mode)
    refusal("keys-exposed", private.load, "tuf", "root-1.pem")
    refusal("keys-exposed", private.names, "tuf")
    refusal("keys-exposed", tuf.new_key, private, "root-2")


def test_a_key_is_never_overwritten(private: Private, tmp_path: Path):
    tuf.new_key(private, "root-1")
    refusal("keys-there", tuf.new_key, private, "root-1")
    stick = Private(tmp_path / "stick", Passphrase(none=True))
    tuf.new_key(stick, "root-1")
    refusal("keys-there", private.move, "tuf", "root-1.pem", stick.folder, keep=False)
    refusal("keys-there", private.move, "tuf", "root-1.pem", private.folder, keep=False)
    assert private.names("tuf") == {"root-1"}


def test_a_key_that_was_copied_can_be_moved(private: Private, tmp_path: Path):
    tuf.new_key(private, "root-1")
    for keep in (True, True, False):
        private.move("tuf", "root-1.pem", tmp_path / "stick", keep=keep)
    assert private.names("tuf") == set()


def test_a_folder_for_keys_that_is_none_or_cannot_be_written(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("no folder")
    for folder, reason in ((file, "folder-unknown"), (file / "below", "host-io"), (Path("/proc/keys-of"), "host-io")):
        with pytest.raises(HostError) as caught:
            tuf.new_key(Private(folder, Passphrase(none=True)), "root-1")
        assert caught.value.reason == reason
        assert caught.value.hint


def test_a_key_that_is_moved_is_there_and_not_here(private: Private, tmp_path: Path):
    tuf.new_key(private, "root-1")
    private.move("tuf", "root-1.pem", tmp_path / "stick", keep=False)
    assert private.names("tuf") == set()
    assert Private(tmp_path / "stick", Passphrase()).names("tuf") == {"root-1"}
    refusal("keys-missing", private.load, "tuf", "root-1.pem")


def test_the_folder_is_where_its_owner_says(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("MIXOS_KEYS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert privates.default_folder("mixos") == tmp_path / "mixos" / "keys" / "mixos"
    monkeypatch.setenv("MIXOS_KEYS", "/media/stick")
    assert privates.default_folder("mixos") == Path("/media/stick")


# -- passphrases -------------------------------------------------------------------------------------------------------


def test_a_passphrase_from_a_descriptor_opens_what_it_closed(tmp_path: Path):
    folder = tmp_path / "private"
    tuf.new_key(Private(folder, given(b"correct horse\n")), "root-1")
    assert b"ENCRYPTED" in (folder / "tuf" / "root-1.pem").read_bytes()
    assert Private(folder, given(b"correct horse\n")).load("tuf", "root-1.pem")
    refusal("keys-passphrase", Private(folder, given(b"battery staple\n")).load, "tuf", "root-1.pem")


def test_a_new_key_gets_the_passphrase_of_those_that_are_there(tmp_path: Path):
    folder = tmp_path / "private"
    tuf.new_key(Private(folder, given(b"correct horse\n")), "root-1")
    refusal("keys-passphrase", tuf.new_key, Private(folder, given(b"corect horse\n")), "root-2")
    assert Private(folder, Passphrase()).names("tuf") == {"root-1"}
    tuf.new_key(Private(folder, given(b"correct horse\n")), "root-2")
    tuf.new_key(Private(folder, Passphrase(none=True)), "root-3")


def test_a_passphrase_that_is_none_leaves_no_folder(tmp_path: Path):
    refusal("keys-passphrase", tuf.new_key, Private(tmp_path / "private", given(b"short\n")), "root-1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"short\n", b" with blanks \n", b"with\ttabs\n", b"x" * 2000, b"\xff" * 10]
)
def test_a_passphrase_that_is_none_is_refused(tmp_path: Path, text: bytes):
    refusal("keys-passphrase", tuf.new_key, Private(tmp_path / "private", given(text)), "root-1")
    refusal("keys-passphrase", tuf.new_key, Private(tmp_path / "private", Passphrase(1000)), "root-1")


def test_a_file_that_is_no_key_is_said(private: Private):
    (private.folder_of("tuf") / "root-1.pem").write_text("no key")
    (private.folder / "tuf" / "root-1.pem").chmod(0o600)
    refusal("keys-damaged", private.load, "tuf", "root-1.pem")


# -- roots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("simple", "count", "threshold"), [(False, 3, 2), (True, 1, 1)])
def test_the_first_root_signs_itself(private: Private, simple: bool, count: int, threshold: int):
    root = tuf.make_root(private, simple=simple, now=NOW)
    assert len(root.signed.roles["root"].keyids) == count
    assert root.signed.roles["root"].threshold == threshold
    assert tuf.missing(root, None) == 0
    assert Trusted(dump(root), Kept(), NOW).root.version == 1
    assert [(one.name, one.here) for one in tuf.held(root.signed, private)][-1] == ("timestamp-1", True)


def test_a_root_follows_signed_by_old_and_new_keys(private: Private, tmp_path: Path):
    first = tuf.make_root(private, simple=False, now=NOW)
    for name in ("root-2", "root-3"):
        private.move("tuf", f"{name}.pem", tmp_path / name, keep=False)
    new = tuf.next_name({tuf.name_of(key) for key in first.signed.keys.values()}, "root-1")
    assert new == "root-4"
    second = Metadata(tuf.replace_key(first.signed, "root-1", tuf.new_key(private, new), NOW))
    assert first.signed.version == 1
    assert len(first.signed.roles["root"].keyids) == 3  # the one before is not touched
    assert sorted(tuf.sign_root(second, first.signed, private)) == ["root-1", "root-4"]
    assert tuf.missing(second, first.signed) == 1
    elsewhere = Metadata.from_bytes(dump(second))
    assert tuf.sign_root(elsewhere, first.signed, Private(tmp_path / "root-2", Passphrase())) == ["root-2"]
    assert tuf.merge(second, [elsewhere]) == 1
    assert tuf.merge(second, [elsewhere]) == 0
    assert tuf.missing(second, first.signed) == 0
    trusted = Trusted(dump(first), Kept((dump(second),)), NOW)
    assert trusted.root.version == 2


def test_signing_twice_changes_nothing(private: Private):
    root = tuf.make_root(private, simple=False, now=NOW)
    before = dump(root)
    assert tuf.sign_root(root, None, private) == []
    assert dump(root) == before


def test_signatures_of_something_else_are_not_merged(private: Private):
    root = tuf.make_root(private, simple=True, now=NOW)
    other = Metadata(tuf.next_root(root.signed, NOW))
    refusal("keys-other", tuf.merge, root, [other])


def test_a_revocation_leaves_enough_keys_or_is_refused(private: Private):
    root = tuf.make_root(private, simple=False, now=NOW).signed
    second = tuf.replace_key(root, "root-3", None, NOW)
    assert len(second.roles["root"].keyids) == 2
    refusal("keys-threshold", tuf.replace_key, second, "root-2", None, NOW)
    refusal("keys-threshold", tuf.replace_key, root, "targets-1", None, NOW)
    refusal("keys-unknown", tuf.replace_key, root, "targets-9", None, NOW)


def test_a_key_that_is_kept_elsewhere_is_known_by_its_public_part(private: Private):
    first = tuf.make_root(private, simple=True, now=NOW).signed
    hardware = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = hardware.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    second = tuf.replace_key(first, "targets-1", tuf.foreign_key(pem, "targets-2"), NOW)
    assert [(one.name, one.here) for one in tuf.held(second, private) if one.role == "targets"] == [
        ("targets-2", False)
    ]
    refusal("keys-damaged", tuf.foreign_key, b"no key", "targets-2")


def test_a_key_of_a_kind_that_devices_do_not_know_is_not_written():
    """The library would take it."""
    pem = MLDSA65PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    refusal("keys-kind", tuf.foreign_key, pem, "targets-2")


def test_a_name_in_a_root_is_no_path(private: Private):
    root = tuf.make_root(private, simple=True, now=NOW).signed
    key = next(iter(root.keys.values()))
    key.unrecognized_fields[tuf.NAME] = "../../etc/x"
    assert tuf.name_of(key) == key.keyid


def test_a_key_by_an_address_that_nobody_serves_is_said(private: Private):
    root = tuf.make_root(private, simple=True, now=NOW)
    uri = private.folder / "tuf" / "root-1.uri"
    uri.write_text("nothing:known")
    uri.chmod(0o600)
    following = Metadata(tuf.next_root(root.signed, NOW))
    refusal("keys-elsewhere", tuf.sign_root, following, root.signed, private)


def test_a_token_that_does_not_sign_is_said(private: Private, monkeypatch):
    class Locked:
        def sign(self, payload: bytes) -> None:
            raise OSError("PIN locked")

    root = tuf.make_root(private, simple=True, now=NOW)
    following = Metadata(tuf.next_root(root.signed, NOW))
    monkeypatch.setattr(tuf, "_signer", lambda *_: Locked())
    refusal("keys-elsewhere", tuf.sign_root, following, root.signed, private)


# -- Secure Boot -------------------------------------------------------------------------------------------------------


def test_certificates_of_secure_boot_outlast_the_devices(private: Private, public: Public):
    secureboot.make(private, public, "mixos", NOW)
    serials = set()
    for role in ("PK", "KEK", "db"):
        found = x509.load_pem_x509_certificate((public.secureboot / f"{role}.pem").read_bytes())
        assert found.public_key().key_size == 2048  # type: ignore[union-attr]
        assert found.not_valid_after_utc - found.not_valid_before_utc > timedelta(days=20 * 365)
        found.verify_directly_issued_by(found)
        assert private.load("secureboot", f"{role}.key").public_key() == found.public_key()
        serials.add(found.serial_number)
    assert len(serials) == 3
    assert secureboot.next_name(private, public, "db") == "db-2"
    secureboot.make_one(private, public, "db", "db-2", "mixos", NOW)
    assert secureboot.next_name(private, public, "db") == "db-3"
    (public.secureboot / "db-2.pem").unlink()  # a cut before the certificate was written
    assert secureboot.next_name(private, public, "db") == "db-3"


def test_keys_of_secure_boot_are_handed_to_the_signing_of_images(private: Private, public: Public) -> None:
    secureboot.make(private, public, "mixos", NOW)
    found = secureboot.load(private, public)
    assert str(found.owner) == (public.secureboot / "owner").read_text().strip()
    pem = found.db.key
    assert isinstance(pem, bytes)
    assert b"BEGIN PRIVATE KEY" in pem
    assert found.db.certificate == (public.secureboot / "db.pem").read_bytes()
    token = private.folder / "secureboot" / "db.uri"
    token.write_text("pkcs11:token=release;object=db\n")
    token.chmod(0o600)
    assert secureboot.load(private, public).db.key == "pkcs11:token=release;object=db"
    (public.secureboot / "owner").write_text("nobody\n")
    refusal("keys-damaged", secureboot.load, private, public)
    (public.secureboot / "KEK.pem").unlink()
    refusal("keys-none", secureboot.read, public, "KEK.pem")


@pytest.fixture
def enrolled(private: Private, public: Public) -> tuple[Private, Public]:
    """Keys of Secure Boot, and db-2 and KEK-2, which no device knows."""
    secureboot.make(private, public, "mixos", NOW)
    for role in ("db", "KEK"):
        secureboot.make_one(private, public, role, f"{role}-2", "mixos", NOW)
    return private, public


def der(public: Public, name: str) -> bytes:
    return secureboot.Signer((public.secureboot / f"{name}.pem").read_bytes(), b"").der


def test_what_images_add_is_signed_by_what_devices_know(enrolled: tuple[Private, Public]) -> None:
    private, public = enrolled
    made = [
        secureboot.enrol(private, public, "KEK-2", None, NOW),
        secureboot.enrol(private, public, "db-2", None, NOW),
        secureboot.revoke(private, public, "db", "KEK-2", NOW),
    ]
    assert [one.name for one in made] == ["0001-KEK", "0002-db", "0003-dbx"]
    assert secureboot.read_additions(public) == tuple(made)
    holds = [(one.data, str(one.owner)) for each in made for one in each.update.signatures]
    owner = (public.secureboot / "owner").read_text().strip()
    assert holds == [(der(public, name), owner) for name in ("KEK-2", "db-2", "db")]
    by = [pkcs7.certificates(one.update.signature)[0].data for one in made]
    assert by == [der(public, name) for name in ("PK", "KEK", "KEK-2")]
    assert {one.update.time for one in made} == {NOW}
    assert secureboot.enrol(private, public, "db-2", "KEK-2", NOW) == made[1]  # it is there
    assert len(secureboot.read_additions(public)) == 3


def test_a_kernel_image_is_revoked_by_its_hash(enrolled: tuple[Private, Public], tmp_path: Path) -> None:
    private, public = enrolled
    image = pe_image([(".text", b"code")])
    (tmp_path / "old.efi").write_bytes(image)
    (one,) = secureboot.revoke_image(private, public, tmp_path / "old.efi", None, NOW).update.signatures
    assert (one.kind, one.data) == (siglist.SHA256, pe.authenticode(image))
    (tmp_path / "old.efi").write_bytes(b"no image")
    for name in ("old.efi", "none.efi"):
        refusal("keys-image", secureboot.revoke_image, private, public, tmp_path / name, None, NOW)


def test_what_is_not_added(enrolled: tuple[Private, Public]) -> None:
    private, public = enrolled
    refusal("keys-threshold", secureboot.revoke, private, public, "db", None, NOW)
    secureboot.revoke(private, public, "db-2", None, NOW)
    secureboot.enrol(private, public, "db-2", None, NOW)
    refusal("keys-threshold", secureboot.revoke, private, public, "db", None, NOW)
    for name in ("PK", "root-1", "../db", "db-0", ""):
        refusal("keys-role", secureboot.enrol, private, public, name, None, NOW)
    refusal("keys-role", secureboot.revoke, private, public, "KEK-2", None, NOW)
    refusal("keys-role", secureboot.enrol, private, public, "KEK", "KEK-2", NOW)
    refusal("keys-none", secureboot.enrol, private, public, "db-9", None, NOW)
    (private.folder / "secureboot" / "KEK.key").unlink()
    refusal("keys-missing", secureboot.enrol, private, public, "db", None, NOW)
    (public.additions / "notes.txt").write_text("")
    refusal("keys-additions", secureboot.read_additions, public)


def test_the_command_line_adds(
    enrolled: tuple[Private, Public], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, _ = enrolled
    (tmp_path / "mixos.toml").write_bytes((ROOT / "mixos.toml").read_bytes())
    monkeypatch.setenv("MIXOS_KEYS", str(private.folder))
    (tmp_path / "old.EFI").write_bytes(pe_image([(".text", b"code")]))

    def call(*words: str) -> object:
        done = CliRunner().invoke(command, [*words, "--json"], obj=Context(tmp_path, None, None))
        return json.loads(done.output)["addition"] if not done.exception else getattr(done.exception, "reason", None)

    assert call("enrol", "db-2") == "0001-db"
    assert call("revoke", "db") == "0002-dbx"
    assert call("revoke", str(tmp_path / "old.EFI"), "--by", "KEK-2") == "0003-dbx"
    assert call("revoke", "KEK") == "keys-role"
    assert call("revoke", "root-1", "--by", "KEK") == "usage"
