"""Which release the data have the shape of, and how an earlier one gets back what it knew.

One file, `STATE/ledger`, replaced as a whole. Its first line is what init compares: `1 RELEASE`, or `1 RELEASE pending`
while files are being put in their places; a JSON document follows. **Format 1 is read by every release**: one that is
older than the data restores by it what it needs, without knowing anything of the release that wrote it. A later format
may add members, but leaves these as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.errors import MixosError
from common.files import read_regular, sync_folder, write_atomically
from daemon.core.change import files
from daemon.core.change.files import Renames, Step, Trees, from_document
from daemon.linux.log import log

FORMAT = "1"
NUMBER = "release"  # of the staging folders, see `daemon.core.change.files`
MAX_STEPS = 8  # that can be gone back
MAX_KEPT = 8 << 20  # bytes of contents that are kept for them
MAX_CONFLICTS = 64
MAX_OTHER = 64 << 10  # bytes of the other content of a conflict
_MAX_BYTES = 128 << 20  # of the file: a byte that is no text takes six

File = tuple[bytes, int]  # content, mode
Files = Mapping[str, File | None]  # by name ("etc/…", "var/lib/mixos/…"); None: there is none
_MOVE, _CONFLICT = ("release", "version", "at", "migrations"), ("name", "release", "why", "version", "at")  # members
Why = Literal["default", "release"]


@dataclass(frozen=True)
class Move:
    """From one release to the next. release, version: which was left; migrations: numbers of those that ran; files: as
    they were before and after it."""

    release: str
    version: str
    at: float
    migrations: tuple[int, ...]
    files: Mapping[str, tuple[File | None, File | None]]

    @property
    def size(self) -> int:
        """Bytes of the contents."""
        return sum(len(one[0]) for pair in self.files.values() for one in pair if one is not None)


@dataclass(frozen=True)
class Conflict:
    """A file of which two contents were wanted. release: that ran when this was found; version: whose `other` is. why:
    "default": the device's is in force, `other` is the new default;
    "release": the release that went back has its own in force, `other` is what was there. other: None: no file, or none
    that can be kept."""

    name: str
    release: str
    why: Why
    version: str
    at: float
    other: File | None


@dataclass(frozen=True)
class Ledger:
    """See the module. defaults: the files of /etc as the release brings them; moves: the last one at the end."""

    release: str
    version: str
    defaults: Mapping[str, File] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    pending: Renames | None = None

    def bounded(self) -> Ledger:
        """Without the oldest moves and conflicts, of those that are too many or too large to be kept."""
        kept: list[Move] = []
        for move in reversed(self.moves[-MAX_STEPS:]):
            if sum(one.size for one in (*kept, move)) > MAX_KEPT:
                break
            kept.insert(0, move)
        return replace(self, moves=tuple(kept), conflicts=self.conflicts[-MAX_CONFLICTS:])


def load(path: Path) -> Ledger | None:
    """None where there is none. One that is damaged is set aside (".damaged"), and told. Raises MixosError
    `ledger-format`, OSError."""
    try:
        data = read_regular(path, _MAX_BYTES)
    except FileNotFoundError:
        return None
    head, _, text = data.partition(b"\n")
    number = head.partition(b" ")[0]
    if number != FORMAT.encode() and number.isdigit():
        raise MixosError(f"{path} is of the later format {number[:9].decode()}", reason="ledger-format")
    try:
        return _decode(json.loads(text if number.isdigit() else b""))
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MixosError) as error:
        log("err", f"{path} is damaged ({type(error).__name__}); it is set aside, and begun anew")
        path.rename(path.with_name(f"{path.name}.damaged"))
        return None


def save(path: Path, ledger: Ledger) -> None:
    """Make it durable. Raises OSError."""
    state = " pending" if ledger.pending is not None else ""
    write_atomically(path, f"{FORMAT} {ledger.release}{state}\n{json.dumps(_encode(ledger))}\n".encode(), 0o600)


def settle(path: Path, ledger: Ledger | None, step: Step = files.nothing) -> Ledger | None:
    """Finish what a cut has left of `carry_out`. Raises OSError."""
    if ledger is None or ledger.pending is None:
        return ledger
    files.do(ledger.pending, step)
    files.clean(ledger.pending)
    step("clean")
    done = replace(ledger, pending=None)
    save(path, done)
    step("settled")
    return done


def carry_out(
    path: Path, old: Ledger | None, new: Ledger, contents: Files, trees: Trees, step: Step = files.nothing
) -> None:
    """Write files, and `new` as the ledger: all or nothing. Everything that is to be written is on the disk before the
    first file changes, and so is what is needed to go back. Raises OSError, MixosError."""
    for folder in files.staging(trees, NUMBER):
        files.remove(folder)  # of one that was cut off before it was written down
    renames = files.stage(trees, contents, NUMBER)
    step("staged")
    save(path, replace(new, pending=renames))
    step("recorded")
    try:
        files.do(renames, step)
    except OSError:
        files.undo(renames, step)
        if old is None:
            path.unlink()
            sync_folder(path.parent)
        else:
            save(path, old)
        files.clean(renames)
        raise
    files.clean(renames)
    step("clean")
    save(path, new)
    step("settled")


# -- as JSON -----------------------------------------------------------------------------------------------------------


def _encode(ledger: Ledger) -> dict[str, Any]:
    return {
        "release": ledger.release,
        "version": ledger.version,
        "defaults": {name: _file(one) for name, one in ledger.defaults.items()},
        "moves": [
            {
                **{name: getattr(move, name) for name in _MOVE},
                "files": {name: [_file(one) for one in pair] for name, pair in move.files.items()},
            }
            for move in ledger.moves
        ],
        "conflicts": [
            {**{name: getattr(one, name) for name in _CONFLICT}, "other": _file(one.other)} for one in ledger.conflicts
        ],
        "pending": None if ledger.pending is None else ledger.pending.document(),
    }


def _decode(data: Any) -> Ledger:
    defaults = {str(name): _content(one) for name, one in data["defaults"].items()}
    moves = [
        Move(
            str(one["release"]),
            str(one["version"]),
            float(one["at"]),
            tuple(map(int, one["migrations"])),
            {str(name): (_content(before), _content(after)) for name, (before, after) in one["files"].items()},
        )
        for one in data["moves"]
    ]
    conflicts = [
        Conflict(
            str(one["name"]),
            str(one["release"]),
            "release" if one["why"] == "release" else "default",
            str(one["version"]),
            float(one["at"]),
            _content(one["other"]),
        )
        for one in data["conflicts"]
    ]
    return Ledger(
        str(data["release"]),
        str(data["version"]),
        {name: one for name, one in defaults.items() if one is not None},
        tuple(moves),
        tuple(conflicts),
        None if data["pending"] is None else from_document(data["pending"]),
    )


def _file(one: File | None) -> list[Any] | None:
    """Bytes as text; what is not UTF-8 comes through as surrogates, which JSON escapes."""
    return None if one is None else [one[0].decode("utf-8", "surrogateescape"), one[1]]


def _content(one: Any) -> File | None:
    return None if one is None else (str(one[0]).encode("utf-8", "surrogateescape"), int(one[1]) & 0o7777)
