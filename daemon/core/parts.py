"""The parts of the daemon, brought up one after the other beside the running server; one that fails is left out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import MixosError, RefusedError
from daemon.core.dispatch import Dispatcher
from daemon.core.figures import Figures, Finding
from daemon.core.manifest import Manifest
from daemon.core.method import Method
from daemon.core.part import Context, Part
from daemon.linux.log import log

START_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Source:
    """Where a part comes from. `make` imports and builds it: called in a thread, since imports take time on a board."""

    name: str
    make: Callable[[], Part]


def source(manifest: Manifest, context: Context) -> Source:
    """The part that a manifest names, made of the context alone."""

    def make() -> Part:
        if manifest.process is not None and not manifest.process.runs:
            from daemon.core.worker.part import ProcessPart  # only where there is such a part

            return ProcessPart(manifest, context)
        part: Part = manifest.find(manifest.part)(context)
        return part

    return Source(manifest.name, make)


@dataclass
class _State:
    state: str = "waiting"  # waiting, starting, running, failed, stopped
    error: str | None = None
    seconds: float = 0.0
    up_at: float | None = None  # seconds after the kernel's start
    part: Part | None = None
    methods: Sequence[Method] = field(default_factory=tuple)


class Parts:
    """Starts, stops and reports parts, and hands their methods to the dispatcher."""

    def __init__(
        self,
        sources: Sequence[Source],
        dispatcher: Dispatcher,
        ended: Callable[[str], None] = lambda name: None,
        figures: Figures | None = None,
    ) -> None:
        """ended: told the name of each part that has stopped or failed; figures: gets those of parts, and findings."""
        self.sources = sources
        self._ended = ended
        self._figures = figures or Figures()
        self._figures.offer("parts", findings=self._findings)
        self._dispatcher = dispatcher
        self._states = {one.name: _State() for one in sources}
        dispatcher.absent = self.absent

    async def start(self) -> None:
        """Import and start every part, in order."""
        for one in self.sources:
            state = self._states[one.name]
            state.state, began = "starting", time.monotonic()
            try:
                async with asyncio.timeout(START_SECONDS):
                    await self._start(one, state)
                state.state = "running"
            except Exception as error:  # noqa: BLE001  # whatever is wrong with one part, the others go on
                state.state, state.error = "failed", _reason(error)
                log("err", f"part {one.name} failed: {type(error).__name__}: {error}")
                await self._stop(one.name, state)
            state.seconds = round(time.monotonic() - began, 3)
            state.up_at = round(time.clock_gettime(time.CLOCK_BOOTTIME), 2)

    async def _start(self, one: Source, state: _State) -> None:
        state.part = await asyncio.to_thread(one.make)
        await state.part.start()
        self._figures.offer(one.name, getattr(state.part, "figures", None), getattr(state.part, "findings", None))
        methods = state.part.methods()
        self._dispatcher.add(methods)
        state.methods = methods

    async def stop(self) -> None:
        """Stop what runs, in reverse order."""
        for one in reversed(self.sources):
            state = self._states[one.name]
            if state.state in ("running", "starting"):
                state.state = "stopped"
                await self._stop(one.name, state)

    async def _stop(self, name: str, state: _State) -> None:
        self._ended(name)
        self._figures.withdraw(name)
        self._dispatcher.remove(state.methods)
        if state.part is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await state.part.stop()
        except Exception as error:  # noqa: BLE001  # the daemon ends, or goes on without this part
            log("err", f"part {state.part.name} does not stop: {type(error).__name__}: {error}")

    def status(self) -> dict[str, dict[str, Any]]:
        """Part → {state, error, seconds: how long its start took, up_at: when that ended, in seconds after the kernel's
        start, …: its own facts while it runs, which take none of these names}."""
        return {name: {**_own(state), **_facts(state)} for name, state in self._states.items()}

    def _findings(self) -> Iterator[Finding]:
        for name, state in self._states.items():
            if state.state == "failed":
                yield Finding("parts", "critical", f"the part {name} failed: {state.error}")
            elif state.state in ("waiting", "starting"):
                yield Finding("parts", "warning", f"the part {name} is {state.state}")

    def absent(self, name: str) -> MixosError | None:
        """Why a method is not there: the part of its name is not up, or failed."""
        part = name.partition(".")[0] if "." in name else "system"  # those without a dot are its own
        state = self._states.get(part)
        if state is None or state.state == "running":
            return None
        if state.state == "failed":
            hint = "mixctl status and the daemon's log say more"
            return RefusedError(f"{part} failed to start: {state.error}", reason="part-failed", hint=hint)
        return RefusedError(f"{part} is {state.state}", reason="part-starting", hint="try again", retryable=True)


def _reason(error: Exception) -> str:
    if isinstance(error, MixosError):
        return error.reason
    return "timeout" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"[:200]


def _facts(state: _State) -> dict[str, Any]:
    return {"state": state.state, "error": state.error, "seconds": state.seconds, "up_at": state.up_at}


def _own(state: _State) -> Mapping[str, Any]:
    if state.state != "running" or state.part is None:
        return {}
    try:
        return state.part.status()
    except Exception as error:  # noqa: BLE001  # a status is always given
        return {"problem": _reason(error)}
