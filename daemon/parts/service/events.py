"""What happens to a unit, and what is then to be done: what the machine gets and gives."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from daemon.parts.service.memory import End
from daemon.parts.service.order import Obstacle
from daemon.parts.service.shimstate import Event as ShimEvent
from daemon.parts.service.shimstate import State as ShimState
from daemon.parts.service.states import State, Then
from daemon.parts.service.timer import Clock
from daemon.parts.service.unit import Unit


@dataclass(frozen=True)
class Seen:
    """The world at the moment of an event. now: CLOCK_MONOTONIC seconds; clock: for timers; up: whether its shim is
    connected; shim: the newest word of the shim, or the last one of a shim that has gone; obstacle: what it must wait
    for."""

    now: float
    clock: Clock
    up: bool = False
    shim: ShimState | None = None
    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Tick:
    """Time has passed, or something that is seen has changed."""


@dataclass(frozen=True)
class Begin:
    """Start it; if it waits to be tried again, at once. now: do not wait for its timer or for a connection."""

    now: bool = False


@dataclass(frozen=True)
class Stop:
    """Stop it; `then` says what comes after, slug and reason why."""

    then: Then = Then.INACTIVE
    slug: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Forget:
    """Its last run has failed, and somebody knows."""


@dataclass(frozen=True)
class KillNow:
    """While it is stopping: kill it now."""


@dataclass(frozen=True)
class Redefined:
    """Another definition is in force. digest: of what a process is started with."""

    unit: Unit
    digest: str


@dataclass(frozen=True)
class ShimSaid:
    """The shim has sent this."""

    event: ShimEvent


@dataclass(frozen=True)
class CheckPassed:
    """Its check says that it is ready."""


@dataclass(frozen=True)
class Connected:
    """A client has connected to one of its sockets."""


@dataclass(frozen=True)
class HealthChanged:
    """Its health has changed: what is wrong, or None when it is well again."""

    problem: str | None


@dataclass(frozen=True)
class Done:
    """The operation is done. fresh: a shim was started, with what the present step needs."""

    fresh: bool = False


@dataclass(frozen=True)
class Reconnected:
    """The connection to the shim was lost during the operation and is there again: nobody knows how far it came."""


@dataclass(frozen=True)
class Rejected:
    """The operation, or (watch) a check, could not be done. hopeless: another try would end the same way."""

    slug: str
    reason: str
    hopeless: bool = True
    watch: bool = False


Event = (
    Tick
    | Begin
    | Stop
    | Forget
    | KillNow
    | Redefined
    | ShimSaid
    | CheckPassed
    | Connected
    | HealthChanged
    | Done
    | Reconnected
    | Rejected
)


# -- what is to be done ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateChanged:
    """It is in another state, for this reason."""

    state: State
    old: State
    slug: str
    reason: str


@dataclass(frozen=True)
class KeepEnd:
    """Keep this end in the history, before the memory is written."""

    end: End


@dataclass(frozen=True)
class KeepRun:
    """Keep in the history that its timer starts it, at this time (seconds since 1970), before the memory is written."""

    at: float


@dataclass(frozen=True)
class Log:
    """For the system log."""

    level: str
    text: str


@dataclass(frozen=True)
class KillGroup:
    """Kill what is left in its cgroup, without waiting."""


@dataclass(frozen=True)
class Cancel:
    """The operation that is being done is not wanted any more; its outcome is not told."""


class Operation(enum.Enum):
    """What takes its time. The outcome comes back as Done, Reconnected or Rejected; there is one at a time."""

    SPAWN = "start a shim, with what the present step needs"
    SOCKETS = "open the sockets that the shim does not hold yet, and give them to it"
    PREPARE = "write what the present step needs for a shim that has something older; pass the gates"
    PASS = "pass the gates"
    LAUNCH = "tell the shim to start the present step"
    HALT = "tell the shim to end what runs, at the latest at `Life.stop_by`"
    MARK_READY = "tell the shim that the service is ready"
    KILL_LEFTOVERS = "its shim has gone: kill what is left, and let its last word be that all has ended"
    RELEASE = "nothing runs: end the shim, remove socket files and cgroup"


Action = StateChanged | KeepEnd | KeepRun | Log | KillGroup | Cancel | Operation


class Watch(enum.Enum):
    """What the runner looks out for while a unit is in a state."""

    READY = "ask until it is ready: CheckPassed"
    HEALTH = "ask again and again whether it is well: HealthChanged"
    SOCKETS = "a client connects: Connected"
