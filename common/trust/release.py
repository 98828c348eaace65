"""Whether a device takes a release: everything about it is verified here, before any byte of its payload is read.

The order: metadata of TUF, that it lists the manifest's text, OpenPGP signatures over that text, and only then what the
text says. What an image trusts lies on its verified root; what was trusted since is kept in a folder of the device.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from common.bundle import manifest as manifests
from common.bundle.container import Front
from common.bundle.manifest import Exact, Manifest, One
from common.errors import TrustError
from common.files import read_regular, write_atomically
from common.safe import one_line
from common.tomlfile import plain
from common.trust import ANCHORS, openpgp
from common.trust.metadata import Fetch, Kept, Trusted

ROOT, CERTIFICATES, POLICY = "root.json", "openpgp.asc", "trust.json"
KEPT = "trusted.json"  # in the device's folder
_MAX_ANCHOR = 1 << 20
_MAX_KEPT = 8 << 20

Fingerprint = Annotated[str, StringConstraints(pattern=r"^([0-9A-F]{40}|[0-9A-F]{64})$")]


class Signers(Exact):
    """signers: fingerprints, of primary keys or subkeys; threshold: how many of their certificates must have signed."""

    threshold: Annotated[int, Field(ge=1, le=16)]
    signers: Annotated[tuple[Fingerprint, ...], Field(min_length=1, max_length=16, strict=False)]


class Policy(Exact):
    """The file trust.json."""

    format: One
    openpgp: Signers


@dataclass(frozen=True)
class Anchors:
    """What an image trusts: the root of TUF's metadata, and whose OpenPGP signatures a manifest needs."""

    root: bytes
    certificates: bytes
    policy: Policy

    @classmethod
    def load(cls, folder: Path = ANCHORS) -> Anchors:
        """Raises TrustError (`release-anchors`), also when nobody was ever trusted: then nothing can be updated."""
        try:
            root, certificates, policy = (
                read_regular(folder / name, _MAX_ANCHOR) for name in (ROOT, CERTIFICATES, POLICY)
            )
        except OSError as error:
            hint = "an image takes updates when it was built with keys: see 'mixos keys make'"
            raise TrustError(f"{folder}: {error.strerror}", reason="release-anchors", hint=hint) from error
        return cls(root, certificates, read_policy(policy, str(folder / POLICY)))


def read_policy(data: bytes, where: str) -> Policy:
    """trust.json. Raises TrustError (`release-anchors`)."""
    try:
        return Policy.model_validate_json(data)
    except ValidationError as error:
        found = error.errors()[0]
        spot = ".".join(str(part) for part in found["loc"])
        raise TrustError(f"{where}: {spot}: {one_line(plain(found))}", reason="release-anchors") from error


@dataclass(frozen=True)
class Running:
    """What takes the release. sequence: of the running release; floor: below which nothing is ever taken again."""

    machine: str
    variant: str
    sequence: int
    floor: int


@dataclass(frozen=True)
class Release:
    """A release that is to be trusted. signers: fingerprints of certificates that count; expires: of the metadata."""

    manifest: Manifest
    text: str
    signers: frozenset[str]
    expires: datetime


def of_front(front: Front) -> Fetch:
    """The metadata in the front of a bundle."""

    def fetch(name: str, limit: int) -> bytes | None:
        text = front.tuf.get(name)
        return None if text is None else text.encode("utf-8", "surrogatepass")

    return fetch


def of_folder(folder: Path) -> Fetch:
    """The metadata of a channel that is already here. Raises TrustError (`release-missing`) for what cannot be read."""

    def fetch(name: str, limit: int) -> bytes | None:
        try:
            return read_regular(folder / name, limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrustError(f"{folder / name}: {error.strerror}", reason="release-missing") from error

    return fetch


def load_kept(folder: Path) -> Kept:
    """What was trusted so far; nothing yet is fine. Raises TrustError (`release-state`)."""
    try:
        return Kept.parse(read_regular(folder / KEPT, _MAX_KEPT))
    except FileNotFoundError:
        return Kept()
    except OSError as error:
        raise TrustError(f"{folder / KEPT}: {error.strerror}", reason="release-state") from error


def refresh(fetch: Fetch, anchors: Anchors, folder: Path, now: datetime, *, carried: bool = False) -> Trusted:
    """What the metadata of `fetch` and what was trusted before say together. Raises what `Trusted.update` raises.

    What has passed every check of its own is kept in `folder` in one write, also when something after it is refused: a
    root that takes a stolen key away must hold from then on, whatever else the thief sends.
    """
    before = load_kept(folder)
    trusted = Trusted(anchors.root, before, now)
    try:
        trusted.update(fetch, carried=carried)
    finally:
        if trusted.kept != before:
            _keep(trusted.kept, folder)
    return trusted


def _keep(kept: Kept, folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(folder / KEPT, kept.dump(), 0o600)
    except OSError as error:
        message = f"{folder / KEPT} cannot be written: {error.strerror}"
        raise TrustError(message, reason="release-state", hint="is the disk full?", retryable=True) from error


def verify(front: Front, anchors: Anchors, folder: Path, running: Running, now: datetime) -> Release:
    """The release of a bundle. Raises TrustError with the reasons of `Trusted.update` and these, all final:

    `release-unlisted` (the metadata does not list this manifest), `release-openpgp` (too few of the pinned certificates
    have signed it), `release-clock` (it is signed later than now), `release-product`, `release-machine`,
    `release-variant` (of something else), `release-downgrade` (below the floor), `release-minimum` (what runs is too
    old to go there directly); BundleError for a manifest that breaks its format.
    """
    trusted = refresh(of_front(front), anchors, folder, now, carried=True)
    name = listed(trusted, front.manifest)
    signers = signed_by(anchors, front, now)
    manifest = manifests.parse(front.manifest)
    if manifest.target != name:
        raise TrustError(f"the manifest of {manifest.version} is listed as {name}", reason="release-unlisted")
    _suitable(manifest, running)
    return Release(manifest, front.manifest, signers, trusted.expires)


def listed(trusted: Trusted, text: str) -> str:
    """The name under which the list of releases has exactly this manifest. Raises TrustError (`release-unlisted`)."""
    data = text.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(data).hexdigest()
    for name, target in trusted.targets.targets.items():
        if target.length == len(data) and target.hashes.get("sha256") == digest:
            return name
    hint = "the release may have been withdrawn, or the bundle was altered"
    raise TrustError("the list of releases does not have this manifest", reason="release-unlisted", hint=hint)


def signed_by(anchors: Anchors, front: Front, now: datetime) -> frozenset[str]:
    """The pinned certificates that have signed the manifest, as many as it takes."""
    policy = anchors.policy.openpgp
    pinned = openpgp.certificates(anchors.certificates, policy.signers)
    if len(pinned) < policy.threshold:
        message = f"{policy.threshold} certificates must sign a release, and {len(pinned)} are pinned"
        raise TrustError(message, reason="release-anchors")
    judged = openpgp.judge(pinned, front.manifest.encode("utf-8", "surrogatepass"), front.signatures, now)
    if len(judged.certificates) >= policy.threshold:
        return judged.certificates
    why = "".join(f"\n  {one}" for one in judged.others)
    message = f"the manifest is signed by {len(judged.certificates)} of {policy.threshold} pinned certificates{why}"
    if judged.early:
        hint = "the clock of this device is behind; set it, then try again"
        raise TrustError(message, reason="release-clock", hint=hint, retryable=True)
    raise TrustError(message, reason="release-openpgp")


def _suitable(manifest: Manifest, running: Running) -> None:
    sequence, least = manifest.sequence, manifest.minimum_sequence
    wrong = {
        "product": manifest.product != manifests.PRODUCT and f"of the product {manifest.product}",
        "machine": manifest.machine != running.machine and f"for {manifest.machine}; this is {running.machine}",
        "variant": manifest.variant != running.variant and f"of variant {manifest.variant}; this is {running.variant}",
        "downgrade": sequence < running.floor and f"number {sequence}; nothing below {running.floor} is taken any more",
        "minimum": running.sequence < least
        and f"for devices that run number {least} or later; this is {running.sequence}",
    }
    for reason, text in wrong.items():
        if text:
            raise TrustError(f"the release {manifest.version} is {text}", reason=f"release-{reason}")
