"""Other versions of the image under test, put into a slot of a disk: its root with a block more, hence another hash."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common.disk import gpt, verity
from common.disk.fatedit import Editor
from common.efi import pe, uki
from common.efi.entries import FOLDER, RESCUE, Entry, image_name, read_name
from image.host import opened
from image.layout import derive

Change = Callable[[str], str]


def editor(descriptor: int) -> Editor:
    """The ESP of an open disk."""
    esp = gpt.read(descriptor).find("mixos-esp")
    return Editor(descriptor, esp.offset, esp.size)


def entries(disk: Path) -> list[str]:
    """The names of the versions' entries."""
    with opened(disk) as descriptor:
        found = [path.removeprefix(f"{FOLDER}/") for path in editor(descriptor).files() if path.startswith(FOLDER)]
    return sorted(name for name in found if name != RESCUE)


def left(disk: Path, name: str, starts: int) -> None:
    """Give an entry so many starts of three."""
    with opened(disk, os.O_RDWR) as descriptor:
        found = read_name(name)
        assert found is not None
        editor(descriptor).rename(f"{FOLDER}/{name}", Entry(found.stem, starts, 3 - starts).name)


def install(disk: Path, version: str, slot: str = "b", change: Change = lambda line: line) -> str:
    """Put a version into a slot, in the place of what is there; gives the name of its entry. change: of its kernel
    command line."""
    with opened(disk, os.O_RDWR) as descriptor:
        table, esp = gpt.read(descriptor), editor(descriptor)
        before = table.find(f"mixos-root-{slot}").id, table.find(f"mixos-verity-{slot}").id
        for path in [path for path in esp.files() if path.startswith(f"{FOLDER}/") and not path.endswith(RESCUE)]:
            root = uki.read_uki(esp.read(path)).root_hash
            if root is not None and verity.partition_ids(root) == before:
                esp.remove(path)
        (name,) = [path for path in esp.files() if path.startswith(f"{FOLDER}/") and not path.endswith(RESCUE)]
        image = esp.read(name)
        found = uki.read_uki(image)
        old, place = table.find("mixos-root-a"), table.find(f"mixos-root-{slot}")
        blocks = int(found.cmdline.partition(" 4096 4096 ")[2].split()[0])
        size = blocks * verity.BLOCK
        for at in range(0, size, 1 << 20):
            os.pwrite(descriptor, os.pread(descriptor, min(1 << 20, size - at), old.offset + at), place.offset + at)
        os.pwrite(descriptor, version.encode().ljust(verity.BLOCK, b"\0"), place.offset + size)
        tree = verity.build(descriptor, size + verity.BLOCK, derive(version, "salt"), place.offset)
        hashes = table.find(f"mixos-verity-{slot}")
        os.pwrite(descriptor, tree.hashes, hashes.offset)
        first, last = verity.partition_ids(tree.root)
        gpt.write(descriptor, table.replaced(replace(place, id=first)).replaced(replace(hashes, id=last)))
        before, _, rest = found.cmdline.partition('dm-mod.create="')
        line = change(f'{before}dm-mod.create="{verity.dm_create(tree)}"{rest.partition(chr(34))[2]}')
        identity = found.os_release.replace(found.identity("IMAGE_VERSION"), version)
        data = rewritten(image, {".cmdline": line, ".osrel": identity})
        entry = Entry(image_name(tree.root), 3).name
        esp.add(f"{FOLDER}/{entry}", [data], len(data), epoch=0)
    return entry


def rewritten(image: bytes, texts: dict[str, str]) -> bytes:
    """A unified kernel image with other texts in sections that have room for them."""
    out = bytearray(image)
    headers = pe.parse(image)
    for number, section in enumerate(headers.sections):
        if section.name in texts:
            content = texts[section.name].encode()
            assert len(content) <= section.stored, section
            out[section.offset : section.offset + section.stored] = content.ljust(section.stored, b"\0")
            struct.pack_into("<I", out, headers.table + number * 40 + 8, len(content))
    return bytes(out)
