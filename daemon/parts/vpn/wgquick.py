"""Configuration files of wg-quick(8): reading one as a tunnel of ours, writing one for a client.

What a file may say beyond wg(8): Address, DNS, MTU, Table (off or auto). Commands (PostUp and the like) are refused:
running shell commands from a file that somebody sent is not importing a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from common import addresses
from common import netvalues as values
from common.errors import ConfigError
from common.lines import split_lines
from common.text import MARK
from daemon.parts.vpn import keys

MAX_BYTES = 48 << 10  # a request to the daemon holds it, escaped
MAX_PEERS = 1000

_COMMANDS = frozenset({"preup", "postup", "predown", "postdown"})
_KNOWN = {
    "interface": ("privatekey", "listenport", "fwmark", "address", "dns", "mtu", "table"),
    "peer": ("publickey", "presharedkey", "allowedips", "endpoint", "persistentkeepalive"),
}
_LISTS = frozenset({"address", "dns", "allowedips"})  # may stand several times
_SPELLING = {
    name.lower(): name
    for name in (
        *("PrivateKey", "ListenPort", "FwMark", "Address", "DNS", "MTU", "Table", "SaveConfig"),
        *("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"),
        *("PreUp", "PostUp", "PreDown", "PostDown"),
    )
}


@dataclass(frozen=True)
class QuickPeer:
    """A [Peer] section. name: from a comment right above or right below its header, when it can be one. line: of its
    key in the file that was read."""

    public: bytes
    name: str = ""
    preshared: bytes | None = field(default=None, repr=False)
    allowed: tuple[str, ...] = ()
    endpoint: str | None = None
    keepalive: int = 0
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Quick:
    """A whole file. routes: False for `Table = off`; left: name servers of the file beyond those that are asked."""

    private: bytes = field(repr=False)
    addresses: tuple[str, ...] = ()
    port: int = 0
    mark: int = 0
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int = 0
    routes: bool = True
    peers: tuple[QuickPeer, ...] = ()
    left: tuple[str, ...] = ()


@dataclass
class _Section:
    kind: str
    line: int
    comments: list[str]  # that may name it, the most likely first
    found: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def parse(text: str, where: str = "the file") -> Quick:
    """Read a file. Raises ConfigError `vpn-import` (or `vpn-import-unsupported`) with `where`:line; KeyProblem."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError(f"{where}: more than {MAX_BYTES} bytes", reason="vpn-import")
    sections = _sections(text, where)
    interfaces = [section for section in sections if section.kind == "interface"]
    peers = [section for section in sections if section.kind == "peer"]
    if len(interfaces) != 1:
        raise ConfigError(f"{where}: there must be one [Interface], not {len(interfaces)}", reason="vpn-import")
    if len(peers) > MAX_PEERS:
        raise ConfigError(f"{where}: more than {MAX_PEERS} peers", reason="vpn-import")
    quick = _Reader(where).interface(interfaces[0], tuple(_Reader(where).peer(section) for section in peers))
    first: dict[object, int] = {}
    for peer in quick.peers:
        for each in (peer.public, *peer.allowed):
            if other := first.get(each):
                what = f"{each} is allowed" if isinstance(each, str) else "the public key is there"
                raise _wrong(where, peer.line, f"{what} for the peer in line {other} already")
            first[each] = peer.line
    return quick


def _sections(text: str, where: str) -> list[_Section]:
    """The sections with their values, known keys only. Keys and section names have no case (wg(8))."""
    sections: list[_Section] = []
    above: list[str] = []  # comments right above this line, the nearest first
    fresh = False  # nothing but comments since the last header
    for number, raw in enumerate(split_lines(text.removeprefix(MARK)), 1):
        line, mark, remark = raw.partition("#")
        line = line.strip()
        if not line:
            if mark and fresh:
                sections[-1].comments.append(remark.strip())
            else:
                above = [remark.strip(), *above] if mark else []
            continue
        if line.startswith("["):
            kind = line[1:-1].strip().lower() if line.endswith("]") else ""
            if kind not in _KNOWN:
                raise _wrong(where, number, f"{line[:40]!r} is neither [Interface] nor [Peer]")
            sections.append(_Section(kind, number, above))
            above, fresh = [], True
            continue
        above, fresh = [], False
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not sections:
            raise _wrong(where, number, "a line must be `Key = value` below [Interface] or [Peer]")
        _take(sections[-1], name, value, number, where)
    return sections


def _take(section: _Section, name: str, value: str, number: int, where: str) -> None:
    word = name.lower()
    if word in _COMMANDS:
        raise ConfigError(
            f"{where}:{number}: {_SPELLING[word]} runs a shell command, which an import does not",
            reason="vpn-import-unsupported",
            hint="remove the line; firewall rules belong to `mixctl firewall`, routes are made from AllowedIPs",
        )
    if word == "saveconfig":
        if value.lower() == "true":
            raise ConfigError(
                f"{where}:{number}: SaveConfig writes the kernel's state over the file, which is not done here",
                reason="vpn-import-unsupported",
                hint="remove the line; `mixctl vpn` keeps its file itself",
            )
        return
    if word not in _KNOWN[section.kind]:
        raise _wrong(where, number, f"{name[:40]!r} is not a key of [{section.kind.capitalize()}]")
    if word in section.found and word not in _LISTS:
        raise _wrong(where, number, f"{_SPELLING[word]} is there twice")
    section.found.setdefault(word, []).append((number, value))


def _wrong(where: str, line: int, what: str) -> ConfigError:
    return ConfigError(f"{where}:{line}: {what}", reason="vpn-import")


class _Reader:
    """Turns the values of sections into what they mean."""

    def __init__(self, where: str) -> None:
        self.where = where

    def interface(self, section: _Section, peers: tuple[QuickPeer, ...]) -> Quick:
        if "privatekey" not in section.found:
            raise _wrong(self.where, section.line, "[Interface] has no PrivateKey")
        names = self.list(section, "dns", str)
        servers = tuple(self.convert(section, "dns", name, values.host_address) for name in names if _numeric(name))
        search = tuple(self.convert(section, "dns", name, values.host_name) for name in names if not _numeric(name))
        table = self.one(section, "table", "auto").lower()
        if table not in ("auto", "off"):
            raise ConfigError(
                f"{self.where}:{self.line(section, 'table')}: Table = {table[:20]} is not supported, only off and auto",
                reason="vpn-import-unsupported",
            )
        return Quick(
            private=self.key(section, "privatekey"),
            addresses=self.list(section, "address", _with_prefix),
            port=self.number(section, "listenport", 65535),
            mark=self.number(section, "fwmark", 2**32 - 1),
            dns=servers[: values.MAX_SERVERS],
            search=search,
            mtu=self.number(section, "mtu", 65535),
            routes=table == "auto",
            peers=peers,
            left=servers[values.MAX_SERVERS :],
        )

    def peer(self, section: _Section) -> QuickPeer:
        if "publickey" not in section.found:
            raise _wrong(self.where, section.line, "[Peer] has no PublicKey")
        endpoint = self.one(section, "endpoint", "")
        return QuickPeer(
            public=self.key(section, "publickey"),
            name=next((each for each in section.comments if values.is_peer_name(each)), ""),
            preshared=self.key(section, "presharedkey") if "presharedkey" in section.found else None,
            allowed=self.list(section, "allowedips", _allowed),
            endpoint=self.convert(section, "endpoint", endpoint, values.endpoint) if endpoint else None,
            keepalive=self.number(section, "persistentkeepalive", 65535),
            line=self.line(section, "publickey"),
        )

    def line(self, section: _Section, word: str) -> int:
        return section.found[word][0][0]

    def one(self, section: _Section, word: str, default: str) -> str:
        return section.found[word][0][1] if word in section.found else default

    def key(self, section: _Section, word: str) -> bytes:
        return keys.decode(self.one(section, word, ""), f"{self.where}:{self.line(section, word)}: {_SPELLING[word]}")

    def number(self, section: _Section, word: str, most: int) -> int:
        """A number, decimal or 0x…; "off" is 0."""
        value = self.one(section, word, "0").lower()
        if value == "off":
            return 0
        if not re.fullmatch(r"[0-9]{1,10}|0x[0-9a-f]{1,8}", value) or int(value, 0 if "x" in value else 10) > most:
            raise _wrong(self.where, self.line(section, word), f"{_SPELLING[word]} must be a number up to {most}")
        return int(value, 0 if "x" in value else 10)

    def list(self, section: _Section, word: str, check: Callable[[str], str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for line, value in section.found.get(word, ()):
            for item in filter(None, re.split(r"[,\s]+", value)):  # as wg-quick takes Address and DNS
                found[self.at(line, item, check)] = None
        return tuple(found)

    def convert(self, section: _Section, word: str, value: str, check: Callable[[str], str]) -> str:
        return self.at(self.line(section, word), value, check)

    def at(self, line: int, value: str, check: Callable[[str], str]) -> str:
        try:
            return check(value)
        except ValueError as error:
            raise _wrong(self.where, line, str(error)) from error


def _numeric(name: str) -> bool:
    return ":" in name or bool(re.fullmatch(r"[0-9.]+", name))


def _with_prefix(text: str) -> str:
    """An address; a bare one is a host of its own, as wg-quick takes it."""
    return values.interface_address(text if "/" in text else f"{text}/{128 if ':' in text else 32}")


def _allowed(text: str) -> str:
    """An allowed IP; host bits are dropped, as wg(8) does."""
    return str(values.ip_network(str(addresses.network(text, strict=False))))


def write(quick: Quick, private: str) -> str:
    """The file for wg-quick. private: the line that stands for the key ("PrivateKey = …" or a comment)."""
    lines = ["[Interface]", private]
    lines += _line("Address", quick.addresses) + _line("ListenPort", [quick.port] if quick.port else [])
    lines += _line("FwMark", [hex(quick.mark)] if quick.mark else [])
    lines += _line("DNS", [*quick.dns, *quick.search]) + _line("MTU", [quick.mtu] if quick.mtu else [])
    lines += [] if quick.routes else ["Table = off"]
    for peer in quick.peers:
        lines += ["", *([f"# {peer.name}"] if peer.name else []), "[Peer]", f"PublicKey = {keys.encode(peer.public)}"]
        lines += [f"PresharedKey = {keys.encode(peer.preshared)}"] if peer.preshared else []
        lines += _line("AllowedIPs", peer.allowed) + _line("Endpoint", [peer.endpoint] if peer.endpoint else [])
        lines += _line("PersistentKeepalive", [peer.keepalive] if peer.keepalive else [])
    return "\n".join(lines) + "\n"


def _line(name: str, items: Iterable[object]) -> list[str]:
    words = ", ".join(map(str, items))
    return [f"{name} = {words}"] if words else []
