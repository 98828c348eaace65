"""What keeps a unit waiting: the units that come first. Pure, over the states of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from daemon.parts.service.graph import Graph
from daemon.parts.service.states import State


@dataclass(frozen=True)
class Obstacle:
    """reason: what is waited for; fatal: it cannot come any more, and the unit requires it."""

    reason: str
    fatal: bool = False


class Neighbour(Protocol):
    """What must be known of the other units. up: others may build on it; active: something is going on."""

    @property
    def state(self) -> State:
        """Where it is."""

    @property
    def up(self) -> bool:
        """Whether others may build on it."""

    @property
    def active(self) -> bool:
        """Whether something is going on."""


def obstacle(name: str, graph: Graph, units: Mapping[str, Neighbour], pausing: Collection[str]) -> Obstacle | None:
    """The first thing that unit `name` has to wait for. pausing: units that are about to be restarted, so that nobody
    may build on them even if they are still up.

    A unit that only comes first is waited for until its first try has ended; one that is required until it is up.
    """
    if name not in graph.units:
        return None
    required = graph.units[name].unit.requires
    for other in sorted(graph.ups[name]):
        it, must = units[other], other in required
        if other in pausing or not (it.up or not it.active or (it.state is State.BACKOFF and not must)):
            return Obstacle(f"for {other}")
        if must and not it.up:
            return Obstacle(f"requires {other}, which is {it.state}", fatal=True)
    for other in sorted(graph.ends[name]):
        if units[other].active:
            return Obstacle(f"for the end of {other}")
    for other in sorted(graph.rivals[name]):
        if units[other].active:
            return Obstacle(f"until {other} has stopped")
    return None
