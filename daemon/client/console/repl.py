"""The console's prompt: every command of `mixctl` is a line, with or without that word, and a few words of its own.

Commands run in this process, so a line costs no start of an interpreter; whatever goes wrong in one, the prompt comes
back. A script may talk through a pipe: then there is no prompt, no banner, no pages, and the exit code is that of the
last line, as in a shell.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from common.accounts import Account
from common.safe import one_line, printable
from daemon.client.console.complete import Completer
from daemon.client.console.editor import LONGEST, Editor
from daemon.client.console.history import History
from daemon.client.console.pager import paged
from daemon.client.console.terminal import Terminal

IDLE_SECONDS = 1800.0  # an unattended console is somebody else's
HISTORY = ".mixctl_history"
OWN = ("help", "watch", "exit")

_LIVE = frozenset({"top", "watch", "events"})  # verbs whose output is looked at as it comes
_LIVE_OPTIONS = frozenset({"-f", "--follow"})
_NOBODY_READS = 141  # as a shell says it: 128 and SIGPIPE
_HELP = """In the console:
  help [COMMAND]            what a command does
  watch [SECONDS] COMMAND   run a command again and again; q ends it
{shell}  exit                      leave (also Ctrl-D)
Keys: Tab completes, arrows and Ctrl-R recall earlier lines, Ctrl-C drops the line or stops a command.
A line that begins with a blank, or has a word such as "password" or "token", is not kept in the history.
"""
_SHELL = "  shell                     a shell; its `exit` comes back here\n"


class LeaveError(Exception):
    """The session ends, or goes on `in_shell`."""

    def __init__(self, in_shell: bool = False) -> None:
        super().__init__()
        self.in_shell = in_shell


class Console:
    """One session. run: executes a command line of `mixctl` and gives its exit code."""

    def __init__(
        self,
        account: Account,
        run: Callable[[Sequence[str]], int],
        terminal: Terminal | None = None,
        home: Path | None = None,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self.account = account
        self.run = run
        self.terminal = terminal or Terminal()
        self.idle = idle
        self.home = home or Path(account.home)
        self.status = 0

    def session(self) -> int:
        """From the banner to the end; the exit code. May not return: `shell` replaces this process."""
        try:
            self._people() if self.terminal.interactive else self._script()
        except LeaveError as leave:
            if leave.in_shell:
                _become_shell(self.account)
        return self.status

    # -- reading lines -----------------------------------------------------------------------------------------------

    def _people(self) -> None:
        from daemon.client.console.banner import banner

        signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # Ctrl-\ would end the session with a core dump
        history = History(self.home / HISTORY)
        own = (*OWN, "shell") if self.account.has_shell else OWN
        editor = Editor(self.terminal, Completer(own))
        prompt = f"mixos {self.account.name}@{one_line(os.uname().nodename, 64)}> "
        try:
            self.terminal.write(banner(self.account.role))
        except KeyboardInterrupt:
            self.terminal.write("\n")
        plain = os.environ.get("TERM") == "dumb"
        while True:
            try:
                line = self._plain(prompt) if plain else editor.read(prompt, history.lines, self.idle)
                history.add(line)
                self.line(line)
            except KeyboardInterrupt:
                self.status = 130
            except TimeoutError:
                self.terminal.write(f"\nNothing was typed for {self.idle / 60:g} minutes: the session ends.\n")
                raise LeaveError from None
            except EOFError:
                raise LeaveError from None

    def _plain(self, prompt: str) -> str:
        """A line from a terminal that can do nothing but print; the kernel edits it (termios(3), canonical mode)."""
        import select

        self.terminal.write(prompt)
        if not select.select([self.terminal.source], [], [], self.idle)[0]:
            raise TimeoutError
        data = os.read(self.terminal.source, LONGEST)
        if not data:
            raise EOFError
        return data.decode("utf-8", "replace")

    def _script(self) -> None:
        with os.fdopen(self.terminal.source, "rb", closefd=False) as stream:
            while data := stream.readline(LONGEST + 1):
                if len(data) > LONGEST:
                    self.status = self._say(f"a line has more than {LONGEST} bytes", 2)
                    return
                self.line(data.decode("utf-8", "replace"))
                if self.status == _NOBODY_READS:
                    return

    # -- running them ------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """Do what a line says; `self.status` is its exit code. Raises LeaveError."""
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            self.status = self._say(f"{error}: {text.strip()[:60]}", 2)
            return
        if words[:1] == ["mixctl"]:
            words = words[1:] or ["--help"]
        if not words:
            return
        verb, rest = words[0], words[1:]
        if verb in ("exit", "quit", "logout"):
            raise LeaveError
        if verb == "shell":
            self.status = self._shell(rest)
        elif verb in ("help", "?"):
            self.status = self._help(rest)
        elif verb == "watch":
            self.status = self._watch(rest)
        elif verb == "console":
            self.status = self._say("this is the console", 2)
        else:
            self.status = self.execute(words)

    def execute(self, words: Sequence[str], pages: bool = True) -> int:
        """Run a command of mixctl and give its exit code, whatever happens in it."""
        live = words[0] in _LIVE or not _LIVE_OPTIONS.isdisjoint(words)
        page = pages and self.terminal.interactive and not live
        try:
            with paged(self.terminal, self.idle) if page else nullcontext():
                return self.run(words)
        except KeyboardInterrupt:
            self.terminal.write("\n")
            return 130
        except SystemExit as ending:
            return ending.code if isinstance(ending.code, int) else 1
        except Exception as error:  # noqa: BLE001  # a defect in a command must not end the session
            return self._say(f"internal error: {type(error).__name__}: {error}", 1)
        return 0  # the pager was left

    def _say(self, text: str, status: int) -> int:
        sys.stderr.write(f"mixctl: {printable(text)}\n")
        sys.stderr.flush()
        return status

    # -- own words ---------------------------------------------------------------------------------------------------

    def _help(self, words: Sequence[str]) -> int:
        if not words or words[0] in (*OWN, "shell"):
            text = _HELP.format(shell=_SHELL if self.account.has_shell else "")
            return self.execute(["--help"]) or self._print(text)
        return self.execute([*words, "--help"])

    def _print(self, text: str) -> int:
        self.terminal.write(f"\n{text}")
        return 0

    def _shell(self, words: Sequence[str]) -> int:
        if not self.account.has_shell:
            return self._say(f"the role {self.account.role} has no shell", 7)
        if words or not self.terminal.interactive:
            return self._say("'shell' takes no words and needs a terminal; a command: ssh admin@DEVICE -- COMMAND", 2)
        raise LeaveError(in_shell=True)

    def _watch(self, words: Sequence[str]) -> int:
        from daemon.client.console.watch import parse, watch

        wanted = parse(words)
        if isinstance(wanted, str):
            return self._say(wanted, 2)
        if not self.terminal.interactive:
            return self._say("watch needs a terminal", 2)
        return watch(self.terminal, *wanted, lambda command: self.execute(command, pages=False))


def _become_shell(account: Account) -> None:
    """A login shell, and the console again when it ends; this process is gone meanwhile, its memory with it.

    MIXOS_CONSOLE keeps /etc/profile from opening the console at once.
    """
    from daemon.client.console.login import PROGRAM

    sys.stdout.flush()
    again = f"exec {PROGRAM}" if account.uid else "exit 0"  # root came from a shell, by `mixctl console`
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    os.execv("/bin/sh", ["sh", "-c", f"MIXOS_CONSOLE=1 /bin/sh -l; {again}"])
