"""WireGuard's keys as people and files write them: 32 bytes in base64, one spelling only."""

from __future__ import annotations

import base64
import binascii

from common.errors import MixosError

SIZE = 32  # bytes


class KeyProblem(MixosError):
    """What was given is not a key."""

    exit_code = 3


def decode(text: str, what: str = "the key") -> bytes:
    """The 32 bytes of a key in base64. Raises KeyProblem `vpn-key`; its message does not repeat the text."""
    words = text.strip()
    try:
        data = base64.b64decode(words, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    # One spelling only: the two spare bits of the last character are zero.
    if len(data) != SIZE or encode(data) != words:
        raise KeyProblem(
            f"{what} is not a WireGuard key ({len(words)} characters)",
            reason="vpn-key",
            hint="a key is 32 bytes in base64: 44 characters, the last one '='; `wg pubkey` prints one",
        )
    if not any(data):
        raise KeyProblem(f"{what} is all zeros", reason="vpn-key", hint="make one with `wg genkey`")
    return data


def encode(key: bytes) -> str:
    """Base64."""
    return base64.b64encode(key).decode("ascii")
