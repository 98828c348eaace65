"""Bounds that the doors put on clients."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Counts, seconds and rates. Tests take other ones."""

    connections: int = 32  # of the socket, all clients together
    per_uid: int = 8  # of them, so that no account locks the others out
    per_admin: int = 16
    idle: float = 60.0  # seconds until a line is complete, and between calls; open streams do not idle
    slow: float = 10.0  # seconds that a client may leave its answers unread; items of streams wait
    linger: float = 2.0  # seconds for the last words to a client before the connection is cut
    look: float = 1.0  # seconds between looks at whether who waits for an answer is still there
    streams: int = 8  # open at once on one connection
    streams_per_uid: int = 16  # on all connections of an account
    stalled: float = 3600.0  # seconds that an item of a stream waits for its reader; a pager may be read for long
    rate: float = 200.0  # calls per second of one connection; faster ones wait
    burst: float = 400.0  # calls that are answered at once after a pause


class Bucket:
    """A token bucket: `burst` at once, `rate` per second in the long run."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def delay(self, tokens: float = 1.0) -> float:
        """Take tokens; seconds to wait until they are really there."""
        self._fill()
        self._tokens -= tokens
        return max(0.0, -self._tokens / self._rate)

    def take(self) -> bool:
        """Take one token if there is one."""
        self._fill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class Sample:
    """Some of a flood, and the number of the others: 10 at once, then one in five minutes.

    For entries of the audit that somebody without a right causes: a log of some MiB then reaches back months.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = Bucket(1 / 300, 10.0, clock)
        self._left_out = 0

    def take(self, more: int = 0) -> int | None:
        """How many were left out before this one; None when it is left out too, with `more` that it stands for."""
        if not self._bucket.take():
            self._left_out += 1 + more
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out
