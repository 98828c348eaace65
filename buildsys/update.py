"""Bringing a bundle to a device over SSH, from this computer: it asks for what it needs of it, and nothing is copied.

`mixctl update stage -` on the device asks for ranges on its standard output and has them on its standard input
(`common.bundle.ranges`); how far it is stands on its standard error, as JSON. SSH is the person's own program with the
person's own configuration.
The device may not be the one that it was: what it says is bounded, has the form that is expected, and no word for a
terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from buildsys.run import Process, kill_group, spawn
from common.bundle.ranges import answer
from common.errors import HostError, MixosError, UnreachableError, UsageError
from common.safe import one_line

Step = Callable[[dict[str, Any]], None]
Ssh = Sequence[str]  # the command up to and including the host
_POLL = 3.0  # seconds between two questions to a device that restarts
_ASK = 30.0  # seconds for one of them
_MAX_LINE = 16 << 10  # bytes of a line that a device says
_MAX_ANSWER = 4 << 20  # bytes of an answer
_SSH_FAILED = 255  # ssh(1), EXIT STATUS: whatever it was
_LINES = 40  # of what SSH said
# What OpenSSH says before it ends so, in lines of its own (sshconnect.c, sshconnect2.c; they are not translated).
_CHANGED = re.compile(r"@ +WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! +@")
_NO_KEY = re.compile(r"Host key verification failed\.")
_NO_LOGIN = re.compile(
    r"\S+: Permission denied \([a-z0-9,@.-]*\)\.|Received disconnect from .*Too many authentication.*"
)


def command(program: str, host: str) -> tuple[str, ...]:
    """program: SSH with its options, as for a shell. Raises UsageError `update-host`, `update-program`; HostError
    `tool-missing`."""
    if not host or host.startswith("-"):
        hint = "a name of ssh_config, or USER@ADDRESS"
        raise UsageError(f"{host!r} is no host", reason="update-host", hint=hint)
    try:
        words = shlex.split(program)
    except ValueError:
        words = []
    if not words:
        hint = "a program and its options, such as 'ssh -p 2222'"
        raise UsageError(f"--ssh {program!r} is no command", reason="update-program", hint=hint)
    if shutil.which(words[0]) is None:
        hint = "--ssh names the program; the package openssh-client has ssh"
        raise HostError(f"there is no program {words[0]}", reason="tool-missing", hint=hint)
    return (*words, host, "--")


def stage(ssh: Ssh, bundle: Path, again: bool, step: Step) -> dict[str, Any]:
    """What the device has staged. Raises MixosError with its reasons; UnreachableError `update-ssh`,
    `update-host-changed`, `update-host-unknown`, `update-login`."""
    words = [*ssh, "mixctl", "update", "stage", "-", "--json", *(["--again"] if again else [])]
    with bundle.open("rb") as stream:
        process = spawn(words, terminal=True, talk=True)
        assert process.stdin is not None
        assert process.stdout is not None
        said: list[dict[str, Any]] = []
        lines: list[str] = []
        hearing = threading.Thread(target=_hear, args=(process.stderr, said, lines, step), daemon=True)
        hearing.start()
        try:
            with contextlib.suppress(OSError):
                read = _reader(stream.fileno())
                answer(process.stdout.fileno(), process.stdin.fileno(), read)
            with contextlib.suppress(OSError):
                process.stdin.close()
            status = process.wait()
            hearing.join(10)
        except BaseException:
            kill_group(process)
            raise
    last = said[-1] if said else {}
    if status or last.get("step") != "staged":
        raise _failure(status, last, lines)
    return last


def _reader(descriptor: int) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        try:
            return os.pread(descriptor, length, offset)
        except OSError as error:
            raise MixosError(f"the bundle cannot be read: {error.strerror}", reason="source-unreadable") from error

    return read


def _hear(stream: Any, said: list[dict[str, Any]], lines: list[str], step: Step) -> None:
    """Lines of the device as they come; what is none of ours is SSH's, and for people. The last is kept; lines: of
    SSH, none once the device has said something."""
    while line := stream.readline(_MAX_LINE):
        try:
            found = _step(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            found = {"words": one_line(line.decode("utf-8", "replace").rstrip(), 500)}
            lines[:] = [*lines, found["words"]][-_LINES:]
        else:
            lines.clear()
        step(found)
        if "words" not in found or not said or "words" in said[0]:
            said[:] = [found]


def _step(found: Any) -> dict[str, Any]:
    """A step, or why it fails, as `mixctl update stage --json` says it. Raises ValueError, TypeError, KeyError."""
    if "error" in found:
        return {name: found.get(name) for name in ("error", "reason", "hint", "retryable")}
    numbers = {name: found[name] for name in ("done", "of", "fetched")}
    if any(type(value) is not int or not 0 <= value < 1 << 53 for value in numbers.values()):
        raise ValueError("a number")
    return {**{name: _word(found[name]) for name in ("version", "slot", "step")}, **numbers}


def _word(value: object) -> str | None:
    return one_line(value, 80) if isinstance(value, str) else None


def ask(ssh: Ssh, *words: str, seconds: float | None = None) -> dict[str, Any]:
    """What `mixctl` on the device answers with `--json`. Raises as `stage`."""
    process = spawn([*ssh, "mixctl", *words, "--json"], terminal=True, talk=True)
    timer = threading.Timer(seconds, kill_group, (process,)) if seconds else None
    try:
        if timer:
            timer.start()
        out, err = _output(process)
    finally:
        if timer:
            timer.cancel()
    try:
        found = json.loads(out if out.strip() else err.splitlines()[-1] if err.splitlines() else b"{}")
        found = found if isinstance(found, dict) else {}
    except (ValueError, RecursionError):
        found = {"error": one_line(err.decode("utf-8", "replace").strip(), 500)}
    if process.returncode:
        raise _failure(process.returncode, found, err.decode("utf-8", "replace").splitlines())
    return found


def _output(process: Process) -> tuple[bytes, bytes]:
    """What it says until it ends: all of its output, which must not be too long, and the end of its errors."""
    assert process.stdin is not None
    assert process.stdout is not None
    errors = [b""]
    with contextlib.suppress(OSError):
        process.stdin.close()
    hearing = threading.Thread(target=_last, args=(process.stderr, errors), daemon=True)
    hearing.start()
    out: bytes = process.stdout.read(_MAX_ANSWER + 1)
    if len(out) > _MAX_ANSWER:
        kill_group(process)
        out = b""
    process.wait()
    hearing.join(10)
    return out, errors[0]


def _last(stream: Any, held: list[bytes]) -> None:
    while piece := stream.read1(_MAX_LINE):
        held[0] = (held[0] + piece)[-_MAX_LINE:]


def _failure(status: int, said: dict[str, Any], lines: Sequence[str]) -> MixosError:
    if "error" in said and "reason" in said:
        message, hint = one_line(said["error"], 1000), said.get("hint") and one_line(said["hint"], 300)
        error = MixosError(
            message, reason=one_line(said["reason"], 60), hint=hint, retryable=bool(said.get("retryable"))
        )
        error.exit_code = status or 1
        return error
    if status == _SSH_FAILED and "step" not in said and (refused := _refused(lines)):
        return refused
    words = f": {said.get('error') or said.get('words')}" if said.get("error") or said.get("words") else ""
    hint = "does 'ssh HOST mixctl status' work?"
    return UnreachableError(f"ssh ended with status {status}{words}", reason="update-ssh", hint=hint, retryable=True)


def _refused(lines: Iterable[str]) -> UnreachableError | None:
    """Why SSH did not let us in, where it says that in so many words: to try again does not help then. A device that
    says the same is one to which SSH was let in, and gains nothing by it."""
    found = [line.strip() for line in lines]
    if any(_NO_KEY.fullmatch(line) for line in found):
        if any(_CHANGED.fullmatch(line) for line in found):
            message = "the device has another host key than before, or somebody stands in between"
            hint = "once erased or flashed it has a new one: compare it on its console, then ssh-keygen -R HOST"
            return UnreachableError(message, reason="update-host-changed", hint=hint)
        hint = "ssh HOST, and compare what it shows with the device's console (mixctl status)"
        message = "the device's host key is none that this computer trusts"
        return UnreachableError(message, reason="update-host-unknown", hint=hint)
    for line in found:
        if _NO_LOGIN.fullmatch(line):
            hint = "which account, which key? ssh -v HOST; an administrator or operator: mixos update admin@ADDRESS"
            message = f"the device does not let this account in: {one_line(line, 300)}"
            return UnreachableError(message, reason="update-login", hint=hint)
    return None


def wait(ssh: Ssh, version: str, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """The device's `update status` once it runs that version and has called it good.

    Raises MixosError `update-fell-back` when it runs another one after its restart, with the reason that it gives;
    `update-not-good` when it has not called it good after so many seconds.
    """
    end, shown, left = time.monotonic() + seconds, "", False
    while time.monotonic() < end:
        try:
            found = ask(ssh, "update", "status", seconds=_ASK)
            absent = "restarting"
        except MixosError as error:
            found, left = {}, True
            absent = "restarting" if error.retryable else error.message
        running, state = _word(found.get("version")), _word(found.get("state"))
        words = f"{running}: {state}" if found else absent
        if found.get("problem"):
            words += f", waits for: {one_line(found['problem'])}"
        if words != shown:
            tell(words)
        shown = words
        if running == version and state == "good":
            return {**found, "slot": _word(found.get("slot")), "state": state}
        if left and running not in (None, version):
            blocked = found.get("blocked")
            reason = (blocked.get(version) if isinstance(blocked, dict) else None) or "it does not say why"
            message = f"the device runs {running} again: {one_line(reason, 500)}"
            raise MixosError(message, reason="update-fell-back", hint="mixctl update history")
        time.sleep(_POLL)
    raise MixosError(f"{version} was not called good within {seconds:g} s", reason="update-not-good", retryable=True)
