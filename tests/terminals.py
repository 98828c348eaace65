"""A terminal without a screen or keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from daemon.client.console.terminal import Terminal


class Played(Terminal):
    """A terminal whose keys are given; after the last one it is gone (None in the list: a time-out)."""

    def __init__(self, keys: Sequence[str | None], columns: int = 40) -> None:
        self.keys = list(keys)
        self.columns = columns
        self.written = ""
        self.interactive = True

    @property
    def pending(self) -> bool:
        return False

    def size(self) -> tuple[int, int]:
        return self.columns, 10

    def write(self, text: str) -> None:
        self.written += text

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        yield

    def key(self, seconds: float | None = None) -> str | None:
        if not self.keys:
            raise EOFError
        return self.keys.pop(0)
