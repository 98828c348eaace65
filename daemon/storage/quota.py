"""Limits on what units keep below /var/lib: one quota project per unit, its number and limit in a small file.

The numbers are handed out once and kept, so that a project's files stay its own. Limits are put in force again at each
start: after a restore, or on a new disk, the file is what counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from daemon.errors import DeviceError, NotFoundError
from daemon.files import write_atomically
from daemon.part import Context
from daemon.storage import quotactl
from daemon.storage.contents import unit_folders
from daemon.storage.mounts import Mount, backing, mounts
from daemon.storage.verdict import HealthError
from daemon.tomlfile import Strict

_FIRST = 1000  # of the project numbers: lower ones are left to people


class Kept(Strict):
    """A unit's project; limit in bytes, None for none."""

    project: int = Field(ge=_FIRST, lt=1 << 31)
    limit: int | None = Field(default=None, ge=1)


class Quotas:
    """The limits of the units of one device."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.path = context.state / "storage" / "quotas.json"

    def read(self) -> dict[str, Kept]:
        """Unit → what is kept. Raises HealthError `quota-file`."""
        try:
            document = json.loads(self.path.read_bytes())
            return {str(name): Kept.model_validate(one) for name, one in dict(document).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, ValidationError) as error:
            raise HealthError(f"{self.path} is damaged", reason="quota-file") from error

    def rows(self) -> list[dict[str, Any]]:
        """Every unit that keeps state: its folder, limit, and what it uses; `enforced` says whether the file system
        takes part, `problem` why not."""
        kept, table = self.read(), mounts()
        found = unit_folders(self.context)
        return [self._row(unit, found.get(unit), kept.get(unit), table) for unit in sorted({*found, *kept})]

    def _row(self, unit: str, folder: str | None, kept: Kept | None, table: list[Mount]) -> dict[str, Any]:
        row: dict[str, Any] = {"unit": unit, "folder": folder, "limit": kept.limit if kept else None}
        used, problem, enforced = None, None, False
        if kept and folder:
            try:
                usage = quotactl.get(self._place(folder, table).parent, kept.project)
                used, enforced = usage.used, usage.limit is not None
            except (DeviceError, OSError) as error:
                problem = error.reason if isinstance(error, DeviceError) else "quota-failed"
        return {**row, "used": used, "enforced": enforced, "problem": problem}

    def set(self, unit: str, limit: int | None) -> dict[str, Any]:
        """Limit a unit (None: no longer), at once. Raises NotFoundError `quota-unit`, RefusedError
        `quota-unsupported` (nothing is kept then), QuotaError `quota-failed`."""
        folder = unit_folders(self.context).get(unit)
        if folder is None:
            raise NotFoundError(
                f"the unit {unit!r} keeps no state", reason="quota-unit", hint="units that do have state-directory"
            )
        kept, table = self.read(), mounts()
        numbers = [one.project for one in kept.values()]
        mine = Kept(project=kept[unit].project if unit in kept else max([_FIRST - 1, *numbers]) + 1, limit=limit)
        self._apply(folder, mine, table)
        self._write({**kept, unit: mine})
        return self._row(unit, folder, mine, table)

    def restore(self) -> dict[str, str]:
        """Put what is kept in force; unit → reason, for those that could not."""
        kept, table, failed = self.read(), mounts(), {}
        found = unit_folders(self.context) if kept else {}
        for unit, one in kept.items():
            folder = found.get(unit)
            if folder is not None and one.limit is not None:
                try:
                    self._apply(folder, one, table)
                except DeviceError as error:
                    failed[unit] = error.reason
        return failed

    def _apply(self, folder: str, kept: Kept, table: list[Mount]) -> None:
        """Through the upper layer of the overlay: an overlay itself has no quotas."""
        here = self.context.state.parent / folder
        here.mkdir(mode=0o700, exist_ok=True)  # the supervisor gives it to the unit's user at its start
        place = self._place(folder, table)
        quotactl.enforce(place)
        quotactl.put(place, kept.project, kept.limit)
        if quotactl.project_of(place) != kept.project:
            quotactl.assign(place, kept.project)

    def _place(self, folder: str, table: list[Mount]) -> Path:
        return backing(self.context.state.parent / folder, table)

    def _write(self, kept: Mapping[str, Kept]) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        document = {name: one.model_dump(mode="json", by_alias=True) for name, one in sorted(kept.items())}
        write_atomically(self.path, json.dumps(document).encode(), 0o600)
