"""From a unit to what its shim is told: names become numbers, folders are made, the environment is put together.

All of it is done again at each start, so that a user, a file or a disk that came since counts.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.files import read_regular
from common.lines import split_lines
from daemon.core.part import Context
from daemon.linux import cgroup
from daemon.linux.process import Runner
from daemon.parts.service import confine, spec
from daemon.parts.service.accounts import Account, account
from daemon.parts.service.ready import Asker
from daemon.parts.service.unit import IoMax, Limits, Service, Unit

FD_STORE = 16  # descriptors that a service which notifies may leave with its shim
_ENVIRONMENT_BYTES = 64 << 10
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")


@dataclass(frozen=True)
class Places:
    """Where the programs are that start services, and what gives the variables of every service (a proxy, say)."""

    shim: Path
    launcher: Path
    environment: Callable[[], Mapping[str, str]] = dict


def shared(path: Path) -> Mapping[str, str]:
    """The variables in a file of the daemon's own that every service gets; none while it is not there."""
    return environment_file(path) if path.exists() else {}


def check(unit: Unit, context: Context, places: Places) -> None:
    """What can be known before a start. Raises ConfigError `program-missing`, `unit-user`, `unit-group`, or what
    `confine.profile` raises."""
    service = unit.service
    commands = [*service.pre_start, service.command] if service else []
    commands += [unit.ready.command] if unit.ready and unit.ready.command else []
    commands += [unit.health.exec] if unit.health and unit.health.exec else []
    for argv in commands:
        _executable(argv[0])
    if service is not None:
        account(service)
        if service.environment_file is not None:
            environment_file(Path(service.environment_file))
        if service.sandbox is not None:
            _executable(os.fspath(places.launcher))
            confine.profile(service.sandbox, context)


def _executable(path: str) -> None:
    if not Path(path).exists():
        raise ConfigError(f"{path}: there is no such program", reason="program-missing")
    if not Path(path).is_file() or not os.access(path, os.X_OK):
        raise ConfigError(f"{path} is not a program", reason="program-missing")


def specification(
    name: str, unit: Unit, context: Context, places: Places, *, step: int, group: str, shims: str
) -> spec.Spec:
    """What the shim of unit `name` needs for one step: its pre-start commands by number, then the service itself.

    group: cgroup folder of the service, shims: that of the shim, "" where there are none. Makes the unit's folders.
    Raises ConfigError (`check` and `unit-environment`, `unit-folder`).
    """
    service = unit.service
    assert service is not None
    argv = (*service.pre_start, service.command)[step]
    _executable(argv[0])
    who = account(service)
    folders = _folders(service, context)
    for folder, mode in folders.values():
        _make(folder, who, mode)
    main = step == len(service.pre_start)
    how = unit.readiness.how
    notify = main and (how == "notify" or service.watchdog is not None)
    capabilities = None if service.capabilities is None else frozenset(one[4:].lower() for one in service.capabilities)
    result = spec.Spec(
        unit=name,
        argv=argv,
        log=spec.Logging(
            os.fspath(context.log / "units" / name),
            size=unit.logs.size,
            files=max(unit.logs.keep - 1, 0),
            rate=unit.logs.rate,
            burst=min(max(10 * unit.logs.rate, 1), 1_000_000),
        ),
        environment=_environment(name, service, who, context, places, notify=notify),
        cwd=service.working_directory,
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        umask=service.umask,
        nice=service.nice,
        limits={key: spec.Limit(*(_rlimit(key, one) for one in value)) for key, value in service.rlimits.items()},
        ambient=capabilities if capabilities is not None and who.uid != 0 else frozenset(),
        bounding=capabilities,
        cgroup=group,
        shim_cgroup=shims,
        notify=notify,
        await_ready=main and (how.partition(":")[0] in ("notify", "tcp", "exec") or service.pid_file is not None),
        ready_fd=(unit.readiness.descriptor or 0) if main else 0,
        daemonises=main and service.type == "forking",
        stop_signal=service.stop_signal,
        grace=service.stop_timeout,
        fd_store=FD_STORE if notify else 0,
    )
    if service.sandbox is None:
        return result
    _executable(os.fspath(places.launcher))
    own = [folder for folder, _ in folders.values()]
    return confine.sandboxed(result, service, who, context, places.launcher, len(unit.socket), own)


def _rlimit(name: str, value: int) -> int:
    """A limit as setrlimit(2) takes it. Of open files nobody may have more than fs.nr_open (proc_sys_fs(5))."""
    if value >= 0:
        return value
    return int(Path("/proc/sys/fs/nr_open").read_text("ascii")) if name == "nofile" else spec.INFINITY


def asker(name: str, service: Service, context: Context, places: Places, group: str) -> Asker:
    """What the checks of a service run with; group: its cgroup or "". Raises ConfigError like `specification`."""
    who = account(service)
    runner = Runner(who.uid, who.gid, who.groups, Path(group) if group else None) if os.geteuid() == 0 else None
    return Asker(runner, _environment(name, service, who, context, places, notify=False))


def _environment(
    name: str, service: Service, who: Account, context: Context, places: Places, *, notify: bool
) -> dict[str, str]:
    given = {
        "PATH": "/usr/bin:/usr/sbin",
        "LC_ALL": "C.UTF-8",
        "HOME": who.home,
        "USER": who.name,
        "LOGNAME": who.name,
        **places.environment(),
    }
    if service.environment_file is not None:
        given |= environment_file(Path(service.environment_file))
    given |= service.environment
    given["MIXOS_UNIT"] = name  # from here on: what nobody else can say
    if service.watchdog is not None and notify:
        given["WATCHDOG_USEC"] = str(int(service.watchdog * 1e6))  # sd_watchdog_enabled(3)
    return given | {key: os.fspath(folder) for key, (folder, _) in _folders(service, context).items()}


def _folders(service: Service, context: Context) -> dict[str, tuple[Path, int]]:
    """The folders of its own: variable that names it → path and mode."""
    found = {}
    if service.runtime_directory is not None:
        found["RUNTIME_DIRECTORY"] = (context.run.parent / service.runtime_directory, 0o755)
    if service.state_directory is not None:
        found["STATE_DIRECTORY"] = (context.state.parent / service.state_directory, 0o750)
    return found


def _make(path: Path, who: Account, mode: int) -> None:
    """Make a folder for the service's user; what is there already is given to that user, if it is a folder and not one
    in which root keeps something."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if who.uid != os.fstat(descriptor).st_uid == 0 and os.listdir(descriptor):
                raise OSError(errno.EPERM, "root keeps something there")
            if os.geteuid() == 0:
                os.fchown(descriptor, who.uid, who.gid)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", reason="unit-folder") from error


def environment_file(path: Path) -> dict[str, str]:
    """Variables from lines `KEY=value`; blank lines and `#` lines do not count, a value may stand in quotes, which end
    the line: some readers take a comment behind them, some a value that goes on in the next line.

    Raises ConfigError `unit-environment` with file and line.
    """
    try:
        data = read_regular(path, _ENVIRONMENT_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{path}: {problem}", reason="unit-environment") from error
    if len(data) > _ENVIRONMENT_BYTES:
        raise ConfigError(f"{path}: more than {_ENVIRONMENT_BYTES} bytes", reason="unit-environment")
    found = {}
    for number, line in enumerate(split_lines(text), 1):
        line = line.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None or "\0" in line:
            raise ConfigError(f"{path}:{number}:1: KEY=value is expected", reason="unit-environment")
        value = match[2]
        if value.startswith(("'", '"')):
            if len(value) == 1 or value[-1] != value[0]:
                hint = "a comment needs a line of its own; no value goes on in the next line"
                problem = f"the value begins with {value[0]} and does not end with it"
                raise ConfigError(f"{path}:{number}:1: {problem}", reason="unit-environment", hint=hint)
            value = value[1:-1]
        found[match[1]] = value
    return found


def group_limits(limits: Limits) -> cgroup.Limits:
    """The limits of a unit as its cgroup takes them. Raises ConfigError `unit-device`."""
    return cgroup.Limits(
        memory_max=limits.memory,
        memory_high=limits.memory_high,
        swap_max=limits.swap,
        pids_max=limits.pids,
        cpu=None if limits.cpu is None else limits.cpu / 100,
        cpu_weight=limits.cpu_weight,
        io_weight=limits.io_weight,
        io=tuple(map(_io, limits.io_max)),
    )


def _io(limit: IoMax) -> cgroup.IoLimit:
    try:
        facts = os.stat(limit.device)
    except OSError as error:
        raise ConfigError(f"{limit.device}: {error.strerror}", reason="unit-device") from error
    if not stat.S_ISBLK(facts.st_mode):
        raise ConfigError(f"{limit.device} is not a block device", reason="unit-device")
    device = f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
    return cgroup.IoLimit(device, limit.read, limit.write, limit.read_operations, limit.write_operations)
