"""The device's key, to which payloads of bundles are sealed: made once, its public part told (`daemon.unsealer`)."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

from common.bundle import sealing
from common.files import write_atomically
from daemon.linux import x25519
from daemon.unsealer import KEY, read


class DeviceKey:
    """state: the state folder."""

    def __init__(self, state: Path) -> None:
        self._path = state / KEY
        self._turn = asyncio.Lock()

    async def public(self) -> str:
        """The public part as people copy it; the key is made when there is none. Raises DiskError
        `device-key`, MixosError `x25519`; OSError when it cannot be kept."""
        async with self._turn:
            private = await asyncio.to_thread(read, self._path)
            if private is not None:
                return sealing.write_public(await x25519.public_of(private))
            pair = await x25519.make_pair()
            await asyncio.to_thread(self._keep, pair.private)
            return sealing.write_public(pair.public)

    def _keep(self, private: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._path, base64.b64encode(private) + b"\n", mode=0o600)
