"""The part "net": puts network.toml in force, keeps it so, and says what the network is like.

Early boot is the scripts' business (`handover`); an interface that the file does not name stays theirs. A change can
be tried: `apply` with a number of seconds is undone unless `confirm` comes in time, also when the daemon or the device
stops meanwhile (`trial`). Steps go to the kernel over rtnetlink, which answers at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from common.errors import MixosError, NotFoundError, RefusedError
from common.files import write_atomically
from common.netvalues import InterfaceName
from common.tomledit import set_keys
from common.tomlfile import Strict, parse
from daemon.core.method import ADMINS, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.linux.nameservers import Names
from daemon.linux.rtnl import PROC, Rtnl, Watch
from daemon.parts.net import timesync
from daemon.parts.net.handover import EarlyBoot
from daemon.parts.net.netfile import NetworkFile
from daemon.parts.net.plan import Seen, Step, execute, look, managed, missing, plan, sentence
from daemon.parts.net.report import rows, show
from daemon.parts.net.trial import Journal

SETTLE_SECONDS = 1.0  # interfaces that appear together are handled together


class Apply(Strict):
    """Parameters of `net.apply`. confirm: seconds after which it is undone without `net.confirm`; 0: for good."""

    confirm: Annotated[int, Field(ge=0, le=3600, strict=True)] = 0


class Named(Strict):
    """Parameters of `net.show`."""

    name: InterfaceName


class Set(Strict):
    """Parameters of `net.set`: keys of `[interface.NAME]` to values, null to take one out. `name` "" is the file."""

    name: InterfaceName | None = None
    values: dict[str, Any] = Field(max_length=32)


class Interfaces:
    """The part. etc, proc: where settings of early boot and the kernel's switches are; tests give others."""

    name = "net"

    def __init__(self, context: Context, *, etc: Path = Path("/etc"), proc: Path = PROC) -> None:
        self.context = context
        self.etc = etc
        self.proc = proc
        self.names = Names(context.run)
        self.early = EarlyBoot(context.run / "net", context.etc / "network.conf")
        self.journal = Journal(context.etc / "network.toml", context.state / "net")
        self.text, self.config = "", NetworkFile()  # in force
        self.problem: MixosError | None = None
        self._lock = asyncio.Lock()
        self._deadline = 0.0  # of the trial, in the loop's time
        self._trial: asyncio.Task[None] | None = None
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
            Method("net.apply", "Put network.toml in force.", self.apply, ADMINS, Apply, changes=True, seconds=60.0),
            Method("net.confirm", "Keep what is on trial.", self.confirm, ADMINS, changes=True),
            Method("net.revert", "End a trial now.", self.revert, ADMINS, changes=True, seconds=60.0),
            Method("net.set", "Change keys of network.toml, without applying.", self.set, ADMINS, Set, changes=True),
            Method("net.time", "Whether the clock is set, and by whom.", self.time),
        ]

    async def start(self) -> None:
        """Put in force what shall be, and watch for interfaces that appear later."""
        self._watch = Watch()  # first: what appears meanwhile is looked at afterwards
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._changed)
        self.text, self.config = self.journal.tried()
        async with self._lock:
            if self.journal.state == "trial":
                log("warning", "network: the change on trial was not confirmed, going back")
                await self._go_back()
                return
            text, config, problem = self.journal.choose()
            self._report(problem)
            await self._try(text, config)
            if self.problem is None:
                try:
                    self.journal.confirm(text)
                except MixosError as error:
                    self._report(error)

    async def stop(self) -> None:
        """Interfaces stay as they are; a trial goes on, and the next daemon reverts it."""
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
        if self._settling is not None:
            self._settling.cancel()
        tasks = [*self._tasks, *([self._trial] if self._trial else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """What of the file is in force."""
        state = self.journal.state or "ok"
        return {
            "file": "error" if state == "ok" and self.problem else state,
            "problem": self.problem.message if self.problem else None,
            "managed": sorted(managed(self.config)),
            "confirm-seconds": self._seconds_left(),
        }

    # -- methods -----------------------------------------------------------------------------------------------------

    async def report(self, _: Caller, __: Nothing) -> dict[str, Any]:
        """`net.status`."""
        with Rtnl() as rtnl:
            seen = look(rtnl, self.proc)
        return {
            **self.status(),
            "changed": self._differs(),
            "missing": missing(self.config, seen),
            "dns": self.names.servers(),
            "interfaces": rows(seen, self.config, self.early.claimed()),
        }

    async def show(self, _: Caller, params: Named) -> dict[str, Any]:
        """`net.show`. Raises NotFoundError `net-interface`."""
        with Rtnl() as rtnl:
            seen = look(rtnl, self.proc)
        if params.name not in seen.links and params.name not in managed(self.config):
            raise NotFoundError(
                f"there is no interface {params.name}",
                reason="net-interface",
                hint=f"there are {', '.join(sorted(seen.links))}",
            )
        return show(params.name, seen, self.config)

    async def check(self, _: Caller, __: Nothing) -> dict[str, Any]:
        """`net.check`. Raises ConfigError, RefusedError `net-conflict`."""
        wanted = self.journal.read()[1]
        with Rtnl() as rtnl:
            seen = look(rtnl, self.proc)
        steps = plan(wanted, self.config, seen)
        return {"steps": [sentence(step) for step in steps], "missing": missing(wanted, seen)}

    async def apply(self, _: Caller, params: Apply) -> dict[str, Any]:
        """`net.apply`. What failed on the way is undone; then raises what the kernel said."""
        async with self._lock:
            text, wanted = self.journal.read()
            self._refuse_during_trial()
            before = (self.text, self.config)
            if params.confirm:
                # The clock runs before anything is touched: it goes back even if this call is broken off.
                self.journal.begin(text)
                self._deadline = asyncio.get_running_loop().time() + params.confirm
                self._trial = asyncio.create_task(self._expire(params.confirm))
            try:
                steps = await self._put(text, wanted)
            except (MixosError, OSError):
                await self._try(*before)
                if params.confirm:
                    self._end_trial()
                    self.journal.revert()
                raise
            self.problem = None
            if not params.confirm:
                self.journal.confirm(text)
        self.context.events.publish("net.applied", "network.toml", steps=len(steps), confirm=params.confirm)
        with Rtnl() as rtnl:
            absent = missing(wanted, look(rtnl, self.proc))
        return {"steps": [sentence(step) for step in steps], "missing": absent, "confirm-seconds": params.confirm}

    async def confirm(self, _: Caller, __: Nothing) -> dict[str, Any]:
        """`net.confirm`. Raises RefusedError `net-no-trial`."""
        async with self._lock:
            self._on_trial()
            self.journal.confirm(self.text)  # the trial goes on if this cannot be written
            self._end_trial()
        self.context.events.publish("net.confirmed", "network.toml")
        return {"confirmed": True}

    async def revert(self, _: Caller, __: Nothing) -> dict[str, Any]:
        """`net.revert`. Raises RefusedError `net-no-trial`."""
        async with self._lock:
            self._on_trial()
            self._end_trial()
            await self._go_back()
        return {"reverted": True}

    async def set(self, _: Caller, params: Set) -> dict[str, Any]:
        """`net.set`: comments and order of the file stay. Raises ConfigError, RefusedError `config-edit`."""
        table = ["interface", params.name] if params.name else []
        try:
            new = set_keys(self.journal.read()[0], table, params.values)
        except TypeError as error:
            raise RefusedError(f"a value cannot be written: {error}", reason="config-edit") from error
        wanted = parse(new, self.journal.file, NetworkFile)
        self.context.etc.mkdir(parents=True, exist_ok=True)
        write_atomically(self.journal.file, new.encode(), 0o644)
        with Rtnl() as rtnl:
            steps = plan(wanted, self.config, look(rtnl, self.proc))
        return {"file": os.fspath(self.journal.file), "steps": [sentence(step) for step in steps]}

    async def time(self, _: Caller, __: Nothing) -> dict[str, Any]:
        """`net.time`."""
        return timesync.status(self.etc)

    # -- putting in force --------------------------------------------------------------------------------------------

    async def _put(self, text: str, wanted: NetworkFile) -> list[Step]:
        """Make `wanted` the configuration in force. Raises NetlinkError, OSError, RefusedError half-way."""
        with Rtnl() as rtnl:
            before, seen = self.config, look(rtnl, self.proc)
            plan(wanted, before, seen)  # a conflict is found before anything is touched
            self.text, self.config = text, wanted  # from here on some of it is there, also when the rest fails
            await self._hand_over(wanted, seen)
            # Clients that ended may have changed something, so the plan is made now.
            steps = plan(wanted, before, look(rtnl, self.proc))
            for step in steps:
                try:
                    execute(step, rtnl, self.proc)
                except MixosError as error:
                    error.message = f"{sentence(step)}: {error.message}"
                    raise
        for name in sorted((managed(before).keys() | self.early.claimed()) - managed(wanted).keys()):
            await self.early.release(name)
        self._tell_names(wanted)
        for step in steps:
            log("notice", f"network: {sentence(step)}")
        return steps

    async def _hand_over(self, wanted: NetworkFile, seen: Seen) -> None:
        for name, entry in managed(wanted).items():
            await self.early.claim(name, entry.mode == "dhcp")
            four = next((address for address in entry.addresses if ":" not in address), None)
            if entry.mode != "dhcp":
                there = four is not None and name in seen.links
                self.early.set_address(name, four.partition("/")[0] if there and four else None)

    def _tell_names(self, wanted: NetworkFile) -> None:
        entries = wanted.interface.values()
        servers = wanted.dns or [server for entry in entries for server in entry.dns]
        search = wanted.search or [name for entry in entries for name in entry.search]
        self.names.set_file(list(dict.fromkeys(servers)), list(dict.fromkeys(search)))

    async def _try(self, text: str, wanted: NetworkFile) -> None:
        """`_put`, with a failure reported instead of raised: at start, and on the way back."""
        try:
            await self._put(text, wanted)
        except MixosError as error:
            self._report(error)
        except OSError as error:
            self._report(MixosError(f"network: {error}", reason="net-io"))

    def _report(self, problem: MixosError | None) -> None:
        self.problem = problem
        if problem is not None:
            log("err", f"network: {problem.message}")
            self.context.events.publish("net.problem", "network.toml", reason=problem.reason)

    # -- trial -------------------------------------------------------------------------------------------------------

    async def _expire(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with self._lock:
            self._trial = None
            log("warning", f"network: not confirmed within {seconds:g} s, going back")
            await self._go_back()

    def _on_trial(self) -> None:
        if self._trial is None:
            raise RefusedError("no change is on trial", reason="net-no-trial")

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.cancel()
            self._trial = None

    async def _go_back(self) -> None:
        """Whatever the disk says: somebody may be waiting to get in again. The next start goes back in any case."""
        try:
            self.journal.revert()
        except MixosError as error:
            log("err", f"network: {error.message}")
        self.problem = None
        await self._try(*self.journal.last())
        if self.problem is None:
            self.problem = self.journal.choose().problem
        self.context.events.publish("net.reverted", "network.toml")

    def _refuse_during_trial(self) -> None:
        if self._trial is not None:
            raise RefusedError(
                f"another change is on trial for {self._seconds_left()} s more",
                reason="net-trial",
                hint="mixctl net confirm, or mixctl net revert",
            )

    def _seconds_left(self) -> int | None:
        if self._trial is None:
            return None
        return max(0, round(self._deadline - asyncio.get_running_loop().time()))

    def _differs(self) -> bool:
        """Whether the file says something else than what is in force; a broken one does."""
        try:
            return self.journal.read()[1] != self.config
        except MixosError:
            return True

    # -- interfaces that come later ----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Something happened to links: look again a moment later, if it concerns us."""
        assert self._watch is not None
        names = self._watch.take()
        parents = {entry.vlan.parent for entry in self.config.interface.values() if entry.vlan}
        if self._settling is None and names & (managed(self.config).keys() | parents):
            self._settling = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._spawn, self._settle)

    def _spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(function())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self) -> None:
        """Bring what is in force to interfaces that are new, or were changed behind our back."""
        self._settling = None
        async with self._lock:
            try:
                with Rtnl() as rtnl:
                    steps = plan(self.config, self.config, look(rtnl, self.proc))
            except MixosError as error:  # somebody took a name that the file wants for something else
                self._report(error)
                return
            if steps and steps != self._settled:  # what did not help is not tried for ever
                self._settled = steps
                self.problem = None if self._trial else self.journal.choose().problem
                await self._try(self.text, self.config)
