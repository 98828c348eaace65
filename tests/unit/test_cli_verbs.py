"""The commands of mixctl are those of the API: options have the names, ranges and choices of the parameters of the
methods that they ask, and tables are made of the members that answers have, each written as its unit wants."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import click
import pytest

from common import units
from daemon import reference
from daemon.client.cli import cli
from daemon.client.cli import verbs as all_verbs
from daemon.client.show import Listing
from daemon.core.answers import answer_schema
from daemon.core.method import Method
from daemon.core.schema import present, rows

METHODS: Mapping[str, Method] = {method.name: method for method in reference.methods()}
FORMS: Mapping[str, Callable[[Any], str]] = {
    "bytes": units.size,
    "bytes per second": units.rate,
    "percent": units.percent,
    "seconds": units.duration,
    "seconds since 1970": units.clock,
}
# Command → what it calls otherwise than the method does: option → parameter.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "change confirm": {"number": "change"},
    "change revert": {"number": "change"},
    "confirm": {"number": "change"},
    "revert": {"number": "change"},
    "firewall nat": {"source": "from", "no-masquerade": "masquerade"},
    "firewall test": {"from": "from"},
    "firewall zone": {"remove": "take"},
    "net set": {"interface": "name"},
    "net show": {"interface": "name"},
    "vpn add-peer": {"name": "peer"},
    "vpn qr": {"name": "peer"},
    "vpn remove": {"name": "peer"},
    "vpn rotate": {"name": "peer"},
    "service kill": {"all": "everyone"},
    "service logs": {"lines": "last", "grep": "contains"},
    "sandbox run": {"ro": "read-only", "rw": "read-write", "net": "network"},
    "storage quota set": {"limit": "size"},
    "top": {"interval": "seconds"},
    "update apply": {"no-restart": "restart"},
    "update repair": {"bundle": "url"},
    "update stage": {"bundle": "url"},
    "metrics": {"history": "minutes"},
}
# Command → options that are no parameters: what the command itself does with answers, files and the terminal.
OWN: Mapping[str, frozenset[str]] = {
    "backup restore": frozenset({"file", "plain", "passphrase-file"}),
    "config put": frozenset({"file"}),
    "update stage": frozenset({"detach"}),
    "firewall block": frozenset({"file"}),
    "proxy set": frozenset({"url"}),  # for http and https
    "vpn add-peer": frozenset({"qr"}),
    "vpn delete": frozenset({"yes"}),
    "vpn rotate": frozenset({"qr"}),
    "audit verify": frozenset({"anchor"}),
    "metrics": frozenset({"prometheus", "health", "reload"}),
    "update repair": frozenset({"check"}),
    "service disable": frozenset({"now"}),
    "service enable": frozenset({"now"}),
    "service graph": frozenset({"dot", "order"}),
    "service list": frozenset({"failed"}),
    "top": frozenset({"rounds"}),
}
SPELLED = ("backup restore only", "net set values")  # written in a way of their own: words with commas, key=value
# What must be given to the method, and the command gets elsewhere when it is not given.
OPTIONAL = ("firewall block addresses", "vpn import name")
# Command → parameters that it has no option for.
LEFT_OUT: Mapping[str, frozenset[str]] = {
    "backup restore": frozenset({"content", "passphrase"}),
    "config put": frozenset({"text"}),
    "firewall block": frozenset({"content"}),
    "proxy set": frozenset({"password"}),  # asked for
    "vpn add-peer": frozenset({"config-bytes"}),  # follows from --qr
    "vpn rotate": frozenset({"config-bytes"}),
    "vpn import": frozenset({"text"}),
    "api methods": frozenset({"name"}),
    "audit verify": frozenset({"seq", "hash"}),  # both in --anchor
    "sandbox run": frozenset({"environment", "input", "overlay"}),
    "storage quota clear": frozenset({"size"}),
    "metrics": frozenset({"seconds"}),
    "update repair": frozenset({"content"}),
}


def commands(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its words."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield " ".join(path), command


def asked(command: click.Command) -> list[Method]:
    """The methods that a command names; that whose part it belongs to first."""
    source = inspect.getsource(inspect.unwrap(command.callback)) if command.callback else ""
    names = re.findall(r'"([a-z]+\.[a-z-]+)"', source)
    names += [f"firewall.{name}" for name in re.findall(r'_send\("([a-z-]+)"', source)]
    return [METHODS[name] for name in dict.fromkeys(names) if name in METHODS]


COMMANDS = {path: (command, methods) for path, command in commands() if (methods := asked(command))}


def name_of(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return str(parameter.name).replace("_", "-")
    return max(parameter.opts, key=len).lstrip("-")


@pytest.mark.parametrize("path", COMMANDS)
def test_options_are_those_of_the_method(path: str):
    command, methods = COMMANDS[path]
    found: dict[str, Any] = {}
    for method in reversed(methods[: 1 if path != "metrics" else None]):
        schema = method.params.model_json_schema(by_alias=True)
        required = schema.get("required", [])
        found |= {name: (present(field), name in required) for name, field in schema.get("properties", {}).items()}
    used = set()
    for parameter in command.params:
        shown = name_of(parameter)
        name = RENAMED.get(path, {}).get(shown, shown)
        if name not in found:
            name = str(parameter.name).replace("_", "-")
        if shown == "json" or shown in OWN.get(path, ()):
            continue
        assert name in found, f"{path} has {shown}, the method has {', '.join(found)}"
        used.add(name)
        check(f"{path} {shown}", parameter, *found[name])
    assert found.keys() - used == LEFT_OUT.get(path, frozenset())


def check(what: str, parameter: click.Parameter, schema: Mapping[str, Any], required: bool) -> None:
    """One option or argument against the schema of its parameter."""
    if required and what not in OPTIONAL:
        assert parameter.required, f"{what} must be given"
    if what in SPELLED:
        return
    kind = schema.get("type")
    many = parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs != 1
    assert many == (kind == "array"), f"{what}: one or several"
    if isinstance(parameter, click.Option):
        assert parameter.is_flag == (kind == "boolean"), f"{what}: a flag"
    choices = schema.get("enum")
    assert (isinstance(parameter.type, click.Choice) and list(parameter.type.choices)) == (choices or False), what
    if kind in ("integer", "number") and "unit" not in schema:
        click_kinds = {"integer": (click.IntRange, type(click.INT)), "number": (click.FloatRange, type(click.FLOAT))}
        if isinstance(parameter.type, click_kinds[kind]):
            low, high = getattr(parameter.type, "min", None), getattr(parameter.type, "max", None)
            assert low == schema.get("minimum", schema.get("exclusiveMinimum")), f"{what}: the least"
            assert high == schema.get("maximum", schema.get("exclusiveMaximum")), f"{what}: the most"


def listings() -> Iterator[tuple[str, Listing]]:
    for verb, (module, _) in all_verbs().items():
        for name, value in vars(import_module(module)).items():
            if isinstance(value, Listing):
                yield f"{verb} {name}", value


@pytest.mark.parametrize(("name", "listing"), dict(listings()).items())
def test_tables_are_made_of_members_that_there_are(name: str, listing: Listing):
    method, _, place = listing.of.partition(" ")
    members = {row.path: row for row in rows(answer_schema(METHODS[method]))}
    for column in listing.columns:
        if isinstance(column.value, str):
            row = members[f"{place}.{column.value}"]
            unit = present(row.schema).get("unit")
            if unit in FORMS:
                assert column.form is FORMS[unit], f"{name}: {row.path} is in {unit}"
            else:
                assert column.form not in FORMS.values(), f"{name}: {row.path} has no unit"
