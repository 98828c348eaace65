"""What a session begins with: where one is, whether all is well, what waits for a decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import MixosError
from common.safe import one_line

_SECONDS = 3.0


def banner(role: str) -> str:
    """Some lines of text. A daemon that does not answer is part of the news, not a failure."""
    from daemon.client.connection import call

    try:
        facts = call("status", {}, timeout=_SECONDS)
    except MixosError as error:
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
    """Health, parts of the daemon that are not up, what somebody waits for."""
    from daemon.client.show import health, not_running, waiting

    rows = {name: part for name, part in parts.items() if isinstance(part, Mapping)} if isinstance(parts, dict) else {}
    if (state := health(rows)) != "-":
        yield f"health: {one_line(state)}"
    for label, found in (("NOT RUNNING", not_running(rows)), ("waiting", waiting(rows))):
        if found:
            yield f"{label}: {one_line('; '.join(found))}"
