"""`mixctl update`: images and slots."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from common.safe import printable
from common.units import clock, duration, size, word
from daemon.client.cli.common import ask, follow, json_option, show
from daemon.client.cli.content import Meter
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing, labelled
from daemon.parts.update.serve import served


@click.group()
def update() -> None:
    """See what runs and what the next boot starts; go back to the other version.

    \b
    Example:
      mixctl update status
      mixctl update rollback
    """


@update.command()
@json_option
def status(as_json: bool) -> None:
    """Show which version runs, whether it is good, and what the next boot starts.

    \b
    Example:
      mixctl update status --json
    """
    show(ask("update.status"), as_json, _status)


@update.command()
@json_option
def check(as_json: bool) -> None:
    """Ask the channel of this device what it has: which release is offered, how much of it is fetched, or why none is.

    \b
    Example:
      mixctl update check
    """
    show(ask("update.check", seconds=305.0), as_json, _checked)


@update.command()
@click.argument("bundle", required=False)
@click.option("--again", is_flag=True, help="Also a version that is not newer than the one that runs.")
@click.option("--detach", is_flag=True, help="Return at once: `mixctl update status` tells how far it is.")
@click.option("--rate", type=click.IntRange(min=4096), help="Bytes per second that are taken from a web server.")
@json_option
def stage(bundle: str | None, again: bool, detach: bool, rate: int | None, as_json: bool) -> None:
    """Verify a BUNDLE and put it into the slot that does not run: a file, or the http:// or https:// address of one (-:
    somebody answers for its ranges on standard input and output; default: what the channel offers). Nothing starts it
    before `apply`.

    \b
    Examples:
      mixctl update stage mixos-1.4.0.mixb && mixctl update apply
      mixctl update stage https://example.org/mixos-1.4.0.mixb --rate 200000
    """
    remote = bundle is None or bundle.startswith(("http://", "https://"))
    if detach and not remote:
        raise click.UsageError("--detach is for what is on a web server")
    if detach:
        begun = ask("update.take", {"url": bundle, "again": again, "rate": rate})
        show(begun, as_json, lambda _: "begun: mixctl update status")
        return
    out = sys.stderr if bundle == "-" else sys.stdout
    with contextlib.ExitStack() as stack:
        meter = stack.enter_context(Meter("taken"))
        if remote:
            steps = follow("update.fetch", {"url": bundle, "again": again, "rate": rate})
        else:
            channel = stack.enter_context(served(bundle or "-"))
            steps = follow("update.stage", {"content": 0, "again": again}, descriptors=[channel])
        for step in steps:
            if as_json:
                click.echo(json.dumps(step), file=out)
            elif step["step"] == "staged":
                click.echo(
                    f"{printable(step['version'])} is staged in slot {step['slot']}: mixctl update apply", file=out
                )
            else:
                meter.at(step["fetched"], step["transfer"])


@update.command()
@click.argument("bundle", required=False)
@click.option("--check", is_flag=True, help="Only read the disk, and tell what is wrong.")
@click.option("--rate", type=click.IntRange(min=4096), help="Bytes per second that are taken from a web server.")
@json_option
def repair(bundle: str | None, check: bool, rate: int | None, as_json: bool) -> None:
    """Restore what is damaged on the boot disk, from what it has twice; with the BUNDLE of the version in the other
    slot (a file, or the http:// or https:// address of one, or -) that slot as well, of which only what is damaged is
    fetched. What runs stays what is started.

    \b
    Examples:
      mixctl update repair --check
      mixctl update repair https://example.org/mixos-1.3.0.mixb
    """
    if check and bundle is not None:
        raise click.UsageError("--check needs no bundle")
    out = sys.stderr if bundle == "-" else sys.stdout
    with contextlib.ExitStack() as stack:
        meter = stack.enter_context(Meter("taken"))
        if bundle is not None and not bundle.startswith(("http://", "https://")):
            steps = follow("update.repair", {"content": 0}, descriptors=[stack.enter_context(served(bundle))])
        elif not check:
            steps = follow("update.repair", {"url": bundle, "rate": rate})
        else:
            steps = follow("update.examine")
        for step in steps:
            if as_json:
                click.echo(json.dumps(step), file=out)
            elif step["report"] is not None:
                click.echo(_repaired(step["report"], step["mended"]), file=out)
            else:
                meter.at(step["fetched"], step["transfer"])


@update.command()
@json_option
def stop(as_json: bool) -> None:
    """End what is being staged, whoever began it. What is there stays, and a retry goes on.

    \b
    Example:
      mixctl update stop
    """
    show(ask("update.stop"), as_json, lambda ended: "ended" if ended else "no release is being taken")


@update.command()
@click.option("--no-restart", is_flag=True, help="Let somebody restart the device later.")
@json_option
def apply(no_restart: bool, as_json: bool) -> None:
    """Have the next boot start what was staged, and restart the device.

    \b
    Example:
      mixctl update apply --no-restart
    """
    show(ask("update.apply", {"restart": not no_restart}, seconds=425.0), as_json, _next)


@update.command()
@json_option
def history(as_json: bool) -> None:
    """Show what happened to versions, the newest first.

    \b
    Example:
      mixctl update history
    """
    show(ask("update.history"), as_json, _HISTORY.table)


@update.command()
@json_option
def key(as_json: bool) -> None:
    """Print the key that releases are encrypted to for this device (mixos bundle --encrypt-to); the first time it is
    made.

    \b
    Example:
      mixctl update key >>devices.txt
    """
    show(ask("update.key", seconds=135.0), as_json, lambda found: str(found["key"]))


@update.command()
@json_option
def commit(as_json: bool) -> None:
    """Call the version that runs good now, whatever it still waits for.

    \b
    Example:
      mixctl update commit
    """
    show(ask("update.commit", seconds=70.0), as_json, _next)


@update.command()
@json_option
def rollback(as_json: bool) -> None:
    """Have the next boot start the other version. The device is not restarted.

    \b
    Example:
      mixctl update rollback && mixctl reboot
    """
    show(ask("update.rollback", seconds=135.0), as_json, _next)


@update.command()
@click.argument("version", shell_complete=known("blocked-version"))
@json_option
def clear(version: str, as_json: bool) -> None:
    """Let a VERSION that failed be installed and started again.

    \b
    Example:
      mixctl update clear 1.4.0
    """
    show(ask("update.clear", {"version": version}), as_json, _next)


@update.command()
@json_option
def conflicts(as_json: bool) -> None:
    """Show files of which two versions want different contents.

    \b
    Example:
      mixctl update conflicts
    """
    show(ask("update.conflicts"), as_json, _conflicts)


@update.command()
@click.argument("file", shell_complete=known("conflict"))
@click.option("--take", is_flag=True, help="The other content; otherwise the file stays as it is.")
@json_option
def resolve(file: str, take: bool, as_json: bool) -> None:
    """Settle which content a FILE has.

    \b
    Example:
      mixctl update resolve /etc/ssh/sshd_config --take
    """
    found = ask("update.resolve", {"file": file, "take": take}, seconds=135.0)
    show(found, as_json, lambda left: f"settled; {len(left)} left" if left else "settled")


_HISTORY = Listing(
    "update.history []",
    (
        Column("when", "at", clock),
        Column("what", "what"),
        Column("version", "version"),
        Column("slot", "slot"),
        Column("why", "reason"),
    ),
    none="nothing happened yet",
)
_IMAGES = Listing(
    "update.status images[]",
    (
        Column("slot", "slot"),
        Column("version", "version"),
        Column("state", "state"),
        Column("starts left", "starts-left"),
        Column("", lambda row: ", ".join(word for word in ("running", "next") if row[word])),
        Column("why", "blocked"),
    ),
    none="the loader has no entry",
)


def _next(found: Mapping[str, Any]) -> str:
    slot = f" (slot {found['next-slot']})" if found["next-slot"] else ""
    return f"next boot: {found['next'] or 'nothing'}{slot}"


def _repaired(report: Mapping[str, Any], mended: Sequence[str]) -> str:
    lines = [f"mended: {one}" for one in mended]
    lines += [f"wrong: {one}" for one in report["problems"]]
    for slot in report["bundle"]:
        how = "start the other version, then: " if slot == report["running"] else ""
        lines.append(f"slot {slot} needs the bundle of its version: {how}mixctl update repair BUNDLE")
    lines += [f"not ours: EFI/Linux/{one}" for one in report["unknown"]]
    if not lines:
        lines.append("nothing is wrong")
    for row in report["slots"]:
        state = ", ".join(f"{name} {row[name]}" for name in ("data", "tree", "kernel", "entry"))
        lines.append(
            f"slot {row['slot']}: {printable(word(row['version']))}" + (f" ({state})" if row["version"] else "")
        )
    return "\n".join(lines if lines else ["nothing is wrong"])


def _conflicts(found: Sequence[Mapping[str, Any]]) -> str:
    whys = {"default": "changed here, and by the version", "release": "as this version left it; there was"}
    texts = [f"{row['file']}: {whys[row['why']]} {row['version']}\n{row['diff']}" for row in found]
    return "\n\n".join(texts) or "there are none"


def _checked(found: Mapping[str, Any]) -> str:
    offer, why = found["offer"], found["why"]
    if offer is not None:
        how = "whole" if offer["whole"] else "as what differs"
        text = f"{offer['version']} is offered: {size(offer['transfer'])} to fetch, {how}: mixctl update stage"
    else:
        text = "no release is offered to this device"
    return text if why is None else f"{text}\n{why['version']}: {why['why']}"


def _floor(found: Mapping[str, Any]) -> str:
    where = "data and TPM" if found["floor-in-tpm"] else "data alone"
    why = f": {found['floor-problem']}" if found["floor-problem"] else ""
    return f"number {found['floor']} (kept in {where}{why})"


def _status(found: Mapping[str, Any]) -> str:
    rows = [("running", f"{word(found['version'])} (slot {word(found['slot'])}), {found['state']}")]
    if found["problem"]:
        rows.append(("waits for", found["problem"]))
    if found["deadline"] is not None:
        rows.append(("restarts in", f"{duration(found['deadline'])}, unless it gets well"))
    if found["staged"]:
        rows.append(("staged", f"{found['staged']}: mixctl update apply"))
    if found["taking"]:
        taking = found["taking"]
        rows.append(("taking", f"{taking['version']}: {taking['step']}, {size(taking['fetched'])} fetched"))
    if found["trouble"]:
        rows.append(("trouble", found["trouble"]))
    rows.append(("next boot", _next(found).partition(": ")[2]))
    if found["last"] is not None:
        last = found["last"]
        why = f": {last['reason']}" if last["reason"] else ""
        rows.append(("last", f"{clock(last['at'])} {last['what']} {last['version']}{why}"))
    if found["floor-problem"] or found["floor"]:
        rows.append(("floor", _floor(found)))
    if found["data-problem"]:
        rows.append(("data", found["data-problem"]))
    for row in found["firmware"]:
        rows.append(("firmware", f"{row['name']} {row['state']}" + (f": {row['why']}" if row["why"] else "")))
    if found["conflicts"]:
        rows.append(("conflicts", f"{', '.join(found['conflicts'])} (mixctl update conflicts)"))
    return f"{labelled(rows)}\n\n{_IMAGES.table(found['images'])}"
