"""The one door through which the device's Python code starts other programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess  # noqa: TID251  # its error alone; this module is the door
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import MixosError

_ENVIRONMENT = {"PATH": "/usr/bin:/usr/sbin", "LC_ALL": "C.UTF-8"}


def run(argv: Sequence[str], *, allow: Sequence[int] = (0,)) -> int:
    """Run a program to its end, output to our own; returns its status.

    argv[0] is an absolute path. Raises MixosError `program-missing` or `program-failed` (status not in `allow`).
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    try:
        pid = os.posix_spawn(argv[0], list(argv), _ENVIRONMENT, file_actions=[null])
    except OSError as error:
        raise MixosError(f"{argv[0]} cannot be started: {error.strerror}", reason="program-missing") from error
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in allow:
        raise MixosError(f"{' '.join(argv)} ended with status {status}", reason="program-failed")
    return status


class Captured(NamedTuple):
    """What a program left: status is the exit code, or minus the number of the signal that ended it."""

    status: int
    out: bytes
    err: bytes


@dataclass(frozen=True)
class Runner:
    """Who a program runs as. groups: supplementary, replacing ours; cgroup: the folder of its control group, if any."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    cgroup: Path | None = None


async def capture(
    argv: Sequence[str],
    *,
    given: bytes = b"",
    seconds: float = 10.0,
    limit: int = 4 << 20,
    extra: Mapping[str, str] | None = None,
    runner: Runner | None = None,
) -> Captured:
    """Run a program beside everything else and keep what it says; `given` goes to its standard input.

    argv[0] is an absolute path, `extra` is added to the clean environment, `runner` is for root only. Raises
    MixosError `program-missing`, `program-timeout` (after `seconds`) or `program-output` (more than `limit` bytes); it
    is killed then, with all that it has started.
    """
    try:
        with contextlib.ExitStack() as stack:
            child = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**_ENVIRONMENT, **(extra or {})},
                start_new_session=True,
                **(_run_as(runner, stack) if runner else {}),
            )
    except (OSError, subprocess.SubprocessError) as error:  # the latter: it could not move to its cgroup
        why = error.strerror if isinstance(error, OSError) else error
        raise MixosError(f"{argv[0]} cannot be started: {why}", reason="program-missing") from error
    done = False
    try:
        async with asyncio.timeout(seconds):
            _, out, err = await asyncio.gather(
                _give(child, given), _take(child.stdout, limit, argv), _take(child.stderr, limit, argv)
            )
            status = await child.wait()
            done = True
            return Captured(status, out, err)
    except TimeoutError as error:
        raise MixosError(f"{argv[0]} did not end within {seconds:g} s", reason="program-timeout") from error
    finally:
        if not done:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # its session: what it has started holds our pipes, too
            await child.wait()


async def launch(argv: Sequence[str], *, seconds: float) -> tuple[int, bytes]:
    """Run a program that goes into the background by itself; its first process's status, and what that said on stderr.

    Less work than `capture`: no thread, and one pipe. argv[0] is an absolute path. Raises MixosError
    `program-missing` or `program-timeout` (after `seconds`; it is killed then).
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
        actions = [*null, (os.POSIX_SPAWN_DUP2, theirs, 2)]
        try:
            pid = os.posix_spawn(
                argv[0], list(argv), _ENVIRONMENT, file_actions=actions, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ)
            )
        except OSError as error:
            raise MixosError(f"{argv[0]} cannot be started: {error.strerror}", reason="program-missing") from error
        try:
            status = await _ended(pid, seconds)
        except TimeoutError as error:
            raise MixosError(f"{argv[0]} did not end within {seconds:g} s", reason="program-timeout") from error
        try:
            return status, os.read(ours, select.PIPE_BUF)
        except BlockingIOError:
            return status, b""
    finally:
        os.close(ours)
        os.close(theirs)


async def _ended(pid: int, seconds: float) -> int:
    """The status of a child of ours when it has ended; it is killed when it takes longer, or nobody waits any more."""
    loop = asyncio.get_running_loop()
    process = os.pidfd_open(pid)
    try:
        done = asyncio.Event()
        loop.add_reader(process, done.set)
        async with asyncio.timeout(seconds):
            await done.wait()
    except BaseException:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        loop.remove_reader(process)
        os.close(process)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run_as(runner: Runner, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Arguments of subprocess.Popen; what they need open until then is put on the stack. Raises OSError.

    The child moves itself before it executes anything. It is not root any more by then: the right to write is that of
    who has opened the file (Documentation/admin-guide/cgroup-v2.rst, delegation). One write(2) and no lock: that is all
    that may be done between a fork of many threads and execve.
    """
    given: dict[str, Any] = {"user": runner.uid, "group": runner.gid, "extra_groups": runner.groups}
    if runner.cgroup is not None:
        procs = os.open(runner.cgroup / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, procs)
        given["preexec_fn"] = partial(os.write, procs, b"0")
    return given


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
            raise MixosError(f"{argv[0]} said more than {limit} bytes", reason="program-output")
    return bytes(data)
