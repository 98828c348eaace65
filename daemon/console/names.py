"""Names that only the daemon knows, for completion: in the console and in the shells' scripts of `mixctl completion`.

A command says `@click.argument("unit", shell_complete=names("unit"))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.errors import DeviceError

if TYPE_CHECKING:
    import click


class Source(NamedTuple):
    """Where the names of a kind are: a method without parameters, and the lists to go down to in its answer."""

    method: str
    path: tuple[str, ...] = ()


KINDS: Mapping[str, Source] = {
    "unit": Source("service.list", ("units",)),
    "profile": Source("sandbox.profiles"),
    "interface": Source("net.status", ("interfaces",)),
    "tunnel": Source("vpn.status", ("interfaces",)),
    "peer": Source("vpn.status", ("interfaces", "peers")),
}
_SECONDS = 2.0  # nobody waits longer for a Tab
_MOST = 1000


def complete_names(kind: str) -> list[str]:
    """The names of a kind, sorted; none when the daemon does not say."""
    from daemon.client import call

    source = KINDS[kind]
    try:
        return sorted(names_in(call(source.method, {}, timeout=_SECONDS), source.path))[:_MOST]
    except DeviceError:
        return []


def names_in(answer: Any, path: Sequence[str]) -> set[str]:
    """The member "name" of every object at the end of `path`: of lists in objects, or of the list that `answer` is."""
    things = [answer] if path else answer if isinstance(answer, list) else []
    for key in path:
        lists = (one.get(key) for one in things if isinstance(one, Mapping))
        things = [thing for inner in lists if isinstance(inner, list) for thing in inner]
    found = (one.get("name") for one in things if isinstance(one, Mapping))
    return {name for name in found if isinstance(name, str)}


def names(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """What click calls to complete a parameter that takes a name of `kind`."""
    assert kind in KINDS

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in complete_names(kind) if name.startswith(incomplete)]

    return complete
