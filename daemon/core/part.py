"""A part of the daemon (supervision, network, ...): started, asked, stopped the same way, whatever it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from common.lines import split_lines
from daemon.core.change.engine import Changes
from daemon.core.events import Bus
from daemon.core.figures import Figures
from daemon.core.gates import Gates
from daemon.core.method import Method
from daemon.core.worker.forks import Forks


def cgroups() -> Path:
    """`mixos`, below where this host mounts cgroup v2 (proc_pid_mounts(5))."""
    for line in split_lines(Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")):
        words = line.split(" ")
        if words[2:3] == ["cgroup2"]:
            return Path(words[1]) / "mixos"
    return Path("/sys/fs/cgroup/mixos")


@dataclass(frozen=True)
class Context:
    """Where things are, and what parts share. Tests give other folders."""

    run: Path = Path("/run/mixos")  # gone after a reboot
    state: Path = Path("/var/lib/mixos")  # kept, written by the daemon
    etc: Path = Path("/etc/mixos")  # kept, written by people or for them
    lib: Path = Path("/usr/lib/mixos")  # the image's, read-only
    log: Path = Path("/var/log/mixos")
    libexec: Path = Path("/usr/libexec/mixos")  # the image's: the programs in C
    cgroups: Path = field(default_factory=cgroups)  # the control group of all units and sandboxes
    shared: bool = True  # whether accounts of this system other than ours may use it, by their groups
    events: Bus = field(default_factory=Bus)
    gates: Gates = field(default_factory=Gates)
    figures: Figures = field(default_factory=Figures)
    forks: Forks = field(default_factory=Forks)

    @cached_property
    def changes(self) -> Changes:
        """How whatever alters the device is done."""
        return Changes(self)


class Part(Protocol):
    """What `mixosd` needs from a part. A part that fails to start is reported and left out; the others go on.

    It may have methods `figures() -> Iterable[Family]` and `findings() -> Iterable[Finding]` as well, see
    `daemon.core.figures`.
    """

    name: str

    def methods(self) -> Sequence[Method]:
        """What clients can call."""

    async def start(self) -> None:
        """Take up work: find again what an earlier daemon left running, then go on from there."""

    async def stop(self) -> None:
        """The daemon ends, the device does not: leave running what must run, keep what must be kept."""

    def status(self) -> Mapping[str, Any]:
        """A few facts for `mixctl status`, at once and without waiting for anything; not `state`, `error`, `seconds`,
        `up_at`, which are of the part's life."""
