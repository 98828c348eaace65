"""The system as a whole: is the daemon there, what state is the device in, restart, switch off."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from common.errors import DiskError, MixosError, RefusedError
from common.tomlfile import Strict
from daemon.core import crashes
from daemon.core.method import ADMINS, EVERYONE, OPERATORS, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.linux import power, programs
from daemon.linux.log import log

if TYPE_CHECKING:
    from daemon.parts.system.answers import Facts, Pong, Status, Version, Word


class Reset(Strict):
    """Parameters of `system.reset`."""

    hostname: Annotated[str, Field(max_length=64, description="the device's own, so that it is not another one's data")]
    overwrite: Annotated[
        bool, Field(strict=True, description="write zeros over all of it: may take hours, and what was there is gone")
    ] = False


class SystemPart:
    """The methods without a dot in their name, and `system.reset`. `parts` gives the state of all parts; writer: the
    program that may write to disks (`daemon.slots`)."""

    name = "system"

    def __init__(
        self,
        context: Context,
        parts: Callable[[], Mapping[str, Any]],
        ask: Callable[[signal.Signals], None] | None = None,
        writer: Sequence[str] = programs.SLOTS,
    ) -> None:
        self._writer = writer
        self._context = context
        self._parts = parts
        self._ask = ask or (lambda number: os.kill(1, number))
        self._buttons = 0

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return (
            Method("ping", "Check that the daemon answers.", self._ping, EVERYONE),
            Method("version", "The version of this system.", self._version, EVERYONE),
            Method("status", "Version, slot, health, network, hardening, and the daemon's parts.", self._status),
            Method("reboot", "Stop everything in order and start again.", self._reboot, OPERATORS, changes=True),
            Method("poweroff", "Stop everything in order and switch off.", self._poweroff, OPERATORS, changes=True),
            Method(
                "system.reset",
                "Restart, and erase all data of the device.",
                self._reset,
                ADMINS,
                Reset,
                changes=True,
                seconds=70.0,
            ),
        )

    async def start(self) -> None:
        """Watch the power button."""
        self._buttons = power.watch(lambda: self._ask_init(signal.SIGUSR2, "power-off by button"))

    async def stop(self) -> None:
        """Nothing to keep."""

    def status(self) -> Mapping[str, Any]:
        """The number of power buttons; how often mixosd has crashed since the device started, and why the last time."""
        count, last = crashes.read(self._context.run)
        return {"power-buttons": self._buttons, "crashes": count, "last-crash": last}

    async def _ping(self, caller: Caller, params: Nothing) -> Pong:
        return "pong"

    async def _version(self, caller: Caller, params: Nothing) -> Version:
        from daemon.linux.facts import release

        return {"version": release().get("MIXOS_VERSION", "unknown")}

    async def _status(self, caller: Caller, params: Nothing) -> Status:
        from daemon.linux.facts import status  # loaded with the first question, not at boot

        return {**cast("Facts", status()), "parts": {name: dict(one) for name, one in self._parts().items()}}

    async def _reboot(self, caller: Caller, params: Nothing) -> Word:
        return self._soon(signal.SIGTERM, "reboot")

    async def _poweroff(self, caller: Caller, params: Nothing) -> Word:
        return self._soon(signal.SIGUSR2, "poweroff")

    async def _reset(self, caller: Caller, params: Reset) -> Word:
        from daemon.linux.facts import ROOT, text

        name = text(ROOT / "proc/sys/kernel/hostname")
        if params.hostname != name:
            raise RefusedError(
                f"this device is {name}, not {params.hostname}",
                reason="reset-name",
                hint="name the device whose data are to be erased",
            )
        how = "overwrite" if params.overwrite else "erase"
        try:
            await programs.ended([*self._writer, "reset", how])
        except MixosError as error:
            message = f"the reset could not be prepared, and nothing is erased: {error.message}"
            raise DiskError(message, reason="reset-write", retryable=error.retryable) from error
        log("notice", f"the next boot erases all data ({how}), by {caller.name}")
        return self._soon(signal.SIGTERM, "reboot")

    def _soon(self, number: signal.Signals, word: Word) -> Word:
        asyncio.get_running_loop().call_later(0.2, self._ask_init, number, word)  # the answer goes first
        return word

    def _ask_init(self, number: signal.Signals, word: str) -> None:
        """BusyBox init: SIGTERM reboots, SIGUSR2 powers off, both after the shutdown actions of inittab."""
        log("notice", f"asking init for {word}")
        self._context.events.publish("system.stopping", word)
        self._ask(number)
