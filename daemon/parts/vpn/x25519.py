"""The program behind `keys`: a private key, or nothing, on standard input; both keys on standard output."""

from __future__ import annotations

import sys

SIZE = 32


def main() -> None:
    """0 or 32 bytes in, 64 bytes out: private key, public key. X25519 clamps the private key itself (RFC 7748, 5)."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    given = sys.stdin.buffer.read(SIZE + 1)
    private = X25519PrivateKey.from_private_bytes(given) if given else X25519PrivateKey.generate()
    sys.stdout.buffer.write(private.private_bytes_raw() + private.public_key().public_bytes_raw())
