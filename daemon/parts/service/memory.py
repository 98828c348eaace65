"""What must outlive the daemon: per unit a small file in /run (this boot), and a history in /var/lib (for good).

Each is written before what it announces is done. A daemon that was killed at any moment reads them, looks at the shim,
and knows how far its predecessor came. A disk that is full costs just that: units live on, and the log says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from common.files import write_atomically, write_whole
from daemon.linux.log import log
from daemon.parts.service.backoff import Attempts
from daemon.parts.service.shimstate import Phase
from daemon.parts.service.shimstate import State as ShimState
from daemon.parts.service.states import State, Then

FILE = "memory.json"
KEPT = 20  # ends in a history


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Memory(_Record):
    """One unit in this boot. Times are CLOCK_MONOTONIC seconds unless they say otherwise.

    reason, slug: why the state is what it is, for people and for programs. step: which of its commands runs (pre-start
    commands first). launch: the number of starts of its shim that this step makes; 0: not begun. recorded: the number
    whose end is in the history already. began: begin of the attempt. then: see Then. digest: of the definition that
    runs. restarts: starts without being asked to. armed_*, run_boot: see timer.Runs (CLOCK_BOOTTIME and wall clock).
    """

    boot: str
    state: State = State.INACTIVE
    since: float = 0.0
    reason: str = ""
    slug: str = ""
    step: int = 0
    launch: int = 0
    recorded: int = 0
    began: float = 0.0
    attempts: Attempts = Attempts()
    then: Then = Then.INACTIVE
    digest: str = ""
    restarts: int = 0
    armed_boot: float = 0.0
    armed_wall: float = 0.0
    run_boot: float | None = None

    def write(self, folder: Path) -> None:
        """Keep it in the unit's runtime folder."""
        _keep(folder / FILE, self, 0o755, write_whole)

    @classmethod
    def read(cls, folder: Path, boot: str) -> Memory | None:
        """What was kept in this boot, or None: nothing, or damaged, or of another boot."""
        with contextlib.suppress(OSError, ValidationError):
            found = cls.model_validate_json((folder / FILE).read_bytes())
            return found if found.boot == boot else None
        return None


def guess(known: ShimState | None, steps: int, boot: str) -> Memory:
    """There is a shim (steps: number of pre-start commands) without our note of it (damaged): believe what it says."""
    if known is None:
        return Memory(boot=boot)
    states = {Phase.IDLE: State.WAITING, Phase.STARTING: State.STARTING, Phase.STOPPING: State.STOPPING}
    state = states.get(known.phase, State.RUNNING)
    return Memory(boot=boot, state=state, since=known.since, began=known.since, launch=known.starts, step=steps)


class End(_Record):
    """One end of a service.

    id: what makes it this end and no other; at: seconds since 1970; ran: seconds; code, signal: as in shim.State;
    reason, slug: what it means.
    """

    id: str
    at: float
    ran: float
    code: int
    signal: int
    oom: bool
    reason: str
    slug: str


class History(_Record):
    """The last ends of a unit, oldest first, and when its timer last started it (seconds since 1970)."""

    ends: tuple[End, ...] = ()
    last_run: float | None = None

    @classmethod
    def read(cls, path: Path) -> History:
        """What is kept; empty when there is nothing or it is damaged."""
        with contextlib.suppress(OSError, ValidationError):
            return cls.model_validate_json(path.read_bytes())
        return cls()

    def write(self, path: Path) -> None:
        """Keep it."""
        _keep(path, self, 0o700, write_atomically)

    def ended(self, end: End) -> History:
        """With one more end, unless it is known already."""
        if any(one.id == end.id for one in self.ends):
            return self
        return self.model_copy(update={"ends": (*self.ends, end)[-KEPT:]})

    def ran(self, at: float) -> History:
        """Its timer starts it at `at`."""
        return self.model_copy(update={"last_run": at})


def _keep(path: Path, record: _Record, mode: int, write: Callable[[Path, bytes, int], None]) -> None:
    data = record.model_dump_json().encode()
    try:
        try:
            write(path, data, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=mode)
            write(path, data, 0o600)
    except OSError as error:
        log("err", f"{path} cannot be written: {error.strerror}")
