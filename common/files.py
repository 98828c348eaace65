"""Files that survive a power cut whole: written beside, made durable, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`: afterwards, or after a crash at any moment, it has the old content or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    write_durably(temporary, data, mode)
    temporary.rename(path)
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes, mode: int) -> None:
    """Create or truncate `path`, write everything, fsync. The mode is set whatever the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
