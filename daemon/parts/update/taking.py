"""Taking a release: verified, staged into the slot that does not run, and started with the next boot.

`Taking` is the part's side of it: it asks the programs that do the work (`daemon.parts.update.programs`), and keeps in
the record what came of it. One at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.bundle import order as orders
from common.bundle.order import Order, When
from common.efi.entries import compare_versions
from common.errors import BundleError, MixosError, NotFoundError, RefusedError
from daemon.core.part import Context
from daemon.linux import facts, programs
from daemon.linux.log import log
from daemon.parts.update.boot import Boot
from daemon.parts.update.floor import Floor
from daemon.parts.update.hooks import Hooks
from daemon.parts.update.identity import identity
from daemon.parts.update.record import Records, Staged

ACCOUNT = "update"


class Taking:
    """release, slots: the programs. root: the tree to read from."""

    def __init__(
        self,
        context: Context,
        records: Records,
        floor: Floor,
        root: Path = facts.ROOT,
        release: Sequence[str] = programs.RELEASE,
        slots: Sequence[str] = programs.SLOTS,
    ) -> None:
        self._context, self._records, self._floor, self._root = context, records, floor, root
        self._release, self._slots = release, slots
        self._hooks = Hooks(context)
        self._busy = asyncio.Lock()
        self._judging = asyncio.Lock()  # what was trusted before is one file
        self.progress: dict[str, Any] | None = None  # of what is under way

    async def stage(self, boot: Boot, source: int, again: bool) -> AsyncGenerator[dict[str, Any]]:
        """Items of progress, then what was staged. source: a socket where the bundle comes from.
        again: also a version that is not newer than what runs.

        Raises RefusedError: `update-busy`, `update-blocked`, `update-older`, and those of `Hooks.ask`; what the
        programs raise.
        """
        try:
            if self._busy.locked():
                raise RefusedError("another release is being taken", reason="update-busy", retryable=True)
            async with self._busy:
                given: dict[str, str] = {}
                order = await self._verified(boot, source, given)
                self._check(boot, order, again)
                await asyncio.to_thread(self._hooks.keep, [order, *self._staged()], given)
                async with aclosing(self._asking(boot, order, "before-stage")) as hooks:
                    async for step in hooks:
                        yield step
                self._records.change(staged=None)
                self.progress = self._at(order, "start", 0, 1, 0)
                yield self.progress
                slot = ""
                async with aclosing(programs.lines([*self._slots, "stage"], order.dump(), source)) as found:
                    async for line in found:
                        if "slot" in line:
                            slot = line["slot"]
                        else:
                            self.progress = self._at(order, **line)
                            yield self.progress
                staged = self._keep(order, slot)
        finally:
            self.progress = None
        yield {**self._at(order, "staged", 1, 1, 0), "slot": staged.slot}

    async def examine(self) -> AsyncGenerator[dict[str, Any]]:
        """Items of progress, then with a report. Raises what the program raises."""
        async with aclosing(programs.lines([*self._slots, "examine"])) as found:
            async for line in found:
                yield self._mending(None, line)

    async def repair(self, boot: Boot, source: int | None) -> AsyncGenerator[dict[str, Any]]:
        """Items of progress, then with a report. source: a socket where the bundle of the other slot comes from; None:
        with what is on the disk.

        Raises RefusedError: `update-busy`, `update-same`; what the programs raise.
        """
        if self._busy.locked():
            raise RefusedError("another release is being taken", reason="update-busy", retryable=True)
        async with self._busy:
            order = None if source is None else await self._verified(boot, source)
            if order is not None and order.root_hash == boot.root_hash:
                hint = "start the other version, and repair this one from there"
                raise RefusedError(f"{order.version} is what runs", reason="update-same", hint=hint)
            if order is not None:
                yield self._mending(order, {"step": "start", "done": 0, "of": 1, "fetched": 0})
            if order is not None and self._only_staged(boot, order):
                argv = [*self._slots, "stage"]  # nothing starts it before or afterwards
            else:
                argv = [*self._slots, "repair"]
            async with aclosing(programs.lines(argv, order.dump() if order else "", source)) as found:
                async for line in found:
                    if "slot" not in line:
                        yield self._mending(order, line)
            if argv[-1] == "stage":
                async with aclosing(self.examine()) as steps:
                    async for step in steps:
                        yield step

    def _only_staged(self, boot: Boot, order: Order) -> bool:
        staged, digest = self._records.now.staged, order.root_hash.hex()
        return staged is not None and staged.root_hash == digest and all(one.digest != digest for one in boot.images)

    def _mending(self, order: Order | None, line: dict[str, Any]) -> dict[str, Any]:
        of_bundle = {"version": order.version if order else None, "transfer": order.transfer if order else 0}
        last = {"step": "done", "done": 1, "of": 1, "fetched": 0} if "report" in line else {}
        return {**of_bundle, "report": None, "mended": [], **last, **line}

    @asynccontextmanager
    async def passed(self, boot: Boot) -> AsyncGenerator[Staged]:
        """What was staged, when nothing speaks against its start; no other release is taken meanwhile. Raises
        NotFoundError `update-not-staged`; RefusedError: `update-busy`, `update-blocked`, and those of `Hooks.ask`."""
        staged = self._records.now.staged
        if staged is None:
            hint = "mixctl update stage FILE"
            raise NotFoundError("no release was staged", reason="update-not-staged", hint=hint)
        if self._busy.locked():
            raise RefusedError("another release is being taken", reason="update-busy", retryable=True)
        async with self._busy:
            self._refuse_blocked(staged.root_hash, staged.version)
            try:
                async with aclosing(self._asking(boot, orders.parse(staged.order), "before-apply")) as hooks:
                    async for _ in hooks:
                        pass
            finally:
                self.progress = None
            yield staged

    async def seal(self, staged: Staged) -> None:
        """Have it started with the next boot. Raises what the program raises."""
        await programs.ended([*self._slots, "seal"], staged.order, 280.0)

    # -- steps -------------------------------------------------------------------------------------------------------

    async def check(self, boot: Boot, source: int) -> dict[str, Any]:
        """What a channel has for this device, as `common.trust.channel.Checked` tells it. source: a socket where its
        files come from. Raises what the program raises."""
        record = self._records.now
        left = dict.fromkeys(record.given_up, "somebody went back from it")
        more = {
            "identity": await asyncio.to_thread(identity, self._context.state / "update"),
            "blocked": left | {digest: one.reason for digest, one in record.blocked.items()},
        }
        return await self._asked("check", boot, source, more)

    async def _asking(self, boot: Boot, order: Order, when: When) -> AsyncGenerator[dict[str, Any]]:
        """Items of progress, one for each hook. A refusal is told in the history. Raises what `Hooks.ask` raises."""
        hooks = [hook for hook in order.hooks if hook.when == when]
        for number, hook in enumerate(hooks):
            self.progress = self._at(order, when, number, len(hooks), 0)
            yield self.progress
            try:
                await self._hooks.ask(order, hook, boot.running.version if boot.running else "")
            except RefusedError as error:
                self._refused(order, when, error)
                raise

    def _staged(self) -> Iterator[Order]:
        """What was staged, if this version can read it."""
        with contextlib.suppress(BundleError):
            if self._records.now.staged is not None:
                yield orders.parse(self._records.now.staged.order)

    def _refused(self, order: Order, when: When, error: RefusedError) -> None:
        """Once, however often the schedule tries."""
        log("err", f"update: {error.message}")
        self._context.events.publish("update.refused", order.version, when=when, reason=error.message)
        happened, before = (
            self._records.happened("refused", order.version, None, error.message),
            self._records.now.history,
        )
        if not before or before[-1].model_copy(update={"at": happened.at}) != happened:
            self._records.change(history=self._records.history(happened))

    async def _verified(self, boot: Boot, source: int, hooks: dict[str, str] | None = None) -> Order:
        """What is to be done. hooks: gets those of the bundle that are not kept yet, by their hashes."""
        there = {} if hooks is None else {"hooks": await asyncio.to_thread(self._hooks.there)}
        return orders.parse((await self._asked("verify", boot, source, there, hooks)).get("order", ""))

    async def _asked(
        self, what: str, boot: Boot, source: int, more: dict[str, Any], hooks: dict[str, str] | None = None
    ) -> dict[str, Any]:
        await asyncio.to_thread(self._folder)
        release = facts.release(self._root)
        running = {
            **more,
            "machine": os.uname().machine,
            "variant": release.get("MIXOS_VARIANT", "default"),
            "sequence": int(release.get("MIXOS_SEQUENCE", "0")),
            "floor": await self._floor.known(),
            "epoch": int(release.get("MIXOS_EPOCH", "0")),
            "root-hash": (boot.root_hash or b"").hex(),
        }
        said: dict[str, Any] = {}
        words = [*self._release, what]
        async with self._judging, aclosing(programs.lines(words, json.dumps(running), source)) as found:
            async for line in found:
                if hooks is not None and "hook" in line and len(hooks) < orders.MAX_HOOKS:
                    hooks[str(line["hook"])[:64]] = str(line.get("data", ""))[: 2 * orders.MAX_HOOK]
                else:
                    said = line
        if said:
            return said
        raise MixosError("nothing was said of the release", reason="program-failed")

    def _folder(self) -> None:
        """Where the account that verifies keeps what was trusted."""
        folder = self._context.state / "update" / "trust"
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not folder.exists():
            folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            try:
                shutil.chown(folder, ACCOUNT)
            except LookupError as error:
                raise MixosError(f"there is no account {ACCOUNT}", reason="update-account") from error

    def _check(self, boot: Boot, order: Order, again: bool) -> None:
        self._refuse_blocked(order.root_hash.hex(), order.version)
        if order.root_hash == boot.root_hash:
            raise RefusedError(f"{order.version} is what runs", reason="update-same")
        running = boot.running.version if boot.running else ""
        if not again and compare_versions(order.version, running) <= 0:
            message = f"{order.version} is not newer than {running}, which runs"
            raise RefusedError(message, reason="update-older", hint="--again takes it all the same")

    def _refuse_blocked(self, digest: str, version: str) -> None:
        blocked = self._records.now.blocked.get(digest)
        if blocked is not None:
            hint = f"mixctl update clear {version} lets it be installed again"
            raise RefusedError(f"{version} failed {blocked.reason}", reason="update-blocked", hint=hint)

    def _keep(self, order: Order, slot: str) -> Staged:
        staged = Staged(
            version=order.version,
            sequence=order.sequence,
            root_hash=order.root_hash.hex(),
            slot=slot,
            at=round(time.time(), 3),
            order=replace(order, key=None).dump(),
        )
        self._records.change(staged=staged)
        return staged

    def _at(self, order: Order, step: str, done: int, of: int, fetched: int) -> dict[str, Any]:
        return {
            "version": order.version,
            "slot": None,
            "step": step,
            "done": done,
            "of": of,
            "fetched": fetched,
            "transfer": order.transfer,
        }
