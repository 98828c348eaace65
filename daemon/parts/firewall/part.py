"""The firewall as a part of the daemon: its methods, and what it does at start.

At start a change that still waits for confirmation goes on, or the file is put into force; a broken file leaves the
last good rules (`daemon.core.change`). The rules themselves outlive the daemon: they are the kernel's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from common.errors import MixosError, RefusedError
from common.tomlfile import parse, parse_edit
from daemon.core.change.applier import View, Wish
from daemon.core.change.record import Contents
from daemon.core.method import ADMINS, PEOPLE, Caller, Handler, Method, Nothing, Params
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.parts.firewall import edits, lists, requests, rules, units
from daemon.parts.firewall.confine import Confiner
from daemon.parts.firewall.decide import Packet, decide
from daemon.parts.firewall.engine import Engine, difference
from daemon.parts.firewall.kernel import NFT, Kernel
from daemon.parts.firewall.migrate import migrate
from daemon.parts.firewall.model import Config
from daemon.parts.firewall.policy import FILE, LISTS, Source, default_text, list_files, mistakes, read_source
from daemon.parts.firewall.values import parse_ports

if TYPE_CHECKING:
    from daemon.parts.firewall.answers import (
        Confirmed,
        Counter,
        Difference,
        Entries,
        Entry,
        Made,
        Reverted,
        Status,
        Verdict,
        Zone,
    )

SECONDS = 120.0  # for a change: a list of a hundred thousand addresses on a small board
Wished = TypeVar("Wished", bound=Wish)


class Firewall:
    """The part. nft: the program; place: where units' cgroups are."""

    name = "firewall"

    def __init__(
        self,
        context: Context,
        nft: str = NFT,
        place: units.Place = units.Place(),  # noqa: B008  # a NamedTuple: immutable
    ) -> None:
        self.context = context
        self.kernel = Kernel(nft)
        self.engine = Engine(context, self.kernel)
        self.confiner = Confiner(context, self.kernel, place, lambda: self.engine.plan and self.engine.plan.policy)
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Rules first; then those of the units that run already. Raises MixosError when no rules can be loaded."""
        default = {FILE: default_text().encode()}
        await asyncio.to_thread(migrate, self.context)
        problem = await self.context.changes.start(self.engine, default)
        self.engine.problem = problem.message if problem else None
        self._follower = background("firewall-units", self.confiner.follow)
        await self.confiner.refresh()
        self.context.gates.open(self.name, self.confiner.attach)

    async def stop(self) -> None:
        """The kernel keeps the rules."""
        if self._follower:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower

    def status(self) -> Mapping[str, Any]:
        """Rules as last known: "on", "unconfirmed" or "off"; problem: why the file is not in force."""
        engine = self.engine
        rules = "off" if engine.plan is None else "unconfirmed" if engine.pending else "on"
        return {"rules": rules, "problem": engine.problem}

    def methods(self) -> Sequence[Method]:
        """Asking is for all people, changing for admins: whoever opens ports can grant access."""

        def ask(
            name: str,
            summary: str,
            handler: Handler[Params, object],
            params: type[Params] = cast(Any, Nothing),  # noqa: B008
        ) -> Method:
            return Method(f"firewall.{name}", summary, handler, PEOPLE, params, seconds=SECONDS)

        def change(name: str, summary: str, handler: Handler[Params, object], params: type[Params]) -> Method:
            return Method(f"firewall.{name}", summary, handler, ADMINS, params, changes=True, seconds=SECONDS)

        return (
            ask("status", "Whether the kernel has the wanted rules, zones, what was denied, what waits.", self._status),
            ask("list", "Every entry of the policy with its counters.", self._list),
            ask("diff", "What `apply` would change in the kernel.", self._diff),
            ask("test", "What the policy does with a packet.", self._test, requests.Probe),
            change("allow", "Permit a service.", self._edit(edits.allow), requests.Allow),
            change("deny", "Refuse a service.", self._edit(edits.deny), requests.Deny),
            change("remove", "Remove an entry.", self._edit(edits.remove), requests.Remove),
            change("forward", "Send a port on to another host.", self._edit(edits.forward), requests.ForwardPort),
            change("nat", "Route from zone to zone.", self._edit(edits.nat), requests.Translate),
            change("zone", "Make or change a zone.", self._edit(edits.zone), requests.EditZone),
            change("block", "Block addresses, or stop blocking them.", self._block, requests.Block),
            change("apply", "Put firewall.toml into force.", self._apply, requests.Apply),
            change("reset", "Go back to the default policy.", self._reset, requests.Reset),
            change("confirm", "Keep the change that waits.", self._confirm, Nothing),
            change("revert", "Undo the change that waits.", self._revert, Nothing),
        )

    # -- changes -----------------------------------------------------------------------------------------------------

    def _edit(self, how: Callable[[Source, Config, Wished], Source]) -> Handler[Wished, Made]:
        async def act(caller: Caller, wish: Wished) -> Made:
            return await self._change(caller, wish, lambda source, config: how(source, config, wish))

        return act

    async def _change(
        self, caller: Caller, wish: Wish, how: Callable[[Source, Config], Source], also: Sequence[str] = ()
    ) -> Made:
        return await self._make(caller, wish, lambda: self._edited(how, also))

    async def _make(self, caller: Caller, wish: Wish, contents: Contents | Callable[[], Contents]) -> Made:
        what = f"firewall {type(wish).__name__.lower()}"
        answer = await self.context.changes.make(caller, wish, what, contents, parts=(self.name,))
        await self.confiner.refresh()
        return answer

    def _edited(self, how: Callable[[Source, Config], Source], also: Sequence[str] = ()) -> dict[str, bytes | None]:
        """What people wrote, edited: the files that differ. A broken file must be mended first, lest a command bury the
        mistake. Raises ConfigError, RefusedError; of a mistake in the command alone `firewall-reference`."""
        view, path = View(self.context.changes.places), self.context.etc / "firewall.toml"
        source = read_source(view, also)
        old = parse(source.text, path, Config)
        new = how(source, old)
        known = {place for place, _ in mistakes(old)}
        config = parse_edit(new.text, source.text, path, Config)
        if wrong := [text for place, text in mistakes(config) if place not in known]:
            raise RefusedError("\n".join(wrong), reason="firewall-reference", hint="mixctl firewall list")
        texts = {name: text for name, text in new.lists.items() if text != source.lists.get(name)}
        contents: dict[str, bytes | None] = {LISTS + name: text.encode() for name, text in texts.items()}
        return contents if new.text == source.text else {**contents, FILE: new.text.encode()}

    async def _block(self, caller: Caller, wish: requests.Block) -> Made:
        addresses = wish.addresses
        if wish.content is not None:
            addresses += await asyncio.to_thread(lists.entries, await wish.content.data())
        if len(addresses) > lists.MAX_ADDRESSES:
            raise RefusedError(f"more than {lists.MAX_ADDRESSES} addresses", reason="firewall-too-many")

        def how(source: Source, config: Config) -> Source:
            return edits.block(source, config, wish, addresses)

        return await self._change(caller, wish, how, [edits.list_file(wish.list)])

    async def _apply(self, caller: Caller, wish: Wish) -> Made:
        return await self._make(caller, wish, {})

    async def _reset(self, caller: Caller, wish: Wish) -> Made:
        return await self._make(caller, wish, {FILE: default_text().encode()})

    async def _confirm(self, caller: Caller, _: Nothing) -> Confirmed:
        changes = self.context.changes
        return await changes.confirm(caller, changes.find(self.name))

    async def _revert(self, caller: Caller, _: Nothing) -> Reverted:
        changes = self.context.changes
        return await changes.revert(changes.find(self.name, undoing=True), f"by {caller.name}")

    # -- questions ---------------------------------------------------------------------------------------------------

    async def _status(self, caller: Caller, _: Nothing) -> Status:
        engine = self.engine
        plan = engine.plan
        if plan is None:
            raise RefusedError("the firewall is not running", reason="firewall-off", hint=engine.problem or "")
        names = rules.list_sets(plan.policy)
        now = await self.kernel.listing()
        if now is not None:
            # An element set that somebody deleted is missed by its name, not by an error.
            there = [name for name in names if f"set {name} {{" in now.text]
            now = await self.kernel.listing(there)
        drift = difference(now, await self.kernel.wanted(plan.document, names))
        waiting = self.context.changes.waits(self.name)
        config = plan.policy.config
        return {
            "state": "off" if now is None else "changed" if drift else "on",
            "drift": drift,
            "file": await asyncio.to_thread(engine.file_state),
            "problem": engine.problem,
            "confirm": {"seconds": round(waiting.left), "by": waiting.who} if waiting else None,
            "default-zone": config.default_zone,
            "zones": [
                cast("Zone", {"name": name, **zone.model_dump(by_alias=True, mode="json")})
                for name, zone in config.zones.items()
            ],
            "denied": (await self._counters()).get("denied", {"packets": 0, "bytes": 0}),
            "services": sorted(plan.policy.services),
            "lists": {name: len(ranges.v4) + len(ranges.v6) for name, ranges in plan.policy.lists.items()},
            "units": self.confiner.rows(),
            "cgroup-match": await self.confiner.able(),
        }

    async def _counters(self) -> dict[str, Counter]:
        """Packets and bytes by the comments of rules."""
        data = await self.kernel.counters()
        found: dict[str, Counter] = {}
        for item in json.loads(data)["nftables"] if data else []:
            rule = item.get("rule", {})
            for expression in rule.get("expr", []):
                if isinstance(expression.get("counter"), dict) and "comment" in rule:
                    row = found.setdefault(rule["comment"], {"packets": 0, "bytes": 0})
                    row["packets"] += expression["counter"]["packets"]
                    row["bytes"] += expression["counter"]["bytes"]
        return found

    async def _list(self, caller: Caller, _: Nothing) -> Entries:
        plan = self.engine.plan
        if plan is None:
            raise RefusedError("the firewall is not running", reason="firewall-off")
        counters = await self._counters()
        config = plan.policy.config.model_dump(by_alias=True, mode="json", exclude_none=True)
        rows: list[Entry] = []
        for name, zone in config["zones"].items():
            for service in zone["allow"]:
                entry = {"name": f"zones.{name}", "service": service, "zone": name, "action": "allow"}
                rows.append(cast("Entry", {**entry, **counters.get(f"zones.{name}: {service}", {})}))
        for kind in edits.KINDS:
            for name, entry in config[kind].items():
                row = {"name": f"{kind}.{name}", **entry, **counters.get(f"{kind}.{name}", {})}
                rows.append(cast("Entry", row))
        return {"entries": rows, "default-zone": config["default-zone"], "counters": counters}

    async def _diff(self, caller: Caller, _: Nothing) -> Difference:
        plan = await self.engine.make(View(self.context.changes.places))
        return {"diff": await self.engine.diff(plan), "files": sorted(list_files(plan.policy.config))}

    async def _test(self, caller: Caller, probe: requests.Probe) -> Verdict:
        plan = self.engine.plan
        if plan is None:
            raise RefusedError("the firewall is not running", reason="firewall-off")
        try:
            wanted = plan.policy.ports(probe.port)[0]
        except KeyError as error:
            raise MixosError(f"there is no service '{probe.port}'", reason="firewall-service") from error
        if probe.source is None and probe.interface is None:
            raise RefusedError("say where the packet comes from", reason="firewall-test", hint="--from or --interface")
        # The dummy address of RFC 7600, which no packet comes from, stands for "some address".
        source = probe.source or "192.0.0.8"
        packet = Packet(source, wanted.protocol, wanted.first, probe.interface or "")
        return cast("Verdict", {"packet": str(parse_ports(str(wanted))), **decide(plan.policy, packet)._asdict()})
