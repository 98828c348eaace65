"""Key pairs of X25519 (RFC 7748). The library that computes them costs 7 MiB and is needed a few times in a device's
life, so the daemon never imports it: it runs this module's `main` in a process of its own. Secrets pass through pipes
only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from common.errors import MixosError
from daemon.linux.process import capture

SIZE = 32  # bytes of a key
_PROGRAM = "import sys; sys.path[:] = {path!r}; from daemon.linux.x25519 import main; main()"
_LIBRARY = Path(__file__).resolve().parents[2]


class Pair(NamedTuple):
    """A private key and its public key, raw bytes. Never print one: `repr` hides the secret."""

    private: bytes
    public: bytes

    def __repr__(self) -> str:
        return f"Pair(public={self.public.hex()})"


async def make_pair() -> Pair:
    """A new key pair. Raises MixosError `x25519` when it cannot be computed."""
    return await _compute(b"")


async def public_of(private: bytes) -> bytes:
    """The public key that belongs to a private one. Raises MixosError `x25519`."""
    return (await _compute(private)).public


async def _compute(given: bytes) -> Pair:
    path = [os.fspath(_LIBRARY), *(entry for entry in sys.path if entry)]
    done = await capture(
        [sys.executable, "-IS", "-c", _PROGRAM.format(path=path)], given=given, seconds=60, limit=1 << 16
    )
    if done.status != 0 or len(done.out) != 2 * SIZE:
        last = done.err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise MixosError(f"the key cannot be computed: {last or f'status {done.status}'}", reason="x25519")
    return Pair(done.out[:SIZE], done.out[SIZE:])


def main() -> None:
    """0 or 32 bytes in, 64 bytes out: private key, public key. X25519 clamps the private key itself (RFC 7748, 5)."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    given = sys.stdin.buffer.read(SIZE + 1)
    private = X25519PrivateKey.from_private_bytes(given) if given else X25519PrivateKey.generate()
    sys.stdout.buffer.write(private.private_bytes_raw() + private.public_key().public_bytes_raw())
