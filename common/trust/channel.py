"""Which release of a channel a device is offered, when, and why not another: pure decisions over trusted metadata.

A channel is a folder that any web server serves: metadata of TUF, manifests as `release/<sha256>.<version>.json` (so
consistent snapshots name targets), and bundles as `mixos-<version>.mixb`. What it offers says so in the signed list of
releases, as `custom` of the target: `{"mixos": Terms}`. What has none is listed, and taken from files; not offered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile, Targets

from common.bundle import manifest as manifests
from common.bundle.manifest import Exact, Hash, Manifest, One, Sequence, Word
from common.errors import MixosError, TrustError
from common.trust.metadata import Fetch, Trusted
from common.trust.release import Anchors, Running, refresh

CUSTOM = "mixos"  # the member of `custom` that is ours
SHARES = 10_000  # a wave's share counts in these
MAX_TIME = 253_402_300_800  # the year 10000, which no datetime has
SKEW = 86_400  # seconds by which a clock may be behind that of whoever made a release
_ROOT = re.compile(r"[0-9]+\.root\.json")
_NAME = re.compile(r"release/([0-9A-Za-z.-]{1,64})\.json")

Time = Annotated[int, Field(ge=0, lt=MAX_TIME, description="seconds since 1970")]
Share = Annotated[int, Field(ge=0, le=SHARES)]
Why = Literal["runs", "older", "machine", "variant", "floor", "minimum", "blocked", "paused", "wave", "clock", "form"]


class Wave(Exact):
    """From `start` on the release is for `share` of all devices."""

    start: Time
    share: Share


class Terms(Exact):
    """What a channel says of a release beside its hash. The first six are of its manifest; waves: share only grows;
    paused: why nobody is offered it now; max_failures: the share of devices that may fail before whoever runs the
    channel pauses it."""

    format: One
    machine: Word
    variant: Word
    sequence: Sequence
    minimum_sequence: Sequence
    created: Time
    root_hash: Hash
    waves: Annotated[tuple[Wave, ...], Field(min_length=1, max_length=16, strict=False)]
    paused: Annotated[str, StringConstraints(pattern=r"^[ -~]{1,200}$")] | None
    max_failures: Share | None

    @model_validator(mode="after")
    def _growing(self) -> Terms:
        pairs = list(zip(self.waves, self.waves[1:], strict=False))
        if any(one.start >= two.start or one.share >= two.share for one, two in pairs):
            raise ValueError("a wave begins after the one before it, and is for more devices")
        return self

    @classmethod
    def of(cls, manifest: Manifest, waves: tuple[Wave, ...], max_failures: int | None = None) -> Terms:
        """Those of a release that begins."""
        return cls.model_validate(
            {
                "format": 1,
                **_facts(manifest),
                "waves": [one.model_dump() for one in waves],
                "paused": None,
                "max-failures": max_failures,
            }
        )

    def share(self, now: int) -> int:
        """How many of SHARES devices are offered it at a time, paused or not."""
        return max((wave.share for wave in self.waves if wave.start <= now), default=0)

    def turn(self, position: int) -> int | None:
        """When a device with that position is offered it; None: in no wave so far."""
        return next((wave.start for wave in self.waves if position < wave.share), None)


def _facts(manifest: Manifest) -> dict[str, object]:
    """What terms repeat of a manifest."""
    return {
        "machine": manifest.machine,
        "variant": manifest.variant,
        "sequence": manifest.sequence,
        "minimum-sequence": manifest.minimum_sequence,
        "created": manifest.created,
        "root-hash": manifest.root.root_hash,
    }


def terms_of(target: TargetFile) -> Terms | None:
    """The terms of a listed release; None: the channel does not offer it. Raises ValueError for a form that is not
    known here."""
    custom = target.unrecognized_fields.get("custom")
    found = custom.get(CUSTOM) if isinstance(custom, dict) else None
    if found is None:
        return None
    try:
        return Terms.model_validate(found)
    except (ValidationError, RecursionError) as error:
        raise ValueError("its terms are of a form that this version does not know") from error


def version_of(name: str) -> str | None:
    """The version of a target's name."""
    found = _NAME.fullmatch(name)
    return found[1] if found else None


def file_of(name: str, target: TargetFile) -> str:
    """The file of a manifest in a channel (TUF specification, 6.2). Raises TrustError (`release-metadata`)."""
    digest = target.hashes.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise TrustError(f"{name} is listed without its SHA-256", reason="release-metadata")
    folder, _, last = name.rpartition("/")
    return f"{folder}/{digest}.{last}"


def bundle_of(version: str) -> str:
    """The file of a bundle in a channel."""
    return f"mixos-{version}.mixb"


def position(identity: str, name: str) -> int:
    """Where a device stands in the order, another for each release, in which it is offered: 0 to SHARES - 1.

    It is in a wave whose share is above that, and stays in it when the share grows. Nothing of the identity is told.
    """
    digest = hashlib.sha256(f"mixos channel\0{identity}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8]) * SHARES >> 64


@dataclass(frozen=True)
class Device:
    """Who asks. root_hash: of what runs, in hex; identity: a name that nobody else has; blocked: root hash in hex → why
    it is not installed again."""

    running: Running
    root_hash: str
    identity: str
    blocked: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A release that the channel offers to somebody. why: why not to this device, with `text` for people; at: when that
    changes by itself (seconds since 1970), if it does."""

    name: str
    version: str
    sequence: int | None
    why: Why | None = None
    text: str = ""
    at: int | None = None

    def as_json(self) -> dict[str, object]:
        """As an object."""
        return {
            "version": self.version,
            "sequence": self.sequence,
            "reason": self.why,
            "why": self.text or None,
            "at": self.at,
        }


def candidates(targets: Targets, device: Device, now: datetime) -> list[Candidate]:
    """All that a channel offers, judged for a device: what has a form that is not known, then the newest first."""
    found = []
    for name, target in targets.targets.items():
        version = version_of(name)
        if version is None:
            continue
        try:
            terms = terms_of(target)
        except ValueError as error:
            found.append(Candidate(name, version, None, "form", str(error)))
            continue
        if terms is not None:
            found.append(_judged(name, version, terms, device, int(now.timestamp())))
    return sorted(found, key=lambda one: (one.sequence is None, one.sequence or 0, one.version), reverse=True)


def offered(found: list[Candidate]) -> Candidate | None:
    """The newest that nothing speaks against."""
    return next((one for one in found if one.why is None), None)


def _judged(name: str, version: str, terms: Terms, device: Device, now: int) -> Candidate:
    why, text, at = _against(name, terms, device, now) or (None, "", None)
    return Candidate(name, version, terms.sequence, why, text, at)


def _against(name: str, terms: Terms, device: Device, now: int) -> tuple[Why, str, int | None] | None:
    """What speaks against a release for a device: what never changes first, what time heals last."""
    running = device.running
    if terms.machine != running.machine:
        return "machine", f"it is for {terms.machine}; this is {running.machine}", None
    if terms.variant != running.variant:
        return "variant", f"it is of variant {terms.variant}; this is {running.variant}", None
    if terms.root_hash == device.root_hash:
        return "runs", "it is what runs", None
    if terms.sequence < running.floor:
        return "floor", f"it is number {terms.sequence}; nothing below {running.floor} is taken any more", None
    if terms.sequence <= running.sequence:
        return "older", f"it is number {terms.sequence}, and {running.sequence} runs", None
    if terms.root_hash in device.blocked:
        return "blocked", f"it is not taken here: {device.blocked[terms.root_hash]}", None
    if running.sequence < terms.minimum_sequence:
        return "minimum", f"another release must come first: it takes number {terms.minimum_sequence} or later", None
    if terms.paused is not None:
        return "paused", f"it is paused: {terms.paused}", None
    if terms.created > now + SKEW:
        return "clock", f"it was made at {_when(terms.created)}, which this device's clock has not reached", None
    turn = terms.turn(position(device.identity, name))
    if turn is None:
        return "wave", f"so far it is for {terms.waves[-1].share / 100:g} % of all devices, and not for this one", None
    if turn > now:
        return "wave", f"this device's turn is at {_when(turn)}", turn
    return None


def _when(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Checked:
    """What a channel has for a device. manifest: of the offer, None when there is none; bundle: the file to fetch it
    from; transfer: bytes of it that this device needs beside its front; whole: because no delta begins with what runs;
    expires: when what the channel says must have been said anew."""

    candidates: tuple[Candidate, ...]
    expires: datetime
    manifest: Manifest | None = None
    bundle: str | None = None
    transfer: int | None = None
    whole: bool | None = None

    @property
    def why(self) -> Candidate | None:
        """What keeps the newest release that is meant for such a device from being the offer."""
        newest = next((one for one in self.candidates if one.why not in ("machine", "variant")), None)
        return newest if newest is not None and newest.why is not None else None

    def as_json(self) -> dict[str, Any]:
        """As an object: what the program that asks prints."""
        found = self.manifest
        offer = None
        if found is not None:
            offer = {
                "version": found.version,
                "sequence": found.sequence,
                "created": found.created,
                "kernel": found.kernel,
                "root-hash": found.root.root_hash,
                "bundle": self.bundle,
                "transfer": self.transfer,
                "whole": self.whole,
            }
        return {
            "offer": offer,
            "why": self.why.as_json() if self.why else None,
            "candidates": [one.as_json() for one in self.candidates],
            "expires": int(self.expires.timestamp()),
        }


def of_files(get: Callable[[str, int], bytes]) -> Fetch:
    """The files of a channel from somebody who gives whole files by name and most bytes, and raises a MixosError
    `source-missing` when there is none, `source-too-big` when it is larger (TrustError `release-size`).

    `source-denied`: what is not there cannot be told from what is refused where nobody may list the files, as in object
    stores. The root that comes next is mostly not there; when really all is refused, the timestamp is as well.
    """

    def fetch(name: str, limit: int) -> bytes | None:
        try:
            return get(name, limit)
        except MixosError as error:
            if error.reason == "source-missing" or (error.reason == "source-denied" and _ROOT.fullmatch(name)):
                return None
            if error.reason == "source-too-big":
                raise TrustError(f"{name} is larger than {limit} bytes", reason="release-size") from error
            raise

    return fetch


def check(fetch: Fetch, anchors: Anchors, folder: Path, device: Device, now: datetime) -> Checked:
    """Ask a channel. fetch: its files by name; folder: what was trusted so far, see `refresh`.

    The manifest that decides about the transfer is the listed one, and says what its terms say. Its OpenPGP signatures
    come with the bundle, before anything of that is taken. Raises TrustError as `Trusted.update` does; BundleError.
    """
    trusted = refresh(fetch, anchors, folder, now)
    found = candidates(trusted.targets, device, now)
    best = offered(found)
    if best is None:
        return Checked(tuple(found), trusted.expires)
    target = trusted.targets.targets[best.name]
    terms = terms_of(target)
    manifest = listed_manifest(fetch, trusted, best.name)
    if terms is None or manifest.version != best.version or _facts(manifest) != _repeated(terms):
        raise TrustError(f"{best.name} is listed with what its manifest does not say", reason="release-mixed")
    plan = manifest.plan_for(device.root_hash)
    return Checked(tuple(found), trusted.expires, manifest, bundle_of(best.version), plan.transfer, plan.source is None)


def _repeated(terms: Terms) -> dict[str, object]:
    found = terms.model_dump(by_alias=True)
    return {
        name: found[name] for name in ("machine", "variant", "sequence", "minimum-sequence", "created", "root-hash")
    }


def listed_manifest(fetch: Fetch, trusted: Trusted, name: str) -> Manifest:
    """A manifest of the list, fetched and compared with it. Raises TrustError: `release-missing`, `release-size`,
    `release-mixed`, `release-metadata`; BundleError."""
    target = trusted.targets.targets[name]
    file = file_of(name, target)
    if target.length > manifests.MAX_BYTES:
        raise TrustError(f"{name} is listed with {target.length} bytes", reason="release-size")
    data = fetch(file, target.length)
    if data is None:
        raise TrustError(f"there is no {file}", reason="release-missing", retryable=True)
    if len(data) > target.length:
        raise TrustError(f"{file} is larger than {target.length} bytes", reason="release-size")
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise TrustError(f"{file} is not the one that is listed", reason="release-mixed", retryable=True) from error
    return manifests.parse(data.decode("utf-8", "replace"))
