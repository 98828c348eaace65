"""What a disk's figures mean: ok, warning, failing; or unknown, with the reason why nothing can be said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from common.errors import MixosError

STATES = ("unknown", "ok", "warning", "failing")  # the worse the later


class HealthError(MixosError):
    """A disk's health cannot be read. Reasons begin with `smart-`."""

    exit_code = 8


class Finding(NamedTuple):
    """state: warning or failing; slug: stable word; text: for people."""

    state: str
    slug: str
    text: str


def verdict(findings: Sequence[Finding]) -> dict[str, Any]:
    """The worst of all, and all of them."""
    state = max((one.state for one in findings), key=STATES.index, default="ok")
    return {"state": state, "findings": [one._asdict() for one in findings]}


def unknown(slug: str, text: str) -> dict[str, Any]:
    """Nothing can be said about a disk."""
    return {"state": "unknown", "findings": [Finding("unknown", slug, text)._asdict()]}
