"""What every verb shares: the project, common options, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

from buildsys.display import Display
from buildsys.events import Event, Sink, json_sink
from buildsys.oserrors import host_error
from buildsys.project import Project
from buildsys.session import Options
from common.errors import UsageError
from common.files import read_regular
from common.safe import printable

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Context:
    """The global options."""

    root: Path
    config: Path | None
    out: Path | None

    @cached_property
    def project(self) -> Project:
        """The project the command works on."""
        return Project.at(self.root, self.config, self.out)


pass_context = click.make_pass_decorator(Context)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def build_options(command: Command) -> Command:
    """--kernel-source, --offline, --jobs and --json, as `Options` and a flag."""
    for option in (
        json_option,
        click.option("-j", "--jobs", type=click.IntRange(1, 1024), help="Processes at once (default: all cores)."),
        click.option("--offline", is_flag=True, help="Never use the network; every source must be in the distfiles."),
        click.option("--kernel-source", metavar="auto|pinned|PATH", help="Which kernel to build, over mixos.toml."),
    ):
        command = option(command)
    return command


def options(kernel_source: str | None, offline: bool, jobs: int | None) -> Options:
    """The options of a build from the values of `build_options`."""
    path = kernel_source if kernel_source in (None, "auto", "pinned") else str(Path(kernel_source).absolute())
    return Options(path, offline, jobs)


@contextmanager
def progress(as_json: bool, log: Path | None = None) -> Iterator[Sink]:
    """An event sink: a display on stderr for people, JSON lines on stdout for programs; the file `log` keeps all."""
    sinks: list[Sink] = []
    with Display(quiet=as_json) as display:
        sinks.append(json_sink(sys.stdout) if as_json else display)
        if log is None:
            yield _tee(sinks)
        else:
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                file = log.open("w")
            except OSError as error:
                raise host_error(error, "results cannot be written", hint="name another folder: mixos --out") from error
            with file:
                yield _tee([*sinks, json_sink(file)])
    if not as_json and display.worked:
        print(display.summary(), file=sys.stderr)


def _tee(sinks: list[Sink]) -> Sink:
    def send(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return send


def named_file(path: Path, most: int) -> bytes:
    """The content of a file that the command line names, its first `most` bytes. Raises UsageError `no-file`."""
    try:
        return read_regular(path, most)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", reason="no-file", hint="name a file that can be read") from error


def emit(data: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the same result as JSON or as text."""
    print(json.dumps(data, indent=None if as_json else 1) if as_json else printable(text))
