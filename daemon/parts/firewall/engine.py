"""Putting a policy into force, safely: checked first, guarded, confirmed or undone, and found again after a crash.

Every change goes the same way: resolve the source, ask whether the operator could still log in, record the change if it
waits for confirmation, load the rules (all of them or, when nft or the kernel refuse one, none), write the files, read
back what the kernel has now. `hook` is called between the steps, where tests stop the world.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from common.errors import ConfigError, MixosError, RefusedError
from daemon.core.method import Caller
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.parts.firewall import forwarding, rules
from daemon.parts.firewall.decide import admits
from daemon.parts.firewall.kernel import Kernel, Listing
from daemon.parts.firewall.operator import connection
from daemon.parts.firewall.policy import Policy, Source, default_text, list_files, read_source, resolve
from daemon.parts.firewall.requests import Change
from daemon.parts.firewall.store import Pending, Store, digest


class Plan(NamedTuple):
    """A source with all that follows from it: policy and rules."""

    source: Source
    policy: Policy
    document: bytes


class Engine:
    """What is in force, what waits, and the ways between them. One change at a time (`lock`)."""

    def __init__(self, context: Context, kernel: Kernel, hook: Callable[[str], None]) -> None:
        self.context = context
        self.kernel = kernel
        self.hook = hook
        self.store = Store(context)
        self.lock = asyncio.Lock()
        self.plan: Plan | None = None  # what is in force
        self.pending: Pending | None = None
        self.problem: str | None = None  # why the file is not in force
        self._seen: Listing | None = None  # what the kernel had when last asked; nobody here changed it since
        self._timer: asyncio.Task[None] | None = None

    # -- start and stop ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up where an earlier daemon was stopped. Raises MixosError when no rules at all can be loaded."""
        self.store.prepare()
        self.store.finish_commit()
        waiting = self.store.pending()
        if waiting and waiting.left > 0 and await self._try(waiting.source):
            self.pending = waiting
            self._arm(waiting.left)
            return
        if waiting:
            self.store.refuse(waiting.source)
            self.store.settle()
            self._tell("firewall.reverted", "a change was not confirmed in time")
        await self._start_from_files()

    async def _start_from_files(self) -> None:
        """The files, if they are sound and were not undone; else the last good source; else the default."""
        try:
            source = await asyncio.to_thread(read_source, self.store.config)
            if self.store.refused(source):
                self.problem = "firewall.toml is what was undone because nobody confirmed it"
            elif await self._try(source):
                assert self.plan is not None
                self.store.keep(source, self.plan.document)
                return
        except ConfigError as error:
            self.problem = error.message
        log("err", f"firewall: {self.problem}; the last good rules stay in force")
        for last in (self.store.good(), Source(default_text())):
            if last is not None and await self._try(last, keep_problem=True):
                return
        raise MixosError(f"no firewall rules could be loaded: {self.problem}", reason="firewall-none")

    async def _try(self, source: Source, keep_problem: bool = False) -> bool:
        """Put a source into force; what the kernel has already stays, with its counters and what limits remember.

        False when it is wrong, or when nft fails: then another source may still work.
        """
        try:
            plan = await self.make(source)
            if self._loaded_by_init(plan):
                self._took(plan)
            elif await self.diff(plan):
                await self._load(plan)
            else:
                self._took(plan)
        except MixosError as error:
            if not keep_problem:
                self.problem = error.message
            return False
        return True

    def _loaded_by_init(self, plan: Plan) -> bool:
        """Whether early boot has just loaded exactly this: it leaves a copy, which counts once."""
        copy = self.context.run / "firewall.loaded"
        try:
            return copy.read_bytes() == plan.document
        except OSError:
            return False
        finally:
            copy.unlink(missing_ok=True)

    async def stop(self) -> None:
        """Rules stay; a waiting change stays recorded."""
        if self._timer:
            self._timer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._timer
            self._timer = None

    # -- changes -----------------------------------------------------------------------------------------------------

    async def make(self, source: Source) -> Plan:
        """Resolve and compile, in a thread: long lists take their time. Raises ConfigError."""

        def work() -> Plan:
            policy = resolve(source, self.store.config)
            used = {name: source.lists.get(name, "") for name in sorted(list_files(policy.config))}
            return Plan(Source(source.text, used), policy, rules.document(policy))

        return await asyncio.to_thread(work)

    async def put(self, caller: Caller, wish: Change, source: Source) -> dict[str, Any]:
        """Bring a source into force, or only say what would change. To be called with the lock held.

        Raises ConfigError (the policy is wrong; nothing changed) and RefusedError `firewall-pending`,
        `firewall-cuts-you-off`.
        """
        if self.pending and not wish.dry_run:
            raise RefusedError(
                f"a change waits for confirmation for {self.pending.left:.0f} s",
                reason="firewall-pending",
                hint="mixctl firewall confirm, or mixctl firewall revert",
            )
        plan = await self.make(source)
        differs = self._differs(plan)
        if wish.dry_run:
            diff = await self.diff(plan)
            answer = {"changed": bool(diff) or differs, "applied": False, "diff": diff, "confirm": None}
            return {**answer, "cuts-off": not self._admitted(plan.policy, caller, wish)}
        if wish.confirm is None and not wish.force and not self._admitted(plan.policy, caller, wish):
            raise RefusedError(
                "these rules would not let you log in again from where you are",
                reason="firewall-cuts-you-off",
                hint="--confirm 60 undoes the change unless you confirm it; --force applies it",
            )
        before = self._seen or await self.kernel.listing(rules.list_sets(self.plan.policy) if self.plan else ())
        if wish.confirm is None:
            await self._load(plan)
            self.hook("loaded")
            self._settle(plan)
        else:
            await self._load_for_now(plan, wish.confirm, caller.name)
        self._tell("firewall.changed", caller.name)
        self._seen = await self.kernel.listing(rules.list_sets(plan.policy))
        diff = difference(before, self._seen or Listing(""))
        return {"changed": bool(diff) or differs, "applied": True, "diff": diff, "confirm": wish.confirm}

    async def _load_for_now(self, plan: Plan, seconds: int, who: str) -> None:
        """The clock runs before the rules are there: however the loading ends, what it may have done is undone."""
        self.pending = self.store.wait_for(plan.source, seconds, who)
        self._arm(self.pending.left)
        self.hook("recorded")
        try:
            await self._load(plan)
        except MixosError:
            await self.stop()
            self.pending = None
            self.store.settle()
            raise
        self.hook("loaded")

    async def confirm(self) -> dict[str, Any]:
        """Make the waiting change final. Raises RefusedError `firewall-nothing-pending`."""
        async with self.lock:
            waiting = self._waiting()
            if self.plan is None or digest(self.plan.source) != digest(waiting.source):
                await self._load(await self.make(waiting.source))  # the call that tried it was broken off
            assert self.plan is not None
            await self.stop()
            self.pending = None
            self.store.commit()
            self.hook("committed")
            self._settle(self.plan)
            self._tell("firewall.confirmed", "")
            return {"confirmed": True}

    async def revert(self, why: str) -> dict[str, Any]:
        """Undo the waiting change. Raises RefusedError `firewall-nothing-pending`."""
        async with self.lock:
            waiting = self._waiting()
            await self._back()  # first: a full disk must not keep anybody out
            self.pending = None
            try:
                self.store.refuse(waiting.source)
                self.store.settle()
            except OSError as error:  # then the next start refuses it
                log("err", f"firewall: {error}")
            self._tell("firewall.reverted", why)
            if asyncio.current_task() is not self._timer:
                await self.stop()
            return {"reverted": True}

    async def _back(self) -> None:
        """Put what was good before into force."""
        good = await asyncio.to_thread(self.store.good)
        if good is None:
            await self._start_from_files()
        else:
            await self._load(await self.make(good))

    def _settle(self, plan: Plan) -> None:
        """The plan is in force for good: files for people, files for the next start."""
        self.store.publish(plan.source)
        self.hook("published")
        self.store.keep(plan.source, plan.document)
        self.problem = None

    async def _load(self, plan: Plan) -> None:
        self._seen = None
        await self.kernel.load(plan.document)
        self._took(plan)

    def _took(self, plan: Plan) -> None:
        self.plan = plan
        forwarding.switch(plan.policy, self.context.run)

    # -- questions ---------------------------------------------------------------------------------------------------

    async def diff(self, plan: Plan) -> str:
        """What loading a plan would change in the kernel, as a unified diff of rules; empty when nothing."""
        names = rules.list_sets(plan.policy)
        wanted = await self.kernel.wanted(plan.document, names)
        return difference(await self.kernel.listing(names), wanted)

    def _differs(self, plan: Plan) -> bool:
        return self.plan is None or digest(self.plan.source) != digest(plan.source)

    def _admitted(self, policy: Policy, caller: Caller, wish: Change) -> bool:
        packet = connection(caller, wish.connection)
        return packet is None or admits(policy, packet)

    def _waiting(self) -> Pending:
        if self.pending is None:
            raise RefusedError("no change waits for confirmation", reason="firewall-nothing-pending")
        return self.pending

    def _arm(self, seconds: float) -> None:
        async def undo() -> None:
            await asyncio.sleep(seconds)
            while True:
                try:
                    await self.revert("not confirmed in time")
                except RefusedError:
                    pass  # settled while we waited for the lock
                except (MixosError, OSError) as error:
                    log("err", f"firewall: the change cannot be undone yet: {error}")
                    await asyncio.sleep(1)
                    continue
                return

        self._timer = asyncio.create_task(undo(), name="firewall-revert")

    def _tell(self, topic: str, why: str) -> None:
        log("notice", f"{topic} {why}")
        self.context.events.publish(topic, "firewall", why=why)


def difference(now: Listing | None, wanted: Listing) -> str:
    """A unified diff between two listings, and a line for each list whose addresses differ."""
    before = now.text.splitlines() if now else []
    lines = list(difflib.unified_diff(before, wanted.text.splitlines(), "in force", "wanted", n=1, lineterm=""))
    for name, wanted_digest in wanted.elements.items():
        if now is not None and now.elements.get(name) not in (None, wanted_digest):
            lines.append(f"~ the addresses of {name} differ")
    return "\n".join(lines)
