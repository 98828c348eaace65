"""`stage`: the slot that does not run gets another release, which nothing starts yet.

1. Its entries and identities go (`daemon.slots.disk.invalidate`).
2. A process that has given up everything else makes the windows (`daemon.slots.worker`): the root at the begin of the
   slot, the kernel image behind it, where it stays as a copy, and behind that the files for the ESP, which wait there
   until the release was called good (`daemon.slots.bootfiles`). Windows that are there already are not made again.
3. All is read back, past the cache; the verity tree made of it must have the root hash that was ordered; it is written.

A cut or a failure anywhere leaves a slot that is not started, and a retry goes on where this one was.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from common import said
from common.bundle.order import Order
from common.bundle.ranges import Ranges
from common.disk import verity
from common.efi.entries import FOLDER
from common.errors import DiskError, MixosError, RefusedError
from common.safe import one_line
from daemon.firmware import variables
from daemon.parts.update.boot import SLOTS, Boot, Disk
from daemon.slots import bootfiles, kept, worker
from daemon.slots.disk import (
    BLOCK,
    SLOT,
    Slot,
    file_places,
    forget,
    found,
    in_rescue,
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
        """The slot. Raises RefusedError: `update-slot`, `update-same`, `update-trial`, `update-left`, `update-size`,
        `update-refused`; DiskError; what the worker tells."""
        order = self._order
        disk, boot = found(self._root, order.root_hash)
        assert boot.slot is not None
        if order.root_hash == boot.root_hash:
            raise RefusedError(f"{order.version} is what runs", reason="update-same")
        if not in_rescue(self._root):
            _refuse_to_give_up(boot)
        target = Slot.of(disk, next(name for name in SLOTS if name != boot.slot))
        check_room(target, order)
        with locked(disk, SLOT, patience=0.0):
            invalidate(disk, boot, target.name)
            make_windows(disk, boot, target, order, ranges, self._step, self._account)
            write_tree(self._root, target, order, self._step)
        return target.name


def _refuse_to_give_up(boot: Boot) -> None:
    """The other slot is kept while it is needed. Raises RefusedError `update-trial`, `update-left`."""
    running, following = boot.running, boot.next
    if running is None or not running.entry.good:
        hint = "wait until it is, or have it with 'mixctl update commit'"
        raise RefusedError(
            "what runs was not called good yet: the other slot is kept", reason="update-trial", hint=hint
        )
    if running.entry.bad and following is not None and following.slot not in (None, boot.slot):
        message = f"what runs was left: the next boot starts {following.version}, which the release would replace"
        raise RefusedError(message, reason="update-left", hint="restart first")


def make_windows(disk: Disk, boot: Boot, target: Slot, order: Order, ranges: Ranges, step: Step, account: str) -> None:
    """Those that are not there, by the process that does that. Raises what it tells, or DiskError `slots-worker`."""
    assert boot.slot is not None
    esp = disk.esp()
    running = Slot.of(disk, boot.slot)
    note = bootfiles.read(running, boot.root_hash) if boot.root_hash else None
    places = worker.Places(
        running=running.root,
        esp=(esp.device, esp.offset, esp.size),
        entry=f"{FOLDER}/{boot.running.entry.stem}" if boot.running else "",
        target=target.root,
        files={one.name: (one.offset, one.size) for one in note.files} if note else {},
    )
    for one in _working(order, places, ranges, boot.root_hash, account):
        step(*one)


def check_room(target: Slot, order: Order) -> None:
    """Raises RefusedError `update-size` for a release that the slot cannot hold."""
    end = file_places(order.root.size, order.uki.size, [file.size for file in order.files.values()])[-1]
    if not kept.fits(target, order.root.size, order.uki.size) or end + 2 * BLOCK > target.root[2]:
        needed = end >> 20
        message = f"{order.version} needs {needed} MiB in a slot, and a little more; it has {target.root[2] >> 20} MiB"
        raise RefusedError(message, reason="update-size")


def write_tree(root: Path, target: Slot, order: Order, step: Step, *, placed: bool = False) -> None:
    """Read the slot back, compare, and write its tree. placed: its files are on the ESP already, or newer ones. Raises
    as `verified` and `kernel` do."""
    step("verify", 0, 1, 0)
    tree = verified(target, order)
    kernel(root, target, order)
    note = replace(bootfiles.of_order(order), done=placed)
    for _ in bootfiles.checked(target, note):
        pass
    put_tree(target, tree)
    check_tree(target, tree)
    bootfiles.write(target, note)
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


def kernel(root: Path, target: Slot, order: Order) -> bytes:
    """The kernel image that is kept in a slot. Raises DiskError: `slots-readback`, `slots-kernel`; RefusedError
    `update-refused` for one that the firmware of this machine would not start."""
    with opened(target.root, os.O_RDONLY) as descriptor:
        forget(descriptor)
        image = read_all(descriptor, target.root[1] + kernel_place(order.root.size), order.uki.size)
    if hashlib.sha256(image).digest() != order.uki.sha256:
        raise _differs(target)
    startable(image, order.root_hash, order.version)
    if why := variables.refusal(image, root):
        hint = "it must be signed with a key that this machine's db has: see docs/secureboot.md"
        raise RefusedError(f"firmware would not start {order.version}: {why}", reason="update-refused", hint=hint)
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
    complete = False
    made = (order.root, order.uki, *order.files.values())
    most = 2 * sum(len(file.target.windows) + 1 for file in made) + 8  # lines: one for each window, about
    try:
        for number, line in enumerate(_lines(ours)):
            if number == most:
                raise ValueError("a report without end")
            try:
                one = _progress(line)
            except MixosError as error:
                failed = error
            else:
                complete = one[1] == one[2]
                yield one
    except ValueError as error:
        raise DiskError("what makes the windows talks nonsense", reason="slots-worker") from error
    finally:
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)  # it has ended, or is not wanted any more
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if failed is not None:
        raise failed
    if not complete:  # by the kernel, which was short of memory, or by a defect
        raise DiskError(f"what makes the windows ended with status {status}", reason="slots-worker", retryable=True)


def _lines(descriptor: int) -> Iterator[bytes]:
    held, ended = b"", False
    while not ended:
        piece = os.read(descriptor, _MAX_LINE)
        ended = not piece
        *lines, held = (held + piece).split(b"\n")
        if len(held) > _MAX_LINE:
            raise ValueError("a line without end")
        yield from lines
    if held:
        raise ValueError("half a line")


def _progress(line: bytes) -> tuple[str, int, int, int]:
    """What a line says. Raises the MixosError that it tells; ValueError."""
    found = said.read(line)
    done, of, fetched = (_number(found.get(name)) for name in ("done", "of", "fetched"))
    return one_line(found.get("step"), 32), done, of, fetched


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError("no number")
    return value
