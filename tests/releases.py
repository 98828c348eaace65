"""Releases for tests: a repository of TUF whose keys are at hand, OpenPGP keys, manifests, fronts."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from pysequoia import SignatureMode, Tsk
from pysequoia import sign as openpgp_sign
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from common.bundle import manifest
from common.bundle.container import Front
from common.trust.metadata import Fetch
from common.trust.release import Anchors, Policy, Running

NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)  # after all that tests sign
ROLES = ("root", "targets", "snapshot", "timestamp")
RUNNING = Running("x86_64", "default", sequence=4, floor=3)


class Repository:
    """Keys by role, the newest of each role (unsigned, to be changed at will), and files as a channel serves them."""

    def __init__(self, roots: int = 1, threshold: int = 1) -> None:
        expires = NOW + timedelta(days=100)
        self.keys = {
            role: [CryptoSigner.generate_ed25519() for _ in range(roots if role == "root" else 1)] for role in ROLES
        }
        self.root = Root(version=0 + 1, expires=expires, consistent_snapshot=True)
        for role, signers in self.keys.items():
            for signer in signers:
                self.root.add_key(signer.public_key, role)
        self.root.roles["root"].threshold = threshold
        self.targets = Targets(version=1, expires=expires)
        self.snapshot = Snapshot(version=1, expires=expires)
        self.timestamp = Timestamp(version=1, expires=expires)
        self.files: dict[str, bytes] = {}
        self.write_root(self.keys["root"])
        self.publish()

    @property
    def anchor(self) -> bytes:
        """The first root."""
        return self.files["1.root.json"]

    def write_root(self, signers: Iterable[CryptoSigner]) -> bytes:
        """Sign and serve the root as it is."""
        data = signed(self.root, signers)
        self.files[f"{self.root.version}.root.json"] = data
        return data

    def next_root(self, *more: CryptoSigner) -> bytes:
        """The same root again in its next version, with what was changed in it."""
        self.root.version += 1
        return self.write_root([*self.keys["root"], *more])

    def rotate(self, *roles: str) -> None:
        """New keys for roles but root, and a root that says so."""
        for role in roles:
            for keyid in list(self.root.roles[role].keyids):
                self.root.revoke_key(keyid, role)
            self.keys[role] = [CryptoSigner.generate_ed25519()]
            self.root.add_key(self.keys[role][0].public_key, role)
        self.next_root()

    def release(self, text: str, version: str = "1.2.3") -> None:
        """List a manifest, and publish."""
        name = f"release/{version}.json"
        self.targets.targets[name] = TargetFile.from_data(name, text.encode(), ["sha256"])
        self.bump()

    def bump(self) -> None:
        """The next version of all three."""
        for one in (self.targets, self.snapshot, self.timestamp):
            one.version += 1
        self.publish()

    def publish(self) -> None:
        """Sign and serve the three as they are."""
        data = self._serve(self.targets, f"{self.targets.version}.targets.json")
        self.snapshot.meta["targets.json"] = MetaFile.from_data(self.targets.version, data, ["sha256"])
        self.publish_snapshot()

    def publish_snapshot(self) -> None:
        """Sign and serve snapshot and timestamp as they are."""
        data = self._serve(self.snapshot, f"{self.snapshot.version}.snapshot.json")
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        """Sign and serve the timestamp as it is."""
        self._serve(self.timestamp, "timestamp.json")

    def copy(self) -> dict[str, bytes]:
        """What is served now."""
        return dict(self.files)

    def _serve(self, one: Any, name: str) -> bytes:
        self.files[name] = signed(one, self.keys[one.type])
        return self.files[name]


def signed(one: Any, signers: Iterable[CryptoSigner]) -> bytes:
    """The file of metadata."""
    metadata = Metadata(copy.deepcopy(one))
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def raw(one: Any, signers: Iterable[CryptoSigner], **changes: Any) -> bytes:
    """The same with members that the classes would not take, properly signed."""
    from securesystemslib.formats import encode_canonical

    body = one.to_dict() | changes
    payload = encode_canonical(body).encode()
    signatures = [signer.sign(payload).to_dict() for signer in signers]
    return json.dumps({"signed": body, "signatures": signatures}).encode()


def served(files: dict[str, bytes]) -> Fetch:
    """A channel."""
    return lambda name, limit: files.get(name)


def document(**changes: Any) -> dict[str, Any]:
    """A manifest, as JSON has it. 9 MiB of root, 1 MiB of kernel image."""
    blob = {"offset": 0, "size": 100, "sha256": "11" * 32}
    return {
        "format": 1,
        "product": "mixos",
        "machine": "x86_64",
        "variant": "default",
        "version": "1.2.3",
        "sequence": 5,
        "minimum-sequence": 2,
        "created": 1_700_000_000,
        "kernel": "6.6.8-mixos",
        "root": {
            "size": 9 << 20,
            "sha256": "22" * 32,
            "root-hash": "33" * 32,
            "salt": "44" * 32,
            "windows": {"size": 4 << 20, "sha256": ["55" * 32, "66" * 32, "77" * 32]},
        },
        "uki": {"size": 1 << 20, "sha256": "88" * 32, "windows": {"size": 4 << 20, "sha256": ["99" * 32]}},
        "files": [],
        "plans": [{"from": None, "root": blob, "uki": blob, "files": [], "transfer": 200}],
        "hooks": [],
        "encryption": None,
        **changes,
    }


def hook(**changes: Any) -> dict[str, Any]:
    """A hook of a manifest."""
    return {"when": "before-stage", "offset": 0, "size": 1, "sha256": "11" * 32, "seconds": 1, **changes}


def text(**changes: Any) -> str:
    """Its text."""
    return manifest.canonical(document(**changes))


class Signer:
    """An OpenPGP key that signs releases."""

    def __init__(self, name: str = "releases") -> None:
        self.secret = Tsk.generate(f"{name} <release@example.org>")
        self.cert = self.secret.extract_certificate()
        self.fingerprint = self.cert.fingerprint.upper()

    def sign(self, message: str) -> str:
        """An armored detached signature."""
        return openpgp_sign(self.secret.signer(), message.encode(), mode=SignatureMode.DETACHED).decode()


def anchors(repository: Repository, *signers: Signer, threshold: int = 1) -> Anchors:
    """What an image trusts."""
    ring = "".join(str(signer.cert) for signer in signers).encode()
    names = [signer.fingerprint for signer in signers]
    policy = {"format": 1, "openpgp": {"threshold": threshold, "signers": names}}
    return Anchors(repository.anchor, ring, Policy.model_validate(policy))


def front(repository: Repository, message: str, *signers: Signer) -> Front:
    """The front of a bundle with all that is served."""
    files = {name: data.decode() for name, data in repository.files.items()}
    return Front(message, tuple(signer.sign(message) for signer in signers), files)
