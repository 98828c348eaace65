"""The process that makes the windows of a release: it unpacks what strangers have sent, and has nothing else to lose.

It has no account but its own, no capability, no file to open (its AppArmor profile), and four descriptors: where the
bundle comes from, the slot that runs and the ESP to read from, and the slot to write. What it writes proves nothing:
who has started it reads everything back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.bundle import sealing, windows
from common.bundle.order import File, Order, Piece
from common.bundle.ranges import Ranges
from common.disk import fatread
from common.disk.fat import FatError
from common.efi.entries import BOOT_FILES, read_name
from common.errors import BundleError, DiskError, MixosError
from daemon.linux.become import become, has_apparmor, keep_only, stay_alone
from daemon.slots.disk import BLOCK, file_places, kernel_place

ACCOUNT, PROFILE = "update", "update-windows"
_MEMORY = 256 << 20  # bytes of address space
_FINAL = frozenset({"bundle-damaged", "source-gone", "source-protocol"})  # another plan fails in the same way

Place = tuple[Path, int, int]  # device, offset, bytes
Read = windows.Read


@dataclass(frozen=True)
class Places:
    """running, target: slots; esp: with the `entry` of what runs, by its path without counter; files: those that the
    slot that runs keeps for it (name → offset in the slot, bytes)."""

    running: Place
    esp: Place
    entry: str
    target: Place
    files: dict[str, tuple[int, int]]


def main(
    order: Order, places: Places, ranges: Ranges, running: bytes | None, out: int, account: str, parent: int
) -> int:
    """Make all windows, and tell on `out` how far it is, or why it failed; the exit code."""

    def tell(**values: Any) -> None:
        os.write(out, json.dumps(values).encode() + b"\n")

    try:
        payload = sealing.payload(order, ranges.read)  # before what it needs cannot be loaded any more
        source, esp = (os.open(one[0], os.O_RDONLY | os.O_CLOEXEC) for one in (places.running, places.esp))
        target = os.open(places.target[0], os.O_RDWR | os.O_CLOEXEC)
        _confine(account, parent, (source, esp, target, out, *ranges.descriptors))
        _make(order, places, ranges, payload, running, (source, esp, target), tell)
    except MixosError as error:
        tell(error=error.as_json())
        return error.exit_code
    except OSError as error:
        failed = DiskError(f"the disk, or what it is read from, fails: {error.strerror}", reason="slots-io")
        tell(error=failed.as_json())
        return failed.exit_code
    except MemoryError:
        tell(error=DiskError("there is not enough memory", reason="slots-memory", retryable=True).as_json())
        return 1
    return 0


def _confine(account: str, parent: int, descriptors: tuple[int, ...]) -> None:
    """Raises OSError."""
    who = None
    if os.geteuid() == 0:
        try:
            entry = pwd.getpwnam(account)
        except KeyError as error:
            raise DiskError(f"there is no account {account}", reason="slots-account") from error
        who = entry.pw_uid, entry.pw_gid
    keep_only(descriptors)
    stay_alone()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    become(who, PROFILE if who and has_apparmor() else None, parent)


def _make(
    order: Order,
    places: Places,
    ranges: Ranges,
    payload: Read,
    running: bytes | None,
    files: tuple[int, int, int],
    tell: Callable[..., None],
) -> None:
    source, esp, target = files
    begins = order.source is not None and order.source == running
    old_root = _reader(source, places.running[1]) if begins else None
    old_uki = _file_reader(esp, places.esp, places.entry) if begins else None
    jobs = [
        ("root", order.root, places.target[1], old_root),
        ("kernel", order.uki, places.target[1] + kernel_place(order.root.size), old_uki),
    ]
    ends = file_places(order.root.size, order.uki.size, [file.size for file in order.files.values()])
    for (name, extra), at in zip(order.files.items(), ends[:-1], strict=True):
        old = _boot_file(source, esp, places, name) if begins else None
        jobs.append(("files", extra, places.target[1] + at, old))
    total = sum(len(file.target.windows) for _, file, _, _ in jobs)
    done = 0
    for name, file, at, old in jobs:
        read_target = partial(_as_it_is, _reader(target, at))
        wanted = windows.missing(file.target, read_target)
        done += len(file.target.windows) - len(wanted)
        tell(step=name, done=done, of=total, fetched=ranges.fetched)

        def one(_number: int, name: str = name) -> None:
            nonlocal done
            done += 1
            tell(step=name, done=done, of=total, fetched=ranges.fetched)

        def write(offset: int, data: memoryview, at: int = at) -> None:
            if rest := -len(data) % BLOCK:  # whole sectors: one that cannot be read is not to be read for it
                data = memoryview(bytes(data) + bytes(rest))
            while data:
                written = os.pwrite(target, data, at + offset)
                data, offset = data[written:], offset + written
            os.fsync(target)  # what was written is there after a cut: it is not fetched twice

        _by_plans(file, wanted, old, read_target, payload, write, one)


def _by_plans(
    file: File,
    wanted: list[int],
    old: Read | None,
    read_target: Read,
    payload: Read,
    write: windows.Write,
    done: Callable[[int], None],
) -> None:
    """By the first plan that can; where what it begins with is damaged, what is missing by the next one."""
    for number, piece in enumerate(file.plans):
        last = number == len(file.plans) - 1
        if not wanted:
            return
        if old is None and not last:
            continue
        try:
            plan = windows.read_plan(_exactly(payload, piece))
            windows.apply(plan, file.target, wanted, old or _nothing, payload, write, done)
            return
        except (BundleError, FatError, OSError) as error:
            if last or (isinstance(error, BundleError) and error.reason in _FINAL):
                raise
        wanted = windows.missing(file.target, read_target)


def _exactly(payload: Read, piece: Piece) -> bytes:
    data = payload(piece.offset, piece.size)
    if hashlib.sha256(data).digest() != piece.sha256:
        raise BundleError("a plan is not the one that the manifest names", "bundle-damaged")
    return data


def _nothing(offset: int, length: int) -> bytes:
    return b""


def _as_it_is(read: Read, offset: int, length: int) -> bytes:
    """Nothing where a disk cannot read any more: what is written there anew it can."""
    try:
        return read(offset, length)
    except OSError:
        return b""


def _reader(descriptor: int, at: int) -> Read:
    return lambda offset, length: os.pread(descriptor, length, at + offset)


def _boot_file(source: int, esp: int, places: Places, name: str) -> Read | None:
    """Of a file that came with what runs: out of its slot, else from the ESP."""
    if name in places.files:
        at, size = places.running[1] + places.files[name][0], places.files[name][1]
        return lambda offset, length: os.pread(source, max(0, min(length, size - offset)), at + offset)
    wanted = BOOT_FILES[name][0].lower()
    return _on_esp(esp, places.esp, lambda path: path.lower() == wanted)


def _file_reader(descriptor: int, esp: Place, path: str) -> Read | None:
    """Of an entry of the loader, whatever its counter is now and becomes; None without one."""
    folder, _, wanted = path.rpartition("/")

    def is_it(place: str) -> bool:
        found = read_name(place.removeprefix(f"{folder}/"))
        return found is not None and found.stem == wanted

    return _on_esp(descriptor, esp, is_it)


def _on_esp(descriptor: int, esp: Place, wanted: Callable[[str], bool]) -> Read | None:
    with contextlib.suppress(FatError):
        volume = fatread.open_volume(descriptor, esp[1], esp[2])
        for place, entry in fatread.files(volume):
            if wanted(place):
                return partial(fatread.read, volume, entry)
    return None
