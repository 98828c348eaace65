"""What a migration sees of the device: files below /etc and of the daemon's state, and what would become of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from common.errors import RefusedError
from common.files import read_regular
from daemon.core.change.files import Trees
from daemon.core.release.ledger import File, Files

_FOREIGN: File = (b"", -1)  # what is no file of root's, where that must not matter
_SECRET = ("etc/shadow", "etc/shadow-")  # nobody but login programs reads them, and nothing of them is copied


class Tree:
    """Nothing is written before all migrations are through: what they wrote is in `changes`."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self.changes: dict[str, File | None] = {}

    def read(self, name: str) -> bytes | None:
        """The content of a file; None when there is none. Raises RefusedError, OSError."""
        found = self.file(name)
        return None if found is None else found[0]

    def write(self, name: str, data: bytes, mode: int | None = None) -> None:
        """mode: None: as it is, and of a new file 0600, below /etc 0644. Raises RefusedError, OSError."""
        old = self.file(name)
        if mode is None:
            mode = old[1] if old is not None else 0o644 if name.startswith("etc/") else 0o600
        self.put(name, (data, mode))

    def remove(self, name: str) -> None:
        """Have a file go; one that is not there is gone. Raises RefusedError, OSError."""
        if self.file(name) is not None:
            self.put(name, None)

    def names(self, folder: str) -> list[str]:
        """The files in a folder, as whole names. Raises RefusedError, OSError."""
        place = self._place(folder)
        there = {f"{folder}/{one.name}" for one in place.iterdir() if _regular(one)} if place.is_dir() else set()
        there |= {name for name in self.changes if name.rpartition("/")[0] == folder}
        return sorted(name for name in there if self.changes.get(name, ()) is not None and name not in _SECRET)

    def put(self, name: str, file: File | None) -> None:
        """Have a file be so, whatever is there. Raises RefusedError, OSError."""
        self.changes[name] = file
        if file == self.before(name, own=False):
            del self.changes[name]

    def file(self, name: str, *, own: bool = True) -> File | None:
        """Content and mode."""
        return self.changes[name] if name in self.changes else self.before(name, own=own)

    def before(self, name: str, *, own: bool = True) -> File | None:
        """As it is on the disk. Raises RefusedError `migration-owner` for what is not root's own (own: False: gives
        what no file is): one that is replaced becomes root's."""
        place = self._place(name)
        try:
            facts = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            if not own:
                return _FOREIGN
            raise RefusedError(f"{place} is no file of root's", reason="migration-owner")
        return read_regular(place), stat.S_IMODE(facts.st_mode)

    def _place(self, name: str) -> Path:
        if not f"{name}/".startswith(("etc/", "var/lib/mixos/")) or name in _SECRET:
            raise RefusedError(f"{name!r} is not for migrations", reason="migration-name")
        return self._trees.place(name)

    def files(self) -> Files:
        """What is to be written."""
        return dict(self.changes)


def _regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)
