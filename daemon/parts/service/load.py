"""Reading unit files: which are in force, which are broken and why.

A file of the local folder replaces the shipped one of the same name. A mistake never takes a working unit away: the
last good text of each local unit is kept, and a file that cannot be read, contradicts itself, requires unknown units or
closes a cycle leaves that one in force and is reported with file, line and column. A unit that only mentions another
one (wants, after, ...) does without it, and that is reported too.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from common.files import write_all
from common.positions import Position, nearest, positions
from common.tomlfile import parse, read_text
from common.values import NAME
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.parts.service.graph import DEPENDENCIES, Graph
from daemon.parts.service.unit import Unit, contradictions

MAX_UNITS = 2000
MAX_MESSAGE = 800  # characters about a file: those of all units together must fit into an answer
_NAMED = 8  # units of a cycle that are named
_HARD = ("requires",)
_SOFT = tuple(key for key in DEPENDENCIES if key not in _HARD)


@dataclass(frozen=True)
class Definition:
    """A unit in force: the file that it came from, the text it was made of."""

    name: str
    path: Path
    text: str
    unit: Unit


@dataclass(frozen=True)
class Loaded:
    """units: what is in force. broken: unit name → message, one line per mistake; it may be in `units` too, with an
    older text. missing: unit in force → message, one line per unit that it names without requiring it, and that is not
    there. Messages have at most MAX_MESSAGE characters."""

    units: Mapping[str, Definition] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def load(
    folders: Sequence[Path],
    previous: Mapping[str, Definition],
    instead: Mapping[str, Definition] | None = None,
    without: Path | None = None,
) -> Loaded:
    """Read all units of `folders`, a later folder replacing earlier ones; `previous` is what holds if a file is broken,
    `instead` what counts instead of files, `without` a file that does not.

    Nothing is raised: what is wrong is in the result.
    """
    units: dict[str, Definition] = {}
    broken: dict[str, str] = {}
    files = {path.stem: path for folder in folders for path in unit_files(folder) if path != without}
    units.update(instead or {})
    files |= {name: one.path for name, one in units.items()}
    for name, path in sorted((name, path) for name, path in files.items() if name not in units):
        try:
            if len(units) >= MAX_UNITS:
                raise ConfigError(f"{path}: more than {MAX_UNITS} units", reason="unit-too-many")
            units[name] = read(path)
        except ConfigError as error:
            broken[name] = error.message
            if name in previous:
                units[name] = previous[name]
    _settle(units, broken, previous, files)
    missing = {name: text for name, text in _unknown(units, files, _SOFT) if text}
    return Loaded(units, _short(broken), _short(missing))


def _short(messages: Mapping[str, str]) -> dict[str, str]:
    return {
        name: text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 2]} …" for name, text in messages.items()
    }


def unit_files(folder: Path) -> Iterator[Path]:
    """The files of a folder that are meant as units."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from sorted(path for path in folder.iterdir() if path.suffix == ".toml" and path.name[0] != ".")


def passed_over(folder: Path) -> list[str]:
    """The names of what is in a folder of units and is not read as one, other than hidden files."""
    read = set(unit_files(folder))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(path.name for path in folder.iterdir() if path not in read and path.name[0] != ".")
    return []


def read(path: Path) -> Definition:
    """One unit file. Raises ConfigError; `unit-name`, `unit-unsafe` beside those of `tomlfile.load`."""
    _check_name(path)
    try:
        facts = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", reason="config-unreadable") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigError(f"{path}: not a file", reason="config-unreadable")
    if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
        raise ConfigError(f"{path}: others than root may write it, and units run as root", reason="unit-unsafe")
    text = read_text(path)
    return Definition(path.stem, path, text, parse_unit(text, path))


def _check_name(path: Path) -> None:
    if not re.fullmatch(NAME, path.stem):
        raise ConfigError(
            f"{path}: a unit is named with up to 48 of a-z, 0-9, - and _, a letter or digit first", reason="unit-name"
        )


def parse_unit(text: str, path: Path) -> Unit:
    """A unit from its text. Raises ConfigError like `tomlfile.parse`; sections that contradict each other too."""
    unit = parse(text, path, Unit)
    lines = []
    for section, problem in contradictions(unit):
        place = nearest(positions(text), (section,))
        lines.append(f"{path}:{place.line}:{place.column}: {problem}")
    if lines:
        raise ConfigError("\n".join(lines), reason="unit-contradiction")
    return unit


def check(text: str, path: Path) -> None:
    """Raise ConfigError for a unit that would not be taken, as far as it can be told from its text alone."""
    parse_unit(text, path)


def fits(text: str | None, path: Path, context: Context) -> None:
    """Raise ConfigError for a unit that would not be taken beside the others that are there (text None: its file goes),
    or that would break one of them."""
    folders = [context.lib / "units", context.etc / "units"]
    if text is not None:
        _check_name(path)
        found = load(folders, {}, {path.stem: Definition(path.stem, path, text, parse_unit(text, path))})
    else:
        found = load(folders, {}, without=context.etc / path)
    if path.stem in found.broken:
        raise ConfigError(found.broken[path.stem], reason="unit-broken")
    before = load(folders, {}).broken
    for name, message in sorted(found.broken.items()):
        if name not in before:
            what = f"{path}: the unit {name} would be broken: {message}"
            raise ConfigError(what, reason="unit-needed", hint=f"change or remove units/{name}.toml first")


def state_folders(context: Context) -> dict[str, str]:
    """Unit → its folder below /var/lib, for the units that have one; from the files as they are."""
    loaded = load([context.lib / "units", context.etc / "units"], {})
    found = {name: one.unit.service.state_directory for name, one in loaded.units.items() if one.unit.service}
    return {name: str(folder) for name, folder in found.items() if folder}


def _settle(
    units: dict[str, Definition],
    broken: dict[str, str],
    previous: Mapping[str, Definition],
    files: Mapping[str, Path],
) -> None:
    """Take out what requires unknown units, names itself or closes a cycle, until the rest is sound: first to its older
    text, if any."""

    def reject(name: str, message: str) -> None:
        broken.setdefault(name, message)
        old = previous.get(name)
        if old is not None and units[name] is not old:
            units[name] = old
        else:
            del units[name]

    while True:
        wrong = {name: text for name, text in (*_itself(units), *_unknown(units, files, _HARD)) if text}
        for name, message in wrong.items():
            reject(name, message)
        if wrong:
            continue
        cycle = Graph({name: one.unit for name, one in units.items()}).cycle()
        if not cycle:
            return
        members = cycle[:-1]
        named = " → ".join(
            cycle if len(members) <= _NAMED else (*cycle[:_NAMED], f"… ({len(members)} units)", cycle[0])
        )
        changed = [name for name in members if previous.get(name) not in (None, units[name])] or [
            name for name in members if name not in previous
        ]
        for name in changed or members:
            place = _place(units[name], ("unit",))
            reject(name, f"{units[name].path}:{place.line}:{place.column}: dependency cycle {named}")


def _itself(units: Mapping[str, Definition]) -> Iterator[tuple[str, str]]:
    """(unit, message) for each unit that names itself."""
    for name, one in units.items():
        keys = [key for key in DEPENDENCIES if name in getattr(one.unit.unit, key)]
        yield name, "\n".join(f"{_where(one, key)}a unit cannot depend on itself" for key in keys)


def _unknown(
    units: Mapping[str, Definition], files: Mapping[str, Path], keys: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(unit, message) for each unit, empty when all that `keys` name are there."""
    for name, one in units.items():
        lines = []
        for key in keys:
            for other in getattr(one.unit.unit, key):
                if other not in files and other not in units:
                    near = difflib.get_close_matches(other, [*files], n=1)
                    hint = f"; did you mean '{near[0]}'?" if near else ""
                    lines.append(f"{_where(one, key)}there is no unit '{other}'{hint}")
        yield name, "\n".join(lines)


def _where(one: Definition, key: str) -> str:
    word = key.replace("_", "-")
    place = _place(one, ("unit", word))
    return f"{one.path}:{place.line}:{place.column}: unit.{word}: "


def _place(one: Definition, key: tuple[str, ...]) -> Position:
    return nearest(positions(one.text), key)


class LastGood:
    """The texts that were accepted last, kept so that a file broken since then has something to fall back to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, local: Path) -> dict[str, Definition]:
        """The kept units, as if they were in the folder `local`. One that no longer fits the model is left out."""
        found = {}
        for path in unit_files(self.folder):
            with contextlib.suppress(ConfigError):
                found[path.stem] = _renamed(read(path), local / path.name)
        return found

    def write(self, units: Mapping[str, Definition]) -> None:
        """Keep exactly the texts of `units`; only what differs is written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            kept = {path.name: path for path in unit_files(self.folder)}
            wanted = {f"{name}.toml": one.text.encode() for name, one in units.items()}
            for name in kept.keys() - wanted.keys():
                kept[name].unlink()
            new = {name for name, text in wanted.items() if name not in kept or kept[name].read_bytes() != text}
            write_all(self.folder, {name: wanted[name] for name in new}, 0o600)
        except OSError as error:  # a full disk must not keep units from starting
            log("err", f"{self.folder}: the accepted unit files are not kept: {error.strerror}")


def _renamed(one: Definition, path: Path) -> Definition:
    return Definition(one.name, path, one.text, one.unit)
