"""`mixctl net`: interfaces, what of network.toml is in force, the clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from common.units import clock, duration
from daemon.client.cli.change import change_options, changed, ended, tell, wish
from daemon.client.cli.common import ask, json_option, show
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing, labelled


@click.group()
def net() -> None:
    """Show and set up network interfaces.

    \b
    Example:
      mixctl net status
      mixctl net set eth0 mode=static addresses=192.0.2.10/24 gateways=192.0.2.1
      mixctl net apply --confirm 60
      mixctl net confirm
    """


@net.command()
@json_option
def status(as_json: bool) -> None:
    """Show interfaces, name servers, and what of network.toml is in force.

    \b
    Example:
      mixctl net status
    """
    show(ask("net.status"), as_json, _status)


def _status(result: dict[str, Any]) -> str:
    words = {"ok": "in force", "trial": "on trial", "reverted": "not confirmed, not in force", "error": "not in force"}
    lines = [f"network.toml  {words[result['file']]}"]
    if result["confirm-seconds"] is not None:
        lines.append(f"              goes back in {duration(result['confirm-seconds'])}; keep it with: mixctl confirm")
    elif result["changed"]:
        lines.append("              the file says something else: mixctl net check")
    if result["problem"]:
        lines.append(f"problem       {result['problem']}")
    if result["missing"]:
        lines.append(f"missing       {', '.join(result['missing'])}")
    lines.append(f"name servers  {', '.join(result['dns']) or 'none'}")
    return "\n".join([*lines, "", _INTERFACES.table(result["interfaces"])])


_INTERFACES = Listing(
    "net.status interfaces[]",
    (
        Column("interface", "name"),
        Column("kind", "kind"),
        Column("state", "state"),
        Column("by", "by"),
        Column("mode", "mode"),
        Column("addresses", "addresses"),
    ),
)


@net.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the interfaces.

    \b
    Example:
      mixctl net list --json
    """
    show(ask("net.status")["interfaces"], as_json, _INTERFACES.table)


@net.command("show")
@click.argument("interface", shell_complete=known("interface"))
@json_option
def show_(interface: str, as_json: bool) -> None:
    """Show one interface: what network.toml wants and what there is.

    \b
    Example:
      mixctl net show eth0
    """
    show(ask("net.show", {"name": interface}), as_json, _one)


def _one(result: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    for title in ("wanted", "actual"):
        values = result[title]
        rows.append((title, "" if values else "not named in network.toml" if title == "wanted" else "not there"))
        rows += [(f"  {key}", _text(value)) for key, value in (values or {}).items() if value not in (None, [], "")]
    for route in result["routes"]:
        via = f" via {route['via']}" if route["via"] else ""
        table = f" table {route['table']}" if route["table"] != 254 else ""
        rows.append(("route", f"{route['to']}{via} metric {route['metric']}{table}"))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key.ljust(width)}  {value}".rstrip() for key, value in rows)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return str(value)


def _steps(result: dict[str, Any]) -> str:
    lines = list(result["steps"]) or ["nothing to do"]
    if result.get("missing"):
        lines.append(f"not there (yet): {', '.join(result['missing'])}")
    return "\n".join(lines)


@net.command()
@json_option
def check(as_json: bool) -> None:
    """Check network.toml, and show what `apply` would do.

    \b
    Example:
      mixctl net check
    """
    show(ask("net.check"), as_json, _steps)


@net.command()
@change_options
def apply(as_json: bool, **values: object) -> None:
    """Put network.toml in force.

    With --confirm it is undone after that many seconds unless `mixctl confirm` comes first; also when the device or its
    daemon restarts meanwhile. What could cut the connection that you came by is on trial for a minute by itself.

    \b
    Example:
      mixctl net apply --confirm 60
    """
    show(ask("net.apply", wish(values), seconds=70.0), as_json, _applied)


def _applied(result: dict[str, Any]) -> str:
    missing = f"\nnot there (yet): {', '.join(result['missing'])}" if result["missing"] else ""
    return changed(result) + missing


@net.command()
@json_option
def confirm(as_json: bool) -> int:
    """Keep what is on trial; the same as `mixctl confirm`.

    \b
    Example:
      mixctl net confirm
    """
    return tell(ask("net.confirm", seconds=70.0), as_json, ended)


@net.command()
@json_option
def revert(as_json: bool) -> None:
    """Undo what is on trial, now; the same as `mixctl revert`.

    \b
    Example:
      mixctl net revert
    """
    show(ask("net.revert", seconds=70.0), as_json, ended)


@net.command("set")
@click.argument("interface", shell_complete=known("interface"))
@click.argument("values", nargs=-1, required=True, metavar="KEY=VALUE...")
@json_option
def set_(interface: str, values: Sequence[str], as_json: bool) -> None:
    """Change keys of an interface in network.toml, without putting it in force.

    Lists are written with commas; KEY= takes a key out; "-" as the interface stands for the file's own keys.

    \b
    Example:
      mixctl net set eth0 mode=static addresses=192.0.2.10/24,2001:db8::10/64 gateways=192.0.2.1
      mixctl net set eth0 mtu=
      mixctl net set - dns=192.0.2.53
    """
    pairs = dict(_pair(text) for text in values)
    params = {"values": pairs} if interface == "-" else {"name": interface, "values": pairs}
    show(ask("net.set", params), as_json, lambda result: f"{result['file']} changed; to be done:\n{_steps(result)}")


_LISTS = frozenset({"addresses", "gateways", "dns", "search"})
_TABLES = frozenset({"vlan", "bridge", "routes"})


def _pair(text: str) -> tuple[str, object]:
    """`mtu=1400` → ("mtu", 1400)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r} is not KEY=VALUE")
    if key in _TABLES and value:
        raise click.UsageError(f"{key} is a table: write it into network.toml")
    if not value:
        return key, None
    if key in _LISTS:
        return key, [item for item in value.split(",") if item]
    return key, int(value) if value.isdecimal() else value


@net.command("time")
@json_option
def time_(as_json: bool) -> None:
    """Show whether the clock is set by time servers.

    \b
    Example:
      mixctl net time
    """
    show(ask("net.time"), as_json, _time)


def _time(result: dict[str, Any]) -> str:
    state = "set by time servers" if result["synchronised"] else "not set by anybody"
    error = duration(result.get("maximum-error"))
    rows = [
        ("time", clock(result["now"])),
        ("clock", f"{state}, at most {error} wrong" if result["synchronised"] else state),
        ("ntpd", "runs" if result["running"] else "does not run"),
        ("servers", ", ".join(result["servers"]) or "none"),
    ]
    return labelled(rows)
