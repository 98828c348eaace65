"""`mixctl audit`: who changed what, and whether the log of it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from common.units import clock
from daemon.client.cli.common import ask, json_option, show
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing

KINDS = ("started", "intent", "outcome", "denied", "reverted", "repaired")
BROKEN = 8  # exit code of a chain that does not hold


@click.group(invoke_without_command=True)
@click.pass_context
def audit(context: click.Context) -> None:
    """Show or check the audit log: every change that was asked for, by whom, from where, and what came of it.

    \b
    Example:
      mixctl audit
      mixctl audit list --method service.stop
      mixctl audit verify
    """
    if context.invoked_subcommand is None:
        context.invoke(list_)


@audit.command("list")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="The last N entries.")
@click.option("--before", type=click.IntRange(1), metavar="NUMBER", help="Only entries before this one.")
@click.option("--method", metavar="NAME", shell_complete=known("method"), help="Only calls of this method.")
@click.option("--uid", type=click.IntRange(0), help="Only what this account did.")
@click.option("--kind", type=click.Choice(KINDS), help="Only entries of this kind.")
@json_option
def list_(
    limit: int = 50,
    before: int | None = None,
    method: str | None = None,
    uid: int | None = None,
    kind: str | None = None,
    as_json: bool = False,
) -> None:
    """Show the last entries, oldest first.

    \b
    Example:
      mixctl audit list -n 20
      mixctl audit list --uid 1001 --json
    """
    given = {"limit": limit, "before": before, "method": method, "uid": uid, "kind": kind}
    params = {name: value for name, value in given.items() if value is not None}
    show(ask("audit.list", params), as_json, _ENTRIES.table)


@audit.command()
@click.option("--anchor", metavar="NUMBER:HASH", help="Also check that this entry, noted earlier, is in the chain.")
@json_option
def verify(anchor: str | None, as_json: bool) -> int:
    """Check that no entry was changed, removed or put in between; exit code 8 when one was.

    Note the number and hash that it prints elsewhere: given as --anchor later, they also show a log whose end was cut
    off or that was written anew.

    \b
    Example:
      mixctl audit verify
      mixctl audit verify --anchor 120:8d4c0f…
    """
    params: dict[str, object] = {}
    if anchor is not None:
        number, _, digest = anchor.partition(":")
        if not number.isdecimal():
            raise click.BadParameter("must be NUMBER:HASH, as verify printed it", param_hint="--anchor")
        params = {"seq": int(number), "hash": digest}
    found = ask("audit.verify", params, seconds=60)
    show(found, as_json, verdict)
    return 0 if found["ok"] else BROKEN


def _what(entry: Mapping[str, Any]) -> str:
    if entry["kind"] == "outcome":
        return f"{entry['call']}: {entry['outcome']}"
    if "method" in entry:
        words = (f"{name}={value}" for name, value in entry.get("params", {}).items())
        return " ".join((entry["method"], *words))
    known = ("seq", "at", "kind", "prev", "hash")
    return " ".join(f"{name}={value}" for name, value in entry.items() if name not in known) or "-"


_ENTRIES = Listing(
    "audit.list []",
    (
        Column("no", "seq"),
        Column("time", "at", clock),
        Column("kind", "kind"),
        Column("who", "name"),
        Column("from", "origin"),
        Column("what", _what),
    ),
)


def verdict(found: Mapping[str, Any]) -> str:
    """The result of a check for people."""
    if problem := found["problem"]:
        return f"BROKEN at {problem['file']}, line {problem['line']}: {problem['what']}"
    since = "from the beginning" if found["complete"] else f"since {found['first']}; older ones were rotated away"
    lines = [f"{found['entries']} entries, whole, {since}"]
    if found["anchored"] is not None:
        lines.append(
            "the noted entry is among them" if found["anchored"] else "BROKEN: the noted entry is not among them"
        )
    lines.append(f"anchor {found['last']}:{found['head']}")
    return "\n".join(lines)
