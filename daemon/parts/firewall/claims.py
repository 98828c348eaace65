"""What the firewall has to enforce for a unit, told from its file alone: asked when the firewall itself is not up."""

from __future__ import annotations

from common import toml
from daemon.core.part import Context

_BYTES = 4 << 20


def unit(context: Context, name: str) -> bool:
    """Whether firewall.toml has rules for the unit. Raises OSError and ValueError for a file that does not say."""
    try:
        with (context.etc / "firewall.toml").open("rb") as file:
            data = file.read(_BYTES + 1)
    except FileNotFoundError:
        return False
    if len(data) > _BYTES:
        raise ValueError("firewall.toml is too large")
    return name in toml.loads(data.decode("utf-8-sig")).get("units", {})
