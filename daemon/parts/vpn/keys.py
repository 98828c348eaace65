"""Keys of WireGuard: Curve25519 key pairs and preshared keys, 32 bytes, written as 44 characters of base64.

The library that computes them costs 7 MiB and is needed a few times in a device's life, so the daemon never imports it:
it runs `x25519` in a process of its own. Secrets pass through pipes only. They are kept in files of their own, 0600 in
a folder 0700.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import NamedTuple

from common.errors import MixosError, NotFoundError
from common.wireguard import SIZE, KeyProblem, decode, encode
from daemon.core.change.applier import View
from daemon.linux.process import capture

__all__ = ["SIZE", "KeyProblem", "Pair", "Store", "decode", "encode", "make_pair", "preshared", "public_of"]
SECRETS = "var/lib/mixos/vpn/"
_PROGRAM = "import sys; sys.path[:] = {path!r}; from daemon.parts.vpn.x25519 import main; main()"
_LIBRARY = Path(__file__).resolve().parents[3]


class Pair(NamedTuple):
    """A private key and its public key, raw bytes. Never print one: `repr` hides the secret."""

    private: bytes
    public: bytes

    def __repr__(self) -> str:
        return f"Pair(public={encode(self.public)})"


def preshared() -> bytes:
    """A new preshared key."""
    return secrets.token_bytes(SIZE)


async def make_pair() -> Pair:
    """A new key pair. Raises MixosError `vpn-keys` when it cannot be computed."""
    return await _compute(b"")


async def public_of(private: bytes) -> bytes:
    """The public key that belongs to a private one. Raises MixosError `vpn-keys`."""
    return (await _compute(private)).public


async def _compute(given: bytes) -> Pair:
    path = [os.fspath(_LIBRARY), *(entry for entry in sys.path if entry)]
    done = await capture(
        [sys.executable, "-IS", "-c", _PROGRAM.format(path=path)], given=given, seconds=60, limit=1 << 16
    )
    if done.status != 0 or len(done.out) != 2 * SIZE:
        last = done.err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise MixosError(f"the key cannot be computed: {last or f'status {done.status}'}", reason="vpn-keys")
    return Pair(done.out[:SIZE], done.out[SIZE:])


class Store:
    """Secrets of the VPN as a view has them: `wg0.key` (own), `wg0.NAME.psk`, `wg0.NAME.key` (a client's, kept by
    choice). What is written goes into `changed`, for the change that makes it so."""

    def __init__(self, view: View, changed: dict[str, bytes | Path | None]) -> None:
        self.view = view
        self.changed = changed

    def read(self, name: str) -> bytes:
        """A secret. Raises NotFoundError `vpn-secret-missing`, KeyProblem `vpn-key`."""
        path = self.view.places.place(SECRETS + name)
        text = (self.view.read(SECRETS + name) or b"").decode("ascii", "replace")
        if not text:
            raise NotFoundError(
                f"{path} is missing",
                reason="vpn-secret-missing",
                hint="restore it from a backup, or make a new one: mixctl vpn rotate",
            )
        return decode(text, str(path))

    def write(self, name: str, key: bytes) -> None:
        """Keep a secret."""
        self.changed[SECRETS + name] = f"{encode(key)}\n".encode()

    def has(self, name: str) -> bool:
        """Whether a secret is there."""
        return self.view.read(SECRETS + name) is not None

    def remove(self, name: str) -> None:
        """Forget a secret; the file system may keep its blocks."""
        if self.has(name):
            self.changed[SECRETS + name] = None


def clamp(private: bytes) -> bytes:
    """A private key as the kernel keeps it (RFC 7748, 5): setting one that differs would end every session."""
    return bytes([private[0] & 248]) + private[1:31] + bytes([private[31] & 127 | 64])
