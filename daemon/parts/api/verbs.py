"""`mixctl api`: what programs can call, and what they get."""

from __future__ import annotations

import click

from daemon.client.cli.common import ask, json_option, show
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing


@click.group()
def api() -> None:
    """Show what programs can call.

    \b
    Example:
      mixctl api methods
      mixctl api schema service.list
    """


@api.command()
@json_option
def methods(as_json: bool) -> None:
    """List the methods that you may call.

    \b
    Example:
      mixctl api methods
    """
    show(ask("api.methods"), as_json, _METHODS.table)


@api.command()
@click.argument("name", metavar="[METHOD|PART]", required=False, shell_complete=known("method"))
def schema(name: str | None) -> None:
    """Print JSON schemas (2020-12): of the parameters of each method, and of its answer or the items of its stream.

    \b
    Example:
      mixctl api schema service.list
      mixctl api schema storage
    """
    show(ask("api.schema", {} if name is None else {"name": name}), True, str)


_METHODS = Listing(
    "api.methods []",
    (
        Column("method", "name"),
        Column("roles", "roles"),
        Column("", lambda one: " ".join(mark for mark in ("changes", "stream") if one[mark])),
        Column("what it does", "summary"),
    ),
)
