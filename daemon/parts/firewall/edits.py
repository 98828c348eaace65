"""What each command does to the source: pure functions from a source and a request to the new source.

Commands write whole tables or single keys of firewall.toml (`common.tomledit` keeps everything else as it stands)
and the files of lists. Whether the result makes sense is checked by `policy.resolve`, as for a file edited by hand.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from common.errors import NotFoundError, RefusedError
from common.lines import split_lines
from common.tomledit import remove_table, set_keys
from common.tomlfile import Strict
from daemon.parts.firewall import lists, requests
from daemon.parts.firewall.model import Config, Forward, Nat, Rule
from daemon.parts.firewall.policy import Source

KINDS = ("rules", "forwards", "nat", "lists")
_MODELS: Mapping[str, type[Strict]] = {"rules": Rule, "forwards": Forward, "nat": Nat}


def allow(source: Source, config: Config, wish: requests.Allow) -> Source:
    """A rule that permits."""
    words = ("allow", wish.service, wish.zone or "")
    keys = {"service": wish.service, "zone": wish.zone, "from": wish.sources or None, "limit": wish.limit}
    return _add(source, config, "rules", wish.name, words, keys)


def deny(source: Source, config: Config, wish: requests.Deny) -> Source:
    """A rule that refuses, silently or with an answer."""
    words = ("deny", wish.service, wish.zone or "")
    action = "reject" if wish.reject else "deny"
    keys = {"action": action, "service": wish.service, "zone": wish.zone, "from": wish.sources or None}
    return _add(source, config, "rules", wish.name, words, keys)


def forward(source: Source, config: Config, wish: requests.ForwardPort) -> Source:
    """A port forward."""
    words = (wish.port, "to", wish.to)
    keys = {"zone": wish.zone, "port": wish.port, "to": wish.to, "to-port": wish.to_port, "from": wish.sources or None}
    return _add(source, config, "forwards", wish.name, words, keys)


def nat(source: Source, config: Config, wish: requests.Translate) -> Source:
    """A way from zone to zone."""
    words = (wish.source, "to", wish.to)
    keys = {"from": wish.source, "to": wish.to, "masquerade": None if wish.masquerade else False}
    return _add(source, config, "nat", wish.name, words, keys)


def remove(source: Source, config: Config, wish: requests.Remove) -> Source:
    """Without a rule, forward, nat entry or list (its file stays: it is somebody's work)."""
    kind, _, name = wish.name.rpartition(".")
    found = [each for each in ([kind] if kind else KINDS) if each in KINDS and name in getattr(config, each)]
    if len(found) > 1:
        choice = ", ".join(f"{each}.{name}" for each in found)
        raise RefusedError(f"'{name}' is ambiguous", reason="firewall-ambiguous", hint=f"say one of: {choice}")
    if not found:
        known = [each for one in KINDS for each in getattr(config, one)]
        raise _missing("rule, forward, nat entry or list", wish.name, known)
    return replace(source, text=remove_table(source.text, (found[0], name)))


def zone(source: Source, config: Config, wish: requests.EditZone) -> Source:
    """A zone with more or fewer interfaces, sources and services, or another policy."""
    old = config.zones.get(wish.name)
    if old is None and wish.take:
        raise _missing("zone", wish.name, config.zones)
    keys: dict[str, object] = {}
    for key in ("interfaces", "sources", "allow"):
        before: tuple[str, ...] = getattr(old, key) if old else ()
        if values := getattr(wish, key):
            keys[key] = _without(before, values, key) if wish.take else tuple(dict.fromkeys([*before, *values]))
    if wish.policy:
        keys["policy"] = wish.policy
    text = set_keys(source.text, ("zones", wish.name), keys) if keys or old is None else source.text
    if wish.default:
        text = set_keys(text, (), {"default-zone": wish.name})
    return replace(source, text=text)


def block(source: Source, config: Config, wish: requests.Block, addresses: Sequence[str]) -> Source:
    """A list with more or fewer `addresses`; the list and its file are made when they are missing."""
    for text in addresses:
        try:
            lists.span(text)
        except ValueError as error:
            raise RefusedError(str(error), reason="firewall-address") from error
    old = config.lists.get(wish.list)
    if old is not None and (not old.block or old.file is None):
        raise RefusedError(
            f"lists.{wish.list} has no file or does not block", reason="firewall-list-kind", hint="edit firewall.toml"
        )
    file = old.file if old and old.file else list_file(wish.list)
    text = source.text if old else set_keys(source.text, ("lists", wish.list), {"file": file})
    content = source.lists.get(file, "")
    content = _without_lines(content, addresses) if wish.take else _with_lines(content, addresses)
    return Source(text, {**source.lists, file: content})


def list_file(name: str) -> str:
    """The file of a list that a command makes."""
    return f"{name}.txt"


def _with_lines(content: str, wanted: Sequence[str]) -> str:
    there = {entry for _, entry in lists.lines(content)}
    new = [entry for entry in dict.fromkeys(wanted) if entry not in there]
    gap = "" if not content or content.endswith("\n") else "\n"
    return content + gap + "".join(f"{entry}\n" for entry in new)


def _without_lines(content: str, unwanted: Sequence[str]) -> str:
    numbers = {entry: number for number, entry in lists.lines(content)}
    for entry in unwanted:
        if entry not in numbers:
            raise _missing("address in this list, written so,", entry, ())
    there, wanted = lists.lines(content), set(unwanted)
    gone = {number for number, entry in there if entry in wanted}
    return "".join(f"{line}\n" for number, line in enumerate(split_lines(content), 1) if number not in gone)


def _add(
    source: Source, config: Config, kind: str, name: str | None, words: Sequence[str], keys: Mapping[str, object]
) -> Source:
    """With one entry more, unless there is one (of that name, if one is given) that says the same. words: what a name
    is made of. Raises RefusedError `firewall-exists`."""
    there: Mapping[str, Strict] = getattr(config, kind)
    new = _MODELS[kind].model_validate({key: value for key, value in keys.items() if value is not None})
    same = {each for each, entry in there.items() if _meaning(entry) == _meaning(new)}
    if name in same or (name is None and same):
        return source
    name = name or _free(there, *words)
    if name in there:
        raise RefusedError(f"{kind}.{name} exists already", reason="firewall-exists", hint="choose another --name")
    return replace(source, text=set_keys(source.text, (kind, name), keys))


def _meaning(entry: Strict) -> dict[str, object]:
    """What an entry says, in whatever order."""
    return {key: set(value) if isinstance(value, tuple) else value for key, value in entry.model_dump().items()}


def _free(taken: Collection[str], *words: str) -> str:
    """A name made of words that nothing has yet: `allow-ssh-wan`, `allow-ssh-wan-2`."""
    joined = "-".join(word for word in words if word).lower()
    base = "".join(char if char.isascii() and char.isalnum() else "-" for char in joined)[:20].strip("-")
    if not base[:1].isalpha():
        base = f"n-{base}"[:20]
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


def _without(before: Iterable[str], values: Sequence[str], key: str) -> tuple[str, ...]:
    kept = tuple(one for one in before if one not in values)
    for value in values:
        if value not in tuple(before):
            raise _missing(f"entry of {key}", value, tuple(before))
    return kept


def _missing(kind: str, name: str, known: Iterable[str]) -> NotFoundError:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else "`mixctl firewall list` shows what there is"
    return NotFoundError(f"there is no {kind} '{name}'", reason="firewall-missing", hint=hint)
