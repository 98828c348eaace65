"""The commands of `mixctl`, in click: help, completion, and every command line that needs parsing."""

from __future__ import annotations

import click

from daemon.mixctl import answer

_SHELLS = ("bash", "zsh", "fish")


def _version() -> str:
    from daemon.facts import release

    return release().get("MIXOS_VERSION", "unknown")


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"mixctl {_version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the whole status as one JSON object.")
def status(as_json: bool) -> None:
    """Show version, slot, health, network and hardening of this device.

    \b
    Example:
      mixctl status --json
    """
    click.echo(answer("status", as_json))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ping(as_json: bool) -> None:
    """Check that the daemon answers.

    \b
    Example:
      mixctl ping
    """
    click.echo(answer("ping", as_json))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reboot(as_json: bool) -> None:
    """Stop everything in order and start again.

    \b
    Example:
      mixctl reboot
    """
    click.echo(answer("reboot", as_json))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def poweroff(as_json: bool) -> None:
    """Stop everything in order and switch off.

    \b
    Example:
      mixctl poweroff
    """
    click.echo(answer("poweroff", as_json))


@cli.command()
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
        click.echo(maker(cli, {}, "mixctl", "_MIXCTL_COMPLETE").source())
