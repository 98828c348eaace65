"""Certificates of Secure Boot (UEFI 2.10, section 32): PK owns the platform, KEK changes db, db signs programs.

RSA-2048, the one size that firmware must take, each signed by itself. Firmware looks at no dates; these are far apart
because tools do.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from buildsys.files import atomic_write
from buildsys.keys.private import Private
from buildsys.keys.public import Public
from buildsys.keys.tuf import next_name as next_key
from common.errors import KeysError
from common.files import read_regular
from image.secureboot import Keys, Signer

ROLES = {"PK": "Platform Key", "KEK": "Key Exchange Key", "db": "Signature Database Key"}
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
    try:
        owner = uuid.UUID(read(public, "owner").decode("ascii").strip())
    except ValueError as error:
        raise KeysError(f"{public.secureboot / 'owner'} holds no GUID", reason="keys-damaged") from error
    pk, kek, db = (load_one(private, public, role) for role in ("PK", "KEK", "db"))
    return Keys(pk, kek, db, owner)


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
