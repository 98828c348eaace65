"""The immutable plan: actions, what each reads, and the order that follows. Nothing here touches the world."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import BuildError, UsageError


@dataclass(frozen=True)
class Script:
    """Shell text, run by `/bin/sh -eu` inside the sandbox.

    module: one of ours that it starts as a program, by the words in $MODULE; it is part of the key as a Call's is.
    """

    text: str
    module: str = ""


@dataclass(frozen=True)
class Call:
    """A Python function `f(job: Job) -> None`, named 'module:function', with JSON-like parameters."""

    function: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FromAction:
    """The output tree of another action, or one path of it: then nothing else in it can cause a rebuild."""

    action: str
    path: str = ""


@dataclass(frozen=True)
class FromSource:
    """A locked source file, by its name in sources.lock."""

    source: str


@dataclass(frozen=True)
class FromPath:
    """A file or folder on this machine, by content: part of the repository, or a tree the user named.

    only: glob patterns relative to the folder; empty means everything except caches. hide: names at the top of a folder
    that are not part of the input and that the action does not see.
    """

    path: Path
    only: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()


Input = FromAction | FromSource | FromPath


@dataclass(frozen=True)
class Action:
    """One step: what runs, on which inputs (name → input, seen at /in/<name>), with what environment and host tools.

    seconds: how long a first run may take, only used to order actions that were never run here.
    """

    name: str
    run: Script | Call
    inputs: Mapping[str, Input]
    env: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    seconds: float = 2.0

    @property
    def dependencies(self) -> tuple[str, ...]:
        """Names of the actions whose outputs this one reads, sorted."""
        return tuple(sorted({value.action for value in self.inputs.values() if isinstance(value, FromAction)}))


@dataclass(frozen=True)
class Plan:
    """All actions by name. `order` raises when they do not form a graph without cycles."""

    actions: Mapping[str, Action]

    @classmethod
    def of(cls, actions: Iterable[Action]) -> Plan:
        """Collect actions; two of the same name are a defect of the caller."""
        table: dict[str, Action] = {}
        for action in actions:
            if action.name in table:
                raise BuildError(f"two actions are named '{action.name}'", reason="action-duplicate")
            table[action.name] = action
        return cls(table)

    def order(self, targets: Iterable[str]) -> list[str]:
        """Targets and everything below them, dependencies first. Raises for unknown names and cycles."""
        done: dict[str, bool] = {}
        result: list[str] = []
        for target in targets:
            if target not in self.actions:
                close = difflib.get_close_matches(target, self.actions, n=1)
                meant = f"did you mean '{close[0]}'? " if close else ""
                raise UsageError(
                    f"there is no target '{target}'", reason="target-unknown", hint=f"{meant}'mixos plan' lists all"
                )
            self._visit(target, done, result, [])
        return result

    def _visit(self, name: str, done: dict[str, bool], result: list[str], trail: list[str]) -> None:
        if done.get(name):
            return
        if name in done:
            cycle = [*trail[trail.index(name) :], name]
            raise BuildError(f"actions depend on each other: {' → '.join(cycle)}", reason="plan-cycle")
        done[name] = False
        for dependency in self.actions[name].dependencies:
            if dependency not in self.actions:
                raise BuildError(f"'{name}' needs '{dependency}', which does not exist", reason="action-missing")
            self._visit(dependency, done, result, [*trail, name])
        done[name] = True
        result.append(name)
