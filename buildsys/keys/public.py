"""The folder of a project with what is public of its keys, to be committed with it.

tuf/N.root.json, N.targets.json, N.snapshot.json, timestamp.json   metadata, as a channel serves it
tuf/release/SHA256.VERSION.json                                    manifests of releases, as a channel serves them
device/root.json, openpgp.asc, trust.json                          what an image trusts; its build takes these
secureboot/PK.pem, KEK.pem, db.pem, owner                          certificates, and the GUID that signs as their owner
secureboot/additions/0001-db.auth                                  what images add to the databases of devices
pending/                                                           metadata that waits for signatures of other machines
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from buildsys.files import atomic_write
from buildsys.keys import tuf
from common.bundle import manifest as manifests
from common.bundle.manifest import Manifest, canonical
from common.errors import BundleError, KeysError
from common.files import read_regular
from common.trust import channel
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
        self.additions = self.secureboot / "additions"
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

    def names(self) -> set[str]:
        """What keys of TUF are called, or were."""
        roots = [read(path).signed for path in self.versions("root").values()]
        return {tuf.name_of(key) for root in roots for key in root.keys.values()}

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

    def listed(self) -> dict[str, TargetFile]:
        """What the newest list names as released: target's name → what is said of it."""
        newest = self.newest("targets")
        found: dict[str, TargetFile] = newest.signed.targets if newest else {}
        return found

    def keep_manifest(self, name: str, target: TargetFile, text: str) -> None:
        """Keep the text of a manifest as the list names it."""
        path = self.tuf / channel.file_of(name, target)
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, text.encode())

    def manifests(self) -> dict[str, Manifest]:
        """Every manifest that was ever released from here, by its SHA-256. Raises KeysError `keys-metadata`."""
        found = {}
        for path in sorted((self.tuf / "release").glob("*.json")):
            digest = path.name.partition(".")[0]
            data = read_regular(path, manifests.MAX_BYTES + 1)
            try:
                if hashlib.sha256(data).hexdigest() != digest:
                    raise BundleError("its name is not its hash", "bundle-manifest")
                found[digest] = manifests.parse(data.decode("utf-8", "replace"))
            except BundleError as error:
                raise KeysError(f"{path}: {error.message}", reason="keys-metadata") from error
        return found

    def begun(self, version: str) -> Manifest | None:
        """The manifest of a version that was released from here, or whose release waits for signatures."""
        target = self.listed().get(f"release/{version}.json")
        if target is not None:
            return self.manifests().get(target.hashes.get("sha256", ""))
        try:
            text = read_regular(self.pending / f"{version}.json", manifests.MAX_BYTES + 1).decode("utf-8", "replace")
            return manifests.parse(text)
        except (FileNotFoundError, BundleError):
            return None

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
