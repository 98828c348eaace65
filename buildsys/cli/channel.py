"""mixos channel"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from buildsys.cli.context import Command, Context, emit, json_option, pass_context
from buildsys.cli.keys import passphrase_option, private_keys, public_keys
from common.errors import UsageError
from common.units import clock

if TYPE_CHECKING:
    from common.trust.channel import Terms


def folder_argument(command: Command) -> Command:
    """FOLDER."""
    return click.argument("folder", type=click.Path(path_type=Path))(command)


@click.group()
def channel() -> None:
    """See and change what a channel offers to which devices.

    Example: mixos channel status /srv/updates · mixos channel pause /srv/updates 1.4.0 --why "see ticket 12"
    """


@channel.command()
@folder_argument
@json_option
@pass_context
def status(context: Context, folder: Path, as_json: bool) -> None:
    """Show what devices are offered, and what must be signed anew when. Example: mixos channel status /srv/updates"""
    from buildsys.channel import Channel
    from buildsys.keys import tuf

    found = Channel(folder.absolute()).status(public_keys(context), tuf.utc_now())
    lines = [] if found["current"] else ["the folder is behind: mixos channel publish"]
    for one in found["releases"]:
        lines.append(f"{one['version']:<16} {_said(one)}")
    now = f"{tuf.utc_now():%Y-%m-%dT%H:%M:%SZ}"
    lines += [
        f"{role:<16} {'expires' if when > now else 'EXPIRED'} {when[:10]}" for role, when in found["expires"].items()
    ]
    emit(found, as_json, "\n".join(lines))


def _said(one: dict[str, Any]) -> str:
    if not one["offered"]:
        return "listed, not offered here"
    if one["paused"] is not None:
        return f"paused: {one['paused']}"
    steps = ", ".join(f"{wave['share'] / 100:g} % {clock(wave['start'])}" for wave in one["waves"])
    lost = "" if one["bundle"] else "; its bundle is not there"
    return f"offered to {one['share'] / 100:g} % now ({steps}){lost}"


@channel.command()
@folder_argument
@json_option
@pass_context
def publish(context: Context, folder: Path, as_json: bool) -> None:
    """Make the folder follow the project's list, after mixos keys renew, say.

    Example: mixos channel publish /srv/updates
    """
    from buildsys.channel import Channel

    if not folder.is_dir():  # a release that was cut off may have left one that is empty
        Channel(folder.absolute()).check_there(public_keys(context))
    _publish(context, folder, as_json, {}, "")


@channel.command()
@folder_argument
@click.argument("version", required=False)
@click.option("--why", default="paused", help="What devices say of it.")
@click.option("--failed", type=click.IntRange(min=0), help="Pause only if so many devices that failed are too many …")
@click.option(
    "--of", "total", type=click.IntRange(min=1), help="… of so many that took it (--max-failures of release)."
)
@passphrase_option
@json_option
@pass_context
def pause(
    context: Context,
    folder: Path,
    version: str | None,
    why: str,
    failed: int | None,
    total: int | None,
    passphrase_fd: int | None,
    as_json: bool,
) -> None:
    """Offer a release, or all, to nobody for now.

    Example: mixos channel pause /srv/updates 1.4.0 --why "see ticket 12"
    """
    from buildsys.channel import too_many

    if (failed is None) != (total is None):
        raise UsageError("--failed and --of go together", reason="usage")

    def change(terms: Terms) -> Terms:
        if failed is not None and total is not None and not too_many(terms, failed, total):
            return terms
        return _replaced(terms, paused=why)

    _change(context, folder, version, change, passphrase_fd, as_json, "paused")


@channel.command()
@folder_argument
@click.argument("version", required=False)
@passphrase_option
@json_option
@pass_context
def resume(context: Context, folder: Path, version: str | None, passphrase_fd: int | None, as_json: bool) -> None:
    """Offer a release, or all, again. Example: mixos channel resume /srv/updates 1.4.0"""
    _change(
        context, folder, version, lambda terms: _replaced(terms, paused=None), passphrase_fd, as_json, "offered again"
    )


@channel.command()
@folder_argument
@click.argument("version")
@click.argument("waves", nargs=-1, required=True, metavar="SHARE[@WHEN]...")
@passphrase_option
@json_option
@pass_context
def wave(
    context: Context, folder: Path, version: str, waves: tuple[str, ...], passphrase_fd: int | None, as_json: bool
) -> None:
    """Give a release other waves. Example: mixos channel wave /srv/updates 1.4.0 5% 100%@2026-12-24T08:00"""
    from buildsys.channel import parse_waves

    def change(terms: Terms) -> Terms:
        return _replaced(terms, waves=[one.model_dump() for one in parse_waves(waves, terms.created)])

    _change(context, folder, version, change, passphrase_fd, as_json, "has these waves")


@channel.command()
@folder_argument
@click.argument("version")
@passphrase_option
@json_option
@pass_context
def withdraw(context: Context, folder: Path, version: str, passphrase_fd: int | None, as_json: bool) -> None:
    """Take a release back: devices refuse it from now on, from files too.

    Example: mixos channel withdraw /srv/updates 1.4.0
    """
    from buildsys.channel import Channel
    from buildsys.keys import tuf
    from buildsys.keys.sign import withdraw as take_back

    public = public_keys(context)
    Channel(folder.absolute()).check_there(public)
    take_back(version, private_keys(context, passphrase_fd), public, tuf.utc_now())
    done = f"{version} is withdrawn; devices that run it keep it. Its bundle stays: they fetch what differs from it"
    _publish(context, folder, as_json, {"withdrawn": version}, done)


def _replaced(terms: Terms, **changes: Any) -> Terms:
    """Other terms, checked. Raises UsageError."""
    from pydantic import ValidationError

    from common.tomlfile import plain

    found = terms.model_dump(mode="json", by_alias=True) | changes
    try:
        return type(terms).model_validate(found)
    except ValidationError as error:
        raise UsageError(plain(error.errors()[0]), reason="channel-terms") from error


def _change(
    context: Context,
    folder: Path,
    version: str | None,
    change: Callable[[Terms], Terms],
    passphrase_fd: int | None,
    as_json: bool,
    done: str,
) -> None:
    """Change the terms of a release, or of all, sign and publish."""
    from buildsys.channel import Channel, listed, offer
    from buildsys.keys import tuf
    from buildsys.keys.sign import set_terms

    public = public_keys(context)
    Channel(folder.absolute()).check_there(public)
    before = {version: offer(public, version)} if version else {o.version: o.terms for o in listed(public) if o.terms}
    after = {name: change(terms) for name, terms in before.items()}
    changed = {name: terms for name, terms in after.items() if terms != before[name]}
    if changed:
        set_terms(changed, private_keys(context, passphrase_fd), public, tuf.utc_now())
    text = f"{', '.join(changed)}: {done}" if changed else "nothing changes"
    _publish(context, folder, as_json, {"changed": sorted(changed)}, text)


def _publish(context: Context, folder: Path, as_json: bool, data: dict[str, Any], text: str) -> None:
    from buildsys.channel import Channel

    written = Channel(folder.absolute()).publish(public_keys(context))
    text += f"{'; ' if text else ''}{len(written)} files written to {folder}"
    emit({**data, "written": written}, as_json, text)
