"""`mixctl events`: what happens on the device, as it happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from common.safe import one_line
from common.units import clock
from daemon.client.cli.common import follow, json_option

_LONGEST = 4096  # characters of a line for people


@click.command()
@click.argument("prefix", default="")
@json_option
def events(prefix: str, as_json: bool) -> None:
    """Show events until interrupted: time, topic, what it is about, details.

    PREFIX keeps only topics that begin with it. With --json every line is one event. Events of the past are in the
    logs and, when somebody caused them, in `mixctl audit`.

    \b
    Example:
      mixctl events
      mixctl events service. --json
    """
    for event in follow("events.follow", {"prefix": prefix}):
        click.echo(json.dumps(event) if as_json else one_line(line(event), _LONGEST))


def line(event: Mapping[str, Any]) -> str:
    """An event for people."""
    at = clock(event["at"])
    details = (f"{name}={value}" for name, value in event["data"].items())
    return "  ".join(word for word in (at, event["topic"], event["subject"], " ".join(details)) if word)
