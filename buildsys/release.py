"""The last gate before a release is signed: each refusal has its own reason and says what to do.

What is known of an image is what `mixos build` wrote beside it (`manifest.json`): its kernel and why it is not the
pinned one, the waivers that it relies on and their last days, the commit, the root hash.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from buildsys import revision
from buildsys.bundle import Content
from buildsys.files import atomic_write
from buildsys.keys.public import Public
from buildsys.project import Project
from buildsys.revision import Revision
from common.efi import pe
from common.errors import CheckError, ImageError, MixosError
from common.files import read_regular
from common.trust import ANCHORS
from common.trust.release import CERTIFICATES, POLICY, ROOT
from image import secureboot
from image.secureboot import Signer

_MAX_MANIFEST = 64 << 20
AGAIN = "build it again: mixos build"


@dataclass(frozen=True)
class Built:
    """What a build says of its image. kernel: as `kernelsource.describe`, and what is `waived`; instead: source → file
    that stood in for it; anchors: file name →
    SHA-256 of what the image trusts releases by."""

    root_hash: str
    kernel: dict[str, Any]
    instead: dict[str, str]
    revision: Revision
    anchors: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> Built:
        """Read manifest.json. Raises CheckError `release-manifest`."""
        try:
            data = json.loads(read_regular(path, _MAX_MANIFEST))
            said = data["revision"]
            folder = f"{ANCHORS.relative_to('/')}/"
            anchors = {
                one["path"].removeprefix(folder): one["sha256"]
                for one in data["root"]["files"]
                if one["path"].startswith(folder) and one["type"] == "file"
            }
            found = Revision(said["commit"], tuple(said["changes"]))
            return cls(data["image"]["root_hash"], data["kernel"], dict(data["instead"]), found, anchors)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{path} does not say how the image was built"
            raise CheckError(message, reason="release-manifest", hint=AGAIN) from error


def check_encrypted(public: Public, version: str) -> None:
    """Raise CheckError `release-plain` when the release that was made last is encrypted, for one that is not."""
    others = (one for one in public.manifests().values() if one.version != version)
    last = max(others, key=lambda one: one.created, default=None)
    if last is not None and last.encryption is not None:
        message = f"everybody could read {version}, while {last.version} is encrypted"
        raise CheckError(message, reason="release-plain", hint="name its devices by --encrypt-to, or say --plain")


@dataclass(frozen=True)
class Candidate:
    """What is to be released. sequence: its number; others: folders in the checkout that a release writes."""

    project: Project
    public: Public
    content: Content
    built: Built
    sequence: int
    today: date
    others: tuple[Path, ...] = ()


def check(one: Candidate) -> None:
    """Raise CheckError for all that is wrong; of several mistakes the first decides the reason.

    `release-content` (the build speaks of another image), `release-kernel`, `release-source`, `release-waiver`,
    `release-anchors` (the image's devices would not take the next release), `release-tree`, `release-tag`,
    `release-sequence`.
    """
    found: list[MixosError] = []
    steps: Iterable[Callable[[Candidate], None]] = (_content, _kernel, _sources, _waivers, _anchors, _tree, _sequence)
    for step in steps:
        try:
            step(one)
        except CheckError as error:
            found.append(error)
            if step is _content:  # the rest would be about something else
                break
    if not found:
        return
    if len(found) == 1:
        raise found[0]
    lines = "\n".join(f"  {error.message} ({error.hint})" if error.hint else f"  {error.message}" for error in found)
    raise CheckError(f"{len(found)} things speak against this release:\n{lines}", reason=found[0].reason)


def _content(one: Candidate) -> None:
    version = one.project.config.image.version
    if one.content.root_hash.hex() != one.built.root_hash or one.content.version != version:
        message = f"this is another image ({one.content.version}) than the one that was built last ({version})"
        raise CheckError(message, reason="release-content", hint=f"release what was built, or {AGAIN}")


def _kernel(one: Candidate) -> None:
    kernel = one.built.kernel
    if kernel.get("fallback") is not False:
        hint = "get the pinned source (mixos fetch --retry-pin) and build again, or pin the kernel that you mean"
        raise CheckError(
            f"another kernel than the pinned one: {kernel.get('note')}", reason="release-kernel", hint=hint
        )
    if kernel.get("requested") == "path":
        message = f"its kernel was built from files of this computer: {kernel.get('source')}"
        hint = "pin that source in sources.lock, so that others can build the same, and build again"
        raise CheckError(message, reason="release-kernel", hint=hint)


def _sources(one: Candidate) -> None:
    if one.built.instead:
        rows = ", ".join(f"{file} for {name}" for name, file in sorted(one.built.instead.items()))
        hint = "get the pinned files (mixos lock --check tells where they are) and build again, or pin what you have"
        raise CheckError(f"other sources than the pinned ones: {rows}", reason="release-source", hint=hint)


def _waivers(one: Candidate) -> None:
    ended = [row for row in one.built.kernel.get("waived", []) if one.today > date.fromisoformat(row["expires"])]
    if ended:
        rows = ", ".join(f"{row['symbol']} (until {row['expires']}: {row['reason']})" for row in ended)
        hint = "look whether each is still needed: renew or remove it in kernel/waivers.toml, and build again"
        raise CheckError(f"waivers have ended: {rows}", reason="release-waiver", hint=hint)


def _anchors(one: Candidate) -> None:
    """The image's root is one of the project's chain, and its signers are those of today."""
    roots = {_hash(path) for path in one.public.versions("root").values()}
    same = all(one.built.anchors.get(name) == _hash(one.public.device / name) for name in (CERTIFICATES, POLICY))
    if one.built.anchors.get(ROOT) not in roots or not same:
        message = "the image does not trust the keys that sign releases: its devices would take no further one"
        raise CheckError(message, reason="release-anchors", hint=AGAIN)


def _tree(one: Candidate) -> None:
    revision.check(one.project, one.built.revision, *one.others)


def _sequence(one: Candidate) -> None:
    version = one.content.version
    others = [found for found in one.public.manifests().values() if found.version != version]
    floor = one.project.config.image.floor
    if floor > one.sequence:
        message = f"number {one.sequence} is below the floor {floor} that its devices would have"
        hint = "image.floor is not above image.sequence (mixos.toml)"
        raise CheckError(message, reason="release-sequence", hint=hint)
    highest = max(others, key=lambda found: found.sequence, default=None)
    if highest is not None and one.sequence <= highest.sequence:
        raise CheckError(
            f"number {one.sequence} does not follow {highest.sequence}, which {highest.version} has",
            reason="release-sequence",
            hint=f"set image.sequence = {highest.sequence + 1} in mixos.toml, and build again",
        )


def _hash(path: Path) -> str:
    return hashlib.sha256(read_regular(path, 1 << 20)).hexdigest()


def check_signed(content: Content, certificate: bytes) -> None:
    """Raise CheckError `release-unsigned` or ImageError `secureboot-signature` unless db signed what firmware starts of
    it."""
    for image in _images(content).values():
        if not pe.parse(image).signed:
            hint = "release the image instead, or, if no device enforces Secure Boot: --no-secure-boot"
            raise CheckError("the bundle's kernel image is not signed", reason="release-unsigned", hint=hint)
        secureboot.verify(image, certificate)


def _images(content: Content) -> dict[str, bytes]:
    """What firmware starts: the kernel image (""), and files of the ESP by name."""
    return {"": content.uki, **{name: content.files[name] for name in ("rescue", "loader") if name in content.files}}


def signed(content: Content, certificate: bytes, load: Callable[[], Signer], kept: Path) -> Content:
    """The release with images that Secure Boot starts. A signature holds its time, so one that was made is kept in the
    file `kept`, or beside it, and taken again. certificate: of db; load: its key. Raises ImageError:
    `secureboot-signature` for an image with another signature, and what signing raises."""
    once = functools.cache(load)
    made = {
        name: _signed(image, certificate, once, kept.with_name(f"{name}-{kept.name}") if name else kept)
        for name, image in _images(content).items()
    }
    return replace(content, uki=made.pop(""), files={**content.files, **made})


def _signed(image: bytes, certificate: bytes, load: Callable[[], Signer], kept: Path) -> bytes:
    if pe.parse(image).signed:
        secureboot.verify(image, certificate)
        return image
    try:
        found = read_regular(kept)
        if pe.unsigned(found) == pe.unsigned(image):
            secureboot.verify(found, certificate)
            return found
    except (OSError, ImageError):
        pass
    made = secureboot.sign(image, load())
    atomic_write(kept, made)
    return made
