"""The status as people read it. No third-party imports: `mixctl status` must be quick on a slow device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(facts: Mapping[str, Any]) -> str:
    """The status for people: a label and a value per line."""
    return "\n".join(f"{label:<14}{value}" for label, value in rows(facts))


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line; what the device does not know is shown as "-"."""
    hardening, data, memory = facts["hardening"], facts["data"], facts["memory"]
    result = [
        ("host name", _or_dash(facts["hostname"])),
        ("version", _or_dash(facts["version"])),
        ("kernel", _or_dash(facts["kernel"])),
        ("slot", _or_dash(facts["slot"])),
        ("up", _duration(facts["uptime"])),
        ("load", " ".join(f"{value:.2f}" for value in facts["load"]) or "-"),
        ("memory", f"{_size(memory.get('available'))} free of {_size(memory.get('total'))}"),
        ("data", _data(data)),
    ]
    for row in facts["network"]:
        result.append((row["name"], f"{', '.join(row['addresses']) or 'no address'} ({row['state'] or '?'})"))
    result += [
        ("SSH host key", _or_dash(facts["ssh_fingerprint"])),
        ("root", _or_dash(hardening["verity"]) if hardening["verity"] else "not protected by verity"),
        ("lockdown", _or_dash(hardening["lockdown"])),
        ("watchdog", _or_dash(hardening["watchdog"])),
    ]
    result += _parts(facts.get("parts", {}))
    if hardening["sysctl_refused"]:
        result.append(("refused", " ".join(hardening["sysctl_refused"])))
    if facts["preseed"]:
        result.append(("preseed", _preseed(facts["preseed"])))
    return result


def _parts(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Services in numbers, what needs somebody's attention, and the parts of the daemon that are not up."""
    result = []
    service = parts.get("service", {})
    if units := service.get("units"):
        result.append(("services", ", ".join(f"{count} {state}" for state, count in units.items())))
    for state in ("failed", "unhealthy", "broken"):
        if names := service.get(state):
            result.append((state, " ".join(names)))
    if health := parts.get("metrics", {}).get("health"):
        result.append(("health", str(health)))
    approvals = [part["approvals"] for part in parts.values() if isinstance(part.get("approvals"), int)]
    if approvals:
        result.append(("approvals", f"{sum(approvals)} pending"))
    for name, part in parts.items():
        if part["state"] == "failed":
            result.append((f"{name}!", f"failed: {part['error']}"))
        elif part["state"] in ("waiting", "starting"):
            result.append((name, part["state"]))
    return result


def _preseed(preseed: Mapping[str, Any]) -> str:
    """State and, of several mistakes, the first; `--json` has all."""
    mistakes = str(preseed.get("error", "")).splitlines()
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{preseed['state']} {mistakes[0]}{more}" if mistakes else str(preseed["state"])


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _data(data: Mapping[str, Any]) -> str:
    if not data["persistent"]:
        return "NOT PERSISTENT: changes are lost at the next boot"
    return f"{_size(data['free'])} free of {_size(data['size'])} on {data['device']}"


def _size(count: int | None) -> str:
    return "-" if count is None else f"{count / (1 << 30):.1f} GiB" if count >> 30 else f"{count >> 20} MiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours:02}:{minutes:02}:{rest:02}"
