"""A device's disk with two slots, and a loader that starts what is on it, as systemd-boot does. No machine is booted.

device = Device(tmp_path)          # 1.0 in slot a
device.install("1.1", "b")
device.boot()                      # 1.1 is on trial now; device.tree is what a part reads from
"""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path

from common.disk import gpt, verity
from common.disk.fatedit import Editor
from common.efi import uki
from common.efi.entries import FOLDER, RESCUE, RESCUE_SORT_KEY, Entry, image_name
from daemon.parts.update.boot import SLOTS, Disk, Image
from image import layout
from tests.images import SMALL, STUB, Bench, kernel

EFIVARS = "sys/firmware/efi/efivars"
COUNTED = "LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def root_image(version: str) -> bytes:
    """What a slot holds."""
    return f"root of {version}".encode().ljust(4096, b".") * 8


class Device:
    """See the module. tree: /proc, /sys, /run and /dev as far as the part `update` reads them; boot_files: rescue entry
    and loader of its image."""

    def __init__(
        self,
        base: Path,
        version: str = "1.0",
        root: bytes | None = None,
        boot_files: tuple[bytes, bytes] | None = None,
    ) -> None:
        bench = Bench(base / "made", root or root_image(version), version=version, layout=SMALL)
        if boot_files is not None:
            bench.boot_files(*boot_files)
        for name in ("verity", "uki", "disk"):
            bench.run(name)
        self.tree = base / "tree"
        self.path = self.tree / "dev" / "vda"
        for folder in ("dev", "run/mixos", "proc/sys/kernel/random", EFIVARS, "sys/fs/pstore", "proc/net"):
            (self.tree / folder).mkdir(parents=True)
        (bench.inputs["disk"] / f"mixos-{version}-x86_64.img").rename(self.path)
        (self.tree / "run/mixos/disk").write_text("STATE=/data/mixos DATA=/dev/vda6 DISK=vda\n")
        self.running: Entry | None = None
        self.root_hash = bytes.fromhex((bench.inputs["disk"] / "root-hash").read_text())  # of the first version

    def editor(self, descriptor: int) -> Editor:
        """The ESP."""
        esp = gpt.read(descriptor).find("mixos-esp")
        return Editor(descriptor, esp.offset, esp.size)

    def install(self, version: str, slot: str, entry: Entry | None = None, root: bytes | None = None) -> bytes:
        """Put another version into a slot; gives its root hash."""
        root = root or root_image(version)
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            table = gpt.read(descriptor)
            place, hashes = table.find(f"mixos-root-{slot}"), table.find(f"mixos-verity-{slot}")
            os.pwrite(descriptor, root, place.offset)
            tree = verity.build(descriptor, len(root), layout.derive("abc", "salt"), place.offset)
            os.pwrite(descriptor, tree.hashes, hashes.offset)
            first, last = verity.partition_ids(tree.root)
            gpt.write(descriptor, table.replaced(replace(place, id=first)).replaced(replace(hashes, id=last)))
            line = f'root=/dev/dm-0 dm-mod.create="{verity.dm_create(tree)}" panic=10'
            identity = f'ID=mixos\nIMAGE_ID=mixos\nIMAGE_VERSION="{version}"\n'
            data = uki.build(STUB, kernel(), line, identity, "6.6.8-mixos")
            name = (entry or Entry(image_name(tree.root), 3)).name
            self.editor(descriptor).add(f"{FOLDER}/{name}", [data], len(data), epoch=0)
        finally:
            os.close(descriptor)
        return tree.root

    def rescue(self) -> None:
        """Put the rescue entry beside the versions."""
        identity = f'ID=mixos\nIMAGE_ID={RESCUE_SORT_KEY}\nIMAGE_VERSION="1.0"\n'
        data = uki.build(STUB, kernel(), "panic=10 mixos.rescue=menu", identity, "6.6.8-mixos", b"files")
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            self.editor(descriptor).add(f"{FOLDER}/{RESCUE}", [data], len(data), epoch=0)
        finally:
            os.close(descriptor)

    def boot_rescue(self) -> None:
        """What is seen from the rescue entry."""
        assert self.next().entry.name.upper() == RESCUE
        (self.tree / EFIVARS / COUNTED).unlink(missing_ok=True)
        (self.tree / "run/mixos/slot").unlink(missing_ok=True)
        (self.tree / "proc/cmdline").write_text("panic=10 mixos.rescue=menu\n")

    def next(self) -> Image:
        """What the loader starts next."""
        return Disk.at(self.path).images()[0]

    def names(self) -> list[str]:
        """The files of the loader's entries."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            files = self.editor(descriptor).files()
        finally:
            os.close(descriptor)
        return sorted(path.removeprefix(f"{FOLDER}/") for path in files if path.startswith(f"{FOLDER}/"))

    def starts(self) -> dict[str, tuple[int | None, int]]:
        """Version → starts that are left, and that were made; the rescue entry does not count."""
        images = [image for image in Disk.at(self.path).images() if image.root_hash is not None]
        return {image.version: (image.entry.left, image.entry.done) for image in images}

    def boot(self) -> str:
        """Start what the loader starts: count it down, tell what it was; gives the version."""
        image = Disk.at(self.path).images()[0]
        entry = image.entry
        if entry.left:
            counted = replace(entry, left=entry.left - 1, done=entry.done + 1)
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                self.editor(descriptor).rename(f"{FOLDER}/{entry.name}", counted.name)
            finally:
                os.close(descriptor)
            entry = counted
        self.running = entry
        place = f"\\EFI\\Linux\\{entry.name}\0".encode("utf-16-le")
        (self.tree / EFIVARS / COUNTED).write_bytes(b"\6\0\0\0" + place)
        assert image.root_hash is not None
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            head = uki.read_uki(self.editor(descriptor).read(f"{FOLDER}/{entry.name}"))
        finally:
            os.close(descriptor)
        (self.tree / "proc/cmdline").write_text(f"{head.cmdline}\n")
        (self.tree / "proc/sys/kernel/random/boot_id").write_text(f"{uuid.uuid4()}\n")
        (self.tree / "proc/uptime").write_text("30.00 40.00\n")
        (self.tree / "run/mixos/slot").write_text(f"{image.slot}\n")
        assert image.slot in SLOTS
        return image.version
