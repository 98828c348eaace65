"""What a session begins with: where one is, whether all is well, what waits for a decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from daemon.console.safe import one_line
from daemon.errors import DeviceError

_SECONDS = 3.0


def banner(role: str) -> str:
    """Some lines of text. A daemon that does not answer is part of the news, not a failure."""
    from daemon.client import call

    try:
        facts = call("status", {}, timeout=_SECONDS)
    except DeviceError as error:
        return f"The daemon does not answer: {one_line(error.message)}\n{_HELP}"
    return describe(facts if isinstance(facts, Mapping) else {}, role) + _HELP


_HELP = "Type 'help' for the commands, Tab to complete, 'exit' to leave.\n"


def describe(facts: Mapping[str, Any], role: str) -> str:
    """Lines for what `status` answered; what it does not tell is left out."""
    words = [
        f"MixOS {one_line(facts.get('version') or '?', 40)} on {one_line(facts.get('hostname') or '?', 64)}",
        f"slot {one_line(facts['slot'], 10)}" if facts.get("slot") else "",
        f"role {role}",
    ]
    lines = [", ".join(word for word in words if word), *_parts(facts.get("parts"))]
    data = facts.get("data")
    if isinstance(data, Mapping) and data.get("persistent") is False:
        lines.append("NOT PERSISTENT: changes are lost at the next boot")
    return "".join(f"{line}\n" for line in lines)


def _parts(parts: Any) -> Iterator[str]:
    """Health with its findings, parts that failed, approvals that somebody waits for."""
    if not isinstance(parts, Mapping):
        return
    rows = {str(name): part for name, part in parts.items() if isinstance(part, Mapping)}
    health = rows.get("metrics", {}).get("health")
    if isinstance(health, Mapping):
        findings = health.get("findings")
        texts = [one.get("text") for one in findings if isinstance(one, Mapping)] if isinstance(findings, list) else []
        yield f"health: {one_line('; '.join(map(str, texts)) or health.get('state'))}"
    failed = [name for name, part in rows.items() if part.get("state") == "failed"]
    if failed:
        yield f"NOT RUNNING: {one_line(', '.join(failed))} (mixctl status says why)"
    waiting = sum(part["approvals"] for part in rows.values() if isinstance(part.get("approvals"), int))
    if waiting:
        yield f"{waiting} {'approval waits' if waiting == 1 else 'approvals wait'} for a decision"
