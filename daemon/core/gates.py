"""What must be in force before a unit's processes run: a part that confines units offers a gate.

The supervisor passes a unit through all gates when its cgroup is there and nothing runs in it. A part that is not up,
or failed to load, has no gate; then its manifest's `claims` tells from files alone whether it has something to enforce
for the unit, and such a unit does not start. When that cannot be told, it does not start either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from common.errors import RefusedError
from daemon.core.manifest import manifests
from daemon.linux.log import log

if TYPE_CHECKING:
    from daemon.core.part import Context

Gate = Callable[[str], Awaitable[None]]  # gets the unit's name; an error stops the start


class Gates:
    """The gates of the parts that are up, by the part's name."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}

    def open(self, part: str, gate: Gate) -> None:
        """The part is up: from now on units pass its gate."""
        self._gates[part] = gate

    def close(self, part: str) -> None:
        """The part has ended or failed."""
        self._gates.pop(part, None)

    async def pass_through(self, context: Context, unit: str) -> None:
        """Return when the unit may start. Raises what a gate raises, or RefusedError `gate-missing`."""
        for manifest in manifests():
            if not manifest.claims:
                continue
            gate = self._gates.get(manifest.name)
            if gate is not None:
                await gate(unit)
                continue
            try:
                claimed = await asyncio.to_thread(manifest.find(manifest.claims), context, unit)
            except Exception as error:  # noqa: BLE001  # also when its module cannot be imported
                log("err", f"what {manifest.name} wants of {unit} cannot be told: {error}")
                claimed = True
            if claimed:
                raise RefusedError(
                    f"{unit} must not run without {manifest.name}, which is not up",
                    reason="gate-missing",
                    hint="mixctl status and the daemon's log say why",
                )
