"""Putting a policy into force: resolved and checked, loaded wholly or not at all, read back, kept for the next boot.

Whether a change is on trial, and what happens to it after a crash, is the business of `daemon.core.change`, which calls
this. The compiled rules of what is in force for good lie in STATE/firewall.json, for init to load before Python runs.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import ConfigError
from common.files import write_atomically
from common.lines import split_lines
from daemon.core.change import applier
from daemon.core.change.applier import View
from daemon.core.change.connection import connection
from daemon.core.change.files import Step
from daemon.core.change.record import Contents
from daemon.core.method import Caller
from daemon.core.part import Context
from daemon.parts.firewall import forwarding, rules
from daemon.parts.firewall.decide import Packet, admits
from daemon.parts.firewall.kernel import Kernel, Listing
from daemon.parts.firewall.policy import FILE, LISTS, Policy, Source, list_files, read_source, resolve

if TYPE_CHECKING:
    from daemon.parts.firewall.answers import FileState


class Plan(NamedTuple):
    """A source with all that follows from it: policy and rules. contents: the files that it was read from."""

    source: Source
    policy: Policy
    document: bytes
    contents: Contents


class Engine:
    """What is in force, and how to bring something else into force; an `applier.Applier`."""

    name = "firewall"

    def __init__(self, context: Context, kernel: Kernel) -> None:
        self.context = context
        self.kernel = kernel
        self.plan: Plan | None = None  # what is in force
        self.problem: str | None = None  # why the file is not in force
        self._seen: Listing | None = None  # what the kernel had when last asked; nobody here changed it since
        self._starting = False

    @property
    def pending(self) -> bool:
        """Whether a change of it is on trial."""
        return self.context.changes.waits(self.name) is not None

    # -- for daemon.core.change ----------------------------------------------------------------------------------------

    def owns(self, name: str) -> bool:
        """firewall.toml and the lists."""
        return name == FILE or name.startswith(LISTS)

    def in_force(self) -> Contents:
        """The files that the rules were made of."""
        return self.plan.contents if self.plan else {FILE: None}

    async def prepare(self, view: View, caller: Caller | None, dry_run: bool) -> applier.Plan:
        """Resolve and compile; a dry run compares with the kernel's rules. Raises ConfigError."""
        plan = await self.make(view)
        packet = origin(caller) if caller else None
        diff = await self.diff(plan) if dry_run else ""
        return applier.Plan(
            contents=plan.contents,
            diff=diff,
            changes=bool(diff) or self.plan is None or self.plan.source != plan.source,
            cuts=packet is not None and not admits(plan.policy, packet),
            data=(plan, caller is None),
        )

    async def apply(self, plan: applier.Plan, step: Step) -> None:
        """Load the rules. At a start those that the kernel has already stay, with their counters. Raises ConfigError
        `firewall-invalid`, MixosError `firewall-kernel`."""
        own, starting = plan.data
        if starting:
            if not self._loaded_by_init(own) and await self.diff(own):
                await self._load(own)
            self._took(own)
        else:
            before = self._seen or await self.kernel.listing(rules.list_sets(self.plan.policy) if self.plan else ())
            await self._load(own)
            step("loaded")
            self._seen = await self.kernel.listing(rules.list_sets(own.policy))
            plan.diff = difference(before, self._seen or Listing(""))
            plan.changes = plan.changes or bool(plan.diff)
        self.problem = None

    async def undo(self, before: Mapping[str, Any], view: View) -> None:
        """Load the rules of earlier files."""
        await self._load(await self.make(view))

    async def kept(self) -> None:
        """Write the rules for the next boot."""
        path = self.context.state / "firewall.json"
        if self.plan and not (path.exists() and path.read_bytes() == self.plan.document):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self.plan.document, 0o600)

    # -- loading -----------------------------------------------------------------------------------------------------

    async def make(self, view: View) -> Plan:
        """Read, resolve and compile, in a thread: long lists take their time. Raises ConfigError."""

        def work() -> Plan:
            source = read_source(view)
            policy = resolve(source, self.context.etc / "firewall.toml")
            names = [FILE, *(LISTS + name for name in sorted(list_files(policy.config)))]
            return Plan(source, policy, rules.document(policy), {name: view.read(name) for name in names})

        return await asyncio.to_thread(work)

    def _loaded_by_init(self, plan: Plan) -> bool:
        """Whether early boot has just loaded exactly this: it leaves a copy, which counts once."""
        copy = self.context.run / "firewall.loaded"
        try:
            return copy.read_bytes() == plan.document
        except OSError:
            return False
        finally:
            copy.unlink(missing_ok=True)

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

    def file_state(self) -> FileState:
        """How the file stands to what is in force: same, different, undone, broken, missing (then the default is)."""
        view = View(self.context.changes.places)
        try:
            source = read_source(view)
            resolve(source, self.context.etc / "firewall.toml")
        except ConfigError:
            return "broken"
        if self.plan and source == self.plan.source:
            return "missing" if view.read(FILE) is None else "same"
        return "undone" if self.context.changes.unconfirmed(self) else "different"


def origin(caller: Caller) -> Packet | None:
    """The first packet of the caller's next login; None when they are at the device itself."""
    found = connection(caller.connection or caller.origin.removeprefix("ssh ").partition(" ")[0])
    return Packet(found.peer, "tcp", found.port, found.interface) if found else None


def difference(now: Listing | None, wanted: Listing) -> str:
    """A unified diff between two listings, and a line for each list whose addresses differ."""
    before = split_lines(now.text) if now else []
    lines = list(difflib.unified_diff(before, split_lines(wanted.text), "in force", "wanted", n=1, lineterm=""))
    for name, wanted_digest in wanted.elements.items():
        if now is not None and now.elements.get(name) not in (None, wanted_digest):
            lines.append(f"~ the addresses of {name} differ")
    return "\n".join(lines)
