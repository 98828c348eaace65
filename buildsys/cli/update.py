"""mixos update"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from buildsys.cli.context import Context, emit, json_option, pass_context
from buildsys.vm import Vm
from common.errors import UsageError
from common.units import size


@click.command()
@click.argument("host", required=False)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--ssh", "program", default="ssh", show_default=True, help="SSH with its options, as for a shell.")
@click.option("--again", is_flag=True, help="Also a version that is not newer than the one that runs.")
@click.option("--stage", "only", is_flag=True, help="Only put it into the other slot; nothing is restarted.")
@click.option("--wait", default=1200, show_default=True, type=click.IntRange(min=0), help="Seconds until it is good.")
@json_option
@pass_context
def update(
    context: Context,
    host: str | None,
    bundle: Path | None,
    program: str,
    again: bool,
    only: bool,
    wait: int,
    as_json: bool,
) -> None:
    """Bring BUNDLE (default: the one of this project's version) to the device HOST, over SSH, and wait until it runs.

    The device fetches what it lacks, and nothing is copied to it besides. HOST is a name of ssh_config, or
    USER@ADDRESS (default: the machine that `mixos run` started); the account must be an administrator or an operator
    of the device.

    Example: mixos update admin@10.0.0.7 out/mixos-1.4.0.mixb
    """
    from buildsys import update as remote
    from buildsys.bundle import check

    project = context.project
    if bundle is None and host is not None and ("/" in host or host.endswith(".mixb")):
        bundle, host = Path(host), None
    path = bundle or project.out / f"mixos-{project.config.image.version}.mixb"
    if not path.is_file():
        taken = f"; {host} was taken for a host" if host is not None and bundle is None else ""
        hint = f"make it first: mixos bundle{taken}"
        raise UsageError(f"{path}: no such bundle", reason="no-bundle", hint=hint)
    check(path)
    if host is None:
        ssh: Sequence[str] = (*Vm(project, project.out / "run").ssh_command("admin", ()), "--")
    else:
        ssh = remote.command(program, host)
    live, width = sys.stderr.isatty() and not as_json, 0

    def show(line: str, end: str = "\n") -> None:
        nonlocal width
        if not as_json:
            print(f"{chr(13) if live else ''}{line.ljust(width)}", end=end, file=sys.stderr, flush=True)
            width = len(line) if end != "\n" else 0

    def step(found: dict[str, Any]) -> None:
        if "words" in found:
            print(found["words"], file=sys.stderr)
        elif "step" in found and live:
            of = f"{found['done']} of {found['of']} windows, {size(found['fetched'])} fetched"
            show(f"{found['version']}: {found['step']}, {of}", end="")

    staged = remote.stage(ssh, path, again, step)
    show(f"{staged['version']} is staged in slot {staged['slot']}")
    result: dict[str, Any] = {"host": host, "version": staged["version"], "slot": staged["slot"], "state": "staged"}
    if not only:
        remote.ask(ssh, "update", "apply")
        result["state"] = "restarting"
        if wait:
            found = remote.wait(ssh, staged["version"], wait, show)
            result |= {"slot": found["slot"], "state": found["state"]}
    emit(result, as_json, f"{host or 'the machine'}: {result['version']} in slot {result['slot']}, {result['state']}")
