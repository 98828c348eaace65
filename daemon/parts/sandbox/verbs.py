"""`mixctl sandbox`: run a command confined, and say what that means here."""

from __future__ import annotations

import base64
import codecs
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import click

from daemon.client.cli.common import ask, follow, json_option, show
from daemon.client.cli.content import opened
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing

ENVIRONMENT = ("TERM", "COLORTERM", "COLUMNS", "LINES", "LANG", "TZ")  # offered; the profile decides


@click.group()
def sandbox() -> None:
    """Run commands confined, and see what confines them.

    \b
    Example:
      mixctl sandbox run -- id
      mixctl sandbox explain --profile strict
    """


@sandbox.command("run")
@click.option("--profile", "-p", default="tool", shell_complete=known("profile"), help="The profile (default: tool).")
@click.option("--ro", "read_only", multiple=True, metavar="PATH", help="Show this path, read-only (repeat).")
@click.option("--rw", "read_write", multiple=True, metavar="PATH", help="Show this path, writable (repeat).")
@click.option("--net", "network", type=click.Choice(("none", "proxy", "host")), help="Less network than it has.")
@click.option("--directory", "-C", metavar="PATH", help="Working folder inside (default: the first --rw folder, or /)")
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

    Standard input is passed on when it is a file or pipe. The paths must be ones that your account can reach. Exit code
    124: its time was over. On a terminal, characters that would steer it are shown as escapes.

    \b
    Example:
      mixctl sandbox run --rw ~/project -- make test
      mixctl sandbox run --profile strict -- sh -c 'echo $((6 * 7))'
    """
    writable = list(dict.fromkeys(map(os.path.realpath, read_write)))
    shown = [path for path in dict.fromkeys(map(os.path.realpath, read_only)) if path not in writable]
    folder = next(filter(os.path.isdir, writable), None)
    inside = _inside(directory, [*writable, *shown]) if directory else folder
    params: dict[str, Any] = {
        "command": list(command),
        "profile": profile,
        "read-only": shown,
        "read-write": writable,
        "directory": inside,
        "network": network,
        "environment": {
            name: os.environ[name] for name in ENVIRONMENT if len(os.environ.get(name, "x" * 2000)) <= 1024
        },
    }
    code = 1
    write = {1: _writer(1), 2: _writer(2)}
    with opened("-") if _has_input() else nullcontext() as given:
        params |= {"input": None if given is None else 0}
        for item in follow("sandbox.run", params, descriptors=[] if given is None else [given]):
            if "code" in item:
                code = int(item["code"])
            if as_json:
                click.echo(json.dumps(item))
            elif "data" in item:
                write[item["stream"]](base64.b64decode(item["data"]))
    click.get_current_context().exit(code)


def _inside(directory: str, given: Sequence[str]) -> str:
    """The name inside of a folder that a person names: what it is outside, if it is given; else it is only inside."""
    outside = os.path.realpath(directory)
    if any(outside == path or outside.startswith(f"{path.rstrip('/')}/") for path in given):
        return outside
    return os.path.normpath(directory)


def _writer(number: int) -> Callable[[bytes], None]:
    """Writes output as it is; to a terminal so that it cannot steer it: what runs in a sandbox is not trusted."""
    stream = sys.stdout if number == 1 else sys.stderr
    if not stream.isatty():
        return lambda data: (stream.buffer.write(data), stream.buffer.flush())[1]
    from common.safe import printable

    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two pieces

    def write(data: bytes) -> None:
        stream.write(printable(decoder.decode(data).replace("\r\n", "\n").replace("\r", "\n")))
        stream.flush()

    return write


def _has_input() -> bool:
    """Whether standard input is to be passed on: not a terminal, where it may be meant for the shell."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


@sandbox.command()
@click.option("--profile", "-p", default="tool", shell_complete=known("profile"), help="The profile (default: tool).")
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
    show(ask("sandbox.profiles"), as_json, _PROFILES.table)


@sandbox.command("show")
@click.argument("profile", shell_complete=known("profile"))
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


_PROFILES = Listing(
    "sandbox.profiles []",
    (
        Column("name", "name"),
        Column("network", "network"),
        Column("user", "user"),
        Column("filter", "seccomp"),
        Column("description", _text),
    ),
)
_PROMISES = Listing(
    "sandbox.explain rows[]", (Column("enforced", "enforced"), Column("what", "what"), Column("how", "how"))
)


def _explained(found: Mapping[str, Any]) -> str:
    kernel = found["kernel"]
    head = f"profile {found['name']} on Linux {kernel['release']}, Landlock ABI {kernel['landlock']}"
    warning = f"\n\nbroken: {found['broken']}\n  the last good policy is in force" if found["broken"] else ""
    return f"{head}\n\n{_PROMISES.table(found['rows'])}{warning}"


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
