"""The outside of a bundle (`mixos-<version>.mixb`): a front that is verified first, then the payload.

    offset 0   magic "MIXOSBDL"
           8   format, big-endian 32 bit: 1
          12   length of the front in bytes, big-endian 32 bit, at most 4 MiB
          16   SHA-256 of the front
          48   the front: canonical JSON (common/bundle/manifest.py) of an object with
                 manifest    the text of the manifest
                 recipients  name of a device's key → the payload's key, sealed to it (common/bundle/sealing.py); in hex
                             and base64; nothing when the payload is not encrypted
                 signatures  armored detached OpenPGP signatures over exactly that text
                 tuf         file name → text, metadata of The Update Framework (TUF) that vouches for it
               the payload: blobs back to back, found by the manifest, to the end

The hash in the header tells damage from forgery: it proves nothing, since whoever forges a front can hash it too.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.bundle import sealing
from common.bundle.manifest import MAX_BYTES, canonical, canonical_object
from common.errors import BundleError

MAGIC = b"MIXOSBDL"
FORMAT = 1
MAX_FRONT = 4 << 20
MAX_SIGNATURES = 16
MAX_SIGNATURE = 16 << 10  # bytes of one armored text
MAX_FILES = 72
MAX_FILE = 512 << 10
_HEAD = struct.Struct(">8sII32s")
_FILE = re.compile(r"(?:[1-9][0-9]{0,8}\.)?(?:root|targets|snapshot|timestamp)\.json")
# Texts in the members and nothing else, seen before it is read: of 4 MiB of empty lists there would be 100 MiB.
_TEXT = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ONE = rf'"[0-9a-f]{{{2 * sealing.ID}}}":"[A-Za-z0-9+/]{{{4 * -(-sealing.SEALED // 3) - 1}}}="'
_SHAPE = re.compile(
    rf'\{{"manifest":{_TEXT},'
    rf'"recipients":\{{(?:{_ONE}(?:,{_ONE}){{0,{sealing.MAX_DEVICES - 1}}}+)?+\}},'
    rf'"signatures":\[{_TEXT}(?:,{_TEXT}){{0,{MAX_SIGNATURES - 1}}}+\],'
    rf'"tuf":\{{{_TEXT}:{_TEXT}(?:,{_TEXT}:{_TEXT}){{0,{MAX_FILES - 1}}}+\}}\}}',
    re.ASCII,
)
_RECIPIENT = re.compile(_ONE, re.ASCII)


@dataclass(frozen=True)
class Front:
    """What vouches for a bundle, and its manifest, as texts, and who can read its payload. Nothing of it is verified
    yet."""

    manifest: str
    signatures: tuple[str, ...]
    tuf: dict[str, str]
    recipients: dict[bytes, bytes] = field(default_factory=dict)


def dump(front: Front) -> bytes:
    """Header and front. Raises BundleError (`bundle-front`) for what a reader would refuse."""
    sealed = {name.hex(): base64.b64encode(key).decode() for name, key in front.recipients.items()}
    document = {
        "manifest": front.manifest,
        "recipients": sealed,
        "signatures": list(front.signatures),
        "tuf": front.tuf,
    }
    _checked(document)
    data = canonical(document).encode()
    if len(data) > MAX_FRONT:
        raise BundleError(f"a front of {len(data)} bytes is too large", "bundle-front")
    return _HEAD.pack(MAGIC, FORMAT, len(data), hashlib.sha256(data).digest()) + data


def read(take: Callable[[int], bytes]) -> tuple[Front, int]:
    """The front, and the offset of the payload. `take(n)` gives the next n bytes of the bundle, fewer only at its end.

    Raises BundleError: `bundle-magic` (something else), `bundle-format` (of a later version), `bundle-short`,
    `bundle-damaged` (the hash), `bundle-front` (not what the format demands).
    """
    head = take(_HEAD.size)
    if head[: len(MAGIC)] != MAGIC:
        raise BundleError("this is no MixOS bundle", "bundle-magic")
    if len(head) < _HEAD.size:
        raise BundleError("the bundle ends within its header", "bundle-short")
    _, version, length, digest = _HEAD.unpack(head)
    if version != FORMAT:
        raise BundleError(f"a bundle of format {version}; this system reads format {FORMAT}", "bundle-format")
    if length > MAX_FRONT:
        raise BundleError(f"a front of {length} bytes is larger than {MAX_FRONT}", "bundle-front")
    data = take(length)
    if len(data) < length:
        raise BundleError("the bundle ends within its front", "bundle-short")
    if hashlib.sha256(data).digest() != digest:
        raise BundleError("the front of the bundle is damaged", "bundle-damaged")
    text = data.decode("ascii", "replace")
    if not _SHAPE.fullmatch(text):
        raise BundleError("the front of the bundle is not of its form, or not canonical JSON", "bundle-front")
    document = canonical_object(text, MAX_FRONT, "bundle-front")
    _checked(document)
    recipients = {bytes.fromhex(name): base64.b64decode(key) for name, key in document["recipients"].items()}
    front = Front(document["manifest"], tuple(document["signatures"]), document["tuf"], recipients)
    return front, _HEAD.size + length


def _checked(document: dict[str, Any]) -> None:
    if document.keys() != {"manifest", "recipients", "signatures", "tuf"}:
        raise BundleError("the front has other members than manifest, recipients, signatures, tuf", "bundle-front")
    manifest, signatures, files, recipients = (
        document[name] for name in ("manifest", "signatures", "tuf", "recipients")
    )
    if len(recipients) > sealing.MAX_DEVICES or not all(map(_RECIPIENT.fullmatch, _pairs(recipients))):
        raise BundleError(f"recipients are up to {sealing.MAX_DEVICES} names of keys with a sealed key", "bundle-front")
    if not _text(manifest, MAX_BYTES):
        raise BundleError("the front's manifest is no text, or too long", "bundle-front")
    if not isinstance(signatures, list) or not 0 < len(signatures) <= MAX_SIGNATURES:
        raise BundleError(f"a front has 1 to {MAX_SIGNATURES} signatures", "bundle-front")
    if not all(_text(one, MAX_SIGNATURE) for one in signatures):
        raise BundleError("a signature in the front is no text, or too long", "bundle-front")
    if not isinstance(files, dict) or not 0 < len(files) <= MAX_FILES:
        raise BundleError(f"a front has 1 to {MAX_FILES} files of metadata", "bundle-front")
    if not all(_FILE.fullmatch(name) and _text(text, MAX_FILE) for name, text in files.items()):
        raise BundleError("metadata in the front has another name than it can have, or is too long", "bundle-front")


def _pairs(recipients: dict[str, str]) -> list[str]:
    return [f'"{name}":"{key}"' for name, key in recipients.items()]


def _text(value: object, limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit
