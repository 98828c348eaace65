"""The daemon's events: something happened, now, for whoever listens. History is the log's and the audit's business.

A listener that does not keep up loses the oldest events and is told how many: the daemon never waits for a client.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

QUEUE = 1000  # events that one listener may be behind


class Event(NamedTuple):
    """topic: `part.what` ("service.exited"); subject: the thing's name ("hello"); at: seconds since 1970."""

    topic: str
    subject: str
    at: float
    data: Mapping[str, Any]


class Bus:
    """Hands events to listeners within this process."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()

    def publish(self, topic: str, subject: str, /, **data: Any) -> None:
        """Tell every listener; never blocks, never fails. `data` must be what JSON can say."""
        self.hand(Event(topic, subject, time.time(), data))

    def hand(self, event: Event) -> None:
        """Hand an event to the listeners of this process."""
        for listener in self._listeners:
            listener.offer(event)

    async def listen(self, prefix: str | tuple[str, ...] = "") -> AsyncIterator[Event]:
        """Events from now on whose topic begins with `prefix`, or one of several, until the caller stops iterating."""
        listener = _Listener(prefix)
        self._listeners.add(listener)
        try:
            while True:
                yield await listener.take()
        finally:
            self._listeners.discard(listener)


class _Listener:
    def __init__(self, prefix: str | tuple[str, ...]) -> None:
        self.prefix = prefix
        self.queue: deque[Event] = deque()
        self.lost = 0
        self.there = asyncio.Event()

    def offer(self, event: Event) -> None:
        if not event.topic.startswith(self.prefix):
            return
        if len(self.queue) == QUEUE:
            self.queue.popleft()
            self.lost += 1
        self.queue.append(event)
        self.there.set()

    async def take(self) -> Event:
        while not self.queue:
            self.there.clear()
            await self.there.wait()
        if self.lost:
            lost, self.lost = self.lost, 0
            return Event("events.lost", "", time.time(), {"count": lost})
        return self.queue.popleft()
