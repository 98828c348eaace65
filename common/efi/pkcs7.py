"""PKCS #7 signatures of images (RFC 2315, RFC 5280; Microsoft, "Windows Authenticode Portable Executable Signature
Format"): the certificates inside, and what firmware verifies of them.

Verified are RSA signatures (RFC 8017, 8.2: PKCS #1 v1.5) with SHA-256, -384 or -512, which is what UEFI asks of every
firmware; others count as wrong. Times of certificates are not asked, as firmware does not ask them. DER is read
strictly and bounded: definite lengths, one-byte tags, every length within its parent. Standard library only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.errors import FormatError

_SEQUENCE, _SET, _OID, _INTEGER, _BITS, _OCTETS, _BOOLEAN = 0x30, 0x31, 0x06, 0x02, 0x03, 0x04, 0x01
_CONTEXT_0, _EXTENSIONS = 0xA0, 0xA3
_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_INDIRECT_DATA = bytes.fromhex("2b060104018237020104")  # SpcIndirectDataContent: the digest of an image
_MESSAGE_DIGEST = bytes.fromhex("2a864886f70d010904")
_BASIC_CONSTRAINTS, _KEY_USAGE = b"\x55\x1d\x13", b"\x55\x1d\x0f"
_KEY_ID, _AUTHORITY_KEY_ID = b"\x55\x1d\x0e", b"\x55\x1d\x23"
_CERT_SIGN = 0x04  # in the first byte of a key usage
_RSA = bytes.fromhex("2a864886f70d010101")
_HASHES = {bytes.fromhex(f"60864801650304020{number}"): f"sha{bits}" for number, bits in ((1, 256), (2, 384), (3, 512))}
_RSA_WITH = {bytes.fromhex(f"2a864886f70d01010{at}"): f"sha{bits}" for at, bits in (("b", 256), ("c", 384), ("d", 512))}
_TEXTS = {0x0C: "utf-8", 0x1C: "utf-32-be", 0x1E: "utf-16-be"} | dict.fromkeys((0x13, 0x14, 0x16, 0x1A), "latin-1")
_RSA_BITS = range(2048, 8193)
_MAX_CERTIFICATES = 32


class DerError(FormatError):
    """Bytes that are no sound PKCS #7 signature or X.509 certificate."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "der-invalid")


@dataclass(frozen=True)
class Certificate:
    """data: the whole, DER. signed: its TBSCertificate, which the issuer signed. issuer, subject: names, DER. serial:
    number, DER. key: SubjectPublicKeyInfo, DER. authority: it may issue others. algorithm: OID by which `signature` was
    made. key_id: by which others name its key; issuer_key_id, issuer_serial: by which it names who issued it, if it
    does."""

    data: bytes
    signed: bytes
    issuer: bytes
    subject: bytes
    serial: bytes
    key: bytes
    authority: bool
    algorithm: bytes
    signature: bytes
    key_id: bytes | None
    issuer_key_id: bytes | None
    issuer_serial: bytes | None

    def digest(self, algorithm: str) -> bytes:
        """The digest by which lists name a certificate without holding it."""
        return hashlib.new(algorithm, self.signed).digest()

    def issued(self, other: Certificate) -> bool:
        """Whether this certificate may issue others, the other one means it, and its key signed that. Raises
        DerError."""
        return self.authority and self.meant_by(other) and self.verifies(other)

    def meant_by(self, other: Certificate) -> bool:
        """Whether nothing in the other one speaks against this one as its issuer: name, key, and number."""
        key = self.key_id is None or other.issuer_key_id in (None, self.key_id)
        return self.named_by(other) and key and other.issuer_serial in (None, _first(self.serial)[0].content)

    def named_by(self, other: Certificate) -> bool:
        """Whether the other one says that this one has issued it."""
        return _folded(self.subject) == _folded(other.issuer)

    def verifies(self, other: Certificate) -> bool:
        """Whether the other one says so, and its signature is by this one's key. Raises DerError."""
        if not self.named_by(other) or other.algorithm not in _RSA_WITH:
            return False
        return _verified(self.key, _RSA_WITH[other.algorithm], other.signed, other.signature)


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
    signed, rest = _take(outer.content, _SEQUENCE, "TBSCertificate")
    algorithm, rest = _take(rest, _SEQUENCE, "an algorithm")
    signature, rest = _take(rest, _BITS, "a signature")
    if rest or signature.content[:1] != b"\0":
        raise DerError("the signature of a certificate is no whole bytes, or something follows it")
    fields = signed.content
    if fields and fields[0] == _CONTEXT_0:  # version
        _, fields = _first(fields)
    serial, fields = _take(fields, _INTEGER, "a serial number")
    _, fields = _take(fields, _SEQUENCE, "an algorithm")
    issuer, fields = _take(fields, _SEQUENCE, "an issuer")
    _, fields = _take(fields, _SEQUENCE, "a validity")
    subject, fields = _take(fields, _SEQUENCE, "a subject")
    key, fields = _take(fields, _SEQUENCE, "a public key")
    for name in (issuer, subject):
        _folded(name.whole)
    names = issuer.whole, subject.whole, serial.whole
    extensions = _extensions(fields)
    kind = _is_authority(extensions), _oid(algorithm)
    return Certificate(data, signed.whole, *names, key.whole, *kind, signature.content[1:], *_ids(extensions))


@lru_cache(256)
def _folded(name: bytes) -> tuple[tuple[bytes, str | bytes], ...]:
    """A name as firmware compares it (RFC 5280, 7.1): kinds and values, however a text is stored, without its case and
    the number of its blanks. Raises DerError."""
    found: list[tuple[bytes, str | bytes]] = []
    parts = _take(name, _SEQUENCE, "a name")[0].content
    while parts:
        part, parts = _take(parts, _SET, "a part of a name")
        attributes = part.content
        while attributes:
            attribute, attributes = _take(attributes, _SEQUENCE, "a part of a name")
            kind, rest = _take(attribute.content, _OID, "a kind of name")
            value, _ = _first(rest)
            encoding = _TEXTS.get(value.tag)
            text = " ".join(value.content.decode(encoding, "replace").split()).lower() if encoding else value.whole
            found.append((kind.content, text))
    return tuple(found)


def _extensions(fields: bytes) -> dict[bytes, bytes]:
    """What the extensions hold, by kind. fields: of a TBSCertificate, behind the key."""
    found = {}
    while fields:
        value, fields = _first(fields)
        extensions = _take(value.content, _SEQUENCE, "extensions")[0].content if value.tag == _EXTENSIONS else b""
        while extensions:
            extension, extensions = _take(extensions, _SEQUENCE, "an extension")
            oid, rest = _take(extension.content, _OID, "a kind of extension")
            if rest[:1] == bytes([_BOOLEAN]):  # critical
                _, rest = _first(rest)
            found[oid.content] = _take(rest, _OCTETS, "an extension")[0].content
    return found


def _is_authority(extensions: Mapping[bytes, bytes]) -> bool:
    """What they say, if they do (RFC 5280, 4.2.1.3 and 4.2.1.9)."""
    authority, signs = False, True
    if _BASIC_CONSTRAINTS in extensions:
        content = _take(extensions[_BASIC_CONSTRAINTS], _SEQUENCE, "basic constraints")[0].content
        authority = content[:3] == b"\x01\x01\xff"
    if _KEY_USAGE in extensions:
        content = _take(extensions[_KEY_USAGE], _BITS, "a key usage")[0].content
        signs = bool(content[1:2].ljust(1, b"\0")[0] & _CERT_SIGN)
    return authority and signs


def _ids(extensions: Mapping[bytes, bytes]) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The name of its key, of the key that signed it, and the number of that one's certificate, as far as they are
    told (RFC 5280, 4.2.1.1 and 4.2.1.2)."""
    own = extensions.get(_KEY_ID)
    key = None if own is None else _take(own, _OCTETS, "a name of a key")[0].content
    told: dict[int, bytes] = {}
    if _AUTHORITY_KEY_ID in extensions:
        left = _take(extensions[_AUTHORITY_KEY_ID], _SEQUENCE, "who has signed")[0].content
        while left:
            value, left = _first(left)
            told[value.tag] = value.content
    return key, told.get(0x80), told.get(0x82)


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
    return _opened(signature).certificates


@dataclass(frozen=True)
class _Opened:
    """Of a signature: its digest algorithms, its content, its certificates, and what follows them."""

    algorithms: bytes
    content: bytes
    certificates: list[Certificate]
    rest: bytes


def _opened(signature: bytes) -> _Opened:
    data = _take(signed_data(signature), _SEQUENCE, "SignedData")[0].content
    _, data = _take(data, _INTEGER, "a version")
    algorithms, data = _take(data, _SET, "the digest algorithms")
    content, data = _take(data, _SEQUENCE, "the content")
    listed = b""
    if data[:1] == bytes([_CONTEXT_0]):
        value, data = _first(data)
        listed = value.content
    found: list[Certificate] = []
    while listed:
        if len(found) == _MAX_CERTIFICATES:
            raise DerError(f"a signature has more than {_MAX_CERTIFICATES} certificates")
        value, listed = _take(listed, _SEQUENCE, "a certificate")
        found.append(certificate(value.whole))
    return _Opened(algorithms.content, content.content, found, data)


# --- verifying --------------------------------------------------------------------------------------------------------


def signers(signature: bytes, digests: Mapping[str, bytes], others: Sequence[Certificate] = ()) -> list[Certificate]:
    """Whose signature of an image this is: the certificate that made it, those that issued that, and so on, each step
    verified, to one that means itself: no other one is taken for it, whoever has signed it. Empty when the signature is
    wrong, or of another image.

    digests: of the image (`pe.authenticode`) by name of the algorithm. others: certificates that may have issued those
    in the signature. Raises DerError.
    """
    opened = _opened(signature)
    kind, wrapped = _take(opened.content, _OID, "a kind of content")
    explicit, _ = _take(wrapped, _CONTEXT_0, "the content")
    indirect, _ = _take(explicit.content, _SEQUENCE, "SpcIndirectDataContent")
    _, message = _take(indirect.content, _SEQUENCE, "SpcAttributeTypeAndOptionalValue")
    digest, _ = _take(message, _SEQUENCE, "the digest of an image")
    algorithm, told = _take(digest.content, _SEQUENCE, "an algorithm")
    if kind.content != _INDIRECT_DATA or (name := _HASHES.get(_oid(algorithm), "")) not in digests:
        return []
    if _take(told, _OCTETS, "a digest")[0].content != digests[name]:
        return []
    found = [one for one in opened.certificates if _signed_by(one, opened, indirect.content)]
    known = list(dict.fromkeys((*opened.certificates, *others)))
    for one in found:  # grows meanwhile
        found += [other for other in known if other not in found and other.issued(one) and not one.meant_by(one)]
    return found


def _signed_by(by: Certificate, opened: _Opened, content: bytes) -> bool:
    """Whether the only signer in a signature is this certificate, and the signature is right. content: what the digest
    in the signature is of."""
    rest = opened.rest
    while rest and rest[0] != _SET:  # lists of revoked certificates
        _, rest = _first(rest)
    listed, _ = _take(rest, _SET, "a signer")
    info, more = _take(listed.content, _SEQUENCE, "a signer")
    _, fields = _take(info.content, _INTEGER, "a version")
    named, fields = _take(fields, _SEQUENCE, "the name of a signer")
    algorithm, fields = _take(fields, _SEQUENCE, "an algorithm")
    attributes, fields = _take(fields, _CONTEXT_0, "what is signed")
    encryption, fields = _take(fields, _SEQUENCE, "an algorithm")
    signature, _ = _take(fields, _OCTETS, "a signature")
    name = _HASHES.get(_oid(algorithm))
    if more or name is None or algorithm.whole not in opened.algorithms or named.content != by.issuer + by.serial:
        return False
    if _oid(encryption) != _RSA and _RSA_WITH.get(_oid(encryption)) != name:
        return False
    if _attribute(attributes.content, _MESSAGE_DIGEST) != hashlib.new(name, content).digest():
        return False
    return _verified(by.key, name, bytes([_SET]) + attributes.whole[1:], signature.content)


def _attribute(attributes: bytes, kind: bytes) -> bytes | None:
    """The octets of an attribute, when it is there once with one value."""
    found: list[bytes] = []
    while attributes:
        attribute, attributes = _take(attributes, _SEQUENCE, "an attribute")
        oid, rest = _take(attribute.content, _OID, "a kind of attribute")
        if oid.content == kind:
            values, _ = _take(rest, _SET, "the values of an attribute")
            value, more = _take(values.content, _OCTETS, "the value of an attribute")
            found += [value.content, *([more] if more else [])]
    return found[0] if len(found) == 1 else None


def _oid(algorithm: _Value) -> bytes:
    """The OID of an algorithm that has no parameters; nothing for another one."""
    oid, parameters = _take(algorithm.content, _OID, "an algorithm")
    return oid.content if parameters in (b"", b"\x05\0") else b""


def _verified(key: bytes, name: str, message: bytes, signature: bytes) -> bool:
    """Whether an RSA signature of a message is right. key: SubjectPublicKeyInfo."""
    algorithm, rest = _take(_take(key, _SEQUENCE, "a public key")[0].content, _SEQUENCE, "an algorithm")
    if _oid(algorithm) != _RSA:
        return False
    numbers, _ = _take(_take(rest, _BITS, "a public key")[0].content[1:], _SEQUENCE, "an RSA key")
    modulus, rest = _take(numbers.content, _INTEGER, "a modulus")
    exponent, _ = _take(rest, _INTEGER, "an exponent")
    n, e = int.from_bytes(modulus.content), int.from_bytes(exponent.content)
    length = -(-n.bit_length() // 8)
    if n.bit_length() not in _RSA_BITS or not 3 <= e < 1 << 32 or len(signature) != length:
        return False
    oid = next(oid for oid, known in _HASHES.items() if known == name)
    digest = hashlib.new(name, message).digest()
    told = _der(_SEQUENCE, _der(_SEQUENCE, _der(_OID, oid) + b"\x05\0") + _der(_OCTETS, digest))
    padded = b"\0\1" + b"\xff" * (length - 3 - len(told)) + b"\0" + told
    return pow(int.from_bytes(signature), e, n).to_bytes(length) == padded


def _der(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content  # of less than 128 bytes
