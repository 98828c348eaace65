"""Control groups of services (cgroup v2): one group per unit, limits in it, its use out of it.

    ROOT/                cpu, io, memory and pids handed down; no process of its own (no-internal-process rule)
      .shims/            all shims together: a unit's limits and its kill never reach them
      UNIT/              limits of one service; `main/` in it, made anew by the shim for each start, has the processes,
                         `check/` what is asking whether it is well

A controller that the kernel or the parent does not give is no error and never silent: what is not enforced is returned,
and belongs into the service's state. Format of the files: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import MixosError

MOUNT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "io", "memory", "pids")
_PERIOD = 100_000  # microseconds, of cpu.max
_READ = 64 << 10  # bytes of a file at most
_DEFAULTS = {  # of a new group
    "memory.max": "max", "memory.high": "max", "memory.swap.max": "max", "memory.oom.group": "0", "pids.max": "max",
    "cpu.max": f"max {_PERIOD}", "cpu.weight": "100", "io.weight": "default 100",
}  # fmt: skip


class CgroupError(MixosError):
    """Reasons: `cgroup-missing` (no cgroup v2 here, or the group has gone), `cgroup-busy` (processes are left),
    `cgroup-name`, `cgroup-system` (the kernel refuses)."""

    exit_code = 9


@dataclass(frozen=True)
class IoLimit:
    """Limits of one block device ("8:0", MAJOR:MINOR); bytes and operations per second, None: no limit."""

    device: str
    read_bytes: int | None = None
    write_bytes: int | None = None
    read_operations: int | None = None
    write_operations: int | None = None

    def __str__(self) -> str:
        """The line of io.max."""
        pairs = zip(
            ("rbps", "wbps", "riops", "wiops"),
            (self.read_bytes, self.write_bytes, self.read_operations, self.write_operations),
            strict=True,
        )
        return " ".join([self.device, *(f"{key}={_amount(value)}" for key, value in pairs)])


@dataclass(frozen=True)
class Limits:
    """None leaves the kernel's default. Sizes in bytes; cpu in CPUs (0.5: half of one); weights 1..10000 (default 100).

    oom_group: out of memory ends the whole service, not one of its processes (asked for with a limit of memory only).
    """

    memory_max: int | None = None
    memory_high: int | None = None
    swap_max: int | None = None
    oom_group: bool = True
    pids_max: int | None = None
    cpu: float | None = None
    cpu_weight: int | None = None
    io_weight: int | None = None
    io: tuple[IoLimit, ...] = ()

    def files(self) -> Iterator[tuple[str, str, bool]]:
        """File, content, and whether it was asked for (else it is the default, and need not be there)."""
        cpu = "max" if self.cpu is None else str(max(1000, round(self.cpu * _PERIOD)))
        yield "memory.max", _amount(self.memory_max), self.memory_max is not None
        yield "memory.high", _amount(self.memory_high), self.memory_high is not None
        yield "memory.swap.max", _amount(self.swap_max), self.swap_max is not None
        yield "memory.oom.group", str(int(self.oom_group)), self.oom_group and self.memory_max is not None
        yield "pids.max", _amount(self.pids_max), self.pids_max is not None
        yield "cpu.max", f"{cpu} {_PERIOD}", self.cpu is not None
        yield "cpu.weight", str(self.cpu_weight or 100), self.cpu_weight is not None
        yield "io.weight", f"default {self.io_weight or 100}", self.io_weight is not None
        for limit in self.io:
            yield "io.max", str(limit), True


@dataclass(frozen=True)
class Usage:
    """What a unit uses now; None where the controller is missing. Times in seconds since the group was made.

    pressure: "cpu", "io", "memory" → share of the last 10 s in which some process waited (0..1).
    """

    memory: int | None
    memory_peak: int | None
    swap: int | None
    processes: int | None
    cpu_seconds: float | None
    cpu_throttled: float | None
    oom_kills: int | None
    pressure: Mapping[str, float]


class Leaf:
    """The group of one unit. fresh: just made, nothing was written into it."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self._fresh = fresh

    def limit(self, limits: Limits) -> tuple[str, ...]:
        """Put all limits in force; those that are None go back to the default, except devices that `io` does not name.
        Only what differs is written.

        Returns what was asked for and is not enforced: names of files that are missing ("memory.max": no controller) or
        refuse the value.
        """
        failed = []
        for name, content, asked in limits.files():
            if content == self._present(name, asked):
                continue
            if not _write(self.path / name, content) and asked:
                failed.append(name)
        self._fresh = False
        return tuple(dict.fromkeys(failed))

    def _present(self, name: str, asked: bool) -> str | None:
        """What is in force; None when that must be tried, or is not known."""
        if self._fresh:
            return None if asked else _DEFAULTS.get(name)
        return (_read(self.path / name) or "").strip()

    def usage(self) -> Usage:
        """Read what is used. Raises CgroupError `cgroup-missing` when the group has gone."""
        if not self.path.is_dir():
            raise CgroupError(f"{self.path.name}: the control group has gone", reason="cgroup-missing")
        cpu, events = _table(self.path / "cpu.stat"), _table(self.path / "memory.events")
        shares = {name: _share(self.path / f"{name}.pressure") for name in ("cpu", "io", "memory")}
        return Usage(
            memory=_number(self.path / "memory.current"),
            memory_peak=_number(self.path / "memory.peak"),
            swap=_number(self.path / "memory.swap.current"),
            processes=_number(self.path / "pids.current"),
            cpu_seconds=_seconds(cpu, "usage_usec"),
            cpu_throttled=_seconds(cpu, "throttled_usec"),
            oom_kills=events.get("oom_kill"),
            pressure={name: share for name, share in shares.items() if share is not None},
        )

    def populated(self) -> bool:
        """Whether a process is left in it or below it; False when the group has gone."""
        return _table(self.path / "cgroup.events").get("populated") == 1

    def kill(self) -> None:
        """SIGKILL to all, those included that are just being forked (cgroup.kill). Nothing when it has gone.

        Raises CgroupError `cgroup-system` on a kernel without it (before 5.14).
        """
        if self.path.is_dir() and not _write(self.path / "cgroup.kill", "1"):
            raise CgroupError(f"{self.path.name}: the control group cannot be killed", reason="cgroup-system")

    def remove(self) -> None:
        """Remove it and what is below it. Raises CgroupError `cgroup-busy` while processes are left."""
        for folder in reversed(list(_below(self.path))):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                reason = "cgroup-busy" if error.errno in (errno.EBUSY, errno.ENOTEMPTY) else "cgroup-system"
                raise CgroupError(f"{self.path.name}: {error.strerror}", reason=reason, retryable=True) from error


class Tree:
    """The groups below `root` (ROOT above)."""

    def __init__(self, root: Path = MOUNT / "mixos") -> None:
        self.root = root

    def prepare(self) -> tuple[str, ...]:
        """Make `root` and hand the controllers down to it and through it; returns those that are missing.

        Raises CgroupError `cgroup-missing` when there is no cgroup v2 here, `cgroup-system` when it cannot be written.
        """
        if not (self.root.parent / "cgroup.procs").is_file():
            raise CgroupError(f"{self.root.parent}: no cgroup v2 is mounted there", reason="cgroup-missing")
        self._make(self.root)
        for folder in (self.root.parent, self.root):
            for name in CONTROLLERS:  # one by one: a single one that is missing would refuse them all
                _write(folder / "cgroup.subtree_control", f"+{name}")
        given = (_read(self.root / "cgroup.subtree_control") or "").split()
        return tuple(name for name in CONTROLLERS if name not in given)

    def leaf(self, unit: str) -> Leaf:
        """The group of a unit; made if it is not there. Raises CgroupError."""
        if not unit or unit.startswith((".", "cgroup.")) or "/" in unit or "\n" in unit:
            raise CgroupError(f"{unit!r}: no name for a control group", reason="cgroup-name")
        return self._make(self.root / unit)

    def own(self, name: str) -> Leaf:
        """The group `.name` of our own processes ("shims"); made if it is not there. Raises CgroupError."""
        return self._make(self.root / f".{name}")

    def _make(self, path: Path) -> Leaf:
        try:
            path.mkdir()
        except FileExistsError:
            return Leaf(path)
        except OSError as error:
            reason = "cgroup-missing" if error.errno == errno.ENOENT else "cgroup-system"
            raise CgroupError(f"{path}: {error.strerror}", reason=reason) from error
        return Leaf(path, fresh=True)


def _amount(value: int | None) -> str:
    return "max" if value is None else str(value)


def _write(path: Path, content: str) -> bool:
    """Whether the kernel took it. No O_CREAT: what is not there is a controller that is missing."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(descriptor, content.encode()) == len(content.encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return stream.read(_READ).decode()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """A flat keyed file: `KEY VALUE` lines."""
    rows = (line.split() for line in (_read(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def _seconds(table: Mapping[str, int], key: str) -> float | None:
    return table[key] / 1e6 if key in table else None


def _share(path: Path) -> float | None:
    """avg10 of the line `some` (Documentation/accounting/psi.rst), as a share."""
    for line in (_read(path) or "").splitlines():
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if line.startswith("some ") and "avg10" in words:
            return float(words["avg10"]) / 100
    return None


def _below(path: Path) -> Iterator[Path]:
    """A group and all below it, parents first. Groups may come and go meanwhile."""
    if not path.is_dir():
        return
    yield path
    with contextlib.suppress(OSError):
        for entry in sorted(path.iterdir()):
            if entry.is_dir():
                yield from _below(entry)
