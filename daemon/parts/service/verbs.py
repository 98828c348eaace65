"""`mixctl service`: units, their states, their logs."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from common.units import clock, duration, size, word
from daemon.client.cli.common import ask, follow, json_option, show
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing, labelled

_BAD = ("failed", "unhealthy", "backoff")
_AGO = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

names_argument = click.argument("names", nargs=-1, required=True, metavar="UNIT...", shell_complete=known("unit"))
wait_option = click.option(
    "--wait", type=click.FloatRange(0, 600), default=30.0, show_default=True, help="Seconds to wait for the outcome."
)


@click.group()
def service() -> None:
    """See and steer services.

    \b
    Example:
      mixctl service list
      mixctl service restart hello
      mixctl service logs hello -f
    """


@service.command("list")
@click.option("--failed", is_flag=True, help="Only those that are not well.")
@json_option
def list_(failed: bool, as_json: bool) -> None:
    """List all units and how they are.

    \b
    Example:
      mixctl service list --failed
    """
    result = ask("service.list")
    if failed:
        result["units"] = [one for one in result["units"] if _unwell(one)]
    show(result, as_json, _table)


@service.command("show")
@click.argument("name", metavar="UNIT", shell_complete=known("unit"))
@json_option
def show_(name: str, as_json: bool) -> None:
    """Show every fact about a unit: why it is in its state, what it uses, how it ended, which limits are not enforced.

    \b
    Example:
      mixctl service show hello
    """
    show(ask("service.show", {"name": name}), as_json, _facts)


@service.command()
@names_argument
@click.option("--now", is_flag=True, help="Run a unit with a timer or sockets at once.")
@wait_option
@json_option
def start(names: tuple[str, ...], now: bool, wait: float, as_json: bool) -> None:
    """Start units and what they need.

    \b
    Example:
      mixctl service start hello
    """
    params = {"names": names, "now": now, "wait": wait}
    show(ask("service.start", params, seconds=wait + 15), as_json, _brief)


@service.command()
@names_argument
@wait_option
@json_option
def stop(names: tuple[str, ...], wait: float, as_json: bool) -> None:
    """Stop units and what requires them.

    \b
    Example:
      mixctl service stop hello
    """
    result = ask("service.stop", {"names": names, "wait": wait}, seconds=wait + 15)
    show(result, as_json, lambda found: _brief(found["units"]))


@service.command()
@names_argument
@wait_option
@json_option
def restart(names: tuple[str, ...], wait: float, as_json: bool) -> None:
    """Stop and start units.

    \b
    Example:
      mixctl service restart hello
    """
    show(ask("service.restart", {"names": names, "wait": wait}, seconds=2 * wait + 15), as_json, _brief)


@service.command()
@click.option("--seconds", type=click.FloatRange(0, 590), default=20.0, show_default=True, help="For all together.")
@json_option
def shutdown(seconds: float, as_json: bool) -> None:
    """Stop all units in order, and start none until the next boot. init does this when the device goes down.

    \b
    Example:
      mixctl service shutdown --seconds 60
    """
    result = ask("service.shutdown", {"seconds": seconds}, seconds=seconds + 30)
    show(result, as_json, lambda found: " ".join(("killed:", *found["killed"])) if found["killed"] else "all ended")


@service.command()
@click.argument("name", metavar="UNIT", shell_complete=known("unit"))
@click.option("-s", "--signal", "number", default="TERM", show_default=True, help="Name or number of the signal.")
@click.option("--all", "everyone", is_flag=True, help="Send it to all processes, not just to the main one.")
@json_option
def kill(name: str, number: str, everyone: bool, as_json: bool) -> None:
    """Send a signal to a unit's process.

    \b
    Example:
      mixctl service kill hello -s HUP
    """
    result = ask("service.kill", {"name": name, "signal": number, "everyone": everyone})
    show(result, as_json, lambda found: f"{name}: sent {found['signal']}")


@service.command()
@click.argument("names", nargs=-1, metavar="[UNIT...]", shell_complete=known("unit"))
@json_option
def reset(names: tuple[str, ...], as_json: bool) -> None:
    """Forget that units have failed (all, if none is named).

    \b
    Example:
      mixctl service reset
    """
    result = ask("service.reset", {"names": names})
    show(result, as_json, lambda found: f"reset: {', '.join(found['reset']) or 'none had failed'}")


@service.command()
@names_argument
@click.option("--now", is_flag=True, help="Start them now, too.")
@json_option
def enable(names: tuple[str, ...], now: bool, as_json: bool) -> None:
    """Start units at boot.

    \b
    Example:
      mixctl service enable hello --now
    """
    result = ask("service.enable", {"names": names})
    if now:
        result["units"] = ask("service.start", {"names": names}, seconds=45)
    show(result, as_json, lambda found: _changed("enabled", found["enabled"], found.get("units")))


@service.command()
@names_argument
@click.option("--now", is_flag=True, help="Stop them now, too.")
@json_option
def disable(names: tuple[str, ...], now: bool, as_json: bool) -> None:
    """Do not start units at boot.

    \b
    Example:
      mixctl service disable hello --now
    """
    result = ask("service.disable", {"names": names})
    if now:
        result["units"] = ask("service.stop", {"names": names}, seconds=45)["units"]
    show(result, as_json, lambda found: _changed("disabled", found["disabled"], found.get("units")))


@service.command()
@json_option
def reload(as_json: bool) -> None:
    """Check all unit files and apply those that have changed. A broken one changes nothing.

    \b
    Example:
      mixctl service reload
    """
    result = ask("service.reload", seconds=300)
    show(result, as_json, _reloaded)
    if result["broken"]:
        click.get_current_context().exit(3)


@service.command()
@json_option
def check(as_json: bool) -> None:
    """Say what is wrong with the unit files, without applying them. Status 3 when one is broken.

    \b
    Example:
      mixctl service check
    """
    result = ask("service.check", seconds=45)
    show(result, as_json, lambda found: "\n".join(map(_problem, found)) or "all units are fine")
    if any(one["level"] == "error" for one in result):
        click.get_current_context().exit(3)


@service.command()
@click.argument("names", nargs=-1, metavar="[UNIT...]", shell_complete=known("unit"))
@click.option("--dot", is_flag=True, help="For Graphviz.")
@click.option("--order", is_flag=True, help="The steps in which they start.")
@json_option
def graph(names: tuple[str, ...], dot: bool, order: bool, as_json: bool) -> None:
    """Show what depends on what.

    \b
    Example:
      mixctl service graph --dot | dot -Tsvg >units.svg
    """

    def text(found: Mapping[str, Any]) -> str:
        if order:
            return "\n".join(f"{number}. {' '.join(step)}" for number, step in enumerate(found["order"], 1))
        return str(found["dot" if dot else "text"])

    show(ask("service.graph", {"names": names}), as_json, text)


@service.command()
@click.argument("names", nargs=-1, metavar="[UNIT...]", shell_complete=known("unit"))
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), help="Only the newest lines.  [default: 100]")
@click.option("--since", metavar="TIME", help="From then on: 10m, 2h (ago), 14:30, 2026-01-31, 2026-01-31T14:30:00.")
@click.option("--until", metavar="TIME", help="Up to then.")
@click.option(
    "--boot", is_flag=False, flag_value="current", default="", metavar="[ID]", help="Of this boot, or of one."
)
@click.option("--grep", "contains", default="", metavar="TEXT", help="Only lines with this text.")
@json_option
def logs(
    names: tuple[str, ...],
    following: bool,
    lines: int | None,
    since: str | None,
    until: str | None,
    boot: str,
    contains: str,
    as_json: bool,
) -> None:
    """Show what services said (all, if none is named).

    \b
    Example:
      mixctl service logs hello -f
      mixctl service logs --since 1h --json
    """
    import json

    from common.safe import printable, printable_json

    now = time.time()
    params = {
        "names": names,
        "follow": following,
        "last": lines if lines is not None or since else 100,
        "since": None if since is None else moment(since, now),
        "until": None if until is None else moment(until, now),
        "boot": boot,
        "contains": contains,
    }
    for record in follow("service.logs", params):
        line = json.dumps(record, ensure_ascii=False)
        click.echo(printable_json(line) if as_json else printable(_record(record, len(names) != 1)))


def moment(text: str, now: float) -> float:
    """A time that a person wrote, in seconds since 1970: "10m" (ago), "14:30" (today), a date, a date and a time."""
    if ago := _AGO.fullmatch(text):
        return now - int(ago[1]) * _SECONDS[ago[2]]
    today = datetime.datetime.fromtimestamp(now).date()
    try:
        if re.fullmatch(r"\d\d:\d\d(:\d\d)?", text):
            return datetime.datetime.combine(today, datetime.time.fromisoformat(text)).timestamp()
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise click.BadParameter(f"'{text}' is no time: 10m, 14:30, 2026-01-31 or 2026-01-31T14:30:00") from error


def _table(result: Mapping[str, Any]) -> str:
    lines = [_UNITS.table(result["units"])]
    if any(one["stale"] for one in result["units"]):
        lines.append("* runs with an older definition; 'mixctl service restart' applies the new one")
    broken = {**result["broken"], **{one["name"]: one["broken"] for one in result["units"] if one["broken"]}}
    return "\n".join([*lines, *(f"BROKEN  {text}" for text in broken.values())])


def _unwell(one: Mapping[str, Any]) -> bool:
    """A timer waits for its next run, whatever became of the last one."""
    return one["state"] in _BAD or one["broken"] is not None or (one["state"] == "scheduled" and one["slug"] != "")


def _note(one: Mapping[str, Any]) -> str:
    if one["broken"]:
        return "BROKEN file, the older one is in force"
    return str(one["reason"] or one["description"])[:60]


_UNITS = Listing(
    "service.list units[]",
    (
        Column("unit", "name"),
        Column("state", lambda one: one["state"] + ("*" if one["stale"] else "")),
        Column("since", lambda one: _ago(one["since"])),
        Column("pid", lambda one: str(one["pid"] or "-")),
        Column("memory", "memory", size),
        Column("restarts", "restarts"),
        Column("boot", "enabled"),
        Column("", _note),
    ),
)
_ENDS = Listing(
    "service.show ends[]",
    (
        Column("ended", "at", clock),
        Column("ran", "ran", duration),
        Column("how", lambda end: end["reason"] or "ended well"),
    ),
)


def _facts(one: Mapping[str, Any]) -> str:
    usage = one["usage"]
    reason = f" ({one['reason']})" if one["reason"] else ""
    rows = [
        ("unit", one["name"] + (f": {one['description']}" if one["description"] else "")),
        ("state", f"{one['state']} for {_ago(one['since'])}{reason}"),
        ("file", one["file"] + (" (older text in force)" if one["broken"] else "")),
        ("at boot", "started" if one["enabled"] else "not started"),
        ("process", f"{one['pid']} (shim {one['shim']})" if one["pid"] else "-"),
        ("says", word(one["status"])),
        ("restarts", word(one["restarts"])),
        ("memory", f"{size(usage.get('memory'))} (peak {size(usage.get('memory_peak'))})"),
        ("processes", word(usage.get("processes"))),
        ("cpu", duration(usage.get("cpu_seconds"))),
        ("missing", word(one["missing"])),
        ("not enforced", word(one["not_enforced"])),
        ("after", word([*one["first"]["up"], *(f"{name} (its end)" for name in one["first"]["ended"])])),
        ("needed by", word(one["needed_by"])),
        ("logs", f"{one['log']['folder']}" + (f", {one['log']['dropped']} dropped" if one["log"]["dropped"] else "")),
    ]
    if one["next_run"]:
        rows.append(("next run", clock(one["next_run"])))
    return labelled(rows) + (f"\n\n{_ENDS.table(one['ends'])}" if one["ends"] else "")


def _brief(units: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"{one['name']}: {one['state']}" + (f" ({one['reason']})" if one["reason"] else "") for one in units
    )


def _changed(word: str, names: Sequence[str], units: Sequence[Mapping[str, Any]] | None) -> str:
    return f"{word}: {', '.join(names)}" + (f"\n{_brief(units)}" if units else "")


def _reloaded(result: Mapping[str, Any]) -> str:
    lines = [
        f"{word}: {', '.join(result[word])}" for word in ("added", "changed", "removed", "restarted") if result[word]
    ]
    return "\n".join(
        [
            *(lines or ["nothing has changed"]),
            *(f"BROKEN  {text}" for text in result["messages"].values()),
            *(f"missing: {text}" for text in result["missing"].values()),
        ]
    )


def _problem(one: Mapping[str, str]) -> str:
    return f"{one['level']}: {one['unit']}: {one['message']}"


def _record(record: Mapping[str, Any], named: bool) -> str:
    """One line of a log for people."""
    at = clock(record["realtime"] / 1e9)
    unit = f" {record['unit']}" if named else ""
    mark = {"shim": " --", "stderr": " !"}.get(record["stream"], "")
    return f"{at}{unit}{mark} {record['text']}"


def _ago(at: float) -> str:
    """How long ago, of a time that is 0 when it never was."""
    return duration(max(0, int(time.time() - at))) if at else "-"
