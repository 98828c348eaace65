"""`mixctl`: the device's command line. A thin client: parse, ask the daemon, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from daemon.errors import DeviceError

_SHELLS = ("bash", "zsh", "fish")


def _version() -> str:
    from daemon.facts import release

    return release().get("MIXOS_VERSION", "unknown")


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"mixctl {_version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Ask and steer this MixOS device.

    \b
    Example:
      mixctl status
      mixctl status --json
    """


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the whole status as one JSON object.")
def status(as_json: bool) -> None:
    """Show version, slot, health, network and hardening of this device.

    \b
    Example:
      mixctl status --json
    """
    facts = _call("status")
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else table(facts), nl=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ping(as_json: bool) -> None:
    """Check that the daemon answers.

    \b
    Example:
      mixctl ping
    """
    answer = _call("ping")
    click.echo(json.dumps({"answer": answer}) if as_json else answer)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reboot(as_json: bool) -> None:
    """Stop everything in order and start again.

    \b
    Example:
      mixctl reboot
    """
    answer = _call("reboot")
    click.echo(json.dumps({"action": answer}) if as_json else "rebooting")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def poweroff(as_json: bool) -> None:
    """Stop everything in order and switch off.

    \b
    Example:
      mixctl poweroff
    """
    answer = _call("poweroff")
    click.echo(json.dumps({"action": answer}) if as_json else "switching off")


@cli.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Example:
      eval "$(mixctl completion bash)"
    """
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    if maker is not None:
        click.echo(maker(cli, {}, "mixctl", "_MIXCTL_COMPLETE").source())


def _call(method: str) -> Any:
    from daemon.client import call

    return call(method, {})


def table(facts: Mapping[str, Any]) -> str:
    """The status for people: a label and a value per line."""
    return "\n".join(f"{label:<14}{value}" for label, value in rows(facts))


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line; what the device does not know is shown as "-"."""
    hardening, data, memory = facts["hardening"], facts["data"], facts["memory"]
    result = [
        ("host name", _or_dash(facts["hostname"])),
        ("version", _or_dash(facts["version"])),
        ("kernel", _or_dash(facts["kernel"])),
        ("slot", _or_dash(facts["slot"])),
        ("up", _duration(facts["uptime"])),
        ("load", " ".join(f"{value:.2f}" for value in facts["load"]) or "-"),
        ("memory", f"{_size(memory.get('available'))} free of {_size(memory.get('total'))}"),
        ("data", _data(data)),
    ]
    for row in facts["network"]:
        result.append((row["name"], f"{', '.join(row['addresses']) or 'no address'} ({row['state'] or '?'})"))
    result += [
        ("SSH host key", _or_dash(facts["ssh_fingerprint"])),
        ("root", _or_dash(hardening["verity"]) if hardening["verity"] else "not protected by verity"),
        ("lockdown", _or_dash(hardening["lockdown"])),
        ("watchdog", _or_dash(hardening["watchdog"])),
    ]
    if hardening["sysctl_refused"]:
        result.append(("refused", " ".join(hardening["sysctl_refused"])))
    if facts["preseed"]:
        result.append(("preseed", f"{facts['preseed']['state']} {facts['preseed'].get('error', '')}".strip()))
    return result


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _data(data: Mapping[str, Any]) -> str:
    if not data["persistent"]:
        return "NOT PERSISTENT: changes are lost at the next boot"
    return f"{_size(data['free'])} free of {_size(data['size'])} on {data['device']}"


def _size(count: int | None) -> str:
    return "-" if count is None else f"{count / (1 << 30):.1f} GiB" if count >> 30 else f"{count >> 20} MiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours:02}:{minutes:02}:{rest:02}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a wrong command line, else the error's own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result = cli.main(arguments, prog_name="mixctl", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except DeviceError as error:
        if "--json" in arguments:
            click.echo(json.dumps(error.as_json()), err=True)
        else:
            click.echo(f"mixctl: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), err=True)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; the interpreter must not complain about it
        return 141
    return result if isinstance(result, int) else 0
