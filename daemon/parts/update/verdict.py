"""What the entries of the loader and the record say about the boots that went before: a pure function of both.

An image that has no starts left was started in vain: as a new one (it never got well) or as one that was good before
(it broke). What an operator has left looks the same, and the record tells it apart.
"""

from __future__ import annotations

from typing import NamedTuple

from daemon.parts.update.boot import Boot, Image
from daemon.parts.update.ending import OVERDUE
from daemon.parts.update.record import Record


class Failed(NamedTuple):
    """An image that failed, and why, as far as it is known."""

    image: Image
    reason: str


def failures(boot: Boot, record: Record, ended: str | None) -> list[Failed]:
    """Those that the record does not have yet. ended: how the boot before this one did, if that is known
    (`daemon.parts.update.ending`)."""
    found = []
    for image in boot.images:
        known = image.digest in record.blocked or image.digest in record.given_up
        if not image.entry.bad or image is boot.running or known:
            continue
        found.append(Failed(image, reason(image, record, ended)))
    return found


def reason(image: Image, record: Record, ended: str | None) -> str:
    """In words: how an image ended that has no starts left."""
    starts = f"{image.entry.done} starts"
    if image.slot is None:
        return f"after {starts}: no slot holds what its entry starts"
    trial = record.trial if record.trial is not None and record.trial.root_hash == image.digest else None
    problem = trial.problem if trial is not None else "the daemon was never up"
    if ended == OVERDUE:
        return f"after {starts}: {ended}: {problem}" if problem else f"after {starts}: {ended}"
    if trial is not None and problem:
        return f"after {starts}: {problem}" + (f"; then {ended}" if ended else "")
    if ended:
        return f"after {starts}: {ended}"
    if trial is not None:
        return f"after {starts}: it stopped after the daemon was up, without saying why"
    return f"after {starts}: {problem} (it crashed or hung, lost power, or could not read its root)"
