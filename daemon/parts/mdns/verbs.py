"""`mixctl mdns`: this device's name on the local network, and what else is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from common.units import word
from daemon.client.cli.common import ask, json_option, show
from daemon.client.show import Column, Listing


@click.group()
def mdns() -> None:
    """The device's name.local and services, announced on the local network.

    \b
    Example:
      mixctl mdns status
      mixctl mdns browse _http._tcp
    """


@mdns.command()
@json_option
def status(as_json: bool) -> None:
    """Show the name in use, whether another device had the wanted one, and what is announced.

    \b
    Example:
      mixctl mdns status
    """
    show(ask("mdns.status"), as_json, _status)


def _status(result: Mapping[str, Any]) -> str:
    if not result["running"]:
        return "not running" if result["enabled"] else "off"
    if "host" not in result:
        return f"waiting for the network ({result['problem']})" if result["problem"] else "waiting for the network"
    taken = f"  ({result['wanted']} is another device's)" if result["host"] != result["wanted"] else ""
    lines = [f"name       {result['host']}{taken}", f"addresses  {' '.join(result['addresses'])}"]
    lines += [f"problem    {result['problem']}"] if result["problem"] else []
    return "\n".join([*lines, *(f"service    {row['name']} port {row['port']}" for row in result["services"])])


@mdns.command()
@click.argument("type", required=False)
@click.option("--seconds", type=click.FloatRange(0.5, 20), default=3.0, show_default=True, help="How long to listen.")
@json_option
def browse(seconds: float, as_json: bool, **values: str | None) -> None:
    """List the services of a TYPE such as _http._tcp; without one, the types that there are.

    \b
    Example:
      mixctl mdns browse _ssh._tcp
    """
    params: dict[str, object] = {"seconds": seconds}
    params |= {key: value for key, value in values.items() if value}
    show(ask("mdns.browse", params, seconds=seconds + 20), as_json, _found)


def _found(result: Mapping[str, Any]) -> str:
    if "types" in result:
        return "\n".join(_safe(one) for one in result["types"]) or "nothing was found"
    table = _SERVICES.table(result["services"]) if result["services"] else "nothing was found"
    return f"{table}\nleft out, since they cannot be read: {result['skipped']}" if result["skipped"] else table


def _safe(value: object) -> str:
    """Strangers' text for a terminal: no control characters."""
    return "".join(char if char.isprintable() else "?" for char in word(value))


_SERVICES = Listing(
    "mdns.browse services[]",
    (
        Column("name", "name", _safe),
        Column("host", "host", _safe),
        Column("port", "port"),
        Column("addresses", "addresses", _safe),
        Column("txt", lambda row: _safe([f"{key}={value}" for key, value in row["txt"].items()])),
    ),
)


@mdns.command()
@json_option
def on(as_json: bool) -> None:
    """Announce the device again.

    \b
    Example:
      mixctl mdns on
    """
    show(ask("mdns.on"), as_json, lambda _: "on")


@mdns.command()
@json_option
def off(as_json: bool) -> None:
    """Say goodbye, and stay silent from now on.

    \b
    Example:
      mixctl mdns off
    """
    show(ask("mdns.off"), as_json, lambda _: "off")
