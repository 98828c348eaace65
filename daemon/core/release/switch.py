"""The first start of a release on data that another one has used, whichever of the two is the newer one.

Forward: migrations that did not run yet, then what changed in the defaults of /etc; what each file was before is kept
in the ledger. Back: a release that the data were left by once gets its files back from there, whatever the other
releases were. Numbers of versions are not compared. All of it is computed first, then carried out as one (`ledger`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from common.errors import MixosError, RefusedError
from daemon.core.change import files
from daemon.core.change.files import Step, Trees
from daemon.core.release.defaults import Check, merge_defaults, merged_back, read_defaults, refuse_broken
from daemon.core.release.ledger import MAX_KEPT, MAX_OTHER, Conflict, File, Ledger, Move, carry_out, load, save, settle
from daemon.core.release.tree import Tree

LEVEL = "var/lib/mixos/level"  # the number of the last migration that ran; kept and restored with what it is about

_MAX_LEVEL = 8  # bytes

How = Literal["new", "forward", "back", "same"]


class Migration(NamedTuple):
    """One of a release. backward: None: what was there before is all that an older release gets."""

    number: int
    name: str
    forward: Callable[[Tree], None]
    backward: Callable[[Tree], None] | None = None


class Release(NamedTuple):
    """What runs. key: its root hash; image: its root, without what is mounted over it."""

    key: str
    version: str
    image: Path
    migrations: Sequence[Migration] = ()

    @property
    def level(self) -> int:
        """Of the data as it makes them."""
        return max((one.number for one in self.migrations), default=0)


@dataclass(frozen=True)
class Outcome:
    """What was done. changed: names of files; conflicts: of those about which there is one now; newer: the data are of
    a later release, and nothing is known that leads back."""

    how: How
    version: str = ""
    changed: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    newer: bool = False


class Device(NamedTuple):
    """Where all this happens. ledger: the file; check, step: as tests want them."""

    ledger: Path
    trees: Trees
    check: Check = refuse_broken
    step: Step = files.nothing
    clock: Callable[[], float] = time.time


def take_over(device: Device, release: Release) -> Outcome:
    """Give the data the shape of `release`. Raises MixosError, OSError; nothing has changed then."""
    ledger = settle(device.ledger, load(device.ledger), device.step)
    tree = Tree(device.trees)
    level = _level(tree)
    if ledger is not None and ledger.release == release.key and level >= release.level:
        return Outcome("same", newer=level > release.level)
    left = [] if ledger is None else [move.release for move in ledger.moves]
    if ledger is not None and release.key != ledger.release and release.key in left:
        index = len(left) - 1 - left[::-1].index(release.key)
        how: How = "back"
        new = _back(device, release, tree, ledger, index)
    else:
        how = "forward" if ledger is not None else "new"
        new = _forward(device, release, tree, ledger)
    carry_out(device.ledger, ledger, new.bounded(), tree.files(), device.trees, device.step)
    known = ledger.conflicts if ledger is not None else ()
    conflicts = tuple(one.name for one in new.conflicts if one not in known)
    version = ledger.version if ledger is not None else ""
    return Outcome(how, version, tuple(sorted(tree.changes)), conflicts, _level(tree) > release.level)


def _level(tree: Tree) -> int:
    """0: no migration ever ran. Raises MixosError `release-level`: what is not known is not migrated again."""
    text = tree.read(LEVEL)
    if text is None:
        return 0
    if not text.strip().isdigit() or len(text) > _MAX_LEVEL:
        raise MixosError(f"/{LEVEL} says {text[:20]!r} instead of a number", reason="release-level")
    return int(text)


def _migrate(release: Release, tree: Tree) -> tuple[int, ...]:
    """Run what did not run yet; gives the numbers."""
    level = _level(tree)
    ran = [one for one in sorted(release.migrations, key=lambda one: one.number) if one.number > level]
    for migration in ran:
        _run(migration, migration.forward, tree)
    if ran:
        tree.put(LEVEL, (b"%04d\n" % release.level, 0o600))
    return tuple(one.number for one in ran)


def _forward(device: Device, release: Release, tree: Tree, ledger: Ledger | None) -> Ledger:
    ran, defaults, now = _migrate(release, tree), read_defaults(release.image), device.clock()
    if ledger is None:  # what was before is not known
        return Ledger(release.key, release.version, defaults)
    found = merge_defaults(ledger.defaults, defaults, tree, device.check)
    moved = {name: (tree.before(name), after) for name, after in tree.changes.items()}
    for name, (before, after) in moved.items():
        if before == defaults.get(name):  # the device had none of its own: what showed was the other release's
            moved[name] = (ledger.defaults.get(name, before), after)
    move = Move(ledger.release, ledger.version, now, ran, moved)
    moves = (*ledger.moves, move)
    if ledger.release == release.key:  # it took the data over already; then older ones came out of a backup
        last = [replace(one, files={**one.files, **move.files}) for one in ledger.moves[-1:]]
        moves = (*ledger.moves[:-1], *last)
    if moves and moves[-1].size > MAX_KEPT:
        raise RefusedError(f"more than {MAX_KEPT >> 20} MiB would change", reason="migration-size")
    known = [one for one in ledger.conflicts if one.name not in found]
    conflicts = [Conflict(name, release.key, "default", release.version, now, _kept(defaults[name])) for name in found]
    return Ledger(release.key, release.version, defaults, moves, (*known, *conflicts))


def _kept(file: File | None) -> File | None:
    """As it is kept for people to look at."""
    return file if file is not None and len(file[0]) <= MAX_OTHER and file[1] >= 0 else None


def _run(migration: Migration, work: Callable[[Tree], None], tree: Tree) -> None:
    """Raises MixosError `migration-failed`: whatever is wrong with it, nothing is changed then."""
    try:
        work(tree)
    except Exception as error:  # a defect of a migration must not be one of the boot
        what = error.message if isinstance(error, MixosError) else f"{type(error).__name__}: {error}"
        raise MixosError(f"migration {migration.name}: {what}", reason="migration-failed") from error


def _back(device: Device, release: Release, tree: Tree, ledger: Ledger, index: int) -> Ledger:
    """Undo the moves from the last one to number `index`."""
    now = device.clock()
    undone = {ledger.release, *(move.release for move in ledger.moves[index + 1 :])}
    conflicts = {one.name: one for one in ledger.conflicts if one.release not in undone}
    for move in reversed(ledger.moves[index:]):
        for name, (before, after) in move.files.items():
            there = tree.file(name, own=False)
            wanted = before
            if there not in (before, after):
                merged = merged_back(name, before, after, there, device.check)
                wanted = merged or before
                if merged is None and name != LEVEL:
                    conflicts[name] = Conflict(name, release.key, "release", ledger.version, now, _kept(there))
            tree.put(name, wanted)
    _migrate(release, tree)  # what is given back may have come out of a still older backup
    moves, kept = ledger.moves[:index], tuple(conflicts.values())
    return Ledger(release.key, release.version, read_defaults(release.image), moves, kept)


def prepare_back(device: Device, release: Release) -> bool:
    """Before the release is left for the one before: what that one gets back becomes what it would be by now, if all
    migrations of the last move have a way back. Changes no file but the ledger; whether it did. Raises as `take_over`.
    """
    ledger = load(device.ledger)
    if ledger is None or ledger.pending is not None or ledger.release != release.key or not ledger.moves:
        return False
    move, tree = ledger.moves[-1], Tree(device.trees)
    known = {one.number: one for one in release.migrations}
    ran = [known[number] for number in move.migrations if number in known]
    if not ran or len(ran) < len(move.migrations):
        return False
    for migration in reversed(ran):
        if migration.backward is None:
            return False
        _run(migration, migration.backward, tree)
    fresh = {name: (tree.file(name), tree.before(name)) for name in tree.changes}
    moved = replace(move, files={**move.files, **fresh})
    save(device.ledger, replace(ledger, moves=(*ledger.moves[:-1], moved)).bounded())
    return True
