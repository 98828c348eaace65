"""Keys of encrypted payloads: each is made of a secret of the project and of the payload's hash. So a release whose
signatures have to be waited for goes on as the same one, and the project can read its own bundles as sources of deltas.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from buildsys.keys.private import Private
from common.errors import KeysError

KIND, _NAME = "bundle", "payload.key"


def key_of(private: Private, digest: bytes) -> bytes:
    """The key of the payload that has this SHA-256, 32 bytes. Raises KeysError."""
    if not _there(private):
        hint = "bring it back, or make the bundle without what was encrypted before: no --from, --deltas 0"
        message = f"{private.folder / KIND / _NAME} is not there, which opens this project's encrypted bundles"
        raise KeysError(message, reason="keys-missing", hint=hint)
    secret = private.load(KIND, _NAME)
    if not isinstance(secret, X25519PrivateKey):
        raise KeysError(f"{private.folder / KIND / _NAME} is another kind of key", reason="keys-damaged")
    return hmac.digest(secret.private_bytes_raw(), b"mixos payload\0" + digest, "sha256")


def new_key(private: Private, digest: bytes) -> bytes:
    """The same; the secret is made when there is none. Raises KeysError, HostError."""
    if not _there(private):
        try:
            private.write(KIND, _NAME, X25519PrivateKey.generate(), as_others=True)
        except KeysError as error:
            if error.reason != "keys-there":  # another process has made one meanwhile: it counts for both
                raise
    return key_of(private, digest)


def _there(private: Private) -> bool:
    return _NAME in {path.name for path in private.files(KIND)}
