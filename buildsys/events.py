"""What happens during long work, as data. The terminal display, the plain lines and the JSON stream only listen."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO


@dataclass(frozen=True)
class Event:
    """Base of everything that a sink can be told."""


@dataclass(frozen=True)
class BuildPlanned(Event):
    """The plan is known: how many actions it has."""

    actions: int


@dataclass(frozen=True)
class ActionStarted(Event):
    """An action begins to execute."""

    action: str
    estimate: float | None


@dataclass(frozen=True)
class ActionFinished(Event):
    """An action is done. how: 'cached' (result found), 'built', or 'same' (built, and the output did not change)."""

    action: str
    how: str
    seconds: float


@dataclass(frozen=True)
class ActionFailed(Event):
    """An action failed; `log` is the file with all of its output."""

    action: str
    log: str


@dataclass(frozen=True)
class FetchProgress(Event):
    """Bytes of a source received so far, out of total (None: unknown)."""

    source: str
    received: int
    total: int | None


@dataclass(frozen=True)
class Fetched(Event):
    """A source is there and verified; `origin` is where it came from."""

    source: str
    origin: str


@dataclass(frozen=True)
class Note(Event):
    """Something a person should know but need not act on at once. level: 'info' or 'warning'."""

    level: str
    text: str


Sink = Callable[[Event], None]


def json_sink(stream: IO[str]) -> Sink:
    """Write events as JSON text sequences (RFC 7464 without the record separator): one object per line."""
    lock = threading.Lock()

    def write(event: Event) -> None:
        line = json.dumps({"event": type(event).__name__, "time": round(time.time(), 3), **asdict(event)})
        with lock:
            stream.write(line + "\n")
            stream.flush()

    return write
