"""`stage`: the slot that does not run gets another release, which nothing starts yet.

1. Its entries and identities go (`daemon.slots.disk.invalidate`).
2. A process that has given up everything else makes the windows (`daemon.slots.worker`): the root at the begin of the
   slot, the kernel image behind it, where it stays as a copy. Windows that are there already are not made again.
3. All is read back, past the cache; the verity tree made of it must have the root hash that was ordered; it is written.

A cut or a failure anywhere leaves a slot that is not started, and a retry goes on where this one was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.bundle.order import Order
from common.bundle.ranges import Ranges
from common.disk import verity
from common.efi.entries import FOLDER
from common.errors import DiskError, MixosError, RefusedError
from common.safe import one_line
from daemon.parts.update.boot import SLOTS, Boot, Disk
from daemon.slots import kept, worker
from daemon.slots.disk import (
    SLOT,
    Slot,
    forget,
    found,
    invalidate,
    kernel_place,
    locked,
    opened,
    read_all,
    startable,
)

Step = Callable[[str, int, int, int], None]  # (step, done, of, bytes fetched)
_MAX_LINE = 4096
_PIECE = 1 << 20


class Stage:
    """root: the tree to read from; step: hears how far it is."""

    def __init__(self, root: Path, order: Order, step: Step, account: str = worker.ACCOUNT) -> None:
        self._root, self._order, self._step, self._account = root, order, step, account

    def run(self, ranges: Ranges) -> str:
        """The slot. Raises RefusedError: `update-slot`, `update-same`, `update-trial`, `update-size`; DiskError; what
        the worker tells."""
        order = self._order
        disk, boot = found(self._root)
        assert boot.slot is not None
        if order.root_hash == boot.root_hash:
            raise RefusedError(f"{order.version} is what runs", reason="update-same")
        if boot.running is None or not boot.running.entry.good:
            hint = "wait until it is, or have it with 'mixctl update commit'"
            raise RefusedError(
                "what runs was not called good yet: the other slot is kept", reason="update-trial", hint=hint
            )
        target = Slot.of(disk, next(name for name in SLOTS if name != boot.slot))
        check_room(target, order)
        with locked(disk, SLOT, patience=0.0):
            invalidate(disk, boot, target.name)
            make_windows(disk, boot, target, order, ranges, self._step, self._account)
            write_tree(target, order, self._step)
        return target.name


def make_windows(disk: Disk, boot: Boot, target: Slot, order: Order, ranges: Ranges, step: Step, account: str) -> None:
    """Those that are not there, by the process that does that. Raises what it tells, or DiskError `slots-worker`."""
    assert boot.slot is not None
    esp = disk.esp()
    places = worker.Places(
        running=Slot.of(disk, boot.slot).root,
        esp=(esp.device, esp.offset, esp.size),
        entry=f"{FOLDER}/{boot.running.entry.name}" if boot.running else "",
        target=target.root,
    )
    for one in _working(order, places, ranges, boot.root_hash, account):
        step(*one)


def check_room(target: Slot, order: Order) -> None:
    """Raises RefusedError `update-size` for a release that the slot cannot hold."""
    if not kept.fits(target, order.root.size, order.uki.size):
        needed = kernel_place(order.root.size) + order.uki.size >> 20
        message = f"{order.version} needs {needed} MiB in a slot, and a little more; it has {target.root[2] >> 20} MiB"
        raise RefusedError(message, reason="update-size")


def write_tree(target: Slot, order: Order, step: Step) -> None:
    """Read the slot back, compare, and write its tree. Raises DiskError `slots-readback`."""
    step("verify", 0, 1, 0)
    tree = verified(target, order)
    kernel(target, order)
    put_tree(target, tree)
    check_tree(target, tree)
    kept.write(target, kept.of_order(order))
    step("verify", 1, 1, 0)


def put_tree(target: Slot, tree: verity.Tree) -> None:
    """Make a tree durable. Raises OSError."""
    with opened(target.tree, os.O_RDWR) as descriptor:
        at = target.tree[1]
        for start in range(0, len(tree.hashes), _PIECE):
            os.pwrite(descriptor, tree.hashes[start : start + _PIECE], at + start)
        os.fsync(descriptor)


def verified(target: Slot, order: Order) -> verity.Tree:
    """The tree over what is on the disk. Raises DiskError `slots-readback` unless it is what was ordered."""
    with opened(target.root, os.O_RDONLY) as descriptor:
        forget(descriptor)
        tree = verity.build(descriptor, order.root.size, order.salt, target.root[1])
    if tree.root != order.root_hash:
        raise _differs(target)
    return tree


def check_tree(target: Slot, tree: verity.Tree) -> None:
    """Raises DiskError `slots-readback` unless the tree is on the disk."""
    with opened(target.tree, os.O_RDONLY) as descriptor:
        forget(descriptor)
        if read_all(descriptor, target.tree[1], len(tree.hashes)) != tree.hashes:
            raise _differs(target)


def kernel(target: Slot, order: Order) -> bytes:
    """The kernel image that is kept in a slot. Raises DiskError: `slots-readback`, `slots-kernel`."""
    with opened(target.root, os.O_RDONLY) as descriptor:
        forget(descriptor)
        image = read_all(descriptor, target.root[1] + kernel_place(order.root.size), order.uki.size)
    if hashlib.sha256(image).digest() != order.uki.sha256:
        raise _differs(target)
    startable(image, order.root_hash, order.version)
    return image


def _differs(target: Slot) -> DiskError:
    message = f"slot {target.name} does not hold what was written to it"
    hint = "try again; if it stays so, the disk is failing: see 'mixctl storage status'"
    return DiskError(message, reason="slots-readback", hint=hint, retryable=True)


# -- the other process -------------------------------------------------------------------------------------------------


def _working(
    order: Order, places: worker.Places, ranges: Ranges, running: bytes | None, account: str
) -> Iterator[tuple[str, int, int, int]]:
    """What the process that makes the windows says of its way. Raises what it tells, or DiskError `slots-worker`."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    child = os.fork()
    if not child:
        status = 70  # sysexits.h, EX_SOFTWARE: a defect, which is shown
        try:
            status = worker.main(order, places, ranges, running, theirs, account, parent)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(theirs)
    failed: MixosError | None = None
    try:
        for line in _lines(ours):
            if "error" in line:
                failed = _told(line["error"])
            else:
                yield str(line["step"])[:32], int(line["done"]), int(line["of"]), int(line["fetched"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DiskError("what makes the windows talks nonsense", reason="slots-worker") from error
    finally:
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)  # it has ended, or is not wanted any more
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if failed is not None:
        raise failed
    if status not in (0, -9):
        raise DiskError(f"what makes the windows ended with status {status}", reason="slots-worker", retryable=True)


def _lines(descriptor: int) -> Iterator[dict[str, Any]]:
    held, ended = b"", False
    while not ended:
        select.select([descriptor], [], [])
        piece = os.read(descriptor, _MAX_LINE)
        ended = not piece
        *lines, held = (held + piece).split(b"\n")
        if len(held) > _MAX_LINE:
            raise ValueError("a line without end")
        for line in lines:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise ValueError("no object")
            yield found
    if held:
        raise ValueError("half a line")


def _told(found: Any) -> MixosError:
    words = {"reason": one_line(str(found["reason"]), 60), "hint": found["hint"] and one_line(str(found["hint"]), 300)}
    error = MixosError(one_line(str(found["error"]), 1000), **words, retryable=found["retryable"] is True)
    error.exit_code = int(found["exit_code"]) & 0x7F or 1
    return error
