"""The part "vpn": WireGuard tunnels as vpn.toml says, kept up, and the commands that change them.

How the file is put in force is `engine`'s. Every `TICK_SECONDS` peers with a name for an endpoint that do not answer
are looked up again, and resolv.conf is compared with what it should say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import netvalues as values
from common.errors import MixosError, RefusedError
from daemon.core.change.applier import Wish
from daemon.core.change.record import Contents
from daemon.core.method import ADMINS, Caller, Handler, Method, Nothing, Params
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.linux.log import log
from daemon.linux.rtnl import PROC, Rtnl
from daemon.linux.wireguard import Device, stale
from daemon.parts.vpn import clients, keys, tunnel, wgquick
from daemon.parts.vpn.edits import VpnConfig
from daemon.parts.vpn.engine import Engine
from daemon.parts.vpn.model import PeerEntry, Tunnel
from daemon.parts.vpn.requests import (
    AddPeer,
    ChangeInterface,
    ChangePeer,
    Import,
    Init,
    OfInterface,
    OfPeer,
    Rotate,
    Shown,
)
from daemon.parts.vpn.tunnel import own_key, peer_key, peer_psk

if TYPE_CHECKING:
    from daemon.parts.vpn.answers import (
        Added,
        Applied,
        Changed,
        Exported,
        Imported,
        New,
        Peer,
        PeerChanged,
        PeerConfig,
        Report,
        Rotated,
        RotatedOwn,
        TunnelRow,
    )

TICK_SECONDS = 30.0


class Vpn:
    """The part. proc: the kernel's switches; tests give others."""

    name = "vpn"

    def __init__(self, context: Context, *, proc: Path = PROC) -> None:
        self.context = context
        self.engine = Engine(context, proc)
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
            _change("vpn.remove", "Remove a peer and its secrets.", self.remove, ChangePeer),
            _change("vpn.delete", "Remove a tunnel with all it has.", self.delete, ChangeInterface),
            _change("vpn.rotate", "New keys; gives what the other side needs.", self.rotate, Rotate),
            _change("vpn.up", "Bring a tunnel up, now and at every start.", self.up, ChangeInterface),
            _change("vpn.down", "Take a tunnel down until `vpn.up`.", self.down, ChangeInterface),
            _change("vpn.apply", "Put an edited vpn.toml in force.", self.apply, Wish),
            _change("vpn.import", "Make a tunnel from a file of wg-quick.", self.bring_in, Import),
        ]

    async def start(self) -> None:
        """Bring up what the file says. Names of endpoints are looked up afterwards: there may be no network yet."""
        try:
            self.engine.file_problem = await self.context.changes.start(self.engine)
        except MixosError as error:
            self.engine.file_problem = error
        if self.engine.file_problem is not None:
            self.engine.problem("", self.engine.file_problem)
        self._ticking = background("vpn", self._tick)

    async def stop(self) -> None:
        """Tunnels stay up."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """What is up, and what should be and is not."""
        problems = {name: error.message for name, error in self.engine.problems.items()}
        return {"up": sorted(self.engine.up), "problems": problems}

    # -- looking -----------------------------------------------------------------------------------------------------

    async def report(self, _: Caller, __: Nothing) -> Report:
        """`vpn.status`. The kernel's counters; ages in seconds, null for never."""
        tunnels = self.engine.config.read().interface
        return {"interfaces": [self._row(name, entry) for name, entry in tunnels.items()]}

    def _row(self, name: str, entry: Tunnel) -> TunnelRow:
        device = self.engine.device(name) if name in self.engine.up else None
        problem = self.engine.problems.get(name) or self.engine.file_problem
        return {
            "name": name,
            "wanted": "up" if entry.up else "down",
            "addresses": list(entry.addresses),
            "state": "up" if device else "down",
            "public-key": keys.encode(device.public) if device else None,
            "port": device.port if device else entry.port,
            "problem": problem.message if problem else None,
            "peers": [_peer_row(title, peer, device) for title, peer in entry.peer.items()],
        }

    async def show(self, _: Caller, params: OfPeer) -> PeerConfig:
        """`vpn.config`. Raises RefusedError `vpn-key-not-kept`."""
        config = self.engine.config
        name, entry, peer = config.peer(params.interface, params.peer)
        if not peer.kept_key:
            raise RefusedError(
                f"the private key of {params.peer} was shown once and is not on this device",
                reason="vpn-key-not-kept",
                hint=f"mixctl vpn rotate {params.peer} --key makes a new one",
            )
        private = config.store.read(peer_key(name, params.peer))
        return {"peer": params.peer, "config": await self._client(config, name, entry, params.peer, private)}

    async def export(self, _: Caller, params: OfInterface) -> Exported:
        """`vpn.export`."""
        name, entry = self.engine.config.tunnel(params.interface)
        return {"interface": name, "config": clients.export(entry)}

    # -- changing ----------------------------------------------------------------------------------------------------

    async def init(self, caller: Caller, params: Init) -> New:
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
        _, changed = await self._make(
            caller, params, params.name, lambda config: config.add_tunnel(params.name, pair.private, settings)
        )
        return {**changed, "public-key": keys.encode(pair.public), "addresses": list(addresses)}

    async def add(self, caller: Caller, params: AddPeer) -> Added:
        """`vpn.add-peer`: with a key of its own when none is given; its private half is in the answer and nowhere else,
        unless `keep-key`. Raises RefusedError `vpn-exists`, `vpn-full`, `vpn-config-size`, KeyProblem, ConfigError.
        """
        config = self._files()
        name = config.tunnel(params.interface)[0]
        if params.public_key is None:
            pair = await keys.make_pair()
            public, private = pair.public, pair.private
        else:
            public, private = keys.decode(params.public_key, "the public key"), None
        own = await self._public(config, name)
        if public == own:
            raise RefusedError(f"this is the key of {name} itself", reason="vpn-key-own")
        preshared = keys.preshared() if params.psk else None

        def edit(config: VpnConfig) -> None:
            settings: dict[str, object] = {
                "public-key": keys.encode(public),
                "allowed-ips": clients.allowed(config.tunnel(name)[1], params.allowed_ips),
                "endpoint": params.endpoint,
                "keepalive": params.keepalive or None,
            }
            kept = private if params.keep_key else None
            entry = config.add_peer(name, params.peer, settings, preshared, kept)
            _fits(params, clients.client(entry, entry.peer[params.peer], own, private, preshared))

        config, changed = await self._make(caller, params, name, edit)
        text = await self._client(config, name, config.tunnel(name)[1], params.peer, private)
        return {**changed, "peer": params.peer, "config": text}

    async def remove(self, caller: Caller, params: ChangePeer) -> PeerChanged:
        """`vpn.remove`."""
        name = self._files().peer(params.interface, params.peer)[0]
        _, changed = await self._make(caller, params, name, lambda config: config.remove_peer(name, params.peer))
        return {**changed, "peer": params.peer}

    async def delete(self, caller: Caller, params: ChangeInterface) -> Changed:
        """`vpn.delete`. The name must be given."""
        if params.interface is None:
            raise RefusedError("name the interface to delete", reason="vpn-which")
        name = self._files().tunnel(params.interface)[0]

        def edit(config: VpnConfig) -> None:
            config.remove_tunnel(name, config.tunnel(name)[1])

        return (await self._make(caller, params, name, edit))[1]

    async def rotate(self, caller: Caller, params: Rotate) -> Rotated | RotatedOwn:
        """`vpn.rotate`: what the other sides need is in `configs`, by peer."""
        if params.peer is None:
            return await self._rotate_own(caller, params)
        title = params.peer
        name, _, peer = self._files().peer(params.interface, title)
        own = await self._public(self._files(), name)
        if not params.key:
            preshared = keys.preshared()

            def share(config: VpnConfig) -> None:
                entry = config.change_peer(name, title, {"psk": True}, preshared=preshared)
                _fits(params, clients.section(entry, entry.peer[title], own, preshared))

            config, changed = await self._make(caller, params, name, share)
            entry, own = config.tunnel(name)[1], await self._public(config, name)
            text = clients.section(entry, entry.peer[title], own, preshared)
            return {**changed, "peer": title, "configs": {title: text}}
        pair = await keys.make_pair()
        kept = pair.private if peer.kept_key else None
        new_key = {"public-key": keys.encode(pair.public)}

        def edit(config: VpnConfig) -> None:
            entry = config.change_peer(name, title, new_key, private=kept)
            psk = _preshared(config, name, title, entry.peer[title])
            _fits(params, clients.client(entry, entry.peer[title], own, pair.private, psk))

        config, changed = await self._make(caller, params, name, edit)
        text = await self._client(config, name, config.tunnel(name)[1], title, pair.private)
        return {**changed, "peer": title, "configs": {title: text}}

    async def _rotate_own(self, caller: Caller, params: Rotate) -> RotatedOwn:
        name = self._files().tunnel(params.interface)[0]
        pair = await keys.make_pair()
        sections: dict[str, str] = {}

        def edit(config: VpnConfig) -> None:
            config.store.write(own_key(name), pair.private)
            entry = config.tunnel(name)[1]
            for title, peer in entry.peer.items():
                sections[title] = clients.section(entry, peer, pair.public, _preshared(config, name, title, peer))
                _fits(params, sections[title])

        _, changed = await self._make(caller, params, name, edit)
        return {**changed, "public-key": keys.encode(pair.public), "configs": sections}

    async def up(self, caller: Caller, params: ChangeInterface) -> Changed:
        """`vpn.up`. Raises what keeps it down."""
        return await self._switch(caller, params, True)

    async def down(self, caller: Caller, params: ChangeInterface) -> Changed:
        """`vpn.down`."""
        return await self._switch(caller, params, False)

    async def apply(self, caller: Caller, wish: Wish) -> Applied:
        """`vpn.apply`. Raises ConfigError; problems of single tunnels are in the answer."""
        answer = await self.context.changes.make(caller, wish, "vpn apply", parts=("vpn",))
        down = {name: error.message for name, error in self.engine.problems.items()}
        return {**answer, "up": sorted(self.engine.up), "down": down}

    async def bring_in(self, caller: Caller, params: Import) -> Imported:
        """`vpn.import`. Raises ConfigError `vpn-import`, `vpn-import-unsupported`, KeyProblem."""
        quick = wgquick.parse(params.text.get_secret_value(), params.file)
        config, changed = await self._make(
            caller, params, params.name, lambda config: config.add_quick(params.name, quick)
        )
        left = [f"{values.MAX_SERVERS} name servers are asked, not {', '.join(quick.left)}"] if quick.left else []
        peers = list(config.tunnel(params.name)[1].peer)
        return {**changed, "warnings": [*left, *changed["warnings"]], "peers": peers}

    async def _switch(self, caller: Caller, params: ChangeInterface, up: bool) -> Changed:
        name = self._files().tunnel(params.interface)[0]

        def edit(config: VpnConfig) -> None:
            if config.tunnel(name)[1].up != up:
                config.set_up(name, up)

        answer = (await self._make(caller, params, name, edit))[1]
        if up and not params.dry_run and name in self.engine.problems:
            raise self.engine.problems[name]
        return answer

    def _files(self) -> VpnConfig:
        """The files as they are on the disk, to be edited. Raises RefusedError `change-pending`."""
        self.context.changes.refuse_during_trial(self.engine)
        return VpnConfig(self.context.changes.places)

    async def _make(
        self, caller: Caller, wish: Wish, name: str, edit: Callable[[VpnConfig], object]
    ) -> tuple[VpnConfig, Changed]:
        """Edit the files and put them in force. What does not work then is in the answer: the change itself is made."""
        config = self._files()

        def edited() -> Contents:
            edit(config)
            return config.contents

        answer = await self.context.changes.make(
            caller, wish, f"vpn {type(wish).__name__.lower()} {name}", edited, parts=("vpn",)
        )
        problem = self.engine.problems.get(name)
        entry = config.read().interface.get(name)
        return config, {
            **answer,
            "interface": name,
            "state": "up" if name in self.engine.up else "down",
            "problem": problem.message if problem else None,
            "warnings": tunnel.warnings(entry) if entry else [],
        }

    async def _client(self, config: VpnConfig, name: str, entry: Tunnel, title: str, private: bytes | None) -> str:
        peer = entry.peer[title]
        public = await self._public(config, name)
        return clients.client(entry, peer, public, private, _preshared(config, name, title, peer))

    async def _public(self, config: VpnConfig, name: str) -> bytes:
        return await keys.public_of(config.store.read(own_key(name)))

    # -- now and then ------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Now and then: names again for those who do not answer, tunnels that could not come up, resolv.conf."""
        while True:
            try:
                if self.engine.up or self.engine.problems:
                    await self.engine.look_again()
                self.engine.names.refresh()
            except (MixosError, OSError) as error:
                log("warning", f"vpn: {error}")
            await asyncio.sleep(TICK_SECONDS)


def _fits(shown: Shown, text: str) -> None:
    """Before anything is changed: a key that is told once must not be lost. Raises RefusedError `vpn-config-size`."""
    size = len(text.encode())
    if shown.config_bytes is not None and size > shown.config_bytes:
        raise RefusedError(
            f"the configuration has {size} bytes, and only {shown.config_bytes} can be shown so; nothing was changed",
            reason="vpn-config-size",
        )


def _preshared(config: VpnConfig, name: str, title: str, peer: PeerEntry) -> bytes | None:
    return config.store.read(peer_psk(name, title)) if peer.psk else None


def _change(name: str, summary: str, handler: Handler[Params, object], params: type[Params]) -> Method:
    """A method for admins that changes something. Names of endpoints may take a while; answers may hold keys."""
    return Method(name, summary, handler, ADMINS, params, changes=True, seconds=90.0, secret=True)


def _peer_row(title: str, entry: PeerEntry, device: Device | None) -> Peer:
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
