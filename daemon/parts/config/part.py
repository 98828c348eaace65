"""The part `config`: the files in /etc/mixos that people write, their history, diff and undo.

After every call that changes something, a revision has what is new, with the caller's name: what somebody edited by
hand before it included. What was edited and never followed by a call is found at the next start, or before an undo.
An undo is written down first, so that a power cut in the middle is finished at the next start; one that fails is taken
back. It is about files; `daemon.core.follow` has the parts read them again.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, SecretStr, ValidationError

from common.errors import MixosError, NotFoundError
from common.files import sync_folder, write_atomically
from common.tomlfile import Strict, parse, read_text
from daemon.core.manifest import file_for, known_files, methods_for
from daemon.core.method import ADMINS, OPERATORS, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.linux.log import log
from daemon.parts.config.history import Files, History, Revision

BY_HAND = "by hand"
_PATH = r"([a-z0-9][a-z0-9_-]{0,31}/)?[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,16}){0,3}"


class HistoryError(MixosError):
    """The configuration cannot be kept or put back. Reasons begin with `history-`."""

    exit_code = 8


class Journal(Strict):
    """An undo under way: the revision to come to, and who wants it."""

    revision: int
    who: str
    origin: str


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


class Named(Strict):
    """A file that people write, below /etc/mixos; secrets and what the daemon writes for itself are not among them."""

    path: Annotated[str, Field(pattern=rf"^{_PATH}$")]


class Put(Named):
    """Its new content. The history keeps it, the audit does not."""

    text: SecretStr


def _entry(path: str) -> Callable[[str, Path], object] | None:
    """How the content of a file is checked, if it is. Raises NotFoundError for one that no part knows as people's."""
    found = file_for(path)
    if found is None or not found[1].writable:
        known = [file.path for file in known_files() if file.writable]
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
        raise NotFoundError(f"no part has a file {path} for people to write", reason="config-unknown-file", hint=hint)
    manifest, file = found
    if not file.check:
        return None
    check = manifest.find(file.check)
    if isinstance(check, type) and issubclass(check, BaseModel):
        return lambda text, place: parse(text, place, check)
    function: Callable[[str, Path], object] = check
    return function


class Config:
    """Keeps the history of `context.etc` in `context.state`."""

    name = "config"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.history = History(context.etc, context.state / "config")
        self.journal = context.state / "config" / "undo.json"
        self._newest = 0
        self._listener: asyncio.Task[None] | None = None

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return [
            Method("config.list", "The files of the configuration.", self.files, OPERATORS),
            Method("config.get", "A file of the configuration.", self.get, ADMINS, Named),
            Method("config.put", "Write a file of the configuration.", self.put, ADMINS, Put, changes=True),
            Method("config.remove", "Remove a file of the configuration.", self.remove, ADMINS, Named, changes=True),
            Method("config.history", "Revisions of the configuration, newest first.", self.revisions, OPERATORS, Page),
            Method("config.diff", "What changed between two revisions.", self.diff, ADMINS, Range),
            Method("config.undo", "Go back to an earlier revision.", self.undo, ADMINS, Target, changes=True),
        ]

    async def start(self) -> None:
        """Finish an undo that was cut off, then record what was changed by hand."""
        if self.journal.exists():
            try:
                journal = Journal.model_validate_json(self.journal.read_bytes())
                self._finish(self.history.get(journal.revision), journal)
            except ValidationError as error:
                log("err", f"config: {self.journal} is damaged: {error}")
                self.journal.unlink(missing_ok=True)
            except (MixosError, OSError) as error:
                log("err", f"config: an undo that was cut off cannot be finished: {error}")
                self._take_back(self.history.last())
        self.record(BY_HAND, "found at start")
        self._listener = background("config", self._listen)

    async def stop(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self) -> None:
        async for event in self.context.events.listen("api.changed"):
            self.record(str(event.data.get("who", "?")), event.subject)

    def status(self) -> Mapping[str, Any]:
        """The newest revision."""
        return {"revision": self._newest}

    def record(self, who: str, why: str) -> None:
        """Keep a revision if anything changed; a folder that cannot be kept is reported, not fatal."""
        try:
            self._record(who, why)
        except HistoryError as error:
            log("warning", f"config: {error.message}")

    def _record(self, who: str, why: str) -> None:
        """Like `record`. Raises HistoryError `history-failed`."""
        try:
            revision = self.history.record(who, why, time.time())
            newest = revision or self.history.last()
        except (MixosError, OSError) as error:
            raise HistoryError(
                f"the configuration could not be recorded: {error}",
                reason="history-failed",
                hint="mixctl storage usage says whether the disk is full",
            ) from error
        self._newest = newest.id if newest else 0
        if revision is not None:
            self.context.events.publish("config.changed", str(revision.id), who=who, why=why)

    async def files(self, _: Caller, __: Nothing) -> list[dict[str, Any]]:
        """path and size in bytes of each file that `put` may write."""
        found = {path for file in known_files() if file.writable for path in self.context.etc.glob(file.path)}
        names = {path.relative_to(self.context.etc).as_posix(): path for path in found if path.is_file()}
        return [
            {"path": name, "size": path.stat().st_size}
            for name, path in sorted(names.items())
            if re.fullmatch(_PATH, name)
        ]

    async def get(self, _: Caller, params: Named) -> dict[str, Any]:
        """`text` of the file. Raises NotFoundError `config-unknown-file`, ConfigError `config-missing` and so on."""
        _entry(params.path)
        return {"path": params.path, "text": read_text(self.context.etc / params.path)}

    async def put(self, _: Caller, params: Put) -> dict[str, Any]:
        """`apply`: the methods that put it in force. Raises NotFoundError `config-unknown-file`, ConfigError for what
        its part would not take, HistoryError."""
        path, text = self.context.etc / params.path, params.text.get_secret_value()
        check = _entry(params.path)
        if check is not None:
            await asyncio.to_thread(check, text, Path(params.path))
        self._record(BY_HAND, f"before a change of {params.path}")
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.parent.chmod(0o755)  # whatever our umask is
        write_atomically(path, text.encode(), mode)
        return {"path": params.path, "apply": methods_for([params.path])}

    async def remove(self, _: Caller, params: Named) -> dict[str, Any]:
        """Like `put`. Raises NotFoundError `config-missing`, `config-unknown-file`."""
        _entry(params.path)
        path = self.context.etc / params.path
        if not path.is_file():
            raise NotFoundError(f"there is no {path}", reason="config-missing")
        self._record(BY_HAND, f"before a change of {params.path}")
        path.unlink()
        sync_folder(path.parent)
        return {"path": params.path, "apply": methods_for([params.path])}

    async def revisions(self, _: Caller, params: Page) -> list[dict[str, Any]]:
        """Newest first, without content."""
        return [*await asyncio.to_thread(self._rows, params.count)]

    def _rows(self, count: int) -> Sequence[dict[str, Any]]:
        rows: deque[dict[str, Any]] = deque(maxlen=count)
        old: Files = {}
        for revision in self.history.revisions():
            paths = sorted(path for path in {*old, *revision.files} if old.get(path) != revision.files.get(path))
            rows.append(
                {"id": revision.id, "at": revision.at, "who": revision.who, "why": revision.why, "files": paths}
            )
            old = revision.files
        return [*reversed(rows)]

    async def diff(self, _: Caller, params: Range) -> dict[str, Any]:
        """A unified diff as text."""
        old = self.history.get(params.old)
        new = self.history.current() if params.new is None else self.history.get(params.new).files
        return {"diff": await asyncio.to_thread(self.history.changes, old.files, new)}

    async def undo(self, caller: Caller, params: Target) -> dict[str, Any]:
        """Restore a revision: `changed` are the files. Nothing is lost: what was edited by hand is recorded before.
        Raises HistoryError `history-failed`, everything then being as it was."""
        self._record(BY_HAND, "before an undo")
        before, revision = self.history.get(0), self.history.get(params.revision)
        self.history.check(revision)
        try:
            journal = Journal(revision=revision.id, who=caller.name, origin=caller.origin)
            write_atomically(self.journal, journal.model_dump_json(by_alias=True).encode(), 0o600)
            changed = self._finish(revision, journal)
        except (MixosError, OSError) as error:
            self._take_back(before)
            raise HistoryError(f"the undo failed: {error}", reason="history-failed") from error
        return {"revision": revision.id, "changed": changed}

    def _finish(self, revision: Revision, journal: Journal) -> Sequence[str]:
        changed = self.history.restore(revision)
        why = f"undo to revision {revision.id}"
        self.record(journal.who, why)
        self.journal.unlink(missing_ok=True)
        if changed:
            self.context.events.publish("config.restored", why, files=changed, who=journal.who, origin=journal.origin)
        return changed

    def _take_back(self, before: Revision | None) -> None:
        """Back to what was before an undo that failed; the next start tries it again when that fails, too."""
        try:
            if before is not None:
                self.history.restore(before)
            self.journal.unlink(missing_ok=True)
        except (MixosError, OSError) as error:
            log("err", f"config: the failed undo could not be taken back: {error}")
