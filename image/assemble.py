"""The actions that turn a root file system and a kernel into a bootable disk image.

verity: hash tree over the root. uki: stub, kernel, command line with the root hash. rescue: the same with an
initramfs in place of a root. disk: GPT image of everything.
All are pure: the same inputs and parameters give the same bytes. No root, no loop devices, no external tools.

Inputs: root/root.squashfs, kernel/{bzImage,release}, cmdline (file: words for the kernel), systemd-stub-efi and
systemd-boot-efi (.deb files), initramfs (output of `rootfs.rescue`), verity, uki, rescue (outputs of the actions here).
Parameters: version, seed, layout (table of layout.toml), and optionally cmdline (more words for the kernel), efi-arch
(default "x64"), arch, root-file (default "root.squashfs"; its suffix is the file system), login-until (default ""),
os-release (text).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from buildsys.files import data_ranges
from buildsys.job import Job
from common.disk import gpt
from common.disk import verity as verity_format
from common.efi import entries
from common.efi import uki as uki_format
from common.errors import ImageError
from image import deb, esp, layout
from image.host import copy_range, image_errors, opened

ROOT_FILE = "root.squashfs"
TREE_FILE = "verity.img"
UKI_FILE, RESCUE_FILE = "mixos.efi", "rescue.efi"
INITRAMFS_FILE = "rescue.cpio.zst"
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.~^-]{0,62}")
# noinitrd: an initramfs that somebody else hands to the kernel is not taken (kernel: drivers/firmware/efi/libstub); it
# is not signed, and one that holds the file which rdinit names would be started instead of the root.
_FIXED_CMDLINE = "root=/dev/dm-0 ro rootfstype={fstype} rootwait=20 noinitrd rdinit=/none"
_ALWAYS = ("panic=10", "oops=panic")
_BOOT_DIR = "usr/lib/systemd/boot/efi"


def _text(job: Job, name: str, default: str | None = None) -> str:
    value = job.params.get(name, default)
    if not isinstance(value, str):
        raise ImageError(f"action parameter {name!r} is {value!r}, not a string", reason="bad-parameter")
    return value


def _version(job: Job) -> str:
    version = _text(job, "version")
    if not _VERSION.fullmatch(version):
        raise ImageError(f"{version!r} cannot be an image version", reason="bad-version")
    return version


def _root(job: Job) -> Path:
    return job.inputs["root"] / _text(job, "root-file", ROOT_FILE)


def disk_name(version: str, arch: str = "x86_64") -> str:
    """The file name of a disk image."""
    return f"mixos-{version}-{arch}.img"


def verity(job: Job) -> None:
    """Out: verity.img (hash tree), root-hash (hex), verity.json (what the command line and the manifest need)."""
    salt = layout.derive(_text(job, "seed"), "verity-salt")
    path = _root(job)
    with opened(path) as fd, image_errors(path):
        size = os.fstat(fd).st_size
        layout.check_fits(layout.parse(job.params["layout"]), size)
        tree = verity_format.build(fd, size, salt)
    (job.out / TREE_FILE).write_bytes(tree.hashes)
    (job.out / "root-hash").write_text(tree.root.hex() + "\n")
    record = {
        "format": 1,
        "root_hash": tree.root.hex(),
        "salt": tree.salt.hex(),
        "data_blocks": tree.blocks,
        "hash_start_block": 0,
        "dm_create": verity_format.dm_create(tree),
    }
    (job.out / "verity.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def cmdline(job: Job) -> str:
    """The kernel command line: what boot needs, then the kernel's own hardening words, then the profile's."""
    record = json.loads((job.inputs["verity"] / "verity.json").read_text("utf-8"))
    fstype = _text(job, "root-file", ROOT_FILE).rpartition(".")[2]
    words = [
        *_FIXED_CMDLINE.format(fstype=fstype).split(),
        f'dm-mod.create="{record["dm_create"]}"',
        "init=/sbin/init",
        *_words(job),
    ]
    return " ".join(dict.fromkeys(words))  # what boot itself needs is often in the kernel's list too


def _words(job: Job) -> list[str]:
    """What every kernel of an image is told."""
    return [*_ALWAYS, *job.inputs["cmdline"].read_text("utf-8").split(), *_text(job, "cmdline", "").split()]


def os_release(version: str, release: str, login_until: str) -> str:
    """The identity in the UKI; the boot manager sorts by IMAGE_ID and IMAGE_VERSION (os-release(5)).

    What writes an image reads there until when its keys let somebody in (`Settings.login_until`).
    """
    return f'{_identity("MixOS", entries.SORT_KEY, version, release)}MIXOS_LOGIN_UNTIL="{login_until}"\n'


def _identity(name: str, image_id: str, version: str, release: str) -> str:
    return (
        f'ID=mixos\nNAME="MixOS"\nPRETTY_NAME="{name} {version}"\nVERSION_ID="{version}"\n'
        f'IMAGE_ID={image_id}\nIMAGE_VERSION="{version}"\nMIXOS_KERNEL="{release}"\n'
    )


def uki(job: Job) -> None:
    """Out: mixos.efi, cmdline (as text, for people and for direct kernel boots)."""
    line = cmdline(job)
    identity = os_release(_version(job), _release(job), _text(job, "login-until", ""))
    (job.out / UKI_FILE).write_bytes(_build(job, line, _text(job, "os-release", identity)))
    (job.out / "cmdline").write_text(line + "\n")


def rescue(job: Job) -> None:
    """Out: rescue.efi, which needs nothing of a disk."""
    line = " ".join(dict.fromkeys(_words(job)))
    identity = _identity("MixOS rescue", entries.RESCUE_SORT_KEY, _version(job), _release(job))
    initramfs = (job.inputs["initramfs"] / INITRAMFS_FILE).read_bytes()
    (job.out / RESCUE_FILE).write_bytes(_build(job, line, identity, initramfs))


def _release(job: Job) -> str:
    return (job.inputs["kernel"] / "release").read_text("utf-8").strip()


def _build(job: Job, line: str, identity: str, initramfs: bytes = b"") -> bytes:
    stub_path = f"{_BOOT_DIR}/linux{_text(job, 'efi-arch', 'x64')}.efi.stub"
    kernel = (job.inputs["kernel"] / "bzImage").read_bytes()
    with image_errors("unified kernel image"):
        stub = deb.read_files(job.inputs["systemd-stub-efi"], [stub_path])[stub_path]
        return uki_format.build(stub, kernel, line, identity, _release(job), initramfs)


def disk(job: Job) -> None:
    """Out: mixos-<version>-x86_64.img (sparse), root-hash, image.json (partitions, identities, files of the ESP)."""
    version, seed = _version(job), _text(job, "seed")
    efi_arch = _text(job, "efi-arch", "x64")
    shape = layout.parse(job.params["layout"])
    root_hash = bytes.fromhex((job.inputs["verity"] / "root-hash").read_text("utf-8"))
    table = layout.table(shape, seed, root_hash)
    loader_path = f"{_BOOT_DIR}/systemd-boot{efi_arch}.efi"
    image_path = job.out / disk_name(version, _text(job, "arch", "x86_64"))
    with opened(image_path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd, image_errors("disk image"):
        loader = esp.without_memory(deb.read_files(job.inputs["systemd-boot-efi"], [loader_path])[loader_path])
        emergency = {entries.RESCUE: job.inputs["rescue"] / RESCUE_FILE} if "rescue" in job.inputs else {}
        version_entry = {esp.new_name(root_hash): job.inputs["uki"] / UKI_FILE}
        contents: dict[str, dict[str, bytes]] = {}
        os.truncate(fd, table.sectors * gpt.SECTOR)
        for name, found in ((esp.NAME, {**version_entry, **emergency}), (esp.SECOND, emergency)):
            contents[name] = esp.files(loader, efi_arch, {entry: path.read_bytes() for entry, path in found.items()})
            volume_id = int.from_bytes(layout.derive(seed, f"fat-volume:{name}")[:4], "big")
            esp.write(fd, table.find(name), contents[name], volume_id, job.epoch)
        _copy_into(_root(job), fd, table.find("mixos-root-a"))
        _copy_into(job.inputs["verity"] / TREE_FILE, fd, table.find("mixos-verity-a"))
        gpt.write(fd, table)
    (job.out / "root-hash").write_text(root_hash.hex() + "\n")
    record = {
        "format": 1,
        "version": version,
        "root_hash": root_hash.hex(),
        "disk_id": str(table.disk_id),
        "sectors": table.sectors,
        "esp": {path: len(data) for path, data in sorted(contents[esp.NAME].items())},
        "partitions": [
            {
                "number": p.index,
                "name": p.name,
                "type": str(p.type),
                "id": str(p.id),
                "offset": p.offset,
                "size": p.size,
            }
            for p in table.partitions
        ],
    }
    (job.out / "image.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _copy_into(path: Path, disk_fd: int, part: gpt.Partition) -> None:
    """Copy a file to the start of a partition, holes left out. Raises ImageError when it does not fit."""
    with opened(path) as source:
        size = os.fstat(source).st_size
        if size > part.size:
            raise ImageError(
                f"{path.name} has {size} bytes and {part.name} only {part.size}", reason="partition-too-small"
            )
        for start, end in data_ranges(source, size):
            copy_range(source, disk_fd, start, end, part.offset + start)
