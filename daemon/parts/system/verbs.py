"""`mixctl status`, `ping`, `reboot`, `poweroff`."""

from __future__ import annotations

import click

from daemon.client.mixctl import answer


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the whole status as one JSON object.")
def status(as_json: bool) -> None:
    """Show version, slot, health, network and hardening of this device.

    \b
    Example:
      mixctl status --json
    """
    click.echo(answer("status", as_json))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ping(as_json: bool) -> None:
    """Check that the daemon answers.

    \b
    Example:
      mixctl ping
    """
    click.echo(answer("ping", as_json))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reboot(as_json: bool) -> None:
    """Stop everything in order and start again.

    \b
    Example:
      mixctl reboot
    """
    click.echo(answer("reboot", as_json))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def poweroff(as_json: bool) -> None:
    """Stop everything in order and switch off.

    \b
    Example:
      mixctl poweroff
    """
    click.echo(answer("poweroff", as_json))
