"""mixos lock"""

from __future__ import annotations

from typing import Any

import click

from buildsys import apt, download
from buildsys.cli.context import Context, emit, json_option, pass_context
from buildsys.fetch import Fetcher
from common.errors import FetchError
from common.safe import without_password


@click.command()
@click.option("--check", is_flag=True, help="Ask every place whether it still has the file (network).")
@json_option
@pass_context
def lock(context: Context, check: bool, as_json: bool) -> None:
    """List the pinned sources, and with --check where each can still be had.

    Example: mixos lock --check
    """
    project = context.project
    fetcher = Fetcher(project.distfiles, lambda event: None)
    sites = [site for site in apt.sites() if site.startswith(("http://", "https://"))] if check else []
    rows: list[dict[str, Any]] = []
    for source in project.lock.sources.values():
        places = [
            *(f"{mirror.rstrip('/')}/{source.sha256}" for mirror in project.config.fetch.mirrors),
            *source.urls,
            *(f"{site}/{source.pool}" for site in sites if source.pool),
        ]
        row: dict[str, Any] = {
            "name": source.name,
            "version": source.version,
            "sha256": source.sha256,
            "pip": source.pip,
        }
        row["local"] = fetcher.have(source)
        row["places"] = {without_password(place): download.head(place) for place in places} if check else {}
        rows.append(row)
    lines = []
    for row in rows:
        lines.append(f"{row['name']:<22} {row['version']:<14} {'local' if row['local'] else 'not here'}")
        lines += [f"    {status:<20} {place}" for place, status in row["places"].items()]
    emit({"sources": rows}, as_json, "\n".join(lines))
    if not check:
        return
    missing = [row for row in rows if not row["local"] and not row["pip"] and "yes" not in row["places"].values()]
    gone = [row["name"] for row in missing if all(status.startswith("HTTP 4") for status in row["places"].values())]
    if gone:
        raise FetchError(f"no place has: {', '.join(gone)}", reason="pin-gone", hint="move the pins in sources.lock")
    if missing:
        names = ", ".join(row["name"] for row in missing)
        hint = "some places did not answer: check the network, then try again"
        raise FetchError(
            f"not found, and not known to be gone: {names}", reason="pin-unknown", hint=hint, retryable=True
        )
