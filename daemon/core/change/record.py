"""What is written down of a change before it is made, so that the next start can finish it or take it back.

One JSON document per change, `STATE/changes/NUMBER.json`, replaced as a whole. A document that cannot be read, or is of
a later version, is set aside under a name that ends with ".damaged" and told: it is never guessed at.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.errors import MixosError
from common.files import sync_folder, write_atomically, write_whole
from daemon.core.change.files import Renames, from_document

VERSION = 1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# applying: some of it may be in force. trial: all of it is, its files are not written. committing: it is for good, its
# files are being written. undoing: it goes back.
State = Literal["applying", "trial", "committing", "undoing"]
Contents = Mapping[str, bytes | None]  # name → what the file holds, None: there is none


def boottime() -> float:
    """Seconds since the boot, suspended ones included (CLOCK_BOOTTIME): nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Of the running kernel. Raises MixosError `change-boot-id`."""
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError as error:
        raise MixosError(f"{BOOT_ID}: {error.strerror}", reason="change-boot-id") from error


@dataclass(frozen=True)
class Record:
    """A change. parts: who puts it in force, in this order; before: what each of them needs to go back; was, wanted:
    contents of their files, in force before and with it; deadline: of the trial, on CLOCK_BOOTTIME, None: for good."""

    number: str
    state: State
    who: str
    origin: str
    why: str
    boot: str
    parts: tuple[str, ...] = ()
    deadline: float | None = None
    before: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    was: Contents = field(default_factory=dict)
    wanted: Contents = field(default_factory=dict)
    renames: Renames = field(default_factory=Renames)

    @property
    def left(self) -> float:
        """Seconds until it is undone; 0 when it is over, or was begun before a reboot."""
        if self.deadline is None or self.boot != boot_id():
            return 0.0
        return max(0.0, self.deadline - boottime())


class Journal:
    """The records of one device. Raises MixosError `change-journal` for what cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: Record) -> None:
        """Make it durable."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path(record), json.dumps(_encode(record)).encode(), 0o600)
        except OSError as error:
            raise MixosError(
                f"the change cannot be written down: {error.strerror}",
                reason="change-journal",
                hint="mixctl storage usage says whether the disk is full",
            ) from error

    def move(self, record: Record, state: State) -> Record:
        """The same with another state, durable."""
        moved = replace(record, state=state)
        self.write(moved)
        return moved

    def keep(self, record: Record) -> None:
        """Keep the document as it is now, for `back`."""
        try:
            self._kept(record).unlink(missing_ok=True)
            os.link(self._path(record), self._kept(record))
        except OSError as error:
            raise MixosError(f"the change cannot be written down: {error.strerror}", reason="change-journal") from error

    def back(self, record: Record) -> None:
        """Make the document what it was when it was kept, if it was: that needs no space. Raises OSError."""
        if self._kept(record).exists():
            self._kept(record).rename(self._path(record))
            sync_folder(self.folder)

    def remove(self, record: Record) -> None:
        """It is over. Raises OSError."""
        self._kept(record).unlink(missing_ok=True)
        if self._path(record).exists():
            self._path(record).unlink()
            sync_folder(self.folder)

    def records(self) -> Iterator[Record | Path]:
        """All of them, oldest first; for one that cannot be read, where it was put."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield _decode(path.stem, json.loads(path.read_bytes()))
            except (
                OSError,
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
                OverflowError,
                RecursionError,
                MixosError,
            ):
                aside = path.with_name(f"{path.name}.damaged")
                try:
                    path.rename(aside)
                except OSError:  # a disk that takes no writes any more: the daemon starts all the same
                    aside = path
                yield aside

    def numbers(self) -> set[str]:
        """Of the records that are there, those that were set aside included."""
        return {path.name.partition(".")[0] for path in self.folder.glob("[0-9]*.json*")}

    def last(self) -> int:
        """The last number of a trial, or of a record that is there: whoever still names one must not mean another."""
        last = self.folder / "last"
        known = [int(number) for number in self.numbers() if number.isdigit()]
        with contextlib.suppress(OSError, ValueError):
            known.append(int(last.read_text("ascii")))
        return max(known, default=0)

    def given(self, number: str) -> None:
        """Remember it. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self.folder / "last", number.encode("ascii"), 0o600)

    def _path(self, record: Record) -> Path:
        return self.folder / f"{record.number}.json"

    def _kept(self, record: Record) -> Path:
        return self.folder / f"{record.number}.kept"


def _encode(record: Record) -> dict[str, Any]:
    return {
        "version": VERSION,
        "state": record.state,
        "who": record.who,
        "origin": record.origin,
        "why": record.why,
        "boot": record.boot,
        "parts": list(record.parts),
        "deadline": record.deadline,
        "before": record.before,
        "was": _texts(record.was),
        "wanted": _texts(record.wanted),
        "renames": record.renames.document(),
    }


def _decode(number: str, data: Any) -> Record:
    if data["version"] != VERSION or data["state"] not in ("applying", "trial", "committing", "undoing"):
        raise ValueError(data["version"])
    deadline = data["deadline"]
    return Record(
        number=number,
        state=data["state"],
        who=str(data["who"]),
        origin=str(data["origin"]),
        why=str(data["why"]),
        boot=str(data["boot"]),
        parts=tuple(map(str, data["parts"])),
        deadline=None if deadline is None else float(deadline),
        before={str(name): dict(value) for name, value in data["before"].items()},
        was=_bytes(data["was"]),
        wanted=_bytes(data["wanted"]),
        renames=from_document(data["renames"]),
    )


def _texts(contents: Contents) -> dict[str, str | None]:
    """Bytes as text; what is not UTF-8 comes through as surrogates, which JSON escapes."""
    return {name: None if data is None else data.decode("utf-8", "surrogateescape") for name, data in contents.items()}


def _bytes(texts: Mapping[str, str | None]) -> dict[str, bytes | None]:
    return {name: None if text is None else text.encode("utf-8", "surrogateescape") for name, text in texts.items()}
