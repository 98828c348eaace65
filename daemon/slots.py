"""The boot disk's only writer while the system runs: gives entries of the loader other counters.

mixosd may write no disk (its AppArmor profile); it may start this program, which has a profile of its own and does
nothing else than what is said here, whatever it is told: it finds the disk itself, and changes a counter only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.efi.entries import FOLDER, GOOD, read_name
from common.errors import DiskError, MixosError
from common.streams import open_missing
from daemon.parts.update.boot import Disk

USAGE = "usage: mixos-slots count OLD NEW\n"


def main(argv: Sequence[str], root: Path = Path("/")) -> int:
    """`mixos-slots count OLD NEW`: give the entry OLD the counter that NEW has; returns the exit code."""
    open_missing()
    if len(argv) != 3 or argv[0] != "count":
        sys.stderr.write(USAGE)
        return 2
    try:
        count(Disk.find(root), argv[1], argv[2])
    except MixosError as error:
        sys.stderr.write(f"mixos-slots: {error.message}\n")
        return error.exit_code
    return 0


def count(disk: Disk, old: str, new: str) -> None:
    """Rename an entry. Raises DiskError, `slots-name` for anything but another counter."""
    before, after = read_name(old), read_name(new)
    counted = before is not None and after is not None and before.stem == after.stem and after.left is not None
    if not counted or os.path.basename(old) != old or after is None or (after.left or 0) + after.done > GOOD:
        raise DiskError(f"{old!r:.80} does not become {new!r:.80}: only a counter changes", reason="slots-name")
    with disk.esp().changing() as esp:
        esp.rename(f"{FOLDER}/{old}", new)
