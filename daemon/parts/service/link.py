"""The link to the shim of one unit: connected as long as there is a shim, and its newest word at any time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from daemon.parts.service.shim import Event, Gone, Phase, Shim, ShimError, load_state
from daemon.parts.service.shim import State as ShimState
from daemon.parts.service.spec import Spec

Result = TypeVar("Result")


class Link:
    """`shim` is None while there is none; `state` is then what was known of the last one, or None."""

    def __init__(self, folder: Path, hear: Callable[[Event], None]) -> None:
        """hear: called for what the shim says, and with Gone when it has gone by itself."""
        self.folder = folder
        self.shim: Shim | None = None
        self._hear = hear
        self._last: ShimState | None = None
        self._listener: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    @property
    def state(self) -> ShimState | None:
        """The newest word of the shim."""
        return self._last if self.shim is None else self.shim.state

    async def adopt(self, boot: str) -> bool:
        """Connect to the shim that an earlier daemon of this boot has started; whether there is, or was, one."""
        known = load_state(self.folder)
        self._last = known if known is not None and known.boot == boot else None
        with contextlib.suppress(ShimError):
            self._take(await Shim.connect(self.folder))
        return self.state is not None

    async def spawn(self, binary: Path, spec: Spec) -> bool:
        """Start a shim. False: there is one that a daemon before us had just started, with what it was given then.

        Raises ShimError.
        """
        self.close()
        try:
            shim, fresh = await Shim.spawn(binary, self.folder, spec), True
        except ShimError as error:
            if error.reason != "shim-running":
                raise
            shim, fresh = await Shim.connect(self.folder), False
        self._take(shim)
        return fresh

    async def command(self, command: Callable[[Shim], Coroutine[Any, Any, Result]]) -> Result:
        """Let the shim do something. It is not left half done, even if who asked for it is cancelled.

        Raises ShimError: `shim-gone`, and what the command raises.
        """
        if self.shim is None:
            raise ShimError(f"shim of {self.folder.name}: there is none", reason="shim-gone", retryable=True)
        task = asyncio.create_task(command(self.shim))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be there to hear it
        return await asyncio.shield(task)

    async def regain(self, lost: Shim) -> bool:
        """The connection to `lost` has gone: connect again. False: the shim has gone."""
        async with self._connecting:
            if lost is self.shim:  # else somebody was quicker
                try:
                    self._take(await Shim.connect(self.folder))
                except ShimError:
                    self.shim, self._last = None, lost.state
            return self.shim is not None

    async def quit(self) -> None:
        """End the shim, if there is one. Raises ShimError when it stays."""
        if self.shim is not None:
            try:
                await self.shim.quit()
            except ShimError as error:
                if error.reason != "shim-gone":
                    raise
        self.close()

    def leftovers_killed(self) -> None:
        """All that the shim has left behind is dead now."""
        if self._last is not None:
            code = self._last.code if self._last.phase is Phase.EXITED else -1
            self._last = replace(self._last, phase=Phase.EXITED, populated=False, code=code)

    def close(self) -> None:
        """Let go of it, if there is one: it goes on."""
        if self._listener is not None:
            self._listener.cancel()
        if self.shim is not None:
            self._last = self.shim.state
            self.shim.close()
        self.shim = self._listener = None

    def _take(self, shim: Shim) -> None:
        self.shim = shim
        self._listener = asyncio.create_task(self._listen(shim))

    async def _listen(self, shim: Shim) -> None:
        async for event in shim.events():
            if isinstance(event, Gone):
                await self.regain(shim)
            self._hear(event)
