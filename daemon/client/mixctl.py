"""`mixctl`: the device's command line. A thin client: ask the daemon, print.

click parses command lines, but importing it doubles the time of the commonest question. So the command lines in
`_PLAIN`, which need no parsing at all, are answered without it; both ways end in `answer`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from common.errors import MixosError
from common.safe import printable, printable_json
from common.streams import open_missing

_PLAIN = {
    ("status",): ("status", False),
    ("status", "--json"): ("status", True),
    ("ping",): ("ping", False),
}
COMPLETE = "_MIXCTL_COMPLETE"  # the variable in which a shell says what it wants completed
_WORDS = {"reboot": "rebooting", "poweroff": "switching off"}


def answer(method: str, as_json: bool) -> str:
    """Ask the daemon and give the text to print: the object itself as JSON, or a form for people."""
    from daemon.client.connection import PATIENCE, call

    result = call(method, {}, patience=PATIENCE)
    if as_json:
        document = result if isinstance(result, dict) else {method: result}
        return printable_json(json.dumps(document, indent=1, ensure_ascii=False))
    if method == "status":
        from daemon.client.show import table

        return printable(table(result))
    return _WORDS.get(method, printable(str(result)))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a wrong command line, else the error's own."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    open_missing()
    try:
        plain = _PLAIN.get(arguments)
        if plain is None:
            return _parsed(arguments)
        print(answer(*plain), flush=True)
    except MixosError as error:
        return _failed(error, arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\n")  # behind the terminal's ^C
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; the interpreter must not complain about it
        return 141
    except OSError as error:  # a file that cannot be read, or a full disk behind our output
        return _failed(_told(error), arguments)
    return 0


def _told(error: OSError) -> MixosError:
    """What could not be read or written: a file with a name, or our output, of which the rest is dropped then."""
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    try:
        sys.stdout.flush()
    except OSError:
        where = "standard output"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return MixosError(f"{where or 'a file'}: {error.strerror or error}", reason="file-io")


def _failed(error: MixosError, arguments: Sequence[str]) -> int:
    """Tell an error; its exit code."""
    if wants_json(arguments):
        sys.stderr.write(json.dumps(error.as_json()) + "\n")
    else:
        hint = f"  {error.hint}\n" if error.hint else ""
        sys.stderr.write(printable(f"mixctl: {error.message}\n{hint}"))
    return error.exit_code


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether an error is to be told as JSON; what stands behind `--` belongs to another program."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in own


def _parsed(arguments: Sequence[str]) -> int:
    import click
    from click.exceptions import Exit

    from daemon.client.cli import cli

    if instruction := os.environ.get(COMPLETE):  # the script of `mixctl completion` asks
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "mixctl", COMPLETE, instruction)
    try:
        # Not `cli.main`: it makes a reader that went away a failure (exit code 1).
        with cli.make_context("mixctl", list(arguments)) as context:
            result = cli.invoke(context)
    except Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        if wants_json(arguments):
            told = MixosError(error.format_message(), reason="usage", hint="--help shows what it takes")
            sys.stderr.write(json.dumps({**told.as_json(), "exit_code": error.exit_code}) + "\n")
        else:
            error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return result if isinstance(result, int) else 0
