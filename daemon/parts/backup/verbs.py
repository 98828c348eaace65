"""`mixctl backup`: the device's state into a file, and back.

The file is opened here, with the rights of whoever calls; the daemon sends its bytes, and reads them through the
descriptor. `show` and `verify` need no daemon at all. `-` is standard output or input:
`ssh admin@host -- mixctl backup create - >file`.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from common.errors import MixosError
from common.units import clock, size
from daemon.client.cli.change import change_options, problems, tell, wish
from daemon.client.cli.common import ask, follow, json_option, show
from daemon.client.cli.content import Meter, opened
from daemon.client.console.names import names as known

Function = TypeVar("Function", bound=Callable[..., Any])


def _secret_options(function: Function) -> Function:
    given = click.option(
        "--passphrase-file",
        "passphrase_file",
        metavar="PATH",
        help="Read the passphrase from the first line of PATH (-: standard input) instead of asking for it.",
    )
    return click.option("--plain", is_flag=True, help="The backup is not encrypted.")(given(function))


@click.group()
def backup() -> None:
    """Keep settings, keys and state of this device in a file, and put them back.

    \b
    Example:
      mixctl backup create /tmp/kitchen.mixbackup
      mixctl backup restore /tmp/kitchen.mixbackup --dry-run
    """


@backup.command()
@click.argument("file")
@click.option("--no-secrets", is_flag=True, help="Leave out private keys, passwords and the configuration's history.")
@click.option(
    "--state",
    multiple=True,
    metavar="UNIT",
    shell_complete=known("unit"),
    help="Keep this unit's state directory too; may be repeated.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@_secret_options
@json_option
def create(
    file: str,
    no_secrets: bool,
    state: tuple[str, ...],
    force: bool,
    passphrase_file: str | None,
    plain: bool,
    as_json: bool,
) -> None:
    """Write a backup to FILE (-: standard output). Logs are never in it.

    \b
    Example:
      mixctl backup create kitchen.mixbackup --state web
      ssh admin@kitchen -- mixctl backup create - --passphrase-file - <secret >kitchen.mixbackup
    """
    if file != "-" and not force and Path(file).exists():
        raise click.UsageError(f"{file} is there already; --force replaces it")
    params: dict[str, object] = {"secrets": not no_secrets, "state": list(state)}
    with _output(file) as stream:
        params |= _secret(passphrase_file, plain, confirm=True)
        with Meter("received") as meter:
            summary = _receive(params, stream, meter)
    if file != "-":
        show(summary, as_json, lambda found: _created(found, file))


def _receive(params: dict[str, object], stream: BinaryIO, meter: Meter) -> dict[str, Any]:
    for item in follow("backup.create", params):
        if "summary" in item:
            return dict(item["summary"])
        data = base64.b64decode(item["data"])
        stream.write(data)
        meter.add(len(data))
    raise MixosError("the backup ended too early", reason="backup-truncated", retryable=True)


@backup.command(name="show")
@click.argument("file")
@_secret_options
@json_option
def show_(file: str, passphrase_file: str | None, plain: bool, as_json: bool) -> None:
    """Say what is in FILE: from which device, when, which files.

    \b
    Example:
      mixctl backup show kitchen.mixbackup
    """
    show(_read(file, passphrase_file, plain), as_json, _listing)


@backup.command()
@click.argument("file")
@_secret_options
@json_option
def verify(file: str, passphrase_file: str | None, plain: bool, as_json: bool) -> None:
    """Read FILE to its end and check every byte.

    \b
    Example:
      mixctl backup verify kitchen.mixbackup --passphrase-file secret
    """
    found = _read(file, passphrase_file, plain)
    result = {"whole": True, "encrypted": found["encrypted"], "files": len(found["files"]), "bytes": found["bytes"]}
    show(result, as_json, lambda one: f"{file} is whole: {one['files']} files, {size(one['bytes'])}")


@backup.command()
@click.argument("file")
@click.option("--only", metavar="SECTION[,SECTION...]", help="settings, units, ssh, vpn, history, daemon, state.")
@_secret_options
@change_options
def restore(
    file: str, only: str | None, passphrase_file: str | None, plain: bool, as_json: bool, **values: object
) -> int:
    """Put the backup FILE (-: standard input) back: all of it, or nothing.

    \b
    Example:
      mixctl backup restore kitchen.mixbackup --dry-run
      mixctl backup restore kitchen.mixbackup --only settings,units
    """
    params: dict[str, object] = {"content": 0, "only": only.split(",") if only else [], **wish(values)}
    with opened(file) as descriptor:
        params |= _secret(passphrase_file, plain)
        with Meter("read") as meter:
            found = ask("backup.restore", params, seconds=905.0, descriptors=[descriptor], progress=meter.at)
    return tell(found, as_json, _restored)


def _read(file: str, passphrase_file: str | None, plain: bool) -> dict[str, Any]:
    from daemon.parts.backup.restore import examine
    from daemon.parts.backup.sealed import unseal

    files: list[dict[str, Any]] = []
    with _input(file) as stream:
        secret = _passphrase(passphrase_file, plain)
        examined = examine(unseal(stream, secret))
        told = next(examined)[0].model_dump(mode="json", by_alias=True)
        for _, entry, _ in examined:
            files.append(
                {
                    "path": entry.path,
                    "kind": entry.kind,
                    "bytes": entry.length or entry.size,
                    "mode": f"{entry.mode:04o}",
                }
            )
    total = sum(one["bytes"] for one in files)
    return {"backup": told, "encrypted": secret is not None, "bytes": total, "files": files}


def _secret(path: str | None, plain: bool, confirm: bool = False) -> dict[str, object]:
    """The parameter, if there is one."""
    secret = _passphrase(path, plain, confirm)
    return {} if secret is None else {"passphrase": secret}


def _passphrase(path: str | None, plain: bool, confirm: bool = False) -> str | None:
    """From a file, else from the terminal: never from the command line, which everybody can read."""
    if plain:
        if path is not None:
            raise click.UsageError("--plain and --passphrase-file exclude each other")
        return None
    if path is not None:
        try:
            line = _first_line(path)
            text = line.rstrip(b"\r\n").decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise click.UsageError(f"{path}: the passphrase cannot be read ({why})") from error
        if not text or len(text) > 1024:
            raise click.UsageError(f"{path}: the first line must have 1 to 1024 characters")
        return text
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise click.UsageError("there is no terminal to ask for the passphrase: --passphrase-file") from error
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))


def _first_line(path: str) -> bytes:
    """Byte by byte: what follows it on standard input may be the backup, which the daemon reads."""
    line = b""
    descriptor = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while len(line) < 4100 and not line.endswith(b"\n") and (byte := os.read(descriptor, 1)):
            line += byte
    finally:
        os.close(descriptor)
    return line


@contextmanager
def _input(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115  # closed below
    except OSError as error:
        raise MixosError(f"{file}: {error.strerror}", reason="backup-file") from error
    with stream:
        yield stream


@contextmanager
def _output(file: str) -> Iterator[BinaryIO]:
    """A file that gets its name when it is whole."""
    if file == "-":
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise MixosError(f"standard output: {error.strerror}", reason="backup-file") from error
        return
    target = Path(file)
    if target.exists() and not target.is_file():  # renamed over, a device would be gone
        raise MixosError(f"{file}: not a regular file", reason="backup-file", hint="-: standard output")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.rename(target)
    except OSError as error:
        raise MixosError(f"{file}: {error.strerror}", reason="backup-file") from error
    finally:
        beside.unlink(missing_ok=True)


def _created(found: dict[str, Any], file: str) -> str:
    lines = [f"{file}: {found['files']} files, {size(found['bytes'])}"]
    lines += [] if found["encrypted"] else ["it is not encrypted"]
    lines += [f"left out: {path}" for path in found["left-out"]]
    return "\n".join(lines)


def _listing(found: dict[str, Any]) -> str:
    one = found["backup"]
    state = ", ".join(sorted(one["state"])) or "none"
    head = [
        f"device     {one['hostname']}, MixOS {one['mixos-version']}",
        f"made       {clock(one['created'])}",
        f"secrets    {'yes' if one['secrets'] else 'no'}, {'encrypted' if found['encrypted'] else 'NOT ENCRYPTED'}",
        f"sections   {', '.join(one['sections'])}",
        f"state of   {state}",
        "",
    ]
    return "\n".join([*head, *(f"{row['mode']} {row['bytes']:>10} {row['path']}" for row in found["files"])])


def _restored(found: dict[str, Any]) -> str:
    would = "would be " if found["dry-run"] else ""
    lines = [f"{would}changed: {path}" for path in found["changed-files"]]
    lines += [f"{would}removed: {path}" for path in found["removed"]]
    lines = lines or ["everything is as in the backup already"]
    if not found["dry-run"] and not found["confirm"]:
        lines += [f"now: mixctl service start {unit}" for unit in found["restart"]]
        lines += ["now: mixctl reboot"] if found["reboot"] else []
    if found["confirm"]:
        lines.append(f"on trial for {found['confirm']} s, files stay until: mixctl confirm")
    lines += problems(found)
    return "\n".join(lines)
