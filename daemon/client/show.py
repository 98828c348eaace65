"""Answers as people read them: tables, facts line by line, the status.

No third-party imports: `mixctl status` must be quick on a slow device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from common.safe import one_line
from common.units import duration, size, word

_LONGEST = 4096  # characters of a cell
Record = Mapping[str, Any]


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: upper-case head, columns as wide as their widest cell, nothing behind the last one.

    A cell stays in its row, whatever is in it: a newline would let it write rows of its own.
    """
    from daemon.client.console.terminal import width_of

    lines = [[title.upper() for title in head], *[[one_line(cell, _LONGEST) for cell in row] for row in rows]]
    widths = [max(width_of(line[index]) for line in lines) for index in range(len(head))]
    return "\n".join(
        "  ".join(cell + " " * (width - width_of(cell)) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


class Column(NamedTuple):
    """title: its head. value: a member of the records, or what is made of several. form: how the member is written."""

    title: str
    value: str | Callable[[Record], str]
    form: Callable[[Any], str] = word

    def cell(self, record: Record) -> str:
        """The text for one record."""
        return self.value(record) if callable(self.value) else self.form(record.get(self.value))


class Listing(NamedTuple):
    """How records of one type are a table, said once.

    of: a method and the path to them in its answer (as in the reference: `service.list units[]`), with which a test
    compares members and forms. none: what stands for no record.
    """

    of: str
    columns: tuple[Column, ...]
    none: str = ""

    def table(self, records: Iterable[Record]) -> str:
        """The table for people."""
        rows = [[column.cell(record) for column in self.columns] for record in records]
        return columns([column.title for column in self.columns], rows) if rows or not self.none else self.none


def labelled(rows: Iterable[tuple[str, str]]) -> str:
    """Facts, a label and a value per line."""
    return "\n".join(f"{label:<13} {one_line(value, _LONGEST)}".rstrip() for label, value in rows)


def table(facts: Mapping[str, Any]) -> str:
    """The status for people: a label and a value per line."""
    return labelled(rows(facts))


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line; what the device does not know is shown as "-"."""
    hardening, data, memory = facts["hardening"], facts["data"], facts["memory"]
    result = [
        ("host name", word(facts["hostname"])),
        ("version", word(facts["version"])),
        ("kernel", word(facts["kernel"])),
        ("slot", word(facts["slot"])),
        ("up", duration(facts["uptime"])),
        *_parts(facts.get("parts", {})),
        ("load", " ".join(f"{value:.2f}" for value in facts["load"]) or "-"),
        ("memory", f"{size(memory.get('available'))} free of {size(memory.get('total'))}"),
        ("data", _data(data)),
    ]
    for row in facts["network"]:
        result.append((row["name"], f"{', '.join(row['addresses']) or 'no address'} ({row['state'] or '?'})"))
    result += [
        ("SSH host key", word(facts["ssh_fingerprint"])),
        ("root", word(hardening["verity"]) if hardening["verity"] else "not protected by verity"),
        ("lockdown", word(hardening["lockdown"])),
        ("AppArmor", f"{len(hardening['apparmor_loaded'])} profiles" if hardening["apparmor_loaded"] else "no profile"),
        ("watchdog", word(hardening["watchdog"])),
    ]
    if hardening["apparmor_refused"]:
        result.append(("refused", " ".join(hardening["apparmor_refused"])))
    if hardening["sysctl_refused"]:
        result.append(("refused", " ".join(hardening["sysctl_refused"])))
    if facts["preseed"]:
        result.append(("preseed", _preseed(facts["preseed"])))
    return result


def health(parts: Mapping[str, Any]) -> str:
    """The machine's health in one line, with what is not well; "-" when nobody knows."""
    found = parts.get("metrics", {}).get("health")
    if not isinstance(found, Mapping):
        return "-"
    texts = "; ".join(str(one.get("text")) for one in found.get("findings", ()))
    return f"{found.get('state')}: {texts}" if texts else str(found.get("state"))


def waiting(parts: Mapping[str, Any]) -> list[str]:
    """What waits for a decision: approvals that were asked for, changes that will be undone unless confirmed."""
    count = sum(part["approvals"] for part in parts.values() if isinstance(part.get("approvals"), int))
    found = [f"{count} {'approval' if count == 1 else 'approvals'}"] if count else []
    change = parts.get("change", {})
    for one in change.get("changes", ()):
        left = f"{one['seconds']} s more (mixctl confirm)" if one["state"] == "trial" else "being undone"
        found.append(f"{one['what']}, {left}")
    return [*found, *map(str, change.get("problems", ()))]


def not_running(parts: Mapping[str, Any]) -> list[str]:
    """The parts of the daemon that have failed, and those whose process has died and is not back, with the reason."""
    found = []
    for name, part in parts.items():
        process = part.get("process") or {}
        if part.get("state") == "failed":
            found.append(f"{name}: {part.get('error') or part['state']}")
        elif process.get("problem") and process["state"] not in ("running", "off"):
            found.append(f"{name}: its process is started again ({process['problem']})")
    return found


def coming_up(parts: Mapping[str, Any]) -> str:
    """The parts of the daemon that are about to come up."""
    return " ".join(name for name, part in parts.items() if part.get("state") in ("waiting", "starting"))


def _parts(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Health, services in numbers, what needs somebody's attention, and the parts of the daemon that are not up."""
    service = parts.get("service", {})
    units = ", ".join(f"{count} {state}" for state, count in service.get("units", {}).items())
    result = [("health", health(parts)), ("services", units or "-")]
    for state in ("failed", "unhealthy", "broken"):
        if names := service.get(state):
            result.append((state, " ".join(names)))
    result.append(("approvals", "; ".join(waiting(parts)) or "none"))
    if names := coming_up(parts):
        result.append(("coming up", names))
    return result + [("NOT RUNNING", one_line(text)) for text in not_running(parts)]


def _preseed(preseed: Mapping[str, Any]) -> str:
    """State and, of several mistakes, the first; `--json` has all."""
    mistakes = str(preseed.get("error", "")).splitlines()
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{preseed['state']} {mistakes[0]}{more}" if mistakes else str(preseed["state"])


def _data(data: Mapping[str, Any]) -> str:
    if data["persistent"] is None:
        return "-"
    if not data["persistent"]:
        return "NOT PERSISTENT: changes are lost at the next boot"
    return f"{size(data['free'])} free of {size(data['size'])} on {data['device']}"
