"""`examine`: what is wrong with the boot disk, read past the cache. Nothing is changed.

Of a slot it is known what it must hold when something names the root hash that its identities are: the note beside the
root (`daemon.slots.kept`), an entry of the loader, or, of the slot that runs, the kernel's command line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from common.disk import gpt, verity
from common.disk.fatedit import Editor
from common.efi import pe, uki
from common.efi.entries import COMING, FOLDER, RESCUE, Entry, image_name, read_name
from common.errors import DiskError, FormatError
from daemon.linux import facts
from daemon.parts.update.boot import SLOTS, Boot, Disk, Image, look
from daemon.slots import bootfiles, copies, kept
from daemon.slots.disk import TABLE, Slot, forget, locked, opened, read_all

Found = Literal["sound", "damaged", "missing", "unknown"]
Step = Callable[[str, int, int, int], None]
SECOND = bootfiles.ESPS[0]
_STEM = len(image_name(bytes(32)))


@dataclass(frozen=True)
class File:
    """An entry of the loader, of a slot. path: on the ESP; sound: its content is the kernel image of that slot; named:
    a name that is counted, as ours are."""

    path: str
    entry: Entry
    sound: bool

    @property
    def named(self) -> bool:
        """See the class."""
        return self.entry.left is not None and len(self.entry.stem) == _STEM


@dataclass(frozen=True)
class Held:
    """A slot. target: what it must hold, None: nothing that is known; tree: over what it does; files: the entries that
    lead to it, in the loader's order."""

    slot: Slot
    root_hash: bytes
    target: uki.VerityTarget | None = None
    note: kept.Note | None = None
    data: Found = "unknown"
    tree: Found = "unknown"
    kernel: Found = "unknown"
    files: tuple[File, ...] = ()
    hashes: verity.Tree | None = field(default=None, repr=False)
    version: str = ""

    @property
    def entry(self) -> Found:
        """Of what leads to it."""
        if self.target is None:
            return "unknown"
        if any(file.sound and file.named for file in self.files):
            return "sound"
        return "damaged" if self.files else "missing"

    @property
    def startable(self) -> bool:
        """Whether it would come up if the loader had an entry for it."""
        return self.data == "sound"

    @property
    def file(self) -> File | None:
        """The entry that is kept when there are more."""
        best = [one for one in self.files if one.sound and one.named] or [one for one in self.files if one.named]
        return best[0] if best else None

    def as_json(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "slot": self.slot.name,
            "version": self.version or None,
            "root-hash": self.root_hash.hex() if self.target else None,
            "data": self.data,
            "tree": self.tree,
            "kernel": self.kernel,
            "entry": self.entry,
            "file": self.file.entry.name if self.file else None,
        }


@dataclass(frozen=True)
class Report:
    """table, esp: what is wrong with the partition table and the EFI system partition; files: on it, that belong to
    nothing; unknown: files that are not ours; second: as `esp`, of the other one; copies: of the rescue
    entry and the loader."""

    running: str | None
    table: tuple[str, ...]
    esp: tuple[str, ...]
    slots: tuple[Held, ...] = ()
    files: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    copies: tuple[copies.Wrong, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """All that is wrong, a word for each."""
        found = [f"table {one}" for one in self.table] + [f"esp {one}" for one in self.esp]
        found += [f"file {one}" for one in self.files]
        for held in self.slots:
            for name in ("data", "tree", "kernel", "entry"):
                if (state := getattr(held, name)) in ("damaged", "missing"):
                    found.append(f"slot-{held.slot.name} {name} {state}")
            found += [f"slot-{held.slot.name} file {one.path}" for one in held.files if one is not held.file]
        found += [f"esp-b {one}" for one in self.second] + [f"file {one}" for one in self.copies]
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """For people and programs. bundle: slots that only the bundle of their release repairs."""
        return {
            "running": self.running,
            "problems": list(self.problems),
            "bundle": [one.slot.name for one in self.slots if _lost(one)],
            "slots": [held.as_json() for held in self.slots],
            "unknown": list(self.unknown),
        }


def _lost(held: Held) -> bool:
    return held.data == "damaged" or ("sound" not in (held.kernel, held.entry) and held.target is not None)


def examine(root: Path, step: Step = lambda *_: None, *, alone: bool = False) -> Report:
    """Raises DiskError, OSError; where no copy of the table or of the boot sector is sound, that is in the report.

    alone: the caller has the table and the ESP to itself. Otherwise others change them while the slots are read.
    """
    path = Disk.device(root)
    running = facts.slot(root)
    apart = contextlib.nullcontext if alone else partial(locked, path, TABLE)
    with apart():
        table = _table(path)
        try:
            disk = Disk.at(path)
            esp, cleaned = disk.esp().faults()
            left = [name for name, count in (("slots", cleaned.slots), ("clusters", cleaned.clusters)) if count]
            left += ["tables-differ"] if cleaned.sectors else []
            boot = look(disk, running, root)
        except DiskError as error:
            if error.reason not in ("disk-table", "esp-damaged"):
                raise
            return Report(running, table, () if error.reason == "disk-table" else _esp_faults(path, error))
    held = tuple(_held(disk, boot, slot, root, step, number) for number, slot in enumerate(SLOTS))
    with apart(), disk.esp().reading() as editor:
        boot = look(disk, running, root)
        held = tuple(_with_files(one, boot, editor) for one in held)
        files, unknown = _others(editor, boot, held)
        second, differing = _second(disk), copies.wrong(disk)
    step("verify", len(SLOTS), len(SLOTS), 0)
    return Report(running, table, (*esp, *left), held, files, unknown, second, differing)


def _table(path: Path) -> tuple[str, ...]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        forget(descriptor)
        return gpt.faults(descriptor)
    except FormatError as error:
        return (error.reason,)
    finally:
        os.close(descriptor)


def _esp_faults(path: Path, error: DiskError) -> tuple[str, ...]:
    try:
        names, _ = Disk.at(path).esp().faults()
    except DiskError:
        names = ()
    return names or ("damaged",)


def _second(disk: Disk) -> tuple[str, ...]:
    """What is wrong with the EFI system partition that firmware falls back to."""
    if SECOND not in bootfiles.partitions(disk):
        return ()
    try:
        names, cleaned = disk.esp(SECOND).faults()
    except DiskError:
        return ("damaged",)
    left = {"slots": cleaned.slots, "clusters": cleaned.clusters, "tables-differ": cleaned.sectors}
    return (*names, *(name for name, count in left.items() if count))


def _held(disk: Disk, boot: Boot, name: str, root: Path, step: Step, number: int) -> Held:
    step("verify", number, len(SLOTS), 0)
    slot, root_hash = Slot.of(disk, name), disk.holds(name)
    note = kept.read(slot)
    held = Held(slot, root_hash, note=note if note and note.root_hash == root_hash else None)
    target = held.note.target if held.note else _named(disk, boot, held, root)
    if target is None and (found := kept.without_note(slot, root_hash)):
        target = found[0]
    if target is None or target.blocks * verity.BLOCK > slot.root[2]:
        return held
    held = replace(held, target=target, kernel="missing")
    if held.note:
        held = replace(held, kernel="damaged" if kept.kernel(slot, held.note) is None else "sound")
    tree = _tree(slot, target)
    if tree is None or tree.root != root_hash:
        return replace(held, data="damaged")
    same = False
    with opened(slot.tree, os.O_RDONLY) as descriptor, contextlib.suppress(OSError):
        forget(descriptor)
        same = read_all(descriptor, slot.tree[1], len(tree.hashes)) == tree.hashes
    return replace(held, data="sound", tree="sound" if same else "damaged", hashes=tree)


def _named(disk: Disk, boot: Boot, held: Held, root: Path) -> uki.VerityTarget | None:
    """The root of a slot without a note, by its entries and by what runs."""
    lines = []
    with disk.esp().reading() as esp:
        for image in boot.images:
            if image.root_hash == held.root_hash:
                lines.append(_head(esp, image).cmdline)
    if held.slot.name == boot.slot:
        lines.append(facts.text(root / "proc/cmdline") or "")
    found = (uki.verity_target(line) for line in lines)
    return next((one for one in found if one and one.root == held.root_hash), None)


def _head(esp: Editor, image: Image) -> uki.Uki:
    path = f"{FOLDER}/{image.entry.name}"
    size = next(size for one, size in esp.files().items() if one.lower() == path.lower())
    return uki.read_head(esp.read(path, 0, min(size, uki.HEAD)), size)


def _tree(slot: Slot, target: uki.VerityTarget) -> verity.Tree | None:
    with opened(slot.root, os.O_RDONLY) as descriptor:
        forget(descriptor)
        try:
            return verity.build(descriptor, target.blocks * verity.BLOCK, target.salt, slot.root[1])
        except (FormatError, OSError):  # a block that cannot be read is a damaged one
            return None


def _with_files(held: Held, boot: Boot, esp: Editor) -> Held:
    """With the entries that lead to a slot, and those that its name says do."""
    if held.target is None:
        return held
    listed = {image.entry.name.lower(): (place, image) for place, image in enumerate(boot.images)}  # FAT has no case
    found: list[tuple[bool, int, File]] = []
    for path in esp.files():
        folder, _, name = path.rpartition("/")
        entry = read_name(name) if folder == FOLDER else None
        if entry is None:
            continue
        place, image = listed.get(entry.name.lower(), (len(listed), None))
        if image is not None and image.root_hash == held.root_hash:
            runs = image is boot.running
            found.append((not runs, place, File(path, image.entry, _sound(esp, held, path))))
        elif (image is None or image.slot is None) and entry.stem == image_name(held.root_hash):
            found.append((True, place, File(path, entry, sound=False)))
    files = tuple(file for _, _, file in sorted(found, key=lambda one: one[:2]))
    version = next((image.version for image in boot.images if image.root_hash == held.root_hash), "")
    if not version and (kept_image := kernel(held)):
        version = uki.read_uki(kept_image).identity("IMAGE_VERSION")
    return replace(held, files=files, version=version)


def _sound(esp: Editor, held: Held, path: str) -> bool:
    image = content(esp, path)
    if image is None:
        return False
    if held.note:
        return kept.Note.of(held.note.target, image, held.note.created) == held.note
    assert held.target is not None
    try:
        kept.startable(image, held.root_hash)
    except DiskError:
        return False
    beside = kept.beside(held.slot, held.target, len(image))  # when that is another one, either may be the damaged one
    return beside == image or beside[:2] != b"MZ" or bool(pe.signatures(image))


def kernel(held: Held) -> bytes | None:
    """The kernel image that a slot keeps; None without a sound one."""
    if held.note:
        return kept.kernel(held.slot, held.note)
    found = kept.without_note(held.slot, held.root_hash)
    return found[1] if found else None


def content(esp: Editor, path: str) -> bytes | None:
    """Of a file on the ESP; None when it cannot be read."""
    try:
        return esp.read(path) if esp.files()[path] <= kept.MAX_KERNEL else None
    except FormatError:
        return None


def _others(esp: Editor, boot: Boot, held: tuple[Held, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In the loader's folder: what belongs to nothing, and what is not ours."""
    ours = {file.path for one in held for file in one.files} | {f"{FOLDER}/{RESCUE}"}
    lost = {image.entry.name.lower() for image in boot.images if image.root_hash is not None} | {COMING.lower()}
    names = sorted(
        path.removeprefix(f"{FOLDER}/") for path in esp.files() if path.startswith(f"{FOLDER}/") and path not in ours
    )
    return tuple(one for one in names if one.lower() in lost), tuple(one for one in names if one.lower() not in lost)
