"""Making a bundle (docs/bundle.md): the release of an image, and the ways to it from earlier ones.

What is released is read from the image itself, as a device has it on its disk: the root is measured again, and must be
what the command line of its kernel image says.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from buildsys.files import atomic_write
from common.bundle import container, manifest, plan, sealing, windows
from common.bundle.container import Front
from common.bundle.order import MAX_HOOK, MAX_HOOK_SECONDS, MAX_HOOKS, WHENS, When
from common.disk import fatread, gpt, verity
from common.efi import uki as uki_format
from common.efi.entries import BOOT_FILES, FOLDER, RESCUE
from common.errors import BundleError, FormatError, ImageError, UsageError
from common.files import read_regular
from common.safe import one_line
from image.host import image_errors, opened

Sign = Callable[[str], Front]
Key = Callable[[bytes], bytes]  # SHA-256 of a payload → the key that it is encrypted with
_SECONDS = 30  # of a hook, unless they are named
_MAX_DEVICES = 1 << 20  # bytes of a file with their keys


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
class Hook:
    """A program that a device runs before a step, and that may refuse it; seconds: after which it has."""

    when: When
    data: bytes
    seconds: int


@dataclass(frozen=True)
class Facts:
    """What a release says of itself besides its content; see the manifest."""

    sequence: int
    minimum: int
    machine: str
    variant: str
    created: int
    hooks: tuple[Hook, ...] = ()


@dataclass(frozen=True)
class Lock:
    """Of a payload that devices alone read: their public keys, and its own key."""

    devices: tuple[bytes, ...]
    key: Key


def read_devices(given: Sequence[str]) -> tuple[bytes, ...]:
    """The public keys of devices that are named: each a key, or a file with one in a line, its first word. Raises
    UsageError `device-key`."""
    found = dict.fromkeys(key for one in given for key in _read_devices(one))
    if len(found) > sealing.MAX_DEVICES:
        raise UsageError(f"more than {sealing.MAX_DEVICES} devices", reason="device-key")
    return tuple(found)


def _read_devices(given: str) -> list[bytes]:
    if sealing.is_public(given):
        return [sealing.read_public(given)]
    try:
        text = read_regular(Path(given), _MAX_DEVICES + 1).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(f"--encrypt-to {given}: {error.strerror}", reason="device-key") from error
    lines = [(number, line.split()) for number, line in enumerate(text.split("\n"), start=1)]
    found = [
        sealing.read_public(words[0], f"{given}:{number}: {one_line(words[0][:12])}")
        for number, words in lines
        if words and not words[0].startswith("#")
    ]
    if not found or len(text) > _MAX_DEVICES:
        raise UsageError(f"--encrypt-to {given}: no key of a device, or more than 1 MiB", reason="device-key")
    return found


def read_hooks(given: Sequence[str]) -> tuple[Hook, ...]:
    """The programs that `WHEN[:SECONDS]=FILE` name. Raises UsageError `bundle-hook`."""
    found = tuple(map(_read_hook, given))
    if len(found) > MAX_HOOKS:
        raise UsageError(f"more than {MAX_HOOKS} hooks", reason="bundle-hook")
    for when in WHENS:
        if sum(one.seconds for one in found if one.when == when) > MAX_HOOK_SECONDS:
            raise UsageError(f"hooks {when} take more than {MAX_HOOK_SECONDS} s together", reason="bundle-hook")
    return found


def _read_hook(text: str) -> Hook:
    before, _, file = text.partition("=")
    name, colon, digits = before.partition(":")
    seconds = int(digits) if re.fullmatch("[0-9]{1,4}", digits) else 0 if colon else _SECONDS
    when = next((one for one in WHENS if one == name), None)
    if when is None or not file or not 0 < seconds <= MAX_HOOK_SECONDS:
        hint = f"WHEN is {' or '.join(WHENS)}, SECONDS at most {MAX_HOOK_SECONDS}"
        raise UsageError(f"--hook {text}: WHEN[:SECONDS]=FILE is expected", reason="bundle-hook", hint=hint)
    try:
        data = read_regular(Path(file), MAX_HOOK + 1)
    except OSError as error:
        raise UsageError(f"--hook {text}: {error.strerror}", reason="bundle-hook") from error
    if not 0 < len(data) <= MAX_HOOK:
        raise UsageError(f"--hook {text}: a hook has 1 to {MAX_HOOK} bytes", reason="bundle-hook")
    return Hook(when, data, seconds)


def load(path: Path, key: Key | None = None) -> Content:
    """The release in an image or a bundle. key: of bundles that are encrypted, if they are this project's. Raises
    ImageError for what is neither, or not sound, or cannot be read."""
    with opened(path) as descriptor, image_errors(path):
        try:
            if os.pread(descriptor, len(container.MAGIC), 0) == container.MAGIC:
                return _of_bundle(descriptor, key)
            return _of_image(descriptor, path)
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}", reason="cannot-read") from error


def check(path: Path) -> manifest.Manifest:
    """The manifest of a bundle that is all there; nothing of it is verified. Raises ImageError for another file, a
    bundle that is cut off (each plan lies behind what it needs), and one whose plans are damaged."""
    with opened(path) as descriptor, image_errors(path):
        found, start = _front(descriptor)
        if found.encryption is not None:
            if os.fstat(descriptor).st_size < start + sealing.stored(found.encryption.size):
                raise _cut_off()
            return found
        read = _payload(descriptor, start)
        plans = [blob for way in found.plans for blob in (way.root, way.uki, *way.files)]
        for blob in (*plans, *found.hooks):
            if hashlib.sha256(read(blob.offset, blob.size)).hexdigest() != blob.sha256:
                raise BundleError("the bundle is damaged: copy it again", "bundle-damaged")
    return found


def _front(descriptor: int) -> tuple[manifest.Manifest, int]:
    """The manifest of a bundle, and where the payload begins."""
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        front, start = container.read(stream.read)
    return manifest.parse(front.manifest), start


def _payload(descriptor: int, start: int) -> windows.Read:
    """What reads exactly so many bytes of a payload that is not encrypted."""

    def read(offset: int, length: int) -> bytes:
        data = os.pread(descriptor, length, start + offset)
        if len(data) < length:
            raise _cut_off()
        return data

    return read


def _decrypted(descriptor: int, start: int, encryption: manifest.Encryption, key: Key | None) -> windows.Read:
    found = key(bytes.fromhex(encryption.sha256)) if key is not None else b""
    if hashlib.sha256(found).hexdigest() != encryption.key_sha256:
        hint = "name the image it was made of, use the private keys it was made with (MIXOS_KEYS), or do without it"
        raise ImageError("it is encrypted, and its key is not known here", reason="bundle-encrypted", hint=hint)
    return sealing.Reader(found, start, lambda offset, length: os.pread(descriptor, length, offset)).read


def _cut_off() -> BundleError:
    return BundleError("the bundle is cut off: copy it again", "bundle-damaged")


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


def _of_bundle(descriptor: int, key: Key | None) -> Content:
    """By its plan for the whole. Nobody's signature counts here: what comes out is a source, known by its hashes."""
    found, start = _front(descriptor)
    if found.encryption is None:
        read = _payload(descriptor, start)
    else:
        read = _decrypted(descriptor, start, found.encryption, key)
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
    new: Content,
    earlier: Sequence[Content],
    facts: Facts,
    sign: Sign,
    path: Path,
    jobs: int = 1,
    lock: Lock | None = None,
) -> manifest.Manifest:
    """Write the bundle of a release. earlier: releases that devices run, each with a way of its own unless the whole is
    no larger; lock: who alone reads it. Raises UsageError `bundle-minimum`, `device-key`, BundleError, and what `sign`
    raises; then nothing is written.
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
    hooks = [_hook(one, payload) for one in facts.hooks]
    digest = payload.digest() if lock else b""
    key = lock.key(digest) if lock else None
    sealed = {sealing.name(one): sealing.seal(key, one) for one in lock.devices} if lock and key else {}
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
            "hooks": hooks,
            "encryption": _encryption(payload.size, digest, key) if key else None,
        }
    )
    front, pieces = sign(manifest.dump(found)), payload.pieces
    if key:
        front = replace(front, recipients=sealed)
        pieces = list(sealing.encrypted(key, pieces))
    atomic_write(path, b"".join([container.dump(front), *pieces]))
    return found


def _encryption(size: int, digest: bytes, key: bytes) -> dict[str, object]:
    return {"size": size, "sha256": digest.hex(), "key-sha256": hashlib.sha256(key).hexdigest()}


def _target(data: bytes) -> dict[str, object]:
    found = windows.Target.of(data)
    sizes = {"size": windows.WINDOW, "sha256": [digest.hex() for digest in found.windows]}
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "windows": sizes}


def _hook(one: Hook, payload: plan.Payload) -> dict[str, object]:
    return {"when": one.when, "seconds": one.seconds, **_blob(one.data, payload)}


def _blob(data: bytes, payload: plan.Payload) -> dict[str, object]:
    return {"offset": payload.add(data), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _parts(content: Content) -> dict[str, bytes]:
    return {"root": content.root, "uki": content.uki, **content.files}


def _way(old: Content | None, parsed: Mapping[str, plan.New], payload: plan.Payload, jobs: int) -> manifest.Plan:
    sources = _parts(old) if old else {}
    blobs, transfer = {}, 0
    for name, new in parsed.items():
        data = plan.make_plan(new, sources.get(name), payload, jobs)
        transfer += len(data) + windows.read_plan(data).transfer
        blobs[name] = _blob(data, payload)
    return manifest.Plan.model_validate(
        {
            "from": old.installed.model_dump(mode="json", by_alias=True) if old else None,
            "root": blobs.pop("root"),
            "uki": blobs.pop("uki"),
            "files": list(blobs.values()),
            "transfer": transfer,
        }
    )
