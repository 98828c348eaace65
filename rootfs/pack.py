"""Packing a composed root into the read-only file system image of a slot.

The build sandbox has one uid, so ownership, modes and extended attributes come from the root manifest. For squashfs
they travel in a tar stream, which mksquashfs has read since 4.5 together with PAX `SCHILY.xattr.*` records (its
pseudo-file definitions know attributes only from 4.6 on). erofs-utils before 1.7 read neither: there the image is
all-root and a tree that needs more is refused.

Same bytes for same input: entries in manifest order, every time stamp is the epoch, no host data in the superblock.
mksquashfs writes blocks in input order whatever the number of its threads (since 4.4), so `jobs` does not matter.
"""

from __future__ import annotations

import hashlib
import tarfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from buildsys.job import Job
from buildsys.run import find_tool, run
from common.errors import CheckError
from rootfs.compose import RootFile, read_root

BLOCK = 128 << 10  # bytes; larger blocks gain 2 % of size and double the cost of small reads
ZSTD_LEVEL = 10  # 2 s for the whole root; 15 takes 14 s and saves 5 % (a release passes `level`)
EROFS_CLUSTER = 64 << 10


def squash(job: Job) -> None:
    """Action: input `root` (output of `compose`) → `root.<filesystem>`, an image padded to 4 KiB.

    Parameters: `filesystem` "squashfs" (default; zstd) or "erofs" (lz4hc), optional `level` (zstd, 1 to 22) and `limit`
    (bytes the image may have; CheckError `image-too-big`). The image is for dm-verity with 4 KiB blocks.
    """
    files = read_root(job.inputs["root"])
    kind = job.params.get("filesystem", "squashfs")
    makers: dict[str, Callable[[Job, Sequence[RootFile], Path], None]] = {
        "squashfs": _squashfs,
        "erofs": _erofs,
    }
    if kind not in makers:
        raise CheckError(f"no such root file system: {kind}", reason="filesystem-unknown", hint="squashfs or erofs")
    image = job.out / f"root.{kind}"
    makers[kind](job, files, image)
    limit = job.params.get("limit")
    if limit is not None and image.stat().st_size > limit:
        raise CheckError(
            f"the root file system has {image.stat().st_size} bytes, allowed are {limit}",
            reason="image-too-big",
            hint="the size report names the largest packages",
        )


def _squashfs(job: Job, files: Sequence[RootFile], image: Path) -> None:
    archive = job.work / "root.tar"
    write_tar(files, archive, job.epoch)
    options = ["-tar", "-comp", "zstd", "-Xcompression-level", str(job.params.get("level", ZSTD_LEVEL))]
    options += ["-b", str(BLOCK), "-mkfs-time", str(job.epoch), "-all-time", str(job.epoch), "-xattrs"]
    options += ["-no-exports", "-noappend", "-no-progress", "-processors", str(job.jobs)]
    # The root folder is not part of the stream; left alone it would be 0777.
    options += ["-root-mode", "0755", "-root-uid", "0", "-root-gid", "0"]
    with archive.open("rb") as stream:
        run([find_tool("mksquashfs"), "-", image, *options], stdin=stream)
    archive.unlink()


def write_tar(files: Sequence[RootFile], archive: Path, epoch: int) -> None:
    """Write the tree with its real owners, modes and attributes as an uncompressed PAX tar."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            tar.addfile(info := _tar_info(file, epoch), file.source.open("rb") if info.isreg() else None)


def _tar_info(file: RootFile, epoch: int) -> tarfile.TarInfo:
    entry = file.entry
    info = tarfile.TarInfo(entry.path)
    info.type = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}[entry.type]
    info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, epoch
    info.size, info.linkname = entry.size, entry.target
    # Attribute values are binary; surrogateescape carries them through tarfile's text interface unchanged.
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in entry.xattrs.items()
    }
    return info


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
