"""What a part has to offer so that its files are put in force by a change, on trial or for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import Field

from common.errors import ConfigError, MixosError
from common.files import read_regular
from common.text import decoded
from common.tomlfile import MAX_BYTES, Strict
from daemon.core.change.files import Step, Trees
from daemon.core.change.record import Contents, Record
from daemon.core.method import Caller

ETC, STATE = "etc/mixos/", "var/lib/mixos/"


class Wish(Strict):
    """How a change is to be made; unless something else is said: for good, but on trial where the caller's connection
    could be cut."""

    dry_run: Annotated[bool, Field(strict=True, description="only say what would be done")] = False
    force: Annotated[bool, Field(strict=True, description="for good, even if it cuts the caller off")] = False
    confirm: Annotated[
        Annotated[int, Field(strict=True, ge=0, le=3600)] | None,
        Field(description="seconds after which it is undone unless confirmed; 0: for good"),
    ] = None


@dataclass
class Plan:
    """What a part would do, and did. contents: its files as they will be in force; steps: for people, one a line; diff:
    where rules tell more than steps (`apply` may complete it); changes: whether anything would change; cuts: whether
    the caller's connection could be cut; before: what it needs to go back, as JSON; data: the part's own."""

    contents: Contents
    steps: Sequence[str] = ()
    diff: str = ""
    changes: bool = True
    cuts: bool = False
    before: Mapping[str, Any] = field(default_factory=dict)
    data: Any = None


class View:
    """What the files of the device hold, or would hold."""

    def __init__(self, places: Trees, changed: Mapping[str, bytes | Path | None] | None = None) -> None:
        self.places = places
        self.changed = {} if changed is None else changed

    def read(self, name: str, most: int = -1) -> bytes | None:
        """The content, its first `most` bytes; None when there is no such file. Raises OSError."""
        found = self.changed.get(name) if name in self.changed else self.places.place(name)
        try:
            return read_regular(found, most) if isinstance(found, Path) else found
        except (FileNotFoundError, NotADirectoryError):
            return None

    def text(self, name: str, limit: int = MAX_BYTES) -> str | None:
        """The same as text. Raises ConfigError `config-unreadable`, `config-too-large`, `config-encoding`."""
        path = self.places.place(name)
        try:
            data = self.read(name, limit + 1)
            if data is not None and len(data) > limit:
                raise ConfigError(f"{path}: larger than {limit} bytes", reason="config-too-large")
            return None if data is None else decoded(data, path)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", reason="config-unreadable") from error

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder ("etc/mixos/lists"), as whole names."""
        try:
            there = {f"{folder}/{path.name}" for path in self.places.place(folder).iterdir() if path.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        there |= {name for name in self.changed if name.rpartition("/")[0] == folder}
        return sorted(name for name in there if self.changed.get(name, b"") is not None)


class Applier(Protocol):
    """A part that has something to put in force for its files. When what it does outlives a reboot, it has an attribute
    `lasts` that is true: then it is undone after one, too."""

    name: str

    def owns(self, name: str) -> bool:
        """Whether a file is one of its own."""

    def in_force(self) -> Contents:
        """Its files as they are in force now (None: there was none); those that it does not name are as on the disk."""

    async def prepare(self, view: View, caller: Caller | None, dry_run: bool) -> Plan:
        """What it would do; caller: who must not be cut off, None at a start (then
        what is so already is left alone, and what can wait may wait). Touches nothing. Raises MixosError for
        what cannot be put in force."""

    async def apply(self, plan: Plan, step: Step) -> None:
        """Do it. What is raised half-way makes the engine undo it."""

    async def undo(self, before: Mapping[str, Any], view: View) -> None:
        """Make it what it was, from wherever it stands; it may be called again. before: of the plan, empty when the
        device was started since: then `view` alone tells. Raises MixosError, OSError."""

    async def kept(self) -> None:
        """What is in force is so for good: write what the next boot needs."""


class Candidate(NamedTuple):
    """Contents that a part may put in force at its start. problem: why it is not what the files say; files: it is what
    they say; trial: it is on trial."""

    view: View
    problem: MixosError | None = None
    files: bool = False
    trial: Record | None = None
