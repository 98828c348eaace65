"""A policy: firewall.toml with every name in it resolved. What does not resolve is an error with its place.

The text and the list files together are a `Source`: everything that decides the rules, kept and restored as one.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from common.errors import ConfigError
from common.positions import nearest, positions
from common.tomlfile import parse, read_text
from daemon.core.change.applier import View
from daemon.parts.firewall import lists
from daemon.parts.firewall.lists import Ranges
from daemon.parts.firewall.model import Config, Rule, Service
from daemon.parts.firewall.values import Limit, Ports, parse_limit, parse_ports

DATA = Path(__file__).resolve().parent
FILE, LISTS = "etc/mixos/firewall.toml", "etc/mixos/lists/"
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """What people wrote: the TOML, and the list files by name."""

    text: str
    lists: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """Resolved and consistent."""

    config: Config
    services: Mapping[str, Service]
    lists: Mapping[str, Ranges]

    def ports(self, service: str) -> tuple[Ports, ...]:
        """The ports of a service, or of ports written out."""
        if "/" in service:
            return (parse_ports(service),)
        return tuple(parse_ports(text) for text in self.services[service].ports)

    def limit(self, service: str, own: str | None = None) -> Limit | None:
        """A rule's own limit, else the service's."""
        text = own or (None if "/" in service else self.services[service].limit)
        return parse_limit(text) if text else None

    def rules(self, zone: str, *, deny: bool) -> list[tuple[str, Rule]]:
        """The rules of a zone that deny, or those that allow, in the order of the file."""
        return [
            (name, rule)
            for name, rule in self.config.rules.items()
            if rule.zone in (None, zone) and (rule.action != "allow") == deny
        ]

    def blocked(self) -> list[str]:
        """The lists whose addresses are shut out."""
        return [name for name, one in self.config.lists.items() if one.block]


def default_text(data: Path = DATA) -> str:
    """The file of a device that has none. data: where the files that lie beside this module are."""
    return read_text(data / "default.toml")


@cache
def shipped_services(data: Path = DATA) -> Mapping[str, Service]:
    """The services that every device knows, by name."""
    path = data / "services.toml"
    return parse(read_text(path), path, Config).services


def read_source(view: View, also: Collection[str] = ()) -> Source:
    """firewall.toml (the default where there is none) and the list files beside it that it names, or that are `also`
    wanted. Raises ConfigError."""
    path = view.places.place(FILE)
    text = view.text(FILE)
    text = default_text() if text is None else text
    names = sorted({*list_files(parse(text, path, Config)), *also})
    # A list that is not there is one that nobody has filled yet.
    return Source(text, {name: view.text(LISTS + name, lists.MAX_BYTES) or "" for name in names})


def list_files(config: Config) -> set[str]:
    """The names of the list files that a configuration uses."""
    return {one.file for one in config.lists.values() if one.file}


def resolve(source: Source, path: Path, data: Path = DATA) -> Policy:
    """The policy of a source; `path` is only named in errors. Raises ConfigError, all mistakes at once."""
    config = parse(source.text, path, Config)
    if wrong := list(mistakes(config, data)):
        places = positions(source.text)
        spots = [(nearest(places, place), message) for place, message in wrong[:20]]
        lines = [f"{path}:{spot.line}:{spot.column}: {message}" for spot, message in spots]
        raise ConfigError("\n".join(lines), reason="firewall-reference")
    return Policy(config, _services(config, data), _resolve_lists(config, source, path))


def _resolve_lists(config: Config, source: Source, path: Path) -> dict[str, Ranges]:
    result = {}
    total = 0
    for name, one in config.lists.items():
        text = source.lists.get(one.file or "", "")
        entries = [*one.addresses, *(entry for _, entry in lists.lines(text))]
        total += len(entries)
        if total > lists.MAX_ADDRESSES:
            raise ConfigError(f"more than {lists.MAX_ADDRESSES} addresses in lists", reason="firewall-too-many")
        try:
            result[name] = lists.merge(entries)
        except ValueError as error:
            where = path.parent / "lists" / (one.file or "")
            wrong = [f"{where}:{line}:1: {message}" for line, message in lists.problems(text)]
            raise ConfigError("\n".join(wrong) or f"{path}: lists.{name}: {error}", reason="firewall-list") from error
    return result


def _services(config: Config, data: Path) -> Mapping[str, Service]:
    return {**shipped_services(data), **config.services}


def mistakes(config: Config, data: Path = DATA) -> Iterator[tuple[Place, str]]:
    """What does not fit together: where, and for people."""
    services = _services(config, data)
    yield from _unknown(("default-zone",), [config.default_zone], config.zones, "zone")
    yield from _shared_zones(config)
    for name, zone in config.zones.items():
        yield from _unknown(("zones", name, "allow"), zone.allow, services, "service")
    for name, rule in config.rules.items():
        place = ("rules", name)
        yield from _unknown((*place, "service"), [rule.service], services, "service")
        yield from _unknown((*place, "zone"), [rule.zone] if rule.zone else [], config.zones, "zone")
        yield from _unknown((*place, "from"), rule.sources, config.lists, "list")
        if rule.limit and rule.action != "allow":
            yield (*place, "limit"), f"rules.{name}: a limit goes with permission, not with {rule.action}"
    for name, forward in config.forwards.items():
        place = ("forwards", name)
        yield from _unknown((*place, "zone"), [forward.zone], config.zones, "zone")
        yield from _unknown((*place, "from"), forward.sources, config.lists, "list")
        ports = parse_ports(forward.port)
        if forward.to_port is not None and ports.last > ports.first:
            yield (*place, "to-port"), f"forwards.{name}: a range of ports keeps its numbers, so no to-port"
    for name, nat in config.nat.items():
        yield from _unknown(("nat", name, "from"), [nat.source], config.zones, "zone")
        yield from _unknown(("nat", name, "to"), [nat.to], config.zones, "zone")
    for name, unit in config.units.items():
        known = [*services, "any"]
        yield from _unknown(("units", name, "outgoing"), unit.outgoing, known, "service")


def _unknown(place: Place, names: Collection[str], known: Collection[str], kind: str) -> Iterator[tuple[Place, str]]:
    for name in names:
        if kind == "list":
            if not name.startswith("@"):
                continue
            name = name[1:]
        if "/" in name or name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        more = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(sorted(known)) or 'none'}"
        yield place, f"{'.'.join(map(str, place))}: there is no {kind} '{name}'; {more}"


def _shared_zones(config: Config) -> Iterator[tuple[Place, str]]:
    owner: dict[str, str] = {}
    for name, zone in config.zones.items():
        for key, values in (("interfaces", zone.interfaces), ("sources", zone.sources)):
            for value in values:
                if value in owner:
                    yield ("zones", name, key), f"zones.{name}.{key}: {value} is in zone {owner[value]} already"
                owner[value] = name
