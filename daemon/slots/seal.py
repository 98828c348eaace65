"""`seal`: what was staged is found and started from now on.

What is in the slot is read and measured once more, and firmware is asked whether it starts it. Then: its kernel image
into the EFI system partition under a name that the loader does not look at; the identities of the slot, in the backup
table and then the primary one; the name that the loader looks at, with the starts of a new version. A cut before that
last step leaves a slot that nothing starts.
"""

from __future__ import annotations

from pathlib import Path

from common.bundle.order import Order
from common.disk import verity
from common.disk.fatedit import Editor
from common.efi.entries import COMING, FOLDER, read_name
from common.errors import RefusedError
from daemon.parts.update.boot import SLOTS, Boot
from daemon.slots.disk import SLOT, TABLE, Slot, entry, found, identify, locked, remove_unfinished
from daemon.slots.stage import check_room, check_tree, kernel, verified


def seal(root: Path, order: Order) -> str:
    """The slot. Raises DiskError, `slots-readback` when it does not hold what was ordered; RefusedError."""
    disk, boot = found(root, order.root_hash)
    if order.root_hash == boot.root_hash:
        raise RefusedError(f"{order.version} is what runs", reason="update-same")
    target = Slot.of(disk, next(name for name in SLOTS if name != boot.slot))
    if any(image.slot == target.name and image.root_hash == order.root_hash for image in boot.images):
        return target.name  # it was sealed before
    check_room(target, order)
    with locked(disk, SLOT, patience=0.0), locked(disk, TABLE):
        tree = verified(target, order)
        check_tree(target, tree)
        image = kernel(root, target, order)
        with disk.esp().changing() as esp:
            remove_unfinished(esp)
            _clear(esp, boot, order)
            esp.add(f"{FOLDER}/{COMING}", [image], len(image), epoch=order.created)
            identify(disk, target.name, verity.partition_ids(order.root_hash))
            esp.rename(f"{FOLDER}/{COMING}", entry(order).name)
    return target.name


def _clear(esp: Editor, boot: Boot, order: Order) -> None:
    """What has the name of the entry to come and is no other version: damaged, or put there, it would keep the name."""
    others = {one.entry.name.lower() for one in boot.images if one.root_hash not in (None, order.root_hash)}
    for path in esp.files():
        name = path.removeprefix(f"{FOLDER}/")
        found = read_name(name) if name != path else None
        if found is not None and found.stem.lower() == entry(order).stem and name.lower() not in others:
            esp.remove(path)
