"""Write an image to a disk, check every byte that was written, and never harm a disk that is in use.

The image may be packed or come through a pipe (`image.source`). Only what carries meaning is written: each partition up
to its last data and a MiB more (holes as zeros, since verity covers them), the first MiB of empty ones (so that an old
file system there is not taken for ours), and both ends of the disk, where old tables may lie. The old table goes first
and the new one comes last, so a cut leaves a disk without a table instead of half a system. The backup table is put at
the end of the real disk.

Images are made for sectors of 512 bytes. On a disk with sectors of 4096 the partitions lie at the same bytes; the table
and the boot partition's file system are made anew for its sectors.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from buildsys.files import data_ranges
from common.disk import fat, gpt
from common.efi.entries import RESCUE_SORT_KEY
from common.efi.uki import Uki, read_uki
from common.errors import ConfigError, ImageError, SettingsError
from common.units import size as words
from image import esp
from image.blockdev import Device, Places, check_free, inspect, open_exclusive
from image.host import image_errors
from image.source import MAX_IMAGE, STDIN, open_image

MIB = 1 << 20
_CHUNK = 4 * MIB
_BLKRRPART = 0x125F  # linux/fs.h: read the partition table again
_BLKFLSBUF = 0x1261  # write back and drop the buffer cache of a device

Progress = Callable[[str, int, int], None]
Confirm = Callable[[Device], bool]


@dataclass(frozen=True)
class Flashed:
    """What was done: bytes written and verified, seconds it took, and whether the kernel took the new table at once."""

    device: Device
    written: int
    seconds: float
    table_reread: bool


def check_preseed(path: Path) -> str:
    """The text of a preseed file after the same strict check that the device makes. Raises ConfigError."""
    from common.errors import MixosError
    from common.settings import model as settings  # only here: the daemon's modules are not needed for anything else

    try:
        with path.open("rb") as file:
            data = file.read(settings.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", reason="preseed-unreadable") from error
    try:
        settings.parse(data, str(path), settings.Settings())
    except MixosError as error:
        raise ConfigError(str(error), reason=error.reason, hint="nothing was written") from error
    return data.decode("utf-8")


def flash(
    image: Path,
    target: Path,
    confirm: Confirm,
    *,
    file: bool = False,
    sector: int = gpt.SECTOR,
    preseed: Path | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    places: Places | None = None,
) -> Flashed:
    """Write `image` to the disk `target` (or, with `file`, into a regular file, made when missing, that stands for a
    disk with sectors of `sector` bytes).

    `confirm` gets the device and decides; `progress` gets ("unpack", "write" or "verify", bytes done, bytes in all, 0
    when that is not known); `warn` gets what a person should know before they decide. Raises ImageError:
    "not-a-block-device", "is-partition", "device-in-use", "read-only", "disk-too-small", "sector-size",
    "esp-too-small", "not-confirmed", "device-changed", "same-file", "not-an-image", "image-damaged", or ConfigError
    for a bad preseed, before the first write; "write-failed", "image-io" and "verify-failed" later.
    """
    text = check_preseed(preseed) if preseed is not None else None
    where = places or Places()
    report = progress or (lambda phase, done, total: None)
    started = time.monotonic()
    with open_image(image, report, _room(target, where, file=file)) as source, image_errors(image):
        table = _image_table("standard input" if image == STDIN else str(image), source)
        size = os.fstat(source).st_size
        device = _file_device(source, target, size, sector) if file else inspect(target, where)
        _check(device, size, where)
        wanted = _fitted(table, device)
        files = esp.read(source, table.find(esp.NAME))
        ranges = list(_plan(source, table, size, _verified_size(files)))
        total = sum(end - start for start, end in ranges)
        if warn is not None and (problem := _login_problem(files, text)):
            warn(problem)
        if not confirm(device):
            raise ImageError(f"{target} was left as it is", reason="not-confirmed")
        with _claimed(device, where) as disk, _half_written(device):
            _wipe_ends(disk, device.size)
            digests = _write(source, disk, ranges, total, report)
            _verify(device, disk, ranges, digests, total, report)
            added = {} if text is None else {esp.PRESEED: text.encode()}
            if added or wanted.geometry.sector > table.geometry.sector:
                _rewrite_esp(device, disk, wanted.find(esp.NAME), {**files, **added})
            gpt.write(disk, wanted)
            _drop_cache(device, disk)
            if gpt.read(disk) != wanted:
                raise ImageError("the partition table reads back differently", reason="verify-failed")
            reread = device.block and _reread_table(disk)
    return Flashed(device, total, time.monotonic() - started, reread)


def _room(target: Path, places: Places, *, file: bool) -> int:
    """Bytes that an image for it may have. A disk is checked before one is unpacked for it; raises ImageError."""
    if file:
        return (os.path.isfile(target) and os.path.getsize(target)) or MAX_IMAGE
    disk = inspect(target, places)
    _check(disk, 0, places)
    return disk.size


def _image_table(image: str, source: int) -> gpt.Table:
    """The table of the image. Raises ImageError saying what is wrong with it, and what to do."""
    try:
        table = gpt.read(source)
    except gpt.GptError as error:
        if error.reason == "gpt-cut-short":
            hint = "it was not copied or downloaded to its end: get it again"
            raise ImageError(f"{image} is cut short: {error.message}", reason="image-damaged", hint=hint) from error
        hint = "MixOS images are made by 'mixos build', as out/*.img"
        raise ImageError(f"{image} is no disk image: {error.message}", reason="not-an-image", hint=hint) from error
    if table.problems:
        problems = ", ".join(table.problems)
        raise ImageError(f"{image} is damaged: {problems}", reason="image-damaged", hint="get or make it again")
    return table


@contextmanager
def _half_written(device: Device) -> Iterator[None]:
    """Say of whatever fails from here on which disk it is about, and in what state that is now."""
    state = "the disk has no partition table now: flash it again, or use another one"
    try:
        yield
    except OSError as error:
        raise ImageError(f"{device.path}: {error.strerror or error}", reason="write-failed", hint=state) from error
    except ImageError as error:
        hint = f"{error.hint}; {state}" if error.hint else state
        raise ImageError(f"{device.path}: {error.message}", reason=error.reason, hint=hint) from error


def _fitted(table: gpt.Table, device: Device) -> gpt.Table:
    """The table for the disk. Raises ImageError when the boot partition is too small for the disk's sectors."""
    wanted = table.resized(device.size, device.sector_size)
    if wanted.geometry.sector > table.geometry.sector:
        part = wanted.find(esp.NAME)
        try:
            fat.geometry(part.size, part.sector)
        except fat.FatError as error:
            raise ImageError(
                f"{device.path} has sectors of {part.sector} bytes, for which the image's boot partition of "
                f"{part.size >> 20} MiB is too small",
                reason="esp-too-small",
                hint='build the image with [partitions] esp = "260M"',
            ) from error
    return wanted


def _rewrite_esp(device: Device, disk: int, part: gpt.Partition, files: Mapping[str, bytes]) -> None:
    """Make the file system of the ESP anew, for the disk's sectors and with these files, and read them back."""
    esp.rewrite(disk, part, files, int(time.time()))
    _drop_cache(device, disk)
    if esp.read(disk, part) != files:
        raise ImageError("the boot partition reads back differently", reason="verify-failed")


def _file_device(source: int, target: Path, size: int, sector: int) -> Device:
    """A regular file as a disk; one that is missing or empty is made as large as the image, once it is written to."""
    try:
        info = target.stat()
    except FileNotFoundError:
        return Device(target, size, block=False, sector_size=sector)
    except OSError as error:
        raise ImageError(f"{target}: {error.strerror}", reason="cannot-open") from error
    if os.path.samestat(info, os.fstat(source)):
        raise ImageError(f"{target} is the image itself", reason="same-file")
    if not stat.S_ISREG(info.st_mode):
        raise ImageError(f"{target} is not a regular file", reason="not-a-file")
    identity = (info.st_dev, info.st_ino)
    return Device(target, info.st_size or size, block=False, sector_size=sector, identity=identity)


def _check(device: Device, size: int, places: Places) -> None:
    if device.sector_size not in gpt.SECTORS:
        known = " and ".join(map(str, gpt.SECTORS))
        raise ImageError(
            f"{device.path} has sectors of {device.sector_size} bytes; only {known} are known", reason="sector-size"
        )
    if device.size < size:
        have, need = words(device.size), words(size)
        if have == need:
            have, need = f"{device.size} B", f"{size} B"
        message = f"{device.path} holds {have} and the image needs {need}"
        raise ImageError(message, reason="disk-too-small", hint="take a larger disk, or smaller [partitions]")
    if device.read_only:
        hint = "many cards have a switch for it; blockdev --setrw where the kernel alone says so"
        raise ImageError(f"{device.path} can only be read", reason="read-only", hint=hint)
    if device.block:
        check_free(device, places)


@contextmanager
def _claimed(device: Device, places: Places) -> Iterator[int]:
    fd = open_exclusive(device, places)
    try:
        if not device.block and os.fstat(fd).st_size == 0:
            os.truncate(fd, device.size)
        yield fd
    finally:
        os.close(fd)


def _plan(source: int, table: gpt.Table, size: int, verified: int) -> Iterator[tuple[int, int]]:
    """The byte ranges to write: rising, not overlapping, whole 4 KiB blocks, without the tables at both ends.

    verified: bytes at the start of the root partition that are written even where the image has holes.
    """
    data = list(data_ranges(source, size))
    root = table.find("mixos-root-a")
    data.append((root.offset, root.offset + verified))
    for part in sorted(table.partitions, key=lambda one: one.first):
        start, end = part.offset, part.offset + part.size
        last = max((min(high, end) for low, high in data if low < end and high > start), default=start)
        stop = min(end, -(-last // MIB) * MIB + MIB)
        yield start, stop


def _verified_size(files: Mapping[str, bytes]) -> int:
    """Bytes of the root partition that verity covers, by the command line in its UKI: zeros there count too."""
    for boot in _boot_files(files):
        if found := re.search(r",0 (\d+) verity ", boot.cmdline):
            return int(found[1]) * 512  # the device mapper's unit on every disk
    raise ImageError("the image has no boot file with a verity root", reason="image-damaged")


def _boot_files(files: Mapping[str, bytes]) -> Iterator[Uki]:
    """Those of versions; the rescue entry has no root, and lets nobody in."""
    found = (read_uki(content) for path, content in files.items() if path.startswith("EFI/Linux/"))
    return (boot for boot in found if boot.identity("IMAGE_ID") != RESCUE_SORT_KEY)


def _login_problem(files: Mapping[str, bytes], preseed: str | None) -> str | None:
    """Why nobody will be able to log in, as far as the image tells: by its keys, or those of a preseed over them."""
    from common.settings import model

    found = [
        re.search(r'^MIXOS_LOGIN_UNTIL="([0-9-]*)"$', boot.os_release, re.MULTILINE) for boot in _boot_files(files)
    ]
    until = found[0][1] if found and found[0] else model.FOREVER  # an image that does not say is given the benefit
    keys = (model.SshKey("admin", "", expires=until),) if until else ()  # they stand for the image's own
    content = files.get(esp.PRESEED, b"") if preseed is None else preseed.encode()
    with suppress(SettingsError):  # the device ignores such a file too
        until = model.parse(content, esp.PRESEED, model.Settings(keys=keys)).login_until
    return model.login_problem(until, datetime.now(UTC).date())


def _wipe_ends(disk: int, size: int) -> None:
    """Zero the first and the last MiB, where partition tables and RAID or file system signatures of old lie."""
    for offset in (0, max(0, size - MIB)):
        _put(disk, offset, bytes(min(MIB, size - offset)))
    os.fsync(disk)


def _chunks(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, end in ranges:
        for at in range(start, end, _CHUNK):
            yield at, min(_CHUNK, end - at)


def _write(source: int, disk: int, ranges: list[tuple[int, int]], total: int, report: Progress) -> list[bytes]:
    """Copy the ranges; returns the digest of each chunk as it was read from the image."""
    digests: list[bytes] = []
    done = 0
    for offset, length in _chunks(ranges):
        try:
            data = os.pread(source, length, offset)
        except OSError as error:
            raise ImageError(f"the image cannot be read: {error.strerror}", reason="image-io") from error
        if len(data) != length:
            raise ImageError(f"the image ended early at byte {offset}", reason="short-read")
        _put(disk, offset, data)
        digests.append(hashlib.sha256(data).digest())
        done += length
        report("write", done, total)
    os.fsync(disk)
    return digests


def _verify(
    device: Device, disk: int, ranges: list[tuple[int, int]], digests: list[bytes], total: int, report: Progress
) -> None:
    """Read everything back from the medium, not from memory, and compare. Raises ImageError "verify-failed"."""
    _drop_cache(device, disk)
    done = 0
    for (offset, length), digest in zip(_chunks(ranges), digests, strict=True):
        if hashlib.sha256(os.pread(disk, length, offset)).digest() != digest:
            raise ImageError(
                f"it reads back differently between bytes {offset} and {offset + length}",
                reason="verify-failed",
                hint="the disk is probably failing, or smaller than it claims; use another one",
            )
        done += length
        report("verify", done, total)


def _drop_cache(device: Device, disk: int) -> None:
    os.fsync(disk)
    if device.block:
        fcntl.ioctl(disk, _BLKFLSBUF, 0)
    else:
        os.posix_fadvise(disk, 0, 0, os.POSIX_FADV_DONTNEED)


def _reread_table(disk: int) -> bool:
    """Ask the kernel to take the new table; whether it did. Some drivers cannot: then the disk is to be replugged."""
    try:
        fcntl.ioctl(disk, _BLKRRPART, 0)
    except OSError:
        return False
    return True


def _put(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            done = os.pwrite(fd, view, offset)
        except OSError as error:
            raise ImageError(f"writing at byte {offset} failed: {error.strerror}", reason="write-failed") from error
        view = view[done:]
        offset += done
