"""Writing an initramfs: a cpio archive as the kernel unpacks it.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
Entries in the given order, all with one time stamp, numbered from 1: the same files give the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

from common.errors import CheckError
from rootfs.compose import RootFile

_TYPES = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}
_MAGIC, _END = b"070701", "TRAILER!!!"


def write_cpio(files: Iterable[RootFile], epoch: int) -> Iterator[bytes]:
    """The archive in pieces. Raises CheckError `cpio-attributes` for a file with extended attributes: it has no place
    for them."""
    number = 0
    for number, file in enumerate(files, 1):
        entry = file.entry
        if entry.xattrs:
            raise CheckError(f"/{entry.path} has extended attributes, and an initramfs none", reason="cpio-attributes")
        data = entry.target.encode() if entry.type == "symlink" else b""
        if entry.type == "file":
            data = file.source.read_bytes()
        mode = _TYPES[entry.type] | entry.mode
        yield _header(entry.path, number, mode, entry.uid, entry.gid, epoch, len(data))
        yield data + bytes(-len(data) % 4)
    yield _header(_END, number + 1, 0, 0, 0, 0, 0)


def _header(name: str, number: int, mode: int, uid: int, gid: int, time: int, size: int) -> bytes:
    raw = name.encode() + b"\0"
    fields = (number, mode, uid, gid, 1, time, size, 0, 0, 0, 0, len(raw), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + raw
    return head + bytes(-len(head) % 4)
