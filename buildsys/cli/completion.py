"""mixos completion"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    Example: eval "$(mixos completion bash)"
    """
    from buildsys.cli.main import cli

    kind = get_completion_class(shell)
    if kind is not None:
        print(kind(cli, {}, "mixos", "_MIXOS_COMPLETE").source())
