"""Certificates of Secure Boot (UEFI 2.10, section 32): PK owns the platform, KEK changes db, db signs programs.

RSA-2048, the one size that firmware must take, each signed by itself. Firmware looks at no dates; these are far apart
because tools do. What devices that have enrolled them are given later is in the images (`common.efi.additions`).
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from buildsys.files import atomic_write
from buildsys.keys.private import Private
from buildsys.keys.public import Public
from buildsys.keys.tuf import next_name as next_key
from common.efi import additions, pe, siglist
from common.efi.additions import SIGNED_BY, Addition
from common.efi.siglist import Signature
from common.errors import FormatError, KeysError
from common.files import read_regular
from image.secureboot import Keys, Signer, update

ROLES = {"PK": "Platform Key", "KEK": "Key Exchange Key", "db": "Signature Database Key"}
NAME = re.compile(r"(PK|KEK|db)(-[1-9][0-9]{0,3})?")  # of a key: its role, and which of them it is
_MAX_IMAGE = 256 << 20
UNTIL = datetime(2049, 12, 31, tzinfo=UTC)  # the last year that UTCTime has (RFC 5280, 4.1.2.5)


def make(private: Private, public: Public, image: str, now: datetime) -> None:
    """New keys and certificates for all three, and the GUID of their owner."""
    for role in ROLES:
        make_one(private, public, role, role, image, now)
    atomic_write(public.secureboot / "owner", f"{uuid.uuid4()}\n".encode())


def make_one(private: Private, public: Public, role: str, name: str, image: str, now: datetime) -> None:
    """One key, kept as NAME.key, and its certificate, NAME.pem."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private.write("secureboot", f"{name}.key", key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{image} {ROLES[role]}")])
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(identity, critical=False)
        .sign(key, hashes.SHA256())
    )
    atomic_write(public.secureboot / f"{name}.pem", certificate.public_bytes(Encoding.PEM))


def load(private: Private, public: Public) -> Keys:
    """The keys as the enrolment of an image wants them. Raises KeysError."""
    pk, kek, db = (load_one(private, public, role) for role in ("PK", "KEK", "db"))
    return Keys(pk, kek, db, _owner(public))


def _owner(public: Public) -> uuid.UUID:
    try:
        return uuid.UUID(read(public, "owner").decode("ascii").strip())
    except ValueError as error:
        raise KeysError(f"{public.secureboot / 'owner'} holds no GUID", reason="keys-damaged") from error


def load_one(private: Private, public: Public, role: str) -> Signer:
    """One of them; the private part is NAME.key, or named by a URI "pkcs11:..." in NAME.uri. Raises KeysError."""
    if (private.folder / "secureboot" / f"{role}.uri").exists():
        uri = private.read("secureboot", f"{role}.uri").decode("utf-8", "replace").strip()
        return Signer(read(public, f"{role}.pem"), uri)
    key = private.load("secureboot", f"{role}.key")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Signer(read(public, f"{role}.pem"), pem)


def read(public: Public, name: str) -> bytes:
    """A public file. Raises KeysError `keys-none`."""
    try:
        return read_regular(public.secureboot / name, 64 << 10)
    except OSError as error:
        message, hint = f"{public.secureboot / name}: {error.strerror}", "make keys: mixos keys make"
        raise KeysError(message, reason="keys-none", hint=hint) from error


def next_name(private: Private, public: Public, role: str) -> str:
    """The name of a further certificate of a role: db-2 after db."""
    taken = {path.stem for path in public.secureboot.glob("*.pem")} | private.names("secureboot")
    return next_key({f"{role}-1", *taken}, role)


# -- what images add to the databases of devices -----------------------------------------------------------------------


def enrol(private: Private, public: Public, name: str, by: str | None, now: datetime) -> Addition:
    """Have images add a certificate of db or KEK to devices' databases. by: the key that signs that, one of KEK or of
    PK that devices know; None: the first. Raises KeysError, also `keys-role` for another certificate."""
    role = name.partition("-")[0]
    if not NAME.fullmatch(name) or role not in SIGNED_BY:
        hint = "a PK is replaced where the machine stands: clear its keys in firmware's menu, and enrol the new ones"
        raise KeysError(f"{name} is no certificate of db or KEK", reason="keys-role", hint=hint)
    return _add(private, public, role, _certificate(public, name), by, now)


def revoke(private: Private, public: Public, name: str, by: str | None, now: datetime) -> Addition:
    """Have images add a certificate of db to devices' dbx. Raises KeysError, also `keys-role` for another one, and
    `keys-threshold` unless devices know another one that is not revoked."""
    if not NAME.fullmatch(name) or not name.startswith("db"):
        raise KeysError(f"{name} is no certificate of db: only what db trusts is revoked", reason="keys-role")
    entry, known = _certificate(public, name), read_additions(public)
    revoked = {entry.data} | {one.data for each in known if each.variable == "dbx" for one in each.update.signatures}
    enrolled = {one.data for each in known if each.variable == "db" for one in each.update.signatures}
    if not {_certificate(public, "db").data, *enrolled} - revoked:
        hint = "make another, and enrol it: mixos keys rotate db, mixos keys enrol db-2"
        raise KeysError(f"without {name} devices would start nothing", reason="keys-threshold", hint=hint)
    return _add(private, public, "dbx", entry, by, now)


def revoke_image(private: Private, public: Public, image: Path, by: str | None, now: datetime) -> Addition:
    """Have images add the hash of what firmware starts (a kernel image, a boot manager) to devices' dbx. Raises
    KeysError, also `keys-image`."""
    try:
        digest = pe.authenticode(read_regular(image, _MAX_IMAGE))
    except OSError as error:
        raise KeysError(f"{image}: {error.strerror}", reason="keys-image") from error
    except FormatError as error:
        raise KeysError(f"{image}: {error.message}", reason="keys-image") from error
    return _add(private, public, "dbx", Signature(siglist.SHA256, _owner(public), digest), by, now)


def read_additions(public: Public) -> tuple[Addition, ...]:
    """Those of a project, in order. Raises KeysError `keys-additions`."""
    try:
        return additions.read(public.additions)
    except OSError as error:
        raise KeysError(f"{public.additions}: {error.strerror}", reason="keys-additions") from error
    except FormatError as error:
        raise KeysError(f"{public.additions}: {error.message}", reason="keys-additions") from error


def _certificate(public: Public, name: str) -> Signature:
    return Signature(siglist.X509, _owner(public), Signer(read(public, f"{name}.pem"), b"").der)


def _add(private: Private, public: Public, variable: str, entry: Signature, by: str | None, now: datetime) -> Addition:
    """The one that is there already, or a new one. Raises KeysError, also `keys-role` for a key that signs no such."""
    known, role = read_additions(public), SIGNED_BY[variable]
    for one in known:
        if one.variable == variable and entry in one.update.signatures:
            return one
    by = by or role
    if not NAME.fullmatch(by) or by.partition("-")[0] != role:
        raise KeysError(f"{variable} is changed by a {role}, not by {by}", reason="keys-role")
    number = known[-1].number + 1 if known else 1
    data = update(variable, (entry,), load_one(private, public, by), now, append=True)
    public.additions.mkdir(parents=True, exist_ok=True)
    atomic_write(public.additions / additions.file_name(number, variable), data)
    return Addition(number, variable, data)
