"""Payloads that named devices alone can read.

A payload is encrypted in pieces of 64 KiB, each by itself, so that ranges of it can be asked for: ChaCha20-Poly1305
(RFC 8439) with the payload's key, the number of the piece as the nonce (96 bit, big-endian), nothing besides. The key
is of this payload alone. It stands in the front once for each device, sealed to the device's key: HPKE (RFC 9180), base
mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, and `INFO`. The library that does all this takes
7 MiB, and is imported by who needs it.

This keeps the payload secret, and proves nothing: whether it is the right one is told by the hashes of the manifest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from common.bundle.order import Order
from common.bundle.windows import Read
from common.errors import BundleError, UsageError

PIECE = 64 << 10  # bytes of the payload
TAG = 16  # bytes more that each has encrypted
_STORED = PIECE + TAG
KEY = 32  # bytes of a payload's key, of a private, and of a public one
SEALED = 80  # bytes of a sealed key
ID = 8  # bytes of a device key's name: the begin of SHA-256 of its public part
MAX_DEVICES = 4096
INFO = b"mixos bundle 1"
_WORD = "mixos-device:"


def write_public(public: bytes) -> str:
    """A device's public key as people copy it: a word that says what it is, and base64."""
    return _WORD + base64.b64encode(public).decode()


def is_public(text: str) -> bool:
    """Whether a text is meant as such a key."""
    return text.startswith(_WORD)


def read_public(text: str, what: str = "the key") -> bytes:
    """The inverse. Raises UsageError `device-key`."""
    words = text.strip()
    try:
        public = base64.b64decode(words.removeprefix(_WORD), validate=True)
    except (binascii.Error, ValueError):
        public = b""
    if len(public) != KEY or write_public(public) != words:
        hint = "'mixctl update key' prints the one of a device"
        raise UsageError(f"{what} is no public key of a device: {_WORD}…", reason="device-key", hint=hint)
    return public


def name(public: bytes) -> bytes:
    """The name of a device's key."""
    return hashlib.sha256(public).digest()[:ID]


def stored(size: int) -> int:
    """Bytes that a payload of `size` bytes has encrypted."""
    return size + TAG * -(-size // PIECE)


def seal(key: bytes, public: bytes) -> bytes:
    """A payload's key for the device that has this public key: `SEALED` bytes. Raises UsageError `device-key` for a
    public key that no private one belongs to."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        sealed: bytes = _suite().encrypt(key, X25519PublicKey.from_public_bytes(public), info=INFO)
    except ValueError as error:
        raise UsageError(f"{write_public(public)} is nobody's key", reason="device-key") from error
    return sealed


def unseal(sealed: bytes, private: bytes) -> bytes | None:
    """The payload's key; None for what was not sealed to this device, or changed since."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    try:
        key: bytes = _suite().decrypt(sealed, X25519PrivateKey.from_private_bytes(private), info=INFO)
    except (InvalidTag, ValueError):
        return None
    return key if len(key) == KEY else None


def _suite() -> Any:
    from cryptography.hazmat.primitives import hpke

    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


def encrypted(key: bytes, parts: Iterable[bytes]) -> Iterator[bytes]:
    """A payload, given in parts of any size, as it stands in the bundle: piece by piece."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    cipher, held, number = ChaCha20Poly1305(key), bytearray(), 0
    for part in parts:
        held += part
        while len(held) >= PIECE:
            yield cipher.encrypt(_nonce(number), bytes(held[:PIECE]), None)
            del held[:PIECE]
            number += 1
    if held:
        yield cipher.encrypt(_nonce(number), bytes(held), None)


def payload(order: Order, read: Read) -> Read:
    """What reads a payload as it is before it is encrypted, if it is. read: the bundle's bytes."""
    if order.key is not None:
        return Reader(order.key, order.payload, read).read
    return lambda offset, length: read(order.payload + offset, length)


class Reader:
    """An encrypted payload, to be read by ranges. read: the bundle's bytes; start: where the payload begins."""

    def __init__(self, key: bytes, start: int, read: Read) -> None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._cipher, self._invalid = ChaCha20Poly1305(key), InvalidTag
        self._start, self._read = start, read
        self._last = -1, b""  # frames lie back to back: the piece in which one ends is the next one's first

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes of it, fewer at its end. Raises BundleError `bundle-damaged`; what the bundle raises."""
        first, end = offset // PIECE, -(-(offset + length) // PIECE)
        out = bytearray(self._last[1] if first == self._last[0] else b"")
        at = first + bool(out)
        data = memoryview(self._read(self._start + at * _STORED, (end - at) * _STORED) if at < end else b"")
        for number in range(at, at + -(-len(data) // _STORED)):
            self._last = number, self._opened(number, data[:_STORED])
            out += self._last[1]
            data = data[_STORED:]
        return bytes(out[offset - first * PIECE :][:length])

    def _opened(self, number: int, data: memoryview) -> bytes:
        try:
            return self._cipher.decrypt(_nonce(number), data, None)
        except self._invalid as error:
            raise BundleError("the payload is damaged, or encrypted with another key", "bundle-damaged") from error


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
