"""`mixctl firewall`: what this device accepts from the network, and what it passes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from common.units import duration
from daemon.client.cli.change import change_options, changed, ended, tell, wish
from daemon.client.cli.common import ask, json_option, show
from daemon.client.cli.content import opened
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing

_SECONDS = 130.0  # long lists take their time on small boards
_FROM = click.option(
    "--from", "source", multiple=True, metavar="NETWORK", help="Only from here; also @LIST. Repeatable."
)
_NAME = click.option("--name", help="How the entry is called; made up when left out.")


def _send(method: str, as_json: bool, descriptors: Sequence[int] = (), /, **values: object) -> None:
    """Call a changing method and tell what came of it."""
    show(ask(f"firewall.{method}", wish(values), seconds=_SECONDS, descriptors=descriptors), as_json, changed)


@click.group()
def firewall() -> None:
    """What the device accepts: everything is denied but what is allowed here.

    \b
    Example:
      mixctl firewall allow https --zone wan
      mixctl firewall deny ssh --zone wan --confirm 60
      mixctl firewall status
    """


@firewall.command()
@json_option
def status(as_json: bool) -> None:
    """Show whether the kernel has the wanted rules, the zones, and what was denied.

    \b
    Example:
      mixctl firewall status
    """
    show(ask("firewall.status", seconds=_SECONDS), as_json, _status)


_STATES = {
    "on": "on",
    "off": "OFF: the kernel has no rules; `mixctl firewall apply` loads them",
    "changed": "CHANGED: the kernel's rules are not the wanted ones; `mixctl firewall apply` restores them",
}
_FILES = {
    "same": "in force",
    "missing": "not there; the default is in force",
    "different": "changed; put it into force: mixctl firewall apply",
    "undone": "not in force: it was tried and not confirmed; put it into force: mixctl firewall apply",
    "broken": "BROKEN; the last good rules are in force",
}


def _status(result: Mapping[str, Any]) -> str:
    tried = result["confirm"] and result["file"] == "different"
    file = "as it was; what is on trial is in force" if tried else _FILES[result["file"]]
    lines = [f"state         {_STATES[result['state']]}", f"file          {file}"]
    if result["problem"]:
        lines.append(f"problem       {result['problem']}")
    if waiting := result["confirm"]:
        lines.append(f"waiting       for confirmation, {duration(waiting['seconds'])} left, by {waiting['by']}")
    lines.append(f"default zone  {result['default-zone']}")
    lines.append(f"denied        {result['denied']['packets']} packets")
    lines += [f"list {name:8} {count} ranges" for name, count in result["lists"].items()]
    lines += [f"unit {row['unit']:8} {row['state']}" for row in result["units"]]
    if result["drift"]:
        lines += ["", result["drift"]]
    return "\n".join([*lines, "", _ZONES.table(result["zones"])])


def _allows(zone: Mapping[str, Any]) -> str:
    return "everything" if zone["policy"] == "allow" else " ".join(zone["allow"]) or "nothing"


_ZONES = Listing(
    "firewall.status zones[]",
    (
        Column("zone", "name"),
        Column("interfaces", "interfaces"),
        Column("sources", "sources"),
        Column("allows", _allows),
    ),
)


@firewall.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List every entry with what it has let through or denied.

    \b
    Example:
      mixctl firewall list
    """
    show(ask("firewall.list", seconds=_SECONDS), as_json, lambda result: _ENTRIES.table(result["entries"]))


def _what(row: Mapping[str, Any]) -> str:
    """An entry in words."""
    kind = row["name"].partition(".")[0]
    origin = f" from {' '.join(row['from'])}" if isinstance(row.get("from"), list) and row["from"] else ""
    if kind == "forwards":
        return f"{row['zone']} {row['port']} goes on to {row['to']} {row.get('to-port', '')}".rstrip() + origin
    if kind == "nat":
        return f"{row['from']} to {row['to']}" + ("" if row["masquerade"] else ", without masquerade")
    if kind == "lists":
        where = row.get("file") or " ".join(row["addresses"][:4])
        return ("blocks " if row["block"] else "names ") + where
    limit = f", each source {row['limit']}" if row.get("limit") else ""
    return f"{row['action']} {row['service']} in {row.get('zone', 'every zone')}{origin}{limit}"


_ENTRIES = Listing(
    "firewall.list entries[]", (Column("name", "name"), Column("what", _what), Column("packets", "packets"))
)


@firewall.command()
@click.argument("service", shell_complete=known("firewall-service"))
@click.option("--zone", shell_complete=known("zone"), help="Only in this zone; default: in every zone.")
@click.option("--limit", metavar="RATE", help='New connections of one source, such as "10/minute".')
@_FROM
@_NAME
@change_options
def allow(source: tuple[str, ...], as_json: bool, **values: object) -> None:
    """Allow a service (ssh, https, ...) or port (tcp/8080).

    \b
    Example:
      mixctl firewall allow tcp/8080 --zone lan --from 192.0.2.0/24
    """
    _send("allow", as_json, **{"from": source}, **values)


@firewall.command()
@click.argument("service", shell_complete=known("firewall-service"))
@click.option("--zone", shell_complete=known("zone"), help="Only in this zone; default: in every zone.")
@click.option("--reject", is_flag=True, help="Say so to the sender instead of staying silent.")
@_FROM
@_NAME
@change_options
def deny(source: tuple[str, ...], as_json: bool, **values: object) -> None:
    """Deny a service or port that something else allows.

    \b
    Example:
      mixctl firewall deny ssh --zone wan --confirm 60
    """
    _send("deny", as_json, **{"from": source}, **values)


@firewall.command()
@click.argument("name", shell_complete=known("firewall-entry"))
@change_options
def remove(as_json: bool, **values: object) -> None:
    """Remove a rule, forward, nat entry or list by its name in `firewall list`.

    \b
    Example:
      mixctl firewall remove allow-https-wan
    """
    _send("remove", as_json, **values)


@firewall.command()
@click.argument("port")
@click.argument("to")
@click.argument("to_port", type=click.IntRange(1, 65535), required=False)
@click.option("--zone", required=True, shell_complete=known("zone"), help="Where it comes from.")
@_FROM
@_NAME
@change_options
def forward(source: tuple[str, ...], as_json: bool, **values: object) -> None:
    """Pass a port of this device on to another host (IPv4 or IPv6).

    \b
    Example:
      mixctl firewall forward tcp/8080 192.0.2.10 80 --zone wan
    """
    _send("forward", as_json, **{"from": source}, **values)


@firewall.command()
@click.argument("source", shell_complete=known("zone"))
@click.argument("to", shell_complete=known("zone"))
@click.option("--no-masquerade", is_flag=True, help="Route only: senders keep their addresses.")
@_NAME
@change_options
def nat(source: str, no_masquerade: bool, as_json: bool, **values: object) -> None:
    """Let one zone reach another through this device, with its address.

    \b
    Example:
      mixctl firewall nat lan wan
    """
    _send("nat", as_json, **{"from": source}, masquerade=not no_masquerade, **values)


@firewall.command()
@click.argument("name", shell_complete=known("zone"))
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    shell_complete=known("interface"),
    help="Repeatable; wg* stands for all that begin so.",
)
@click.option("--source", "sources", multiple=True, metavar="NETWORK", help="Repeatable.")
@click.option("--allow", multiple=True, metavar="SERVICE", shell_complete=known("firewall-service"), help="Repeatable.")
@click.option("--policy", type=click.Choice(["deny", "allow"]), help="For what is not allowed by name.")
@click.option("--take", is_flag=True, help="Take interfaces, sources and services away instead of adding them.")
@click.option("--default", is_flag=True, help="Make it the zone of whatever no zone names.")
@change_options
def zone(as_json: bool, **values: object) -> None:
    """Make a zone, or change what is in it and what it may.

    \b
    Example:
      mixctl firewall zone guests --interface eth2 --allow dns
    """
    _send("zone", as_json, **values)


@firewall.command()
@click.argument("addresses", nargs=-1)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="One per line, # comments; - is standard input.",
)
@click.option(
    "--list",
    "name",
    default="blocked",
    show_default=True,
    shell_complete=known("firewall-list"),
    help="The list they go to.",
)
@click.option("--take", is_flag=True, help="Take them off the list.")
@change_options
def block(addresses: tuple[str, ...], file: str | None, name: str, as_json: bool, **values: object) -> None:
    """Block addresses, networks or ranges everywhere, at once and for good.

    \b
    Example:
      mixctl firewall block 203.0.113.7 198.51.100.0/24
      curl https://lists.example.net/drop.txt | mixctl firewall block --list drop --file -
    """
    if not addresses and file is None:
        raise click.UsageError("say what to block, or give a --file")
    if file is None:
        _send("block", as_json, addresses=addresses, list=name, **values)
        return
    with opened(file) as descriptor:
        _send("block", as_json, [descriptor], addresses=addresses, content=0, list=name, **values)


@firewall.command()
@change_options
def apply(as_json: bool, **values: object) -> None:
    """Put /etc/mixos/firewall.toml into force, or restore its rules in the kernel.

    \b
    Example:
      mixctl firewall apply --confirm 60
    """
    _send("apply", as_json, **values)


@firewall.command()
@change_options
def reset(as_json: bool, **values: object) -> None:
    """Go back to the policy that the device was shipped with.

    \b
    Example:
      mixctl firewall reset --dry-run
    """
    _send("reset", as_json, **values)


@firewall.command()
@json_option
def confirm(as_json: bool) -> int:
    """Keep the change that waits for confirmation; the same as `mixctl confirm`.

    \b
    Example:
      mixctl firewall confirm
    """
    return tell(ask("firewall.confirm", seconds=_SECONDS), as_json, ended)


@firewall.command()
@json_option
def revert(as_json: bool) -> None:
    """Undo the change that waits for confirmation; the same as `mixctl revert`.

    \b
    Example:
      mixctl firewall revert
    """
    show(ask("firewall.revert", seconds=_SECONDS), as_json, ended)


@firewall.command()
@json_option
def diff(as_json: bool) -> None:
    """Show what `firewall apply` would change in the kernel's rules.

    \b
    Example:
      mixctl firewall diff
    """
    result = ask("firewall.diff", seconds=_SECONDS)
    show(result, as_json, lambda found: found["diff"] or "the kernel has these rules")


@firewall.command()
@click.argument("port", shell_complete=known("firewall-service"))
@click.option("--from", "source", metavar="ADDRESS", help="The sender.")
@click.option("--interface", shell_complete=known("interface"), help="Where it comes in.")
@json_option
def test(port: str, source: str | None, interface: str | None, as_json: bool) -> None:
    """Say what the policy in force does with a packet, and which entry decides.

    \b
    Example:
      mixctl firewall test tcp/22 --from 203.0.113.9 --interface eth0
    """
    params = {key: value for key, value in (("port", port), ("from", source), ("interface", interface)) if value}
    show(ask("firewall.test", params), as_json, _decision)


def _decision(result: Mapping[str, Any]) -> str:
    zone = f" (zone {result['zone']})" if result["zone"] else ""
    limit = f", each source {result['limit']}" if result["limit"] else ""
    to = f" to {result['to']}" if result["to"] else ""
    return f"{result['packet']}: {result['action']}{to} by {result['by']}{zone}{limit}"
