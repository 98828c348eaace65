"""The folder of a channel: static files that any web server or CDN serves, made from a project's signed metadata.

    timestamp.json, N.snapshot.json, N.targets.json, N.root.json    metadata of TUF; all but the first never change
    release/SHA256.VERSION.json                                     manifests; never change
    mixos-VERSION.mixb                                              bundles

The project's `keys/tuf` decides what is so; the folder is made to follow, the timestamp last: whoever asks in between
sees the old state or the new one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile

from buildsys.files import atomic_write
from buildsys.keys.public import Public, read
from common.bundle import container, manifest
from common.bundle.manifest import Manifest
from common.errors import BundleError, CheckError, UsageError
from common.files import read_regular
from common.trust.channel import MAX_TIME, SHARES, Terms, Wave, bundle_of, file_of, terms_of, version_of

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,2})?)%")
_LATER = re.compile(r"\+([0-9]{1,4})([hd])")


@dataclass(frozen=True)
class Listed:
    """A release of the list. terms: None when it is not offered."""

    name: str
    version: str
    target: TargetFile
    terms: Terms | None


def listed(public: Public) -> list[Listed]:
    """The releases on a project's list, the newest of those that are offered first."""
    found = []
    for name, target in public.listed().items():
        version = version_of(name)
        try:
            terms = terms_of(target)
        except ValueError as error:
            hint = "use the mixos that released it, or a later one"
            raise CheckError(f"the list has {name}, but {error}", reason="channel-terms", hint=hint) from error
        if version is not None:
            found.append(Listed(name, version, target, terms))
    return sorted(found, key=lambda one: (one.terms is not None and one.terms.sequence, one.version), reverse=True)


def offer(public: Public, version: str) -> Terms:
    """On which terms a release is offered. Raises CheckError `channel-unknown`."""
    found = {one.version: one.terms for one in listed(public) if one.terms is not None}
    terms = found.get(version)
    if terms is None:
        hint = f"offered are: {', '.join(found) or 'none'}; 'mixos release' offers one"
        raise CheckError(f"the channel does not offer {version}", reason="channel-unknown", hint=hint)
    return terms


class Channel:
    """One such folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def bundles(self) -> dict[Path, Manifest]:
        """The bundles in it, the newest first; files that are none are left out."""
        found = {}
        for path in self.folder.glob("mixos-*.mixb"):
            try:
                found[path] = _front(path)
            except (BundleError, OSError):
                continue
        return dict(sorted(found.items(), key=lambda one: one[1].sequence, reverse=True))

    def earlier(self, public: Public, version: str, sequence: int, count: int) -> list[Path]:
        """The newest bundles of earlier releases of this project, as sources of deltas; devices may run withdrawn ones,
        too. What others have put into the folder is not unpacked where releases are signed."""
        ours = list(public.manifests().values())
        found = self.bundles().items()
        return [path for path, one in found if one in ours and one.sequence < sequence and one.version != version][
            :count
        ]

    def bundle(self, version: str) -> Path:
        """The file of a release."""
        return self.folder / bundle_of(version)

    @staticmethod
    def read(path: Path) -> Manifest | None:
        """The manifest of a bundle, of which nothing is verified; None for another kind of file. Raises BundleError."""
        with path.open("rb") as stream:
            if stream.read(len(container.MAGIC)) != container.MAGIC:
                return None
        return _front(path)

    def check_there(self, public: Public) -> None:
        """Raise CheckError `channel-none` unless this folder is a channel; those of `check_origin`."""
        if not (self.folder / "timestamp.json").exists():
            hint = "name the folder that 'mixos release --channel' has made"
            message = f"{self.folder} is no channel: it has no timestamp.json"
            raise CheckError(message, reason="channel-none", hint=hint)
        self.check_origin(public)

    def check_origin(self, public: Public) -> None:
        """Raise CheckError unless this folder follows from that project's keys: `channel-other`, `channel-newer`."""
        for number, path in public.versions("root").items():
            there = self.folder / f"{number}.root.json"
            if there.exists() and there.read_bytes() != path.read_bytes():
                message = f"{self.folder} is a channel of other keys: {there.name} differs"
                raise CheckError(message, reason="channel-other", hint="name another folder")
        ours, there = public.newest("timestamp"), self.folder / "timestamp.json"
        theirs = read(there) if there.exists() else None
        versions = [one.signed.version if one else 0 for one in (theirs, ours)]
        if versions[0] > versions[1] or (versions[0] == versions[1] and theirs != ours):
            hint = "get the newest state of the project's folder of keys (git pull): devices never go back"
            message = f"{self.folder} is newer than {public.tuf}"
            raise CheckError(message, reason="channel-newer", hint=hint)

    def publish(self, public: Public) -> list[str]:
        """Make the folder follow; the files that were written. Raises CheckError: those of `check_origin`, and
        `channel-incomplete` before anything is written when something that is offered is not there."""
        self.check_origin(public)
        newest = [public.newest(role) for role in ("targets", "snapshot", "timestamp")]
        if None in newest:
            hint = "release something first: mixos release"
            raise CheckError("nothing was released yet", reason="channel-empty", hint=hint)
        files: dict[str, bytes] = {}
        for one in listed(public):
            path = public.tuf / file_of(one.name, one.target)
            text = read_regular(path, manifest.MAX_BYTES) if path.exists() else b""
            if one.terms is not None:
                self._check_bundle(one, text)
            if text:
                files[f"release/{path.name}"] = text
        for role in ("root", "targets", "snapshot"):
            files |= {path.name: path.read_bytes() for path in public.versions(role).values()}
        files["timestamp.json"] = (public.tuf / "timestamp.json").read_bytes()
        self._check_unchanged(files)
        (self.folder / "release").mkdir(parents=True, exist_ok=True)
        return [name for name, data in files.items() if self._write(name, data)]

    def _check_bundle(self, one: Listed, text: bytes) -> None:
        path = self.bundle(one.version)
        try:
            with path.open("rb") as stream:
                there = container.read(stream.read)[0].manifest.encode()
        except (OSError, BundleError):
            there = b""
        if not text or there != text:
            raise CheckError(
                f"{path} is not the bundle that the channel offers as {one.version}",
                reason="channel-incomplete",
                hint="put it there (mixos release BUNDLE), or take it back: mixos channel withdraw",
            )

    def _check_unchanged(self, files: dict[str, bytes]) -> None:
        """What is named by its version or hash never changes: else this folder was made from another list."""
        for name, data in files.items():
            path = self.folder / name
            if name != "timestamp.json" and path.exists() and path.read_bytes() != data:
                message = f"{path} differs from what {name} is here: the channel follows another list of releases"
                raise CheckError(message, reason="channel-other", hint="get that list (git pull), and release again")

    def _write(self, name: str, data: bytes) -> bool:
        path = self.folder / name
        if path.exists() and path.read_bytes() == data:
            return False
        atomic_write(path, data)
        return True

    def status(self, public: Public, now: datetime) -> dict[str, Any]:
        """What devices see, and when it must be signed anew. Raises CheckError as `check_there`."""
        self.check_there(public)
        served, ours = self.folder / "timestamp.json", public.tuf / "timestamp.json"
        roles = {role: public.newest(role) for role in ("targets", "snapshot", "timestamp")}
        expires = {role: one.signed.expires for role, one in roles.items() if one} | {
            "root": public.root().signed.expires
        }
        seconds = int(now.timestamp())
        return {
            "current": served.exists() and ours.exists() and served.read_bytes() == ours.read_bytes(),
            "expires": {role: f"{when:%Y-%m-%dT%H:%M:%SZ}" for role, when in expires.items()},
            "releases": [_row(one, seconds, self.bundle(one.version).is_file()) for one in listed(public)],
        }


def _front(path: Path) -> Manifest:
    with path.open("rb") as stream:
        return manifest.parse(container.read(stream.read)[0].manifest)


def _row(one: Listed, now: int, there: bool) -> dict[str, Any]:
    terms = one.terms
    if terms is None:
        return {"version": one.version, "offered": False, "bundle": there}
    return {
        "version": one.version,
        "offered": True,
        "bundle": there,
        "sequence": terms.sequence,
        "share": 0 if terms.paused is not None else terms.share(now),
        "waves": [wave.model_dump() for wave in terms.waves],
        "paused": terms.paused,
        "max-failures": terms.max_failures,
    }


def parse_waves(words: Sequence[str], made: int) -> tuple[Wave, ...]:
    """Waves from `SHARE[@WHEN]`: "5%@2026-12-01T08:00" (UTC), "100%@+2d" (after the release was made), "10%" (at once).

    made: when the release was made, seconds since 1970. Raises UsageError `channel-wave`.
    """
    found = []
    for word in words:
        share, _, when = word.partition("@")
        start = _start(when, made) if "@" in word else made
        if start is None:
            hint = "for example 5%@+0h 50%@+2d 100%@2026-12-24T08:00"
            raise UsageError(f"{word!r} is no wave", reason="channel-wave", hint=hint)
        found.append(Wave(start=start, share=parse_share(share)))
    found.sort(key=lambda wave: wave.start)
    pairs = pairwise(found)
    if len(found) > 16 or any(a.start == b.start or a.share >= b.share for a, b in pairs):
        message = "at most 16 waves, each later and for more devices than the one before it"
        raise UsageError(message, reason="channel-wave")
    return tuple(found)


def parse_share(text: str) -> int:
    """A share of all devices, "0.5%", in 1/SHARES. Raises UsageError `channel-share`."""
    found = _SHARE.fullmatch(text)
    share = round(float(found[1]) * SHARES / 100) if found else SHARES + 1
    if share > SHARES:
        raise UsageError(f"{text!r} is no share", reason="channel-share", hint="for example 5% or 0.25%")
    return share


def too_many(terms: Terms, failed: int, total: int) -> bool:
    """Whether of the devices that took a release more have failed than its terms allow."""
    return terms.max_failures is not None and failed * SHARES > terms.max_failures * total


def _start(text: str, made: int) -> int | None:
    later = _LATER.fullmatch(text)
    if later:
        return made + int(timedelta(**{{"h": "hours", "d": "days"}[later[2]]: int(later[1])}).total_seconds())
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    seconds = int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    return seconds if 0 <= seconds < MAX_TIME else None
