"""How often mixosd has ended without being told to since the device started, and why: what init restarts for ever must
not go unseen. Two small files in /run/mixos: one that is there while mixosd runs, one with the count."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

from common.files import write_atomically
from daemon.linux.log import log


class Crashes(NamedTuple):
    """number: since the device started; last: why, as the watchdog noted it or as far as it is known."""

    number: int
    last: str | None


def begin(run: Path, note: Path) -> Crashes:
    """mixosd starts: count its predecessor if that did not `end`, and log it. note: what the watchdog has written."""
    before = read(run)
    if not (run / "mixosd.runs").exists():
        write_atomically(run / "mixosd.runs", b"")
        return before
    last = "ended without a word: killed, out of memory, or a defect"
    with contextlib.suppress(OSError):
        last = note.read_text(errors="replace").strip()[:200] or last
        note.unlink()
    found = Crashes(before.number + 1, last)
    write_atomically(run / "mixosd.crashes", json.dumps(found).encode())
    log("err", f"mixosd is started again, {found.number} times since the device started; the last one {last}")
    return found


def read(run: Path) -> Crashes:
    """The count so far."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        count, last = json.loads((run / "mixosd.crashes").read_bytes())
        return Crashes(int(count), last)
    return Crashes(0, None)


def end(run: Path) -> None:
    """mixosd ends as it was told to."""
    (run / "mixosd.runs").unlink(missing_ok=True)
