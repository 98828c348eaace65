"""Shows events to a person: a live status on a terminal, plain lines anywhere else."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import IO

from buildsys.events import (
    ActionFailed,
    ActionFinished,
    ActionStarted,
    BuildPlanned,
    Event,
    Fetched,
    FetchProgress,
    Note,
)
from common.safe import printable
from common.units import size

REFRESH_SECONDS = 0.25


def human_seconds(seconds: float) -> str:
    """75 → '1:15'."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Display:
    """An event sink for people. Use as a context manager: the live line is cleared at the end."""

    def __init__(self, stream: IO[str] | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty() and not quiet
        self._quiet = quiet
        self._guard = threading.Lock()
        self._begin = time.monotonic()
        self._total = self._done = self._cached = 0
        self._running: dict[str, tuple[float, float | None]] = {}
        self._fetches: dict[str, tuple[int, int | None]] = {}
        self._shown_fetch: dict[str, int] = {}
        self._end = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Display:
        if self._live:
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._live:
            self._ticker.join()
            self._clear()

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        with self._guard:
            line = self._take(event)
            if line is not None and not self._quiet:
                self._clear()
                print(printable(line), file=self._stream, flush=True)

    def _take(self, event: Event) -> str | None:
        """Update the state; the line to print, if any."""
        match event:
            case BuildPlanned():
                self._total = event.actions
            case ActionStarted():
                self._running[event.action] = (time.monotonic(), event.estimate)
                about = f" (about {human_seconds(event.estimate)})" if event.estimate and event.estimate > 1 else ""
                return f"{self._count()} {event.action} …{about}"
            case ActionFinished():
                self._running.pop(event.action, None)
                self._done += 1
                if event.how == "cached":
                    self._cached += 1
                    return None
                note = ", output unchanged" if event.how == "same" else ""
                return f"{self._count()} {event.action} done in {event.seconds:.1f} s{note}"
            case ActionFailed():
                self._running.pop(event.action, None)
                return f"{self._count()} {event.action} FAILED; log: {event.log}"
            case FetchProgress():
                return self._fetching(event)
            case Fetched():
                self._fetches.pop(event.source, None)
                return f"{self._count()} fetched {event.source} from {event.origin}"
            case Note():
                return f"{'WARNING: ' if event.level == 'warning' else ''}{event.text}"
        return None

    def _fetching(self, event: FetchProgress) -> str | None:
        """Live terminals redraw; elsewhere one line for every quarter of a large file."""
        self._fetches[event.source] = (event.received, event.total)
        if self._live or not event.total or event.total < 8 << 20:
            return None
        quarter = 4 * event.received // event.total
        if quarter == self._shown_fetch.get(event.source, 0):
            return None
        self._shown_fetch[event.source] = quarter
        return f"{self._count()} fetching {event.source}: {quarter * 25} % of {size(event.total)}"

    def _count(self) -> str:
        return f"[{self._done}/{self._total}]" if self._total else "[-]"

    def _tick(self) -> None:
        while not self._end.wait(REFRESH_SECONDS):
            with self._guard:
                width = shutil.get_terminal_size().columns
                self._stream.write("\r\x1b[K" + self._status()[: width - 1])
                self._stream.flush()

    def _status(self) -> str:
        now = time.monotonic()
        parts = []
        for name, (begin, estimate) in self._running.items():
            left = f", {human_seconds(max(0.0, estimate - (now - begin)))} left" if estimate else ""
            parts.append(f"{name} {human_seconds(now - begin)}{left}")
        for name, (received, total) in self._fetches.items():
            parts.append(f"↓{name} {100 * received // total} %" if total else f"↓{name} {size(received)}")
        return f"{self._count()} {human_seconds(now - self._begin)} · " + " · ".join(parts)

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")

    @property
    def worked(self) -> bool:
        """Was anything built or looked up at all?"""
        return self._done > 0

    def summary(self) -> str:
        """The closing line: what was done and how much of it was there already."""
        seconds = time.monotonic() - self._begin
        return f"{self._done} actions in {seconds:.1f} s, {self._cached} of them from the store"
