"""Whether a unit's disk space is limited, told from the file alone: asked when the part itself is not up."""

from __future__ import annotations

from daemon.core.part import Context
from daemon.parts.storage.quota import Quotas


def unit(context: Context, name: str) -> bool:
    """Raises HealthError for a file that does not say."""
    kept = Quotas(context).read().get(name)
    return kept is not None and kept.limit is not None
