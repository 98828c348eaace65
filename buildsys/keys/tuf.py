"""Keys of TUF's roles and the chain of roots that names them (TUF specification, 4.3 and 6.1)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.exceptions import UnsupportedLibraryError, UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Role, Root

from buildsys.keys.private import Private
from common.errors import KeysError
from common.trust.metadata import KEYS

ROLES = ("root", "targets", "snapshot", "timestamp")
DAYS = {"root": 1826, "targets": 730, "snapshot": 365, "timestamp": 90}  # for which metadata is valid
NAME = "x-mixos-name"  # what people call a key; in its description in root.json


@dataclass(frozen=True)
class Held:
    """A key of the newest root: what it is called, its role, its id, and whether its private part is here."""

    name: str
    role: str
    keyid: str
    here: bool


def until(role: str, now: datetime) -> datetime:
    """When metadata made now expires."""
    return (now + timedelta(days=DAYS[role])).replace(microsecond=0)


def make_root(private: Private, *, simple: bool, now: datetime) -> Metadata[Root]:
    """New keys for every role, and the first root: 2 of 3 keys sign roots, with `simple` 1 of 1, as for the others."""
    root = Root(version=1, expires=until("root", now), consistent_snapshot=True)
    for role in ROLES:
        for number in range(1, 4 if role == "root" and not simple else 2):
            root.add_key(new_key(private, f"{role}-{number}"), role)
    root.roles["root"].threshold = 1 if simple else 2
    metadata = Metadata(root)
    sign(metadata, root.roles["root"], root, private)
    return metadata


def new_key(private: Private, name: str) -> Key:
    """A new ed25519 key whose private part is kept here."""
    secret = Ed25519PrivateKey.generate()
    private.write("tuf", f"{name}.pem", secret)
    return described(SSlibKey.from_crypto(secret.public_key()), name)


def foreign_key(pem: bytes, name: str) -> Key:
    """A key whose private part is elsewhere, by its public part (PEM). Raises KeysError `keys-damaged`; `keys-kind` for
    one that devices do not know."""
    try:
        key = SSlibKey.from_crypto(load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "a PEM file of an ed25519, ECDSA or RSA key, beginning with -----BEGIN PUBLIC KEY-----"
        raise KeysError("this is no public key that can sign metadata", reason="keys-damaged", hint=hint) from error
    if (key.keytype, key.scheme) not in KEYS:
        hint = "an ed25519, ECDSA or RSA key"
        raise KeysError(f"no device knows keys of the kind {key.keytype}", reason="keys-kind", hint=hint)
    return described(key, name)


def described(key: SSlibKey, name: str) -> Key:
    """The key with its name."""
    key.unrecognized_fields[NAME] = name
    return key


def held(root: Root, private: Private) -> list[Held]:
    """Every key of a root, by role."""
    here = private.names("tuf")
    return [
        Held(name_of(root.keys[keyid]), role, keyid, name_of(root.keys[keyid]) in here)
        for role in ROLES
        for keyid in root.roles[role].keyids
    ]


def name_of(key: Key) -> str:
    """What a key is called; its id when it has no name."""
    name = key.unrecognized_fields.get(NAME)
    return name if isinstance(name, str) and name.replace("-", "").isalnum() else key.keyid


def next_root(current: Root, now: datetime) -> Root:
    """The same keys in the next version."""
    following = copy.deepcopy(current)
    following.version = current.version + 1
    following.expires = until("root", now)
    return following


def replace_key(current: Root, name: str, key: Key | None, now: datetime) -> Root:
    """The next root without the key of that name and, for a rotation, with another in its place.

    Raises KeysError: `keys-unknown`, or `keys-threshold` when too few would be left.
    """
    following = next_root(current, now)
    found = [
        (role, keyid) for role in ROLES for keyid in current.roles[role].keyids if name_of(current.keys[keyid]) == name
    ]
    if not found:
        names = ", ".join(sorted({name_of(one) for one in current.keys.values()}))
        raise KeysError(f"no key is called {name}", reason="keys-unknown", hint=f"there are: {names}")
    for role, keyid in found:
        following.revoke_key(keyid, role)
        if key is not None:
            following.add_key(key, role)
        if len(following.roles[role].keyids) < following.roles[role].threshold:
            message = f"without {name} the role {role} has fewer keys than must sign"
            raise KeysError(message, reason="keys-threshold", hint=f"replace it instead: mixos keys rotate {name}")
    return following


def same_key(root: Root, name: str) -> Key | None:
    """The key of that name."""
    return next((key for key in root.keys.values() if name_of(key) == name), None)


def next_name(taken: Iterable[str], name: str) -> str:
    """The name of the key that follows: root-2 of root-1 … root-3 is followed by root-4. taken: names that no other key
    gets, those of keys that were revoked, too."""
    role = name.rsplit("-", 1)[0]
    numbers = [one.rsplit("-", 1) for one in taken]
    return f"{role}-{max((int(n[1]) for n in numbers if n[0] == role and n[-1].isdigit()), default=0) + 1}"


def sign(metadata: Metadata[Any], role: Role, root: Root, private: Private) -> list[str]:
    """Sign with every key of a role that is here and has not signed yet; the names of those that did."""
    names = []
    here = private.names("tuf")
    for keyid in role.keyids:
        key = root.keys.get(keyid)
        if key is None or name_of(key) not in here or _has_signed(metadata, key):
            continue
        try:
            metadata.sign(_signer(private, key), append=True)
        except UnsignedMetadataError as error:
            raise KeysError(f"{name_of(key)} did not sign: {error}", reason="keys-elsewhere") from error
        names.append(name_of(key))
    return names


def sign_root(metadata: Metadata[Root], previous: Root | None, private: Private) -> list[str]:
    """Sign a root with the keys that it names and those that the root before it names (6.1)."""
    names = []
    for root in (metadata.signed, previous):
        if root is not None:
            names += sign(metadata, root.roles["root"], root, private)
    return names


def missing(metadata: Metadata[Root], previous: Root | None) -> int:
    """How many signatures a root still needs, by its own keys and by those of the root before it."""
    result = metadata.signed.get_root_verification_result(previous, metadata.signed_bytes, metadata.signatures)
    return max(result.first.missing, result.second.missing)


def merge(into: Metadata[Any], others: Iterable[Metadata[Any]]) -> int:
    """Take over signatures over the same content; how many came. Raises KeysError `keys-other` for other content."""
    count = 0
    for other in others:
        if other.signed_bytes != into.signed_bytes:
            raise KeysError("these files differ in more than their signatures", reason="keys-other")
        for keyid, signature in other.signatures.items():
            if into.signatures.get(keyid) != signature:
                into.signatures[keyid] = signature
                count += 1
    return count


def _has_signed(metadata: Metadata[Any], key: Key) -> bool:
    signature = metadata.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, metadata.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


def _signer(private: Private, key: Key) -> Signer:
    name = name_of(key)
    if not (private.folder / "tuf" / f"{name}.uri").exists():
        return CryptoSigner(private.load("tuf", f"{name}.pem"), _sslib(key))
    uri = private.read("tuf", f"{name}.uri").decode("utf-8", "replace").strip()
    try:
        return Signer.from_priv_key_uri(uri, key, private.passphrase.get)
    except (ValueError, UnsupportedLibraryError) as error:
        raise KeysError(f"the key {name} at {uri} cannot be used: {error}", reason="keys-elsewhere") from error


def _sslib(key: Key) -> SSlibKey:
    if not isinstance(key, SSlibKey):
        raise KeysError(f"{name_of(key)} is a key of a kind that signs no metadata", reason="keys-damaged")
    return key


def utc_now() -> datetime:
    """Now, as metadata has it."""
    return datetime.now(UTC).replace(microsecond=0)
