"""The one door through which this project starts other programs on the host.

`run` takes an argv (never a shell line), gives the child a clean environment and an empty stdin, streams its output as
bytes, enforces a time limit, and kills the whole process group on time-out or interrupt. A failure carries the exact
command to paste. Lint forbids `subprocess` anywhere else.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.errors import HostError, MixosError

CLEAN_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}
Process = subprocess.Popen[bytes]
ANY_STATUS = range(-64, 256)  # for `allow`: however it ends, also by a signal (its number, negative)
_TAIL = 4000  # bytes of output quoted in an error


class CommandError(MixosError):
    """A program ended with a status other than the ones allowed, or did not end in time."""

    exit_code = 5

    def __init__(self, argv: Sequence[str], status: int | None, output: bytes) -> None:
        what = "ran out of time" if status is None else f"ended with status {status}"
        tail = output[-_TAIL:].decode("utf-8", "replace").strip()
        super().__init__(
            f"{argv[0]} {what}\n  command: {shlex.join(argv)}" + (f"\n{tail}" if tail else ""),
            reason="command-timeout" if status is None else "command-failed",
        )
        self.status = status
        self.output = output


@dataclass(frozen=True)
class Completed:
    """A finished process: its status and what it wrote (stderr is folded into stdout unless split)."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, decoded once, trailing newline removed."""
        return self.stdout.decode("utf-8", "replace").rstrip("\n")


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | IO[bytes] | None = None,
    log: IO[bytes] | None = None,
    split: bool = False,
    allow: Sequence[int] = (0,),
    timeout: float | None = None,
    pass_fds: Sequence[int] = (),
    inherit: Sequence[str] = (),
    terminal: bool = False,
) -> Completed:
    """Run `argv` to its end.

    env is added to a clean base environment, `inherit` names (glob patterns) what else to take over from ours. stdin is
    bytes, an open file, or nothing. With `log` the output goes to that file and is not returned. `split` keeps stderr
    apart. `terminal` hands the caller's terminal and full environment over (for ssh and shells). Raises HostError when
    the program is missing, CommandError when its status is not in `allow` or after `timeout` seconds.
    """
    words = [os.fspath(word) for word in argv]
    try:
        process = spawn(
            words,
            env={**inherited(inherit), **(env or {})},
            cwd=cwd,
            stdin=stdin,
            log=log,
            split=split,
            pass_fds=pass_fds,
            terminal=terminal,
        )
    except FileNotFoundError as error:
        if cwd is not None and not cwd.is_dir():
            raise HostError(f"{cwd}: this folder is gone", reason="folder-gone") from error
        raise missing_tool(words[0]) from error
    try:
        data = stdin if isinstance(stdin, bytes) else None
        out, err = process.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        kill_group(process)
        raise CommandError(words, None, error.output or b"") from error
    except BaseException:
        kill_group(process)
        raise
    if process.returncode not in allow:
        raise CommandError(words, process.returncode, (out or b"") + (err or b""))
    return Completed(process.returncode, out or b"", err or b"")


def spawn(
    words: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | IO[bytes] | None = None,
    log: IO[bytes] | None = None,
    split: bool = False,
    pass_fds: Sequence[int] = (),
    terminal: bool = False,
    talk: bool = False,
) -> Process:
    """Start `words` in its own process group (unless it owns the terminal) and return the process.

    Same arguments as `run`; the caller waits for it and uses `kill_group` to end it. talk: with the terminal as well,
    which it may ask for a passphrase, its standard input, output and error are pipes.
    """
    if terminal:
        pipe = subprocess.PIPE if talk else None
        environment = {**os.environ, **(env or {})}
        return subprocess.Popen(
            words, cwd=cwd, env=environment, pass_fds=pass_fds, stdin=pipe, stdout=pipe, stderr=pipe
        )
    feed: int | IO[bytes] = subprocess.DEVNULL
    if stdin is not None:
        feed = subprocess.PIPE if isinstance(stdin, bytes) else stdin
    return subprocess.Popen(
        words,
        cwd=cwd,
        env={**CLEAN_ENV, **({"HOME": os.environ["HOME"]} if "HOME" in os.environ else {}), **(env or {})},
        stdin=feed,
        stdout=log if log is not None else subprocess.PIPE,
        stderr=subprocess.PIPE if split and log is None else subprocess.STDOUT,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def inherited(patterns: Sequence[str]) -> dict[str, str]:
    """The variables of our own environment whose names match one of the patterns."""
    return {
        name: value for name, value in os.environ.items() if any(fnmatch.fnmatchcase(name, item) for item in patterns)
    }


def kill_group(process: Process, grace: float = 2.0) -> None:
    """End a process and everything in its group, or it alone where that is ours (with a terminal): SIGTERM, `grace` s,
    then SIGKILL."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue


def find_tool(name: str) -> Path:
    """The path of a host program, looked up on the clean PATH. Raises HostError when it is not there."""
    found = shutil.which(name, path=CLEAN_ENV["PATH"])
    if found is None:
        raise missing_tool(name)
    return Path(found)


def missing_tool(name: str) -> HostError:
    """The error for a program that this host lacks."""
    return HostError(
        f"this machine has no program '{name}'",
        reason="tool-missing",
        hint="run 'make bootstrap', or 'mixos doctor' to see which package holds it",
    )
