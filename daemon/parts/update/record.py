"""What is remembered of updates: what happened, which images are not to be started again, how the last boots went.

One file, replaced whole. It decides nothing about what boots: that is on the ESP and in the partition table. Without it
(the data partition was lost) reasons are missing, and nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.files import read_regular, write_atomically
from daemon.linux.log import log

MAX_HISTORY = 200
MAX_BYTES = 8 << 20
What = Literal[
    "installed",
    "committed",
    "failed",
    "fell-back",
    "rolled-back",
    "given-up",
    "cleared",
    "repaired",
    "firmware-changed",
    "firmware-refused",
    "refused",
]


class _Kept(BaseModel):
    """What another version adds is left out: the older one must know what failed, above all after a fall-back."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Happened(_Kept):
    """at: seconds since 1970; reason: for people."""

    at: float
    what: What
    version: str
    slot: str | None = None
    reason: str | None = None


class Blocked(_Kept):
    """An image that is not installed or started again until somebody clears it."""

    version: str
    reason: str
    at: float


class Trial(_Kept):
    """An image that was started and not yet called good. boots: boot-IDs of its starts; problem: what it waited for
    when that was last looked at."""

    root_hash: str
    version: str
    boots: tuple[str, ...] = ()
    problem: str | None = None


class Staged(_Kept):
    """A release that is in the slot which does not run, and that nothing starts yet. order: what it was made by."""

    version: str
    sequence: int
    root_hash: str
    slot: str
    at: float
    order: str


class Adding(_Kept):
    """An addition to firmware's databases that is under way. digest: SHA-256; tries: boots in which it was tried."""

    digest: str
    tries: int


class Refused(_Kept):
    """An addition that firmware did not take. by: root hash of the image that tried, in hex."""

    by: str
    reason: str


class Record(_Kept):
    """The file. installed_in: the boot-ID in which the last image was installed: a commit needs another one; floor: the
    lowest sequence that may be installed; in_tpm: the floor that a TPM was last seen to keep; network: whether there
    was a way out when it was installed; added_in: the boot-ID in which the last addition to firmware was tried;
    refused: additions, by SHA-256."""

    format: Literal[1] = 1
    history: tuple[Happened, ...] = ()
    blocked: dict[str, Blocked] = Field(default={})  # by root hash, in hex
    given_up: tuple[str, ...] = ()  # root hashes that an operator has left
    trial: Trial | None = None
    installed_in: str | None = None
    floor: int = 0
    in_tpm: int = 0
    network: bool = False
    staged: Staged | None = None
    adding: Adding | None = None
    added_in: str | None = None
    refused: dict[str, Refused] = Field(default={})

    def lowest(self, release: Mapping[str, str], *, good: bool) -> int:
        """The lowest sequence that may be installed: what an image that was called good brings counts, whatever became
        of the file. release: its facts."""
        return max(self.floor, int(release.get("MIXOS_FLOOR", "0")) if good else 0)


class Records:
    """The file, and its only writer."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.now = Record()
        self._clock = clock

    def load(self) -> None:
        """Read the file; one that is damaged is kept beside and begun anew."""
        try:
            self.now = Record.model_validate_json(read_regular(self.path, MAX_BYTES))
        except FileNotFoundError:
            self.now = Record()
        except (OSError, ValidationError) as error:
            log("err", f"update: {self.path} is not readable, and begun anew: {type(error).__name__}")
            if self.path.exists():
                self.path.replace(self.path.with_suffix(".damaged"))
            self.now = Record()

    def change(self, **values: object) -> None:
        """Replace some members, and write. Raises OSError."""
        self.now = Record.model_validate({**self.now.__dict__, **values})
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps(self.now.model_dump(mode="json", exclude_defaults=True), indent=1) + "\n"
        write_atomically(self.path, text.encode(), 0o600)

    def happened(self, what: What, version: str, slot: str | None = None, reason: str | None = None) -> Happened:
        """An entry for the history, which `change` writes."""
        return Happened(at=round(self._clock(), 3), what=what, version=version, slot=slot, reason=reason)

    def history(self, *more: Happened) -> tuple[Happened, ...]:
        """The history with more at its end, the oldest of too many left out."""
        return (*self.now.history, *more)[-MAX_HISTORY:]
