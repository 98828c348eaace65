"""What the firewall keeps: the last good source, its compiled rules, and a change that waits for confirmation.

    /etc/mixos/firewall.toml, lists/*    what people write; commands change them only when a change is final
    STATE/firewall/good.json             the source that is in force for good
    STATE/firewall.json                  its rules, for init to load before Python runs: `nft -j -f FILE`
    STATE/firewall/pending.json          a change in force that is undone unless it is confirmed in time
    STATE/firewall/committed.json        the same after its confirmation, until its files are written
    STATE/firewall/refused               digest of a source that was undone: not taken up again at the next start

A pending change lives in its own file alone, so that a crash at any moment leaves either the old files (and the next
start goes back to them) or the new ones, whole. Deadlines are on CLOCK_BOOTTIME and bound to one boot: setting the
clock does not move them, and a reboot ends them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import MixosError
from common.files import sync_folder, write_atomically
from daemon.core.part import Context
from daemon.parts.firewall.policy import Source

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Pending(NamedTuple):
    """A change that waits. deadline: seconds on CLOCK_BOOTTIME. who: the caller's name."""

    source: Source
    deadline: float
    who: str

    @property
    def left(self) -> float:
        """Seconds until it is undone."""
        return max(0.0, self.deadline - time.clock_gettime(time.CLOCK_BOOTTIME))


class Store:
    """The files of one device."""

    def __init__(self, context: Context) -> None:
        self.config = context.etc / "firewall.toml"
        self.lists = context.etc / "lists"
        self.compiled = context.state / "firewall.json"
        self.folder = context.state / "firewall"

    def prepare(self) -> None:
        """Make the folder."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def good(self) -> Source | None:
        """The last good source; None when there is none that can be read."""
        data = self._read("good.json")
        return _source(data) if data else None

    def keep(self, source: Source, compiled: bytes) -> None:
        """Remember a source that is in force for good; nothing waits. Rules first: they are what a boot needs."""
        write_atomically(self.compiled, compiled, 0o600)
        write_atomically(self.folder / "good.json", _encode(source), 0o600)
        (self.folder / "refused").unlink(missing_ok=True)
        self.settle()

    def publish(self, source: Source) -> None:
        """Write what differs to the files that people edit; lists first, since the TOML names them."""
        self.config.parent.mkdir(parents=True, exist_ok=True)
        if source.lists:
            self.lists.mkdir(exist_ok=True)
        files = {**{self.lists / name: text for name, text in source.lists.items()}, self.config: source.text}
        for path, text in files.items():
            if not path.exists() or path.read_bytes() != text.encode():
                write_atomically(path, text.encode())

    def pending(self) -> Pending | None:
        """The change that waits for confirmation. One of another boot has no time left; a damaged one is dropped."""
        data = self._read("pending.json")
        source = _source(data.get("source")) if data else None
        if data is None or source is None or not isinstance(data.get("deadline"), float):
            self.settle()
            return None
        return Pending(source, data["deadline"] if data.get("boot") == _boot() else 0.0, str(data.get("who")))

    def commit(self) -> None:
        """The waiting change was confirmed: from here on a crash completes it."""
        (self.folder / "pending.json").rename(self.folder / "committed.json")
        sync_folder(self.folder)

    def finish_commit(self) -> None:
        """Write the files of a change that was confirmed just before a crash; its rules are loaded by the start."""
        data = self._read("committed.json")
        source = _source(data.get("source")) if data else None
        if source:
            self.publish(source)
        (self.folder / "committed.json").unlink(missing_ok=True)

    def wait_for(self, source: Source, seconds: float, who: str) -> Pending:
        """Record a change before it is made."""
        deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
        body = {"source": _mapping(source), "boot": _boot(), "deadline": deadline, "who": who}
        write_atomically(self.folder / "pending.json", json.dumps(body).encode(), 0o600)
        return Pending(source, deadline, who)

    def settle(self) -> None:
        """Nothing waits any more."""
        for name in ("pending.json", "committed.json"):
            (self.folder / name).unlink(missing_ok=True)
        sync_folder(self.folder)

    def refuse(self, source: Source) -> None:
        """Remember a source that was undone."""
        write_atomically(self.folder / "refused", digest(source).encode(), 0o600)

    def refused(self, source: Source) -> bool:
        """Whether this source was undone, and not confirmed since."""
        try:
            return (self.folder / "refused").read_text() == digest(source)
        except (OSError, UnicodeDecodeError):
            return False

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            data = json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            return {}  # there, and of no use
        return data if isinstance(data, dict) else {}


def digest(source: Source) -> str:
    """A name for a source's content."""
    return hashlib.sha256(_encode(source)).hexdigest()


def _mapping(source: Source) -> dict[str, Any]:
    return {"text": source.text, "lists": dict(sorted(source.lists.items()))}


def _encode(source: Source) -> bytes:
    return json.dumps(_mapping(source)).encode()


def _source(data: object) -> Source | None:
    if not isinstance(data, Mapping) or not isinstance(data.get("text"), str):
        return None
    lists = data.get("lists", {})
    if not isinstance(lists, dict) or not all(isinstance(text, str) for text in lists.values()):
        return None
    return Source(data["text"], lists)


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError as error:
        raise MixosError(f"{_BOOT_ID}: {error.strerror}", reason="firewall-boot-id") from error
