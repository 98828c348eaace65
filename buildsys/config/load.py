"""Read a TOML file of the project into a strict pydantic model; `daemon.tomlfile` with the host's class of errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from buildsys.errors import ConfigError
from daemon import tomlfile
from daemon.errors import DeviceError
from daemon.tomlfile import MAX_BYTES, Model, Strict

__all__ = ["MAX_BYTES", "Strict", "load_toml", "parse_toml", "read_text"]


def load_toml(path: Path, model: type[Model]) -> Model:
    """Read `path` as `model`. Raises ConfigError naming file:line:column, the value and what was expected."""
    with _host_errors():
        return tomlfile.load(path, model)


def parse_toml(text: str, path: Path, model: type[Model]) -> Model:
    """Like `load_toml`, for text that was already read; `path` is only named in errors."""
    with _host_errors():
        return tomlfile.parse(text, path, model)


def read_text(path: Path) -> str:
    """The text of a configuration file. Raises ConfigError when it is missing, huge or not UTF-8."""
    with _host_errors():
        return tomlfile.read_text(path)


@contextmanager
def _host_errors() -> Iterator[None]:
    try:
        yield
    except DeviceError as error:
        hint = "run from the project's folder" if error.reason == "config-missing" else error.hint
        raise ConfigError(error.message, reason=error.reason, hint=hint) from error
