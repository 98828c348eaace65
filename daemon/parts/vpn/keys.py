"""Keys of WireGuard: pairs of X25519 (`daemon.linux.x25519`) and preshared keys, 32 bytes, written as 44 characters of
base64. They are kept in files of their own, 0600 in a folder 0700."""

from __future__ import annotations

import secrets
from pathlib import Path

from common.errors import NotFoundError
from common.wireguard import SIZE, KeyProblem, decode, encode
from daemon.core.change.applier import View
from daemon.linux.x25519 import Pair, make_pair, public_of

__all__ = ["SIZE", "KeyProblem", "Pair", "Store", "decode", "encode", "make_pair", "preshared", "public_of"]
SECRETS = "var/lib/mixos/vpn/"


def preshared() -> bytes:
    """A new preshared key."""
    return secrets.token_bytes(SIZE)


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
