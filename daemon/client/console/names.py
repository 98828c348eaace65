"""Names that only the daemon knows, for completion: in the console and in the shells' scripts of `mixctl completion`.

A command says `@click.argument("unit", shell_complete=names("unit"))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.errors import MixosError
from daemon.core import manifest

if TYPE_CHECKING:
    import click


_SECONDS = 2.0  # nobody waits longer for a Tab
_MOST = 1000


def complete_names(kind: str) -> list[str]:
    """The names of a kind, sorted; none when the daemon does not say."""
    from daemon.client.connection import call

    source = manifest.names()[kind]
    try:
        return sorted(names_in(call(source.method, {}, timeout=_SECONDS), source.path, source.member))[:_MOST]
    except MixosError:
        return []


def names_in(answer: Any, path: Sequence[str], member: str = "name") -> set[str]:
    """The names at the end of `path`, which goes through objects and through lists of objects."""
    things = [answer]
    for key in path:
        objects = [one for thing in things for one in (thing if isinstance(thing, list) else [thing])]
        things = [one[key] for one in objects if isinstance(one, Mapping) and key in one]
    words = [word for thing in things if isinstance(thing, list | Mapping) for word in thing]
    found = [word.get(member) if isinstance(word, Mapping) else word for word in words]
    return {str(name) for name in found if isinstance(name, str | int)}


def names(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """What click calls to complete a parameter that takes a name of `kind`."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in complete_names(kind) if name.startswith(incomplete)]

    return complete
