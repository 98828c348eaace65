"""What somebody wants changed: new contents of files, how long they are on trial, what is answered of it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.errors import MixosError, RefusedError, UsageError
from common.lines import split_lines
from daemon.core.change import files
from daemon.core.change.applier import ETC, Plan, View, Wish
from daemon.core.change.files import Renames, Trees
from daemon.core.change.record import Contents
from daemon.core.manifest import file_for
from daemon.core.method import Caller

if TYPE_CHECKING:
    from daemon.core.change.answers import Made

TRIAL_SECONDS = 60  # of a change that could cut the caller's connection and for which nothing else was said


class Wanted(NamedTuple):
    """See the module. contents: by name; staged: files that are beside their places already, with the number of their
    change; modes: of files that do not keep theirs; parts: who puts its files in force though none of them changes."""

    caller: Caller
    wish: Wish
    why: str
    contents: Contents
    parts: tuple[str, ...]
    staged: tuple[str, Renames]
    modes: Mapping[str, int]

    @property
    def names(self) -> set[str]:
        """Of all that changes, folders included."""
        return {*self.contents, *(one.name for one in self.staged[1].changes)}

    @property
    def changed(self) -> dict[str, bytes | Path | None]:
        """Names and new contents; of staged ones where they are."""
        staged = {
            one.name: None if one.kind == "gone" else Path(one.new)
            for one in self.staged[1].changes
            if one.kind != "tree"
        }
        return {**self.contents, **staged}

    def stage(self, places: Trees, number: str) -> Renames:
        """Write the files beside their places, unless that was done. Raises RefusedError `change-conflict`, MixosError
        `change-files`."""
        if self.staged[1].changes:
            return self.staged[1]
        with_modes = {
            name: None if data is None else (data, self.modes.get(name, _mode(places, name)))
            for name, data in self.contents.items()
        }
        try:
            return files.stage(places, with_modes, number)
        except OSError as error:
            raise files_failed(error) from error

    def difference(self, places: Trees) -> str:
        """A unified diff of the files that would change; secrets are only named."""
        disk, view = View(places), View(places, self.changed)
        lines: list[str] = []
        for name in sorted(self.changed):
            one, other = (_lines(each.read(name)) for each in (disk, view))
            if one == other:
                continue
            if one is None or other is None or _mode(places, name) & 0o044 != 0o044:
                lines.append(f"~ {name} changes")
            else:
                lines += difflib.unified_diff(one, other, f"a/{name}", f"b/{name}", lineterm="")
        return "\n".join(lines)

    def seconds(self, plans: Mapping[str, Plan]) -> int:
        """How long it is on trial, 0: not at all. Raises UsageError `change-force-confirm`, RefusedError
        `change-no-trial`."""
        wish, cuts = self.wish, any(plan.cuts for plan in plans.values())
        if wish.force and wish.confirm:
            raise UsageError(
                "force is for good, confirm is for a trial", reason="change-force-confirm", hint="leave one of them out"
            )
        seconds = 0 if wish.force else (TRIAL_SECONDS if cuts else 0) if wish.confirm is None else wish.confirm
        if plans or not seconds:
            return seconds
        if self.changed or self.staged[1].changes:
            raise RefusedError(
                f"{self.why} cannot be tried: no part puts these files in force before they are written",
                reason="change-no-trial",
                hint="leave out --confirm; mixctl config undo goes back",
            )
        return 0

    def answer(self, plans: Mapping[str, Plan]) -> Made:
        """What is told of it before it is made."""
        return {
            "changed": any(plan.changes for plan in plans.values()) or bool(self.changed or self.staged[1].changes),
            "applied": False,
            "files": "",
            "diff": "\n".join(plan.diff for plan in plans.values() if plan.diff),
            "steps": [step for plan in plans.values() for step in plan.steps],
            "cuts-off": any(plan.cuts for plan in plans.values()),
            "confirm": None,
            "change": None,
            "problems": [],
        }


def files_failed(error: OSError) -> MixosError:
    """What is said when files cannot be written."""
    return MixosError(
        f"a file could not be put in its place: {error}; everything is as it was",
        reason="change-files",
        hint="mixctl storage usage says whether the disk is full",
    )


def _mode(places: Trees, name: str) -> int:
    """A file keeps its mode; a new one is for everybody to read, unless it is the daemon's own or holds secrets."""
    target = places.place(name)
    if target.is_file():
        return target.stat().st_mode & 0o777
    found = file_for(name.removeprefix(ETC)) if name.startswith(ETC) else None
    return 0o644 if name.startswith(ETC) and (found is None or found[1].writable) else 0o600


def _lines(data: bytes | None) -> list[str] | None:
    """Of a text; None for what is not text."""
    try:
        return split_lines((data or b"").decode())
    except UnicodeDecodeError:
        return None
