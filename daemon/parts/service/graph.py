"""The dependency graph: what starts with a unit, in which order, what stops with it. Pure functions over unit models.

Two questions are kept apart. *What comes along*: `requires` and `wants`. *What is first*: `after`, `before`,
`after-exit`, and `requires` too, since nothing can use what is not up yet. Stopping is starting read backwards.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from common.errors import ConfigError, NotFoundError, RefusedError
from daemon.parts.service.unit import Unit

DEPENDENCIES = ("requires", "wants", "after", "before", "after_exit", "conflicts", "on_failure")
_STYLES = {"requires": "solid", "wants": "dashed", "after": "dotted", "after_exit": "dotted"}


@dataclass(frozen=True)
class Plan:
    """What a start does. steps: units that start together, one step after the other. stops: what is stopped before.

    missing: wanted units that cannot be loaded and are left out.
    """

    steps: tuple[tuple[str, ...], ...]
    stops: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All units that start, in order."""
        return tuple(name for step in self.steps for name in step)


class Graph:
    """The units that are in force, by name, and their relations in both directions."""

    def __init__(self, units: Mapping[str, Unit], broken: Mapping[str, str] | None = None) -> None:
        """broken: unit → what is wrong with its file, for those that are not in force and thus not in `units`."""
        self.units = units
        self.broken = broken or {}
        self.ups: dict[str, set[str]] = {name: set() for name in units}  # must be up before
        self.ends: dict[str, set[str]] = {name: set() for name in units}  # must have ended before
        self.needed_by: dict[str, set[str]] = {name: set() for name in units}
        self.rivals: dict[str, set[str]] = {name: set() for name in units}
        self.followers: dict[str, set[str]] = {name: set() for name in units}  # those that may be waiting for it
        for name, unit in units.items():
            about = unit.unit
            self.ups[name] |= {*about.requires, *about.after} & units.keys()
            self.ends[name] |= set(about.after_exit) & units.keys()
            for other in set(about.before) & units.keys():
                self.ups[other].add(name)
            for other in set(about.requires) & units.keys():
                self.needed_by[other].add(name)
            for other in set(about.conflicts) & units.keys():
                self.rivals[name].add(other)
                self.rivals[other].add(name)
        for name in units:
            for other in self.ups[name] | self.ends[name] | self.rivals[name]:
                self.followers[other].add(name)

    def first(self, name: str) -> set[str]:
        """The units that come before `name`, when they start or stop together."""
        return self.ups[name] | self.ends[name]

    def start(self, names: Iterable[str]) -> Plan:
        """The plan to start `names` with all that comes along.

        Raises like `known`, RefusedError `unit-dependency` (something required cannot be loaded) or
        `unit-conflict` (two of the units exclude each other).
        """
        found: set[str] = set()
        missing: set[str] = set()
        todo = [self.known(name) for name in names]
        while todo:
            name = todo.pop()
            if name in found:
                continue
            found.add(name)
            about = self.units[name].unit
            if lost := [other for other in about.requires if other not in self.units]:
                raise RefusedError(f"{name} requires {lost[0]}, which is broken", reason="unit-dependency")
            missing |= {other for other in about.wants if other not in self.units}
            todo += [other for other in (*about.requires, *about.wants) if other in self.units]
        for name in sorted(found):
            if clash := self.rivals[name] & found:
                raise RefusedError(
                    f"{name} and {min(clash)} exclude each other, and both would start", reason="unit-conflict"
                )
        stops = {other for name in found for other in self.rivals[name]}
        return Plan(self.steps(found), tuple(sorted(stops)), tuple(sorted(missing)))

    def stop(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names` and all that requires them, in the order in which they stop: the reverse of their start."""
        found: set[str] = set()
        todo = [self.known(name) for name in names]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.needed_by[name]
        return tuple(name for step in reversed(self.steps(found)) for name in step)

    def steps(self, names: Collection[str]) -> tuple[tuple[str, ...], ...]:
        """`names` in layers: each layer needs only earlier ones. The graph must have no cycle."""
        left, steps = {name: self.first(name) & set(names) for name in names}, []
        while left:
            layer = sorted(name for name, before in left.items() if not before & left.keys())
            if not layer:
                raise AssertionError("a cycle passed the check of the loader")
            steps.append(tuple(layer))
            for name in layer:
                del left[name]
        return tuple(steps)

    def known(self, name: str) -> str:
        """The name itself.

        Raises ConfigError `unit-broken` with its mistakes, NotFoundError `unit-unknown` with what is like it.
        """
        if name in self.units:
            return name
        if name in self.broken:
            raise ConfigError(
                self.broken[name], reason="unit-broken", hint="correct the file, then 'mixctl service reload'"
            )
        near = difflib.get_close_matches(name, self.units, n=1)
        raise NotFoundError(
            f"there is no unit '{name:.60}'",
            reason="unit-unknown",
            hint=f"did you mean '{near[0]}'?" if near else "'mixctl service list' shows all",
        )

    def cycle(self) -> tuple[str, ...]:
        """A cycle of the order, first unit repeated at the end (a, b, a: a waits for b); empty when there is none."""
        done: set[str] = set()
        for root in sorted(self.units):
            path: list[str] = []
            trail: list[Iterator[str]] = [iter([root])]
            while trail:
                name = next(trail[-1], None)
                if name is None:
                    trail.pop()
                    if path:
                        done.add(path.pop())
                elif name in path:
                    return (*path[path.index(name) :], name)
                elif name not in done:
                    path.append(name)
                    trail.append(iter(sorted(self.first(name))))
        return ()

    def text(self, names: Iterable[str] = ()) -> str:
        """The graph as indented lines: under each unit what it depends on, and how. A unit is unfolded once."""
        lines: list[str] = []
        seen: set[str] = set()
        tops = [name for name in sorted(self.units) if not any(name in self.first(other) for other in self.units)]
        todo = [(self.known(name), 0, "") for name in reversed(list(names) or tops)]
        while todo:
            name, depth, how = todo.pop()
            again = name in seen and bool(self._edges(name))
            lines.append("  " * depth + (f"{how} " if how else "") + name + (" …" if again else ""))
            if name not in seen:
                seen.add(name)
                todo += [(other, depth + 1, word) for other, word in sorted(self._edges(name), reverse=True)]
        return "\n".join(lines)

    def dot(self) -> str:
        """The graph for Graphviz: arrows point at what is needed; solid requires, dashed wants, dotted order only."""
        lines = ["digraph units {", "  rankdir=LR;", *(f'  "{name}";' for name in sorted(self.units))]
        for name in sorted(self.units):
            for other, how in sorted(self._edges(name)):
                label = f', label="{how}"' if how == "after-exit" else ""
                style = _STYLES[how.replace("-", "_")]
                lines.append(f'  "{name}" -> "{other}" [style={style}{label}];')
        return "\n".join([*lines, "}"])

    def _edges(self, name: str) -> set[tuple[str, str]]:
        """(other, strongest relation) of what `name` depends on."""
        about = self.units[name].unit
        edges: dict[str, str] = dict.fromkeys(self.ups[name], "after")
        edges |= dict.fromkeys(self.ends[name], "after-exit")
        edges |= {other: "wants" for other in about.wants if other in self.units}
        edges |= {other: "requires" for other in about.requires if other in self.units}
        return set(edges.items())
