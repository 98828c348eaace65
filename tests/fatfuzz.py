"""Damaged FAT32 file systems, read and edited: nothing but FatError, and no file that could be read loses a byte.

`python -m tests.fatfuzz COUNT [SEED]` makes that many; the unit tests make a few. A failure names its seed.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import tempfile
from collections.abc import Callable

from common.disk import fat, fatread
from common.disk.fatedit import Editor

SIZE = 129 << 20
EPOCH = 1703030400
FOLDER = "EFI/Linux/"
FILES = {
    "EFI/BOOT/BOOTX64.EFI": b"loader" * 1000,
    FOLDER + "mixos_0.1.0+3.efi": b"kernel" * 2000,
    FOLDER + "mixos_0.1.1+2-1.efi": b"k" * 9000,
    "loader/loader.conf": b"timeout 0\n",
    "empty": b"",
}
_VALUES = (0, 1, 2, 3, 5, 9, 0xE5, 0xFF, 0x0FFFFFF6, 0x0FFFFFF7, 0x0FFFFFF8, 0x0FFFFFFF, 0x10000000, 0xFFFFFFFF)


class Fuzz:
    """One sound file system, which is damaged again and again."""

    def __init__(self) -> None:
        self.fd = os.open(tempfile.gettempdir(), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC)
        os.truncate(self.fd, SIZE)
        fat.write(self.fd, 0, SIZE, FILES, volume_id=1, label="MIXOS-ESP", epoch=EPOCH)
        volume = fatread.open_volume(self.fd, 0, SIZE)
        editor = Editor(self.fd, 0, SIZE)
        for number in range(12):  # some gaps and chains in pieces
            editor.add(f"{FOLDER}{number}{'long' * number}.efi", [bytes([number]) * 5000], 5000, epoch=EPOCH)
        for number in range(0, 12, 3):
            editor.remove(f"{FOLDER}{number}{'long' * number}.efi")
        editor.add(f"{FOLDER}pieces", [b"p" * 20_000], 20_000, epoch=EPOCH)
        folders = [volume.place(cluster) for folder in fatread.folders(volume) for cluster in folder.clusters]
        self._regions = [(0, 90), (fat.SECTOR, fat.SECTOR), *((table, 512) for table in volume.fats)]
        self._regions += [(at, volume.cluster) for at in folders]
        self._sound = os.pread(self.fd, volume.place(200), 0)

    def once(self, seed: int) -> str:
        """Damage it by that seed, read and edit it; gives the reason of the refusal, or "edited"."""
        chance = random.Random(seed)
        os.truncate(self.fd, 0)
        os.truncate(self.fd, SIZE)
        os.pwrite(self.fd, self._sound, 0)
        for _ in range(chance.choice([1, 1, 2, 4, 16])):
            self._damage(chance)
        try:
            fatread.read_files(self.fd, 0, SIZE)
        except fat.FatError as error:
            if chance.random() < 0.5:
                return error.reason
        try:
            editor = Editor(self.fd, 0, SIZE)
            paths = sorted(editor.files())
        except fat.FatError as error:
            return error.reason
        before = self._contents()
        path = chance.choice(paths) if paths else "none"
        steps: list[tuple[Callable[[], object], str]] = [
            (lambda: editor.add(FOLDER + "new name.efi", [b"n" * 7000], 7000, epoch=EPOCH), FOLDER + "new name.efi"),
            (lambda: editor.rename(path, "another name.efi"), path),
            (lambda: editor.replace(path, [b"r" * 3000], 3000, epoch=EPOCH), path),
            (lambda: editor.remove(path), path),
            (editor.clean, ""),
        ]
        step, touched = chance.choice(steps)
        try:
            step()
        except fat.FatError as error:
            touched, result = "", error.reason
        else:
            result = "edited"
        after = self._contents()
        for other in before:
            assert other == touched or after.get(other) == before[other], f"seed {seed}: {other!r} has changed"
        return result

    def _damage(self, chance: random.Random) -> None:
        start, size = chance.choice(self._regions)
        at = start + chance.randrange(size)
        kind = chance.randrange(5)
        if kind == 0:
            data = chance.randbytes(chance.randint(1, 16))
        elif kind == 1:
            data = struct.pack("<I", chance.choice(_VALUES) ^ chance.choice([0, 0, 1 << chance.randrange(32)]))
            at -= at % 4
        elif kind == 2:  # one bit
            data = bytes([os.pread(self.fd, 1, at)[0] ^ 1 << chance.randrange(8)])
        elif kind == 3:  # one slot over another, or one entry of the table
            unit = chance.choice([4, 32])
            start, size = chance.choice(self._regions)
            data = os.pread(self.fd, unit, start + chance.randrange(size) // unit * unit)
            at -= at % unit
        else:
            data = bytes([chance.choice([0x00, 0xE5, 0xFF])]) * chance.choice([1, 32, 512])
        os.pwrite(self.fd, data, at)

    def _contents(self) -> dict[str, bytes]:
        """The files that can be read and share no cluster with a folder (which an edit changes)."""
        volume = fatread.open_volume(self.fd, 0, SIZE)
        folders = {cluster for folder in fatread.folders(volume) for cluster in folder.clusters}
        found: dict[str, bytes] = {}
        for path, entry in fatread.files(volume):
            count = -(-entry.size // volume.cluster)
            try:
                if folders.isdisjoint(fatread.follow(volume, entry.first, count) if count else []):
                    found[path] = fatread.read(volume, entry)
            except fat.FatError:
                continue
        return found


def main() -> None:
    """Damage as often as the command line says."""
    fuzz, count = Fuzz(), int(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    results: dict[str, int] = {}
    for seed in range(first, first + count):
        result = fuzz.once(seed)
        results[result] = results.get(result, 0) + 1
    sys.stdout.write(f"{results}\n")


if __name__ == "__main__":
    main()
