"""Making a bundle (docs/bundle.md): the release of an image, and the ways to it from earlier ones.

What is released is read from the image itself, as a device has it on its disk: the root is measured again, and must be
what the command line of its kernel image says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from buildsys.files import atomic_write
from common.bundle import container, manifest, plan, windows
from common.bundle.container import Front
from common.disk import fatread, gpt, verity
from common.efi import uki as uki_format
from common.efi.entries import BOOT_FILES, FOLDER, RESCUE
from common.errors import BundleError, FormatError, ImageError, UsageError
from image.host import image_errors, opened

Sign = Callable[[str], Front]


@dataclass(frozen=True)
class Content:
    """A release as bytes. salt: of its verity tree; files: of the ESP, by name (`BOOT_FILES`)."""

    version: str
    kernel: str
    root: bytes
    uki: bytes
    root_hash: bytes
    salt: bytes
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def installed(self) -> manifest.Installed:
        """How plans name it."""
        digest = hashlib.sha256(self.uki).hexdigest()
        return manifest.Installed.model_validate(
            {"version": self.version, "root-hash": self.root_hash.hex(), "uki-sha256": digest}
        )


@dataclass(frozen=True)
class Facts:
    """What a release says of itself besides its content; see the manifest."""

    sequence: int
    minimum: int
    machine: str
    variant: str
    created: int


def load(path: Path) -> Content:
    """The release in an image or a bundle. Raises ImageError for what is neither, or not sound, or cannot be read."""
    with opened(path) as descriptor, image_errors(path):
        try:
            if os.pread(descriptor, len(container.MAGIC), 0) == container.MAGIC:
                return _of_bundle(descriptor)
            return _of_image(descriptor, path)
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}", reason="cannot-read") from error


def check(path: Path) -> manifest.Manifest:
    """The manifest of a bundle that is all there; nothing of it is verified. Raises ImageError for another file, a
    bundle that is cut off (each plan lies behind what it needs), and one whose plans are damaged."""
    with opened(path) as descriptor, image_errors(path):
        found, read = _opened(descriptor)
        for way in found.plans:
            for blob in (way.root, way.uki, *way.files):
                if hashlib.sha256(read(blob.offset, blob.size)).hexdigest() != blob.sha256:
                    raise BundleError("the bundle is damaged: copy it again", "bundle-damaged")
    return found


def _opened(descriptor: int) -> tuple[manifest.Manifest, windows.Read]:
    """The manifest of a bundle, and what reads its payload: offset and length → so many bytes."""
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        front, start = container.read(stream.read)

    def read(offset: int, length: int) -> bytes:
        data = os.pread(descriptor, length, start + offset)
        if len(data) < length:
            raise BundleError("the bundle is cut off: copy it again", "bundle-damaged")
        return data

    return manifest.parse(front.manifest), read


def _of_image(descriptor: int, path: Path) -> Content:
    try:
        table = gpt.read(descriptor)
    except FormatError as error:
        hint = "name another file; if this is one, it is damaged: copy it again"
        message = f"{path} is neither an image nor a bundle: {error.message}"
        raise ImageError(message, reason=error.reason, hint=hint) from error
    esp, place = table.find("mixos-esp"), table.find("mixos-root-a")
    volume = fatread.open_volume(descriptor, esp.offset, esp.size)
    rescue = f"{FOLDER}/{RESCUE}"
    there = dict(fatread.files(volume))
    found = [entry for path, entry in there.items() if path.startswith(f"{FOLDER}/") and path != rescue]
    if len(found) != 1:
        raise ImageError(f"{path}: {len(found)} entries of the loader, not one", reason="bundle-image")
    uki = fatread.read(volume, found[0])
    head = uki_format.read_uki(uki)
    target = uki_format.verity_target(head.cmdline)
    if target is None or target.blocks * verity.BLOCK > place.size:
        raise ImageError(f"{path}: its kernel image names no verity root that fits", reason="bundle-image")
    root = os.pread(descriptor, target.blocks * verity.BLOCK, place.offset)
    tree = verity.build(descriptor, len(root), target.salt, place.offset)
    if tree.root != target.root:
        raise ImageError(f"{path}: its root is not the one that its kernel image starts", reason="bundle-image")
    files = {name: fatread.read(volume, there[paths[0]]) for name, paths in BOOT_FILES.items() if paths[0] in there}
    return Content(head.identity("IMAGE_VERSION"), head.uname, root, uki, tree.root, target.salt, files)


def _of_bundle(descriptor: int) -> Content:
    """By its plan for the whole. Nobody's signature counts here: what comes out is a source, known by its hashes."""
    found, read = _opened(descriptor)
    way = next(one for one in found.plans if one.source is None)
    root, uki = (_made(read, blob, target) for blob, target in ((way.root, found.root), (way.uki, found.uki)))
    pairs = zip(way.files, found.files, strict=True)
    files: dict[str, bytes] = {file.name: _made(read, blob, file) for blob, file in pairs}
    salt = bytes.fromhex(found.root.salt)
    return Content(found.version, found.kernel, root, uki, bytes.fromhex(found.root.root_hash), salt, files)


def _made(
    read: windows.Read, blob: manifest.PlanBlob, target: manifest.Root | manifest.Uki | manifest.BootFile
) -> bytes:
    recipe = windows.read_plan(read(blob.offset, blob.size))
    wanted = windows.Target(target.size, tuple(map(bytes.fromhex, target.windows.sha256)))
    out = bytearray(target.size)

    def write(offset: int, data: memoryview) -> None:
        out[offset : offset + len(data)] = data

    windows.apply(recipe, wanted, range(len(wanted.windows)), lambda offset, length: b"", read, write)
    if hashlib.sha256(out).hexdigest() != target.sha256:
        raise BundleError("what the bundle makes is not what its manifest says", "bundle-damaged")
    return bytes(out)


def make(
    new: Content, earlier: Sequence[Content], facts: Facts, sign: Sign, path: Path, jobs: int = 1
) -> manifest.Manifest:
    """Write the bundle of a release. earlier: releases that devices run, each with a way of its own unless the whole is
    no larger. Raises UsageError `bundle-minimum`, BundleError, and what `sign` raises; then nothing is written.
    """
    if facts.minimum > facts.sequence:
        message = f"--minimum {facts.minimum} is above the number of this release, {facts.sequence}"
        raise UsageError(message, reason="bundle-minimum", hint="that number is image.sequence in mixos.toml")
    for old in earlier:
        if old.root_hash == new.root_hash:
            hint = "name an earlier release by --from, or build one with another version"
            raise ImageError(f"{old.version} has the root of {new.version} itself", reason="bundle-same", hint=hint)
    payload = plan.Payload()
    parsed = {name: plan.parse(data, jobs=jobs) for name, data in _parts(new).items()}
    whole = _way(None, parsed, payload, jobs)
    ways = [whole]
    for old in earlier:
        kept = payload.size, len(payload.pieces)
        way = _way(old, parsed, payload, jobs)
        if way.transfer < whole.transfer:
            ways.append(way)
        else:
            payload.cut(*kept)
    found = manifest.Manifest.model_validate(
        {
            "format": 1,
            "product": manifest.PRODUCT,
            "machine": facts.machine,
            "variant": facts.variant,
            "version": new.version,
            "sequence": facts.sequence,
            "minimum-sequence": facts.minimum,
            "created": facts.created,
            "kernel": new.kernel,
            "root": {**_target(new.root), "root-hash": new.root_hash.hex(), "salt": new.salt.hex()},
            "uki": _target(new.uki),
            "files": [{"name": name, **_target(data)} for name, data in new.files.items()],
            "plans": [way.model_dump(mode="json", by_alias=True) for way in ways],
            "hooks": [],
        }
    )
    front = sign(manifest.dump(found))
    atomic_write(path, b"".join([container.dump(front), *payload.pieces]))
    return found


def _target(data: bytes) -> dict[str, object]:
    found = windows.Target.of(data)
    sizes = {"size": windows.WINDOW, "sha256": [digest.hex() for digest in found.windows]}
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "windows": sizes}


def _parts(content: Content) -> dict[str, bytes]:
    return {"root": content.root, "uki": content.uki, **content.files}


def _way(old: Content | None, parsed: Mapping[str, plan.New], payload: plan.Payload, jobs: int) -> manifest.Plan:
    sources = _parts(old) if old else {}
    blobs, transfer = {}, 0
    for name, new in parsed.items():
        data = plan.make_plan(new, sources.get(name), payload, jobs)
        transfer += len(data) + windows.read_plan(data).transfer
        blobs[name] = {"offset": payload.add(data), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return manifest.Plan.model_validate(
        {
            "from": old.installed.model_dump(mode="json", by_alias=True) if old else None,
            "root": blobs.pop("root"),
            "uki": blobs.pop("uki"),
            "files": list(blobs.values()),
            "transfer": transfer,
        }
    )
