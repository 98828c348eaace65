"""What an addition to Secure Boot's databases would do to this machine: nothing that it starts may be refused then.

What it starts are the programs on both EFI system partitions, versions, loader and rescue entry, and the kernel image
that a slot keeps whose entry is gone. They are read from the disk, and judged by the databases as the firmware has
them; it fails closed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from common.disk import fatread
from common.disk.fat import FatError
from common.efi import pe, pkcs7, siglist
from common.efi.additions import Addition
from common.efi.entries import FOLDER
from common.efi.siglist import Evidence, Signature
from common.errors import DiskError, RefusedError
from daemon.linux import facts
from daemon.parts.update.boot import SLOTS, Boot, Disk, look, node
from daemon.slots import kept
from daemon.slots.disk import SLOT, Slot, forget, locked

_ESPS = ("mixos-esp", "mixos-esp-b")

Databases = Mapping[str, tuple[Signature, ...]]


@dataclass(frozen=True)
class Program:
    """Something that firmware starts. name: for people; evidence: None when it is no sound image; runs: it is what was
    started."""

    name: str
    evidence: Evidence | None
    runs: bool = False

    @classmethod
    def of(cls, name: str, image: bytes) -> Program:
        """From its bytes."""
        try:
            return cls(name, Evidence.of(image))
        except pe.PeError:
            return cls(name, None)

    def excluded(self, databases: Databases) -> str | None:
        """Why firmware does not start it in any case; None: it may. Raises pkcs7.DerError."""
        if self.evidence is None:
            return "it is damaged"
        return self.evidence.excluded(databases.get("db", ()), databases.get("dbx", ()))


def nothing_new(root: Path) -> AbstractContextManager[None]:
    """While nothing is put into the slot that does not run. Raises DiskError `slots-busy`, OSError."""
    return locked(Disk.find(root), SLOT, patience=0.0, shared=True)


def programs(root: Path) -> list[Program]:
    """All that this machine starts. Raises DiskError, GptError, OSError; RefusedError `firmware-unknown` when it is not
    known what runs."""
    disk = Disk.find(root)
    boot = look(disk, facts.slot(root), root)
    if boot.running is None:
        raise RefusedError("the loader has no entry for what runs", reason="firmware-unknown")
    names = {f"{FOLDER}/{image.entry.name}".lower(): image for image in boot.images}
    found = []
    for partition in _ESPS:
        for path, one in _on(disk, partition):
            image = names.get(path.lower()) if partition == _ESPS[0] else None
            if image and image.root_hash is not None and image.slot is None:
                continue  # no slot holds its root: it does not come up in any case
            what = f"{one.name} ({image.version})" if image else one.name
            found.append(replace(one, name=what, runs=image is boot.running))
    return [*found, *_kept(disk, boot)]


def _on(disk: Disk, partition: str) -> Iterator[tuple[str, Program]]:
    """The programs on an EFI system partition, by path; nothing when the disk has no such partition."""
    place = next((one for one in disk.table.partitions if one.name == partition), None)
    if place is None:
        return
    device = node(disk.path, place.index)
    offset = place.offset if device is None else 0
    descriptor = os.open(device or disk.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        forget(descriptor)
        volume = fatread.open_volume(descriptor, offset, place.size)
        for path, entry in fatread.files(volume):
            if path.lower().startswith("efi/") and path.lower().endswith(".efi"):
                if entry.size > kept.MAX_KERNEL:
                    raise FatError(f"{path} is too large", "fat-bounds")
                yield path, Program.of(f"{path} on {partition}", fatread.read(volume, entry))
    except FatError as error:
        hint = "see 'mixctl update repair --check'"
        raise DiskError(f"{partition} cannot be read: {error}", reason="esp-damaged", hint=hint) from error
    finally:
        os.close(descriptor)


def _kept(disk: Disk, boot: Boot) -> Iterator[Program]:
    """The kernel images of slots without an entry: a repair makes one of them."""
    for name in {*SLOTS} - {image.slot for image in boot.images}:
        slot = Slot.of(disk, name)
        note = kept.read(slot)
        if note is not None and note.root_hash == disk.holds(name):
            image = kept.kernel(slot, note)
            if image is not None:
                yield Program.of(f"the kernel image of slot {name}", image)


def against(one: Addition, databases: Databases, started: Sequence[Program]) -> str | None:
    """Why an addition must not be written; None: nothing speaks against it. Raises SignatureListError.

    started: all that this machine starts. Only dbx keeps something from starting; of the others it is not asked.
    """
    if one.variable != "dbx":
        return None
    coming = siglist.after(databases, one.variable, one.update, append=True)
    for program in started:
        try:
            before, why = program.excluded(databases), program.excluded(coming)
        except pkcs7.DerError as error:
            return f"it cannot be told whether firmware starts {program.name}: {error}"
        if why is not None and before is None:
            return f"firmware would not start {program.name} any more: {why}"
        if why is not None and program.runs:  # the firmware has started it, so it is we who cannot judge
            return f"it cannot be told what firmware starts: it has started {program.name}, and yet {why}"
    return None
