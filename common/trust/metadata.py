"""Metadata of The Update Framework (TUF specification 1.0, section 5): what is listed as released, and by whom.

Roles are taken in the order root, timestamp, snapshot, targets, each checked by those before it. What was trusted
before (`Kept`) is the measure against going back; what fails a check is never kept. Delegations are not used.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, SSlibKey
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from common.errors import TrustError
from common.safe import one_line

MAX_ROOTS = 64  # steps of the chain that are taken at once
MAX_VERSION = 1 << 53
LIMITS = {"root": 512 << 10, "timestamp": 16 << 10, "snapshot": 64 << 10, "targets": 512 << 10}  # bytes of a file
_KINDS: dict[str, type[Signed]] = {"root": Root, "timestamp": Timestamp, "snapshot": Snapshot, "targets": Targets}
_CURVES = tuple(f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521))
# Type and scheme of the keys that can sign for us (4.2); which others the library takes, differs with its version. The
# curve as the type is an old way to write it.
KEYS = frozenset(
    {("ed25519", "ed25519")}
    | {(kind, curve) for curve in _CURVES for kind in ("ecdsa", curve)}
    | {("rsa", f"{padding}-sha{bits}") for bits in (256, 384, 512) for padding in ("rsassa-pss", "rsa-pkcs1v15")}
)
_ORDER = ("timestamp", "snapshot", "targets")

Fetch = Callable[[str, int], bytes | None]  # (file name, most bytes) → its content; None: there is no such file


class UnknownKey(Key):
    """One of a kind that is none of `KEYS`: it is named and signed, and has signed nothing."""

    @classmethod
    def from_dict(cls, keyid: str, key_dict: dict[str, Any]) -> UnknownKey:
        """Raises KeyError, TypeError."""
        keytype, scheme, keyval = cls._from_dict(key_dict)
        return cls(keyid, keytype, scheme, keyval, key_dict)

    def to_dict(self) -> dict[str, Any]:
        """What it came as."""
        return self._to_dict()

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Raises UnverifiedSignatureError."""
        raise UnverifiedSignatureError(f"a key of a kind that is not known: {self.keytype}")


class Loaded(NamedTuple):
    """Metadata, and the bytes it came in."""

    metadata: Metadata[Any]
    data: bytes

    @property
    def signed(self) -> Any:
        """Its Root, Timestamp, Snapshot or Targets."""
        return self.metadata.signed


@dataclass(frozen=True)
class Kept:
    """What was trusted, in files' bytes: the chain of roots after the anchor, and the others by role."""

    roots: tuple[bytes, ...] = ()
    others: tuple[tuple[str, bytes], ...] = ()

    def dump(self) -> bytes:
        """As one file, so that it is replaced as one."""
        texts = {name: base64.b64encode(data).decode() for name, data in self.others}
        roots = [base64.b64encode(data).decode() for data in self.roots]
        return json.dumps({"format": 1, "roots": roots, "others": texts}).encode()

    @classmethod
    def parse(cls, data: bytes) -> Kept:
        """The same the other way. Nothing in it is taken at its word later on. Raises TrustError (`release-state`)."""
        try:
            found = json.loads(data)
            if found["format"] != 1:
                raise ValueError("a format that is not known")
            others = tuple(
                (name, base64.b64decode(found["others"][name])) for name in _ORDER if name in found["others"]
            )
            return cls(tuple(base64.b64decode(one) for one in found["roots"]), others)
        except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
            hint = "remove it to begin anew from what the image trusts; then older metadata is not recognised as such"
            message = f"what is kept of earlier updates is damaged: {one_line(error)}"
            raise TrustError(message, reason="release-state", hint=hint) from error


class Trusted:
    """What is trusted, from an anchor on: a root that the image brings. `now` decides what has expired.

    Raises TrustError; the reasons are those of `update`, and `release-anchors` for an anchor that is no root.
    """

    def __init__(self, anchor: bytes, kept: Kept, now: datetime) -> None:
        self._now = now
        try:
            root = _parse("root", anchor)
            _check_signatures(root.signed, "root", root)
        except TrustError as error:
            raise TrustError(f"the root of trust of this image: {error.message}", reason="release-anchors") from error
        self._root: Root = root.signed
        self._roots: list[bytes] = []
        self._loaded: dict[str, Loaded] = {}
        for data in kept.roots:  # verified again: who can write what is kept must not make a root of it
            try:
                if _parse("root", data).signed.version <= root.signed.version:
                    self._roots.append(data)  # for the image before this one, which may run again
                else:
                    self._add_root(data)
            except TrustError:
                break
        self._earlier = dict(kept.others)

    @property
    def kept(self) -> Kept:
        """What there is to keep now; it holds only what has passed every check."""
        others = {name: self._loaded[name].data for name in _ORDER if name in self._loaded}
        return Kept(tuple(self._roots), tuple({**self._earlier, **others}.items()))

    @property
    def root(self) -> Root:
        """The newest root."""
        return self._root

    @property
    def targets(self) -> Targets:
        """The list of releases, after `update`."""
        targets: Targets = self._loaded["targets"].signed
        return targets

    @property
    def expires(self) -> datetime:
        """When the first of what this rests on expires."""
        signed: list[Signed] = [self._root, *(one.signed for one in self._loaded.values())]
        return min(one.expires for one in signed)

    def update(self, fetch: Fetch, *, carried: bool = False) -> None:
        """Take what `fetch` has: new roots one after the other, then the three others.

        carried: the metadata came with a bundle, not from a channel; when what is kept is newer, that decides instead.

        Raises TrustError: `release-missing` (a file is not there), `release-size` (a file without end),
        `release-metadata` (no such metadata), `release-signature` (threshold not met), `release-rollback` (older than
        what was trusted), `release-mixed` (roles that do not belong together), `release-expired`, `release-freeze` (the
        timestamp has expired: somebody may hold back newer ones).
        """
        for _ in range(MAX_ROOTS):
            data = self._fetched(fetch, f"{self._root.version + 1}.root.json", "root")
            if data is None:
                break
            self._add_root(data)
        self._unexpired("root", self._root)
        self._drop_earlier_of_other_keys()
        self._add_timestamp(fetch, carried=carried)
        for role in ("snapshot", "targets"):
            self._add_described(role, fetch)

    def _add_root(self, data: bytes) -> None:
        """Signed by the root before and by itself (5.3.4), and the very next version (5.3.5)."""
        new = _parse("root", data)
        for delegator in (self._root, new.signed):
            _check_signatures(delegator, "root", new)
        if new.signed.version != self._root.version + 1:
            raise TrustError(
                f"root {new.signed.version} does not follow root {self._root.version}", reason="release-rollback"
            )
        self._root = new.signed
        self._roots.append(data)

    def _drop_earlier_of_other_keys(self) -> None:
        """Forget what keys have signed that the newest root does not know; timestamp and snapshot both, when it is
        one: a version that a thief has driven up must not stop the owner (5.3.11, fast-forward)."""
        gone = {role for role in self._earlier if self._earlier_of(role) is None}
        if gone & {"timestamp", "snapshot"}:
            gone |= {"timestamp", "snapshot"}
        self._earlier = {role: data for role, data in self._earlier.items() if role not in gone}

    def _earlier_of(self, role: str) -> Loaded | None:
        data = self._earlier.get(role)
        if data is None:
            return None
        try:
            return self._signed(role, data)
        except TrustError:
            return None

    def _add_timestamp(self, fetch: Fetch, *, carried: bool) -> None:
        before = self._earlier_of("timestamp")
        data = self._fetched(fetch, "timestamp.json", "timestamp")
        if data is None:
            raise TrustError("there is no timestamp.json", reason="release-missing")
        new = self._signed("timestamp", data)
        if before is not None:
            older = new.signed.version < before.signed.version
            if older and not carried:
                _refuse_rollback("timestamp", new.signed.version, before.signed.version)
            if older or new.signed.version == before.signed.version:
                new = before
            _no_rollback("snapshot", new.signed.snapshot_meta, before.signed.snapshot_meta)
        self._unexpired("timestamp", new.signed)
        self._loaded["timestamp"] = new

    def _add_described(self, role: str, fetch: Fetch) -> None:
        """Snapshot or targets: what the role before it describes, by version, length and hash."""
        described: MetaFile
        if role == "snapshot":
            described = self._loaded["timestamp"].signed.snapshot_meta
        else:
            described = self._loaded["snapshot"].signed.meta.get("targets.json")
            if described is None:
                raise TrustError("the snapshot does not name targets.json", reason="release-mixed")
        before = self._earlier_of(role)
        if before is not None and _fits(before, described):
            new = before
        else:
            name = f"{described.version}.{role}.json" if self._root.consistent_snapshot else f"{role}.json"
            data = self._fetched(fetch, name, role, described.length)
            if data is None:
                raise TrustError(f"there is no {name}", reason="release-missing")
            _check_hashes(described, data, name)
            new = self._signed(role, data)
            if new.signed.version != described.version:
                message = f"{name} has version {new.signed.version}, not {described.version}"
                raise TrustError(message, reason="release-mixed")
        if role == "snapshot" and before is not None:
            for name, was in before.signed.meta.items():
                _no_rollback(name, new.signed.meta.get(name), was)
        self._unexpired(role, new.signed)
        self._loaded[role] = new

    def _signed(self, role: str, data: bytes) -> Loaded:
        loaded = _parse(role, data)
        _check_signatures(self._root, role, loaded)
        return loaded

    def _unexpired(self, role: str, signed: Signed) -> None:
        if not signed.is_expired(self._now):
            return
        when = f"{signed.expires:%Y-%m-%d %H:%M} UTC"
        if role == "timestamp":
            hint = "take a newer bundle, or ask who runs the channel; and look whether this device's clock is right"
            message = f"the timestamp of the releases ended at {when}: there may be newer releases that are held back"
            raise TrustError(message, reason="release-freeze", hint=hint, retryable=True)
        raise TrustError(
            f"{role}.json ended at {when}", reason="release-expired", hint="look whether the clock is right"
        )

    def _fetched(self, fetch: Fetch, name: str, role: str, length: int | None = None) -> bytes | None:
        limit = LIMITS[role] if length is None else min(length, LIMITS[role])
        data = fetch(name, limit)
        if data is not None and len(data) > limit:
            raise TrustError(f"{name} is larger than {limit} bytes", reason="release-size")
        return data


def _parse(role: str, data: bytes) -> Loaded:
    try:
        known, unknown = _apart(data) if role == "root" else (data, {})
        found: Metadata[Any] = Metadata.from_bytes(known)
    except (DeserializationError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TrustError(f"what should be {role}.json is no TUF metadata", reason="release-metadata") from error
    signed = found.signed
    if not isinstance(signed, _KINDS[role]) or not all(map(_whole, _numbers(signed))):
        raise TrustError(f"what should be {role}.json is no {role}", reason="release-metadata")
    if isinstance(signed, Root):
        signed.keys.update(unknown)
    return Loaded(found, data)


def _apart(data: bytes) -> tuple[bytes, dict[str, UnknownKey]]:
    """A root without its keys of kinds that are not known, and those: the library refuses all of a root for one of
    them, and a device must be able to follow one that names a key for its successors.

    Raises ValueError, TypeError, KeyError, AttributeError, RecursionError.
    """
    document = json.loads(data.decode())
    keys = document["signed"]["keys"]
    names = [name for name, key in keys.items() if (key["keytype"], key["scheme"]) not in KEYS]
    unknown = {name: UnknownKey.from_dict(name, keys.pop(name)) for name in names}
    return json.dumps(document).encode() if unknown else data, unknown


def _numbers(signed: Signed) -> Iterator[object]:
    """The versions, lengths and thresholds: the library takes any number for one."""
    yield signed.version
    if isinstance(signed, Root):
        yield from (role.threshold for role in signed.roles.values())
    described = [signed.snapshot_meta] if isinstance(signed, Timestamp) else []
    described += signed.meta.values() if isinstance(signed, Snapshot) else []
    for one in described:
        yield one.version
        if one.length is not None:
            yield one.length
    if isinstance(signed, Targets):
        yield from (one.length for one in signed.targets.values())


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_VERSION


def _check_signatures(delegator: Root, role: str, loaded: Loaded) -> None:
    """Raise unless enough distinct keys of a role have signed: one key under two names counts once."""
    try:
        payload, signatures = loaded.metadata.signed_bytes, loaded.metadata.signatures
        result = delegator.get_verification_result(role, payload, signatures)
        keys = {_identity(key) for key in result.signed.values() if isinstance(key, SSlibKey)}
    except (SerializationError, ValueError) as error:
        raise TrustError(f"the signatures of {role}.json cannot be read", reason="release-metadata") from error
    if len(keys) < result.threshold:
        message = f"{role}.json is signed by {len(keys)} of the {result.threshold} keys that it takes"
        raise TrustError(message, reason="release-signature")


def _identity(key: SSlibKey) -> bytes:
    """The key itself, however it is written."""
    public: str = key.keyval["public"]
    if key.keytype == "ed25519":
        return bytes.fromhex(public)
    return load_pem_public_key(public.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _fits(loaded: Loaded, described: MetaFile) -> bool:
    try:
        described.verify_length_and_hashes(loaded.data)
    except LengthOrHashMismatchError:
        return False
    return bool(loaded.signed.version == described.version)


def _check_hashes(described: MetaFile, data: bytes, name: str) -> None:
    try:
        described.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise TrustError(f"{name} is not the one that is described", reason="release-mixed") from error


def _no_rollback(name: str, now: MetaFile | None, before: MetaFile) -> None:
    if now is None:
        raise TrustError(f"{name} was described before, and is not any more", reason="release-rollback")
    if now.version < before.version:
        _refuse_rollback(name, now.version, before.version)


def _refuse_rollback(name: str, now: int, before: int) -> None:
    raise TrustError(f"{name} goes back from version {before} to {now}", reason="release-rollback")
