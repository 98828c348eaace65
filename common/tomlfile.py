"""Read a TOML file into a strict pydantic model, and say exactly what is wrong with it when it does not fit.

The same for what people write on the host (`mixos.toml`, recipes) and on the device (units, profiles, network).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from common import toml
from common.errors import ConfigError
from common.files import read_regular
from common.positions import nearest, positions
from common.safe import without_password
from common.text import MARK, decoded, shown
from common.values import PATTERNS

MAX_BYTES = 4 << 20  # no file that people write by hand is larger


class Strict(BaseModel):
    """Base of every model a user writes: frozen, no unknown keys, `like-this` in files is `like_this` in code."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=False,
        defer_build=True,  # a daemon has hundreds of these, and in an ordinary life uses few: time and memory
    )


Model = TypeVar("Model", bound=BaseModel)


def load(path: Path, model: type[Model]) -> Model:
    """Read `path` as `model`. Raises ConfigError naming file:line:column, the value and what was expected."""
    return parse(read_text(path), path, model)


def read_text(path: Path) -> str:
    """The text of a configuration file. Raises ConfigError when it is missing, huge or not UTF-8."""
    try:
        data = read_regular(path, MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", reason="config-missing") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", reason="config-unreadable") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes", reason="config-too-large")
    return decoded(data, path)


def parse(text: str, path: Path, model: type[Model]) -> Model:
    """Like `load`, for text that was already read; `path` is only named in errors."""
    text = text.removeprefix(MARK)
    data = decode(text, path)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        places = positions(text)
        spots = [(detail, nearest(places, detail["loc"])) for detail in error.errors()[:20]]
        lines = [_explain(detail, f"{path}:{spot.line}:{spot.column}: ", model) for detail, spot in spots]
        raise ConfigError("\n".join(lines), reason=_reason(error.errors())) from error


def parse_edit(text: str, before: str, path: Path, model: type[Model]) -> Model:
    """Like `parse`, for text that a command has made of `before`, which is what the file says: a mistake of the command
    is told without a line, since there is none; one that was there before with its line."""
    try:
        return parse(text, path, model)
    except ConfigError as error:
        parse(before, path, model)
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            raise
        lines = [_explain(detail, "", model) for detail in cause.errors()[:20]]
        raise ConfigError("\n".join(lines), reason=error.reason) from cause


def decode(text: str, path: Path) -> dict[str, Any]:
    """The content of TOML text. Raises ConfigError `config-syntax` with line and column."""
    text = text.removeprefix(MARK)
    try:
        return toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ConfigError(toml.explained(error, path, text), reason="config-syntax") from error


def _reason(details: list[ErrorDetails]) -> str:
    """The reason of several mistakes: a misspelt key explains the one that is missing for it."""
    kinds = {detail["type"] for detail in details}
    if "extra_forbidden" in kinds:
        return "config-unknown-key"
    return "config-missing-key" if "missing" in kinds else "config-value"


def _explain(detail: ErrorDetails, where: str, model: type[BaseModel]) -> str:
    location = detail["loc"]
    name = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _keys_at(model, location[:-1]), n=1)
        return f"{where}unknown key '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")
    if detail["type"] == "missing":
        return f"{where}key '{name}' is missing"
    if isinstance(detail["input"], dict):  # a table as a whole: its keys stand below the line that is named
        return f"{where}{name}: {plain(detail)}" if name else f"{where}{plain(detail)}"
    value = without_password(shown(detail["input"]))
    return f"{where}{name} = {value if len(value) < 120 else value[:117] + '...'}: {plain(detail)}"


def plain(detail: ErrorDetails) -> str:
    """What pydantic found, in words of TOML and JSON: no expressions, no types of Python."""
    limits = detail.get("ctx", {})
    match detail["type"]:
        case "string_pattern_mismatch":
            return PATTERNS.get(limits["pattern"].strip("^$"), "this cannot stand here: other characters are expected")
        case "tuple_type" | "list_type" | "set_type" | "frozen_set_type":
            return "a list is expected"
        case "dict_type" | "model_type" | "model_attributes_type" | "dataclass_type":
            return "a table is expected"
        case "too_short":
            return f"at least {limits['min_length']} are expected"
        case "too_long":
            return f"at most {limits['max_length']} are expected"
    message = detail["msg"].removeprefix("Value error, ")
    return message if message[:2].isupper() else f"{message[:1].lower()}{message[1:]}"  # IPv6


def _keys_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys that the model allows at a location, found by following the annotations down."""
    current: Any = model
    parts = iter([part for part in location if isinstance(part, str)])
    for part in parts:
        fields = {field.alias or name: field for name, field in current.model_fields.items()}
        if part not in fields:
            return []
        annotation = fields[part].annotation
        current = _model_in(annotation)
        if get_origin(annotation) is dict:
            next(parts, None)  # a name that the user chose: [interface.eth0]
        if current is None:
            return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
