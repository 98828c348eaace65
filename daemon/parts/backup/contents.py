"""What a backup holds: sections, each a set of files below /etc or /var/lib, and a manifest in front.

A file belongs to the section whose path is the longest one that leads to it; so "settings" has /etc/mixos without the
folders that are "units". Nothing else can get into a backup or, more important, out of one. Never in it: logs, keys of
calls, what is only true for this boot, and the journals of changes that were under way.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path, PurePosixPath

from pydantic import Field, ValidationError

from common.errors import NotFoundError
from common.tomlfile import Strict
from daemon.core.change.files import Trees
from daemon.core.manifest import function, manifests
from daemon.core.part import Context
from daemon.parts.backup.archive import Entry, fits
from daemon.parts.backup.sealed import BackupError

FORMAT = 1  # of the content; the container has a version of its own
MANIFEST = "manifest.json"
MAX_MANIFEST = 64 << 10  # bytes
STATE = "state"  # the section of units' state directories

_HOST_KEY = tuple(f"etc/ssh/ssh_host_ed25519_key{end}" for end in ("", ".pub", ".fingerprint"))


def _sections() -> dict[str, tuple[str, ...]]:
    """Section → paths, in the backup's names: what is the system's, and what the parts say is theirs."""
    names = ("hostname", "hosts", "timezone", "localtime", "ntp.conf", "sysctl.d", "mixos")
    found: dict[str, tuple[str, ...]] = {
        "settings": tuple(f"etc/{name}" for name in names),
        "units": (),
        "ssh": ("etc/ssh/authorized_keys", "etc/ssh/sshd_config.d", *_HOST_KEY),
        "vpn": (),
        "history": (),
    }
    for one in manifests():
        for section, paths in one.backup.items():
            found[section] = (*found.get(section, ()), *paths)
    return {**found, "daemon": ("var/lib/mixos",)}


SECTIONS: Mapping[str, tuple[str, ...]] = _sections()
# Never kept, never put back.
_EXCLUDED = tuple(path for one in manifests() for path in one.passing)
# The public half of a key goes with the key.
_SECRET = (*_HOST_KEY, *(path for one in manifests() for path in one.secret))
_UNIT = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
_PIECE = 128 << 10
_NOT_STATE = ("mixos",)

Item = tuple[Entry, Iterator[bytes]]


class Manifest(Strict):
    """The first file of a backup. state: unit → its folder below /var/lib; created: seconds since 1970."""

    format: int
    mixos_version: str = Field(max_length=64)
    hostname: str = Field(max_length=253)
    created: int = Field(ge=0, lt=1 << 33)
    secrets: bool
    sections: tuple[str, ...] = Field(max_length=16)
    state: dict[str, str] = Field(default={}, max_length=256)


def parse_manifest(data: bytes) -> Manifest:
    """Raises BackupError `backup-manifest`, `backup-too-new`."""
    try:
        found = re.search(rb'"format":\s*(\d{1,6})', data)
        if found and int(found[1]) > FORMAT:
            raise BackupError(
                f"the content has format {int(found[1])}, this device knows up to {FORMAT}",
                reason="backup-too-new",
                hint="it was made by a newer MixOS: update this device first",
            )
        manifest = Manifest.model_validate_json(data)
    except (ValidationError, ValueError) as error:
        raise BackupError("the manifest of the backup is not one", reason="backup-manifest") from error
    folders = list(manifest.state.values())
    names = [*manifest.state, *folders]
    if (
        manifest.format != FORMAT
        or not set(manifest.sections) <= {*SECTIONS, STATE}
        or not all(_UNIT.fullmatch(name) for name in names)
        or len(set(folders)) != len(folders)
        or set(folders) & set(_NOT_STATE)
        or (bool(folders) != (STATE in manifest.sections))
    ):
        raise BackupError("the manifest of the backup says what it must not", reason="backup-manifest")
    return manifest


def section_of(name: str, folders: Sequence[str]) -> str | None:
    """The section of a name; `state/FOLDER` for what a unit keeps; None for what has no place in a backup."""
    if any(_within(name, path) for path in _EXCLUDED):
        return None
    best, found = "", None
    for section, paths in SECTIONS.items():
        for path in paths:
            if _within(name, path) and len(path) > len(best):
                best, found = path, section
    for folder in folders:
        if _within(name, f"var/lib/{folder}"):
            return f"{STATE}/{folder}"
    if found is not None and any(part.startswith(".") for part in PurePosixPath(name).parts):
        return None  # what is being written at this moment
    return found


def is_secret(name: str, mode: int) -> bool:
    """Whether a backup without secrets leaves it out: keys, the history, and what of /etc only root may read."""
    return any(_within(name, path) for path in _SECRET) or (name.startswith("etc/mixos/") and not mode & 0o004)


def unit_folders(context: Context) -> dict[str, str]:
    """Unit → its folder below /var/lib, for the units that have one."""
    found: dict[str, str] = function("state-folders")(context)
    return found


def chosen(context: Context, units: Sequence[str]) -> dict[str, str]:
    """The folders of units by name. Raises NotFoundError `backup-no-state` for one that keeps nothing."""
    known = unit_folders(context)
    for name in units:
        folder = known.get(name, "")
        if not _UNIT.fullmatch(folder) or folder in _NOT_STATE or not (context.state.parent / folder).is_dir():
            raise NotFoundError(
                f"the unit {name!r} keeps no state below /var/lib",
                reason="backup-no-state",
                hint=f"units that do: {', '.join(sorted(known)) or 'none'}",
            )
    return {name: known[name] for name in units}


def scan(trees: Trees, section: str) -> Iterator[Item]:
    """The files of a section (not `state`), in the order of their names. Links are nobody's configuration."""
    for path in sorted(SECTIONS[section]):
        for name in _files(trees, path):
            if section_of(name, ()) == section:
                item = _file(trees.place(name).name, name, trees.place(name).parent)
                if item is not None:
                    yield item


def _files(trees: Trees, top: str) -> Iterator[str]:
    place = trees.place(top)
    if place.is_file() and not place.is_symlink():
        yield top
    for root, folders, names in os.walk(place):
        folders.sort()
        inner = os.path.relpath(root, place)
        for name in sorted(names):
            yield f"{top}/{name}" if inner == "." else f"{top}/{inner}/{name}"


def scan_state(trees: Trees, folder: str, left_out: list[str]) -> Iterator[Item]:
    """Everything that a unit keeps. The unit may be hostile: no link is followed, nothing but files is opened.

    left_out: grows by what cannot be kept: devices, sockets, pipes; names, owners and times that `archive` cannot hold.
    """
    top = f"var/lib/{folder}"
    for root, folders, names, descriptor in os.fwalk(trees.lib / folder, follow_symlinks=False):
        folders.sort()
        inner = os.path.relpath(root, trees.lib / folder)
        base = top if inner == "." else f"{top}/{inner}"
        facts = os.fstat(descriptor)
        entry = Entry(base, "folder", stat.S_IMODE(facts.st_mode) & 0o1777, facts.st_uid, facts.st_gid)
        if not fits(entry):
            left_out.append(base)
            folders.clear()
            continue
        yield entry, iter(())
        for name in sorted([*folders, *names]):
            path = f"{base}/{name}"
            try:
                facts = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode):
                    continue  # the walk comes to it
                link = os.readlink(name, dir_fd=descriptor) if stat.S_ISLNK(facts.st_mode) else None
            except OSError:
                continue  # it is gone already
            if link is None:
                item = _file(name, path, descriptor)
            else:
                item = Entry(path, "link", 0o777, facts.st_uid, facts.st_gid, target=link), iter(())
            if item is not None and fits(item[0]):
                yield item
            else:
                left_out.append(path)


def _file(name: str, path: str, folder: Path | int) -> Item | None:
    """An entry that reads from an open file; None for what is not a regular one, or is gone."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / name, flags) if isinstance(folder, Path) else os.open(name, flags, dir_fd=folder)
    except OSError:
        return None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        return None
    stream = os.fdopen(descriptor, "rb", buffering=0)  # closed with its last reference, taken from or not
    mode = stat.S_IMODE(facts.st_mode) & 0o1777
    entry = Entry(path, "file", mode, facts.st_uid, facts.st_gid, facts.st_size, max(0, int(facts.st_mtime)))
    return entry, _content(stream, facts.st_size)


def _content(stream: FileIO, size: int) -> Iterator[bytes]:
    """At most `size` bytes, then the file is closed."""
    with stream:
        while size > 0 and (piece := stream.read(min(size, _PIECE))):
            size -= len(piece)
            yield piece


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")
