"""`mixos-console`: what sshd starts for an account without a shell, and an administrator's terminal.

sshd runs a login shell as `SHELL` for a terminal and `SHELL -c COMMAND` for a command (session.c, do_child; exec(3)).
With ForceCommand, COMMAND is always ours, and what the client asked for, sftp included, is in SSH_ORIGINAL_COMMAND.
A command is split into words as a shell would, and no shell ever sees it.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import MutableMapping, Sequence

from common.accounts import Account, of_uid
from common.errors import MixosError, RefusedError
from common.safe import printable
from common.streams import open_missing

PROGRAM = "/usr/libexec/mixos-console"
MIXCTL = ("mixctl", "/usr/bin/mixctl")
_LONGEST = 32 << 10  # characters of a command
_KEPT = ("SSH_CONNECTION", "SSH_TTY", "SSH_USER_AUTH")  # the session's own facts, from sshd


def main(arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code: the command's own, or 7 when it is refused. May not return."""
    open_missing()
    try:
        account = of_uid(os.getuid())
        if account is None:
            raise RefusedError(f"user id {os.getuid()} has no role on this device", reason="console-account")
        command = requested(arguments, os.environ.get("SSH_ORIGINAL_COMMAND"))
        if command is not None and account.has_shell:
            os.execv("/bin/sh", ["sh", "-c", command])
        tidy(os.environ, account)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        if not account.has_shell:
            confine()
        return _session(account) if command is None else _execute(words(command, account))
    except MixosError as error:
        hint = f"  {error.hint}\n" if error.hint else ""
        sys.stderr.write(f"mixos-console: {printable(error.message)}\n{printable(hint)}")
        return error.exit_code


def requested(arguments: Sequence[str], original: str | None) -> str | None:
    """The command that was asked for; None for a session with a prompt. Raises RefusedError `console-usage`."""
    if not arguments:
        return None
    if len(arguments) != 2 or arguments[0] != "-c":
        raise RefusedError("usage: mixos-console [-c COMMAND]", reason="console-usage")
    return original if arguments[1] == PROGRAM else arguments[1]


def words(command: str, account: Account) -> list[str]:
    """The words behind `mixctl`. Raises RefusedError: `console-too-long`, `console-quotes`, `console-no-shell`."""
    if len(command) > _LONGEST:
        raise RefusedError(f"a command has at most {_LONGEST} characters", reason="console-too-long")
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise RefusedError(f"the command cannot be read: {error}", reason="console-quotes") from error
    if not found or found[0] not in MIXCTL:
        raise RefusedError(
            f"the role {account.role} has no shell and no file transfer: only mixctl runs here",
            reason="console-no-shell",
            hint=f"for example: ssh {account.name}@DEVICE -- mixctl status --json",
        )
    return found[1:]


def tidy(environment: MutableMapping[str, str], account: Account) -> None:
    """Leave nothing in the environment that a client, a file or a start script chose: no pager, editor, locale."""
    kept = {name: environment[name] for name in _KEPT if name in environment}
    term = environment.get("TERM", "")
    plain = term.isascii() and 0 < len(term) <= 32 and all(char.isalnum() or char in "-._+" for char in term)
    environment.clear()
    environment.update(kept)
    environment.update(
        PATH="/usr/bin:/usr/sbin",
        HOME=account.home,
        USER=account.name,
        LOGNAME=account.name,
        LC_ALL="C.UTF-8",
        TERM=term if plain else "dumb",
    )


def confine() -> None:
    """Give up starting programs: fork(2) fails from now on (setrlimit(2), RLIMIT_NPROC), and no core is dumped.

    The commands of mixctl only talk to the daemon. Were one of them made to do more, the kernel says no.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _session(account: Account) -> int:
    from daemon.client.console.repl import Console
    from daemon.client.mixctl import main as mixctl

    return Console(account, mixctl).session()


def _execute(arguments: Sequence[str]) -> int:
    from daemon.client.mixctl import main as mixctl

    try:
        return mixctl(arguments)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # no traceback for whoever is at the other end
        sys.stderr.write(printable(f"mixctl: internal error: {type(error).__name__}: {error}\n"))
        return 1
