"""The files of `daemon.slots.bootfiles` on both EFI system partitions: which copy is damaged, and one that restores it.

A copy is good when it is what a slot keeps, or when a signature covers it. Where none is, most of them that are the
same count, else what was put in place from the slots. Of two that nothing of this tells apart neither is damaged. A
file is missing where its folder is there, and it is elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from common.bundle.order import MAX_BOOT_FILE
from common.disk.fat import FatError
from common.disk.fatedit import Editor
from common.efi import pe
from common.efi.entries import BOOT_FILES
from common.errors import DiskError, FormatError
from daemon.parts.update.boot import SLOTS, Disk
from daemon.slots import bootfiles
from daemon.slots.disk import Slot


@dataclass(frozen=True)
class Copy:
    """A file on a partition; digest: SHA-256, None where it is missing or cannot be read."""

    partition: str
    path: str
    there: bool
    digest: bytes | None = None
    signed: bool = False


@dataclass(frozen=True)
class Wrong:
    """A copy that is not what it must be. partition: of a slot for what that keeps; digest: SHA-256 of what it must
    be."""

    name: str
    partition: str
    path: str
    state: Literal["damaged", "missing"]
    digest: bytes

    def __str__(self) -> str:
        return f"{self.partition}:{self.path} {self.state}"


def wrong(disk: Disk) -> tuple[Wrong, ...]:
    """Raises DiskError, OSError; a partition that cannot be read has no copies."""
    lost: list[Wrong] = []
    kept, placed = defaultdict[str, set[bytes]](set), dict[str, bytes]()
    for slot in SLOTS:
        place = Slot.of(disk, slot)
        note = bootfiles.read(place, disk.holds(slot))
        if note is None:
            continue
        kept_here = {one.name: one.sha256 for one in note.files}
        for name, digest in kept_here.items():
            kept[name].add(digest)
        if note.done:
            placed |= kept_here
        for name, data in bootfiles.contents(place, note):
            if data is None:
                lost.append(Wrong(name, f"mixos-root-{slot}", name, "damaged", kept_here[name]))
    copies = defaultdict[str, list[Copy]](list)
    for partition in bootfiles.partitions(disk):
        with contextlib.suppress(DiskError), disk.esp(partition).reading() as esp:
            for name, copy in _copies(esp, partition):
                copies[name].append(copy)
    judged = (one for name, found in copies.items() for one in _judged(name, found, kept[name], placed.get(name)))
    return (*judged, *lost)


def _judged(name: str, copies: list[Copy], kept: set[bytes], placed: bytes | None) -> Iterator[Wrong]:
    digests = [one.digest for one in copies if one.digest is not None]
    good = {one.digest: None for one in copies if one.digest and (one.digest in kept or one.signed)}
    counts = Counter(digests).most_common(2)
    most = counts[0][0] if len(counts) == 1 or (counts and counts[0][1] > counts[1][1]) else None
    wanted = next(iter(good), most or placed)
    if wanted is None or not any(one.there for one in copies):
        return
    for one in copies:
        if not one.there:
            yield Wrong(name, one.partition, one.path, "missing", wanted)
        elif one.digest not in (good or (wanted,)):
            yield Wrong(name, one.partition, one.path, "damaged", wanted)


def _copies(esp: Editor, partition: str) -> Iterator[tuple[str, Copy]]:
    files = {path.lower(): path for path in esp.files()}
    folders = {path.lower() for path in esp.folders()}
    for name, paths in BOOT_FILES.items():
        for path in paths:
            if path.lower() in files:
                data = _content(esp, files[path.lower()])
                digest = None if data is None else hashlib.sha256(data).digest()
                yield name, Copy(partition, path, True, digest, data is not None and _signed(data))
            elif path.lower().rpartition("/")[0] in folders:
                yield name, Copy(partition, path, False)


def _content(esp: Editor, path: str) -> bytes | None:
    try:
        return esp.read(path) if esp.files()[path] <= MAX_BOOT_FILE else None
    except (FormatError, OSError):
        return None


def _signed(data: bytes) -> bool:
    """Whether a signature covers an image, whoever made it."""
    from common.efi import pkcs7  # only where there is one

    try:
        signatures = pe.signatures(data)
        digests = {"sha256": pe.authenticode(data)} if signatures else {}
        return any(pkcs7.signers(one, digests) for one in signatures)
    except FormatError:
        return False


def mend(disk: Disk, found: tuple[Wrong, ...]) -> None:
    """Restore copies as far as what they must be is somewhere, and fits. Raises DiskError, OSError."""
    for one in found:
        data = _sound(disk, one)
        if data is None:
            continue
        if one.partition not in bootfiles.ESPS:
            _restore(disk, one, data)
            continue
        with disk.esp(one.partition).changing() as esp:
            there = next((path for path in esp.files() if path.lower() == one.path.lower()), None)
            try:
                if there is not None:
                    esp.replace(there, [data], len(data), epoch=0)
                else:
                    esp.add(one.path, [data], len(data), epoch=0)
            except FatError as error:
                if error.reason != "fat-full":
                    raise


def _restore(disk: Disk, wanted: Wrong, data: bytes) -> None:
    for slot in (Slot.of(disk, name) for name in SLOTS if wanted.partition == f"mixos-root-{name}"):
        note = bootfiles.read(slot, disk.holds(slot.name))
        for kept in note.files if note else ():
            if (kept.name, kept.sha256) == (wanted.name, wanted.digest):
                bootfiles.restore(slot, kept, data)


def _sound(disk: Disk, wanted: Wrong) -> bytes | None:
    """What a copy must be: of another one, or out of a slot."""
    for partition in bootfiles.partitions(disk):
        with contextlib.suppress(DiskError), disk.esp(partition).reading() as esp:
            files = {path.lower(): path for path in esp.files()}
            for path in BOOT_FILES[wanted.name]:
                data = _content(esp, files[path.lower()]) if path.lower() in files else None
                if data is not None and hashlib.sha256(data).digest() == wanted.digest:
                    return data
    for slot in (Slot.of(disk, name) for name in SLOTS):
        note = bootfiles.read(slot, disk.holds(slot.name))
        for name, data in bootfiles.contents(slot, note) if note else ():
            if name == wanted.name and data is not None and hashlib.sha256(data).digest() == wanted.digest:
                return data
    return None
