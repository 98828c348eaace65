"""Putting vpn.toml and its secrets in force: WireGuard devices, addresses, routes, name servers.

What is up follows from the file and the secrets alone, at start as after every change. What does not work of it (a name
that cannot be looked up, a route that somebody else has) is a problem of that tunnel and is told; the change itself is
made. Trials and crashes are the business of `daemon.core.change`, which calls this.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import addresses
from common.errors import MixosError
from daemon.core.change import applier
from daemon.core.change.applier import View
from daemon.core.change.connection import Connection, connection
from daemon.core.change.files import Step
from daemon.core.change.record import Contents
from daemon.core.method import Caller
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.linux.nameservers import Names
from daemon.linux.rtnl import MAIN_TABLE, Rtnl
from daemon.linux.wireguard import Device, Endpoint, WireGuard, stale
from daemon.parts.vpn import keys, resolve, tunnel
from daemon.parts.vpn.edits import FILE, VpnConfig
from daemon.parts.vpn.keys import SECRETS
from daemon.parts.vpn.model import Tunnel
from daemon.parts.vpn.tunnel import Kernel

_PATIENCE = 2  # looks at which a peer had not answered what was sent to it


class Engine:
    """What is up, and how to bring something else up; an `applier.Applier`."""

    name = "vpn"

    def __init__(self, context: Context, proc: Path) -> None:
        self.context = context
        self.proc = proc
        self.names = Names(context.run)
        self.problems: dict[str, MixosError] = {}  # interface → why it is not up
        self.file_problem: MixosError | None = None  # why what is up is not what the file says
        self.up: set[str] = set()
        self._said: dict[str, str] = {}  # problems that were reported already
        self._told: dict[str, dict[bytes, Endpoint]] = {}  # interface → public key → endpoint that we set last
        self._sent: dict[str, dict[bytes, int]] = {}  # interface → public key → bytes sent when we looked last
        self._silent: dict[str, dict[bytes, int]] = {}  # interface → public key → looks without an answer
        self._dead: dict[str, set[str]] = {}  # interface → peers that cannot be reached, as far as we know
        self._contents: Contents = {FILE: None}
        self._lock = asyncio.Lock()
        self._naming: asyncio.Task[None] | None = None

    @property
    def config(self) -> VpnConfig:
        """What is in force."""
        return VpnConfig(self.context.changes.places, self._contents)

    # -- for daemon.core.change ----------------------------------------------------------------------------------------

    def owns(self, name: str) -> bool:
        """vpn.toml and the secrets."""
        return name == FILE or name.startswith(SECRETS)

    def in_force(self) -> Contents:
        """vpn.toml and the secrets, as they are in force."""
        return self._contents

    async def prepare(self, view: View, caller: Caller | None, dry_run: bool) -> applier.Plan:
        """Raises ConfigError."""
        wanted = VpnConfig(view.places, {name: view.read(name) for name in (FILE, *view.changed)})
        new, now = wanted.read().interface, self._tunnels()
        everything = wanted.everything()
        changed = {name for name in {*new, *now} if new.get(name) != now.get(name)}
        changed |= {name for name in {*new, *now} for each in view.changed if each.startswith(f"{SECRETS}{name}.")}
        way = connection(caller.connection or caller.origin.removeprefix("ssh ").partition(" ")[0]) if caller else None
        return applier.Plan(
            contents=everything,
            steps=[*_describe(now, new)],
            changes=bool(changed),
            cuts=way is not None and _cuts(way, changed, now, new),
            data=caller is not None,
        )

    def _tunnels(self) -> Mapping[str, Tunnel]:
        try:
            return self.config.read().interface
        except MixosError:
            return {}

    async def apply(self, plan: applier.Plan, step: Step) -> None:
        """Names of endpoints are not looked up at a start: there may be no network yet."""
        self._contents, self.file_problem = plan.contents, None
        await self.settle(names=bool(plan.data))
        step("settled")

    async def undo(self, before: Mapping[str, Any], view: View) -> None:
        """What is up follows from the files alone."""
        wanted = VpnConfig(view.places, {name: view.read(name) for name in (FILE, *view.changed)})
        self._contents = wanted.everything()
        await self.settle(names=False)  # nobody may answer for them because of what is undone
        self._naming = asyncio.create_task(self._name(), name="vpn names")

    async def _name(self) -> None:
        """Look up endpoints that are names; what fails is tried again by `look_again`."""
        try:
            await self.look_again()
        except (MixosError, OSError) as error:
            log("warning", f"vpn: {error}")

    async def kept(self) -> None:
        """The files are all that the next boot needs."""

    # -- the kernel --------------------------------------------------------------------------------------------------

    async def settle(self, names: bool = True) -> None:
        """Bring the kernel to what is in force. Raises ConfigError for files that nobody has read before.

        names: also look up endpoints that are names; without, their peers get none for now.
        """
        async with self._lock:
            config = self.config.read()
            self._said = {name: error.message for name, error in self.problems.items()}
            self.problems.clear()
            wanted = {name: entry for name, entry in config.interface.items() if entry.up}
            answers = await resolve.endpoints(wanted, names)
            endpoints = {name: self._choose(name, entry, answers[name]) for name, entry in wanted.items()}
            self.up = set()
            try:
                with Rtnl() as rtnl:
                    self._take_down(rtnl, wanted)
                    if wanted:
                        with WireGuard() as device:
                            self._bring_up(Kernel(rtnl, device, self.proc), wanted, endpoints)
                    self._tell_names(wanted)
                    self._lead(rtnl, wanted)
            except (MixosError, OSError) as error:
                known = error if isinstance(error, MixosError) else MixosError(f"vpn: {error}", reason="vpn-io")
                for name in wanted:
                    self.problem(name, known)
                self._tell_names(wanted)

    def _take_down(self, rtnl: Rtnl, wanted: Mapping[str, Tunnel]) -> None:
        for name, link in rtnl.links().items():
            unmarked = link.made and not link.alias and link.kind == "wireguard"  # cut off when it was made
            if (unmarked or link.alias == tunnel.ALIAS) and name not in wanted:
                rtnl.delete(name)
                self._told.pop(name, None)
        if not any(entry.takes_everything for entry in wanted.values()):
            tunnel.set_rules(rtnl, (), (), self.proc)

    def _bring_up(
        self, kernel: Kernel, wanted: Mapping[str, Tunnel], endpoints: Mapping[str, Mapping[str, Endpoint | None]]
    ) -> None:
        for name, entry in wanted.items():
            try:
                device = tunnel.device(name, entry, self.config.store, endpoints[name])
                kernel.bring_up(entry, device)
                self._move(kernel.wireguard, device)
                self.up.add(name)
            except MixosError as error:
                self.problem(name, error)

    def _lead(self, rtnl: Rtnl, tunnels: Mapping[str, Tunnel]) -> None:
        """The rules of what is up. While a name must be looked up for a tunnel that takes everything, the name servers
        in use are reached past it: the answer cannot come through what waits for it."""
        up = [tunnels[name] for name in self.up & tunnels.keys()]
        waits = any(
            resolve.has_name(tunnels[name].peer[title])
            for name in self.up & tunnels.keys()
            if tunnels[name].takes_everything
            for title in self._dead.get(name, set()) & tunnels[name].peer.keys()
        )
        tunnel.set_rules(rtnl, up, self.names.servers() if waits else (), self.proc)

    def _move(self, kernel: WireGuard, wanted: Device) -> None:
        told = self._told.setdefault(wanted.name, {})
        changes = tunnel.to_move(kernel.get(wanted.name), wanted, told, time.time())
        kernel.tell(wanted.name, changes)
        for change in changes:
            log("info", f"{wanted.name}: {keys.encode(change.public)} is at {change.endpoint}")
        told.update({peer.public: peer.endpoint for peer in wanted.peers if peer.endpoint})

    def _choose(
        self, name: str, entry: Tunnel, answers: Mapping[str, Sequence[Endpoint]]
    ) -> dict[str, Endpoint | None]:
        """Peer → the address it shall have. One that we send to since the last look, without an answer, is failing."""
        device, now = self.device(name), time.time()
        here = {peer.public: peer for peer in device.peers} if device else {}
        told, before, silent = self._told.get(name, {}), self._sent.get(name, {}), self._silent.get(name, {})
        self._sent[name] = {public: peer.sent for public, peer in here.items()}
        self._silent[name], self._dead[name] = {}, set()
        found = {}
        for title, each in entry.peer.items():
            public = keys.decode(each.public_key)
            peer = here.get(public)
            failing = peer is not None and stale(peer.handshake, now) and peer.sent > before.get(public, peer.sent)
            found[title] = tunnel.choose(answers.get(title, ()), told.get(public), peer, failing)
            if peer is not None and stale(peer.handshake, now):
                self._silent[name][public] = silent.get(public, 0) + failing
            nowhere = found[title] is None and (peer is None or peer.endpoint is None)
            if nowhere or self._silent[name].get(public, 0) >= _PATIENCE:
                self._dead[name].add(title)
        return found

    def device(self, name: str) -> Device | None:
        """The kernel's, or None."""
        with contextlib.suppress(MixosError), WireGuard() as kernel:
            return kernel.get(name)
        return None

    def _tell_names(self, tunnels: Mapping[str, Tunnel]) -> None:
        """Name servers behind a peer count while it can be reached: its own name is asked of the others until then."""
        wanted = {}
        for name in sorted(self.up & tunnels.keys()):
            entry = tunnels[name]
            if servers := tunnel.servers(entry, self._dead.get(name, ())):
                wanted[name] = (servers, entry.search)
            elif entry.dns:
                tunnel.knock(name, entry.dns)  # nobody asks them now, so nothing else would find the way back
        self.names.set_vpn(wanted)

    def problem(self, name: str, error: MixosError) -> None:
        """What keeps a tunnel down; "" for the file."""
        self.problems[name] = error
        if self._said.get(name) != error.message:  # the same every half minute says nothing new
            self._said[name] = error.message
            log("err", f"vpn {name}: {error.message}")
            self.context.events.publish("vpn.problem", name, reason=error.reason)

    async def look_again(self) -> None:
        """Names are asked for only when a peer that has one, or of a tunnel with name servers, is stale; then
        everything is put right at once."""
        entries = self.config.read().interface
        now, again = time.time(), bool(self.problems)
        for name in self.up & entries.keys():
            device = self.device(name)
            peers, dead = entries[name].peer, self._dead.get(name, ())
            watched = {
                keys.decode(peer.public_key): title
                for title, peer in peers.items()
                if entries[name].dns or resolve.has_name(peer)
            }
            again |= device is None or any(
                stale(peer.handshake, now) or watched[peer.public] in dead
                for peer in device.peers
                if peer.public in watched
            )
        if again:
            async with self._lock:
                with Rtnl() as rtnl:
                    self._lead(rtnl, entries)  # there may be other name servers by now
            await self.settle()


def _describe(now: Mapping[str, Tunnel], new: Mapping[str, Tunnel]) -> Iterator[str]:
    """What changes, for people."""
    for name in sorted({*now, *new}):
        old, wanted = now.get(name), new.get(name)
        if old is None or wanted is None:
            yield f"{'add' if old is None else 'remove'} {name}"
        elif old != wanted:
            peers = {title for title in {*old.peer, *wanted.peer} if old.peer.get(title) != wanted.peer.get(title)}
            yield f"change {name}" + (f": {', '.join(sorted(peers))}" if peers else "")


def _cuts(way: Connection, changed: set[str], now: Mapping[str, Tunnel], new: Mapping[str, Tunnel]) -> bool:
    """Whether the connection comes through a tunnel that changes, or its answers would go another way: into a tunnel
    that takes everything, or no longer into one. That takes no more special route than the default one."""

    def all_in(tunnels: Mapping[str, Tunnel]) -> set[str]:
        return {name for name, entry in tunnels.items() if entry.up and entry.takes_everything}

    return way.interface in changed or (all_in(now) != all_in(new) and not _has_own_route(way.peer))


def _has_own_route(peer: str) -> bool:
    """Whether an address is reached by a route of the main table that is not a default route."""
    address = addresses.address(peer.partition("%")[0])
    with Rtnl() as rtnl:
        networks = [addresses.network(route.to) for route in rtnl.routes() if route.table == MAIN_TABLE]
    return any(address in network for network in networks if network.prefixlen)
