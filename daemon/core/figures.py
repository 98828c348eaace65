"""Figures of what parts do, for whoever collects figures: a part that has some has a method `figures`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from daemon.linux.log import log


class Family(NamedTuple):
    """Samples of one kind. name: as Prometheus wants it, `mixos_PART_WHAT_UNIT`, with `_total` for a counter; help: a
    sentence; rows: labels and value of each sample, None when it is not known."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    rows: Sequence[tuple[Mapping[str, str], float | None]]


class Figures:
    """Those of the parts that are up, by the part's name."""

    def __init__(self) -> None:
        self._sources: dict[str, Callable[[], Iterable[Family]]] = {}

    def offer(self, part: str, source: Callable[[], Iterable[Family]]) -> None:
        """source: answers at once, without waiting for anything."""
        self._sources[part] = source

    def withdraw(self, part: str) -> None:
        """The part has ended or failed."""
        self._sources.pop(part, None)

    def families(self) -> Iterator[Family]:
        """All of them; a part that fails to say its own has none."""
        for part, source in self._sources.items():
            try:
                yield from list(source())
            except Exception as error:  # noqa: BLE001  # the others' are wanted all the same
                log("err", f"figures of {part}: {type(error).__name__}: {error}")
