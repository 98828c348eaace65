"""Preparing to put a backup back: everything is read, checked and written beside its place.

Whatever is wrong, however late it is found, ends here: nothing has changed. The rest is a change like any other
(`daemon.core.change`): all of it or nothing, whatever happens in between.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.errors import NotFoundError, RefusedError
from daemon.core.change import files
from daemon.core.change.files import Rename, Renames, Trees
from daemon.core.manifest import file_for
from daemon.parts.backup import archive, contents
from daemon.parts.backup.archive import Entry
from daemon.parts.backup.contents import MANIFEST, MAX_MANIFEST, STATE, Manifest
from daemon.parts.backup.login import CONFIG, KEYS
from daemon.parts.backup.sealed import BackupError

_RESERVE = 16 << 20  # bytes that stay free


@dataclass
class Plan:
    """What a backup would change. files, size: of the whole backup, in bytes."""

    manifest: Manifest
    changes: list[Rename] = field(default_factory=list)
    files: int = 0
    size: int = 0

    def renames(self) -> Renames:
        """For the change."""
        return Renames(tuple(self.changes), files.missing_folders(self.changes))


def examine(
    pieces: Iterator[bytes], limit: int = archive.MAX_TOTAL
) -> Iterator[tuple[Manifest, Entry, Iterator[bytes]]]:
    """The files of a backup, each checked to have its place in one; first the manifest's own entry.

    Raises BackupError: those of `sealed` and `archive`, `backup-manifest`, `backup-too-new`, `backup-name`.
    """
    entries = archive.read(pieces, limit)
    entry, content = next(entries, (None, iter(())))
    if entry is None or entry.path != MANIFEST or entry.kind != "file" or entry.size > MAX_MANIFEST:
        raise BackupError("the backup does not begin with its manifest", reason="backup-manifest")
    manifest = contents.parse_manifest(b"".join(content))
    yield manifest, entry, iter(())
    folders = list(manifest.state.values())
    for entry, content in entries:
        section = contents.section_of(entry.path, folders)
        if section is None or section.partition("/")[0] not in manifest.sections:
            raise BackupError(f"{entry.path!r} has no place in this backup", reason="backup-name")
        state = section.startswith(f"{STATE}/")
        root = f"var/lib/{section.partition('/')[2]}"
        if not state and (entry.kind != "file" or entry.length):
            raise BackupError(f"{entry.path!r} is not a file", reason="backup-name")
        if entry.path == root and entry.kind != "folder":
            raise BackupError(f"{entry.path!r} is not a folder", reason="backup-name")
        yield manifest, entry, content


class Restorer:
    """Prepares a restore into `trees`; `number` is that of the change."""

    def __init__(self, trees: Trees, number: str) -> None:
        self.trees = trees
        self.number = number

    def prepare(self, pieces: Iterator[bytes], only: Collection[str] = ()) -> Plan:
        """only: sections; none means all that there are. Raises MixosError; then nothing has changed."""
        try:
            plan = self._prepare(pieces, only)
            os.sync()  # thousands of files at once, more cheaply than one by one
            return plan
        except OSError as error:
            self.discard()
            raise BackupError(f"the backup cannot be unpacked: {error}", reason="backup-io") from error
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Forget what was prepared."""
        for folder in files.staging(self.trees, self.number):
            files.remove(folder)

    def _prepare(self, pieces: Iterator[bytes], only: Collection[str]) -> Plan:
        free = os.statvfs(self.trees.lib)
        room = free.f_bavail * free.f_frsize - _RESERVE
        plan: Plan | None = None
        wanted: frozenset[str] = frozenset()
        names: set[str] = set()
        for manifest, entry, content in examine(pieces):
            if plan is None:
                plan, wanted = Plan(manifest), _wanted(manifest, only)
                files.make_staging(self.trees, self.number)
                continue
            plan.files += entry.kind == "file"
            plan.size += entry.size
            if plan.size > room:
                raise RefusedError("there is not enough free space to unpack the backup", reason="backup-no-space")
            section = contents.section_of(entry.path, list(manifest.state.values())) or ""
            if section.partition("/")[0] not in wanted:
                continue
            if section.startswith(f"{STATE}/"):
                self._stage_state(plan, entry, content, section.partition("/")[2])
            else:
                names.add(entry.path)
                self._stage_file(plan, entry, content)
        assert plan is not None  # `examine` raises before
        for section in sorted(wanted - {STATE}):
            self._plan_removals(plan, section, names)
        return plan

    def _stage_file(self, plan: Plan, entry: Entry, content: Iterator[bytes]) -> None:
        target = self.trees.place(entry.path)
        change = self._change(plan, "file", entry.path)
        for above in target.parents:
            if above in (self.trees.etc, self.trees.lib):
                break
            if above.is_symlink() or (above.exists() and not above.is_dir()):
                raise RefusedError(f"{above} is not a folder here", reason="backup-conflict")
        if target.is_dir() and not target.is_symlink():
            raise RefusedError(f"{target} is a folder here", reason="backup-conflict")
        _write_file(Path(change.new), entry, content)
        if _same(Path(change.new), target):
            Path(change.new).unlink()
        else:
            plan.changes.append(change)

    def _stage_state(self, plan: Plan, entry: Entry, content: Iterator[bytes], folder: str) -> None:
        root = f"var/lib/{folder}"
        if entry.path == root:
            target = self.trees.place(root)
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                raise RefusedError(f"{target} is not a folder here", reason="backup-conflict")
            plan.changes.append(self._change(plan, "tree", root))
        tree = next((one for one in plan.changes if one.kind == "tree" and one.name == root), None)
        place = Path(tree.new + entry.path[len(root) :]) if tree else Path()
        if tree is None or (entry.path != root and not place.parent.is_dir()):
            raise BackupError(f"{entry.path!r} comes before its folder", reason="backup-name")
        if entry.kind == "folder":
            place.mkdir(mode=0o700)
            _own(place, entry)
            place.chmod(entry.mode)
        elif entry.kind == "link":
            place.symlink_to(entry.target)
            _own(place, entry)
        else:
            _write_file(place, entry, content)

    def _plan_removals(self, plan: Plan, section: str, names: Collection[str]) -> None:
        for entry, _ in contents.scan(self.trees, section):
            kept = not plan.manifest.secrets and contents.is_secret(entry.path, entry.mode)
            if entry.path not in names and not kept:
                plan.changes.append(self._change(plan, "gone", entry.path))

    def _change(self, plan: Plan, kind: Literal["file", "tree", "gone"], name: str) -> Rename:
        target = self.trees.place(name)
        beside = files.staging(self.trees, self.number)[0 if name.startswith("etc/") else 1]
        new, old = (str(beside / side / str(len(plan.changes))) for side in ("new", "old"))
        return Rename(kind, name, str(target), new, old, os.path.lexists(target))


def _wanted(manifest: Manifest, only: Collection[str]) -> frozenset[str]:
    """The sections to restore. Raises NotFoundError `backup-section`."""
    if missing := sorted(set(only) - set(manifest.sections)):
        raise NotFoundError(
            f"the backup has no section {missing[0]!r}",
            reason="backup-section",
            hint=f"it has {', '.join(manifest.sections)}",
        )
    return frozenset(only or manifest.sections)


def _write_file(path: Path, entry: Entry, content: Iterator[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as stream:
        for at, piece in entry.placed(content):
            if piece.strip(b"\0"):  # else a hole
                stream.seek(at)
                stream.write(piece)
        stream.truncate(entry.length or entry.size)
    _own(path, entry)
    path.chmod(entry.mode)
    os.utime(path, (entry.mtime, entry.mtime))


def _own(path: Path, entry: Entry) -> None:
    if os.geteuid() == 0:  # elsewhere everything is the user's own
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)


def _same(new: Path, target: Path) -> bool:
    if target.is_symlink() or not target.is_file():
        return False
    one, two = new.stat(), target.stat()
    return (one.st_mode, one.st_uid, one.st_gid) == (two.st_mode, two.st_uid, two.st_gid) and filecmp.cmp(
        new, target, shallow=False
    )


def services_to_restart(plan: Plan) -> tuple[list[str], bool]:
    """The units whose state was replaced, and whether only a reboot brings everything in force.

    Not for what `daemon.core.follow` has read again, profiles, and who may log in: see `login`.
    """
    units = {folder: unit for unit, folder in plan.manifest.state.items()}
    restart = sorted(units[one.name.removeprefix("var/lib/")] for one in plan.changes if one.kind == "tree")
    return restart, any(one.kind != "tree" and not _at_once(one.name) for one in plan.changes)


def _at_once(name: str) -> bool:
    return name.startswith((KEYS, CONFIG)) or (
        name.startswith("etc/mixos/") and file_for(name.removeprefix("etc/mixos/")) is not None
    )


def running(units: Iterable[str], alive: Callable[[str], bool]) -> None:
    """Raises RefusedError `backup-unit-running`: a running unit would go on writing into its old state."""
    for unit in units:
        if alive(unit):
            raise RefusedError(
                f"{unit} is running: its state cannot be replaced",
                reason="backup-unit-running",
                hint=f"mixctl service stop {unit}",
            )
