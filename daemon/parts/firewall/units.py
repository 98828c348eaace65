"""Rules for single units: what the processes of one cgroup may open connections to.

They stand in a table of their own, `inet mixos_units`, for two reasons. The JSON of libnftables has no words for
`socket cgroupv2 level` (nft 1.0.6 refuses the key, and its own output loses the level), so these are nft's language.
And the kernel wants the cgroup to exist when a rule is loaded and remembers its number: the rules follow the units'
lives, while the device's table is loaded once, before anything runs.

Values come from strict models only (addresses, ports, names of a fixed alphabet): nothing needs quoting but the path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from daemon.parts.firewall.lists import merge
from daemon.parts.firewall.model import Unit
from daemon.parts.firewall.policy import Policy

TABLE = "mixos_units"
CGROUPS = Path("/sys/fs/cgroup")  # where nft looks up the paths in rules


class Place(NamedTuple):
    """Where units' cgroups are: `folder` below /sys/fs/cgroup, `depth` of that folder in the cgroup v2 hierarchy."""

    folder: Path = Path("mixos")
    depth: int = 1


def present(policy: Policy, place: Place) -> list[str]:
    """The units with rules whose cgroup exists now."""
    return [name for name in policy.config.units if (CGROUPS / place.folder / name).is_dir()]


def text(policy: Policy, names: Sequence[str], place: Place) -> str:
    """What `nft -f -` takes to confine these units, and no other, in one go."""
    head = [f"add table inet {TABLE}", f"delete table inet {TABLE}"]
    if not names:
        return "\n".join(head) + "\n"
    lines = [*head, f"table inet {TABLE} {{"]
    for index, name in enumerate(names):
        lines += [f"chain unit-{index} {{", *_chain(policy, name, policy.config.units[name]), "}"]
    lines += ["chain output {", "type filter hook output priority 0; policy accept;"]
    lines += [f"{_socket(place, name)} goto unit-{index}" for index, name in enumerate(names)]
    return "\n".join([*lines, "}", "}"]) + "\n"


def probe(place: Place) -> str:
    """A text that only an nft and a kernel accept which can match sockets by cgroup."""
    return (
        f"table inet {TABLE}_probe {{ chain output {{ type filter hook output priority 0;\n"
        f'socket cgroupv2 level {max(1, place.depth)} "{place.folder}" accept;\n}}; }}\n'
    )


def _socket(place: Place, name: str) -> str:
    return f'socket cgroupv2 level {place.depth + 1} "{place.folder / name}"'


def _chain(policy: Policy, name: str, unit: Unit) -> Iterator[str]:
    yield "ct state established,related accept"
    if unit.loopback:
        yield 'oifname "lo" accept'
    hosts = list(_hosts(unit.to)) if unit.to else [""]
    for ports in _ports(policy, unit.outgoing):
        for host in hosts:
            yield f"{host}{ports}counter accept"
    yield f'limit rate 10/minute burst 10 packets log prefix "mixos unit {name[:64]}: "'
    yield "counter reject with icmpx type admin-prohibited"


def _hosts(networks: Sequence[str]) -> Iterator[str]:
    ranges = merge(networks)
    for family, protocol in ((4, "ip"), (6, "ip6")):
        values = list(ranges.texts(family))
        if values:
            yield f"{protocol} daddr {{ {', '.join(values)} }} "


def _ports(policy: Policy, services: Sequence[str]) -> Iterator[str]:
    if "any" in services:
        yield ""
        return
    found = sorted({ports for service in services for ports in policy.ports(service)})
    for ports in found:
        yield (
            f"{ports.protocol} dport {ports.first}-{ports.last} "
            if ports.last > ports.first
            else (f"{ports.protocol} dport {ports.first} ")
        )
