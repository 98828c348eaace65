"""The process of a sandbox's filtering proxy: one for each sandbox, so that none is the way into another.

It gets the listening socket as its file and the allow list in its settings (`name`, `allow`). mixosd answers
`upstream`: the device's own proxy for a URL, from a file that only root reads.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

from common.errors import UnreachableError
from daemon.core.worker.channel import Handler
from daemon.core.worker.child import Host
from daemon.linux.sandbox.proxy_rules import Rules
from daemon.parts.sandbox.proxy import Proxy


class ProxyProcess:
    """See the module."""

    def __init__(self, host: Host) -> None:
        self._host = host
        settings = host.settings
        self._proxy = Proxy(settings["name"], Rules(settings["allow"]), host.events, upstream=self._upstream)
        self._serving: asyncio.Task[None] | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """Nothing is asked of it."""
        return {}

    async def start(self) -> None:
        """Serve."""
        self._serving = asyncio.create_task(self._proxy.serve(socket.socket(fileno=self._host.files[0])))

    async def stop(self) -> None:
        """End all connections."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """What happened so far."""
        return self._proxy.facts()

    async def _upstream(self, url: str) -> Mapping[str, str]:
        found = await self._host.ask("upstream", url)
        if not isinstance(found, dict):
            raise UnreachableError("mixosd does not say which proxy to use", reason="upstream")
        return found
