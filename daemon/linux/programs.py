"""Our programs that work for others (`daemon.release`, `daemon.slots`, …): started, heard by lines, ended with us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from common import said
from common.errors import MixosError
from daemon.linux.log import log

FETCH, RELEASE = ("/usr/libexec/mixos-fetch",), ("/usr/libexec/mixos-release",)
FIRMWARE, FLOOR = ("/usr/libexec/mixos-firmware",), ("/usr/libexec/mixos-floor",)
SLOTS = ("/usr/libexec/mixos-slots",)
_MAX_LINE = 6 << 20  # an order has a hash for each 4 MiB
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8"}


async def lines(argv: Sequence[str], given: str = "", source: int | None = None) -> AsyncGenerator[dict[str, Any]]:
    """What a program says, a line of JSON each. given: a text that it reads from the descriptor whose number is its
    last argument; source: its standard input.

    Raises the MixosError that it tells; `program-failed` when it ends otherwise than with success; `program-missing`.
    It is killed when nobody listens any more.
    """
    text = os.memfd_create("given", os.MFD_CLOEXEC)
    try:
        os.write(text, given.encode())
        os.lseek(text, 0, os.SEEK_SET)
        child = await asyncio.create_subprocess_exec(
            *argv,
            *([str(text)] if given else []),
            stdin=asyncio.subprocess.DEVNULL if source is None else source,
            stdout=asyncio.subprocess.PIPE,
            stderr=None,
            pass_fds=(text,),
            env=_ENVIRONMENT,
            start_new_session=True,
            limit=_MAX_LINE,
        )
    except OSError as error:
        raise MixosError(f"{argv[0]} cannot be started: {error.strerror}", reason="program-missing") from error
    finally:
        os.close(text)
    failed: MixosError | None = None
    try:
        assert child.stdout is not None
        async for line in child.stdout:
            try:
                found = said.read(line)
            except MixosError as error:
                failed = error
            else:
                yield found
        status = await child.wait()
    except ValueError as error:
        raise MixosError(f"{argv[0]} says what nobody understands", reason="program-failed") from error
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
    if failed is not None:
        raise failed
    if status:
        log("err", f"update: {argv[0]} ended with status {status}")
        raise MixosError(f"{argv[0]} ended with status {status}", reason="program-failed", retryable=True)


async def ended(argv: Sequence[str], given: str = "", seconds: float = 60.0) -> dict[str, Any]:
    """Run a program to its end; what it said last, nothing when it said nothing. Raises as `lines`, and MixosError
    `program-timeout`."""
    last: dict[str, Any] = {}
    try:
        async with asyncio.timeout(seconds), aclosing(lines(argv, given)) as heard:
            async for line in heard:
                last = line
    except TimeoutError as error:
        raise MixosError(f"{argv[0]} did not end within {seconds:g} s", reason="program-timeout") from error
    return last
