"""What a shim says: its state, and the events that change it. `daemon.parts.service.shim` hands both on."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import MixosError
from daemon.parts.service.spec import decode, number_in

_MAX_BYTES = 8 << 10  # no state is longer


class ShimError(MixosError):
    """A shim cannot be started or refuses a command.

    Reasons: `shim-spec` (spec refused), `shim-running` (another shim has this folder), `shim-gone` (no shim listens, or
    it went away), `shim-timeout`, `shim-busy` (start while processes of the last start are left; quit while the service
    runs), `shim-idle` (signal without a process), `shim-system` (a system call failed), `shim-full` (no room in the
    descriptor store, or no name for it), `shim-stranger` (no process of the service), `shim-protocol` (not what a shim
    says).
    """

    exit_code = 9


class Phase(enum.StrEnum):
    """Where a service is. `idle`: this shim has not started it yet (it may hold its sockets)."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"  # ready; or executed, when the shim awaits no readiness
    STOPPING = "stopping"
    EXITED = "exited"  # main is gone; others of the service may be left, see State.populated


@dataclass(frozen=True)
class ProcessId:
    """A process for sure: number and start time (field 22 of /proc/PID/stat, clock ticks since boot). 0 0: none."""

    pid: int
    start_time: int

    def alive(self) -> bool:
        """Whether exactly this process is there now (a zombie is not)."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return False
        return self.pid > 0 and fields[0] not in "ZX" and int(fields[19]) == self.start_time


@dataclass(frozen=True)
class State:
    """Everything a shim knows; the content of DIR/state.

    boot: id of the boot. since: seconds of CLOCK_MONOTONIC at which `phase` began. until: until when the
    start may take, as the service asked; since it was told to stop, when it is killed; 0: nobody said. starts: how
    often this shim started the service. code: exit status, or -1; signal: what ended main, or 0 (both of the last one;
    code -1 and signal 0: unknown, since main was not our child, or it has not ended). oom: the kernel killed something
    in the cgroup for memory during the last start. failure: step of the start that failed ("exec", "cwd", ...) or "";
    error: its errno. populated: whether any process of the service is left. cgroup: the cgroup in use, "" when there is
    none: then `stop` kills the process group and all descendants instead. status: last STATUS= text. stopped: the last
    end was asked for by `stop`. dropped: lines over the rate; lost: lines that could not be written (full disk).
    """

    unit: str
    boot: str
    shim: ProcessId
    phase: Phase
    main: ProcessId
    ready: bool
    stopped: bool
    populated: bool
    since: float
    until: float
    starts: int
    code: int
    signal: int
    oom: bool
    failure: str
    error: int
    cgroup: str
    status: str
    dropped: int
    lost: int


def parse_state(data: bytes) -> State:
    """The lines of DIR/state. Raises ShimError `shim-protocol`."""
    try:
        rows = [line.split(b" ") for line in data.splitlines()]
        words = {key.decode(): [decode(word).decode("utf-8", "backslashreplace") for word in row] for key, *row in rows}
        number = {key: number_in(words[key][0]) for key in _NUMBERS}
        return State(
            unit=words["unit"][0],
            boot=words["boot"][0],
            shim=ProcessId(*map(number_in, words["shim"])),
            phase=Phase(words["phase"][0]),
            main=ProcessId(*map(number_in, words["main"])),
            ready=bool(number["ready"]),
            stopped=bool(number["stopped"]),
            populated=bool(number["populated"]),
            since=number["since"] / 1e9,
            until=number["until"] / 1e9,
            starts=number["starts"],
            code=number_in(words["exit"][0]),
            signal=number_in(words["exit"][1]),
            oom=bool(number["oom"]),
            failure=words["failure"][0].strip("-"),
            error=number_in(words["failure"][1]),
            cgroup=words["cgroup"][0],
            status=words["status"][0],
            dropped=number["dropped"],
            lost=number["lost"],
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ShimError(f"not a shim's state: {error}", reason="shim-protocol") from error


_NUMBERS = ("ready", "stopped", "populated", "since", "until", "starts", "oom", "dropped", "lost")


def load_state(folder: Path) -> State | None:
    """DIR/state, or None when there is none or it is damaged. It outlives a killed shim."""
    try:
        with (folder / "state").open("rb") as stream:
            return parse_state(stream.read(_MAX_BYTES))
    except (OSError, ShimError):
        return None


@dataclass(frozen=True)
class Started:
    """The program was executed (execve succeeded)."""

    pid: int
    start_time: int


@dataclass(frozen=True)
class Failed:
    """The program could not be executed; Exited(code=127) follows. step: "exec", "cwd", "user", ...; error: errno."""

    step: str
    error: int


@dataclass(frozen=True)
class Ready:
    """READY=1, a newline on the readiness descriptor, or `mark_ready`."""


@dataclass(frozen=True)
class Status:
    """STATUS= of the service."""

    text: str


@dataclass(frozen=True)
class Watchdog:
    """WATCHDOG=1: the service is alive. trigger: it says itself that it failed (WATCHDOG=trigger)."""

    trigger: bool


@dataclass(frozen=True)
class MainPid:
    """Main is another process now: MAINPID=, or a service that daemonised."""

    pid: int
    start_time: int


@dataclass(frozen=True)
class Stopping:
    """STOPPING=1: the service ends by itself."""


@dataclass(frozen=True)
class Reloading:
    """RELOADING=1: the service reads its configuration again; Ready follows."""


@dataclass(frozen=True)
class Extend:
    """EXTEND_TIMEOUT_USEC=: the service has got more time, see State.until."""


@dataclass(frozen=True)
class Stored:
    """FDSTORE=1 (kept) or FDSTOREREMOVE=1 (not kept)."""

    name: str
    kept: bool


@dataclass(frozen=True)
class Exited:
    """Main ended. code: exit status or -1; signal: what ended it or 0; oom: see State."""

    code: int
    signal: int
    oom: bool


@dataclass(frozen=True)
class Empty:
    """No process of the service is left: it may be started again."""


@dataclass(frozen=True)
class Gone:
    """The shim closed the connection: it quit, was killed, or another daemon took over. The last event."""


Event = (
    Started
    | Failed
    | Ready
    | Status
    | Watchdog
    | MainPid
    | Stopping
    | Reloading
    | Extend
    | Stored
    | Exited
    | Empty
    | Gone
)

# First word of a message → the event, from the words behind it and the state after it.
EVENTS: Mapping[str, Callable[[list[str], State], Event]] = {
    "started": lambda words, _: Started(number_in(words[0]), number_in(words[1])),
    "failed": lambda words, _: Failed(words[0], number_in(words[1])),
    "ready": lambda _, __: Ready(),
    "status": lambda _, state: Status(state.status),
    "watchdog": lambda words, _: Watchdog(words[0] == "1"),
    "mainpid": lambda words, _: MainPid(number_in(words[0]), number_in(words[1])),
    "stopping": lambda _, __: Stopping(),
    "reloading": lambda _, __: Reloading(),
    "extend": lambda _, __: Extend(),
    "stored": lambda words, _: Stored(words[0], True),
    "unstored": lambda words, _: Stored(words[0], False),
    "exited": lambda words, _: Exited(number_in(words[0]), number_in(words[1]), words[2] == "1"),
    "empty": lambda _, __: Empty(),
}
