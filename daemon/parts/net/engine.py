"""Putting network.toml in force: the steps of `plan` done over rtnetlink, with early boot told who looks after what.

Whether a change is on trial, and what happens to it after a crash, is the business of `daemon.core.change`, which calls
this. Going back means the earlier file, and then whatever else the interfaces had: routes, leases, MTU (`snapshot`).

There may be a great many routes, so what reads a file or talks to the kernel does so in a thread, with a socket of its
own; one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import MixosError
from common.tomlfile import parse
from daemon.core.change import applier
from daemon.core.change.applier import View
from daemon.core.change.connection import Connection, connection
from daemon.core.change.files import Step as Hook
from daemon.core.change.record import Contents
from daemon.core.method import Caller
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.linux.nameservers import Names
from daemon.linux.rtnl import Rtnl
from daemon.parts.net import snapshot
from daemon.parts.net.handover import EarlyBoot
from daemon.parts.net.netfile import NetworkFile
from daemon.parts.net.plan import Seen, Step, below, describe, execute, look, managed, missing, plan, replaced, told

FILE = "etc/mixos/network.toml"
_HARMLESS = ("add-address", "add-route", "set-up")  # steps that take nothing away from a connection


class Own(NamedTuple):
    """What a plan carries: the configuration, and whether the daemon is starting."""

    config: NetworkFile
    starting: bool


class Engine:
    """What is in force, and how to bring something else into force; an `applier.Applier`."""

    name = "net"

    def __init__(self, context: Context, proc: Path) -> None:
        self.context = context
        self.proc = proc
        self.names = Names(context.run)
        self.early = EarlyBoot(context.run / "net", context.etc / "network.conf")
        self.file = context.etc / "network.toml"
        self.config = NetworkFile()  # in force
        self.problem: MixosError | None = None
        self._contents: Contents = {FILE: None}
        self._lock = asyncio.Lock()  # the kernel's network is changed, or noted, by one at a time

    # -- for daemon.core.change ----------------------------------------------------------------------------------------

    def owns(self, name: str) -> bool:
        """network.toml."""
        return name == FILE

    def in_force(self) -> Contents:
        """network.toml as it is in force."""
        return self._contents

    async def prepare(self, view: View, caller: Caller | None, dry_run: bool) -> applier.Plan:
        """Raises ConfigError, RefusedError `net-conflict`."""
        async with self._lock:
            return await asyncio.to_thread(self._prepare, view, caller)

    def _prepare(self, view: View, caller: Caller | None) -> applier.Plan:
        wanted = self.read(view)
        with Rtnl() as rtnl:
            seen = look(rtnl, self.proc)
            steps = plan(wanted, self.config, seen)
            touched = managed(self.config).keys() | managed(wanted).keys()
            before = {
                "interfaces": snapshot.take(rtnl, touched, seen),
                "replaced": snapshot.take_routes(rtnl, replaced(steps, seen)),
                "claimed": sorted(self.early.claimed() & touched),
                "leases": {name: found for name in sorted(touched) if (found := self._leases(name, seen))},
            }
        way = connection(caller.connection or caller.origin.removeprefix("ssh ").partition(" ")[0]) if caller else None
        return applier.Plan(
            contents={FILE: view.read(FILE)},
            steps=told(steps, seen),
            changes=bool(steps) or wanted != self.config,
            cuts=way is not None and _cuts(way, steps, self._clients(wanted), seen),
            before=before,
            data=Own(wanted, caller is None),
        )

    def _leases(self, name: str, seen: Seen) -> list[str]:
        """The addresses that a DHCP client has put on an interface."""
        lease, link = self.early.lease(name), seen.links.get(name)
        here = [one.address for one in seen.addresses if link and one.index == link.index]
        return [address for address in here if lease and address.partition("/")[0] == lease]

    def _clients(self, wanted: NetworkFile) -> set[str]:
        """Interfaces whose DHCP client would be stopped."""
        return {name for name, entry in managed(wanted).items() if entry.mode != "dhcp" and self.early.client(name)}

    async def apply(self, plan: applier.Plan, step: Hook) -> None:
        """Do the steps. At a start what cannot be done is a problem to tell, and everything else is done. Raises
        NetlinkError, OSError half-way."""
        own: Own = plan.data
        async with self._lock:
            before, self._contents = self.config, plan.contents
            try:
                plan.steps = await self._put(own.config, before, step)
            except (MixosError, OSError) as error:
                if not own.starting:
                    raise
                self.tell(error)
                return
            self.problem = None

    async def undo(self, before: Mapping[str, Any], view: View) -> None:
        """First the earlier file, then what else there was. Everything is tried; raises the first error."""
        async with self._lock:
            await self._undo(before, view)

    async def _undo(self, before: Mapping[str, Any], view: View) -> None:
        tried, wanted = self.config, await asyncio.to_thread(self.read, view)
        self._contents = {FILE: view.read(FILE)}
        errors: list[MixosError | OSError] = []
        try:
            for name, addresses in before.get("leases", {}).items():
                self.early.until_lease(name, addresses)
            await self._put(wanted, tried, lambda _: None)
        except (MixosError, OSError) as error:
            errors.append(error)
        try:
            await asyncio.to_thread(self._restore, before)
        except (MixosError, OSError) as error:
            errors.append(error)
        if errors:
            raise errors[0]
        self.problem = None

    def _restore(self, before: Mapping[str, Any]) -> None:
        with Rtnl() as rtnl:
            snapshot.restore(before.get("interfaces", {}), rtnl, self.proc, before.get("replaced", ()))

    async def kept(self) -> None:
        """The file is all that the next boot needs."""

    # -- putting in force --------------------------------------------------------------------------------------------

    def read(self, view: View) -> NetworkFile:
        """The file; no file says nothing. Raises ConfigError."""
        return parse(view.text(FILE) or "", self.file, NetworkFile)

    async def again(self, tried: Sequence[Step]) -> list[Step]:
        """Bring what is in force to interfaces that are new, or were changed behind our back: the steps that were
        needed. Steps that were `tried` and did not help are not tried for ever."""
        async with self._lock:
            try:
                _, steps = await asyncio.to_thread(self.plan, self.config, self.config)
                if steps and steps != tried:
                    await self._put(self.config, self.config, lambda _: None)
            except (MixosError, OSError) as error:  # perhaps somebody took a name that the file wants for another thing
                self.tell(error)
                return list(tried)
            return steps or list(tried)

    def look(self) -> Seen:
        """What the kernel has now; for a thread."""
        with Rtnl() as rtnl:
            return look(rtnl, self.proc)

    def plan(self, wanted: NetworkFile, before: NetworkFile) -> tuple[Seen, list[Step]]:
        """The same, and the steps from there to `wanted`; for a thread. Raises RefusedError `net-conflict`."""
        seen = self.look()
        return seen, plan(wanted, before, seen)

    async def _put(self, wanted: NetworkFile, before: NetworkFile, hook: Hook) -> list[str]:
        """Make `wanted` the configuration in force; the steps, as `told`. Raises NetlinkError, OSError, RefusedError
        half-way."""
        seen, _ = await asyncio.to_thread(self.plan, wanted, before)  # a conflict is found before anything is touched
        self.config = wanted  # from here on some of it is there, also when the rest fails
        await self._hand_over(wanted, seen)
        steps = await asyncio.to_thread(self._do, wanted, before, hook)
        for name in sorted((managed(before).keys() | self.early.claimed()) - managed(wanted).keys()):
            await self.early.release(name)
        self.names.set_file(*wanted.names())
        return steps

    def _do(self, wanted: NetworkFile, before: NetworkFile, hook: Hook) -> list[str]:
        """The steps, planned now: clients that ended may have changed something."""
        seen, steps = self.plan(wanted, before)
        with Rtnl() as rtnl:
            for step in steps:
                try:
                    execute(step, rtnl, self.proc)
                except MixosError as error:
                    error.message = f"{describe(step)}: {error.message}"
                    raise
                log("notice", f"network: {describe(step)}")
                hook(f"did {' '.join(step)}")
        return told(steps, seen)

    async def _hand_over(self, wanted: NetworkFile, seen: Seen) -> None:
        for name, entry in managed(wanted).items():
            await self.early.claim(name, entry.mode == "dhcp", entry.metric, entry.mtu is not None)
            four = next((address for address in entry.addresses if ":" not in address), None)
            if entry.mode != "dhcp":
                there = four is not None and name in seen.links
                self.early.set_address(name, four.partition("/")[0] if there and four else None)

    def tell(self, problem: Exception) -> None:
        """What keeps the file from being in force."""
        self.problem = (
            problem if isinstance(problem, MixosError) else MixosError(f"network: {problem}", reason="net-io")
        )
        log("err", f"network: {self.problem.message}")
        self.context.events.publish("net.problem", "network.toml", reason=self.problem.reason)

    async def missing(self) -> list[str]:
        """Interfaces that the file in force needs and that are not there."""
        return missing(self.config, await asyncio.to_thread(self.look))


def _cuts(way: Connection, steps: Sequence[Step], clients: set[str], seen: Seen) -> bool:
    """Whether steps could cut a connection: those that take something away from the interface it comes in by, or from
    what that lies on; without knowing that, from any."""
    taking = [step for step in steps if step[0] not in _HARMLESS]
    losing = {route.interface for route in replaced(steps, seen)} | clients
    if way.interface is None:
        return bool(taking or losing)
    names = {step[1].split("/")[2] if step[0] == "sysctl" else step[1] for step in taking}
    masters = {step[2] for step in taking if step[0] == "set-master"}
    lower = {step[1] for step in taking if step[0] != "sysctl"} & below(way.interface, seen)
    return bool(lower) or way.interface in names | masters | losing
