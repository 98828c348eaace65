"""`repair`: what can be restored of the boot disk by what is there twice, or by the bundle of what the other slot has.

Everything is put right from something that was read from the disk and found sound: a copy of the partition table, of
the boot sector, of an allocation table; the tree, by the root that it is of; a kernel image, by its note. Bytes of a
root are changed in the slot that does not run only, window by window, each to what the bundle says of it: a slot is
never worse than it was, so nothing is taken from the loader meanwhile, and a cut costs nothing.

What the loader starts next stays the same. An entry that was damaged keeps its name, and hence its starts. One that is
made again has those of a new version; where the loader would then start it before what runs, it has none, as a version
that was left.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from common.bundle.order import Order
from common.bundle.ranges import Ranges
from common.disk import gpt, verity
from common.disk.fatedit import Editor
from common.efi import uki
from common.efi.entries import COMING, FOLDER, TRIES, Entry, image_name, in_order
from common.errors import DiskError, FormatError, RefusedError
from daemon.parts.update.boot import SLOTS, Disk
from daemon.slots import bootfiles, copies, kept, worker
from daemon.slots.disk import SLOT, TABLE, Slot, found, identify, locked, remove_unfinished
from daemon.slots.examine import SECOND, Held, Report, Step, content, examine, kernel
from daemon.slots.stage import check_room, check_tree, make_windows, put_tree, write_tree


def repair(root: Path, step: Step = lambda *_: None) -> tuple[Report, tuple[str, ...]]:
    """How the disk is now, and what was mended (of `Report.problems`). Raises DiskError, OSError."""
    path = Disk.device(root)
    with locked(path, SLOT, patience=0.0), locked(path, TABLE):
        first = before = examine(root, step, alone=True)
        if before.table or before.esp or before.second:
            _mend_tables(path)
            before = examine(root, step, alone=True)
        if before.slots:
            _mend_slots(Disk.at(path), before)
            copies.mend(Disk.at(path), before.copies)
        after = examine(root, step, alone=True)
    left = set(after.problems)
    mended = dict.fromkeys(one for one in (*first.problems, *before.problems) if one not in left)
    return after, tuple(mended)


def repair_by(
    root: Path, order: Order, ranges: Ranges, step: Step, account: str = worker.ACCOUNT
) -> tuple[Report, tuple[str, ...]]:
    """The same with the bundle of the release that is in the other slot, of which the windows that are damaged are
    fetched.

    Raises RefusedError: `update-slot`, `update-same`, `update-not-there`, `update-size`; DiskError; what the worker
    tells.
    """
    path = Disk.device(root)
    with locked(path, SLOT, patience=0.0):
        with locked(path, TABLE):
            _mend_tables(path)
        disk, boot = found(root)
        if order.root_hash == boot.root_hash:
            hint = "start the other version, and repair this one from there"
            raise RefusedError(f"{order.version} is what runs", reason="update-same", hint=hint)
        name = next(one for one in SLOTS if one != boot.slot)
        held = disk.holds(name) == order.root_hash
        if not held and all(image.root_hash != order.root_hash for image in boot.images):
            hint = "mixctl update stage FILE puts it there"
            raise RefusedError(f"{order.version} is not in slot {name}", reason="update-not-there", hint=hint)
        before = examine(root, step)
        target = Slot.of(disk, name)
        check_room(target, order)
        note = bootfiles.read(target, order.root_hash)
        make_windows(disk, boot, target, order, ranges, step, account)
        write_tree(root, target, order, step, placed=note is not None and note.done)
        if not held:
            with locked(disk, TABLE):
                identify(disk, name, verity.partition_ids(order.root_hash))
    after, mended = repair(root, step)
    left = set(after.problems)
    return after, tuple(dict.fromkeys((*(one for one in before.problems if one not in left), *mended)))


def _mend_tables(path: Path) -> None:
    """Partition table, then the ESP. Raises DiskError, OSError; what cannot be mended stays as it is."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        gpt.mend(descriptor)
    except FormatError:
        return
    finally:
        os.close(descriptor)
    disk = Disk.at(path)
    with disk.esp().changing():
        pass
    with contextlib.suppress(DiskError, FormatError), disk.esp(SECOND).changing():
        pass


def _mend_slots(disk: Disk, report: Report) -> None:
    held = sorted(report.slots, key=lambda one: one.slot.name != report.running)
    for one in held:
        if one.hashes is not None and one.tree == "damaged":
            put_tree(one.slot, one.hashes)
            check_tree(one.slot, one.hashes)
    with disk.esp().changing() as esp:
        remove_unfinished(esp)
        running: Entry | None = None
        for one in held:
            runs = one.slot.name == report.running
            entry = _mend_entry(esp, one, None if runs else running, runs=runs)
            running = entry if runs else running
        if any(one.entry == "sound" for one in held):  # what cannot start is of no use to anybody
            for name in set(report.files) - {COMING}:
                esp.remove(f"{FOLDER}/{name}")
        for one in held:
            if one.startable and one.kernel != "sound":
                _keep(esp, one)


def _mend_entry(esp: Editor, held: Held, before: Entry | None, *, runs: bool) -> Entry | None:
    """Have the loader know a slot; gives the entry that it has then, if it starts. before: what is started first."""
    file = held.file
    if held.entry == "sound":
        assert file is not None
        entry = file.entry
    else:
        image = _image(esp, held) if held.startable else None
        new = _again(held, image, before, runs=runs) if image is not None else None
        if image is None or (new is None and file is None):
            return None
        created = held.note.created if held.note else 0
        if file is not None:
            head = uki.read_uki(image)
            entry = replace(file.entry, sort_key=head.identity("IMAGE_ID"), version=head.identity("IMAGE_VERSION"))
            esp.replace(file.path, [image], len(image), epoch=created)
        else:
            assert new is not None
            entry = new
            esp.add(f"{FOLDER}/{COMING}", [image], len(image), epoch=created)
            esp.rename(f"{FOLDER}/{COMING}", entry.name)
    for other in held.files:
        if other is not file and other.path.lower() != f"{FOLDER}/{entry.name}".lower():
            esp.remove(other.path)
    return entry


def _image(esp: Editor, held: Held) -> bytes | None:
    """The kernel image of a slot, from behind its root, or from an entry that has no proper name."""
    return kernel(held) or next((content(esp, one.path) for one in held.files if one.sound), None)


def _again(held: Held, image: bytes, before: Entry | None, *, runs: bool) -> Entry | None:
    """A new entry for a slot; None when it must not have one, since what runs would not be started any more."""
    head = uki.read_uki(image)
    identity = head.identity("IMAGE_ID"), head.identity("IMAGE_VERSION")
    entry = Entry(image_name(held.root_hash), TRIES, 0, *identity)
    if runs:
        return entry
    if before is None or before.bad:
        return None
    return entry if in_order([before, entry])[0] == before else entry.given_up()


def _keep(esp: Editor, held: Held) -> None:
    """The kernel image of a slot behind its root, with its note."""
    there = esp.files()
    sound = (content(esp, file.path) for file in held.files if file.sound and file.path in there)
    image = kernel(held) or next(sound, None)
    if image is not None and held.target is not None:
        kept.keep(held.slot, held.target, image, held.note.created if held.note else 0)
