"""The one door through which the device's Python code starts other programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from daemon.errors import DeviceError

_ENVIRONMENT = {"PATH": "/usr/bin:/usr/sbin", "LC_ALL": "C.UTF-8"}


def run(argv: Sequence[str], *, allow: Sequence[int] = (0,)) -> int:
    """Run a program to its end, output to our own; returns its status.

    argv[0] is an absolute path. Raises DeviceError `program-missing` or `program-failed` (status not in `allow`).
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    try:
        pid = os.posix_spawn(argv[0], list(argv), _ENVIRONMENT, file_actions=[null])
    except OSError as error:
        raise DeviceError(f"{argv[0]} cannot be started: {error.strerror}", reason="program-missing") from error
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in allow:
        raise DeviceError(f"{' '.join(argv)} ended with status {status}", reason="program-failed")
    return status


class Captured(NamedTuple):
    """What a program left: status is the exit code, or minus the number of the signal that ended it."""

    status: int
    out: bytes
    err: bytes


async def capture(
    argv: Sequence[str],
    *,
    given: bytes = b"",
    seconds: float = 10.0,
    limit: int = 4 << 20,
    extra: Mapping[str, str] | None = None,
) -> Captured:
    """Run a program beside everything else and keep what it says; `given` goes to its standard input.

    argv[0] is an absolute path, `extra` is added to the clean environment. Raises DeviceError `program-missing`,
    `program-timeout` (after `seconds`; it is killed) or `program-output` (more than `limit` bytes; it is killed).
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**_ENVIRONMENT, **(extra or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError(f"{argv[0]} cannot be started: {error.strerror}", reason="program-missing") from error
    try:
        async with asyncio.timeout(seconds):
            _, out, err = await asyncio.gather(
                _give(child, given), _take(child.stdout, limit, argv), _take(child.stderr, limit, argv)
            )
            return Captured(await child.wait(), out, err)
    except TimeoutError as error:
        raise DeviceError(f"{argv[0]} did not end within {seconds:g} s", reason="program-timeout") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _give(child: asyncio.subprocess.Process, data: bytes) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(data)
        await child.stdin.drain()
    except ConnectionError:
        pass  # it ended without reading: its status tells
    finally:
        child.stdin.close()


async def _take(stream: asyncio.StreamReader | None, limit: int, argv: Sequence[str]) -> bytes:
    assert stream is not None
    data = bytearray()
    while chunk := await stream.read(64 << 10):
        data += chunk
        if len(data) > limit:
            raise DeviceError(f"{argv[0]} said more than {limit} bytes", reason="program-output")
    return bytes(data)
