"""The part `backup`: the device's state into a stream, and back from what a caller hands over.

The passphrase travels as a secret parameter through the socket, and is nowhere else. What was unpacked is put in its
place as a change like any other (`daemon.core.change`), so a power cut finishes it or leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field, SecretStr

from common.errors import RefusedError
from common.tomlfile import Strict
from daemon.core.change.applier import Wish
from daemon.core.change.files import Trees
from daemon.core.change.record import Record
from daemon.core.manifest import function
from daemon.core.method import ADMINS, Caller, Method
from daemon.core.part import Context
from daemon.core.transfer import Accepts, Content
from daemon.linux.log import log
from daemon.parts.backup import archive, contents, sealed
from daemon.parts.backup.archive import Entry
from daemon.parts.backup.contents import FORMAT, MANIFEST, SECTIONS, STATE, Manifest
from daemon.parts.backup.login import Login
from daemon.parts.backup.migrate import migrate
from daemon.parts.backup.restore import Plan, Restorer, running, services_to_restart

if TYPE_CHECKING:
    from daemon.parts.backup.answers import About, Item, Restored, Summary, Told

MAX_BYTES = archive.MAX_TOTAL + (64 << 20)  # of a backup: what does not shrink grows a little
_SECONDS = 900.0
WHAT = "restore of a backup"  # how the change is called

Secret = Annotated[SecretStr, Field(max_length=1024)]


class Create(Strict):
    """What to keep."""

    passphrase: Secret | None = Field(default=None, description="none: not encrypted, allowed without secrets only")
    secrets: bool = Field(default=True, description="keys and passwords, too")
    state: tuple[Annotated[str, Field(max_length=48)], ...] = Field(
        default=(), max_length=256, description="units whose folders below /var/lib are kept, too"
    )


class Restore(Wish):
    """What to put back."""

    content: Annotated[Content, Accepts(MAX_BYTES)] = Field(description="the backup")
    passphrase: Secret | None = Field(default=None, description="of the backup")
    only: tuple[Annotated[str, Field(max_length=16)], ...] = Field(
        default=(), max_length=16, description="sections; none: all that the backup has"
    )


class Backup:
    """See the module. alive: whether a unit runs."""

    name = "backup"

    def __init__(self, context: Context, alive: Callable[[str], bool] | None = None) -> None:
        self.context = context
        self.trees = Trees.of(context)
        self.recovered: str | None = None
        self._alive = alive or self._runs
        self._work: asyncio.Future[Restored] | None = None

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return [
            Method("backup.create", "Stream a backup.", self.create, ADMINS, Create, changes=True),
            Method(
                "backup.restore",
                "Restore a backup.",
                self.restore,
                ADMINS,
                Restore,
                changes=True,
                seconds=_SECONDS,
            ),
        ]

    async def start(self) -> None:
        """Tell what became of a restore that was interrupted."""
        shutil.rmtree(self.context.state / "backup/spool", ignore_errors=True)  # uploads to an earlier version
        self.recovered = await asyncio.to_thread(migrate, self.context)
        for why, outcome in self.context.changes.recovered:
            if why == WHAT:
                self.recovered = outcome
        if self.recovered is not None:
            log("notice", f"backup: an interrupted restore was {self.recovered}")
            self.context.events.publish("backup.recovered", self.recovered)
        self.context.changes.guards.append(self._guard)
        await self.context.changes.start(Login(self.trees))

    async def stop(self) -> None:
        """A restore that is under way ends first: it is short by now, and the next start would finish it anyway."""
        if self._work is not None:
            await asyncio.wait([self._work], timeout=5)

    def status(self) -> Mapping[str, Any]:
        """Whether a restore is under way; what became of one that was interrupted."""
        return {"busy": self._work is not None and not self._work.done(), "recovered": self.recovered}

    # -- methods -----------------------------------------------------------------------------------------------------

    async def create(self, _: Caller, params: Create) -> AsyncIterator[Item]:
        """Items {"data": base64}, then one {"summary": …}."""
        if params.passphrase is None and params.secrets:
            raise RefusedError(
                "a backup with secrets must be encrypted",
                reason="backup-plain",
                hint="leave the secrets out as well: --no-secrets",
            )
        state = await asyncio.to_thread(contents.chosen, self.context, params.state)
        made = _Made(self.trees, manifest_now(params.secrets, state))
        passphrase = params.passphrase.get_secret_value() if params.passphrase else None
        pieces = sealed.seal(archive.write(made.items()), passphrase)
        size = 0
        while piece := await asyncio.to_thread(next, pieces, b""):
            size += len(piece)
            yield {"data": base64.b64encode(piece).decode()}
        yield {"summary": made.summary(size, passphrase is not None)}

    async def restore(self, caller: Caller, params: Restore) -> Restored:
        """What changed, or would change; which units to restart; whether a reboot is needed."""
        if self.status()["busy"]:
            raise RefusedError("a restore is under way", reason="backup-busy", retryable=True)
        # To its end, whether or not somebody waits for it; who leaves before all is read ends it.
        self._work = asyncio.ensure_future(self._restore(caller, params))
        return await asyncio.shield(self._work)

    async def _restore(self, caller: Caller, params: Restore) -> Restored:
        changes = self.context.changes
        number = changes.number()
        restorer = Restorer(self.trees, number)

        def prepare() -> Plan:
            secret = params.passphrase.get_secret_value() if params.passphrase else None
            return restorer.prepare(sealed.unseal(params.content, secret), params.only)

        plan = await asyncio.to_thread(prepare)
        try:
            if not params.dry_run:
                running(services_to_restart(plan)[0], self._alive)
            answer = await changes.make(caller, params, WHAT, staged=(number, plan.renames()))
        finally:
            if number not in changes.waiting:
                restorer.discard()
        if answer["applied"] and plan.changes:
            units, _ = services_to_restart(plan)
            self.context.events.publish("backup.restored", plan.manifest.hostname, units=units)
        return {**answer, **self._told(plan, params.dry_run)}

    def _guard(self, record: Record) -> None:
        """Raises RefusedError `backup-unit-running`."""
        folders = {one.name.removeprefix("var/lib/") for one in record.renames.changes if one.kind == "tree"}
        if folders:
            units = function("state-folders")(self.context)
            running([unit for unit, folder in units.items() if folder in folders], self._alive)

    def _told(self, plan: Plan, dry_run: bool) -> Told:
        names = sorted(one.name for one in plan.changes)
        units, reboot = services_to_restart(plan)
        return {
            "dry-run": dry_run,
            "backup": cast("About", plan.manifest.model_dump(mode="json", by_alias=True)),
            "changed-files": [one.name for one in plan.changes if one.kind != "gone"],
            "removed": [one.name for one in plan.changes if one.kind == "gone"],
            "restart": units,
            "reload": any(name.startswith("etc/mixos/units/") for name in names),
            "reboot": reboot,
        }

    def _runs(self, unit: str) -> bool:
        state = function("unit-state")(self.context.run / "units" / unit)
        return state is not None and (state.populated or state.main.alive())


class _Made:
    """The files of a new backup, counted as they go."""

    def __init__(self, trees: Trees, manifest: Manifest) -> None:
        self.trees = trees
        self.manifest = manifest
        self.files = 0
        self.left_out: list[str] = []

    def items(self) -> Iterator[contents.Item]:
        data = self.manifest.model_dump_json(by_alias=True).encode()
        yield Entry(MANIFEST, "file", 0o600, size=len(data), mtime=self.manifest.created), iter([data])
        for section in self.manifest.sections:
            for entry, content in contents.scan(self.trees, section) if section != STATE else ():
                if self.manifest.secrets or not contents.is_secret(entry.path, entry.mode):
                    self.files += 1
                    yield entry, content
        for folder in self.manifest.state.values():
            for entry, content in contents.scan_state(self.trees, folder, self.left_out):
                self.files += entry.kind == "file"
                yield entry, content

    def summary(self, size: int, encrypted: bool) -> Summary:
        """left-out: at most 100 names. size: of the whole, in bytes."""
        return {
            "backup": cast("About", self.manifest.model_dump(mode="json", by_alias=True)),
            "files": self.files,
            "left-out": self.left_out,
            "bytes": size,
            "encrypted": encrypted,
        }


def manifest_now(secrets: bool, state: dict[str, str]) -> Manifest:
    """The manifest of a backup that is made now."""
    from daemon.linux.facts import release

    sections = (*SECTIONS, STATE) if state else tuple(SECTIONS)
    version = release().get("MIXOS_VERSION", "unknown")
    values = {"format": FORMAT, "mixos-version": version, "hostname": os.uname().nodename, "created": int(time.time())}
    return Manifest.model_validate({**values, "secrets": secrets, "sections": sections, "state": state})
