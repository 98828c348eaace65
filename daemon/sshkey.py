"""Public SSH keys as they stand in authorized_keys: a syntax check that needs no ssh-keygen.

Format: algorithm, base64 of the key blob, comment (RFC 4253 section 6.6, RFC 5656, RFC 8709, PROTOCOL.u2f). Options
before the algorithm are refused: an image-wide list of keys is no place for `command=` or `environment=`.
"""

from __future__ import annotations

import base64
import binascii

MAX_LENGTH = 8192
_MIN_RSA_BITS = 2048

# Algorithm → number of length-prefixed fields in the blob, the algorithm's own name included.
_FIELDS = {
    "ssh-ed25519": 2,
    "ssh-rsa": 3,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}


def key_problem(key: str) -> str | None:
    """What is wrong with a public key line, as a phrase, or None."""
    if not key:
        return "the key is missing"
    if len(key) > MAX_LENGTH or any(ord(char) < 0x20 or ord(char) == 0x7F for char in key):
        return "must be one line of text"
    if "PRIVATE KEY" in key:
        return "this is a private key; give the public one (the .pub file)"
    algorithm, _, rest = key.partition(" ")
    if algorithm not in _FIELDS:
        return f"unknown algorithm {algorithm[:40]!r}; expected {', '.join(_FIELDS)}"
    try:
        blob = base64.b64decode(rest.split(" ", 1)[0], validate=True)
    except (binascii.Error, ValueError):
        return "the key data is not base64"
    fields = _split(blob)
    if fields is None or len(fields) != _FIELDS[algorithm] or fields[0] != algorithm.encode():
        return "the key data is damaged or belongs to another algorithm"
    if "ed25519" in algorithm and len(fields[1]) != 32:
        return "an ed25519 key has 32 bytes"
    if algorithm == "ssh-rsa" and int.from_bytes(fields[2]).bit_length() < _MIN_RSA_BITS:
        return f"an RSA key needs at least {_MIN_RSA_BITS} bits"
    return None


def _split(blob: bytes) -> list[bytes] | None:
    """The length-prefixed strings of a blob (RFC 4251 section 5), or None when it does not divide into them."""
    fields = []
    while blob:
        length = int.from_bytes(blob[:4])
        if len(blob) < 4 + length or not length:
            return None
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return fields
