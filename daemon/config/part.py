"""The part `config`: history, diff and undo of /etc/mixos.

Every call that changes something leaves a revision behind, with the caller's name; files that someone edited by hand
are recorded when the daemon looks next (at start, and before each such call). An undo is written down first, so that
a power cut in the middle is finished at the next start.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from daemon.api.method import ADMINS, OPERATORS, Caller, Method
from daemon.config.history import History, Revision
from daemon.files import write_atomically
from daemon.log import log
from daemon.part import Context
from daemon.tomlfile import Strict

BY_HAND = "by hand"


class Range(Strict):
    """Two revisions; 0 is the newest, -1 the one before it. Without `new` it is the folder as it is now."""

    old: int = 0
    new: int | None = None


class Target(Strict):
    """The revision to go back to; by default the one before the newest."""

    revision: int = -1


class Page(Strict):
    """How many of the newest revisions to show."""

    count: int = Field(default=20, ge=1, le=500)


class Config:
    """Keeps the history of `context.etc` in `context.state`."""

    name = "config"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.history = History(context.etc, context.state / "config")
        self.journal = context.state / "config" / "undo.json"
        self._listener: asyncio.Task[None] | None = None

    def methods(self) -> Sequence[Method]:
        """config.history, config.diff, config.undo."""
        return [
            Method("config.history", "Revisions of the configuration, newest first.", self.list, OPERATORS, Page),
            Method("config.diff", "What changed between two revisions.", self.diff, ADMINS, Range),
            Method("config.undo", "Go back to an earlier revision.", self.undo, ADMINS, Target, changes=True),
        ]

    async def start(self) -> None:
        """Finish an undo that was cut off, then record what was changed by hand."""
        if self.journal.exists():
            document = json.loads(self.journal.read_bytes())
            self._finish(self.history.get(int(document["revision"])), str(document["who"]))
        self.record(BY_HAND, "found at start")
        self._listener = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self) -> None:
        async for event in self.context.events.listen("api.changed"):
            self.record(str(event.data.get("who", "?")), event.subject)

    def status(self) -> Mapping[str, Any]:
        """The newest revision."""
        found = self.history.revisions()
        return {"revision": found[-1].id if found else 0}

    def record(self, who: str, why: str) -> None:
        """Keep a revision if anything changed; a folder that cannot be kept is reported, not fatal."""
        from daemon.errors import DeviceError

        try:
            revision = self.history.record(who, why, time.time())
        except (DeviceError, OSError) as error:
            log("warning", f"the configuration could not be recorded: {error}")
            return
        if revision is not None:
            self.context.events.publish("config.changed", str(revision.id), who=who, why=why)

    async def list(self, _: Caller, params: Page) -> list[dict[str, Any]]:
        """Newest first, without content."""
        found = self.history.revisions()
        rows = []
        for before, revision in zip([None, *found[:-1]], found, strict=True):
            old = before.files if before else {}
            paths = sorted(path for path in {*old, *revision.files} if old.get(path) != revision.files.get(path))
            rows.append(
                {"id": revision.id, "at": revision.at, "who": revision.who, "why": revision.why, "files": paths}
            )
        return rows[-params.count :][::-1]

    async def diff(self, _: Caller, params: Range) -> dict[str, Any]:
        """A unified diff as text."""
        old = self.history.get(params.old)
        new = self.history.current() if params.new is None else self.history.get(params.new).files
        return {"diff": self.history.changes(old.files, new)}

    async def undo(self, caller: Caller, params: Target) -> dict[str, Any]:
        """Restore a revision; the parts that the files belong to hear of it through the event `config.restored`."""
        self.record(BY_HAND, "before an undo")
        revision = self.history.get(params.revision)
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.journal, json.dumps({"revision": revision.id, "who": caller.name}).encode(), 0o600)
        return {"revision": revision.id, "changed": self._finish(revision, caller.name)}

    def _finish(self, revision: Revision, who: str) -> Sequence[str]:
        changed = self.history.restore(revision)
        self.record(who, f"undo to revision {revision.id}")
        self.journal.unlink(missing_ok=True)
        if changed:
            self.context.events.publish("config.restored", str(revision.id), files=changed)
        return changed
