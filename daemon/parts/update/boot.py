"""What was booted, and what the loader starts next: read from the disk each time, never from a record of our own.

A slot is known by the GPT name of what backs the root, and what is in it by its identities, which are the root hash
(`common.disk.verity.partition_ids`). A slot that holds nothing has others. An entry of the loader belongs to the slot
that has the root hash of its command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from common.disk import gpt
from common.disk.fatedit import Editor
from common.efi import uki
from common.efi.entries import FOLDER, Entry, in_order, read_name
from common.errors import DiskError, FormatError
from daemon.linux.facts import ROOT, text
from daemon.parts.update.esp import Esp

SLOTS = ("a", "b")
_VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # of the loader's variables (Boot Loader Interface, UAPI group)
_DISK = re.compile(r"(?:^|\s)DISK=(\w+)")


@dataclass(frozen=True)
class Image:
    """An entry of the loader. slot: that holds its root; None: none does, so that it cannot boot."""

    entry: Entry
    root_hash: bytes | None
    kernel: str
    slot: str | None

    @property
    def digest(self) -> str:
        """The root hash in hex, by which the record knows an image; "" without one."""
        return (self.root_hash or b"").hex()

    @property
    def version(self) -> str:
        """As its `.osrel` says."""
        return self.entry.version


@dataclass(frozen=True)
class Boot:
    """slot, root_hash: that run; images: in the loader's order, by which it starts the first; running: the one that was
    started, None when no entry is it; pinned: the version that somebody told the loader to start all the same."""

    slot: str | None
    root_hash: bytes | None
    images: tuple[Image, ...]
    running: Image | None
    pinned: Image | None = None

    @property
    def next(self) -> Image | None:
        """What the loader starts next."""
        return self.pinned or next(iter(self.images), None)

    @property
    def other(self) -> Image | None:
        """What is in the other slot, and can be started."""
        return next((one for one in self.images if one.slot not in (None, self.slot)), None)


@dataclass(frozen=True)
class Disk:
    """The boot disk: its device and its table. All else is found within it: a second disk may have the same image."""

    path: Path
    table: gpt.Table

    @classmethod
    def find(cls, root: Path = ROOT) -> Disk:
        """The disk that init found behind the root. Raises DiskError."""
        return cls.at(cls.device(root))

    @staticmethod
    def device(root: Path = ROOT) -> Path:
        """Its device. Raises DiskError."""
        named = _DISK.search(text(root / "run/mixos/disk") or "")
        if named is None:
            raise DiskError("the disk that this system was started from is not known", reason="disk-unknown")
        return root / "dev" / named[1]

    @classmethod
    def at(cls, path: Path) -> Disk:
        """A disk, or an image of one. Raises DiskError."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return cls(path, gpt.read(descriptor))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DiskError(f"{path}: {error.strerror}", reason="disk-unreadable") from error
        except FormatError as error:
            raise DiskError(f"{path}: {error}", reason="disk-table") from error

    def partition(self, kind: str, slot: str) -> gpt.Partition:
        """kind: "root" or "verity". Raises GptError."""
        return self.table.find(f"mixos-{kind}-{slot}")

    def holds(self, slot: str) -> bytes:
        """The root hash that the identities of a slot are; of nothing in particular when it is empty."""
        return self.partition("root", slot).id.bytes + self.partition("verity", slot).id.bytes

    def esp(self, name: str = "mixos-esp") -> Esp:
        """An EFI system partition of it: by its own device, whose cache is not the disk's. Raises GptError."""
        found = self.table.find(name)
        device = node(self.path, found.index)
        return Esp(self.path, found.offset, found.size) if device is None else Esp(device, 0, found.size)

    def images(self) -> tuple[Image, ...]:
        """The entries of the loader, in its order. Raises DiskError."""
        held = {self.holds(slot): slot for slot in SLOTS}
        prefix = f"{FOLDER}/"
        with self.esp().reading() as esp:
            found = [
                image
                for path, size in esp.files().items()
                if path.startswith(prefix) and (image := _image(esp, path.removeprefix(prefix), size, held)) is not None
            ]
        by_entry = {image.entry: image for image in found}
        return tuple(by_entry[entry] for entry in in_order(by_entry))


def node(disk: Path, number: int) -> Path | None:
    """The device of a partition; None when `disk` is a file."""
    for found in (ROOT / "sys/class/block" / disk.name).glob(f"{disk.name}*/partition"):
        if text(found) == str(number) and disk.is_block_device():
            return disk.with_name(found.parent.name)
    return None


def _image(esp: Editor, name: str, size: int, held: dict[bytes, str]) -> Image | None:
    entry = read_name(name)
    if entry is None:
        return None
    try:
        head = uki.read_head(esp.read(f"{FOLDER}/{name}", 0, min(size, uki.HEAD)), size)
    except FormatError:
        return None  # the loader shows no file that is no image
    entry = replace(entry, sort_key=head.identity("IMAGE_ID"), version=head.identity("IMAGE_VERSION"))
    return Image(entry, head.root_hash, head.uname[: uki.MAX_VALUE], held.get(head.root_hash or b""))


def look(disk: Disk, slot: str | None, root: Path = ROOT) -> Boot:
    """slot: that runs, as `daemon.linux.facts.slot` finds it. Raises DiskError."""
    root_hash = uki.root_hash(text(root / "proc/cmdline") or "")
    images = disk.images()
    running = _running(images, root_hash, variable("LoaderBootCountPath", root))
    return Boot(slot, root_hash, images, running, _pinned(images, variable("LoaderEntryDefault", root)))


def _running(images: Sequence[Image], root_hash: bytes | None, counted: str | None) -> Image | None:
    """Of several names of one image, the one that the loader has counted."""
    found = [one for one in images if root_hash is not None and one.root_hash == root_hash]
    named = (counted or "").rpartition("\\")[2].lower()
    return next((one for one in found if one.entry.name.lower() == named), found[0] if found else None)


def _pinned(images: Sequence[Image], wanted: str | None) -> Image | None:
    """The version that a person at the loader's menu made the one to be started, by a pattern for names that comes
    before the order (systemd 262, src/boot/boot.c). With another counter it has another name, and is that no more."""
    versions = [one for one in images if one.root_hash is not None]
    return next((one for one in versions if wanted and fnmatchcase(one.entry.name.lower(), wanted.lower())), None)


def variable(name: str, root: Path = ROOT) -> str | None:
    """A text that the loader has left in a variable of the firmware; None without one."""
    try:
        data = (root / f"sys/firmware/efi/efivars/{name}-{_VENDOR}").read_bytes()
    except OSError:
        return None
    return data[4:].decode("utf-16-le", "replace").rstrip("\0")  # behind four bytes of attributes
