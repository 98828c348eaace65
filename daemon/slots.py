"""The boot disk's only writer while the system runs: gives entries of the loader other counters, and says in the
partition table that the data are to be erased.

mixosd may write no disk (its AppArmor profile); it may start this program, which has a profile of its own and does
nothing else than what is said here, whatever it is told: it finds the disk itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.efi.entries import FOLDER, GOOD, read_name
from common.errors import DiskError, FormatError, MixosError
from common.streams import open_missing
from daemon.parts.update.boot import Disk

if TYPE_CHECKING:
    from daemon.erase import How

USAGE = """usage: mixos-slots count OLD NEW
       mixos-slots reset erase|overwrite|cancel
"""


def main(argv: Sequence[str], root: Path = Path("/")) -> int:
    """`mixos-slots count OLD NEW`: give the entry OLD the counter that NEW has. `mixos-slots reset
    erase|overwrite|cancel`: have the next boot make the data partition anew, or not. Returns the exit code."""
    open_missing()
    try:
        match argv:
            case ["count", old, new]:
                count(Disk.find(root), old, new)
            case ["reset", ("erase" | "overwrite" | "cancel") as how]:
                reset(Disk.find(root), None if how == "cancel" else how)
            case _:
                sys.stderr.write(USAGE)
                return 2
    except MixosError as error:
        sys.stderr.write(f"mixos-slots: {error.message}\n")
        return error.exit_code
    return 0


def reset(disk: Disk, how: How | None) -> None:
    """Say in the partition table that the data partition is to be made anew, or (None) not. Raises DiskError."""
    from daemon import erase  # seldom, and it starts programs

    try:
        descriptor = os.open(disk.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            erase.want(descriptor, how)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DiskError(f"{disk.path}: {error.strerror}", reason="disk-unwritable") from error
    except FormatError as error:
        raise DiskError(f"{disk.path}: {error}", reason="disk-table") from error


def count(disk: Disk, old: str, new: str) -> None:
    """Rename an entry. Raises DiskError, `slots-name` for anything but another counter."""
    before, after = read_name(old), read_name(new)
    counted = before is not None and after is not None and before.stem == after.stem and after.left is not None
    if not counted or os.path.basename(old) != old or after is None or (after.left or 0) + after.done > GOOD:
        raise DiskError(f"{old!r:.80} does not become {new!r:.80}: only a counter changes", reason="slots-name")
    with disk.esp().changing() as esp:
        esp.rename(f"{FOLDER}/{old}", new)
