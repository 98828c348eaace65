"""How the boot before this one ended, as far as its kernel and the hardware tell."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from daemon.linux import facts
from daemon.linux.log import log

OVERDUE = "it was not well in time"
RESET = "the watchdog restarted the machine"
_PANIC = "Kernel panic - not syncing: "
_RESTARTED = "mixos: this version did not get well in time"  # what the keeper (daemon/native/keeper) says
_CARDRESET = 0x20  # WDIOF_CARDRESET (linux/watchdog.h)
_MAX_WORDS = 1 << 20  # bytes of a kernel's last words


class Ending(NamedTuple):
    """words: None when it left none; kept: what the kernel left in the firmware (pstore), oldest first."""

    words: str | None
    kept: tuple[Path, ...]


def ending(root: Path) -> Ending:
    """See the module. The newest of the kernel's words count, then what the watchdog remembers. Only reads."""
    kept = tuple(sorted((root / "sys/fs/pstore").glob("dmesg-*")))
    words = None
    for path in kept:
        try:
            with path.open("rb") as stream:
                words = last_words(stream.read(_MAX_WORDS).decode("utf-8", "replace")) or words
        except OSError as error:
            log("err", f"update: {path.name} cannot be read: {error}")
    return Ending(words or (RESET if _reset(root) else None), kept)


def last_words(dump: str) -> str | None:
    """Why a kernel ended, from its log (Documentation/admin-guide/pstore-blk.rst, kmsg_dump)."""
    for line in dump.splitlines():
        _, found, words = line.partition(_PANIC)
        if found:
            return f"kernel panic: {words.strip()[:200]}"
        if _RESTARTED in line:
            return OVERDUE
    return None


def _reset(root: Path) -> bool:
    """Whether the watchdog says that it did it (Documentation/ABI/testing/sysfs-class-watchdog); not each can."""
    status = facts.text(root / "sys/class/watchdog/watchdog0/bootstatus") or ""
    return status.isdecimal() and bool(int(status) & _CARDRESET)
