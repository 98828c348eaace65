"""What lies on the EFI system partition: systemd-boot, its configuration, unified kernel images, an optional preseed.

No `default` entry is ever set (it would override boot counting). When firmware refuses an entry that has starts left,
the loader restarts the machine, and so comes to the next one. At each start where firmware has random numbers the
loader writes a seed for the kernel's, whatever its configuration says: the file is there from the beginning, so that
all it changes is one sector of content and the file's time.

The loader would also remember what somebody chose once at its menu ("d": start this entry from now on, whatever its
counter says; "+", "-": how long to wait, or for ever), or what another system of this machine had it remember. Then an
update is never started, and a version that fails is started again and again. So it is given no such memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from common.disk import fat, fatread, gpt
from common.efi.entries import FOLDER, TRIES, Entry, image_name
from common.errors import ImageError
from image.host import image_errors, opened

NAME = "mixos-esp"  # label of the partition
SECOND = "mixos-esp-b"  # of the one that firmware falls back to when it cannot read the first
PRESEED = "mixos-preseed.toml"
MAX_PRESEED = 64 << 10  # bytes
LABEL = "MIXOS-ESP"
SEED, SEED_SIZE = "loader/random-seed", 32  # the loader's; zeros are one that nobody has written yet
_MAGIC = b"LoaderInfo: systemd-boot "
_MEMORY = {  # variables of the firmware that it obeys, in systemd 262
    "LoaderEntryDefault",
    "LoaderEntryPreferred",
    "LoaderEntryOneShot",
    "LoaderEntrySysFail",
    "LoaderEntryLastBooted",
    "LoaderConfigTimeout",
    "LoaderConfigTimeoutOneShot",
}
_NO_MEMORY = {"LoaderEntries", "LoaderEntrySelected", "LoaderConfigConsoleMode"}  # what it tells; how large letters are
_VARIABLE = re.compile(rb"L\0o\0a\0d\0e\0r\0(?:E\0n\0t\0r\0|C\0o\0n\0f\0i\0g\0)(?:[A-Za-z]\0)+\0\0")
LOADER_CONF = """\
timeout 0
editor no
auto-entries no
auto-firmware no
reboot-on-error auto
"""


def loader_path(efi_arch: str) -> str:
    """Where firmware looks on a disk that no boot variable names (UEFI 3.5.1.1); efi_arch: "x64", "aa64"."""
    return f"EFI/BOOT/BOOT{efi_arch.upper()}.EFI"


def without_memory(loader: bytes) -> bytes:
    """The loader, obeying no variable of the firmware that says what it starts: the names of those become empty ones,
    which no variable has (UEFI 8.2). Raises ImageError `loader-memory` for one whose variables are not known."""
    if _MAGIC not in loader:
        return loader
    found = [match[0] for match in _VARIABLE.finditer(loader)]
    names = [one.decode("utf-16-le").rstrip("\0") for one in found]
    if sorted(names) != sorted(_MEMORY | _NO_MEMORY):
        message = f"this boot manager has other variables than those that are known: {', '.join(names)}"
        raise ImageError(message, reason="loader-memory")
    for name, data in zip(names, found, strict=True):
        if name in _MEMORY:
            loader = loader.replace(data, b"\0\0" + data[2:])
    return loader


def new_name(root_hash: bytes) -> str:
    """The entry of an image that was never started. root_hash: of the root that it starts."""
    return Entry(image_name(root_hash), TRIES).name


def files(loader: bytes, efi_arch: str, entries: Mapping[str, bytes]) -> dict[str, bytes]:
    """All files of a fresh ESP. entries: name → unified kernel image."""
    return {
        loader_path(efi_arch): loader,
        f"EFI/systemd/systemd-boot{efi_arch}.efi": loader,
        **{f"{FOLDER}/{name}": image for name, image in entries.items()},
        "loader/loader.conf": LOADER_CONF.encode(),
        SEED: bytes(SEED_SIZE),
    }


def write(fd: int, part: gpt.Partition, contents: Mapping[str, bytes], volume_id: int, epoch: int) -> None:
    """Make the file system of the ESP inside an open disk, in the sectors of its table. Raises fat.FatError."""
    fat.write(
        fd,
        part.offset,
        part.size,
        contents,
        volume_id=volume_id,
        label=LABEL,
        epoch=epoch,
        sector=part.sector,
    )


def read(fd: int, part: gpt.Partition) -> dict[str, bytes]:
    """The files of the ESP of an open disk. Raises fat.FatError."""
    return fatread.read_files(fd, part.offset, part.size)


def rewrite(fd: int, part: gpt.Partition, added: Mapping[str, bytes], epoch: int) -> None:
    """Add or replace files of an ESP: the file system is written anew, with the same id and the other files.

    Raises fat.FatError.
    """
    volume = fatread.open_volume(fd, part.offset, part.size)
    contents = fatread.read_files(fd, part.offset, part.size)
    write(fd, part, {**contents, **added}, volume.volume_id, epoch)
    os.fsync(fd)


def inject_preseed(disk: Path, text: str, epoch: int) -> None:
    """Put first-boot settings on the ESP of an image file that nobody uses. The text was checked before.

    Raises ImageError.
    """
    content = text.encode()
    if len(content) > MAX_PRESEED:
        raise ImageError(f"the preseed has {len(content)} bytes, more than {MAX_PRESEED}", reason="preseed-too-large")
    with opened(disk, os.O_RDWR) as fd, image_errors(disk):
        rewrite(fd, gpt.read(fd).find(NAME), {PRESEED: content}, epoch)
