"""Secure Boot's databases: what PK, KEK, db and dbx hold, signed updates of them, and what an image may expect of them.

Source: UEFI 2.10, 8.2.2 "Using the EFI_VARIABLE_AUTHENTICATION_2 descriptor" and 32.4.1 "Signature Database".
Reading is strict and bounded. A signature of an update is firmware's to judge.
Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from common.efi import pe, pkcs7
from common.errors import FormatError

X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
_HASHES = {  # digests of images
    SHA256: "sha256",
    UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): "sha384",
    UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): "sha512",
}
_CERTIFICATE_HASHES = {  # digests of certificates, each with the time from which on it is revoked
    UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed"): "sha256",
    UUID("7076876e-80c2-4ee6-aad2-28b349a6865b"): "sha384",
    UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): "sha512",
}
_LENGTHS = {"sha256": 32, "sha384": 48, "sha512": 64}  # bytes
_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
VARIABLES = {"PK": _GLOBAL, "KEK": _GLOBAL, "db": _SECURITY, "dbx": _SECURITY}  # name → vendor GUID
MAX_DATABASE = 1 << 20  # bytes; firmware has far less room

_LIST = struct.Struct("<16sIII")  # EFI_SIGNATURE_LIST: type, size of all, of the header, of one signature
_TIME = struct.Struct("<HBBBBBBIhBB")  # EFI_TIME
_HEADER = struct.Struct("<IHH16s")  # WIN_CERTIFICATE_UEFI_GUID
_ATTRIBUTES, _APPEND = 0x27, 0x40  # non-volatile, in boot services, at runtime, signed with a time; APPEND_WRITE
_REVISION, _UEFI_GUID = 0x0200, 0x0EF1


class SignatureListError(FormatError):
    """Bytes that are no sound signature database, or no signed update of one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "signature-list")


@dataclass(frozen=True)
class Signature:
    """One entry. kind: what `data` is (X509: a certificate, DER; SHA256: the digest of an image). owner: who put it
    there."""

    kind: UUID
    owner: UUID
    data: bytes


@dataclass(frozen=True)
class Update:
    """A signed change of a variable. time: it must be later than that of the last one. signature: PKCS #7, DER."""

    time: datetime
    signature: bytes
    signatures: tuple[Signature, ...]


def write(signatures: Iterable[Signature]) -> bytes:
    """A database. Digests of one owner's kind share a list, as firmware writes them; each certificate has its own."""
    lists: list[list[Signature]] = []
    for one in signatures:
        last = lists[-1][0] if lists else None
        if last is not None and one.kind != X509 and (last.kind, len(last.data)) == (one.kind, len(one.data)):
            lists[-1].append(one)
        else:
            lists.append([one])
    out = bytearray()
    for entries in lists:
        size = 16 + len(entries[0].data)
        out += _LIST.pack(entries[0].kind.bytes_le, _LIST.size + size * len(entries), 0, size)
        for one in entries:
            out += one.owner.bytes_le + one.data
    return bytes(out)


def read(data: bytes) -> tuple[Signature, ...]:
    """The entries of a database, in order. Raises SignatureListError."""
    if len(data) > MAX_DATABASE:
        raise SignatureListError(f"a signature database of {len(data)} bytes is too large")
    found: list[Signature] = []
    at = 0
    while at < len(data):
        if len(data) - at < _LIST.size:
            raise SignatureListError("a signature list is cut off")
        raw, total, header, size = _LIST.unpack_from(data, at)
        start, end = at + _LIST.size + header, at + total
        if size <= 16 or not start <= end <= len(data) or (end - start) % size:
            raise SignatureListError("the sizes in a signature list contradict each other")
        kind = UUID(bytes_le=raw)
        for place in range(start, end, size):
            owner = UUID(bytes_le=data[place : place + 16])
            found.append(Signature(kind, owner, data[place + 16 : place + size]))
        at = end
    return tuple(found)


def read_variable(data: bytes) -> tuple[Signature, ...]:
    """The entries of a database as efivarfs shows it: four bytes of attributes before. Raises SignatureListError."""
    if len(data) < 4:
        raise SignatureListError("a variable is cut off")
    return read(data[4:])


def _time(time: datetime) -> bytes:
    utc = time.astimezone(UTC)
    return _TIME.pack(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, 0, 0, 0, 0, 0)


def to_be_signed(name: str, signatures: Iterable[Signature], time: datetime, *, append: bool) -> bytes:
    """What the signature of an update is over. name: of VARIABLES."""
    content = _attributes(append=append) + _time(time) + write(signatures)
    return name.encode("utf-16-le") + VARIABLES[name].bytes_le + content


def _attributes(*, append: bool) -> bytes:
    return struct.pack("<I", _ATTRIBUTES | (_APPEND if append else 0))


def write_update(update: Update) -> bytes:
    """An `.auth` file, which is what firmware is given as the new value of the variable."""
    header = _HEADER.pack(_HEADER.size + len(update.signature), _REVISION, _UEFI_GUID, _PKCS7.bytes_le)
    return _time(update.time) + header + update.signature + write(update.signatures)


def written(update: bytes, *, append: bool) -> bytes:
    """What is written, in one piece, to a variable's file in efivarfs for an `.auth` file. append: as it was signed."""
    return _attributes(append=append) + update


def read_update(data: bytes) -> Update:
    """What an `.auth` file holds. Raises SignatureListError."""
    head = _TIME.size + _HEADER.size
    if not head <= len(data) <= 2 * MAX_DATABASE:
        raise SignatureListError("a signed update of a variable is cut off or too large")
    year, month, day, hour, minute, second, *rest = _TIME.unpack_from(data)
    length, revision, kind, guid = _HEADER.unpack_from(data, _TIME.size)
    if any(rest):  # UEFI 8.2.2: all but these must be zero
        raise SignatureListError("the time of a signed update has fields that must be zero")
    if (revision, kind, UUID(bytes_le=guid)) != (_REVISION, _UEFI_GUID, _PKCS7):
        raise SignatureListError("a signed update of a variable has no PKCS #7 signature")
    end = _TIME.size + length
    if not head < end <= len(data):
        raise SignatureListError("the signature of an update lies outside it")
    try:
        time = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise SignatureListError(f"the time of a signed update is none: {error}") from error
    return Update(time, data[head:end], read(data[end:]))


def merged(present: Iterable[Signature], more: Iterable[Signature]) -> tuple[Signature, ...]:
    """What a database holds after entries were appended: firmware leaves out those it has."""
    return tuple(dict.fromkeys((*present, *more)))


def after(
    databases: Mapping[str, tuple[Signature, ...]], name: str, update: Update, *, append: bool
) -> dict[str, tuple[Signature, ...]]:
    """What the databases (by name) hold once firmware has taken an update of one of them."""
    present = databases.get(name, ()) if append else ()
    return {**databases, name: merged(present, update.signatures)}


# --- what databases mean for an image ---------------------------------------------------------------------------------


def refused(images: Mapping[str, bytes], db: Sequence[Signature], dbx: Sequence[Signature]) -> dict[str, str]:
    """Which of these images firmware with such databases would not start, and why: before an update of a database is
    applied, what runs and what the other slot holds must not be among them.

    It fails closed: what cannot be judged counts as a refusal; what revokes an issuer counts for all of its name.
    """
    found = {name: _why_refused(image, db, dbx) for name, image in images.items()}
    return {name: why for name, why in found.items() if why is not None}


def refusal(image: bytes, db: bytes, dbx: bytes) -> str | None:
    """Why firmware with Secure Boot on would not start an image; None: it starts it. Fails closed, as `refused`.

    db, dbx: contents of the variables, without attributes; empty where there is no such variable.
    """
    try:
        return _why_refused(image, read(db), read(dbx))
    except SignatureListError as error:
        return f"firmware's databases cannot be read: {error}"


@dataclass(frozen=True)
class Evidence:
    """What of an image decides whether firmware starts it. digests: by the kind of entry that holds such; signatures:
    PKCS #7, DER."""

    digests: Mapping[UUID, bytes]
    signatures: tuple[bytes, ...]

    @classmethod
    def of(cls, image: bytes) -> Evidence:
        """Raises pe.PeError."""
        return cls({kind: pe.authenticode(image, name) for kind, name in _HASHES.items()}, tuple(pe.signatures(image)))

    def refused(self, db: Sequence[Signature], dbx: Sequence[Signature]) -> str | None:
        """Why firmware with such databases would not start the image; None: it starts it. Fails closed."""
        try:
            return _judged(self, db, dbx)
        except pkcs7.DerError as error:
            return f"it cannot be judged: {error}"

    def excluded(self, db: Sequence[Signature], dbx: Sequence[Signature]) -> str | None:
        """Why firmware does not start the image in any case, whatever it can verify that we cannot: it is revoked, or
        nothing of it is in db; None: it may. Raises pkcs7.DerError."""
        return _excluded(self, _chain(self, [*_certificates(db), *_certificates(dbx)]), db, dbx)


def _why_refused(image: bytes, db: Sequence[Signature], dbx: Sequence[Signature]) -> str | None:
    try:
        return Evidence.of(image).refused(db, dbx)
    except pe.PeError as error:
        return f"it cannot be judged: {error}"


def _judged(image: Evidence, db: Sequence[Signature], dbx: Sequence[Signature]) -> str | None:
    """As above. Raises pkcs7.DerError for a signature or certificate that is none."""
    known = _certificates(db, damaged=False)
    why = _excluded(image, _chain(image, [*known, *_certificates(dbx)]), db, dbx)
    if why is not None:
        return why
    if any(image.digests.get(one.kind) == one.data for one in db):
        return None
    by_name = {_HASHES[kind]: digest for kind, digest in image.digests.items()}
    for signature in image.signatures:
        if any(one in known for one in pkcs7.signers(signature, by_name, known)):
            return None
    return "its signature is wrong, or is of another image"


def _excluded(
    image: Evidence, chain: Sequence[pkcs7.Certificate], db: Sequence[Signature], dbx: Sequence[Signature]
) -> str | None:
    for one in dbx:
        why = _revokes(one, chain, image.digests)
        if why is not None:
            return why
    trusted = {one.data for one in db if one.kind == X509}
    if any(image.digests.get(one.kind) == one.data for one in db) or any(one.data in trusted for one in chain):
        return None
    return "neither its hash nor who signed it is in db"


def _revokes(one: Signature, chain: Sequence[pkcs7.Certificate], digests: Mapping[UUID, bytes]) -> str | None:
    if one.kind in digests:
        if len(one.data) != len(digests[one.kind]):
            return "dbx holds a hash of a wrong length"
        return "its hash is in dbx" if one.data == digests[one.kind] else None
    if one.kind == X509:
        return "a certificate of its signature is in dbx" if any(one.data == c.data for c in chain) else None
    if one.kind in _CERTIFICATE_HASHES:
        name = _CERTIFICATE_HASHES[one.kind]
        if len(one.data) != _LENGTHS[name] + _TIME.size:
            return "dbx holds a hash of a certificate with a wrong length"
        # Signatures here carry no trusted time stamp, so the time of the revocation does not help them.
        return (
            "the hash of a certificate of its signature is in dbx"
            if any(one.data[: _LENGTHS[name]] == certificate.digest(name) for certificate in chain)
            else None
        )
    return f"dbx holds something of an unknown kind, {one.kind}"


def _certificates(database: Sequence[Signature], *, damaged: bool = True) -> list[pkcs7.Certificate]:
    """Those in a database. damaged: false leaves out what is none (in db it starts nothing); else raises
    pkcs7.DerError."""
    found = []
    for one in database:
        if one.kind == X509:
            with suppress(*() if damaged else (pkcs7.DerError,)):
                found.append(pkcs7.certificate(one.data))
    return found


def _chain(image: Evidence, others: Sequence[pkcs7.Certificate]) -> list[pkcs7.Certificate]:
    """The certificates in the image's signatures, and those of others that issued them, and so on: by their names, but
    of one that has signed itself only those that have the same key. Raises pkcs7.DerError."""
    found = [one for signature in image.signatures for one in pkcs7.certificates(signature)]
    for one in found:  # grows meanwhile
        itself = one.verifies(one)
        by = [other for other in others if (other.verifies(one) if itself else other.named_by(one))]
        found += [other for other in by if other not in found]
    return found
