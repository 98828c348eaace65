"""`mixctl completion`."""

from __future__ import annotations

import click

from daemon.client.cli import cli
from daemon.client.mixctl import COMPLETE

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Example:
      eval "$(mixctl completion bash)"
    """
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    if maker is not None:
        click.echo(maker(cli, {}, "mixctl", COMPLETE).source())
