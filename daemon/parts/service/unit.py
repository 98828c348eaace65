"""A unit: what a file `/etc/mixos/units/<name>.toml` may say, with every default.

A unit with `[service]` runs a program. A unit without one is a milestone: it is up as soon as what it requires is up
and its `[ready]` check succeeds ("the network is there"), and others order themselves after it. `[timer]` runs the
service at times, `[[socket]]` at the first connection.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from common.tomlfile import Strict
from common.values import Address, CalendarTime, Duration, Endpoint, Limit, Mode, Name, SignalNumber, Size, address

# Below /run or /var/lib, of the device or of an ordinary host: given to a unit's user, they would be in other hands.
RESERVED = frozenset({"lock", "log", "mixos", "netns", "shm", "sshd", "systemd", "udev", "user", "utmp"})
MAX_WORDS = 900  # of a command; with the launcher's own before it, as many as a shim takes (spec.MAX_ARGS)


def _absolute(path: str) -> str:
    # Two slashes in front are left as they are: POSIX lets them mean something else than one.
    if not path.startswith("/") or path.startswith("//") or "\0" in path or posixpath.normpath(path) != path:
        raise ValueError("an absolute path without . or .. is expected")
    return path


def _pid_file(path: str) -> str:
    if not _absolute(path).startswith("/run/"):
        raise ValueError("a path below /run is expected: what it says holds for this boot only")
    return path


def _own_folder(name: str) -> str:
    if name in RESERVED or name.endswith(".pid"):
        raise ValueError("this name is the system's own")
    return name


def _not_ours(path: str) -> str:
    if _absolute(path) == "/run/mixos" or path.startswith("/run/mixos/"):
        raise ValueError("what is below /run/mixos is the daemon's own")
    return path


def _socket_name(name: str) -> str:
    if not name.startswith("@"):
        return _not_ours(name)
    if not re.fullmatch(r"@[A-Za-z0-9._/-]+", name):
        raise ValueError("after @, the name of an abstract socket has letters, digits and . _ / - only")
    return name


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("a NUL byte cannot be given to a program")
    return value


def _command(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not argv:
        raise ValueError("a command has at least one word")
    if len(argv) > MAX_WORDS:
        raise ValueError(f"a command has at most {MAX_WORDS} words, not {len(argv)}: a file can hold more")
    _absolute(argv[0])
    return argv


Text = Annotated[str, AfterValidator(_text)]
Absolute = Annotated[str, AfterValidator(_absolute)]
Command = Annotated[tuple[Text, ...], AfterValidator(_command)]
Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
OwnFolder = Annotated[Folder, AfterValidator(_own_folder)]
PidFile = Annotated[str, AfterValidator(_pid_file), AfterValidator(_not_ours)]
SocketName = Annotated[str, AfterValidator(_socket_name)]
Capability = Annotated[str, Field(pattern=r"^CAP_[A-Z_]+$")]
LimitName = Literal[
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
]  # fmt: skip


class About(Strict):
    """`[unit]`: what it is and how it stands to other units."""

    description: str = ""
    requires: tuple[Name, ...] = ()  # started before; when one of them fails or is stopped, so is this unit
    wants: tuple[Name, ...] = ()  # started too; their failure does not matter
    after: tuple[Name, ...] = ()  # order only: when both start, they are up first
    before: tuple[Name, ...] = ()
    after_exit: tuple[Name, ...] = ()  # order only: when both start, they have ended first
    conflicts: tuple[Name, ...] = ()  # never at the same time: starting one stops the other
    on_failure: tuple[Name, ...] = ()  # started when this unit has failed for good
    enabled: bool = False  # started at boot, unless `mixctl service disable` said otherwise
    required_for_health: bool = False  # a new version of the system is not called good while the unit is not well


class StartLimit(Strict):
    """At most `burst` starts within `interval` seconds; then the unit has failed. burst 0: no limit."""

    burst: int = Field(default=20, ge=0, le=1000)
    interval: Duration = 600.0


class Service(Strict):
    """`[service]`: the program and the life it leads."""

    command: Command
    type: Literal["simple", "oneshot", "notify", "forking"] = "simple"
    pid_file: PidFile | None = None  # forking: where the program says which process is the main one
    pre_start: tuple[Command, ...] = Field(default=(), max_length=16)  # one after the other, in the same confinement
    restart: Literal["always", "on-failure", "no"] | None = None  # default: on-failure; oneshot: no
    restart_delay: Duration = 0.1  # doubled by each failure in a row
    restart_delay_max: Duration = 30.0
    stable_time: Duration = 30.0  # after running this long the delay begins anew
    start_limit: StartLimit = StartLimit()
    permanent_failure: tuple[Annotated[int, Field(ge=1, le=255)], ...] = ()  # exit codes that are not tried again
    stop_signal: SignalNumber = 15
    stop_timeout: Duration = 10.0
    start_timeout: Duration | None = None  # default: 60 s; oneshot: none
    watchdog: Duration | None = None
    user: Text | None = None
    group: Text | None = None
    groups: tuple[Text, ...] = ()
    working_directory: Absolute = "/"
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Text] = Field(default={})
    environment_file: Absolute | None = None
    umask: Mode = 0o022
    nice: int = Field(default=0, ge=-20, le=19)
    rlimits: dict[LimitName, Limit] = Field(default={})
    capabilities: tuple[Capability, ...] | None = None  # the only ones it keeps; default: what its user has
    sandbox: Name | None = None
    runtime_directory: OwnFolder | None = None  # below /run, made for the user at start
    state_directory: OwnFolder | None = None  # below /var/lib, made for the user at start, kept

    @property
    def ready_timeout(self) -> float | None:
        """Seconds until it must be ready (oneshot: done); None: as long as it takes."""
        if self.start_timeout is not None:
            return self.start_timeout
        return None if self.type == "oneshot" else 60.0

    @property
    def restarts(self) -> Literal["always", "on-failure", "no"]:
        """The restart policy in force."""
        return self.restart or ("no" if self.type == "oneshot" else "on-failure")


class Ready(Strict):
    """`[ready]`: how others learn that the unit is up."""

    how: str = "started"
    command: Command | None = None  # for how = "exec": status 0 means ready
    interval: Duration = Field(default=0.5, ge=0.02)  # between two tries of tcp and exec
    timeout: Duration = 60.0  # of a milestone; services have start-timeout

    @field_validator("how")
    @classmethod
    def _known(cls, how: str) -> str:
        kind, _, rest = how.partition(":")
        if kind == "fd" and rest.isascii() and rest.isdigit() and 3 <= int(rest) <= 255:
            return how
        if kind == "tcp":
            address(rest)
            return how
        if how not in ("notify", "exec", "started"):
            raise ValueError('"started", "notify", "fd:3", "tcp:PORT" or "exec" is expected')
        return how

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.how == "exec") != (self.command is not None):
            raise ValueError('how = "exec" and command go together')
        return self

    @property
    def descriptor(self) -> int | None:
        """The number of the descriptor that the service writes a line to."""
        return int(self.how.partition(":")[2]) if self.how.startswith("fd:") else None

    @property
    def endpoint(self) -> Address | None:
        """The address that must accept connections."""
        return address(self.how.partition(":")[2]) if self.how.startswith("tcp:") else None


class Health(Strict):
    """`[health]`: a question asked again and again while the unit is up."""

    http: str | None = None  # healthy: an answer with a status from 200 to 399
    tcp: Endpoint | None = None  # healthy: the connection is accepted
    exec: Command | None = None  # healthy: status 0
    every: Duration = Field(default=10.0, ge=0.05)
    timeout: Duration = Field(default=3.0, gt=0)
    threshold: int = Field(default=3, ge=1, le=100)
    action: Literal["restart", "report"] = "restart"

    @field_validator("http")
    @classmethod
    def _url(cls, text: str | None) -> str | None:
        if text is None:
            return None
        url = urlsplit(text)
        if url.scheme != "http" or not url.hostname or url.username or any(sign <= " " for sign in text):
            raise ValueError("a URL such as http://127.0.0.1:8080/health is expected")
        address(f"[{url.hostname}]:{url.port or 80}" if ":" in url.hostname else f"{url.hostname}:{url.port or 80}")
        return text

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(question is not None for question in (self.http, self.tcp, self.exec)) != 1:
            raise ValueError("exactly one of http, tcp and exec is expected")
        return self


class IoMax(Strict):
    """The most that may be read and written per second on one block device."""

    device: Annotated[str, AfterValidator(_absolute)]
    read: Size | None = None  # bytes a second
    write: Size | None = None
    read_operations: int | None = Field(default=None, ge=1)
    write_operations: int | None = Field(default=None, ge=1)


class Limits(Strict):
    """`[limits]`: what the unit's cgroup may use, all processes together (the kernel's cgroup-v2 documentation)."""

    memory: Size | None = None  # at this the kernel ends the unit (memory.max)
    memory_high: Size | None = None  # from this on it is slowed down
    swap: Size | None = None
    pids: int | None = Field(default=None, ge=1)
    cpu: float | None = Field(default=None, gt=0, le=100_000)  # percent of one processor
    cpu_weight: int | None = Field(default=None, ge=1, le=10_000)
    io_weight: int | None = Field(default=None, ge=1, le=10_000)
    io_max: tuple[IoMax, ...] = ()


class Logs(Strict):
    """`[logs]`: what is kept of what the service prints."""

    size: Size = Field(default=1 << 20, ge=64 << 10, le=1 << 32)  # bytes per file
    keep: int = Field(default=4, ge=1, le=100)  # files
    rate: int = Field(default=1000, ge=0, le=1_000_000)  # lines a second, more are dropped and counted; 0: no limit


class Timer(Strict):
    """`[timer]`: when the service is started."""

    every: Duration | None = Field(default=None, ge=0.05)  # since the last start, by a clock that never jumps
    on_boot: Duration | None = None  # once, this long after the boot
    calendar: CalendarTime | None = None  # local time
    persistent: bool = False  # of the calendar's runs missed while switched off, make up for one

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.every is None and self.on_boot is None and self.calendar is None:
            raise ValueError("every, on-boot or calendar is expected")
        if self.persistent and self.calendar is None:
            raise ValueError("persistent is for calendar")
        return self


class Socket(Strict):
    """`[[socket]]`: opened for the service before it runs; each run of it inherits it (sd_listen_fds(3))."""

    name: Folder = "socket"
    tcp: Endpoint | None = None
    udp: Endpoint | None = None
    unix: SocketName | None = None  # a path, or @ and an abstract name (unix(7))
    datagram: bool = False  # unix only
    ipv6_only: bool = False  # IPV6_V6ONLY: nothing from IPv4 addresses
    backlog: int = Field(default=128, ge=1, le=4096)
    mode: Mode = 0o600  # of a path
    owner: Text = "root"
    group: Text = "root"

    @property
    def inet(self) -> Address | None:
        """Where a TCP or UDP socket is."""
        return self.tcp or self.udp

    @property
    def path(self) -> str | None:
        """Where the file of a Unix socket is; an abstract one has none."""
        return self.unix if self.unix is not None and self.unix[0] == "/" else None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(one is not None for one in (self.tcp, self.udp, self.unix)) != 1:
            raise ValueError("one of tcp, udp and unix is expected")
        if self.unix is not None and len(self.unix.encode()) > 107:
            raise ValueError("the name of a Unix socket has at most 107 bytes")
        if self.datagram and self.unix is None:
            raise ValueError("datagram is for unix: the datagrams of the network are udp")
        if self.ipv6_only and (self.inet is None or ":" not in self.inet.host):
            raise ValueError("ipv6-only is for an IPv6 address")
        if self.unix is not None and self.path is None and self.model_fields_set & {"mode", "owner", "group"}:
            raise ValueError("an abstract socket has no mode, owner or group: every program of the device may use it")
        return self


class Unit(Strict):
    """One unit file."""

    unit: About = About()
    service: Service | None = None
    ready: Ready | None = None
    health: Health | None = None
    limits: Limits = Limits()
    logs: Logs = Logs()
    timer: Timer | None = None
    socket: tuple[Socket, ...] = Field(default=(), max_length=32)

    @property
    def readiness(self) -> Ready:
        """How it gets ready, defaults applied."""
        if self.ready is not None:
            return self.ready
        return Ready(how="notify" if self.service is not None and self.service.type == "notify" else "started")


def contradictions(unit: Unit) -> Iterator[tuple[str, str]]:
    """Sections that do not go together: (section to point at, what is wrong)."""
    service = unit.service
    if service is None:
        for section in ("timer", "socket", "limits", "health"):
            if getattr(unit, section) != Unit.model_fields[section].default:
                yield section, f"[{section}] needs a [service]"
        if unit.ready is not None and _tells(unit.ready):
            yield "ready", 'without [service], how is "started", "exec" or "tcp:..."'
        return
    if service.type == "oneshot" and (unit.ready or unit.health or service.watchdog or unit.socket):
        yield "service", "a oneshot has no [ready], [health], [[socket]] or watchdog: it is up when it has ended well"
    if service.type == "oneshot" and service.restarts == "always":
        yield "service", "a oneshot that is always restarted would never be done; [timer] every = ... repeats it"
    if service.type == "notify" and unit.ready is not None and unit.ready.how != "notify":
        yield "ready", 'type = "notify" and this how contradict each other'
    if service.pid_file is not None and service.type != "forking":
        yield "service", 'pid-file is for type = "forking"; any other service runs in the foreground'
    if service.type == "forking" and (service.sandbox or service.watchdog or _tells(unit.readiness)):
        yield "service", 'type = "forking" goes without sandbox, watchdog, and how = "notify" or "fd:..."'
    if unit.timer and unit.socket:
        yield "timer", "[timer] and [[socket]] exclude each other"
    if unit.timer and service.restarts == "always":
        yield "timer", "with restart = always nothing is left for a timer to start"
    if service.sandbox and unit.readiness.descriptor not in (None, 3 + len(unit.socket)):
        yield "ready", f'in a sandbox the descriptor is the one behind the sockets: how = "fd:{3 + len(unit.socket)}"'
    if (
        service.sandbox
        and (service.state_directory or service.runtime_directory)
        and service.user in (None, "root", "0")
    ):
        yield "service", "in a sandbox root is nobody, and can't write a folder of root's: add a user"
    names = [socket.name for socket in unit.socket]
    if len(set(names)) != len(names):
        yield "socket", "two sockets have the same name"


def _tells(ready: Ready) -> bool:
    """Whether the main process itself says when it is ready."""
    return ready.how == "notify" or ready.descriptor is not None
