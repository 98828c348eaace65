"""What every verb uses: the --json option, asking the daemon, printing an answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from common.errors import UsageError
from daemon.client.connection import PATIENCE, Progress
from daemon.client.show import columns as columns

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """Adds `--json`, given to the function as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def ask(
    method: str,
    params: Mapping[str, object] | None = None,
    *,
    seconds: float = 15.0,
    descriptors: Sequence[int] = (),
    progress: Progress | None = None,
) -> Any:
    """The daemon's answer. Parameters as of `daemon.client.connection.call`, which raises what `mixctl` prints."""
    from daemon.client.connection import call

    more: dict[str, Any] = {"descriptors": descriptors, "progress": progress} if descriptors else {}
    return call(method, params or {}, timeout=seconds, patience=PATIENCE, **more)


def follow(
    method: str, params: Mapping[str, object] | None = None, *, descriptors: Sequence[int] = ()
) -> Iterator[Any]:
    """The items of a stream, until it ends, the person interrupts, or nobody reads standard output any more."""
    from daemon.client.connection import stream

    yield from stream(method, params or {}, patience=PATIENCE, descriptors=descriptors, reader=1)


def sure(question: str) -> None:
    """Ask the person; a no ends the command. Raises UsageError where nobody is there to confirm."""
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to confirm", reason="not-confirmed", hint="pass --yes if you are sure")
    click.confirm(question, abort=True, err=True)


def write_file(text: str) -> None:
    """The text of a file on standard output, byte for byte; on a terminal so that it cannot steer it."""
    from common.safe import printable

    if not sys.stdout.isatty():
        click.echo(text.encode(), nl=False)
    else:
        click.echo(printable(text), nl=not text.endswith("\n"))


def show(result: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """Print a result: the object itself as JSON, or what `render` makes of it for people.

    Either way nothing in it can steer the terminal: what comes from logs, units and the network is not trusted.
    """
    from common.safe import printable, printable_json

    text = json.dumps(result, indent=1, ensure_ascii=False)
    click.echo(printable_json(text) if as_json else printable(render(result)))
