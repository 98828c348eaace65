"""The hardening gate: what every kernel of this system must have, with the reason for each line (`hardening.toml`).

The list is this project's own, drawn up from the recommendations of the Kernel Self Protection Project. A well-known
checker with a list of its own may be run beside it (`external_score`); nothing of it is part of this project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from buildsys.run import find_tool, run
from common import toml
from common.errors import CheckError, ConfigError
from kernel.cmdline import values
from kernel.kconfig import OFF, normal
from kernel.waivers import Resolution

CHECKER = "kernel-hardening-checker"


@dataclass(frozen=True)
class Rule:
    """One requirement: a symbol (kind "kconfig") or a boot parameter (kind "cmdline") and the value it must have."""

    kind: str
    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """How one rule came out. state: met, waived or failed; got: what was found ("" for an absent boot parameter)."""

    kind: str
    name: str
    value: str
    reason: str
    got: str
    state: str


def read_rules(path: Path) -> list[Rule]:
    """Read hardening.toml: [kconfig] and [cmdline] groups. Raises ConfigError (hardening-syntax).

    A group is a table reason → requirements: [[kconfig]] reason = "...", on = [...], off = [...], set = { A = "1" };
    [[cmdline]] reason = "...", have = ["a=b", ...].
    """
    text = path.read_text(encoding="utf-8-sig")
    try:
        document = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ConfigError(toml.explained(error, path.name, text), reason="hardening-syntax") from error
    if unknown := sorted(set(document) - {"kconfig", "cmdline"}):
        raise ConfigError(f"{path.name}: unknown table '{unknown[0]}'", reason="hardening-syntax")
    rules: list[Rule] = []
    for kind, keys in (("kconfig", {"reason", "on", "off", "set"}), ("cmdline", {"reason", "have"})):
        for number, table in enumerate(document.get(kind, []), start=1):
            reason = table.get("reason")
            unknown = sorted(set(table) - keys)
            if unknown or not isinstance(reason, str) or not reason.strip():
                what = f"unknown key '{unknown[0]}'" if unknown else "a reason is needed"
                raise ConfigError(f"{path.name}: {kind} {number}: {what}", reason="hardening-syntax")
            rules += _rules(kind, table, reason)
    seen: set[tuple[str, str]] = set()
    for rule in rules:
        if (rule.kind, rule.name) in seen:
            raise ConfigError(f"{path.name}: {rule.name} is there twice", reason="hardening-syntax")
        seen.add((rule.kind, rule.name))
    return rules


def _rules(kind: str, table: Mapping[str, Any], reason: str) -> list[Rule]:
    """The rules of one table."""
    if kind == "cmdline":
        pairs = [parameter.partition("=") for parameter in table.get("have", [])]
        return [Rule(kind, name, value, reason) for name, _, value in pairs]
    wanted = dict.fromkeys(table.get("on", []), "y") | dict.fromkeys(table.get("off", []), OFF)
    wanted |= {name: str(value) for name, value in table.get("set", {}).items()}
    return [Rule(kind, name, value, reason) for name, value in wanted.items()]


def judge(
    rules: Sequence[Rule], final: Mapping[str, str], parameters: Sequence[str], resolution: Resolution
) -> list[Verdict]:
    """Hold a configuration and the boot parameters against the rules; a renamed symbol counts under its new name."""
    given = values(parameters)
    verdicts: list[Verdict] = []
    for rule in rules:
        if rule.kind == "cmdline":
            found = given.get(rule.name, [])
            got, met, waived = (found[-1] if found else ""), rule.value in found, False
        else:
            waiver = resolution.renamed.get(rule.name)
            name = waiver.instead if waiver is not None and waiver.instead is not None else rule.name
            got = final.get(name, OFF)
            met = normal(got) == normal(rule.value)
            waived = rule.name in resolution.absent or rule.name in resolution.expected
        verdicts.append(Verdict(**asdict(rule), got=got, state="met" if met else "waived" if waived else "failed"))
    return verdicts


def require(verdicts: Sequence[Verdict]) -> str:
    """One line with the score. Raises CheckError (hardening) that lists every rule that failed."""
    count = {state: sum(verdict.state == state for verdict in verdicts) for state in ("met", "waived", "failed")}
    score = f"hardening: {count['met']} of {len(verdicts)} required settings met, {count['waived']} waived"
    if count["failed"]:
        lines = [
            f"  {verdict.name}: must be '{verdict.value}', is '{verdict.got}' ({verdict.reason})"
            for verdict in verdicts
            if verdict.state == "failed"
        ]
        raise CheckError(
            f"{score}, {count['failed']} failed:\n" + "\n".join(lines),
            reason="hardening",
            hint="put the settings back into kernel/fragments or kernel/cmdline.txt",
        )
    return score


def external_score(config: Path, cmdline: Path | None = None, tool: Path | None = None) -> tuple[int, int]:
    """(passed, all) checks of the external checker for a .config and, if given, a file with the boot parameters.

    tool: the program; found on PATH when None. Raises HostError (tool-missing) when it is not installed and CheckError
    (hardening-checker) when its answer is not what its JSON mode is known to print.
    """
    argv: list[str | Path] = [tool or find_tool(CHECKER), "-m", "json", "-c", config]
    if cmdline is not None:
        argv += ["-l", cmdline]
    answer = run(argv, split=True, timeout=60).stdout
    try:
        results = json.loads(answer)
        states = [str(result["check_result_bool"]) for result in results]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckError(
            f"{argv[0]}: its answer was not understood ({error})",
            reason="hardening-checker",
            hint="this was written for version 0.6.10 and later of the checker",
        ) from error
    return states.count("True"), len(states)
