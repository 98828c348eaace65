"""The part "net": puts network.toml in force, keeps it so, and says what the network is like.

Early boot is the scripts' business (`handover`); an interface that the file does not name stays theirs. How the file is
put in force is `engine`'s, trials are `daemon.core.change`'s.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from common.errors import MixosError, NotFoundError, RefusedError
from common.files import write_atomically
from common.netvalues import InterfaceName
from common.tomledit import set_keys
from common.tomlfile import Strict, parse, parse_edit, read_text
from daemon.core.change.applier import View, Wish
from daemon.core.method import ADMINS, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.linux.rtnl import PROC, Watch
from daemon.parts.net import timesync
from daemon.parts.net.engine import Engine
from daemon.parts.net.migrate import migrate
from daemon.parts.net.netfile import NetworkFile
from daemon.parts.net.plan import Step, managed, missing, told
from daemon.parts.net.report import rows, show

if TYPE_CHECKING:
    from daemon.parts.net.answers import (
        Applied,
        Checked,
        Clock,
        Confirmed,
        Edited,
        Report,
        Reverted,
        Shown,
        Status,
    )

SETTLE_SECONDS = 1.0  # interfaces that appear together are handled together


class Named(Strict):
    """Parameters of `net.show`."""

    name: InterfaceName = Field(description="the interface")


class Set(Strict):
    """Parameters of `net.set`."""

    name: InterfaceName | None = Field(default=None, description="the interface; none: the file as a whole")
    values: dict[str, Any] = Field(max_length=32, description="key → value; null takes the key out")


class Interfaces:
    """The part. etc, proc: where settings of early boot and the kernel's switches are; tests give others."""

    name = "net"

    def __init__(self, context: Context, *, etc: Path = Path("/etc"), proc: Path = PROC) -> None:
        self.context = context
        self.etc = etc
        self.proc = proc
        self.engine = Engine(context, proc)
        self._watch: Watch | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._settled: list[Step] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the part ----------------------------------------------------------------------------------------------------

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return [
            Method("net.status", "Interfaces, name servers, and what of network.toml is in force.", self.report),
            Method("net.show", "One interface: what is wanted and what is.", self.show, params=Named),
            Method("net.check", "What `net.apply` would do.", self.check),
            Method("net.apply", "Put network.toml in force.", self.apply, ADMINS, Wish, changes=True, seconds=60.0),
            Method("net.confirm", "Keep what is on trial.", self.confirm, ADMINS, changes=True),
            Method("net.revert", "End a trial now.", self.revert, ADMINS, changes=True, seconds=60.0),
            Method("net.set", "Change keys of network.toml, without applying.", self.set, ADMINS, Set, changes=True),
            Method("net.time", "Whether the clock is set, and by whom.", self.time),
        ]

    async def start(self) -> None:
        """Put in force what shall be, and watch for interfaces that appear later."""
        self._watch = Watch()  # first: what appears meanwhile is looked at afterwards
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._changed)
        await asyncio.to_thread(migrate, self.context)
        problem = await self.context.changes.start(self.engine, {})
        if problem is not None and self.engine.problem is None:
            self.engine.tell(problem)

    async def stop(self) -> None:
        """Interfaces stay as they are."""
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
        if self._settling is not None:
            self._settling.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def status(self) -> Status:
        """What of the file is in force: file is "ok", "trial", "reverted" or "error"."""
        engine, waiting = self.engine, self.context.changes.waits("net")
        undone = None if waiting else self.context.changes.unconfirmed(engine)
        problem = undone or engine.problem
        return {
            "file": "trial" if waiting else "reverted" if undone else "error" if problem else "ok",
            "problem": problem.message if problem else None,
            "managed": sorted(managed(engine.config)),
            "confirm-seconds": round(waiting.left) if waiting else None,
        }

    # -- methods -----------------------------------------------------------------------------------------------------

    async def report(self, _: Caller, __: Nothing) -> Report:
        """`net.status`."""
        seen = await asyncio.to_thread(self.engine.look)
        return {
            **self.status(),
            "changed": await asyncio.to_thread(self._differs),
            "missing": missing(self.engine.config, seen),
            "dns": self.engine.names.servers(),
            "interfaces": rows(seen, self.engine.config, self.engine.early.claimed()),
        }

    async def show(self, _: Caller, params: Named) -> Shown:
        """`net.show`. Raises NotFoundError `net-interface`."""
        seen = await asyncio.to_thread(self.engine.look)
        if params.name not in seen.links and params.name not in managed(self.engine.config):
            raise NotFoundError(
                f"there is no interface {params.name}",
                reason="net-interface",
                hint=f"there are {', '.join(sorted(seen.links))}",
            )
        return show(params.name, seen, self.engine.config)

    async def check(self, _: Caller, __: Nothing) -> Checked:
        """`net.check`. Raises ConfigError, RefusedError `net-conflict`."""
        wanted = await asyncio.to_thread(self._on_disk)
        seen, steps = await asyncio.to_thread(self.engine.plan, wanted, self.engine.config)
        return {"steps": told(steps, seen), "missing": missing(wanted, seen)}

    async def apply(self, caller: Caller, wish: Wish) -> Applied:
        """`net.apply`. What failed on the way is undone; then raises what the kernel said."""
        answer = await self.context.changes.make(caller, wish, "net apply", parts=("net",))
        return {**answer, "missing": await self.engine.missing(), "confirm-seconds": answer["confirm"] or 0}

    async def confirm(self, caller: Caller, _: Nothing) -> Confirmed:
        """`net.confirm`. Raises RefusedError `change-nothing`."""
        changes = self.context.changes
        return await changes.confirm(caller, changes.find("net"))

    async def revert(self, caller: Caller, _: Nothing) -> Reverted:
        """`net.revert`. Raises RefusedError `change-nothing`."""
        changes = self.context.changes
        return await changes.revert(changes.find("net", undoing=True), f"by {caller.name}")

    async def set(self, _: Caller, params: Set) -> Edited:
        """`net.set`: comments and order of the file stay. Raises ConfigError, RefusedError `config-edit`,
        `change-pending`: what is on trial would become a part of the new file, or would be written over it."""
        self.context.changes.refuse_during_trial(self.engine)
        table = ["interface", params.name] if params.name else []
        try:
            old = self._text()
            new = set_keys(old, table, params.values)
        except TypeError as error:
            raise RefusedError(f"a value cannot be written: {error}", reason="config-edit") from error
        wanted = parse_edit(new, old, self.engine.file, NetworkFile)
        self.context.etc.mkdir(parents=True, exist_ok=True)
        write_atomically(self.engine.file, new.encode(), 0o644)
        seen, steps = await asyncio.to_thread(self.engine.plan, wanted, self.engine.config)
        return {"file": os.fspath(self.engine.file), "steps": told(steps, seen)}

    async def time(self, _: Caller, __: Nothing) -> Clock:
        """`net.time`."""
        return cast("Clock", timesync.status(self.etc, self.engine.early.folder))

    def _text(self) -> str:
        return read_text(self.engine.file) if self.engine.file.exists() else ""

    def _on_disk(self) -> NetworkFile:
        """The file as it is now. Raises ConfigError."""
        return parse(self._text(), self.engine.file, NetworkFile)

    def _differs(self) -> bool:
        """Whether the file says something else than what is in force; a broken one does."""
        try:
            return self.engine.read(View(self.context.changes.places)) != self.engine.config
        except MixosError:
            return True

    # -- interfaces that come later ----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Something happened to links: look again a moment later, if it concerns us. Clients are told at once: another
        network may be behind the cable."""
        assert self._watch is not None
        names = self._watch.take()
        if names is None or any(self.engine.early.client(name) for name in names):
            self.engine.early.wake()
        parents = {entry.vlan.parent for entry in self.engine.config.interface.values() if entry.vlan}
        ours = managed(self.engine.config).keys() | parents
        if self._settling is None and (ours if names is None else names & ours):
            self._settling = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._spawn, self._settle)

    def _spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(function())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self) -> None:
        """Bring what is in force to interfaces that are new, or were changed behind our back."""
        self._settling = None
        self._settled = await self.engine.again(self._settled)
