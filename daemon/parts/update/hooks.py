"""Hooks of a release: programs of its bundle that look at the device, and may refuse (docs/bundle.md#hooks).

They are kept from `stage` to `apply` in a folder of root's, by their hash, and hashed again whenever one is run. They
run in the sandbox profile `update-hook`: all that they do is to say a line for people, and to end with 0 or not.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from common.bundle.order import MAX_HOOK, Hook, Order
from common.errors import DiskError, MixosError, RefusedError
from common.files import read_regular, write_atomically
from common.safe import one_line
from daemon.core.manifest import function
from daemon.core.part import Context
from daemon.core.profiles import load_profile
from daemon.linux.log import log

PROFILE = "update-hook"
MAX_SAID = 64 << 10  # bytes that a hook may say
_MAX_LINE = 300


class Hooks:
    """Those of the release that was staged, and of the one that is taken."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._folder = context.state / "update" / "hooks"

    def there(self) -> list[str]:
        """Hashes of those that are kept, and sound."""
        return [name for name in self._names() if self._read(name) is not None]

    def keep(self, orders: Iterable[Order], given: Mapping[str, str]) -> None:
        """Keep those of these releases, and no others. given: base64 of what has come, by hashes. Raises DiskError
        `update-hook-kept`."""
        wanted = {hook.piece.sha256.hex() for order in orders for hook in order.hooks}
        try:
            for name in set(self._names()) - wanted:
                (self._folder / name).unlink()
            for name in wanted & given.keys():
                with contextlib.suppress(binascii.Error):  # then it is not there
                    self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    write_atomically(self._folder / name, base64.b64decode(given[name]), 0o600)
        except OSError as error:
            message = f"{self._folder}: hooks cannot be kept: {error.strerror}"
            raise DiskError(message, reason="update-hook-kept", retryable=True) from error

    async def ask(self, order: Order, hook: Hook, running: str) -> None:
        """Whether one lets the release pass. running: the version that runs.

        Raises RefusedError: `update-hook`, with its own words; `update-hook-sandbox` when it could not be confined, so
        that it did not run; `update-hook-lost` when it is not what was verified any more.
        """
        program = await asyncio.to_thread(self._read, hook.piece.sha256.hex())
        if program is None:
            message = f"{order.version}: its hook {hook.when} is not there as it was verified"
            raise RefusedError(message, reason="update-hook-lost", hint="stage the release again")
        try:
            policy = load_profile(self._context, PROFILE)
            wall = min(hook.seconds, policy.limits.wall or hook.seconds)
            told = {"MIXOS_HOOK": hook.when, "MIXOS_RUNNING": running, "MIXOS_RELEASE": order.version}
            limits = policy.limits.model_copy(update={"wall": float(wall)})
            policy = policy.model_copy(update={"limits": limits, "environment": {**policy.environment, **told}})
            found = await function("confined")(self._context, policy, program, MAX_SAID)
        except MixosError as error:
            if error.reason in ("program-output", "program-timeout"):
                raise _refused(order, hook, error.message) from error
            message = f"{order.version}: its hook {hook.when} cannot be run confined: {error.message}"
            raise RefusedError(message, reason="update-hook-sandbox", hint=error.hint) from error
        if found.timeout:
            raise _refused(order, hook, f"it did not end within {wall:g} s")
        if found.code:
            raise _refused(order, hook, _words(found))
        log("notice", f"update: {order.version} passes its hook {hook.when}")

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._folder))
        except OSError:  # most of all: there never were any
            return []

    def _read(self, name: str) -> bytes | None:
        """The bytes of this hash; None when they are not there."""
        try:
            data = read_regular(self._folder / name, MAX_HOOK + 1)
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == name else None


def _refused(order: Order, hook: Hook, why: str) -> RefusedError:
    return RefusedError(f"{order.version} refuses itself {hook.when}: {why}", reason="update-hook")


def _words(found: Any) -> str:
    """The last line that a hook wrote to standard output, else to the other, else how it ended."""
    for data in (found.out, found.err):
        if lines := data.decode("utf-8", "replace").strip().splitlines():
            return one_line(lines[-1].strip(), _MAX_LINE)
    return f"it ended by signal {found.code - 128}" if found.code > 128 else f"it ended with status {found.code}"
