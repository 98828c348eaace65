"""Packing a composed root into the read-only file system image of a slot.

The build sandbox has one uid, so ownership, modes and extended attributes come from the root manifest. Squashfs is
written by our own writer (`rootfs.squashfs_write`), EROFS by erofs-utils: there the image is all-root, and a tree that
needs more is refused.

What was made is read back, by another program's decompressor, and compared with the manifest.

Same bytes for same input: entries in order, every time stamp is the epoch, no host data in the superblock, and threads
(`jobs`) do not matter.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from buildsys.job import Job
from buildsys.run import find_tool, run
from common.errors import CheckError
from packages.mix.manifest import Entry, hash_file
from rootfs.compose import RootFile, read_root
from rootfs.squashfs import read_squashfs
from rootfs.squashfs_write import write_squashfs

BLOCK = 128 << 10  # bytes; larger blocks gain 2 % of size and double the cost of small reads
ZSTD_LEVEL = 10  # 2 s for the whole root; 15 takes 14 s and saves 5 % (a release passes `level`)
EROFS_CLUSTER = 64 << 10
_SHOWN = 10  # differences that are told

Maker = Callable[[Job, Sequence[RootFile], Path], None]
Reader = Callable[[Path, Path], dict[str, Entry]]


def squash(job: Job) -> None:
    """Action: input `root` (output of `compose`) → `root.<filesystem>`, an image padded to 4 KiB.

    Parameters: `filesystem` "squashfs" (default; zstd) or "erofs" (lz4hc), optional `level` (zstd, 1 to 22) and `limit`
    (bytes the image may have; CheckError `image-too-big`). The image is for dm-verity with 4 KiB blocks. CheckError
    `image-differs`: the program that made it wrote something else than the manifest says.
    """
    files = read_root(job.inputs["root"])
    kind = job.params.get("filesystem", "squashfs")
    makers: dict[str, tuple[Maker, Reader]] = {"squashfs": (_squashfs, read_squashfs), "erofs": (_erofs, _read_erofs)}
    if kind not in makers:
        raise CheckError(f"no such root file system: {kind}", reason="filesystem-unknown", hint="squashfs or erofs")
    image = job.out / f"root.{kind}"
    make, read = makers[kind]
    make(job, files, image)
    compare(files, read(image, job.work))
    limit = job.params.get("limit")
    if limit is not None and image.stat().st_size > limit:
        raise CheckError(
            f"the root file system has {image.stat().st_size} bytes, allowed are {limit}",
            reason="image-too-big",
            hint="the size report names the largest packages",
        )


def compare(files: Sequence[RootFile], found: Mapping[str, Entry]) -> None:
    """Raise CheckError `image-differs` unless an image holds exactly `files`, in a root folder that is root's, 0755."""
    wanted = {"": Entry("", "dir", 0o755), **{file.entry.path: file.entry for file in files}}
    wrong = [path for path in sorted({*wanted, *found}) if wanted.get(path) != found.get(path)]
    if wrong:
        lines = [f"  /{path}: {_said(found.get(path))}, not {_said(wanted.get(path))}" for path in wrong[:_SHOWN]]
        raise CheckError(
            f"the image differs from its manifest in {len(wrong)} paths\n" + "\n".join(lines),
            reason="image-differs",
            hint="what makes it is at fault: for EROFS another version of erofs-utils may help",
        )


def _said(entry: Entry | None) -> str:
    return "absent" if entry is None else json.dumps({**entry.as_json(), "path": None}, ensure_ascii=False)


def _squashfs(job: Job, files: Sequence[RootFile], image: Path) -> None:
    level = int(job.params.get("level", ZSTD_LEVEL))
    write_squashfs(files, image, epoch=job.epoch, block=BLOCK, level=level, jobs=job.jobs)


def _erofs(job: Job, files: Sequence[RootFile], image: Path) -> None:
    special = [file.entry.path for file in files if file.entry.uid or file.entry.gid or file.entry.xattrs]
    if special:
        raise CheckError(
            f"erofs images are all-root here, but /{special[0]} has an owner or attributes of its own",
            reason="erofs-ownership",
            hint="use the squashfs file system",
        )
    tree = job.work / "tree"
    _mode_tree(files, tree)
    identity = uuid.UUID(bytes=hashlib.sha256(str(job.params.get("seed", "")).encode()).digest()[:16], version=4)
    options = ["-zlz4hc,12", f"-C{EROFS_CLUSTER}", f"-T{job.epoch}", f"-U{identity}", "--all-root", "-x-1"]
    run([find_tool("mkfs.erofs"), "--quiet", *options, image, tree])


def _read_erofs(image: Path, work: Path) -> dict[str, Entry]:
    """Path → what the image says of it, as its own checker unpacks it (owners too when we are root, as in the sandbox:
    it unpacks nothing that it cannot give away)."""
    tree = work / "unpacked"
    run([find_tool("fsck.erofs"), f"--extract={tree}", "--preserve-perms", image])
    entries = [_entry(path, tree) for path in (tree, *tree.rglob("*"))]
    return {entry.path: entry for entry in entries}


def _entry(path: Path, tree: Path) -> Entry:
    info = path.lstat()
    name = "" if path == tree else str(path.relative_to(tree))
    mode = stat.S_IMODE(info.st_mode)
    uid = 0 if info.st_uid == os.geteuid() else info.st_uid
    gid = 0 if info.st_gid == os.getegid() else info.st_gid
    if stat.S_ISLNK(info.st_mode):
        return Entry(name, "symlink", mode, uid, gid, target=os.fspath(path.readlink()))
    if stat.S_ISDIR(info.st_mode):
        return Entry(name, "dir", mode, uid, gid)
    return Entry(name, "file", mode, uid, gid, size=info.st_size, sha256=hash_file(path))


def _mode_tree(files: Sequence[RootFile], tree: Path) -> None:
    """A tree of hard links or copies with the real modes; mkfs.erofs takes them from the files."""
    tree.mkdir(mode=0o755)
    for file in files:
        target = tree / file.entry.path
        if file.entry.type == "dir":
            target.mkdir()
        elif file.entry.type == "symlink":
            target.symlink_to(file.entry.target)
            continue
        else:
            target.write_bytes(file.source.read_bytes())
        target.chmod(file.entry.mode)
