"""What a sandboxed program may see and do, as frozen data: `Policy`; and `tighten`, which only ever takes away.

Paths are the host's, shown at the same place inside; nothing is there that was not listed. The innermost entry decides;
`hide` and `protect` are stronger than all others. A policy names no program: the same one serves many.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import IntEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, StringConstraints, ValidationError, model_validator

from common.errors import RefusedError
from common.tomlfile import Strict
from common.values import Duration, Mode, Size
from daemon.linux.sandbox.proxy_rules import rule
from daemon.linux.sandbox.seccomp import Family, Level

Capability = Annotated[str, StringConstraints(pattern=r"^CAP_[A-Z_]+$")]
Requirement = Literal["landlock", "memory", "pids", "account"]
Proc = Literal["none", "processes", "full"]
Network = Literal["none", "proxy", "host"]
Account = Literal["dynamic", "caller"] | Annotated[int, Field(ge=1, lt=0xFFFFFFFF)]

PROCS: tuple[Proc, ...] = ("none", "processes", "full")  # each shows more than the one before
NETWORKS: tuple[Network, ...] = ("none", "proxy", "host")
LEVELS: tuple[Level, ...] = ("strict", "standard")
DYNAMIC = (61000, 64999)  # accounts that nobody else has; outside /etc/passwd
DEVICES = ("/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero")
# Never shown, nor what holds them: sockets of privileged programs, the kernel's controls, everything.
CLOSED = ("/dev", "/proc", "/run/mixos/mixosd.sock", "/sys/fs/cgroup", "/sys/kernel")
_PATH_BYTES = 1000


def _path(text: str) -> str:
    """Absolute, normal. Raises ValueError."""
    if not text.startswith("/") or posixpath.normpath(text) != text or text.startswith("//") or "\0" in text:
        raise ValueError("an absolute path without . or .. or a final slash is expected")
    if len(text.encode()) > _PATH_BYTES or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError(f"a path has at most {_PATH_BYTES} bytes, each name in it 255")
    return text


def _shown(text: str) -> str:
    path = _path(text.removeprefix("?"))
    if any(is_below(closed, path) for closed in CLOSED) or is_below(path, "/proc") or is_below(path, "/dev"):
        raise ValueError(f"{path} gives too much to be shown; show what is needed of it")
    return text


def _changed(text: str) -> str:
    if is_below(_shown(text), "/sys") or text.startswith("?"):
        raise ValueError("a path that may be changed is not in /sys and not optional")
    return text


def _allowed(text: str) -> str:
    rule(text)
    return text


def _guarded(text: str) -> str:
    _path(text.removesuffix("/"))
    return text


def _device(text: str) -> str:
    if not is_below(_path(text), "/dev") or is_below(text, "/dev/pts") or is_below(text, "/dev/shm"):
        raise ValueError("a device is a path below /dev")
    return text


def _word(text: str) -> str:
    if not text or "\0" in text or "=" in text:
        raise ValueError("the name of a variable is expected")
    return text


Umask = Annotated[Mode, PlainSerializer(lambda value: f"{value:04o}")]
Allowed = Annotated[str, AfterValidator(_allowed)]
Shown = Annotated[str, AfterValidator(_shown)]  # "?/path": may be missing
Changed = Annotated[str, AfterValidator(_changed)]
Guarded = Annotated[str, AfterValidator(_guarded)]  # "/path/": made as a folder when it does not exist
Path = Annotated[str, AfterValidator(_path)]
Device = Annotated[str, AfterValidator(_device)]
Word = Annotated[str, AfterValidator(_word)]


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or something in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class Limits(Strict):
    """Bounds of all processes together (memory, pids, cpu: the cgroup's), or of each (files); None: no bound.

    cpu: percent of one CPU; wall: seconds from start to the end of everything. What may be written in all is bounded by
    the sizes in `scratch` only: writable paths of the host have no quota.
    """

    memory: Size | None = None
    pids: int | None = Field(default=None, ge=4, le=1 << 22)
    cpu: int | None = Field(default=None, ge=1, le=100_000)
    file_size: Size | None = None
    open_files: int | None = Field(default=None, ge=16, le=1 << 20)
    wall: Duration | None = Field(default=None, gt=0)


class Policy(Strict):
    """See docs/sandbox.md for each key. `asked_…`: paths that a caller named, looked up with the account's rights."""

    description: str = ""
    read_only: tuple[Shown, ...] = ()
    read_write: tuple[Changed, ...] = ()
    asked_read_only: tuple[Shown, ...] = ()
    asked_read_write: tuple[Changed, ...] = ()
    scratch: dict[Path, Size] = Field(default={})
    hide: tuple[Guarded, ...] = ()
    protect: tuple[Guarded, ...] = ()
    devices: tuple[Device, ...] = DEVICES
    proc: Proc = "processes"
    shared_memory: Size = 0
    execute_writable: bool = False
    user: Account = "dynamic"
    group: Annotated[int, Field(ge=1, lt=0xFFFFFFFF)] | None = None
    groups: tuple[Annotated[int, Field(ge=1, lt=0xFFFFFFFF)], ...] = Field(default=(), max_length=64)
    hostname: str = Field(default="localhost", pattern=r"^[a-z0-9-]{0,63}$")  # that resolves; "": the host's
    capabilities: tuple[Capability, ...] = ()
    seccomp: Level = "standard"
    sockets: tuple[Family, ...] = ("unix",)
    network: Network = "none"
    proxy_port: int = Field(default=3128, ge=1024, le=65535)
    proxy_socket: Path | None = None
    allow: tuple[Allowed, ...] = ()
    terminal: bool = False
    pass_environment: tuple[Word, ...] = ()
    environment: dict[Word, str] = Field(default={})
    directory: Path | Literal["/"] = "/"
    umask: Umask = 0o077
    require: tuple[Requirement, ...] = ()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _paths_once(self) -> Self:
        paths = [path for path, _ in self.entries()]
        double = next((path for path in paths if paths.count(path) > 1), None)
        if double is not None:
            raise ValueError(f"{double} is listed twice")
        if any(path == "/" or is_below(path, "/dev") or is_below(path, "/proc") for path in self.scratch):
            raise ValueError("a scratch folder is not /, and not in /dev or /proc")
        if not all(0 < size < 1 << 50 for size in self.scratch.values()):
            raise ValueError("the size of a scratch folder lies between 1 byte and 1024T")
        if self.network == "proxy" and self.limits.open_files is not None and self.limits.open_files < 160:
            raise ValueError('with network = "proxy", open-files is 160 or more: the bridge to the proxy needs them')
        if any("\0" in text for text in self.environment.values()):
            raise ValueError("a NUL byte cannot be given to a program")
        return self

    def entries(self) -> Iterator[tuple[str, Access]]:
        """Every listed path and what it gives."""
        for path in (*self.read_only, *self.asked_read_only):
            yield path.removeprefix("?"), Access.READ
        for path in (*self.read_write, *self.asked_read_write):
            yield path, Access.WRITE
        for path in self.scratch:
            yield path, Access.OWN

    def access(self, path: str) -> Access:
        """What the program can do with the host's `path`."""
        if any(is_below(path, hidden.removesuffix("/")) for hidden in self.hide):
            return Access.NONE
        found = max(((entry, what) for entry, what in self.entries() if is_below(path, entry)), default=None)
        if found is None:
            return Access.NONE
        guarded = any(is_below(path, protected.removesuffix("/")) for protected in self.protect)
        return Access.READ if guarded and found[1] is Access.WRITE else found[1]

    def for_account(self, uid: int, gid: int, groups: Collection[int] = ()) -> Policy:
        """Run as this account when the policy says "caller". Root stays outside: its numbers are left out, and root
        itself becomes a dynamic account."""
        if self.user != "caller":
            return self
        if uid == 0:
            return self.model_copy(update={"user": "dynamic"})
        others = tuple(sorted(set(groups) - {0, gid}))[:64]
        return self.model_copy(update={"user": uid, "group": gid or None, "groups": others})


class Access(IntEnum):
    """What a policy gives to a path of the host. OWN: nothing of the host, a folder of the sandbox's own is there."""

    NONE = 0
    OWN = 1
    READ = 2
    WRITE = 3


class LimitsOverlay(Strict):
    """Lower bounds than the base's."""

    memory: Size | None = None
    pids: int | None = Field(default=None, ge=4)
    cpu: int | None = Field(default=None, ge=1)
    file_size: Size | None = None
    open_files: int | None = Field(default=None, ge=16)
    wall: Duration | None = Field(default=None, gt=0)


class Overlay(Strict):
    """Changes to a policy by someone who may only take away: a repository, a local file of a shipped profile.

    None: as in the base. Lists of what is allowed replace the base's, lists of what is forbidden or required add to it.
    What names rights without being comparable (environment values, accounts, paths of the launcher) is not here.
    """

    read_only: tuple[Shown, ...] | None = None
    read_write: tuple[Changed, ...] | None = None
    scratch: dict[Path, Size] | None = None  # smaller sizes for the base's folders
    hide: tuple[Guarded, ...] = ()
    protect: tuple[Guarded, ...] = ()
    devices: tuple[Device, ...] | None = None
    proc: Proc | None = None
    shared_memory: Size | None = None
    execute_writable: bool | None = None
    capabilities: tuple[Capability, ...] | None = None
    seccomp: Level | None = None
    sockets: tuple[Family, ...] | None = None
    network: Network | None = None
    allow: tuple[Allowed, ...] | None = None
    terminal: bool | None = None
    pass_environment: tuple[Word, ...] | None = None
    umask: Umask | None = None
    require: tuple[Requirement, ...] = ()
    limits: LimitsOverlay = LimitsOverlay()


def tighten(base: Policy, overlay: Overlay) -> Policy:
    """`base` with what `overlay` takes away.

    Raises RefusedError `policy-loosens`, naming every key that would give more, or `policy-overlay`.
    """
    wrong: list[str] = []
    for key, allows in _ORDER.items():
        value = getattr(overlay, key)
        if value is not None and not allows(getattr(base, key), value):
            wrong.append(key.replace("_", "-"))
    for path in (*(overlay.read_only or ()), *(overlay.read_write or ())):
        wanted = Access.WRITE if path in (overlay.read_write or ()) else Access.READ
        if base.access(path.removeprefix("?")) < wanted:
            wrong.append(f"{'read-write' if wanted is Access.WRITE else 'read-only'} = {path}")
    for path, size in (overlay.scratch or {}).items():
        if size > base.scratch.get(path, 0):
            wrong.append(f"scratch = {path}")
    limits = _limits(base.limits, overlay.limits, wrong)
    if wrong:
        raise RefusedError(
            f"an overlay may only take away; it would give more by: {', '.join(wrong)}",
            reason="policy-loosens",
            hint="make a profile of your own with `extends` instead",
        )
    changes = {
        **overlay.model_dump(by_alias=True, include=set(_ORDER), exclude_none=True),
        **_paths(base, overlay),
        "scratch": {**base.scratch, **(overlay.scratch or {})},
        "hide": _union(base.hide, overlay.hide),
        "protect": _union(base.protect, overlay.protect),
        "require": _union(base.require, overlay.require),
        "limits": limits.model_dump(by_alias=True),
    }
    try:
        return Policy.model_validate({**base.model_dump(by_alias=True), **changes})
    except ValidationError as error:
        problem = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise RefusedError(f"the overlay contradicts itself: {problem}", reason="policy-overlay") from error


def _subset(base: Collection[Any], wanted: Collection[Any]) -> bool:
    return set(wanted) <= set(base)


# For each key that can be compared: whether the overlay's value gives no more than the base's.
_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "devices": _subset,
    "capabilities": _subset,
    "sockets": _subset,
    "pass_environment": _subset,
    "allow": _subset,
    "proc": lambda base, wanted: PROCS.index(wanted) <= PROCS.index(base),
    "network": lambda base, wanted: NETWORKS.index(wanted) <= NETWORKS.index(base),
    "seccomp": lambda base, wanted: LEVELS.index(wanted) <= LEVELS.index(base),
    "shared_memory": lambda base, wanted: wanted <= base,
    "execute_writable": lambda base, wanted: wanted <= base,
    "terminal": lambda base, wanted: wanted <= base,
    "umask": lambda base, wanted: wanted & base == base,
}


def _limits(base: Limits, overlay: LimitsOverlay, wrong: list[str]) -> Limits:
    changes: dict[str, Any] = {}
    for key, wanted in overlay:
        most = getattr(base, key)
        if wanted is not None:
            changes[key] = wanted
            if most is not None and wanted > most:
                wrong.append(f"limits.{key.replace('_', '-')}")
    return base.model_copy(update=changes)


def _paths(base: Policy, overlay: Overlay) -> dict[str, tuple[str, ...]]:
    """The new lists. What the base takes back inside a path that stays is kept, or dropping it would give more; so is
    whether a path is looked up with the account's rights."""
    readable = (*base.read_only, *base.asked_read_only) if overlay.read_only is None else overlay.read_only
    writable = (*base.read_write, *base.asked_read_write) if overlay.read_write is None else overlay.read_write
    if overlay.read_only is not None:
        writable = tuple(path for path in writable if path not in _plain(readable))
    listed = _plain((*readable, *writable))
    taken_back = (
        path
        for path in (*base.read_only, *base.asked_read_only)
        if _plain((path,)) - listed and any(is_below(path.removeprefix("?"), above) for above in writable)
    )
    readable = (*readable, *taken_back)
    by_user = {path: _looked_up_as_user(base, path) for path in (*readable, *writable)}
    return {
        "read-only": tuple(path for path in readable if not by_user[path]),
        "asked-read-only": tuple(path for path in readable if by_user[path]),
        "read-write": tuple(path for path in writable if not by_user[path]),
        "asked-read-write": tuple(path for path in writable if by_user[path]),
    }


def _plain(paths: Collection[str]) -> set[str]:
    return {path.removeprefix("?") for path in paths}


def _looked_up_as_user(base: Policy, path: str) -> bool:
    """Whether the innermost entry of the base that holds `path` is one that a caller named."""
    asked = _plain((*base.asked_read_only, *base.asked_read_write))
    above = [entry for entry, _ in base.entries() if is_below(path.removeprefix("?"), entry)]
    return bool(above) and max(above) in asked


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))
