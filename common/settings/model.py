"""The settings of a device: model, defaults, strict parser. The same for `mixos.toml` (host) and preseed (device).

    hostname = "mixos"                       # RFC 1123, at most 64 characters
    timezone = "Europe/Berlin"               # a name of the tz database
    [network]
    mode = "dhcp"                            # or "static", which needs address
    interface = "eth0"                       # default: every wired interface (dhcp), the first one (static)
    address = "192.0.2.10/24"
    gateway = "192.0.2.1"
    dns = ["192.0.2.1"]
    [ssh]
    root-login = false
    [[ssh.keys]]
    account = "admin"                        # or operator, viewer, agent; root with root-login
    key = "ssh-ed25519 AAAA... comment"
    from = ["192.0.2.0/24", "!192.0.2.1"]    # addresses that may use it; default: any
    expires = "2027-01-01"                   # UTC, refused from this day on; default: never
    options = ["no-pty"]                     # or "verify-required", for security keys
    [time]
    servers = ["pool.ntp.org"]
    [update]                                 # see common/settings/update.py
    channel = "https://updates.example/mixos"

What a document leaves out keeps the value of `base`; `[network]` and the list of keys are replaced as a whole, since
half a static address or a forgotten old key would surprise. All mistakes are reported at once. Standard library only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal

from common import addresses, toml
from common.accounts import NAMES
from common.errors import SettingsError
from common.positions import Locator, Position
from common.safe import without_password
from common.settings import update
from common.settings.sshkey import OPTIONS, expiry_problem, key_problem, normal_key, option_problem, source_problem
from common.settings.update import Update
from common.text import MARK, is_utf16, shown

Locate = Callable[[str], Position | None]
MAX_BYTES = 64 << 10
MAX_KEYS = 64
MAX_SERVERS = 8
MAX_DNS = 3  # the C library asks no more
MAX_SOURCES = 16
FOREVER = "9999-12-31"

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,14}")  # IFNAMSIZ is 16 with the final NUL


@dataclass(frozen=True)
class Network:
    """How the wired network is set up. Addresses are normalised text, `address` with prefix length."""

    mode: Literal["dhcp", "static"] = "dhcp"
    interface: str = ""
    address: str = ""
    gateway: str = ""
    dns: tuple[str, ...] = ()


@dataclass(frozen=True)
class SshKey:
    """A public key that may log in to an account: from where (patterns; empty: anywhere), until which day (or "")."""

    account: str
    key: str
    sources: tuple[str, ...] = ()
    expires: str = ""
    options: tuple[str, ...] = ()

    def as_mapping(self) -> dict[str, object]:
        """The table `[[ssh.keys]]`; only what is set."""
        extra = {"from": list(self.sources), "expires": self.expires, "options": list(self.options)}
        return {"account": self.account, "key": self.key, **{key: value for key, value in extra.items() if value}}


@dataclass(frozen=True)
class Settings:
    """All settings of a device, complete and valid."""

    hostname: str = "mixos"
    timezone: str = "UTC"
    network: Network = field(default_factory=Network)
    root_login: bool = False
    keys: tuple[SshKey, ...] = ()
    servers: tuple[str, ...] = ("0.pool.ntp.org", "1.pool.ntp.org", "2.pool.ntp.org")
    update: Update = field(default_factory=Update)

    @property
    def login_until(self) -> str:
        """The first day (ISO 8601) on which no key lets anybody in any more: FOREVER, or "" without a key."""
        return max((key.expires or FOREVER for key in self.keys), default="")

    def as_mapping(self) -> dict[str, object]:
        """The document that `from_mapping` reads back as these settings; also what is stored in the image."""
        network = {
            "mode": self.network.mode,
            "interface": self.network.interface,
            "address": self.network.address,
            "gateway": self.network.gateway,
            "dns": list(self.network.dns),
        }
        return {
            "hostname": self.hostname,
            "timezone": self.timezone,
            "network": {key: value for key, value in network.items() if value},
            "ssh": {
                "root-login": self.root_login,
                "keys": [key.as_mapping() for key in self.keys],
            },
            "time": {"servers": list(self.servers)},
            "update": self.update.as_mapping(),
        }


def login_problem(until: str, today: date) -> str | None:
    """Why nobody can log in to a device with these settings (`login_until`), as a sentence without a stop, or None."""
    if not until:
        return "nobody will be able to log in: no SSH key is set, and there are no passwords"
    return f"nobody will be able to log in: the last SSH key expired on {until}" if until <= today.isoformat() else None


def parse(data: bytes, where: str, base: Settings) -> Settings:
    """Read a TOML document. `where` is the file's name for messages.

    Raises SettingsError: `settings-too-big`, `settings-encoding`, `settings-syntax`, `settings-unknown-key`,
    `settings-type`, `settings-value` (of several mistakes the first decides the reason).
    """
    document, locator = _document(data, where)
    return from_mapping(document, where, base, locator.find)


def parse_update(data: bytes, where: str) -> Update:
    """Read the file `update.toml`: the table [update] on its own. Raises SettingsError as `parse` does."""
    document, locator = _document(data, where)
    reader = _Reader(where, locator.find, inside="update.")
    return reader.read({"update": document}, Settings()).update


def check_update(text: str, path: object) -> None:
    """Raise SettingsError for content of `update.toml` that would be refused."""
    parse_update(text.encode("utf-8", "surrogatepass"), str(path))


def _document(data: bytes, where: str) -> tuple[dict[str, Any], Locator]:
    """The TOML document, and where its keys are."""
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{where}: more than {MAX_BYTES} bytes", reason="settings-too-big")
    try:
        text = data.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = "UTF-16, not UTF-8" if is_utf16(data) else "not UTF-8"
        raise SettingsError(f"{where}:{line}: {what}: save it as UTF-8", reason="settings-encoding") from error
    try:
        document = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise SettingsError(toml.explained(error, where, text), reason="settings-syntax") from error
    return document, Locator(text)


def from_mapping(
    document: Mapping[str, Any],
    where: str,
    base: Settings,
    locate: Locate = lambda path: None,
) -> Settings:
    """Read settings from decoded TOML or JSON. `locate` gives the place of a dotted key path, for messages."""
    return _Reader(where, locate).read(document, base)


class _Reader:
    """Reads one document and collects its mistakes. inside: the table, with a dot, that a file holds on its own."""

    def __init__(self, where: str, locate: Locate, inside: str = "") -> None:
        self.where = where
        self.locate = locate
        self.inside = inside
        self.mistakes: list[tuple[str, str]] = []

    def read(self, document: Mapping[str, Any], base: Settings) -> Settings:
        """The settings of a document. Raises SettingsError."""
        settings = self.settings(document, base)
        if self.mistakes:
            lines = "\n".join(message for _, message in self.mistakes[:20])
            raise SettingsError(lines, reason=self.mistakes[0][0], hint="nothing of the file was applied")
        return settings

    def wrong(self, path: str, what: str, reason: str = "settings-value") -> None:
        path = path.removeprefix(self.inside)
        place = self.locate(path)
        spot = f"{self.where}:{place.line}:{place.column}" if place else self.where
        self.mistakes.append((reason, f"{spot}: {path}: {what}"))

    def table(self, value: Any, path: str, known: tuple[str, ...]) -> Mapping[str, Any]:
        """`value` as a table with no other keys than `known`; an empty one after reporting a mistake."""
        if not isinstance(value, Mapping):
            self.wrong(path, "must be a table", "settings-type")
            return {}
        for key in value:
            if key not in known:
                self.wrong(f"{path}.{key}".lstrip("."), f"unknown key{_suggest(key, known)}", "settings-unknown-key")
        return value

    def text(self, table: Mapping[str, Any], key: str, path: str, default: str) -> str:
        value = table.get(key, default)
        if not isinstance(value, str):
            self.wrong(path, f"must be text in quotes, not {shown(value)}", "settings-type")
            return default
        return value

    def texts(self, table: Mapping[str, Any], key: str, path: str, limit: int) -> tuple[str, ...] | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or len(value) > limit:
            self.wrong(path, f"must be a list of at most {limit} texts", "settings-type")
            return None
        return tuple(value)

    def settings(self, document: Mapping[str, Any], base: Settings) -> Settings:
        top = self.table(document, "", ("hostname", "timezone", "network", "ssh", "time", "update"))
        result = replace(
            base,
            hostname=self.hostname(top, base.hostname),
            timezone=self.timezone(top, base.timezone),
        )
        if "network" in top:
            result = replace(result, network=self.network(top["network"]))
        if "ssh" in top:
            result = self.ssh(top["ssh"], result)
        if "time" in top:
            result = replace(result, servers=self.servers(top["time"], base.servers))
        if "update" in top:
            result = replace(result, update=self.update(top["update"], base.update))
        return result

    def hostname(self, table: Mapping[str, Any], default: str) -> str:
        name = self.text(table, "hostname", "hostname", default)
        if len(name) > 64 or not _HOST.fullmatch(name):
            self.wrong("hostname", f"{name!r} is not a host name (letters, digits, '-', '.', at most 64 characters)")
        return name

    def timezone(self, table: Mapping[str, Any], default: str) -> str:
        name = self.text(table, "timezone", "timezone", default)
        if name not in ("UTC", default):
            from common.settings.zones import zones

            if name not in (known := zones()):
                self.wrong("timezone", f"{name!r} is not a time zone{_suggest(name, tuple(known))}")
        return name

    def network(self, value: Any) -> Network:
        table = self.table(value, "network", ("mode", "interface", "address", "gateway", "dns"))
        mode = self.text(table, "mode", "network.mode", "dhcp")
        interface = self.text(table, "interface", "network.interface", "")
        if interface and (not _INTERFACE.fullmatch(interface) or interface == "lo"):
            self.wrong("network.interface", f"{interface!r} is not the name of a network interface")
        dns = tuple(
            str(address)
            for name in self.texts(table, "dns", "network.dns", MAX_DNS) or ()
            if (address := self.address(name, "network.dns")) is not None
        )
        if mode == "dhcp":
            for key in {"address", "gateway"} & set(table):
                self.wrong(f"network.{key}", 'only with mode = "static"')
            return Network("dhcp", interface, dns=dns)
        if mode != "static":
            self.wrong("network.mode", f"{mode!r} is neither dhcp nor static{_suggest(mode, ('dhcp', 'static'))}")
            return Network()
        return self.static(table, interface, dns)

    def static(self, table: Mapping[str, Any], interface: str, dns: tuple[str, ...]) -> Network:
        if "address" not in table:
            self.wrong("network", 'mode = "static" needs address = "192.0.2.10/24"')
            return Network()
        text = self.text(table, "address", "network.address", "")
        try:
            address = addresses.interface(text)
        except ValueError:
            self.wrong("network.address", f"{text!r} is not an address with prefix length, such as 192.0.2.10/24")
            return Network()
        if "/" not in text:
            self.wrong("network.address", f"{text!r} must be a host's address with its prefix length")
        elif problem := addresses.host_problem(address.ip, address.network):
            self.wrong("network.address", f"{text!r} {problem}")
        gateway = self.text(table, "gateway", "network.gateway", "")
        if gateway and (hop := self.address(gateway, "network.gateway")) is not None:
            gateway = str(hop)
            alone = address.network.num_addresses == 1 and address.version == hop.version  # then it is on the link
            if hop not in address.network and not hop.is_link_local and not alone:
                self.wrong("network.gateway", f"{gateway} is not in {address.network}")
            elif problem := addresses.host_problem(hop, address.network if hop in address.network else None):
                self.wrong("network.gateway", f"{gateway} {problem}")
            elif hop == address.ip:
                self.wrong("network.gateway", "is the device's own address")
        return Network("static", interface, str(address), gateway, dns)

    def address(self, text: str, path: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        try:
            address = addresses.address(text)
        except ValueError:
            self.wrong(path, f"{text!r} is not an IP address")
            return None
        problem = None if address.is_loopback else addresses.host_problem(address)
        if problem:
            self.wrong(path, f"{text!r} {problem}")
            return None
        return address

    def ssh(self, value: Any, settings: Settings) -> Settings:
        table = self.table(value, "ssh", ("root-login", "keys"))
        login = table.get("root-login", settings.root_login)
        if not isinstance(login, bool):
            self.wrong("ssh.root-login", f"must be true or false, not {shown(login)}", "settings-type")
            login = False
        rows = table.get("keys")
        keys = settings.keys if rows is None else self.keys(rows)
        if not login and any(key.account == "root" for key in keys):
            self.wrong("ssh.keys", "a key for root needs root-login = true")
        return replace(settings, root_login=login, keys=keys)

    def keys(self, rows: Any) -> tuple[SshKey, ...]:
        if not isinstance(rows, list) or len(rows) > MAX_KEYS or not all(isinstance(row, Mapping) for row in rows):
            self.wrong("ssh.keys", f"must be at most {MAX_KEYS} tables [[ssh.keys]]", "settings-type")
            return ()
        return tuple(self.key(row, f"ssh.keys[{index}]") for index, row in enumerate(rows))

    def key(self, row: Any, path: str) -> SshKey:
        table = self.table(row, path, ("account", "key", "from", "expires", "options"))
        account = self.text(table, "account", f"{path}.account", "admin")
        key = normal_key(self.text(table, "key", f"{path}.key", ""))
        day = table.get("expires")
        expires = day.isoformat() if type(day) is date else self.text(table, "expires", f"{path}.expires", "")
        sources = self.texts(table, "from", f"{path}.from", MAX_SOURCES) or ()
        options = self.texts(table, "options", f"{path}.options", len(OPTIONS)) or ()
        if account not in NAMES:
            self.wrong(f"{path}.account", f"{account!r} is not an account{_suggest(account, NAMES)}")
        problems = {
            "key": key_problem(key),
            "from": source_problem(sources) if "from" in table else None,
            "expires": expiry_problem(expires) if "expires" in table else None,
            "options": option_problem(options, key),
        }
        for name, problem in problems.items():
            if problem:
                self.wrong(f"{path}.{name}", problem)
        return SshKey(account, key, sources, expires, options)

    def servers(self, value: Any, default: tuple[str, ...]) -> tuple[str, ...]:
        names = self.texts(self.table(value, "time", ("servers",)), "servers", "time.servers", MAX_SERVERS)
        for name in names or ():
            if len(name) > 253 or not _HOST.fullmatch(name):
                try:
                    addresses.address(name)
                except ValueError:
                    self.wrong("time.servers", f"{name!r} is neither a host name nor an IP address")
        return default if names is None else names

    def update(self, value: Any, base: Update) -> Update:
        table = self.table(value, "update", update.KEYS)
        channel = self.text(table, "channel", "update.channel", base.channel)
        if channel and (problem := update.channel_problem(channel)):
            self.wrong("update.channel", f"{without_password(channel)!r} {problem}")
        chosen = {}
        for key, known, default in (("fetch", update.FETCH, base.fetch), ("apply", update.APPLY, base.apply)):
            chosen[key] = self.text(table, key, f"update.{key}", default)
            if chosen[key] not in known:
                self.wrong(f"update.{key}", f"{chosen[key]!r} is not one of {', '.join(known)}")
        when = self.texts(table, "when", "update.when", update.MAX_WINDOWS)
        metered = self.texts(table, "metered", "update.metered", update.MAX_METERED)
        for window in when or ():
            if problem := update.window_problem(window):
                self.wrong("update.when", problem)
        for name in metered or ():
            if not _INTERFACE.fullmatch(name):
                self.wrong("update.metered", f"{name!r} is not the name of a network interface")
        size = update.size(table.get("max-bytes", base.max_bytes))
        if size is None:
            self.wrong("update.max-bytes", f"must be bytes or text such as '64M', not {shown(table['max-bytes'])}")
        windows = base.when if when is None else when
        for key, word in chosen.items():
            if word == "window" and not windows:
                self.wrong(f"update.{key}", '"window" needs when = ["sat,sun 02:00-05:00"]')
        return Update(
            channel, **chosen, when=windows, metered=base.metered if metered is None else metered, max_bytes=size or 0
        )


def _suggest(word: str, known: tuple[str, ...]) -> str:
    import difflib  # only mistakes pay for it

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})" if len(known) < 12 else ""
