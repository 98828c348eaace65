"""Putting a backup back: all of it or nothing, whatever happens in between.

1. Everything is read, checked and written beside its place, into a folder `.mixos-restore` of the same file system.
   Whatever is wrong, however late it is found, ends here: the folder is removed, nothing has changed.
2. The list of renames is made durable (the journal): from here on the restore has happened. A power cut is finished at
   the next start by going through the list again.
3. Each file is renamed into its place, whole state directories of units too; what was there is kept until the end.
   If one of the renames fails, the journal says so first, and then all of them are undone; a power cut finishes that.
4. What was there, the folders and the journal are removed.

Every step can be repeated. `step` is called between any two of them, so that tests can stop the world there.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.errors import NotFoundError, RefusedError
from common.files import sync_folder, write_atomically
from common.tomlfile import Strict
from daemon.core.manifest import file_for
from daemon.parts.backup import archive, contents
from daemon.parts.backup.archive import Entry
from daemon.parts.backup.contents import MANIFEST, MAX_MANIFEST, STATE, Manifest, Trees
from daemon.parts.backup.sealed import BackupError

_STAGING = ".mixos-restore"
_RESERVE = 16 << 20  # bytes that stay free


class Change(Strict):
    """One rename. target: the place; new, old: beside it; existed: whether something was there."""

    kind: Literal["file", "tree", "gone"]
    name: str
    target: str
    new: str
    old: str
    existed: bool


class Journal(Strict):
    """What is to be done, or undone. folders: missing ones above the targets, the upper ones first."""

    state: Literal["doing", "undoing"]
    who: str
    folders: tuple[str, ...]
    changes: tuple[Change, ...]


@dataclass
class Plan:
    """What a backup would change. files, size: of the whole backup, in bytes."""

    manifest: Manifest
    changes: list[Change] = field(default_factory=list)
    files: int = 0
    size: int = 0


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
        if not state and entry.kind != "file":
            raise BackupError(f"{entry.path!r} is not a file", reason="backup-name")
        if entry.path == root and entry.kind != "folder":
            raise BackupError(f"{entry.path!r} is not a folder", reason="backup-name")
        if entry.kind == "link" and archive.leads_out(entry.path, entry.target, root):
            raise BackupError(f"the link {entry.path!r} leads out of its folder", reason="backup-link")
        yield manifest, entry, content


class Restorer:
    """Restores into `trees`; the journal is the file `journal`."""

    def __init__(self, trees: Trees, journal: Path, step: Callable[[str], None] = lambda name: None) -> None:
        self.trees = trees
        self.journal = journal
        self._step = step

    def recover(self) -> Literal["finished", "undone"] | None:
        """After a start: finish what a journal says, or remove what never got one."""
        try:
            journal = Journal.model_validate_json(self.journal.read_bytes())
        except FileNotFoundError:
            self._clean()
            return None
        except ValueError as error:
            raise BackupError(f"{self.journal} is damaged", reason="backup-journal") from error
        return self._carry_out(journal)

    def prepare(self, pieces: Iterator[bytes], only: Collection[str] = ()) -> Plan:
        """Step 1. only: sections; none means all that there are. Raises MixosError; then nothing has changed."""
        self.recover()  # nothing is left to do, unless an earlier restore ended by a defect
        try:
            return self._prepare(pieces, only)
        except OSError as error:
            self._clean()
            raise BackupError(f"the backup cannot be unpacked: {error}", reason="backup-io") from error
        except BaseException:
            self._clean()
            raise

    def discard(self) -> None:
        """Forget what was prepared."""
        self._clean()

    def apply(self, plan: Plan, who: str) -> None:
        """Steps 2 to 4. Raises BackupError `backup-io`, everything being as it was before."""
        journal = Journal.model_validate(
            {"state": "doing", "who": who, "folders": self._missing(plan), "changes": plan.changes}
        )
        self.journal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.sync()  # thousands of files at once, more cheaply than one by one
        self._step("staged")
        try:
            self._write(journal)
        except OSError as error:
            self.journal.unlink(missing_ok=True)
            self._clean()
            raise BackupError(f"the restore cannot be written down: {error}", reason="backup-io") from error
        if self._carry_out(journal) == "undone":
            raise BackupError("a file could not be put in its place; everything is as it was", reason="backup-io")

    # -- step 1 ------------------------------------------------------------------------------------------------------

    def _prepare(self, pieces: Iterator[bytes], only: Collection[str]) -> Plan:
        free = os.statvfs(self.trees.lib)
        room = free.f_bavail * free.f_frsize - _RESERVE
        plan: Plan | None = None
        wanted: frozenset[str] = frozenset()
        names: set[str] = set()
        for manifest, entry, content in examine(pieces):
            if plan is None:
                plan, wanted = Plan(manifest), _wanted(manifest, only)
                for folder in self._staging():
                    (folder / "new").mkdir(parents=True)
                    (folder / "old").mkdir()
                    folder.chmod(0o700)
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

    def _change(self, plan: Plan, kind: Literal["file", "tree", "gone"], name: str) -> Change:
        target = self.trees.place(name)
        beside = self._staging()[0 if name.startswith("etc/") else 1]
        number = f"{len(plan.changes)}"
        place = {"target": target, "new": beside / "new" / number, "old": beside / "old" / number}
        return Change(kind=kind, name=name, existed=os.path.lexists(target), **{k: str(v) for k, v in place.items()})

    def _missing(self, plan: Plan) -> list[str]:
        found: dict[str, None] = {}
        for change in plan.changes:
            if change.kind == "file":
                missing = [str(path) for path in Path(change.target).parents if not path.exists()]
                found.update(dict.fromkeys(reversed(missing)))
        return list(found)

    # -- steps 2 to 4 ------------------------------------------------------------------------------------------------

    def _write(self, journal: Journal) -> None:
        write_atomically(self.journal, journal.model_dump_json(by_alias=True).encode(), 0o600)
        self._step(journal.state)

    def _carry_out(self, journal: Journal) -> Literal["finished", "undone"]:
        if journal.state == "doing":
            try:
                self._do(journal)
                return self._end("finished")
            except OSError:
                journal = journal.model_copy(update={"state": "undoing"})
                self._write(journal)
        self._undo(journal)
        return self._end("undone")

    def _do(self, journal: Journal) -> None:
        for folder in journal.folders:
            mode = 0o755 if Path(folder).is_relative_to(self.trees.etc) else 0o700
            with contextlib.suppress(FileExistsError):
                Path(folder).mkdir(mode=mode)
        for change in journal.changes:
            target, new, old = Path(change.target), Path(change.new), Path(change.old)
            if change.kind != "gone" and not os.path.lexists(new):
                continue  # done before a cut
            if os.path.lexists(target) and not os.path.lexists(old):
                if change.kind == "file":
                    os.link(target, old, follow_symlinks=False)  # so that readers always find one or the other
                else:
                    target.rename(old)
                self._step(f"kept {change.name}")
            if change.kind != "gone":
                new.rename(target)
            self._step(f"done {change.name}")

    def _undo(self, journal: Journal) -> None:
        for change in reversed(journal.changes):
            target, new, old = Path(change.target), Path(change.new), Path(change.old)
            if change.existed and os.path.lexists(old):
                if change.kind == "tree" and os.path.lexists(target):
                    target.rename(new)
                    self._step(f"back {change.name}")
                old.rename(target)
            elif not change.existed and not os.path.lexists(new) and os.path.lexists(target):
                target.rename(new)
            self._step(f"undone {change.name}")
        for folder in reversed(journal.folders):
            with contextlib.suppress(OSError):  # somebody uses it by now
                Path(folder).rmdir()

    def _end(self, outcome: Literal["finished", "undone"]) -> Literal["finished", "undone"]:
        os.sync()
        self._step("synced")
        self.journal.unlink()
        sync_folder(self.journal.parent)
        self._step("forgotten")
        self._clean()
        return outcome

    def _staging(self) -> tuple[Path, Path]:
        return self.trees.etc / _STAGING, self.trees.lib / _STAGING

    def _clean(self) -> None:
        for folder in self._staging():
            shutil.rmtree(folder, ignore_errors=True)


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
        for piece in content:
            stream.write(piece)
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

    Not for what `daemon.core.follow` has read again, profiles, and who may log in: that is read when it is needed.
    """
    units = {folder: unit for unit, folder in plan.manifest.state.items()}
    restart = sorted(units[one.name.removeprefix("var/lib/")] for one in plan.changes if one.kind == "tree")
    return restart, any(one.kind != "tree" and not _at_once(one.name) for one in plan.changes)


def _at_once(name: str) -> bool:
    return name.startswith("etc/ssh/authorized_keys/") or (
        name.startswith("etc/mixos/") and file_for(name.removeprefix("etc/mixos/")) is not None
    )


def running(plan: Plan, alive: Callable[[str], bool]) -> None:
    """Raises RefusedError `backup-unit-running`: a running unit would go on writing into its old state."""
    for unit in services_to_restart(plan)[0]:
        if alive(unit):
            raise RefusedError(
                f"{unit} is running: its state cannot be replaced",
                reason="backup-unit-running",
                hint=f"mixctl service stop {unit}",
            )
