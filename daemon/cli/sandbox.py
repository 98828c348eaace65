"""`mixctl sandbox`: run a command confined, and say what that means here."""

from __future__ import annotations

import base64
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from daemon.cli.common import ask, columns, follow, json_option, show
from daemon.errors import RefusedError

ENVIRONMENT = ("TERM", "COLORTERM", "COLUMNS", "LINES", "LANG", "TZ")  # offered; the profile decides
MAX_INPUT = 32 << 10  # bytes: what fits into one request


@click.group()
def sandbox() -> None:
    """Run commands confined, and see what confines them.

    \b
    Example:
      mixctl sandbox run -- id
      mixctl sandbox explain --profile strict
    """


@sandbox.command("run")
@click.option("--profile", "-p", default="tool", help="The profile (default: tool).")
@click.option("--ro", "read_only", multiple=True, metavar="PATH", help="Show this path, read-only (repeat).")
@click.option("--rw", "read_write", multiple=True, metavar="PATH", help="Show this path, writable (repeat).")
@click.option("--net", "network", type=click.Choice(("none", "proxy", "host")), help="Less network than it has.")
@click.option("--directory", "-C", metavar="PATH", help="Working folder inside (default: the first --rw path, or /)")
@json_option
@click.argument("command", nargs=-1, required=True)
def run(
    profile: str,
    read_only: Sequence[str],
    read_write: Sequence[str],
    network: str | None,
    directory: str | None,
    as_json: bool,
    command: Sequence[str],
) -> None:
    """Run COMMAND in a sandbox; its output and exit code become ours.

    Standard input is passed on when it is a file or pipe of at most 32 KiB. The paths must be ones that your account
    can reach. Exit code 124: its time was over.

    \b
    Example:
      mixctl sandbox run --rw ~/project -- make test
      mixctl sandbox run --profile strict -- sh -c 'echo $((6 * 7))'
    """
    writable = [os.path.realpath(path) for path in read_write]
    params: dict[str, Any] = {
        "command": list(command),
        "profile": profile,
        "read-only": [os.path.realpath(path) for path in read_only],
        "read-write": writable,
        "directory": directory or (writable[0] if writable else None),
        "network": network,
        "environment": {
            name: os.environ[name] for name in ENVIRONMENT if len(os.environ.get(name, "x" * 2000)) <= 1024
        },
        "input": base64.b64encode(_input()).decode(),
    }
    code = 1
    for item in follow("sandbox.run", params):
        if "code" in item:
            code = int(item["code"])
        if as_json:
            show(item, True, str)
        elif "data" in item:
            stream = sys.stdout.buffer if item["stream"] == 1 else sys.stderr.buffer
            stream.write(base64.b64decode(item["data"]))
            stream.flush()
    click.get_current_context().exit(code)


def _input() -> bytes:
    """What waits on standard input; nothing from a terminal, and nothing when there is none."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return b""
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        return b""
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise RefusedError(
            "standard input is longer than 32 KiB", reason="sandbox-input", hint="put it into a file and use --ro"
        )
    return data


@sandbox.command()
@click.option("--profile", "-p", default="tool", help="The profile (default: tool).")
@json_option
def explain(profile: str, as_json: bool) -> None:
    """Say what a profile enforces on this device, and what it does not. Measured, by setting a sandbox up.

    \b
    Example:
      mixctl sandbox explain --profile service
    """
    show(ask("sandbox.explain", {"profile": profile}), as_json, _explained)


@sandbox.command()
@json_option
def profiles(as_json: bool) -> None:
    """List the profiles.

    \b
    Example:
      mixctl sandbox profiles
    """
    head = ("name", "network", "user", "filter", "description")
    show(
        ask("sandbox.profiles"),
        as_json,
        lambda found: columns(
            head, [[*(str(one[key]) for key in ("name", "network", "user", "seccomp")), _text(one)] for one in found]
        ),
    )


@sandbox.command("show")
@click.argument("profile")
@json_option
def show_profile(profile: str, as_json: bool) -> None:
    """Show what a profile allows: every key, those with their default too.

    \b
    Example:
      mixctl sandbox show tool
    """
    show(ask("sandbox.show", {"profile": profile}), as_json, _policy)


def _text(profile: Mapping[str, Any]) -> str:
    return (
        f"{profile['description']} (BROKEN FILE, last good policy in force)"
        if profile["broken"]
        else profile["description"]
    )


def _explained(found: Mapping[str, Any]) -> str:
    kernel = found["kernel"]
    head = f"profile {found['name']} on Linux {kernel['release']}, Landlock ABI {kernel['landlock']}"
    rows = [(row["enforced"], row["what"], row["how"]) for row in found["rows"]]
    warning = f"\n\nbroken: {found['broken']}\n  the last good policy is in force" if found["broken"] else ""
    return f"{head}\n\n{columns(('enforced', 'what', 'how'), rows)}{warning}"


def _policy(found: Mapping[str, Any]) -> str:
    lines = [f"# {' < '.join(found['origin'])}"]
    for key, value in found["policy"].items():
        if isinstance(value, dict):
            lines += [f"{key}.{name} = {one}" for name, one in value.items() if one is not None]
        elif isinstance(value, list):
            lines += [f"{key} = {' '.join(map(str, value)) or '-'}"]
        elif value is not None:
            lines += [f"{key} = {str(value).lower() if isinstance(value, bool) else value}"]
    return "\n".join(lines)
