"""The proxy setting: one file that feeds the environment of services and the daemon's own fetchers.

    # /etc/mixos/proxy.toml
    http = "http://proxy.example.org:3128"
    https = "http://proxy.example.org:3128"
    socks = "socks5h://proxy.example.org:1080"
    no-proxy = ["192.0.2.0/24", ".example.org"]

User and password stand in proxy.secret.toml beside it, mode 0600, and leave it only for the environment of services and
of the administrator's login shells (/run/mixos/proxy.env, 0640) and the requests themselves: no answer, event or log
carries them.
"""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from common import netvalues
from common.errors import ConfigError, MixosError, RefusedError
from common.files import write_atomically
from common.netvalues import network
from common.tomledit import set_keys
from common.tomlfile import Strict, parse
from daemon.core.change.applier import Plan, View, Wish
from daemon.core.change.files import Step, Trees
from daemon.core.change.record import Contents
from daemon.core.method import ADMINS, OPERATORS, Caller, Method, Nothing
from daemon.core.part import Context

if TYPE_CHECKING:
    from daemon.parts.proxy.answers import Changed, Fetched, Setting

FILE, SECRET = "etc/mixos/proxy.toml", "etc/mixos/proxy.secret.toml"
ALWAYS = ("localhost", "127.0.0.0/8", "::1")  # never through a proxy
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_SUFFIX = re.compile(r"\.?[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9])?(?::[0-9]{1,5})?")


def parse_proxy(text: str, schemes: Sequence[str]) -> str:
    """A proxy's URL, normalised. Raises ValueError; credentials have no place in it."""
    if len(text) > 300 or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a proxy is a URL such as http://proxy.example.org:3128")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("the port or address of the proxy is wrong") from None
    if "@" in url.netloc:
        # The value is not repeated: it holds a password.
        raise ValueError("user and password go to `mixctl proxy set --user NAME`, never into the URL")
    if url.scheme not in schemes:
        raise ValueError(f"{text!r} must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    host = url.netloc.rpartition(":")[0] if port is not None else url.netloc.removesuffix(":")
    if not _HOST.fullmatch(host) or url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(f"{text!r} is not scheme://host:port")
    return f"{url.scheme}://{host.lower()}" + (f":{port}" if port is not None else "")


def parse_exception(text: str) -> str:
    """An entry of no-proxy: address, network, host, `.suffix`, or `*` for everything. A host, a suffix and an address
    may have a port: `host:port`, `[address]:port`."""
    text = text.strip().lower()
    if text == "*":
        return text
    if "/" in text:
        return network(text)
    try:
        address, port = _split(text)
        plain = netvalues.plain(ipaddress.ip_address(address))
        return f"[{plain}]:{port}" if port and plain.version == 6 else f"{plain}:{port}" if port else str(plain)
    except ValueError:
        if not _SUFFIX.fullmatch(text):
            raise ValueError(f"{text[:80]!r} is not an address, network, host or .suffix") from None
        return text


def _split(entry: str) -> tuple[str, str]:
    """An address or name, and a port or "": `host:port`, `[address]:port`, or either without; a bare IPv6 address."""
    if entry.startswith("["):
        found = re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?", entry)
        if found is None:
            raise ValueError(f"{entry!r} is not [address]:port")
        return found[1], found[2] or ""
    name, _, port = entry.partition(":")
    return (entry, "") if ":" in port else (name, port)


WebProxy = Annotated[str, AfterValidator(lambda text: parse_proxy(text, ("http", "https")))]
SocksProxy = Annotated[str, AfterValidator(lambda text: parse_proxy(text, ("socks5", "socks5h")))]
Empty = Annotated[str, StringConstraints(max_length=0)]
Exceptions = Annotated[tuple[Annotated[str, AfterValidator(parse_exception)], ...], Field(max_length=200)]


def _word(text: str) -> str:
    if not 0 < len(text.encode()) <= 255:  # as long as RFC 1929 can say
        raise ValueError("1 to 255 bytes are expected")
    return text


Word = Annotated[str, StringConstraints(strict=True, pattern=r"^[^\x00-\x1f\x7f]*$"), AfterValidator(_word)]


def _user(text: str) -> str:
    if ":" in text:
        raise ValueError("the name of a user has no colon (RFC 7617)")
    return text


User = Annotated[Word, AfterValidator(_user)]


class ProxyFile(Strict):
    """proxy.toml."""

    http: WebProxy | None = None
    https: WebProxy | None = None
    socks: SocksProxy | None = None
    no_proxy: Exceptions = ()


class Credentials(Strict):
    """proxy.secret.toml."""

    user: User
    password: Word


class Set(Wish):
    """What to change; what is left out stays, an empty text removes a proxy. password only together with user."""

    http: WebProxy | Empty | None = Field(default=None, description="the proxy for http, such as http://host:3128")
    https: WebProxy | Empty | None = Field(default=None, description="the same for https")
    socks: SocksProxy | Empty | None = Field(default=None, description="for the rest, such as socks5h://host:1080")
    no_proxy: Exceptions | None = Field(
        default=None, description="what is reached without: addresses, networks, hosts, .suffixes, or * for all"
    )
    user: User | None = Field(default=None, description="who the device is to the proxy")
    password: SecretStr | None = Field(default=None, description="the user's")


class Try(Strict):
    """What to fetch."""

    url: Annotated[str, StringConstraints(max_length=2000, pattern=r"^https?://[\x21-\x7e]+$")] = Field(
        description="such as https://example.org/"
    )


@dataclass(frozen=True)
class Settings:
    """The setting as it is now."""

    file: ProxyFile = field(default_factory=ProxyFile)
    credentials: Credentials | None = None

    def url(self, kind: str, *, masked: bool = False) -> str | None:
        """The proxy for `http`, `https` or `socks`, with its credentials or with stars in their place."""
        plain: str | None = getattr(self.file, kind)
        if plain is None or self.credentials is None:
            return plain
        scheme, _, rest = plain.partition("://")
        if masked:
            return f"{scheme}://***@{rest}"
        # RFC 3986 section 3.2.1: everything reserved is percent-encoded
        user, password = (quote(word, safe="") for word in (self.credentials.user, self.credentials.password))
        return f"{scheme}://{user}:{password}@{rest}"

    def environment(self) -> dict[str, str]:
        """The variables that programs look at; both spellings, since none is read by all. Empty without a proxy."""
        names = {"http": "HTTP_PROXY", "https": "HTTPS_PROXY", "socks": "ALL_PROXY"}
        found = {name: url for kind, name in names.items() if (url := self.url(kind))}
        if not found:
            return {}
        found["NO_PROXY"] = ",".join(dict.fromkeys([*ALWAYS, *self.file.no_proxy]))
        return found | {name.lower(): value for name, value in found.items()}

    def direct(self, host: str, port: int) -> bool:
        """Whether a host is reached without a proxy. Names are not looked up: networks match literal addresses only."""
        host = host.strip("[]").rstrip(".").lower()
        return any(_excepts(entry, host, port) for entry in (*ALWAYS, *self.file.no_proxy))

    def for_url(self, url: str) -> str | None:
        """The proxy that `url` is fetched through, credentials included; None: none. Raises ValueError: not a URL."""
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        if not parts.hostname or self.direct(parts.hostname, port):
            return None
        return (self.url(parts.scheme) if parts.scheme in ("http", "https") else None) or self.url("socks")


def _excepts(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, wanted = _split(entry)
    if wanted not in ("", str(port)):
        return False
    try:
        network = ipaddress.ip_network(name)
    except ValueError:
        bare = name.lstrip(".")
        return host == bare or host.endswith(f".{bare}")
    try:
        return ipaddress.ip_address(host.partition("%")[0]) in network
    except ValueError:
        return False


def read(view: View) -> Settings:
    """The setting as files have it; none where there are no files. Raises ConfigError."""
    path, secret = view.places.place(FILE), view.places.place(SECRET)
    file = parse(view.text(FILE) or "", path, ProxyFile)
    text = view.text(SECRET)
    if text is None:
        return Settings(file)
    if SECRET not in view.changed and secret.stat().st_mode & 0o077:
        raise ConfigError(f"{secret}: others can read it", reason="proxy-secret-open", hint=f"chmod 600 {secret}")
    try:
        return Settings(file, parse(text, secret, Credentials))
    except ConfigError as error:  # its messages repeat values
        raise ConfigError(f"{secret}: not user and password in TOML", reason=error.reason) from None


def proxies_for(url: str, etc: Path = Path("/etc/mixos")) -> dict[str, str]:
    """For the daemon's fetchers: scheme → proxy as `requests` takes it (with `trust_env` off); empty: go directly."""
    proxy = read(View(Trees(own=(("etc/mixos", etc),)))).for_url(url)
    return {urlsplit(url).scheme: proxy} if proxy else {}


class Proxy:
    """The part: shows, sets, tests, and keeps the environment of services up to date."""

    name = "proxy"

    def __init__(self, context: Context, group: str = "admin") -> None:
        self.context = context
        self.group = group  # may read the environment; whoever is in it may choose the proxy, which sees the password
        self.settings = Settings()
        self.problem: MixosError | None = None
        self._contents: Contents = {FILE: None}

    def methods(self) -> Sequence[Method]:
        """Everybody may see which proxy there is; only admins choose it, since it sees what passes."""
        return (
            Method("proxy.show", "The proxy setting; passwords are stars.", self._show),
            Method("proxy.set", "Change the proxy setting.", self._set, ADMINS, Set, changes=True),
            Method("proxy.clear", "Use no proxy.", self._clear, ADMINS, Wish, changes=True),
            Method("proxy.apply", "Put proxy.toml in force as it is now.", self._apply, ADMINS, Wish, changes=True),
            Method("proxy.test", "Fetch a URL as services would.", self._test, OPERATORS, Try, seconds=30.0),
        )

    async def start(self) -> None:
        """Write the environment. A broken file leaves the last good setting, or raises ConfigError where there is none,
        and leaves the environment of an earlier start."""
        self.problem = await self.context.changes.start(self)

    async def stop(self) -> None:
        """Nothing runs."""

    def status(self) -> Mapping[str, Any]:
        """Whether a proxy is set; problem: why it is not what the file says."""
        return {"set": bool(self.settings.environment()), "problem": self.problem.message if self.problem else None}

    async def _show(self, caller: Caller, _: Nothing) -> Setting:
        return self._shown()

    def _shown(self) -> Setting:
        settings = self.settings
        return {
            "http": settings.url("http", masked=True),
            "https": settings.url("https", masked=True),
            "socks": settings.url("socks", masked=True),
            "no-proxy": list(dict.fromkeys([*ALWAYS, *settings.file.no_proxy])),
            "user": settings.credentials.user if settings.credentials else None,
        }

    async def _set(self, caller: Caller, wish: Set) -> Changed:
        if (wish.password is None) != (wish.user is None):
            raise RefusedError("user and password go together", reason="proxy-credentials")
        secret: Contents = {}
        if wish.user is not None and wish.password is not None:
            keys = {"user": wish.user, "password": wish.password.get_secret_value()}
            try:
                Credentials.model_validate(keys)
            except ValueError:
                raise RefusedError("this password cannot be used", reason="proxy-credentials") from None
            secret = {SECRET: set_keys("", (), keys).encode()}
        given = wish.model_dump(by_alias=True, exclude_none=True, include={"http", "https", "socks", "no_proxy"})

        def edited() -> Contents:
            view = View(self.context.changes.places)
            text = view.text(FILE) or ""
            parse(text, view.places.place(FILE), ProxyFile)  # a broken file is mended by hand first
            new = set_keys(text, (), {key: value if value != "" else None for key, value in given.items()})
            return {FILE: new.encode(), **secret}

        return await self._make(caller, wish, "proxy set", edited)

    async def _clear(self, caller: Caller, wish: Wish) -> Changed:
        return await self._make(caller, wish, "proxy clear", lambda: {FILE: None, SECRET: None})

    async def _apply(self, caller: Caller, wish: Wish) -> Changed:
        return await self._make(caller, wish, "proxy apply", dict)

    async def _make(self, caller: Caller, wish: Wish, why: str, contents: Callable[[], Contents]) -> Changed:
        answer = await self.context.changes.make(caller, wish, why, contents, parts=(self.name,))
        return {**answer, **self._shown()}

    # -- for daemon.core.change ----------------------------------------------------------------------------------------

    def owns(self, name: str) -> bool:
        """The two files."""
        return name in (FILE, SECRET)

    def in_force(self) -> Contents:
        """They, as they are in force; a password lies in no file but its own."""
        return {name: data for name, data in self._contents.items() if name == FILE}

    async def prepare(self, view: View, caller: Caller | None, dry_run: bool) -> Plan:
        """No connection to this device goes through the proxy. Raises ConfigError."""
        settings = read(view)
        steps = [f"{kind}: {settings.url(kind, masked=True) or 'none'}" for kind in ("http", "https", "socks")]
        return Plan({FILE: view.read(FILE)}, steps, changes=settings != self.settings, data=settings)

    async def apply(self, plan: Plan, step: Step) -> None:
        """Write the environment. Raises OSError."""
        self.settings, self._contents, self.problem = plan.data, plan.contents, None
        self._write_environment()
        step("written")

    async def undo(self, before: Mapping[str, Any], view: View) -> None:
        """The environment of earlier files; the password's file changes with the commit only."""
        self.settings, self._contents = read(view), {FILE: view.read(FILE)}
        self._write_environment()

    async def kept(self) -> None:
        """The files are all that the next boot needs."""

    async def _test(self, caller: Caller, wish: Try) -> Fetched:
        from daemon.parts.proxy.trial import fetch

        return await fetch(wish.url, self.settings)

    def _write_environment(self) -> None:
        lines = [f"{name}={value}\n" for name, value in self.settings.environment().items()]
        path = self.context.run / "proxy.env"
        write_atomically(path, "".join(lines).encode(), 0o600)
        if self.context.shared:
            with contextlib.suppress(KeyError):  # a system without that group
                os.chown(path, -1, grp.getgrnam(self.group).gr_gid)
                path.chmod(0o640)
