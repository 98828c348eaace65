"""Where a backup that a client sends in pieces is put together again: the daemon's own, bounded, one at a time.

Nothing is believed of it: `restore` reads it like any file. What nobody restores is removed at the next upload, the
next start, or after an hour.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from io import FileIO
from pathlib import Path

from common.errors import NotFoundError, RefusedError
from daemon.parts.backup.archive import MAX_TOTAL

MAX_BYTES = MAX_TOTAL + (64 << 20)  # what does not shrink grows a little
_RESERVE = 32 << 20  # bytes that an upload leaves free
_SECONDS = 3600.0


class Spool:
    """Files named by 32 random hex digits, each belonging to a user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, uid: int) -> str:
        """A new, empty upload; an earlier one is forgotten."""
        self.clear()
        self.folder.mkdir(mode=0o700, parents=True)
        name = f"{uid}-{secrets.token_hex(16)}"
        self._open(name, os.O_CREAT | os.O_EXCL).close()
        return name

    def append(self, uid: int, name: str, offset: int, data: bytes) -> int:
        """Add a piece; the size afterwards. A piece that is there already is taken for a repetition.

        Raises NotFoundError `backup-upload`, RefusedError `backup-upload-gap`, `backup-too-big`, `backup-no-space`.
        """
        path = self.path(uid, name)
        size = path.stat().st_size
        if offset > size:
            raise RefusedError(f"{size} bytes are there, the piece begins at {offset}", reason="backup-upload-gap")
        if offset + len(data) > MAX_BYTES:
            raise RefusedError(f"a backup has at most {MAX_BYTES >> 20} MiB", reason="backup-too-big")
        space = os.statvfs(self.folder)
        if space.f_bavail * space.f_frsize < len(data) + _RESERVE:
            raise RefusedError("there is not enough free space for the upload", reason="backup-no-space")
        with self._open(name) as stream:
            stream.seek(offset)
            stream.write(data)
        return max(size, offset + len(data))

    def path(self, uid: int, name: str) -> Path:
        """The file of an upload. Raises NotFoundError `backup-upload` for none, or one of somebody else."""
        path = self.folder / Path(name).name
        if not name.startswith(f"{uid}-") or path.name != name or not path.is_file():
            raise NotFoundError("there is no such upload", reason="backup-upload", hint="begin again")
        if time.time() - path.stat().st_mtime > _SECONDS:
            self.clear()
            raise NotFoundError("the upload is too old", reason="backup-upload", hint="begin again")
        return path

    def clear(self) -> None:
        """Forget whatever is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self, name: str, more: int = 0) -> FileIO:
        return FileIO(os.open(self.folder / name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | more, 0o600), "wb")
