"""Waivers: where one kernel version may differ from what the fragments ask for, why, and until when.

`waivers.toml` is a list of [[waiver]] tables:

    symbols = ["A", "B"]     the requests it is about
    versions = ">=6.9"       kernel versions it holds for ("any": all)
    undefined = true         optional: only where the tree's Kconfig does not define the symbol at all. For symbols that
                             stable lines gained or lost at different patch levels. Without it the waiver says that the
                             kernel must drop or change the request, and is stale when it does not.
    instead = ["C", "D"]     optional, one per symbol: ask for this name with the same value (a renamed symbol)
    reason = "..."
    expires = 2027-06-30

Everything here is pure: the date to compare with is a parameter.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import toml
from common.errors import CheckError, ConfigError
from kernel.kconfig import OFF, Request, conflict, did_you_mean, normal
from kernel.version import Range, Version

NOTICE = datetime.timedelta(days=30)
RENEW = "check for each whether it is still needed; give it a new `expires` in kernel/waivers.toml, or remove it"
_KEYS = frozenset({"symbols", "versions", "undefined", "instead", "reason", "expires"})


@dataclass(frozen=True)
class Waiver:
    """One symbol of a [[waiver]] table. instead: the name to ask for in its place, if any. table: file and number."""

    symbol: str
    versions: Range
    undefined: bool
    instead: str | None
    reason: str
    expires: datetime.date
    table: str

    @property
    def where(self) -> str:
        """Table and symbol, for messages."""
        return f"{self.table} ({self.symbol})"

    def applies(self, version: Version, defined: Collection[str]) -> bool:
        """Whether it holds for this kernel, whose Kconfig defines these symbols."""
        return version in self.versions and not (self.undefined and self.symbol in defined)


@dataclass(frozen=True)
class Resolution:
    """What is really asked of one kernel.

    effective: requests to hand to Kconfig, by symbol, renames done.
    renamed:   old symbol → new symbol.
    absent:    waived because this kernel has no such symbol: not asked for.
    expected:  asked for although a waiver says that this kernel will drop or change it.
    """

    effective: Mapping[str, Request]
    renamed: Mapping[str, Waiver]
    absent: Mapping[str, Waiver]
    expected: Mapping[str, Waiver]


def read_waivers(path: Path) -> list[Waiver]:
    """Read waivers.toml. Raises ConfigError (waiver-syntax) naming the table that is wrong."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        document = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ConfigError(toml.explained(error, path.name, text), reason="waiver-syntax") from error
    unknown = set(document) - {"waiver"}
    tables = document.get("waiver", [])
    if unknown or not isinstance(tables, list):
        raise ConfigError(
            f"{path.name}: only [[waiver]] tables are expected, found {', '.join(sorted(unknown)) or 'something else'}",
            reason="waiver-syntax",
        )
    return [
        waiver for number, table in enumerate(tables, 1) for waiver in _table(table, f"{path.name}: waiver {number}")
    ]


def _table(table: Mapping[str, Any], where: str) -> list[Waiver]:
    """The waivers of one table, one per symbol."""
    if unknown := sorted(set(table) - _KEYS):
        hint = did_you_mean(unknown[0], _KEYS) or f"known keys: {', '.join(sorted(_KEYS))}"
        raise ConfigError(f"{where}: unknown key '{unknown[0]}'", reason="waiver-syntax", hint=hint)
    symbols = _names(table, "symbols", where)
    instead = _names(table, "instead", where) if "instead" in table else None
    reason, versions, expires = table.get("reason"), table.get("versions"), table.get("expires")
    undefined = table.get("undefined", False)
    if not symbols or not isinstance(reason, str) or not reason.strip() or not isinstance(versions, str):
        raise ConfigError(f"{where}: symbols, versions and reason are needed", reason="waiver-syntax")
    if type(expires) is not datetime.date or not isinstance(undefined, bool):
        raise ConfigError(
            f"{where}: expires must be a date (2027-06-30) and undefined true or false", reason="waiver-syntax"
        )
    if instead is not None and len(instead) != len(symbols):
        raise ConfigError(f"{where}: 'instead' must name one symbol for each of 'symbols'", reason="waiver-syntax")
    span = Range.parse(versions)
    return [
        Waiver(symbol, span, undefined, instead[index] if instead else None, reason, expires, where)
        for index, symbol in enumerate(symbols)
    ]


def _names(table: Mapping[str, Any], key: str, where: str) -> list[str]:
    """A list of symbol names in a table."""
    value = table.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ConfigError(f"{where}: '{key}' must be a list of symbol names", reason="waiver-syntax")
    return list(value)


def check_waivers(waivers: Collection[Waiver], requests: Mapping[str, Request], today: datetime.date) -> None:
    """Raise CheckError for waivers that have expired (waiver-expired, naming all) or that no request needs
    (waiver-unused)."""
    if expired := _named(waiver for waiver in waivers if today > waiver.expires):
        raise CheckError("waivers have expired:\n" + expired, reason="waiver-expired", hint=RENEW)
    for waiver in waivers:
        if waiver.symbol not in requests:
            raise CheckError(
                f"{waiver.where}: no fragment asks for {waiver.symbol}",
                reason="waiver-unused",
                hint=did_you_mean(waiver.symbol, requests) or "remove the waiver",
            )


def ending(waivers: Iterable[Waiver], today: datetime.date) -> str | None:
    """What to say of waivers that end within NOTICE, before they stop builds; None when there are none."""
    soon = _named(waiver for waiver in waivers if today <= waiver.expires <= today + NOTICE)
    return f"waivers end soon, and builds stop then:\n{soon}\n{RENEW}" if soon else None


def _named(waivers: Iterable[Waiver]) -> str:
    """A line for each table."""
    tables: dict[tuple[str, datetime.date, str], list[str]] = {}
    for waiver in waivers:
        tables.setdefault((waiver.table, waiver.expires, waiver.reason), []).append(waiver.symbol)
    return "\n".join(
        f"  {table} ({', '.join(symbols)}), until {expires}: {reason}"
        for (table, expires, reason), symbols in tables.items()
    )


def check_known(requests: Mapping[str, Request], known: Collection[str], waivers: Iterable[Waiver]) -> None:
    """Raise CheckError (kconfig-unknown) for a request whose symbol Linux 6.6.y lacks and that no waiver is about."""
    waived = {waiver.symbol for waiver in waivers}
    for request in requests.values():
        if request.symbol not in known and request.symbol not in waived:
            raise CheckError(
                f"{request.where}: Linux 6.6 has no symbol {request.symbol}",
                reason="kconfig-unknown",
                hint=did_you_mean(request.symbol, known)
                or "a symbol of another kernel version needs a waiver in kernel/waivers.toml",
            )


def resolve(
    requests: Mapping[str, Request], waivers: Iterable[Waiver], version: Version, defined: Collection[str]
) -> Resolution:
    """Turn the fragments' requests into those for one kernel: renames applied, absent symbols left out.

    Raises ConfigError (kconfig-conflict) when a rename meets another request of a different value and CheckError
    (waiver-overlap) when two waivers apply to one symbol.
    """
    applying: dict[str, Waiver] = {}
    for waiver in waivers:
        if waiver.applies(version, defined):
            if waiver.symbol in applying:
                raise CheckError(
                    f"{waiver.where} and {applying[waiver.symbol].where} both apply to {version}",
                    reason="waiver-overlap",
                )
            applying[waiver.symbol] = waiver
    effective: dict[str, Request] = {}
    sorted_out: dict[str, dict[str, Waiver]] = {"renamed": {}, "absent": {}, "expected": {}}
    for symbol, request in requests.items():
        current = applying.get(symbol)
        if current is not None:
            kind = "renamed" if current.instead else "absent" if current.undefined else "expected"
            sorted_out[kind][symbol] = current
            if kind == "absent":
                continue
            request = replace(request, symbol=current.instead or symbol)
        first = effective.setdefault(request.symbol, request)
        if normal(first.value) != normal(request.value):
            raise conflict(first, request)
    return Resolution(effective, **sorted_out)


def compare(resolution: Resolution, final: Mapping[str, str], version: Version) -> dict[str, str]:
    """Requested versus final: raise CheckError unless every request came true or is waived.

    Returns the waived differences, symbol → final value. Reasons: kconfig-dropped (the message lists every symbol with
    the line that asks for it), waiver-stale (this kernel does what its waiver says it does not).
    """
    lost: list[str] = []
    waived: dict[str, str] = {}
    for symbol, request in resolution.effective.items():
        got = final.get(symbol, OFF)
        same = normal(got) == normal(request.value)
        waiver = resolution.expected.get(symbol)
        if waiver is not None and same:
            raise CheckError(
                f"{waiver.where} is stale: Linux {version} gives {symbol}={request.value} as asked",
                reason="waiver-stale",
                hint="narrow its versions or remove it",
            )
        if waiver is not None:
            waived[symbol] = got
        elif not same:
            lost.append(f"  {request.where}: {symbol} asked {request.value}, got {got}")
    if lost:
        raise CheckError(
            f"Linux {version} dropped or changed {len(lost)} requested symbol(s):\n" + "\n".join(lost),
            reason="kconfig-dropped",
            hint="request what it depends on, or add a waiver with a reason to kernel/waivers.toml",
        )
    return waived
