"""The kernel's side: the only user of `nft`.

How the kernel prints a rule is known to the kernel alone, so a wanted document is compared with the rules in force by
loading it into an empty network namespace and reading both back: the same words for the same rules, whatever the
version. The namespace belongs to one thread (unshare(2)) and ends with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from common.errors import ConfigError, MixosError
from daemon.linux import process
from daemon.parts.firewall.rules import FAMILY, TABLE

NFT = "/usr/sbin/nft"
_SECONDS = 60.0
_LISTING = 32 << 20  # bytes: 200 000 addresses take 4 MiB
_NEWNET = 0x40000000  # linux/sched.h, CLONE_NEWNET

Result = TypeVar("Result")


@dataclass(frozen=True)
class Listing:
    """A table as the kernel prints it, without counters and set elements; elements: digests by set."""

    text: str
    elements: dict[str, str] = field(default_factory=dict)


class Kernel:
    """nf_tables of the network namespace that the daemon lives in. `tool` is an absolute path."""

    def __init__(self, tool: str = NFT) -> None:
        self.tool = tool

    async def load(self, document: bytes) -> None:
        """Apply a document, all of it or, when this raises ConfigError `firewall-invalid`, nothing."""
        await self._give(["-j", "-f", "-"], document)

    async def load_text(self, text: str) -> None:
        """Like `load`, in nft's own language."""
        await self._give(["-f", "-"], text.encode())

    async def listing(self, sets: Sequence[str] = (), table: str = TABLE) -> Listing | None:
        """The table in force, with digests of the elements of `sets`; None when there is no such table."""
        text = await self._list(["-s", "-t", "list", "table", FAMILY, table])
        if text is None:
            return None
        elements = {}
        for name in sets:
            content = await self._list(["-s", "list", "set", FAMILY, table, name])
            elements[name] = hashlib.sha256(content or b"").hexdigest()
        return Listing(text.decode(errors="replace"), elements)

    async def counters(self) -> bytes | None:
        """The table as JSON with counters, without set elements; None when there is no such table."""
        return await self._list(["-j", "-t", "list", "table", FAMILY, TABLE])

    async def wanted(self, document: bytes, sets: Sequence[str]) -> Listing:
        """How the kernel would print a document. Raises ConfigError `firewall-invalid`."""

        async def try_it() -> Listing | None:
            await self.load(document)
            return await self.listing(sets)

        return await apart(try_it) or Listing("")

    async def accepts_text(self, text: str) -> bool:
        """Whether this `nft` and kernel know what a text uses."""
        answer = await process.capture([self.tool, "-c", "-f", "-"], given=text.encode(), seconds=_SECONDS)
        return answer.status == 0

    async def _give(self, options: Sequence[str], document: bytes) -> None:
        answer = await process.capture([self.tool, *options], given=document, seconds=_SECONDS)
        if answer.status != 0:
            words = answer.err.decode(errors="replace").split("\n")
            said = "; ".join(line.strip() for line in words if "rror" in line)[:500] or f"status {answer.status}"
            raise ConfigError(f"nft: {said}", reason="firewall-invalid", hint="the rules in force were not changed")

    async def _list(self, arguments: Sequence[str]) -> bytes | None:
        answer = await process.capture([self.tool, *arguments], seconds=_SECONDS, limit=_LISTING)
        if answer.status == 0:
            return answer.out
        if b"No such file or directory" in answer.err:
            return None
        said = answer.err.decode(errors="replace").strip().partition("\n")[0][:300]
        raise MixosError(f"nft {arguments[-1]}: {said}", reason="firewall-kernel")


async def apart(work: Callable[[], Awaitable[Result]]) -> Result:
    """Do asynchronous work in a thread that has a new, empty network namespace, and programs started there too."""

    async def awaited() -> Result:
        return await work()

    def thread() -> Result:
        _leave_network()
        return asyncio.run(awaited())

    # A thread of its own, not one of a pool: whoever came later would be in the namespace too.
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1, "firewall")
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, thread)
    finally:
        pool.shutdown(wait=False)


def _leave_network() -> None:
    if sys.version_info >= (3, 12):
        os.unshare(_NEWNET)
    else:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
