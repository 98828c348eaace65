"""What takes the space of the data partition: a walk over its files, bounded in time and number.

Blocks are counted as `du` counts them, a file with several names once. Whose a file is, is decided by where it is:
/var/lib/NAME belongs to a unit, /var/log to the logs, and so on; paths are those of the upper layers of the overlays.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.linux import tree

if TYPE_CHECKING:
    from daemon.parts.storage.answers import Breakdown

SECONDS = 5.0
MAX_NAMES = 500_000
_BLOCK = 512  # bytes: the unit of st_blocks, stat(2)
_TOP = 20


@dataclass
class _Walk:
    device: int
    until: float
    names: int = 0
    complete: bool = True
    seen: set[int] = field(default_factory=set)

    def size(self, top: Path) -> int:
        """Bytes that a tree takes on the device."""
        total = 0
        try:
            with contextlib.closing(tree.walk(top, MAX_NAMES)) as found:
                for one in found:
                    self.names += one.path != ""
                    self.complete &= one.entered or one.facts.st_dev != self.device
                    if self.names > MAX_NAMES or time.monotonic() > self.until:
                        raise tree.TooManyError
                    total += self._blocks(one.facts)
        except OSError:
            pass  # not a folder, or gone: other processes go on living
        except tree.TooManyError:
            self.complete = False
        return total

    def _blocks(self, facts: os.stat_result) -> int:
        if stat.S_ISDIR(facts.st_mode):
            return facts.st_blocks * _BLOCK if facts.st_dev == self.device else 0
        if facts.st_nlink > 1:
            if facts.st_ino in self.seen:
                return 0
            self.seen.add(facts.st_ino)
        return facts.st_blocks * _BLOCK


def breakdown(data: Path, lib: Path, log: Path, seconds: float = SECONDS) -> Breakdown:
    """Bytes by owner. data: the partition; lib, log: where /var/lib and /var/log are on it.

    units: what is below /var/lib, the largest first, without the daemon's own; complete: false when time was up, all
    figures then being too small.
    """
    walk = _Walk(os.stat(data).st_dev, time.monotonic() + seconds)
    rows: dict[str, int] = {}
    daemon = 0
    for folder in _children(lib):
        size = walk.size(folder)
        if folder.name == "mixos":
            daemon = size
        else:
            rows[folder.name] = size
    logs = walk.size(log) if log.is_dir() else 0
    packages = sum(walk.size(data / name) for name in ("packages", "mix") if (data / name).is_dir())
    space = os.statvfs(data)
    used = (space.f_blocks - space.f_bfree) * space.f_frsize
    known = sum(rows.values()) + daemon + logs + packages
    top = sorted(rows.items(), key=lambda row: (-row[1], row[0]))
    return {
        "units": [{"name": name, "bytes": size} for name, size in top[:_TOP]],
        "units-total": sum(rows.values()),
        "daemon": daemon,
        "logs": logs,
        "packages": packages,
        "other": max(0, used - known),
        "used": used,
        "complete": walk.complete,
        "age": 0.0,
    }


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir() and not one.is_symlink())
    except OSError:
        return []
