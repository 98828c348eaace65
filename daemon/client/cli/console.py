"""`mixctl console`."""

from __future__ import annotations

import os

import click


@click.command()
def console() -> int:
    """Open the console: commands without the word mixctl, with completion and history.

    \b
    Example:
      mixctl console
    """
    from common.accounts import of_uid
    from common.errors import RefusedError
    from daemon.client.console.repl import Console
    from daemon.client.mixctl import main

    account = of_uid(os.getuid())
    if account is None:
        raise RefusedError(f"user id {os.getuid()} has no role on this device", reason="console-account")
    return Console(account, main).session()
