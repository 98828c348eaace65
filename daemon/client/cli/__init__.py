"""The commands of `mixctl`, in click: one file per verb, imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module

import click

from daemon.core import manifest

# Verbs of no part. Verb → (module, what it does); the text stands there so that `mixctl --help` imports no command.
_OWN: Mapping[str, tuple[str, str]] = {
    "console": ("daemon.client.cli.console", "Open the console: commands without the word mixctl."),
    "completion": ("daemon.client.cli.completion", "Print the completion script for a shell."),
}


@cache
def verbs() -> Mapping[str, tuple[str, str]]:
    """Every command, by name."""
    return dict(sorted({**manifest.verbs(), **_OWN}.items()))


class Verbs(click.Group):
    """A group that imports a verb's module only when the verb is used. A module holds `<verb>` as a click command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, by name."""
        return list(verbs())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command behind a verb."""
        if cmd_name not in verbs():
            return None
        command = getattr(import_module(verbs()[cmd_name][0]), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in verbs().items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with a suggestion for a misspelt verb."""
        if args and args[0] not in verbs() and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], verbs(), n=1)
            ctx.fail(f"there is no command '{args[0]}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from daemon.linux.facts import release

        click.echo(f"mixctl {release().get('MIXOS_VERSION', 'unknown')}")
        context.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Ask and steer this MixOS device.

    \b
    Example:
      mixctl status
      mixctl status --json
    """
