"""The part `config`: the files in /etc/mixos that people write, their history, diff and undo.

After every call that changes something, a revision has what is new, with the caller's name: what somebody edited by
hand before it included. What was edited and never followed by a call is found at the next start, or before an undo.
What writes files here is a change like any other (`daemon.core.change`): tried first where it must be, put in force at
once, all of it or nothing.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SecretStr

from common.errors import MixosError, NotFoundError, RefusedError
from common.tomlfile import Strict, read_text
from daemon.core.change.applier import ETC, Wish
from daemon.core.change.record import Record
from daemon.core.manifest import checker, file_for, known_files, methods_for
from daemon.core.method import ADMINS, OPERATORS, Caller, Handler, Method, Nothing, Params, Role
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.linux.log import log
from daemon.parts.config.history import Files, History, Revision, kept

if TYPE_CHECKING:
    from daemon.parts.config.answers import (
        Content,
        Difference,
        FileRow,
        RevisionRow,
        Taken,
        Undone,
        Written,
    )

BY_HAND = "by hand"
_SECONDS = 130.0  # long lists of addresses, names that nobody answers for
_PATH = r"([a-z0-9][a-z0-9_-]{0,31}/)?[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,16}){0,3}"


class HistoryError(MixosError):
    """The configuration cannot be kept or put back. Reasons begin with `history-`."""

    exit_code = 8


class Range(Strict):
    """Two revisions."""

    old: int = Field(default=0, description="a revision; 0 is the newest, -1 the one before it")
    new: int | None = Field(default=None, description="another one; none: the files as they are now")


class Target(Wish):
    """The revision to go back to."""

    revision: int = Field(default=-1, description="its number; 0 is the newest, -1 the one before it")


class Page(Strict):
    """How many revisions to show."""

    count: int = Field(default=20, ge=1, le=500, description="the most, the newest ones")


class Named(Strict):
    """A file that people write; secrets and what the daemon writes for itself are not among them."""

    path: Annotated[str, Field(pattern=rf"^{_PATH}$", description="a file below /etc/mixos, such as units/hello.toml")]


class Removed(Named, Wish):
    """The file goes."""


class Put(Named, Wish):
    """Its new content. The history keeps it, the audit does not."""

    text: SecretStr = Field(description="all that shall be in the file")


def _entry(path: str) -> Callable[[str, Path], object] | None:
    """How the content of a file is checked, if it is. Raises NotFoundError for one that no part knows as people's."""
    found = file_for(path)
    if found is None or not found[1].writable:
        known = [file.path for file in known_files() if file.writable]
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
        raise NotFoundError(f"no part has a file {path} for people to write", reason="config-unknown-file", hint=hint)
    manifest, file = found
    return checker(manifest, file)


def _fits(text: str | None, path: str, context: Context) -> None:
    """Raises ConfigError when its part would not take the file beside those that are there, or these need it (text
    None: it goes)."""
    manifest, file = file_for(path) or (None, None)
    if manifest is not None and file is not None and file.fits:
        manifest.find(file.fits)(text, Path(path), context)


class Config:
    """Keeps the history of `context.etc` in `context.state`."""

    name = "config"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.history = History(context.etc, context.state / "config")
        self._newest = 0
        self._listener: asyncio.Task[None] | None = None

    def methods(self) -> Sequence[Method]:
        """What clients can call."""

        def change(name: str, summary: str, handler: Handler[Params, object], params: type[Params]) -> Method:
            return Method(f"config.{name}", summary, handler, ADMINS, params, changes=True, seconds=_SECONDS)

        return [
            Method("config.list", "The files of the configuration.", self.files, OPERATORS),
            Method("config.get", "A file of the configuration.", self.get, ADMINS, Named),
            change("put", "Write a file of the configuration, and put it in force.", self.put, Put),
            change("remove", "Remove a file of the configuration.", self.remove, Removed),
            Method("config.history", "Revisions of the configuration, newest first.", self.revisions, OPERATORS, Page),
            Method("config.diff", "What changed between two revisions.", self.diff, ADMINS, Range),
            change("undo", "Go back to an earlier revision.", self.undo, Target),
        ]

    async def start(self) -> None:
        """Record what was changed by hand."""
        await self._finish_old_undo()
        self.record(BY_HAND, "found at start")
        self.context.changes.guards.append(self._guard)
        self._listener = background("config", self._listen)

    async def stop(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self) -> None:
        async for event in self.context.events.listen(("api.changed", "change.confirmed")):
            # What was tried says more than that somebody confirmed it.
            self.record(str(event.data.get("who", "?")), str(event.data.get("what", event.subject)))

    def status(self) -> Mapping[str, Any]:
        """The newest revision."""
        return {"revision": self._newest}

    def _guard(self, record: Record) -> None:
        """What was edited by hand while a change was on trial is kept before that is written over it."""
        if record.deadline is not None and record.renames.changes:
            self.record(BY_HAND, f"before {record.why} was confirmed")

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

    async def files(self, _: Caller, __: Nothing) -> list[FileRow]:
        """path and size in bytes of each file that `put` may write."""
        found = {path for file in known_files() if file.writable for path in self.context.etc.glob(file.path)}
        names = {path.relative_to(self.context.etc).as_posix(): path for path in found if path.is_file()}
        return [
            {"path": name, "size": path.stat().st_size}
            for name, path in sorted(names.items())
            if re.fullmatch(_PATH, name)
        ]

    async def get(self, _: Caller, params: Named) -> Content:
        """`text` of the file. Raises NotFoundError `config-unknown-file`, ConfigError `config-missing` and so on."""
        _entry(params.path)
        return {"path": params.path, "text": read_text(self.context.etc / params.path)}

    async def put(self, caller: Caller, params: Put) -> Written:
        """Raises NotFoundError `config-unknown-file`, RefusedError `config-empty`, ConfigError for what its part would
        not take, HistoryError, and what `Changes.make` raises."""
        text = params.text.get_secret_value()
        check = _entry(params.path)
        if not text.strip():
            hint = f"mixctl config remove {params.path} takes the file away"
            raise RefusedError("there is nothing in it", reason="config-empty", hint=hint)
        if check is not None:
            await asyncio.to_thread(check, text, Path(params.path))
        await asyncio.to_thread(_fits, text, params.path, self.context)
        return await self._change(
            caller, params, f"config put {params.path}", lambda: {ETC + params.path: text.encode()}
        )

    async def remove(self, caller: Caller, params: Removed) -> Taken:
        """Like `put`. Raises NotFoundError `config-missing`, `config-unknown-file`, ConfigError when others need it."""
        _entry(params.path)
        path = self.context.etc / params.path
        if not path.is_file():
            raise NotFoundError(f"there is no {path}", reason="config-missing")
        await asyncio.to_thread(_fits, None, params.path, self.context)
        answer = await self._change(caller, params, f"config remove {params.path}", lambda: {ETC + params.path: None})
        return {**answer, "path": params.path}

    async def _change(
        self,
        caller: Caller,
        wish: Wish,
        why: str,
        contents: Callable[[], Mapping[str, bytes | None]],
        modes: Mapping[str, int] | None = None,
    ) -> Written:
        """contents, which may fill modes: asked when no other change is being made."""
        names: list[str] = []

        def given() -> Mapping[str, bytes | None]:
            found = contents()
            names.extend(sorted(name.removeprefix(ETC) for name in found))
            return found

        if not wish.dry_run:
            self._record(BY_HAND, f"before {why}")
        answer = await self.context.changes.make(caller, wish, why, given, modes=modes)
        if answer["applied"] and answer["confirm"] is None:
            self.record(caller.name, why)
        return {**answer, "changed-files": names, "apply": methods_for(names)}

    async def revisions(self, _: Caller, params: Page) -> list[RevisionRow]:
        """Newest first, without content."""
        return [*await asyncio.to_thread(self._rows, params.count)]

    def _rows(self, count: int) -> Sequence[RevisionRow]:
        rows: deque[RevisionRow] = deque(maxlen=count)
        old: Files = {}
        for revision in self.history.revisions():
            paths = sorted(path for path in {*old, *revision.files} if old.get(path) != revision.files.get(path))
            rows.append(
                {"id": revision.id, "at": revision.at, "who": revision.who, "why": revision.why, "files": paths}
            )
            old = revision.files
        return [*reversed(rows)]

    async def diff(self, _: Caller, params: Range) -> Difference:
        """A unified diff as text."""
        old = self.history.get(params.old)
        new = self.history.current() if params.new is None else self.history.get(params.new).files
        return {"diff": await asyncio.to_thread(self.history.changes, old.files, new)}

    async def undo(self, caller: Caller, params: Target) -> Undone:
        """Restore a revision: `changed-files`. Nothing is lost: what was edited by hand is recorded before, and what is
        too long to be kept `stays`. Raises NotFoundError `revision-missing`, RefusedError `history-damaged`, and what
        `Changes.make` raises; everything is as it was then."""
        if not params.dry_run:
            self._record(BY_HAND, "before an undo")
        revision = self.history.get(params.revision)
        return await self._go_back(caller, params, revision)

    async def _go_back(self, caller: Caller, wish: Wish, revision: Revision) -> Undone:
        modes: dict[str, int] = {}
        stays: list[str] = []
        why = f"undo to revision {revision.id}"
        answer = await self._change(caller, wish, why, lambda: self._contents(revision, modes, stays), modes)
        return {**answer, "revision": revision.id, "stays": stays}

    def _contents(self, revision: Revision, modes: dict[str, int], stays: list[str]) -> dict[str, bytes | None]:
        """What differs between the folder now and a revision: contents (None: it goes) and, added, modes, by name, and
        the files that stay since one of the two is not kept."""
        now, then = self.history.current(), revision.files
        differ = [path for path in sorted({*now, *then}) if now.get(path) != then.get(path)]
        stays += [path for path in differ if not (kept(now.get(path)) and kept(then.get(path)))]
        wanted = {path: then.get(path) for path in differ if path not in stays}
        modes |= {ETC + path: file[1] for path, file in wanted.items() if file}
        return {ETC + path: self.history.content(file[0]) if file else None for path, file in wanted.items()}

    async def _finish_old_undo(self) -> None:
        """Version 0.1 wrote an undo down here before it was made; one that a cut left is carried out now."""
        path = self.context.state / "config" / "undo.json"
        try:
            data = json.loads(path.read_bytes())
            revision = self.history.get(int(data["revision"]))
            caller = Caller(Role.ADMIN, 0, 0, 0, str(data["who"]), str(data["origin"]))
            await self._go_back(caller, Wish(), revision)
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, RecursionError, MixosError, OSError) as error:
            log("err", f"config: an undo that was cut off cannot be finished: {error}")
        path.unlink(missing_ok=True)
