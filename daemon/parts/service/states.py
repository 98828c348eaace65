"""The states of a unit, and which may follow which.

People and the graph begin and stop a unit; everything else follows from what the process does, and from time.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class State(enum.StrEnum):
    """Where a unit is."""

    INACTIVE = "inactive"  # not started, or stopped
    WAITING = "waiting"  # for units that come first
    LISTENING = "listening"  # its sockets are open: the first connection starts it
    SCHEDULED = "scheduled"  # its timer starts it
    STARTING = "starting"  # begun, not ready yet; a oneshot: running
    RUNNING = "running"  # ready
    UNHEALTHY = "unhealthy"  # running, and its health check says no
    STOPPING = "stopping"  # asked to end, or being killed
    BACKOFF = "backoff"  # ended badly, starts again after a while
    FAILED = "failed"  # ended badly, and for good
    DONE = "done"  # ended well, and for good


_S = State
_ENDS = {_S.BACKOFF, _S.FAILED, _S.DONE, _S.LISTENING, _S.SCHEDULED, _S.STOPPING}

TRANSITIONS: Mapping[State, frozenset[State]] = {
    _S.INACTIVE: frozenset({_S.WAITING}),
    _S.WAITING: frozenset({_S.LISTENING, _S.SCHEDULED, _S.STARTING, _S.FAILED, _S.STOPPING}),
    _S.LISTENING: frozenset({_S.STARTING, _S.FAILED, _S.STOPPING}),
    _S.SCHEDULED: frozenset({_S.STARTING, _S.FAILED, _S.STOPPING}),
    _S.STARTING: frozenset({_S.RUNNING, *_ENDS}),
    _S.RUNNING: frozenset({_S.UNHEALTHY, *_ENDS}),
    _S.UNHEALTHY: frozenset({_S.RUNNING, *_ENDS}),
    _S.STOPPING: frozenset({_S.INACTIVE, _S.WAITING, *_ENDS} - {_S.STOPPING}),
    _S.BACKOFF: frozenset({_S.STARTING, _S.WAITING, _S.FAILED, _S.STOPPING}),
    _S.FAILED: frozenset({_S.WAITING, _S.INACTIVE}),
    _S.DONE: frozenset({_S.WAITING, _S.INACTIVE}),
}

RESTING = frozenset({_S.INACTIVE, _S.FAILED, _S.DONE})  # nothing is going on
PROCESS = frozenset({_S.STARTING, _S.RUNNING, _S.UNHEALTHY, _S.STOPPING})  # a process is there, or may be
UP = frozenset({_S.RUNNING, _S.UNHEALTHY, _S.LISTENING, _S.SCHEDULED})  # others may build on it (a oneshot: DONE)


class Then(enum.StrEnum):
    """What `stopping` leads to."""

    INACTIVE = "inactive"  # somebody stopped it
    RESTART = "restart"  # somebody restarts it
    JUDGE = "judge"  # its end is judged by its restart policy
    RETRY = "retry"  # it was ended for cause (unhealthy, never ready): a failure, whatever its exit code
    FAIL = "fail"  # it may not go on (what it requires has failed)
