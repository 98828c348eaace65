"""mixos doctor"""

from __future__ import annotations

from dataclasses import asdict

import click

from buildsys import doctor as checks
from buildsys.cli.context import Context, emit, json_option, pass_context
from common.errors import HostError


@click.command()
@click.option("--packages", is_flag=True, help="Only print the distribution packages to install, one a line.")
@json_option
@pass_context
def doctor(context: Context, packages: bool, as_json: bool) -> None:
    """Check what this host lacks for building and running, and say what to do about it.

    Example: mixos doctor
    """
    if packages:
        print("\n".join(checks.missing_packages()))
        return
    findings = checks.examine(context.project)
    lines = []
    for item in findings:
        mark = "ok  " if item.ok else "FAIL" if item.needed else "note"
        lines.append(f"{mark}  {item.check}: {item.text}" + ("" if item.ok else f"\n      → {item.remedy}"))
    emit({"findings": [asdict(item) for item in findings]}, as_json, "\n".join(lines))
    bad = [item.check for item in findings if item.needed and not item.ok]
    if bad:
        raise HostError(f"this host cannot build: {', '.join(bad)}", reason="host-incomplete")
