"""Entry point of `mixos`: finds the verb, runs it, and turns errors into a message and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from buildsys.cli.context import Context
from buildsys.oserrors import host_error
from common.errors import MixosError, UsageError
from common.safe import printable
from common.streams import open_missing

INTERRUPTED = 130

# verb → module below buildsys.cli that defines a click command of that name; loaded only when it is used
VERBS = (
    "build",
    "bundle",
    "cache",
    "channel",
    "completion",
    "daemon",
    "doctor",
    "fetch",
    "flash",
    "keys",
    "lock",
    "plan",
    "release",
    "repro",
    "run",
    "shell",
    "ssh",
    "stop",
    "update",
    "why",
)


class Verbs(click.Group):
    """A group that imports the module of a verb when somebody asks for it: start-up time is part of the budget."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, sorted."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"buildsys.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a misspelt verb."""
        import difflib

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], VERBS, n=1)
            raise click.UsageError(
                f"no such command '{args[0]}'." + (f" Did you mean '{close[0]}'?" if close else ""), ctx
            )
        return super().resolve_command(ctx, args)


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-C", "--project", "root", type=click.Path(path_type=Path), help="The checkout to work in (default: here)."
)
@click.option("--config", type=click.Path(path_type=Path), help="Another file in place of mixos.toml.")
@click.option("--out", type=click.Path(), help="Where results go (default: MIXOS_OUT, else out/).")
@click.version_option(package_name="mixos", prog_name="mixos")
@click.pass_context
def cli(ctx: click.Context, root: Path | None, config: Path | None, out: str | None) -> None:
    """Build, run and flash MixOS images.

    Example: mixos build && mixos run --detach && mixos ssh -- mixctl status
    """
    if out == "":
        raise click.BadParameter("an empty name; . is the current folder", param_hint="--out")
    ctx.obj = context_of(root, config, out)


def context_of(root: Path | None, config: Path | None, out: str | None) -> Context:
    """From the global options."""
    return Context(root or find_root(Path.cwd()), config, Path(out) if out else None)


def find_root(start: Path) -> Path:
    """The closest folder at or above `start` that holds a mixos.toml; `start` itself when there is none."""
    for folder in (start, *start.parents):
        if (folder / "mixos.toml").is_file():
            return folder
    return start


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; the only place that exits."""
    open_missing()
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, _terminate)
    wants_json = "--json" in sys.argv[: sys.argv.index("--") if "--" in sys.argv else None]
    try:
        cli.main(standalone_mode=False)
    except MixosError as error:
        _report(error, wants_json)
    except click.ClickException as error:
        if not wants_json:
            error.show()
            sys.exit(error.exit_code)
        _report(UsageError(error.format_message(), reason="usage"), wants_json)
    except (KeyboardInterrupt, click.Abort):
        print("\nstopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads; nor will the flush at exit fail
        sys.exit(1)
    except OSError as error:  # a full disk, a folder of somebody else's: the user's to mend, not a defect
        _report(host_error(error, "the system refused"), wants_json)


def _report(error: MixosError, as_json: bool) -> None:
    if as_json:
        print(json.dumps(error.as_json()))
    else:
        text = f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")
        print(printable(text), file=sys.stderr)  # the end of a build's log is in it, for one
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
