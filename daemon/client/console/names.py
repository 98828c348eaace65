"""Names that only the daemon knows, for completion: in the console and in the shells' scripts of `mixctl completion`.

A command says `@click.argument("unit", shell_complete=names("unit"))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import MixosError

if TYPE_CHECKING:
    import click


class Source(NamedTuple):
    """Where the names of a kind are: a method without parameters, the members to go down to in its answer, and which
    member of an object is its name. A list may also have the names themselves, an object has them as keys."""

    method: str
    path: tuple[str, ...] = ()
    member: str = "name"


KINDS: Mapping[str, Source] = {
    "unit": Source("service.list", ("units",)),
    "profile": Source("sandbox.profiles"),
    "interface": Source("net.status", ("interfaces",)),
    "tunnel": Source("vpn.status", ("interfaces",)),
    "peer": Source("vpn.status", ("interfaces", "peers")),
    "zone": Source("firewall.status", ("zones",)),
    "firewall-list": Source("firewall.status", ("lists",)),
    "firewall-service": Source("firewall.status", ("services",)),
    "firewall-entry": Source("firewall.list", ("entries",)),
    "config": Source("config.list", (), "path"),
    "revision": Source("config.history", (), "id"),
    "method": Source("api.methods"),
}
_SECONDS = 2.0  # nobody waits longer for a Tab
_MOST = 1000


def complete_names(kind: str) -> list[str]:
    """The names of a kind, sorted; none when the daemon does not say."""
    from daemon.client.connection import call

    source = KINDS[kind]
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
    assert kind in KINDS

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in complete_names(kind) if name.startswith(incomplete)]

    return complete
