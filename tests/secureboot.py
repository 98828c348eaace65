"""Keys and certificates for tests of Secure Boot: made anew for each run, by the library that a host has anyway."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from image.secureboot import Keys, Signer

OWNER = UUID("6d786f73-0000-4000-8000-000000000001")


def signer(
    name: str,
    issuer: str | None = None,
    key: str | None = None,
    text: str = "UTF8String",
    number: int = 1,
    *,
    pss: bool = False,
    means: str | None = None,
) -> Signer:
    """A key and its certificate, signed by itself (an authority) or by the key of another name (none); the same each
    time. key: the name of the key, if it is another one than that in the certificate; text: how the issuer's name is
    stored; number: another one makes another certificate of the same key; pss: its signature is
    of a kind that some firmware verifies (RFC 8017, 8.1); means: the name of the key that it says to be signed by."""
    return _signer(name, issuer or name, key or name, text, number, pss=pss, means=means)


@functools.cache
def _signer(name: str, issuer: str, key_name: str, text: str, number: int, *, pss: bool, means: str | None) -> Signer:
    key = _key(key_name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer, _type=_ASN1Type[text])])
    said = [x509.AuthorityKeyIdentifier.from_issuer_public_key(_key(means).public_key())] if means else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2049, 1, 1, tzinfo=UTC))
    )
    basic, own = x509.BasicConstraints(ca=issuer == name, path_length=None), x509.SubjectKeyIdentifier
    for extension in (basic, own.from_public_key(key.public_key()), *said):
        builder = builder.add_extension(extension, critical=extension is basic)
    certificate = builder.sign(
        _key(key_name if issuer == name else issuer.strip().lower()),
        hashes.SHA256(),
        rsa_padding=padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH) if pss else None,
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Signer(certificate.public_bytes(Encoding.PEM), private)


@functools.cache
def _key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def keys() -> Keys:
    """A whole set."""
    return Keys(signer("PK"), signer("KEK"), signer("db"), OWNER)


def content_info(signed: bytes) -> bytes:
    """A signature with the frame that firmware does without and openssl does not."""
    inner = b"\x06\x09" + bytes.fromhex("2a864886f70d010702") + b"\xa0\x82" + len(signed).to_bytes(2, "big") + signed
    return b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
