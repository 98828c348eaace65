"""The certificates inside a PKCS #7 signature (RFC 2315, RFC 5280), as far as lists of revoked ones need them.

No signature is verified here: firmware does that. DER is read strictly and bounded: definite lengths, one-byte tags,
every length within its parent. Standard library only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from common.errors import FormatError

_SEQUENCE, _SET, _OID, _CONTEXT_0 = 0x30, 0x31, 0x06, 0xA0
_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_MAX_CERTIFICATES = 32


class DerError(FormatError):
    """Bytes that are no sound PKCS #7 signature or X.509 certificate."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "der-invalid")


@dataclass(frozen=True)
class Certificate:
    """data: the whole, DER. signed: its TBSCertificate, which the issuer signed. issuer, subject: names, DER."""

    data: bytes
    signed: bytes
    issuer: bytes
    subject: bytes

    def digest(self, algorithm: str) -> bytes:
        """The digest by which lists name a certificate without holding it."""
        return hashlib.new(algorithm, self.signed).digest()


@dataclass(frozen=True)
class _Value:
    tag: int
    whole: bytes
    content: bytes


def _first(data: bytes) -> tuple[_Value, bytes]:
    """The first value and what follows it."""
    if len(data) < 2 or data[0] & 0x1F == 0x1F:
        raise DerError("DER is cut off, or has a tag of several bytes")
    length, start = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or len(data) < 2 + count:
            raise DerError("DER has a length that is indefinite or too long")
        length, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < start + length:
        raise DerError("DER is cut off")
    return _Value(data[0], data[: start + length], data[start : start + length]), data[start + length :]


def _take(data: bytes, tag: int, what: str) -> tuple[_Value, bytes]:
    value, rest = _first(data)
    if value.tag != tag:
        raise DerError(f"{what} is missing")
    return value, rest


def certificate(data: bytes) -> Certificate:
    """Read one certificate, alone. Raises DerError."""
    outer, rest = _take(data, _SEQUENCE, "a certificate")
    if rest:
        raise DerError("something follows a certificate")
    signed, _ = _take(outer.content, _SEQUENCE, "TBSCertificate")
    fields = signed.content
    if fields and fields[0] == _CONTEXT_0:  # version
        _, fields = _first(fields)
    _, fields = _take(fields, 0x02, "a serial number")
    _, fields = _take(fields, _SEQUENCE, "an algorithm")
    issuer, fields = _take(fields, _SEQUENCE, "an issuer")
    _, fields = _take(fields, _SEQUENCE, "a validity")
    subject, _ = _take(fields, _SEQUENCE, "a subject")
    return Certificate(data, signed.whole, issuer.whole, subject.whole)


def signed_data(signature: bytes) -> bytes:
    """The SignedData of a signature without the ContentInfo that may be around it, and without padding behind it: as
    variables of firmware want it. Raises DerError."""
    outer, _ = _take(signature, _SEQUENCE, "SignedData")
    if outer.content[:1] != bytes([_OID]):
        return outer.whole
    kind, rest = _first(outer.content)
    if kind.content != _SIGNED_DATA:
        raise DerError("this is PKCS #7, but nothing signed")
    explicit, _ = _take(rest, _CONTEXT_0, "SignedData")
    return _take(explicit.content, _SEQUENCE, "SignedData")[0].whole


def certificates(signature: bytes) -> list[Certificate]:
    """The certificates that a signature carries, with or without its ContentInfo around. Raises DerError."""
    content = _take(signed_data(signature), _SEQUENCE, "SignedData")[0].content
    for tag, what in ((0x02, "a version"), (_SET, "the digest algorithms"), (_SEQUENCE, "the content")):
        _, content = _take(content, tag, what)
    if content[:1] != bytes([_CONTEXT_0]):
        return []
    listed, _ = _first(content)
    found: list[Certificate] = []
    rest = listed.content
    while rest:
        if len(found) == _MAX_CERTIFICATES:
            raise DerError(f"a signature has more than {_MAX_CERTIFICATES} certificates")
        value, rest = _take(rest, _SEQUENCE, "a certificate")
        found.append(certificate(value.whole))
    return found
