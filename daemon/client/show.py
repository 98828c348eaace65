"""The status as people read it. No third-party imports: `mixctl status` must be quick on a slow device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.safe import one_line
from common.units import size


def table(facts: Mapping[str, Any]) -> str:
    """The status for people: a label and a value per line."""
    return "\n".join(f"{label:<14}{one_line(value, 1000)}" for label, value in rows(facts))


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line; what the device does not know is shown as "-"."""
    hardening, data, memory = facts["hardening"], facts["data"], facts["memory"]
    result = [
        ("host name", _or_dash(facts["hostname"])),
        ("version", _or_dash(facts["version"])),
        ("kernel", _or_dash(facts["kernel"])),
        ("slot", _or_dash(facts["slot"])),
        ("up", _duration(facts["uptime"])),
        *_parts(facts.get("parts", {})),
        ("load", " ".join(f"{value:.2f}" for value in facts["load"]) or "-"),
        ("memory", f"{size(memory.get('available'))} free of {size(memory.get('total'))}"),
        ("data", _data(data)),
    ]
    for row in facts["network"]:
        result.append((row["name"], f"{', '.join(row['addresses']) or 'no address'} ({row['state'] or '?'})"))
    result += [
        ("SSH host key", _or_dash(facts["ssh_fingerprint"])),
        ("root", _or_dash(hardening["verity"]) if hardening["verity"] else "not protected by verity"),
        ("lockdown", _or_dash(hardening["lockdown"])),
        ("AppArmor", f"{len(hardening['apparmor_loaded'])} profiles" if hardening["apparmor_loaded"] else "no profile"),
        ("watchdog", _or_dash(hardening["watchdog"])),
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
    if parts.get("firewall", {}).get("state") == "unconfirmed":
        found.append("a change of the firewall (mixctl firewall confirm)")
    if (seconds := parts.get("net", {}).get("confirm-seconds")) is not None:
        found.append(f"a change of the network, {seconds} s more (mixctl net confirm)")
    return found


def not_running(parts: Mapping[str, Any]) -> list[str]:
    """The parts of the daemon that have failed, with the reason."""
    down = {name: part for name, part in parts.items() if part.get("state") == "failed"}
    return [f"{name}: {part.get('error') or part['state']}" for name, part in down.items()]


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


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _data(data: Mapping[str, Any]) -> str:
    if data["persistent"] is None:
        return "-"
    if not data["persistent"]:
        return "NOT PERSISTENT: changes are lost at the next boot"
    return f"{size(data['free'])} free of {size(data['size'])} on {data['device']}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours:02}:{minutes:02}:{rest:02}"
