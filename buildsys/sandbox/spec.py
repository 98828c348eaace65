"""What one sandboxed process sees, as data. `enter.py` reads it in the child; this side only describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """A host path shown at a path of the sandbox: read-only unless it is the action's own scratch or output."""

    host: str
    inside: str
    writable: bool = False


@dataclass(frozen=True)
class SandboxSpec:
    """Everything that decides what a sandboxed process sees and is.

    root:    an empty directory of the caller's, used as the mount point of the new root.
    argv:    the program inside the sandbox; cwd its working directory.
    env:     its whole environment.
    mounts:  host paths to show, in order.
    links:   symbolic links to create in the new root (path → target).
    fds:     open descriptors to keep (the jobserver); 0, 1 and 2 always stay.
    interactive: the program keeps the caller's terminal (a shell for people).
    """

    root: str
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    links: Mapping[str, str]
    fds: tuple[int, ...] = ()
    interactive: bool = False

    def to_json(self) -> str:
        """The form that `enter.py` reads."""
        return json.dumps({**asdict(self), "env": dict(self.env), "links": dict(self.links)})


ENTER = Path(__file__).with_name("enter.py")
