"""A program for another part of the daemon: what it is given as bytes is run in a sandbox, to its end."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import aclosing
from typing import NamedTuple

from common.errors import MixosError
from daemon.core.part import Context
from daemon.core.transfer import write
from daemon.linux.cgroup import Tree
from daemon.linux.sandbox.policy import Policy
from daemon.parts.sandbox.run import SETUP, Ended, Runner

# The program comes through a pipe, into a folder that is the sandbox's own: nothing of it is ever a file outside.
_START = ("sh", "-c", "cat >/tmp/program && chmod 500 /tmp/program && exec /tmp/program </dev/null")


class Result(NamedTuple):
    """code: as of `Ended`; timeout: the wall clock has ended it; out, err: what it wrote to its two outputs."""

    code: int
    timeout: bool
    out: bytes
    err: bytes


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def copy(self, to: int) -> None:
        """As `Content.copy`."""
        await write(to, self._data)


async def confined(context: Context, policy: Policy, program: bytes, most: int) -> Result:
    """Run a program with nothing as its input. policy: with a wall clock, and a `/tmp` of its own in which programs may
    run. most: bytes that it may say.

    Raises SandboxError `sandbox-refused`, MixosError `program-output`, `program-timeout`. Nothing of it is left,
    whatever happens to who waits.
    """
    runner = Runner(context, Tree(context.cgroups / ".sandboxes"), label=f"{os.getpid()}-{secrets.token_hex(4)}")
    said, wall = {1: bytearray(), 2: bytearray()}, policy.limits.wall or 0
    try:
        async with asyncio.timeout(wall + SETUP), aclosing(runner.run(policy, _START, _Bytes(program))) as items:
            async for item in items:
                if isinstance(item, Ended):
                    return Result(item.code, item.timeout, bytes(said[1]), bytes(said[2]))
                said[item.stream] += item.data
                if sum(map(len, said.values())) > most:
                    raise MixosError(f"it says more than {most} bytes", reason="program-output")
    except TimeoutError as error:
        raise MixosError(f"it did not end within {wall:g} s", reason="program-timeout") from error
    raise AssertionError("a sandbox without end")
