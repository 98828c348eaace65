"""Who has signed a text with OpenPGP (RFC 9580): detached signatures, judged one by one against pinned certificates.

A certificate counts once, whichever of its keys has signed and however often. It does not count when it or the key that
has signed is revoked or has expired by the given time, whenever the signature was made: what signs releases is renewed
before it ends. Signatures of others, damaged ones and those of another kind change nothing.

The cryptography is that of Sequoia, which judges a certificate as it was when it signed; that it still holds is judged
here, by the packets of the certificate. These are trusted: the image brings them. Sequoia takes the time of the system.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from pysequoia import Cert, Sig, verify
from pysequoia.packet import HashAlgorithm, Packet, PacketPile, SignatureType, Tag

from common.errors import TrustError
from common.safe import one_line

MAX_SIGNATURES = 32  # packets that are looked at, of all texts together
_ARMOR = re.compile(
    r"-----BEGIN PGP SIGNATURE-----\n(?:[A-Za-z]{1,20}: [ -~]{0,200}\n)*\n"
    r"([A-Za-z0-9+/=\n]*)-----END PGP SIGNATURE-----\n?"
)
_HASHES = (
    HashAlgorithm.SHA256,
    HashAlgorithm.SHA384,
    HashAlgorithm.SHA512,
    HashAlgorithm.SHA3_256,
    HashAlgorithm.SHA3_512,
)
_REVOCATIONS = (SignatureType.KeyRevocation, SignatureType.SubkeyRevocation)
_SIGNATURE = 2  # the packet's type (RFC 9580, section 5)
Answer = TypeVar("Answer")


@dataclass
class _Key:
    """A primary key or subkey, with the signatures that follow it up to the next key."""

    fingerprint: str
    created: datetime
    signatures: list[Packet] = field(default_factory=list)

    def revoked(self) -> bool:
        """Whether it is revoked, for whatever reason and from whatever time on."""
        return any(one.signature_type in _REVOCATIONS for one in self.signatures)

    def expired(self, now: datetime) -> bool:
        """Whether a subkey has expired: its newest binding says how long it is valid (section 5.2.3.10)."""
        bindings = [one for one in self.signatures if one.signature_type == SignatureType.SubkeyBinding]
        newest = max(bindings, key=lambda one: one.signature_created or self.created, default=None)
        period = newest.key_validity_period if newest else None
        return period is not None and self.created + period <= now


@dataclass(frozen=True)
class Pinned:
    """One certificate that is pinned: its fingerprint, and its keys by theirs."""

    fingerprint: str
    cert: Cert
    keys: dict[str, _Key]

    def problem(self, key: str, now: datetime) -> str | None:
        """Why a signature of one of its keys does not count."""
        if self.cert.is_revoked or self.keys[self.fingerprint].revoked():
            return "the certificate is revoked"
        if self.cert.expiration is not None and self.cert.expiration <= now:
            return "the certificate has expired"
        if self.keys[key].revoked():
            return "the key is revoked"
        return "the key has expired" if self.keys[key].expired(now) else None


@dataclass(frozen=True)
class _Signature:
    """What a signature says of itself; nothing of it is proved. maker: the key that it names, for people."""

    sig: Sig
    maker: str
    created: datetime | None
    expires: datetime | None
    binary: bool
    strong: bool

    @classmethod
    def read(cls, packet: bytes) -> _Signature:
        """Raises what the library raises, also for algorithms that it does not know."""
        sig = Sig.from_bytes(packet)
        maker = sig.issuer_fingerprint or sig.issuer_key_id or "somebody"
        binary, strong = sig.signature_type == SignatureType.Binary, sig.hash_algorithm in _HASHES
        return cls(sig, maker, sig.created, sig.expiration, binary, strong)


@dataclass(frozen=True)
class Judged:
    """certificates: fingerprints of those that count; others: what was wrong with each other signature, for people."""

    certificates: frozenset[str]
    others: tuple[str, ...]
    early: bool  # one that names a pinned key is of a later time than now: the clock may be wrong


def certificates(armored: bytes, fingerprints: Iterable[str]) -> tuple[Pinned, ...]:
    """The certificates that fingerprints name, of their primary key or any subkey. One named twice is there once.

    Raises TrustError (`release-anchors`) for what is no ring of certificates, or a fingerprint that is not in it.
    """
    try:
        ring = _guarded(lambda: [_pinned(cert) for cert in Cert.split_bytes(armored)])
    except ValueError as error:
        raise TrustError(
            f"the pinned OpenPGP certificates cannot be read: {error}", reason="release-anchors"
        ) from error
    found: dict[str, Pinned] = {}
    for wanted in fingerprints:
        owner = next((one for one in ring if plain(wanted) in one.keys), None)
        if owner is None:
            raise TrustError(
                f"no certificate here has the pinned fingerprint {one_line(wanted)}", reason="release-anchors"
            )
        found[owner.fingerprint] = owner
    return tuple(found.values())


def judge(pinned: Iterable[Pinned], data: bytes, signatures: Iterable[str], now: datetime) -> Judged:
    """Which pinned certificates have signed `data`. signatures: armored texts, each of one signature or several."""
    owners = {key: one for one in pinned for key in one.keys}
    counted: set[str] = set()
    others: list[str] = []
    early = False
    for number, raw in enumerate(_packets(signatures)):
        if number == MAX_SIGNATURES:
            others.append(f"more than {MAX_SIGNATURES} signatures: the rest was not looked at")
            break
        try:
            one = _guarded(partial(_Signature.read, raw))
        except ValueError as error:
            others.append(str(error))
            continue
        early |= one.maker in owners and one.created is not None and one.created > now
        try:
            counted.add(_signer(owners, data, one, now))
        except ValueError as error:
            others.append(f"{one.maker}: {error}")
    return Judged(frozenset(counted), tuple(others), early)


def plain(fingerprint: str) -> str:
    """A fingerprint as it is compared: hexadecimal digits alone, lower case."""
    return fingerprint.replace(" ", "").removeprefix("0x").lower()


def packets(armored: str) -> Iterator[bytes]:
    """The signature packets of an armored text (section 6); none when it holds anything else. The checksum is not
    looked at, as section 6.1 has it."""
    found = _ARMOR.fullmatch(armored.replace("\r\n", "\n"))
    if found is None:
        return
    try:
        body = found[1].split("\n=", 1)[0].replace("\n", "")
        data = memoryview(base64.b64decode(body, validate=True))
    except binascii.Error:
        return
    while data:
        size = _length(data)
        if size is None or size > len(data):
            return
        yield bytes(data[:size])
        data = data[size:]


def _packets(signatures: Iterable[str]) -> Iterator[bytes]:
    for armored in signatures:
        yield from packets(armored)


def _length(data: memoryview) -> int | None:
    """Bytes of the signature packet at the beginning of `data`, with its header (section 4.2); None: there is none."""
    tag, rest = data[0], data[1:6]
    if tag & 0xC0 == 0xC0 and tag & 0x3F == _SIGNATURE and rest:
        if rest[0] < 192:
            return 2 + rest[0]
        if rest[0] < 224 and len(rest) > 1:
            return 3 + ((rest[0] - 192) << 8) + rest[1] + 192
        if rest[0] == 255 and len(rest) == 5:
            return 6 + int.from_bytes(rest[1:5])
    elif tag & 0xC0 == 0x80 and tag >> 2 & 0x0F == _SIGNATURE and tag & 3 != 3:
        width = 1 << (tag & 3)
        if len(rest) >= width:
            return 1 + width + int.from_bytes(rest[:width])
    return None


def _signer(owners: dict[str, Pinned], data: bytes, one: _Signature, now: datetime) -> str:
    """The fingerprint of the certificate that has made a signature. Raises ValueError: why it does not count."""
    if not one.binary:
        raise ValueError("not a signature over a file")
    if not one.strong:
        raise ValueError("made with a hash that is too weak")
    if one.created is None or one.created > now:
        raise ValueError("made at a later time than it is now")
    if one.expires is not None and one.expires <= now:
        raise ValueError("the signature has expired")
    certs = [one.cert for one in {one.fingerprint: one for one in owners.values()}.values()]
    valid = _guarded(lambda: verify(bytes=data, store=lambda wanted: certs, signature=one.sig).valid_sigs)
    if len(valid) != 1:
        raise ValueError("not one valid signature")
    owner = owners.get(valid[0].signing_key)
    if owner is None or owner.fingerprint != valid[0].certificate:
        raise ValueError("made by a key that is not pinned")
    problem = owner.problem(valid[0].signing_key, now)
    if problem:
        raise ValueError(problem)
    return owner.fingerprint


def _pinned(cert: Cert) -> Pinned:
    keys: dict[str, _Key] = {}
    current: _Key | None = None
    for packet in PacketPile.from_bytes(bytes(cert)):
        if packet.tag in (Tag.PublicKey, Tag.PublicSubkey):
            current = _Key(packet.fingerprint, packet.key_created)
            keys[current.fingerprint] = current
        elif packet.tag == Tag.Signature and current is not None:
            current.signatures.append(packet)
    return Pinned(cert.fingerprint, cert, keys)


def _guarded(call: Callable[[], Answer]) -> Answer:
    """What a call into the library answers. Raises ValueError with the first line of what it says; a panic of its own,
    which is no Exception, too."""
    try:
        return call()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(one_line(str(error).split("\n", 1)[0])) from error


def utc(seconds: float) -> datetime:
    """The time that is so many seconds after the beginning of 1970."""
    return datetime.fromtimestamp(seconds, UTC)
