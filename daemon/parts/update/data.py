"""What became of the data when the release was changed (`daemon.core.release`): for people, and for the way back.

Init has done it before this daemon was there, and left what it did in RUN/release.json; the ledger has what two
releases do not agree about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import MixosError, NotFoundError, RefusedError
from common.lines import split_lines
from daemon.core.change.applier import View, Wish
from daemon.core.change.files import Trees
from daemon.core.figures import Finding
from daemon.core.method import Caller
from daemon.core.part import Context
from daemon.core.release.ledger import Conflict, Ledger, load, save
from daemon.linux import facts
from daemon.linux.log import log

if TYPE_CHECKING:
    from daemon.parts.update.answers import ConflictRow

_MAX_DIFF = 16 << 10  # characters


class Data:
    """Of one device. root: the tree to read from."""

    def __init__(self, context: Context, root: Path) -> None:
        self._context = context
        words = (facts.text(root / "run/mixos/disk") or "").split()
        state = next((word.partition("=")[2] for word in words if word.startswith("STATE=")), "")
        self._ledger = root / state.lstrip("/") / "ledger"
        self.result: dict[str, Any] = {}
        self.conflicts: tuple[str, ...] = ()  # names of files

    def look(self) -> None:
        """Read what init has left, and what is open."""
        try:
            found = json.loads(facts.text(self._context.run / "release.json") or "{}")
            self.result = found if isinstance(found, dict) else {}
        except ValueError:
            self.result = {}
        try:
            ledger = self._load()
            self.conflicts = () if ledger is None else tuple(one.name for one in ledger.conflicts)
        except (MixosError, OSError) as error:
            log("err", f"update: {error}")

    def problem(self) -> str | None:
        """What is wrong with the data, as a sentence without a stop."""
        if self.result.get("how") == "failed":
            return f"settings and state are as another version left them: {self.result.get('error')}"
        return None

    def findings(self) -> Iterator[Finding]:
        """See `daemon.core.figures`."""
        if problem := self.problem():
            yield Finding("data", "critical", problem[:300])
        if self.result.get("newer"):
            yield Finding("data", "warning", "the data are of a later version, and were not kept as this one knew them")
        if self.conflicts:
            first = f"/{self.conflicts[0]}" + (f" and {len(self.conflicts) - 1} more" if self.conflicts[1:] else "")
            yield Finding("conflicts", "warning", f"{first}: two versions of it (mixctl update conflicts)")

    def rows(self) -> list[ConflictRow]:
        """Files of which two contents were wanted. Raises MixosError, OSError."""
        ledger = self._load()
        return [] if ledger is None else [self._row(one) for one in ledger.conflicts]

    def _row(self, one: Conflict) -> ConflictRow:
        import difflib  # seldom asked

        now, other = View(self._places()).read(one.name), one.other[0] if one.other is not None else b""
        before, after = (split_lines((data or b"").decode("utf-8", "replace")) for data in (now, other))
        lines = difflib.unified_diff(before, after, f"/{one.name}", f"/{one.name} ({one.version})", lineterm="", n=1)
        return {
            "file": f"/{one.name}",
            "why": one.why,
            "version": one.version,
            "at": one.at,
            "diff": "\n".join(lines)[:_MAX_DIFF],
        }

    async def resolve(self, caller: Caller, file: str, take: bool) -> None:
        """It is settled: the file stays as it is, or (take) becomes the other one. Raises MixosError, OSError."""
        ledger, name = self._load(), file.lstrip("/")
        found = next((one for one in ledger.conflicts if one.name == name), None) if ledger is not None else None
        if ledger is None or found is None:
            raise NotFoundError(f"there is nothing to settle about {file}", reason="update-no-conflict")
        if take:
            if not name.startswith("etc/") or found.other is None:
                raise RefusedError(f"{file} stays as this version needs it", reason="update-not-taken")
            data, mode = found.other
            why = f"/{name} of {found.version}"
            await self._context.changes.make(caller, Wish(), why, {name: data}, modes={name: mode})
        kept = tuple(one for one in ledger.conflicts if one != found)
        save(self._ledger, replace(ledger, conflicts=kept))
        self.conflicts = tuple(one.name for one in kept)

    def prepare_back(self, key: str, version: str) -> None:
        """The other release is to be started next; what it gets back becomes what that would be by now. A failure is
        told: it gets what it had then."""
        from daemon.core.release.switch import Device, Release, prepare_back
        from daemon.migrations import migrations

        try:
            release = Release(key, version, Path("/"), migrations())
            if prepare_back(Device(self._ledger, self._places()), release):
                log("notice", "update: what the other version gets back is up to date")
        except (MixosError, OSError) as error:
            log("err", f"update: the other version gets its state as it was left: {error}")

    def _places(self) -> Trees:
        return self._context.changes.places

    def _load(self) -> Ledger | None:
        return load(self._ledger) if self._ledger.exists() else None
