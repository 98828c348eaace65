"""mixos ssh"""

from __future__ import annotations

import sys

import click

from buildsys.cli.context import Context, pass_context
from buildsys.run import spawn
from buildsys.vm import Vm


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--user", default="admin", show_default=True, help="Account on the machine.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_context
def ssh(context: Context, user: str, command: tuple[str, ...]) -> None:
    """Open a session on the machine that `mixos run` started, or run COMMAND there.

    Example: mixos ssh · mixos ssh -- mixctl status --json
    """
    vm = Vm(context.project, context.project.out / "run")
    sys.exit(spawn(vm.ssh_command(user, command), terminal=True).wait())
