"""Builds in a store of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from buildsys import schedule
from buildsys.events import ActionFinished, Event
from buildsys.execute import Executor
from buildsys.fetch import Fetcher
from buildsys.graph import Action, Plan, Script
from buildsys.jobserver import Jobserver
from buildsys.lock import Lock
from buildsys.store import Result, Store


class Builder:
    """A store of its own, and the events of the last build."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.events: list[Event] = []

    def __call__(self, *actions: Action) -> dict[str, Result]:
        self.events.clear()
        with self.executor() as executor:
            return schedule.build(Plan.of(actions), [action.name for action in actions], executor)

    @contextmanager
    def executor(self) -> Iterator[Executor]:
        jobserver = Jobserver(2)
        fetcher = Fetcher(self.store.root, self.events.append, offline=True)
        try:
            yield Executor(self.store, fetcher, Lock(Path("lock"), {}), 1703030400, jobserver, self.events.append)
        finally:
            jobserver.close()

    def how(self) -> dict[str, str]:
        return {event.action: event.how for event in self.events if isinstance(event, ActionFinished)}

    def read(self, result: Result, name: str) -> str:
        return (self.store.tree(result.output) / name).read_text()


def script(name: str, text: str, **inputs: object) -> Action:
    return Action(name, Script(text), inputs)  # type: ignore[arg-type]
