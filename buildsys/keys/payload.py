"""Keys of encrypted payloads: each is made of a secret of the project and of the payload's hash. So a release whose
signatures have to be waited for goes on as the same one, and the project can read its own bundles as sources of deltas.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from buildsys.keys.private import Private
from common.errors import KeysError

_KIND, _NAME = "bundle", "payload.key"


def key_of(private: Private, digest: bytes) -> bytes:
    """The key of the payload that has this SHA-256, 32 bytes. Raises KeysError."""
    secret = private.load(_KIND, _NAME)
    if not isinstance(secret, X25519PrivateKey):
        raise KeysError(f"{private.folder / _KIND / _NAME} is another kind of key", reason="keys-damaged")
    return hmac.digest(secret.private_bytes_raw(), b"mixos payload\0" + digest, "sha256")


def new_key(private: Private, digest: bytes) -> bytes:
    """The same; the secret is made when there is none. Raises KeysError, HostError."""
    if _NAME not in {path.name for path in private.files(_KIND)}:
        private.write(_KIND, _NAME, X25519PrivateKey.generate(), as_others=True)
    return key_of(private, digest)
