"""What a backup holds: sections, each a set of files below /etc or /var/lib, and a manifest in front.

A file belongs to the section whose path is the longest one that leads to it; so "settings" has /etc/mixos without the
folders that are "units". Nothing else can get into a backup or, more important, out of one. Never in it: logs, keys of
calls, what is only true for this boot, and the journals of changes that were under way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path, PurePosixPath

from pydantic import Field, ValidationError

from common.errors import NotFoundError
from common.tomlfile import Strict
from daemon.core.change.files import Trees
from daemon.core.manifest import function, manifests
from daemon.core.part import Context
from daemon.linux import tree
from daemon.parts.backup.archive import MAX_ENTRIES, MAX_LENGTH, MAX_PARTS, Entry, fits, too_big
from daemon.parts.backup.sealed import BackupError

FORMAT = 1  # of the content; the container has a version of its own
MANIFEST = "manifest.json"
MAX_MANIFEST = 64 << 10  # bytes
LEFT_OUT = 100  # names that are told
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

    left_out: grows, up to `LEFT_OUT` names, by what cannot be kept: devices, sockets, pipes, what lies too deep; names,
    owners and times that `archive` cannot hold. Raises BackupError `backup-too-big`.
    """
    top = f"var/lib/{folder}"
    try:
        with contextlib.closing(tree.walk(trees.lib / folder, MAX_ENTRIES, ordered=True)) as walk:
            without: str | None = None  # a folder that is left out, with all that is in it
            for one in walk:
                if without is not None and one.path.startswith(without):
                    continue
                item = _kept(one, f"{top}/{one.path}" if one.path else top)
                without = f"{one.path}/" if item is None else None
                if item is not None:
                    yield item
                elif len(left_out) < LEFT_OUT:
                    left_out.append(f"{top}/{one.path}")
    except tree.TooManyError as error:
        raise too_big() from error


def _kept(one: tree.Found, path: str) -> Item | None:
    facts = one.facts
    item: Item | None = None
    if stat.S_ISDIR(facts.st_mode) and one.entered:
        item = Entry(path, "folder", stat.S_IMODE(facts.st_mode) & 0o1777, facts.st_uid, facts.st_gid), iter(())
    elif stat.S_ISREG(facts.st_mode):
        item = _file(one.name, path, one.folder, holes=True)
    elif stat.S_ISLNK(facts.st_mode):
        link = _target(one)
        if link is not None:
            item = Entry(path, "link", 0o777, facts.st_uid, facts.st_gid, target=link), iter(())
    return item if item is not None and fits(item[0]) else None


def _target(one: tree.Found) -> str | None:
    try:
        return os.readlink(one.name, dir_fd=one.folder)
    except OSError:
        return None  # it is gone already


def _file(name: str, path: str, folder: Path | int, *, holes: bool = False) -> Item | None:
    """An entry that reads from an open file; None for what is not a regular one, or is gone. holes: they may be left
    out."""
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
    parts = _parts(stream, facts) if holes else None
    if parts is not None:
        entry = replace(entry, size=sum(size for _, size in parts), length=facts.st_size, parts=parts)
    return entry, _content(stream, parts if parts is not None else ((0, facts.st_size),))


def _parts(stream: FileIO, facts: os.stat_result) -> tuple[tuple[int, int], ...] | None:
    """Offset and bytes of what a file has between its holes (lseek(2)); None: it has none, or more than can be kept."""
    if facts.st_blocks * 512 >= facts.st_size or facts.st_size > MAX_LENGTH:
        return None
    found: list[tuple[int, int]] = []
    at = 0
    while at < facts.st_size:
        try:
            begin = stream.seek(at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return None  # this file system does not tell
            break  # nothing but a hole is left
        at = min(stream.seek(begin, os.SEEK_HOLE), facts.st_size)
        if len(found) == MAX_PARTS or begin >= at:
            return None
        found.append((begin, at - begin))
    return tuple(found)


def _content(stream: FileIO, parts: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """At most what these parts have, then the file is closed."""
    with stream:
        for at, length in parts:
            size = length
            stream.seek(at)
            while size > 0 and (piece := stream.read(min(size, _PIECE))):
                size -= len(piece)
                yield piece


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")
