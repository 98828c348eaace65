"""Figures of what parts do, and what of it is not well, for whoever collects both: a part that has some has a method
`figures`, or `findings`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from daemon.linux.log import log

Said = TypeVar("Said")


class Family(NamedTuple):
    """Samples of one kind. name: as Prometheus wants it, `mixos_PART_WHAT_UNIT`, with `_total` for a counter; help: a
    sentence; rows: labels and value of each sample, None when it is not known."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    rows: Sequence[tuple[Mapping[str, str], float | None]]


class Finding(NamedTuple):
    """Something that is not well. check: a stable word; text: for people, bounded."""

    check: str
    state: Literal["warning", "critical"]
    text: str


class Figures:
    """Those of the parts that are up, by the part's name."""

    def __init__(self) -> None:
        self._families: dict[str, Callable[[], Iterable[Family]]] = {}
        self._findings: dict[str, Callable[[], Iterable[Finding]]] = {}

    def offer(
        self,
        part: str,
        figures: Callable[[], Iterable[Family]] | None = None,
        findings: Callable[[], Iterable[Finding]] | None = None,
    ) -> None:
        """Both answer at once, without waiting for anything."""
        if figures is not None:
            self._families[part] = figures
        if findings is not None:
            self._findings[part] = findings

    def withdraw(self, part: str) -> None:
        """The part has ended or failed."""
        self._families.pop(part, None)
        self._findings.pop(part, None)

    def families(self) -> Iterator[Family]:
        """All of them; a part that fails to say its own has none."""
        return self._all(self._families)

    def findings(self) -> Iterator[Finding]:
        """All of them, likewise."""
        return self._all(self._findings)

    @staticmethod
    def _all(sources: Mapping[str, Callable[[], Iterable[Said]]]) -> Iterator[Said]:
        for part, source in sources.items():
            try:
                yield from list(source())
            except Exception as error:  # noqa: BLE001  # the others' are wanted all the same
                log("err", f"figures of {part}: {type(error).__name__}: {error}")
