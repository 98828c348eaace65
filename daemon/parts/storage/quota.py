"""Limits on what units keep below /var/lib: one quota project per unit, its number and limit in a small file.

The numbers are handed out once and kept, so that a project's files stay its own. Limits are put in force again at each
start, and after a restore: the file is what counts. It is written before and after the files of a unit are given their
project, so that a cut in between is finished at the next start.
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from common.errors import MixosError, NotFoundError
from common.files import write_atomically
from common.tomlfile import Strict
from daemon.core.manifest import function
from daemon.core.part import Context
from daemon.linux import quotactl
from daemon.linux.log import log
from daemon.linux.mounts import Mount, backing, mounts
from daemon.linux.quotactl import QuotaError
from daemon.parts.storage.verdict import HealthError

if TYPE_CHECKING:
    from daemon.parts.storage.answers import Quota

MAX_LIMIT = 1 << 60  # bytes
_FIRST = 1000  # of the project numbers: lower ones are left to people


class Kept(Strict):
    """A unit's project; limit in bytes, None for none; assigned: whether all of the unit's files have the project."""

    project: int = Field(ge=_FIRST, lt=1 << 31)
    limit: int | None = Field(default=None, ge=1, le=MAX_LIMIT)
    assigned: bool = False


class Quotas:
    """The limits of the units of one device."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.path = context.state / "storage" / "quotas.json"
        self._lock = threading.Lock()  # calls come from threads; two changes at once must not take the same number

    def read(self) -> dict[str, Kept]:
        """Unit → what is kept. Raises HealthError `quota-file`."""
        try:
            document = json.loads(self.path.read_bytes())
            return {str(name): Kept.model_validate(one) for name, one in dict(document).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, RecursionError, ValidationError) as error:
            raise HealthError(f"{self.path} is damaged", reason="quota-file") from error

    def rows(self) -> list[Quota]:
        """Every unit that keeps state: its folder, limit, and what it uses; `enforced` says whether the file system
        takes part, `problem` why not."""
        kept, table = self.read(), mounts()
        found = function("state-folders")(self.context)
        limited = {unit for unit, one in kept.items() if one.limit is not None}
        return [self._row(unit, found.get(unit), kept.get(unit), table) for unit in sorted({*found, *limited})]

    def _row(self, unit: str, folder: str | None, kept: Kept | None, table: list[Mount]) -> Quota:
        used, problem, enforced = None, None, False
        if kept and folder:
            try:
                place = self._place(folder, table)
                usage = quotactl.get(place.parent, kept.project)
                used, enforced = usage.used, usage.limit is not None and quotactl.project_of(place) == kept.project
            except (MixosError, OSError) as error:
                problem = error.reason if isinstance(error, MixosError) else "quota-failed"
        limit = kept.limit if kept else None
        return {
            "unit": unit,
            "folder": folder,
            "limit": limit,
            "used": used,
            "enforced": enforced,
            "problem": problem,
        }

    def set(self, unit: str, limit: int | None) -> Quota:
        """Limit a unit (None: no longer), at once. Raises NotFoundError `quota-unit`, RefusedError
        `quota-unsupported`, QuotaError `quota-failed`, `quota-too-many`; then the limit is what it was."""
        folder = function("state-folders")(self.context).get(unit)
        with self._lock:
            kept, table = self.read(), mounts()
            if folder is None and limit is None and unit in kept:  # the unit is gone; its number stays its own
                gone = kept[unit].model_copy(update={"limit": None})
                self._keep(unit, gone)
                return self._row(unit, None, gone, table)
            if folder is None:
                raise NotFoundError(
                    f"the unit {unit!r} keeps no state", reason="quota-unit", hint="units that do have state-directory"
                )
            numbers = [one.project for one in kept.values()]
            before = kept.get(unit) or Kept(project=max([_FIRST - 1, *numbers]) + 1)
            wanted = before.model_copy(update={"limit": limit})
            try:
                mine = self._apply(unit, folder, wanted, table)
            except QuotaError:
                with contextlib.suppress(MixosError):  # the first error is the one to tell
                    quotactl.put(self._place(folder, table), before.project, before.limit)
                    self._keep(unit, before.model_copy(update={"assigned": False}))
                raise
            return self._row(unit, folder, mine, table)

    def restore(self) -> dict[str, str]:
        """Put what is kept in force; unit → reason, for those that could not."""
        with self._lock:
            kept, table, failed = self.read(), mounts(), {}
            found = function("state-folders")(self.context) if kept else {}
            for unit, one in kept.items():
                folder = found.get(unit)
                if folder is not None and one.limit is not None:
                    try:
                        self._apply(unit, folder, one, table)
                    except MixosError as error:
                        failed[unit] = error.reason
            return failed

    def gather(self) -> dict[str, int]:
        """Bring back what has left the project of its unit; unit → how many files and folders.

        Whoever owns a file can give it another project (ext4 asks for no privilege), but in a sandbox.
        """
        with self._lock:
            kept, table, gone = self.read(), mounts(), {}
            found = function("state-folders")(self.context) if kept else {}
            for unit, one in kept.items():
                if one.limit is not None and one.assigned and (folder := found.get(unit)) is not None:
                    try:
                        gone[unit] = quotactl.assign(self._place(folder, table), one.project)
                    except MixosError as error:
                        log("warning", f"storage: {unit}: {error.message}")
            return {unit: count for unit, count in gone.items() if count}

    def _apply(self, unit: str, folder: str, kept: Kept, table: list[Mount]) -> Kept:
        """Through the upper layer of the overlay: an overlay itself has no quotas. Returns what is kept now."""
        place = self._place(folder, table)
        try:
            # The supervisor gives it to the unit's user at its start.
            (self.context.state.parent / folder).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise QuotaError(f"{place}: {error.strerror}", reason="quota-failed") from error
        quotactl.enforce(place)
        quotactl.put(place, kept.project, kept.limit)
        if kept.limit is not None and not (kept.assigned and quotactl.project_of(place) == kept.project):
            self._keep(unit, kept.model_copy(update={"assigned": False}))
            quotactl.assign(place, kept.project)
            kept = kept.model_copy(update={"assigned": True})
        self._keep(unit, kept)
        return kept

    def _place(self, folder: str, table: list[Mount]) -> Path:
        return backing(self.context.state.parent / folder, table)

    def _keep(self, unit: str, one: Kept) -> None:
        """Write one unit's entry down. Raises QuotaError `quota-failed`."""
        kept = self.read()
        if kept.get(unit) == one:
            return
        document = {name: found.model_dump(mode="json", by_alias=True) for name, found in {**kept, unit: one}.items()}
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(document, sort_keys=True).encode(), 0o600)
        except OSError as error:
            raise QuotaError(f"{self.path}: {error.strerror}", reason="quota-failed") from error
