"""`mixctl config`: history, diff and undo of what was configured on this device."""

from __future__ import annotations

import json
from typing import IO, Any

import click

from common.errors import ConfigError
from common.text import decoded
from common.units import clock, size
from daemon.client.cli.change import SECONDS, change_options, changed, tell, wish
from daemon.client.cli.common import ask, json_option, show, write_file
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing
from daemon.core.rpc import MAX_LINE

_AROUND = 1024  # bytes of a call beside the text


@click.group()
def config() -> None:
    """Look at earlier configurations of this device and go back to one.

    \b
    Example:
      mixctl config history
      mixctl config undo
    """


@config.command()
@click.option("-n", "count", type=click.IntRange(1, 500), default=20, show_default=True, help="How many to show.")
@json_option
def history(count: int, as_json: bool) -> None:
    """List who changed what, newest first.

    \b
    Example:
      mixctl config history -n 5
    """
    show(ask("config.history", {"count": count}), as_json, _REVISIONS.table)


@config.command()
@click.argument("old", type=int, default=0, shell_complete=known("revision"))
@click.argument("new", type=int, required=False, shell_complete=known("revision"))
@json_option
def diff(old: int, new: int | None, as_json: bool) -> None:
    """Show what changed between revisions OLD and NEW (0 is the newest, -1 the one before it; NEW: the files now).

    \b
    Example:
      mixctl config diff -- -1 0
    """
    params = {"old": old} if new is None else {"old": old, "new": new}
    show(ask("config.diff", params), as_json, lambda answer: answer["diff"].rstrip("\n") or "no difference")


@config.command("list")
@json_option
def files(as_json: bool) -> None:
    """List the files below /etc/mixos that were written by people or for them.

    \b
    Example:
      mixctl config list
    """
    show(
        ask("config.list"), as_json, lambda rows: "\n".join(row["path"] for row in rows) or "all is as the image has it"
    )


@config.command()
@click.argument("path", shell_complete=known("config"))
@json_option
def get(path: str, as_json: bool) -> None:
    """Print the file PATH of /etc/mixos, such as units/hello.toml.

    \b
    Example:
      mixctl config get firewall.toml
    """
    answer = ask("config.get", {"path": path})
    if as_json:
        show(answer, as_json, str)
    else:
        write_file(answer["text"])


@config.command()
@click.argument("path", shell_complete=known("config"))
@click.argument("file", type=click.File("rb"), default="-")
@change_options
def put(path: str, file: IO[bytes], as_json: bool, **values: object) -> int:
    """Write FILE (default: standard input) to PATH below /etc/mixos, and put it in force.

    What is wrong with it is told, and nothing changes then. What could cut the connection that you came by is on trial
    for a minute: `mixctl confirm` keeps it. `mixctl config undo` brings the older text back.

    \b
    Example:
      ssh admin@device -- mixctl config put units/hello.toml < hello.toml
    """
    params = {"path": path, "text": _text(file), **wish(values)}
    return tell(ask("config.put", params, seconds=SECONDS), as_json, lambda answer: _told(path, answer))


def _text(file: IO[bytes]) -> str:
    """All of it. Raises ConfigError `config-unreadable`, `config-too-large`, `config-encoding`."""
    try:
        data = file.read(MAX_LINE + 1)
    except OSError as error:
        raise ConfigError(f"{file.name}: {error.strerror}", reason="config-unreadable") from error
    text = data.decode(errors="replace")
    if len(data) > MAX_LINE or len(json.dumps(text, ensure_ascii=False).encode()) > MAX_LINE - _AROUND:
        raise ConfigError(
            f"{file.name}: more than a call takes ({size(MAX_LINE)}, line ends and quotes count twice)",
            reason="config-too-large",
            hint="long lists of addresses go in with: mixctl firewall block --file",
        )
    return decoded(data, file.name)


@config.command()
@click.argument("path", shell_complete=known("config"))
@change_options
def remove(path: str, as_json: bool, **values: object) -> int:
    """Remove the file PATH below /etc/mixos; what the image ships in its place counts again.

    \b
    Example:
      mixctl config remove units/hello.toml
    """
    params = {"path": path, **wish(values)}
    return tell(ask("config.remove", params, seconds=SECONDS), as_json, lambda answer: _told(path, answer))


def _told(path: str, answer: dict[str, Any]) -> str:
    """What came of it; a file that no method reads again is read when it is used."""
    if not answer["applied"]:
        return changed(answer)
    tried = answer["confirm"] or answer["problems"] or answer["apply"]
    return f"{path}: {changed(answer) if tried else 'written; read at its next use'}"


@config.command()
@click.argument("revision", type=int, default=-1, shell_complete=known("revision"))
@change_options
def undo(revision: int, as_json: bool, **values: object) -> int:
    """Go back to REVISION (default: the one before the newest). This makes a new revision: an undo can be undone.

    Files come back and are put in force. What could cut the connection that you came by is on trial for a minute:
    `mixctl confirm` keeps it.

    \b
    Example:
      mixctl config undo
    """
    return tell(ask("config.undo", {"revision": revision, **wish(values)}, seconds=SECONDS), as_json, _undone)


_REVISIONS = Listing(
    "config.history []",
    (
        Column("id", "id"),
        Column("when", "at", clock),
        Column("who", "who"),
        Column("what", "why"),
        Column("files", "files"),
    ),
    none="nothing was ever configured",
)


def _undone(answer: dict[str, Any]) -> str:
    files = " ".join(answer["changed-files"]) or "nothing had to change"
    stays = [f"stays as it is, too long to be kept: {path}" for path in answer["stays"]]
    return "\n".join([f"revision {answer['revision']}: {files}", *stays, changed(answer)])
