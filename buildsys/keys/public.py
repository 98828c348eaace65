"""The folder of a project with what is public of its keys, to be committed with it.

tuf/N.root.json, N.targets.json, N.snapshot.json, timestamp.json   metadata, as a channel serves it
device/root.json, openpgp.asc, trust.json                          what an image trusts; its build takes these
secureboot/PK.pem, KEK.pem, db.pem, owner                          certificates, and the GUID that signs as their owner
pending/                                                           metadata that waits for signatures of other machines
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from buildsys.files import atomic_write
from common.bundle.manifest import canonical
from common.errors import KeysError
from common.files import read_regular
from common.trust.metadata import LIMITS
from common.trust.release import CERTIFICATES, POLICY, ROOT, Policy, read_policy

SERIALIZER = JSONSerializer(compact=False)
_VERSIONED = re.compile(r"([1-9][0-9]{0,8})\.(root|targets|snapshot)\.json")


class Public:
    """One such folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tuf = folder / "tuf"
        self.device = folder / "device"
        self.secureboot = folder / "secureboot"
        self.pending = folder / "pending"

    @property
    def exists(self) -> bool:
        """Whether keys were made."""
        return (self.device / ROOT).exists()

    def versions(self, role: str) -> dict[int, Path]:
        """The files of a role by version, in order."""
        found: dict[int, Path] = {}
        for path in self.tuf.glob(f"*.{role}.json"):
            name = _VERSIONED.fullmatch(path.name)
            if name:
                found[int(name[1])] = path
        return dict(sorted(found.items()))

    def root(self) -> Metadata[Root]:
        """The newest root. Raises KeysError `keys-none`."""
        found = self.versions("root")
        if not found:
            raise KeysError(f"{self.folder} holds no keys", reason="keys-none", hint="make them: mixos keys make")
        return read(found[max(found)])

    def newest(self, role: str) -> Metadata[Any] | None:
        """The newest metadata of a role but root; None before the first release."""
        path = self.tuf / "timestamp.json"
        if role != "timestamp":
            found = self.versions(role)
            path = found[max(found)] if found else path.with_name("none")
        return read(path) if path.exists() else None

    def write(self, metadata: Metadata[Any]) -> None:
        """Keep metadata of whichever role under its name."""
        atomic_write(self.tuf / name_of(metadata), dump(metadata))

    def adopt_root(self, metadata: Metadata[Root]) -> None:
        """Make a root that is signed enough the newest, for the images too."""
        self.write(metadata)
        atomic_write(self.device / ROOT, dump(metadata))
        (self.pending / name_of(metadata)).unlink(missing_ok=True)

    def policy(self) -> Policy:
        """Whose OpenPGP signatures a release needs. Raises KeysError `keys-none`, TrustError `release-anchors`."""
        try:
            data = read_regular(self.device / POLICY, 1 << 20)
        except OSError as error:
            message = f"{self.device / POLICY}: {error.strerror}"
            raise KeysError(message, reason="keys-none", hint="make keys: mixos keys make") from error
        return read_policy(data, str(self.device / POLICY))

    def write_signers(self, certificates: str, signers: list[str], threshold: int) -> None:
        """The OpenPGP certificates that images trust, and by which fingerprints."""
        policy = {"format": 1, "openpgp": {"signers": signers, "threshold": threshold}}
        atomic_write(self.device / CERTIFICATES, certificates.encode())
        atomic_write(self.device / POLICY, canonical(policy).encode() + b"\n")

    def make(self) -> None:
        """The folders."""
        for folder in (self.folder, self.tuf, self.device, self.secureboot, self.pending):
            folder.mkdir(parents=True, exist_ok=True)


def name_of(metadata: Metadata[Any]) -> str:
    """The file name of metadata in a channel (TUF specification, 6.2)."""
    signed = metadata.signed
    return "timestamp.json" if signed.type == "timestamp" else f"{signed.version}.{signed.type}.json"


def dump(metadata: Metadata[Any]) -> bytes:
    """The bytes of its file."""
    return metadata.to_bytes(SERIALIZER)


def read(path: Path) -> Metadata[Any]:
    """Metadata from a file. Raises KeysError `keys-metadata`."""
    try:
        data = read_regular(path, max(LIMITS.values()))
        return Metadata.from_bytes(data)
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}", reason="keys-metadata") from error
    except DeserializationError as error:
        raise KeysError(f"{path} is no metadata of TUF", reason="keys-metadata") from error
