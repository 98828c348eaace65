"""When a timer is due. Pure: the clocks are given.

Intervals go by CLOCK_BOOTTIME, which never jumps and counts suspend. Calendar times go by the wall clock and are looked
up anew at every glance, so that setting the clock moves the next run instead of losing it or starting many. A clock
that is set by more than JUMP was wrong before: what was noted by it in this boot is put right by the other clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from common.values import Calendar
from daemon.parts.service.unit import Timer

GLANCE = 30.0  # seconds after which a calendar timer looks at the clock again
JUMP = 3 * 3600.0  # set forward by less, what was skipped is run; set back by less, no run is repeated


@dataclass(frozen=True)
class Clock:
    """Now: seconds since boot, and since 1970."""

    boot: float
    wall: float

    @classmethod
    def now(cls) -> Clock:
        """The system's."""
        return cls(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


@dataclass(frozen=True)
class Runs:
    """What the timer must know of the past: times of the last start by both clocks, None when there was none (in this
    boot: boot; ever: wall), and since when the timer is armed."""

    armed: Clock
    boot: float | None = None
    wall: float | None = None


def remaining(timer: Timer, runs: Runs, now: Clock) -> float:
    """Seconds until the next run, 0 when it is due; infinite when there will be none."""
    return max(0.0, min((due for due in _waits(timer, runs, now)), default=float("inf")))


def _waits(timer: Timer, runs: Runs, now: Clock) -> Iterator[float]:
    if timer.on_boot is not None and runs.boot is None:
        yield timer.on_boot - now.boot
    if timer.every is not None and (runs.boot is not None or timer.on_boot is None):
        yield (runs.armed.boot if runs.boot is None else runs.boot) + timer.every - now.boot
    if timer.calendar is not None:
        yield _calendar_base(timer, timer.calendar, runs, now) - now.wall


def _calendar_base(timer: Timer, calendar: Calendar, runs: Runs, now: Clock) -> float:
    """The wall time of the next run: the first one behind the last run, or behind the arming of the timer."""
    since = _corrected(runs.armed, now)
    last = runs.wall
    if last is not None and runs.boot is not None:
        last = _corrected(Clock(runs.boot, last), now)
    elif last is not None and last > now.wall + JUMP:
        last = None  # the clock was wrong in that boot
    if last is not None and (timer.persistent or last > since):
        since = last
    elif since > now.wall:
        since = now.wall
    return following(calendar, since)


def _corrected(then: Clock, now: Clock) -> float:
    """The wall time of a moment of this boot, by the present setting of the clock if it was wrong then."""
    real = now.wall - (now.boot - then.boot)
    return then.wall if abs(real - then.wall) < JUMP else real


def following(calendar: Calendar, after: float) -> float:
    """The first time of `calendar` later than `after`, both in seconds since 1970.

    Times are those of the local zone: one that summer time leaves out comes an hour later, one repeated counts once. Of
    an hour, there is what the clock shows: where it is set by half an hour, one comes later or is left out.
    """
    start = datetime.fromtimestamp(after)  # naive on purpose: local time
    if calendar.hour is None:
        at = after - start.second - start.microsecond / 1e6 + 60.0
        while not _shows(calendar.minute, at):
            at += 60.0
        return at
    day = start.date()
    while True:
        if _falls_on(calendar, day):
            moment = datetime(day.year, day.month, day.day, calendar.hour, calendar.minute).timestamp()
            if moment > after:
                return moment
        day += timedelta(days=1)


def _shows(minute: int, at: float) -> bool:
    """Whether the local clock shows this minute then, and has not shown the same within the hour before."""
    local = datetime.fromtimestamp(at)
    repeated = local.fold and at - local.replace(fold=0).timestamp() < 3600
    return local.minute == minute and not repeated


def _falls_on(calendar: Calendar, day: date) -> bool:
    if calendar.weekday is not None:
        return day.weekday() == calendar.weekday
    return calendar.day is None or day.day == calendar.day
