"""`mixctl status`, `ping`, `reboot`, `poweroff`, `system`."""

from __future__ import annotations

import click

from daemon.client.cli.common import ask, json_option, show
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


@click.group()
def system() -> None:
    """Erase all data of this device: factory reset.

    \b
    Example:
      mixctl system reset kitchen
    """


@system.command()
@click.argument("hostname")
@click.option(
    "--overwrite", is_flag=True, help="Write zeros over all of it: may take hours, and what was there is gone."
)
@json_option
def reset(hostname: str, overwrite: bool, as_json: bool) -> None:
    """Restart, and erase all data of the device with this HOSTNAME: settings, keys, logs, what services keep.

    \b
    Example:
      mixctl system reset kitchen
    """
    found = ask("system.reset", {"hostname": hostname, "overwrite": overwrite}, seconds=75.0)
    show(found, as_json, lambda _: "rebooting; then everything is erased, and the first boot begins again")
