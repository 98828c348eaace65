"""The part "vpn": WireGuard tunnels as vpn.toml says, kept up, and the commands that change them.

What is up follows from the file and the secrets alone, at start as after every change: nothing about the state before
is saved anywhere, so no crash can lose it. Every `TICK_SECONDS` peers with a name for an endpoint that do not answer
are looked up again, and resolv.conf is compared with what it should say.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import netvalues as values
from common.errors import MixosError, RefusedError
from common.tomlfile import Strict
from daemon.core.method import ADMINS, Caller, Handler, Method, Nothing
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.linux.log import log
from daemon.linux.nameservers import Names
from daemon.linux.rtnl import PROC, Rtnl
from daemon.linux.wireguard import Device, Endpoint, WireGuard, stale
from daemon.parts.vpn import clients, keys, resolve, tunnel, wgquick
from daemon.parts.vpn.edits import VpnConfig
from daemon.parts.vpn.model import PeerEntry, Tunnel, VpnFile
from daemon.parts.vpn.requests import AddPeer, Import, Init, OfInterface, OfPeer, Rotate
from daemon.parts.vpn.tunnel import Kernel, own_key, peer_key, peer_psk

TICK_SECONDS = 30.0


class Vpn:
    """The part. proc: the kernel's switches; tests give others."""

    name = "vpn"

    def __init__(self, context: Context, *, proc: Path = PROC) -> None:
        self.context = context
        self.config = VpnConfig(context.etc / "vpn.toml", context.state / "vpn")
        self.names = Names(context.run)
        self.proc = proc
        self.problems: dict[str, MixosError] = {}  # interface, or "" for the file → why it is not up
        self._said: dict[str, str] = {}  # problems that were reported already
        self._up: set[str] = set()
        self._told: dict[str, dict[bytes, Endpoint]] = {}  # interface → public key → endpoint that we set last
        self._sent: dict[str, dict[bytes, int]] = {}  # interface → public key → bytes sent when we looked last
        self._lock = asyncio.Lock()
        self._ticking: asyncio.Task[None] | None = None

    # -- the part ----------------------------------------------------------------------------------------------------

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return [
            Method("vpn.status", "Tunnels and peers: handshakes, transfer, endpoints.", self.report),
            Method("vpn.config", "A peer's configuration, if its key is kept.", self.show, ADMINS, OfPeer),
            Method("vpn.export", "A tunnel for wg-quick, without secrets.", self.export, ADMINS, OfInterface),
            _change("vpn.init", "Make a tunnel with a new key and bring it up.", self.init, Init),
            _change("vpn.add-peer", "Add a peer; gives its configuration once.", self.add, AddPeer),
            _change("vpn.remove", "Remove a peer and its secrets.", self.remove, OfPeer),
            _change("vpn.delete", "Remove a tunnel with all it has.", self.delete, OfInterface),
            _change("vpn.rotate", "New keys; gives what the other side needs.", self.rotate, Rotate),
            _change("vpn.up", "Bring a tunnel up, now and at every start.", self.up, OfInterface),
            _change("vpn.down", "Take a tunnel down until `vpn.up`.", self.down, OfInterface),
            _change("vpn.apply", "Put an edited vpn.toml in force.", self.apply, Nothing),
            _change("vpn.import", "Make a tunnel from a file of wg-quick.", self.bring_in, Import),
        ]

    async def start(self) -> None:
        """Bring up what the file says. Names of endpoints are looked up afterwards: there may be no network yet."""
        await self._settle(names=False)
        self._ticking = background("vpn", self._tick)

    async def stop(self) -> None:
        """Tunnels stay up."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """What is up, and what should be and is not."""
        return {"up": sorted(self._up), "problems": {name: error.message for name, error in self.problems.items()}}

    # -- looking -----------------------------------------------------------------------------------------------------

    async def report(self, _: Caller, __: Nothing) -> dict[str, Any]:
        """`vpn.status`. The kernel's counters; ages in seconds, null for never."""
        tunnels = self.config.read().interface
        rows = []
        for name, entry in tunnels.items():
            row: dict[str, Any] = {"name": name, "wanted": "up" if entry.up else "down", "addresses": entry.addresses}
            device = self._device(name)
            row["state"] = "up" if device else "down"
            row["public-key"] = keys.encode(device.public) if device else None
            row["port"] = device.port if device else entry.port
            problem = self.problems.get(name) or self.problems.get("")
            row["problem"] = problem.message if problem else None
            row["peers"] = [_peer_row(title, peer, device) for title, peer in entry.peer.items()]
            rows.append(row)
        return {"interfaces": rows}

    async def show(self, _: Caller, params: OfPeer) -> dict[str, Any]:
        """`vpn.config`. Raises RefusedError `vpn-key-not-kept`."""
        name, entry, peer = self.config.peer(params.interface, params.peer)
        if not peer.kept_key:
            raise RefusedError(
                f"the private key of {params.peer} was shown once and is not on this device",
                reason="vpn-key-not-kept",
                hint=f"mixctl vpn rotate {params.peer} --key makes a new one",
            )
        private = self.config.store.read(peer_key(name, params.peer))
        return {"peer": params.peer, "config": await self._client(name, entry, params.peer, private)}

    async def export(self, _: Caller, params: OfInterface) -> dict[str, Any]:
        """`vpn.export`."""
        name, entry = self.config.tunnel(params.interface)
        return {"interface": name, "config": clients.export(entry)}

    # -- changing ----------------------------------------------------------------------------------------------------

    async def init(self, _: Caller, params: Init) -> dict[str, Any]:
        """`vpn.init`. Raises RefusedError `vpn-exists`, `vpn-address`."""
        pair = await keys.make_pair()
        addresses = params.addresses
        if not addresses:
            with Rtnl() as rtnl:
                addresses = clients.random_networks(address.address for address in rtnl.addresses())
        settings: dict[str, object] = {
            "addresses": addresses,
            "port": params.port,
            "endpoint": values.with_port(params.endpoint, params.port) if params.endpoint else None,
            "client-dns": params.client_dns or None,
            "client-routes": params.client_routes or None,
        }
        self.config.add_tunnel(params.name, pair.private, settings)
        return {**await self._changed(params.name), "public-key": keys.encode(pair.public), "addresses": addresses}

    async def add(self, _: Caller, params: AddPeer) -> dict[str, Any]:
        """`vpn.add-peer`: with a key of its own when none is given; its private half is in the answer and nowhere else,
        unless `keep-key`. Raises RefusedError `vpn-exists`, `vpn-full`, KeyProblem, ConfigError.
        """
        name = self.config.tunnel(params.interface)[0]
        if params.public_key is None:
            pair = await keys.make_pair()
            public, private = pair.public, pair.private
        else:
            public, private = keys.decode(params.public_key, "the public key"), None
        if public == await self._public(name):
            raise RefusedError(f"this is the key of {name} itself", reason="vpn-key-own")
        preshared = keys.preshared() if params.psk else None
        entry = self.config.tunnel(name)[1]  # as it is now: while keys were computed, others may have added peers
        settings: dict[str, object] = {
            "public-key": keys.encode(public),
            "allowed-ips": params.allowed_ips or clients.next_addresses(entry),
            "endpoint": params.endpoint,
            "keepalive": params.keepalive or None,
        }
        entry = self.config.add_peer(name, params.peer, settings, preshared, private if params.keep_key else None)
        changed = await self._changed(name)
        return {**changed, "peer": params.peer, "config": await self._client(name, entry, params.peer, private)}

    async def remove(self, _: Caller, params: OfPeer) -> dict[str, Any]:
        """`vpn.remove`."""
        name = self.config.peer(params.interface, params.peer)[0]
        self.config.remove_peer(name, params.peer)
        return {**await self._changed(name), "peer": params.peer}

    async def delete(self, _: Caller, params: OfInterface) -> dict[str, Any]:
        """`vpn.delete`. The name must be given."""
        if params.interface is None:
            raise RefusedError("name the interface to delete", reason="vpn-which")
        name, entry = self.config.tunnel(params.interface)
        self.config.remove_tunnel(name, entry)
        return await self._changed(name)

    async def rotate(self, _: Caller, params: Rotate) -> dict[str, Any]:
        """`vpn.rotate`: what the other sides need is in `configs`, by peer."""
        if params.peer is None:
            name, entry = self.config.tunnel(params.interface)
            pair = await keys.make_pair()
            self.config.store.write(own_key(name), pair.private)
            changed = await self._changed(name)
            sections = {
                title: clients.section(entry, peer, pair.public, self._preshared(name, title, peer))
                for title, peer in entry.peer.items()
            }
            return {**changed, "public-key": keys.encode(pair.public), "configs": sections}
        name, entry, peer = self.config.peer(params.interface, params.peer)
        if params.key:
            pair = await keys.make_pair()
            kept = pair.private if peer.kept_key else None
            new_key = {"public-key": keys.encode(pair.public)}
            entry = self.config.change_peer(name, params.peer, new_key, private=kept)
            text = await self._client(name, entry, params.peer, pair.private)
        else:
            entry = self.config.change_peer(name, params.peer, {"psk": True}, preshared=keys.preshared())
            peer = entry.peer[params.peer]
            own, preshared = await self._public(name), self._preshared(name, params.peer, peer)
            text = clients.section(entry, peer, own, preshared)
        return {**await self._changed(name), "peer": params.peer, "configs": {params.peer: text}}

    async def up(self, _: Caller, params: OfInterface) -> dict[str, Any]:
        """`vpn.up`. Raises what keeps it down."""
        return await self._switch(params, True)

    async def down(self, _: Caller, params: OfInterface) -> dict[str, Any]:
        """`vpn.down`."""
        return await self._switch(params, False)

    async def apply(self, _: Caller, __: Nothing) -> dict[str, Any]:
        """`vpn.apply`. Raises ConfigError; problems of single tunnels are in the answer."""
        self.config.read()
        await self._settle()
        return dict(self.status())

    async def bring_in(self, _: Caller, params: Import) -> dict[str, Any]:
        """`vpn.import`. Raises ConfigError `vpn-import`, `vpn-import-unsupported`, KeyProblem."""
        quick = wgquick.parse(params.text.get_secret_value(), params.file)
        entry = self.config.add_quick(params.name, quick)
        return {**await self._changed(params.name), "peers": list(entry.peer)}

    async def _switch(self, params: OfInterface, up: bool) -> dict[str, Any]:
        name, entry = self.config.tunnel(params.interface)
        if entry.up != up:
            self.config.set_up(name, up)
        answer = await self._changed(name)
        if up and name in self.problems:
            raise self.problems[name]
        return answer

    async def _changed(self, name: str) -> dict[str, Any]:
        """Put the changed file in force. What does not work then is in the answer: the change itself is made."""
        await self._settle()
        self.context.events.publish("vpn.changed", name)
        problem = self.problems.get(name) or self.problems.get("")
        state = "up" if name in self._up else "down"
        return {"interface": name, "state": state, "problem": problem.message if problem else None}

    async def _client(self, name: str, entry: Tunnel, title: str, private: bytes | None) -> str:
        peer = entry.peer[title]
        public = await self._public(name)
        return clients.client(entry, peer, public, private, self._preshared(name, title, peer))

    async def _public(self, name: str) -> bytes:
        return await keys.public_of(self.config.store.read(own_key(name)))

    def _preshared(self, name: str, title: str, peer: PeerEntry) -> bytes | None:
        return self.config.store.read(peer_psk(name, title)) if peer.psk else None

    # -- the kernel --------------------------------------------------------------------------------------------------

    async def _settle(self, names: bool = True) -> None:
        """Bring the kernel to what the file says. A file that cannot be read changes nothing.

        names: also look up endpoints that are names; without, their peers get none for now.
        """
        async with self._lock:
            try:
                config = self.config.read()
            except MixosError as error:
                self._problem("", error)
                return
            self._said = {name: error.message for name, error in self.problems.items()}
            self.problems.clear()
            wanted = {name: entry for name, entry in config.interface.items() if entry.up}
            answers = await resolve.endpoints(wanted, names)
            endpoints = {name: self._choose(name, entry, answers[name]) for name, entry in wanted.items()}
            self._up = set()
            try:
                with Rtnl() as rtnl:
                    self._take_down(rtnl, wanted)
                    if wanted:
                        with WireGuard() as device:
                            self._bring_up(Kernel(rtnl, device), wanted, endpoints)
            except (MixosError, OSError) as error:
                known = error if isinstance(error, MixosError) else MixosError(f"vpn: {error}", reason="vpn-io")
                for name in wanted:
                    self._problem(name, known)
            self._tell_names(config)

    def _take_down(self, rtnl: Rtnl, wanted: Mapping[str, Tunnel]) -> None:
        for name, link in rtnl.links().items():
            if link.alias == tunnel.ALIAS and name not in wanted:
                rtnl.delete(name)
                self._told.pop(name, None)
        if not any(entry.takes_everything for entry in wanted.values()):
            tunnel.set_rules(rtnl, (), self.proc)

    def _bring_up(
        self, kernel: Kernel, wanted: Mapping[str, Tunnel], endpoints: Mapping[str, Mapping[str, Endpoint | None]]
    ) -> None:
        for name, entry in wanted.items():
            try:
                device = tunnel.device(name, entry, self.config.store, endpoints[name])
                kernel.bring_up(entry, device)
                self._move(kernel.wireguard, device)
                self._up.add(name)
            except MixosError as error:
                self._problem(name, error)
        tunnel.set_rules(kernel.rtnl, [wanted[name] for name in self._up], self.proc)

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
        device, now = self._device(name), time.time()
        here = {peer.public: peer for peer in device.peers} if device else {}
        told, before = self._told.get(name, {}), self._sent.get(name, {})
        self._sent[name] = {public: peer.sent for public, peer in here.items()}
        found = {}
        for title, some in answers.items():
            public = keys.decode(entry.peer[title].public_key)
            peer = here.get(public)
            failing = peer is not None and stale(peer.handshake, now) and peer.sent > before.get(public, peer.sent)
            found[title] = tunnel.choose(some, told.get(public), peer, failing)
        return found

    def _device(self, name: str) -> Device | None:
        with contextlib.suppress(MixosError), WireGuard() as kernel:
            return kernel.get(name)
        return None

    def _tell_names(self, config: VpnFile) -> None:
        tunnels = {name: entry for name, entry in config.interface.items() if name in self._up}
        self.names.set_vpn({name: (entry.dns, entry.search) for name, entry in tunnels.items() if entry.dns})

    def _problem(self, name: str, error: MixosError) -> None:
        self.problems[name] = error
        if self._said.get(name) != error.message:  # the same every half minute says nothing new
            self._said[name] = error.message
            log("err", f"vpn {name}: {error.message}")
            self.context.events.publish("vpn.problem", name, reason=error.reason)

    async def _tick(self) -> None:
        """Now and then: names again for those who do not answer, tunnels that could not come up, resolv.conf."""
        while True:
            try:
                if self._up or self.problems:
                    await self._look_again()
                self.names.refresh()
            except (MixosError, OSError) as error:
                log("warning", f"vpn: {error}")
            await asyncio.sleep(TICK_SECONDS)

    async def _look_again(self) -> None:
        """Names are asked for only when a peer that has one is stale; then everything is put right at once."""
        try:
            entries = self.config.read().interface
        except MixosError as error:
            self._problem("", error)
            return
        now, again = time.time(), bool(self.problems)
        for name in self._up & entries.keys():
            device = self._device(name)
            named = {keys.decode(p.public_key) for p in entries[name].peer.values() if resolve.has_name(p)}
            again |= device is None or any(stale(p.handshake, now) for p in device.peers if p.public in named)
        if again:
            await self._settle()


def _change(name: str, summary: str, handler: Handler, params: type[Strict]) -> Method:
    """A method for admins that changes something. Names of endpoints may take a while; answers may hold keys."""
    return Method(name, summary, handler, ADMINS, params, changes=True, seconds=90.0, secret=True)


def _peer_row(title: str, entry: PeerEntry, device: Device | None) -> dict[str, Any]:
    """state: online (a session that carries packets), stale, never (no handshake yet), down.

    The handshake's age is null, too, when the clock was set back since.
    """
    public = keys.decode(entry.public_key)
    peer = next((peer for peer in device.peers if peer.public == public), None) if device else None
    now = time.time()
    over = peer is not None and stale(peer.handshake, now)
    age = round(now - peer.handshake) if peer and peer.handshake else None
    return {
        "name": title,
        "public-key": entry.public_key,
        "state": "down" if peer is None else "never" if not peer.handshake else "stale" if over else "online",
        "handshake-age": None if age is None or (over and age < 0) else max(0, age),
        "endpoint": str(peer.endpoint) if peer and peer.endpoint else entry.endpoint,
        "allowed-ips": list(entry.allowed_ips),
        "received": peer.received if peer else 0,
        "sent": peer.sent if peer else 0,
        "keepalive": entry.keepalive,
        "psk": entry.psk,
        "kept-key": entry.kept_key,
    }
