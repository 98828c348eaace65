"""What of network.toml is in force, and for how long: a change can be on trial until somebody confirms it.

Two files in the state folder tell it after any crash:

    applied.toml   what is in force and confirmed
    trial.json     {"state": "trial", "text": what is tried} or {"state": "reverted", "refused": sha256 of the file}

Writing them raises MixosError `net-state`, such as on a full disk.

At start the file is put in force as it is, with two exceptions: a text that was on trial when the daemon or the device
stopped is refused until it changes, and a text that is no valid file is not used; then what was confirmed last is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, NamedTuple

from common.errors import MixosError
from common.files import sync_folder, write_atomically
from common.tomlfile import parse, read_text
from daemon.parts.net.netfile import NetworkFile

State = Literal["", "trial", "reverted"]


class Chosen(NamedTuple):
    """What to put in force. problem: why it is not the file, or None."""

    text: str
    config: NetworkFile
    problem: MixosError | None


class Journal:
    """network.toml, what was confirmed of it, and what was not."""

    def __init__(self, file: Path, state: Path) -> None:
        self.file = file
        self.applied = state / "applied.toml"
        self.journal = state / "trial.json"

    def read(self) -> tuple[str, NetworkFile]:
        """The file as it is now; no file says nothing. Raises ConfigError."""
        text = read_text(self.file) if self.file.exists() else ""
        return text, parse(text, self.file, NetworkFile)

    def last(self) -> tuple[str, NetworkFile]:
        """What was confirmed last; nothing when there is no such record, or one that this version cannot read."""
        try:
            text = read_text(self.applied)
            return text, parse(text, self.applied, NetworkFile)
        except MixosError:
            return "", NetworkFile()

    @property
    def state(self) -> State:
        """Whether a trial runs, or one was reverted and its text is refused."""
        found = self._load().get("state", "")
        return "trial" if found == "trial" else "reverted" if found == "reverted" else ""

    def begin(self, text: str) -> None:
        """`text` goes on trial."""
        self._store({"state": "trial", "text": text})

    def tried(self) -> tuple[str, NetworkFile]:
        """What was put in force last: the text on trial, or what was confirmed."""
        if self.state == "trial":
            try:
                text = str(self._load().get("text", ""))
                return text, parse(text, self.file, NetworkFile)
            except MixosError:
                pass  # another version wrote it
        return self.last()

    def confirm(self, text: str) -> None:
        """`text` is in force for good."""
        self._write(self.applied, text.encode())
        self.journal.unlink(missing_ok=True)
        sync_folder(self.applied.parent)

    def revert(self) -> None:
        """The trial is over, unconfirmed: what it tried, and what the file says now, is refused."""
        try:
            text = read_text(self.file) if self.file.exists() else ""
        except MixosError:
            text = ""  # no file at all is what is refused: nobody has tried another one
        self._store({"state": "reverted", "refused": _digest(text)})

    def choose(self) -> Chosen:
        """What shall be in force, outside of a trial; never raises for what a file says."""
        try:
            text, config = self.read()
        except MixosError as error:
            return Chosen(*self.last(), error)
        if self.state == "reverted" and self._load().get("refused") == _digest(text):
            before = self.last()
            if before[0] != text:
                problem = MixosError(
                    f"{self.file} was tried and not confirmed", reason="net-unconfirmed", hint="mixctl net apply"
                )
                return Chosen(*before, problem)
        return Chosen(text, config, None)

    def _load(self) -> dict[str, str]:
        try:
            found = json.loads(self.journal.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _store(self, record: dict[str, str]) -> None:
        self._write(self.journal, json.dumps(record).encode())

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, data, 0o600)
        except OSError as error:
            raise MixosError(
                f"{path} cannot be written: {error.strerror}", reason="net-state", hint="mixctl storage usage"
            ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
