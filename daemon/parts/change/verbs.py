"""`mixctl change`, `mixctl confirm`, `mixctl revert`: changes that are on trial."""

from __future__ import annotations

from typing import Any

import click

from common.units import duration
from daemon.client.cli.change import SECONDS, ended, tell
from daemon.client.cli.common import ask, json_option, show
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing


@click.group()
def change() -> None:
    """Changes that are on trial: they are undone in time unless somebody confirms them.

    \b
    Example:
      mixctl change list
      mixctl confirm
    """


@change.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the changes that are on trial, or are being undone.

    \b
    Example:
      mixctl change list
    """
    show(ask("change.list"), as_json, _list)


def _list(result: dict[str, Any]) -> str:
    return "\n".join([_TRIALS.table(result["changes"]), *(f"problem: {text}" for text in result["problems"])])


_TRIALS = Listing(
    "change.list changes[]",
    (
        Column("change", "change"),
        Column("what", "what"),
        Column("who", "who"),
        Column("state", "state"),
        Column("left", "seconds", duration),
    ),
    none="nothing is on trial",
)


@click.command()
@click.argument("number", required=False, shell_complete=known("change"))
@json_option
def confirm(number: str | None, as_json: bool) -> int:
    """Keep the change that is on trial (NUMBER, when there are several).

    \b
    Example:
      mixctl confirm
    """
    return tell(ask("change.confirm", _params(number), seconds=SECONDS), as_json, ended)


@click.command()
@click.argument("number", required=False, shell_complete=known("change"))
@click.option("--give-up", is_flag=True, help="What cannot be undone stays; its part can be changed again.")
@json_option
def revert(number: str | None, give_up: bool, as_json: bool) -> None:
    """Undo the change that is on trial (NUMBER, when there are several); also one whose undo did not succeed yet.

    \b
    Example:
      mixctl revert
    """
    params = {**_params(number), **({"give-up": True} if give_up else {})}
    show(ask("change.revert", params, seconds=SECONDS), as_json, ended)


def _params(number: str | None) -> dict[str, object]:
    return {"change": number} if number else {}


change.add_command(confirm)
change.add_command(revert)
