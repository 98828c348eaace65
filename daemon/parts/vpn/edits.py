"""Changing vpn.toml and its secrets: make a tunnel, add and remove peers, new keys, import.

The file is edited in place (`common.tomledit`), so what people wrote into it stays. Nothing is written here: what was
edited is in `changed`, file and secrets together, for one change (`daemon.core.change`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import NotFoundError, RefusedError
from common.text import decoded
from common.tomledit import remove_table, set_keys
from common.tomlfile import parse, parse_edit
from daemon.core.change.applier import View
from daemon.core.change.files import Trees
from daemon.core.change.record import Contents
from daemon.parts.vpn import keys
from daemon.parts.vpn.keys import SECRETS, Store
from daemon.parts.vpn.model import PeerEntry, Tunnel, VpnFile
from daemon.parts.vpn.tunnel import own_key, peer_key, peer_psk
from daemon.parts.vpn.wgquick import Quick, QuickPeer

FILE = "etc/mixos/vpn.toml"


class VpnConfig:
    """vpn.toml and the secrets, as they are in `places`, or in `base` where that has them."""

    def __init__(self, places: Trees, base: Contents | None = None) -> None:
        self.changed: dict[str, bytes | Path | None] = dict(base or {})
        self.view = View(places, self.changed)
        self.file = places.place(FILE)
        self.store = Store(self.view, self.changed)

    @property
    def contents(self) -> dict[str, bytes | None]:
        """What was edited."""
        return {name: data for name, data in self.changed.items() if not isinstance(data, Path)}

    def everything(self) -> dict[str, bytes | None]:
        """File and secrets as they are here."""
        return {name: self.view.read(name) for name in (FILE, *self.view.names(SECRETS.rstrip("/")))}

    def read(self) -> VpnFile:
        """The file; no file has no tunnels. Raises ConfigError."""
        return parse(self._text(), self.file, VpnFile)

    def tunnel(self, name: str | None) -> tuple[str, Tunnel]:
        """A tunnel by name; without one, the only one. Raises NotFoundError `vpn-interface`, RefusedError."""
        tunnels = self.read().interface
        if name is None:
            if len(tunnels) > 1:
                raise RefusedError(
                    f"there are several VPN interfaces: {', '.join(tunnels)}",
                    reason="vpn-which",
                    hint="name one with --interface",
                )
            name = next(iter(tunnels), "wg0")
        if name not in tunnels:
            raise NotFoundError(
                f"there is no VPN interface {name}", reason="vpn-interface", hint="mixctl vpn init makes one"
            )
        return name, tunnels[name]

    def peer(self, name: str | None, title: str) -> tuple[str, Tunnel, PeerEntry]:
        """A peer of a tunnel. Raises NotFoundError `vpn-peer` and what `tunnel` raises."""
        name, tunnel = self.tunnel(name)
        if title not in tunnel.peer:
            known = ", ".join(list(tunnel.peer)[:10])
            raise NotFoundError(
                f"{name} has no peer {title}", reason="vpn-peer", hint=f"there are {known}" if known else None
            )
        return name, tunnel, tunnel.peer[title]

    def add_tunnel(self, name: str, private: bytes, values: Mapping[str, object]) -> Tunnel:
        """A new tunnel. Raises RefusedError `vpn-exists`, ConfigError."""
        if name in self.read().interface:
            raise RefusedError(
                f"{name} is there already", reason="vpn-exists", hint="mixctl vpn rotate makes a new key for it"
            )
        text = set_keys(self._text(), ["interface", name], values)
        self._check(text)
        self.store.write(own_key(name), private)
        return self._save(text).interface[name]

    def add_peer(
        self, name: str, title: str, values: Mapping[str, object], preshared: bytes | None, private: bytes | None
    ) -> Tunnel:
        """A new peer; `private` only when it shall be kept. Raises RefusedError `vpn-exists`, ConfigError."""
        if title in self.tunnel(name)[1].peer:
            raise RefusedError(
                f"{name} has a peer {title} already", reason="vpn-exists", hint=f"mixctl vpn remove {title}"
            )
        flags = {"psk": True if preshared else None, "kept-key": True if private else None}
        text = set_keys(self._text(), ["interface", name, "peer", title], {**values, **flags})
        self._check(text)
        self._keep(name, title, preshared, private)
        return self._save(text).interface[name]

    def change_peer(self, name: str, title: str, values: Mapping[str, object], **secrets: bytes | None) -> Tunnel:
        """Change keys of a peer, and its secrets `preshared` and `private` (as in `add_peer`). Raises ConfigError."""
        text = set_keys(self._text(), ["interface", name, "peer", title], values)
        self._check(text)
        self._keep(name, title, secrets.get("preshared"), secrets.get("private"))
        return self._save(text).interface[name]

    def remove_peer(self, name: str, title: str) -> None:
        """A peer goes, with its secrets."""
        self._save(remove_table(self._text(), ["interface", name, "peer", title]))
        for secret in (peer_psk(name, title), peer_key(name, title)):
            self.store.remove(secret)

    def remove_tunnel(self, name: str, tunnel: Tunnel) -> None:
        """A tunnel goes, with all its peers and secrets."""
        self._save(remove_table(self._text(), ["interface", name]))
        secrets = [own_key(name), *(make(name, title) for title in tunnel.peer for make in (peer_psk, peer_key))]
        for secret in secrets:
            self.store.remove(secret)

    def set_up(self, name: str, up: bool) -> None:
        """Whether a tunnel is brought up at start."""
        self._save(set_keys(self._text(), ["interface", name], {"up": up}))

    def add_quick(self, name: str, quick: Quick) -> Tunnel:
        """A tunnel from a file of wg-quick. Raises RefusedError `vpn-exists`, ConfigError."""
        if name in self.read().interface:
            raise RefusedError(f"{name} is there already", reason="vpn-exists", hint="choose another --name")
        own: dict[str, object] = {
            "addresses": quick.addresses,
            "port": quick.port or None,
            "mark": quick.mark or None,
            "dns": quick.dns or None,
            "search": quick.search or None,
            "mtu": quick.mtu or None,
            "routes": None if quick.routes else False,
        }
        text = set_keys(self._text(), ["interface", name], own)
        titles = _titles(quick.peers)
        for title, peer in zip(titles, quick.peers, strict=True):
            entry = {
                "public-key": keys.encode(peer.public),
                "allowed-ips": peer.allowed,
                "endpoint": peer.endpoint,
                "keepalive": peer.keepalive or None,
                "psk": True if peer.preshared else None,
            }
            text = set_keys(text, ["interface", name, "peer", title], entry)
        self._check(text)
        self.store.write(own_key(name), quick.private)
        for title, peer in zip(titles, quick.peers, strict=True):
            self._keep(name, title, peer.preshared, None)
        return self._save(text).interface[name]

    def _keep(self, name: str, title: str, preshared: bytes | None, private: bytes | None) -> None:
        if preshared is not None:
            self.store.write(peer_psk(name, title), preshared)
        if private is not None:
            self.store.write(peer_key(name, title), private)

    def _text(self) -> str:
        return decoded(self.view.read(FILE) or b"", self.file)

    def _save(self, text: str) -> VpnFile:
        """The edited file, after reading it as what it is. Raises ConfigError."""
        config = self._check(text)
        self.changed[FILE] = text.encode()
        return config

    def _check(self, text: str) -> VpnFile:
        return parse_edit(text, self._text(), self.file, VpnFile)


def _titles(peers: Sequence[QuickPeer]) -> list[str]:
    """A name for each peer, no two alike: its own, which the first of several has, or peer1, peer2, …"""
    own = {peer.name: number for number, peer in reversed(list(enumerate(peers)))}
    titles = []
    for number, peer in enumerate(peers):
        title, count = peer.name, number + 1
        while not title or own.get(title, number) != number or title in titles:
            title, count = f"peer{count}", count + 1
        titles.append(title)
    return titles
