"""What a part says of itself, once: `daemon/parts/<name>/manifest.py` holds one `Manifest` named MANIFEST.

Tables of parts, commands, completions, configuration files and backup contents are computed from these. A folder added
is a part added: nothing else names it. A manifest imports nothing but this module; what it speaks of is named as
"module:attribute", the module being one of the part's own or a dotted name, and imported when it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import daemon.parts


class File(NamedTuple):
    """What people write below /etc/mixos.

    path: a file's name, or `folder/*.toml`, `folder/*`. check: a model, or a function of text and path, that raises
    ConfigError for content that would be refused. fits: a function of text (None: the file goes), path and context that
    does so for what would not be taken beside the other files that are there, or what these could not do without.
    apply: the method that puts it in force; "" when it is read at each use. In its answer `refused` may name, with the
    reasons, what of the files was in order before and is not any more. writable: whether `config put` takes it;
    secrets, and what the daemon writes for itself, it does not.
    """

    path: str
    check: str = ""
    fits: str = ""
    apply: str = ""
    writable: bool = True


class Verb(NamedTuple):
    """A command of mixctl: the module that holds it under its own name, and what it does."""

    module: str
    summary: str


class Names(NamedTuple):
    """Names that only the daemon knows, for completion: a method without parameters, the members to go down to in its
    answer, and which member of an object is its name. A list may also have the names themselves, an object as keys."""

    method: str
    path: tuple[str, ...] = ()
    member: str = "name"


class Process(NamedTuple):
    """A process of its own, without capabilities and with `no_new_privs` (see `daemon.core.worker`).

    account: of /etc/passwd; profile: of AppArmor; memory (bytes), tasks: limits of its control group. runs: the class
    that runs in it, made with a `daemon.core.worker.child.Host` by the part, which stays in mixosd; "": all of the part
    runs there. tells: what topics of its events begin with; hears: the same for events that it is told of.
    """

    account: str
    profile: str
    memory: int
    tasks: int = 8
    runs: str = ""
    tells: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()


class Manifest(NamedTuple):
    """See the module.

    name: also what its methods begin with. part: its class, "" for what the daemon itself makes. after: parts that
    start before it. on_host: whether an ordinary host has it too. process: of its own, for all or some of it. claims:
    a function of the context and a unit's name that tells from files alone whether the part has something to enforce
    for the unit (see `daemon.core.gates`). functions: what other parts may ask without it running, by a name of its
    own. backup: section → paths in a backup's names; passing: paths that are never kept; secret: those that a backup
    without secrets leaves out.
    """

    name: str
    part: str = ""
    after: tuple[str, ...] = ()
    on_host: bool = False
    files: tuple[File, ...] = ()
    verbs: Mapping[str, Verb] = {}
    names: Mapping[str, Names] = {}
    process: Process | None = None
    claims: str = ""
    functions: Mapping[str, str] = {}
    backup: Mapping[str, tuple[str, ...]] = {}
    passing: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()

    def find(self, place: str) -> Any:
        """What "module:attribute" of this part names."""
        module, _, attribute = place.partition(":")
        full = module if "." in module else f"daemon.parts.{self.name}.{module}"
        return getattr(import_module(full), attribute)


class ManifestError(Exception):
    """Two parts claim the same thing, or one names what is not there: a defect of ours, found by a test."""


@cache
def _found(folders: tuple[str, ...]) -> tuple[Manifest, ...]:
    names = sorted({name for folder in folders for name in os.listdir(folder) if name.isidentifier()})
    there = (name for name in names if any(_has_manifest(folder, name) for folder in folders))
    manifests = [import_module(f"daemon.parts.{name}.manifest").MANIFEST for name in there]
    check(manifests)
    return tuple(_ordered({one.name: one for one in manifests}))


def _has_manifest(folder: str, name: str) -> bool:
    return any(os.path.exists(f"{folder}/{name}/manifest{end}") for end in (".py", ".pyc"))


def manifests() -> tuple[Manifest, ...]:
    """Those of all parts that are installed, in the order of their start. Raises ManifestError."""
    return _found(tuple(daemon.parts.__path__))


def check(found: Sequence[Manifest]) -> None:
    """Raise ManifestError when two parts claim one thing, or one comes after a part that there is not."""
    for what in ("verbs", "names", "functions"):
        _unique(what, [name for one in found for name in getattr(one, what)])
    _unique("files", [file.path for one in found for file in one.files])
    _unique("parts", [one.name for one in found])
    known = {one.name for one in found}
    for one in found:
        if one.claims and one.process is not None and not one.process.runs:
            raise ManifestError(f"{one.name} confines units, which only a part in mixosd itself can")
        if missing := set(one.after) - known:
            raise ManifestError(f"{one.name} comes after {', '.join(sorted(missing))}, which is no part")


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ManifestError(f"{what}: two parts claim {name}")
        seen.add(name)


def _ordered(found: Mapping[str, Manifest]) -> list[Manifest]:
    """Each behind those that it comes after, otherwise by name. Raises ManifestError for a circle."""
    order: list[Manifest] = []
    waiting = dict(found)
    while waiting:
        ready = next((one for one in waiting.values() if not set(one.after) & waiting.keys()), None)
        if ready is None:
            raise ManifestError(f"these parts come after each other: {', '.join(waiting)}")
        order.append(waiting.pop(ready.name))
    return order


# -- what is computed from them ----------------------------------------------------------------------------------------


def verbs() -> dict[str, tuple[str, str]]:
    """Command of mixctl → its module, what it does; by name."""
    found = {
        name: (f"daemon.parts.{one.name}.{verb.module}", verb.summary)
        for one in manifests()
        for name, verb in one.verbs.items()
    }
    return dict(sorted(found.items()))


def names() -> dict[str, Names]:
    """Kind of name → where its names are."""
    return {kind: where for one in manifests() for kind, where in one.names.items()}


def known_files() -> list[File]:
    """What people write below /etc/mixos, of every part."""
    return [file for one in manifests() for file in one.files]


def file_for(path: str) -> tuple[Manifest, File] | None:
    """The part and the entry that a path below /etc/mixos belongs to."""
    for one in manifests():
        for file in one.files:
            if _matches(path, file.path):
                return one, file
    return None


def checker(manifest: Manifest, file: File) -> Callable[[str, Path], object] | None:
    """How the content of a file is checked, if it is: it raises ConfigError."""
    if not file.check:
        return None
    check = manifest.find(file.check)
    if isinstance(check, type):
        from common.tomlfile import parse  # a manifest is looked at without it

        return lambda text, place: parse(text, place, check)
    return cast("Callable[[str, Path], object]", check)


def _matches(path: str, pattern: str) -> bool:
    folder, _, name = pattern.rpartition("/")
    if not name.startswith("*"):
        return path == pattern
    above, _, last = path.rpartition("/")
    return above == folder and last.endswith(name[1:]) and not last.startswith(".") and len(last) > len(name) - 1


def methods_for(paths: Iterable[str]) -> list[str]:
    """The methods that put these files in force, in the order in which their parts start."""
    found = tuple(paths)
    wanted = [
        file.apply
        for one in manifests()
        for file in one.files
        if file.apply and any(_matches(path, file.path) for path in found)
    ]
    return list(dict.fromkeys(wanted))


def function(name: str) -> Callable[..., Any]:
    """What a part offers under this name, whether or not it runs. Raises ManifestError."""
    for one in manifests():
        if name in one.functions:
            found: Callable[..., Any] = one.find(one.functions[name])
            return found
    raise ManifestError(f"no part offers {name}")
