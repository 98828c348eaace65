"""Replacing several files at once: everything is written beside its place first, then only renamed.

What is to be renamed is a `Renames`, which its user makes durable (a journal) before the first of them. Every function
here can be repeated from the beginning after a cut at any moment. `step` is called between any two renames, so that
tests can stop the world there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import MixosError, RefusedError
from common.files import sync_folder, write_durably

if TYPE_CHECKING:
    from daemon.core.part import Context

Step = Callable[[str], None]
STAGING = ".mixos-change"


def nothing(_: str) -> None:
    """A `step` that does nothing."""


@dataclass(frozen=True)
class Trees:
    """The two folders below which changes happen. Names are relative to the root: `etc/…`, `var/lib/…`. own: prefixes
    of names that are elsewhere, as in a daemon whose folders are not called as on a device."""

    etc: Path = Path("/etc")
    lib: Path = Path("/var/lib")
    own: tuple[tuple[str, Path], ...] = ()

    @classmethod
    def of(cls, context: Context) -> Trees:
        """Those of a daemon."""
        own = (("etc/mixos", context.etc), ("var/lib/mixos", context.state))
        return cls(context.etc.parent, context.state.parent, own)

    def place(self, name: str) -> Path:
        """Where a name is on this device. Raises RefusedError `change-name` for one that leads elsewhere."""
        if not {"", ".", ".."}.isdisjoint(name.split("/")) or not name.startswith(("etc/", "var/lib/")):
            raise RefusedError(f"{name!r} is no name of a file below /etc or /var/lib", reason="change-name")
        for prefix, folder in self.own:
            if name == prefix or name.startswith(f"{prefix}/"):
                return folder / name[len(prefix) + 1 :]
        return self.etc / name[4:] if name.startswith("etc/") else self.lib / name[8:]


class Rename(NamedTuple):
    """One of them. kind: "file", "tree" (a folder with all that is in it) or "gone"; target: the place; new, old:
    beside it, in the same file system; existed: whether something was there."""

    kind: str
    name: str
    target: str
    new: str
    old: str
    existed: bool


class Renames(NamedTuple):
    """What is to be done. folders: missing ones above the targets, the upper ones first; they get mode 0755 below /etc,
    otherwise 0700."""

    changes: tuple[Rename, ...] = ()
    folders: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """For a journal."""
        changes = [change._asdict() for change in self.changes]
        return {"changes": changes, "folders": list(self.folders)}


def from_document(data: Mapping[str, Any]) -> Renames:
    """What `document` made. Raises MixosError `change-journal`."""
    try:
        changes = tuple(
            Rename(
                str(one["kind"]),
                str(one["name"]),
                str(one["target"]),
                str(one["new"]),
                str(one["old"]),
                bool(one["existed"]),
            )
            for one in data["changes"]
        )
        folders = tuple(map(str, data["folders"]))
    except (KeyError, TypeError) as error:
        raise MixosError("the list of renames is damaged", reason="change-journal") from error
    return Renames(changes, folders)


def missing_folders(changes: Sequence[Rename]) -> tuple[str, ...]:
    """Folders above the targets that are not there, the upper ones first."""
    found: dict[str, None] = {}
    for change in changes:
        if change.kind == "file":
            above = [str(path) for path in Path(change.target).parents if not path.is_dir()]
            found.update(dict.fromkeys(reversed(above)))
    return tuple(found)


def staging(trees: Trees, number: str) -> tuple[Path, Path]:
    """Where the files of a change wait, in the file systems of /etc and /var/lib: folders with `new` and `old`."""
    return trees.etc / f"{STAGING}-{number}", trees.lib / f"{STAGING}-{number}"


def make_staging(trees: Trees, number: str) -> tuple[Path, Path]:
    """The same, made anew. Raises OSError."""
    found = staging(trees, number)
    for folder in found:
        remove(folder)
        for one in (folder, folder / "new", folder / "old"):
            one.mkdir(mode=0o700)
    return found


def abandoned(trees: Trees, kept: Collection[str]) -> list[Path]:
    """Staging folders of changes that were never written down. kept: numbers of those that were."""
    found = [path for folder in (trees.etc, trees.lib) for path in folder.glob(f"{STAGING}-[0-9]*")]
    return [path for path in found if path.name.removeprefix(f"{STAGING}-") not in kept]


def stage(trees: Trees, contents: Mapping[str, tuple[bytes, int] | None], number: str) -> Renames:
    """Write new contents (data, mode; None: the file goes) beside their places, durably. What is so already is left
    out. number: of the change, for the name of the staging folder. Raises OSError, RefusedError `change-conflict`;
    nothing is left behind then."""
    try:
        for folder in staging(trees, number):
            remove(folder)
        changes = [
            change
            for count, (name, content) in enumerate(sorted(contents.items()))
            if (change := _stage(trees, name, content, number, str(count), contents)) is not None
        ]
        for folder in {Path(change.new).parent for change in changes}:
            for one in (folder, folder.parent, folder.parent.parent):
                sync_folder(one)
    except BaseException:
        for folder in staging(trees, number):
            remove(folder)
        raise
    return Renames(tuple(changes), missing_folders(changes))


def _stage(
    trees: Trees,
    name: str,
    content: tuple[bytes, int] | None,
    number: str,
    count: str,
    contents: Mapping[str, tuple[bytes, int] | None],
) -> Rename | None:
    target, beside = trees.place(name), staging(trees, number)[0 if name.startswith("etc/") else 1]
    existed = os.path.lexists(target)
    if content is None and not existed:
        return None
    if content is not None and _same(target, *content):
        return None
    if target.is_dir() and not target.is_symlink() and _holds_others(target, name, contents):
        raise RefusedError(f"{target} is a folder with files in it", reason="change-conflict")
    for folder in (beside, beside / "new", beside / "old"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new, old = beside / "new" / count, beside / "old" / count
    if content is not None:
        write_durably(new, *content)
    return Rename("gone" if content is None else "file", name, str(target), str(new), str(old), existed)


def _holds_others(folder: Path, name: str, contents: Mapping[str, tuple[bytes, int] | None]) -> bool:
    """Whether there are files in a folder that do not go in the same change."""
    there = [Path(root, file).relative_to(folder) for root, _, found in os.walk(folder) for file in found]
    return any(contents.get(f"{name}/{path}", b"") is not None for path in there)


def _same(target: Path, data: bytes, mode: int) -> bool:
    if target.is_symlink() or not target.is_file():
        return False
    return target.read_bytes() == data and target.stat().st_mode & 0o7777 == mode


def do(renames: Renames, step: Step = nothing) -> None:
    """Put everything in its place; what was there is kept beside it. Raises OSError."""
    for change in renames.changes:
        target, new, old = Path(change.target), Path(change.new), Path(change.old)
        if change.kind != "gone" and not os.path.lexists(new):
            continue  # done before a cut
        for folder in _above(change, renames):
            if not folder.is_dir():
                folder.mkdir()
                folder.chmod(0o755 if change.name.startswith("etc/") else 0o700)  # whatever our umask is
        if os.path.lexists(target) and not os.path.lexists(old):
            if change.kind == "file" and not target.is_dir():
                os.link(target, old, follow_symlinks=False)  # so that readers always find one or the other
            else:
                target.rename(old)
            step(f"kept {change.name}")
        if change.kind != "gone":
            new.rename(target)
        step(f"done {change.name}")
    _sync(renames)


def undo(renames: Renames, step: Step = nothing) -> None:
    """Put back what was there. Raises OSError."""
    for change in reversed(renames.changes):
        target, new, old = Path(change.target), Path(change.new), Path(change.old)
        if os.path.lexists(old):  # also where nothing was when it was staged: somebody made it since
            if (change.kind == "tree" or not change.existed or old.is_dir()) and os.path.lexists(target):
                target.rename(new)
                step(f"back {change.name}")
            old.rename(target)
        elif not change.existed and not os.path.lexists(new) and os.path.lexists(target):
            target.rename(new)
        for folder in reversed(_above(change, renames)):
            with contextlib.suppress(OSError):  # somebody uses it by now
                folder.rmdir()
        step(f"undone {change.name}")
    _sync(renames)


def _above(change: Rename, renames: Renames) -> list[Path]:
    """The folders that this one needs, of those that were missing; the upper ones first."""
    return [Path(folder) for folder in renames.folders if Path(folder) in Path(change.target).parents]


def _sync(renames: Renames) -> None:
    for folder in {Path(change.target).parent for change in renames.changes}:
        if folder.is_dir():
            sync_folder(folder)


def clean(renames: Renames) -> None:
    """Remove what was kept and what was staged."""
    for folder in {Path(change.new).parent.parent for change in renames.changes}:
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a staging folder with all that is in it, as far as that can be done. What a unit kept may be hostile, so
    this takes two descriptors and no recursion, however deep it is: inner folders come up to `folder` first."""
    flags, numbers = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, itertools.count()
    with contextlib.suppress(OSError):
        top = os.open(folder, flags)
        try:
            waiting = _sweep(top, top, numbers)
            while waiting:
                name = waiting.pop()
                with contextlib.suppress(OSError):
                    inner = os.open(name, flags, dir_fd=top)
                    try:
                        waiting += _sweep(inner, top, numbers)
                    finally:
                        os.close(inner)
                    os.rmdir(name, dir_fd=top)
        finally:
            os.close(top)
        folder.rmdir()


def _sweep(place: int, top: int, numbers: Iterator[int]) -> list[str]:
    """Empty an open folder: files go, folders are moved to `top`, where they have these names."""
    moved = []
    with os.scandir(place) as found:
        entries = list(found)
    for one in entries:
        with contextlib.suppress(OSError):
            if one.is_dir(follow_symlinks=False):
                os.rename(one.name, name := f"{STAGING}-{next(numbers)}", src_dir_fd=place, dst_dir_fd=top)
                moved.append(name)
            else:
                os.unlink(one.name, dir_fd=place)
    return moved
