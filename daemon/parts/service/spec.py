"""What the shim needs to start one service: `Spec` here, the file DIR/spec there, the same bytes for both.

The file is text, one `key word...` per line, in any order; the first line is `mixos-spec 1`. Words are separated by one
space and percent-encoded (`encode`). Keys of lists (`arg`, `env`, `group`, `limit`) repeat; sets of capabilities are
bit masks. The shim refuses what it does not know, so a file that it accepts means exactly what it says.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import MixosError

HEAD = b"mixos-spec 1"
MAX_BYTES = 128 << 10  # the shim reads no larger file
MAX_ARGS = 1024
MAX_ENV = 1024
MAX_GROUPS = 32
MAX_FDS = 64  # descriptors that a shim keeps
INFINITY = (1 << 64) - 1  # RLIM_INFINITY
ANYBODY = 0xFFFFFFFF  # no user has this number
_NO_LIMIT = 10**18  # from here on a number is no limit either

# Resource limits by name (getrlimit(2)); the shim has the same list.
# fmt: off
LIMITS = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
    "rtprio", "rttime", "sigpending", "stack",
)
# Capabilities by name, in the order of their numbers (capabilities(7), linux/capability.h).
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)
# fmt: on


class SpecError(MixosError):
    """The spec cannot be said to the shim, or is not one. Reason `spec-value` or `spec-format`."""

    exit_code = 3


@dataclass(frozen=True)
class Limit:
    """One resource limit: bytes, seconds or a count, as setrlimit(2) has it; INFINITY for none."""

    soft: int
    hard: int


@dataclass(frozen=True)
class Logging:
    """Where the output of the service goes, and how much of it.

    folder: made if its parent exists. size: bytes of a file before the next one is begun; files: older ones that are
    kept. rate, burst: lines per second in the long run, and at once, where a line counts once more for each 256 bytes;
    rate 0: no limit. More is dropped and counted.
    """

    folder: str
    size: int = 1 << 20
    files: int = 4
    rate: int = 1000
    burst: int = 10_000


@dataclass(frozen=True)
class Spec:
    """One start of one service. Everything is resolved: numbers for names, absolute paths, the whole environment.

    unit: name, for the state. argv: argv[0] is an absolute path. environment: all that the service gets; the shim adds
    NOTIFY_SOCKET, LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES. groups: supplementary, replacing ours.
    ambient: capabilities kept by a service that is not root; bounding: capabilities it could ever have (None: all).
    cgroup: folder of the service's own cgroup, "" for none; a folder that is named and cannot be used fails the start.
    shim_cgroup: folder that the shim itself moves to, once. notify: NOTIFY_SOCKET is offered, to notify_uid (None: uid;
    ANYBODY: its user is not known yet). await_ready: readiness is awaited, by READY=1 or `Shim.mark_ready`. ready_fd:
    number of a descriptor on which the service writes a newline when it is ready (0: none). daemonises: main ends with
    status 0 and leaves a child, which becomes main (see `Shim.become_main`). stop_signal: what `stop` sends. grace:
    seconds between that and the kill when the shim itself is told to end (SIGTERM). fd_store: descriptors that
    the service may leave with the shim (FDSTORE=1). stdin is always /dev/null.
    """

    unit: str
    argv: tuple[str, ...]
    log: Logging
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    umask: int = 0o022
    nice: int = 0
    oom_score_adj: int = 0
    no_new_privileges: bool = True
    limits: Mapping[str, Limit] = field(default_factory=dict)
    ambient: frozenset[str] = frozenset()
    bounding: frozenset[str] | None = None
    cgroup: str = ""
    shim_cgroup: str = ""
    notify: bool = False
    notify_uid: int | None = None
    await_ready: bool = False
    ready_fd: int = 0
    daemonises: bool = False
    stop_signal: int = signal.SIGTERM
    grace: float = 10.0
    fd_store: int = 0

    def __bytes__(self) -> bytes:
        """The content of DIR/spec. Raises SpecError `spec-value` for what the shim would refuse."""
        _check(self)
        lines: list[tuple[str, ...]] = [(key, str(int(getattr(self, name)))) for key, name in _NUMBERS.items()]
        lines += [("grace", str(round(self.grace * 1000))), ("ambient", str(_mask(self.ambient)))]
        if self.bounding is not None:
            lines.append(("bounding", str(_mask(self.bounding))))
        if self.notify_uid is not None:
            lines.append(("notify-uid", str(self.notify_uid)))
        lines += [(key, getattr(self, name)) for key, name in _TEXTS.items()]
        lines += [("log-folder", self.log.folder)]
        lines += [(f"log-{name}", str(getattr(self.log, name))) for name in _LOGGING]
        lines += [("group", str(number)) for number in self.groups]
        lines += [("limit", name, _limit(limit.soft), _limit(limit.hard)) for name, limit in self.limits.items()]
        lines += [("arg", word) for word in self.argv]
        lines += [("env", f"{name}={value}") for name, value in self.environment.items()]
        data = HEAD + b"".join(b"\n" + b" ".join(encode(os.fsencode(word)) for word in line) for line in lines) + b"\n"
        if len(data) > MAX_BYTES:
            raise SpecError(f"{self.unit}: arguments and environment are too long", reason="spec-value")
        return data


# key in the file → member, for what is a number and for what is a text.
_NUMBERS = {
    "uid": "uid",
    "gid": "gid",
    "umask": "umask",
    "nice": "nice",
    "oom-score-adj": "oom_score_adj",
    "no-new-privileges": "no_new_privileges",
    "notify": "notify",
    "await-ready": "await_ready",
    "ready-fd": "ready_fd",
    "daemonises": "daemonises",
    "stop-signal": "stop_signal",
    "fd-store": "fd_store",
}
_TEXTS = {"unit": "unit", "cwd": "cwd", "cgroup": "cgroup", "shim-cgroup": "shim_cgroup"}
_FLAGS = frozenset({"no_new_privileges", "notify", "await_ready", "daemonises"})
_LOGGING = ("size", "files", "rate", "burst")
_RANGES = {
    "uid": (0, 0xFFFFFFFE),
    "gid": (0, 0xFFFFFFFE),
    "umask": (0, 0o777),
    "nice": (-20, 19),
    "oom_score_adj": (-1000, 1000),
    "stop_signal": (1, 64),
    "fd_store": (0, MAX_FDS),
    "grace": (0, 86400),
}
_LOG_RANGES = {"size": (65536, 1 << 32), "files": (0, 100), "rate": (0, 1_000_000), "burst": (1, 1_000_000)}
_PLAIN = frozenset(range(0x21, 0x7F)) - {ord("%")}
_UNIT = re.compile(r"[A-Za-z0-9@._:-]{1,64}")
_PATH = re.compile(r"(/[!-~]+)?")
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_AS_IT_IS = re.compile(rb"[!-$&-~]*")
_ESCAPE = re.compile(rb"%([0-9A-F]{2})|([!-$&-~])")


def encode(word: bytes) -> bytes:
    """Percent-encode one word: printable ASCII without space and percent sign stays."""
    if _AS_IT_IS.fullmatch(word):
        return word
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in word)


def decode(word: bytes) -> bytes:
    """The reverse of `encode`. Raises ValueError for anything that `encode` does not make."""
    if _AS_IT_IS.fullmatch(word):
        return word
    found = list(_ESCAPE.finditer(word))
    if sum(len(match[0]) for match in found) != len(word):
        raise ValueError("not percent-encoded")
    return b"".join(bytes.fromhex(match[1].decode()) if match[1] else match[2] for match in found)


def number_in(word: str) -> int:
    """A number of the shim's, as it reads and writes them: at most 20 digits (words.c). Raises ValueError."""
    if not _NUMBER.fullmatch(word):
        raise ValueError(f"{word[:30]!r} is no number")
    return int(word)


def _check(spec: Spec) -> None:
    """Refuse what the shim refuses, with the member's name."""
    texts = (spec.unit, spec.cwd, spec.cgroup, spec.shim_cgroup, spec.log.folder)
    environment = [text for pair in spec.environment.items() for text in pair]
    wrong = [name for name, (low, high) in _RANGES.items() if not low <= getattr(spec, name) <= high]
    wrong += [f"log.{name}" for name, (low, high) in _LOG_RANGES.items() if not low <= getattr(spec.log, name) <= high]
    tests = {
        "unit": not _UNIT.fullmatch(spec.unit),
        "cgroup": not _PATH.fullmatch(spec.cgroup),
        "notify_uid": not 0 <= (spec.notify_uid or 0) <= ANYBODY,
        "argv": not spec.argv or not spec.argv[0].startswith("/") or len(spec.argv) > MAX_ARGS,
        "cwd": not spec.cwd.startswith("/"),
        "log.folder": not spec.log.folder.startswith("/"),
        "ready_fd": spec.ready_fd != 0 and not 3 <= spec.ready_fd <= 255,
        "groups": len(spec.groups) > MAX_GROUPS or any(not 0 <= number <= 0xFFFFFFFE for number in spec.groups),
        "environment": len(spec.environment) > MAX_ENV or any("=" in name or not name for name in spec.environment),
        "limits": any(name not in LIMITS for name in spec.limits),
        "limits' values": any(not 0 <= n <= INFINITY for v in spec.limits.values() for n in (v.soft, v.hard)),
        "capabilities": not (spec.ambient | (spec.bounding or frozenset())) <= set(CAPABILITIES),
        "a text (byte 0)": any("\0" in text for text in (*texts, *spec.argv, *environment)),
        "a path (longer than 255 bytes)": any(len(os.fsencode(text)) > 255 for text in texts),
    }
    if wrong := wrong + [name for name, bad in tests.items() if bad]:
        raise SpecError(f"{spec.unit or 'unit'}: {', '.join(wrong)} cannot be used", reason="spec-value")


def _mask(names: frozenset[str]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def _names(mask: int) -> frozenset[str]:
    return frozenset(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1)


def _limit(value: int) -> str:
    return "infinity" if value >= _NO_LIMIT else str(value)


def parse(data: bytes) -> Spec:
    """The reverse of `bytes(spec)`. Raises SpecError `spec-format`."""
    try:
        head, *lines, end = data.split(b"\n")
        if head != HEAD or end:
            raise ValueError("head or end is missing")
        rows = [[os.fsdecode(decode(word)) for word in line.split(b" ")] for line in lines]
        lists: dict[str, list[list[str]]] = {key: [] for key in ("arg", "env", "group", "limit")}
        single: dict[str, str] = {}
        for key, *words in rows:
            if key in lists:
                lists[key].append(words)
            elif key in single:
                raise ValueError(f"{key} twice")
            else:
                (single[key],) = words
        return _build(single, lists)
    except (ValueError, KeyError, IndexError) as error:
        raise SpecError(f"not a spec: {error}", reason="spec-format") from error


def _build(single: dict[str, str], lists: dict[str, list[list[str]]]) -> Spec:
    values: dict[str, Any] = {name: single.pop(key) for key, name in _TEXTS.items()}
    for key, name in _NUMBERS.items():
        number = number_in(single.pop(key))
        values[name] = bool(number) if name in _FLAGS else number
    values["grace"] = number_in(single.pop("grace")) / 1000
    values["ambient"] = _names(number_in(single.pop("ambient")))
    values["bounding"] = _names(number_in(single.pop("bounding"))) if "bounding" in single else None
    values["notify_uid"] = number_in(single.pop("notify-uid")) if "notify-uid" in single else None
    log = Logging(single.pop("log-folder"), *(number_in(single.pop(f"log-{name}")) for name in _LOGGING))
    if single:
        raise ValueError(f"unknown key {min(single)}")
    environment = dict(word.split("=", 1) for (word,) in lists["env"])
    limits = {name: Limit(_amount(soft), _amount(hard)) for name, soft, hard in lists["limit"]}
    groups = tuple(number_in(word) for (word,) in lists["group"])
    argv = tuple(word for (word,) in lists["arg"])
    return Spec(argv=argv, log=log, environment=environment, groups=groups, limits=limits, **values)


def _amount(word: str) -> int:
    return INFINITY if word == "infinity" else number_in(word)
