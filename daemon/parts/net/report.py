"""What clients are shown of interfaces: rows for a table, and everything about one."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from daemon.linux.rtnl import Link
from daemon.parts.net.netfile import NetworkFile
from daemon.parts.net.plan import Seen, managed

if TYPE_CHECKING:
    from daemon.parts.net.answers import Actual, Interface, Shown


def rows(seen: Seen, config: NetworkFile, claimed: Collection[str]) -> list[Interface]:
    """One object for each interface but the loopback, by number."""
    links = sorted(seen.links.values(), key=lambda link: link.index)
    return [_row(link, seen, config, claimed) for link in links if link.name != "lo"]


def _row(link: Link, seen: Seen, config: NetworkFile, claimed: Collection[str]) -> Interface:
    entry = managed(config).get(link.name)
    return {
        "name": link.name,
        "kind": link.kind or "hardware",
        # a tunnel has no carrier: the kernel says "unknown" while it is up
        "state": "up" if link.up and link.state == "unknown" else link.state,
        "by": "network.toml" if entry else "daemon" if link.name in claimed or link.alias else "settings",
        "mode": entry.mode if entry else None,
        "mac": link.mac,
        "mtu": link.mtu,
        "addresses": [address.address for address in seen.addresses if address.index == link.index],
        "received": link.received,
        "sent": link.sent,
    }


def show(name: str, seen: Seen, config: NetworkFile) -> Shown:
    """`wanted` (null when the file does not name it), `actual` (null when it is not there) and its `routes`."""
    entry = managed(config).get(name)
    link = seen.links.get(name)
    by_index = {other.index: other.name for other in seen.links.values()}
    actual: Actual | None = None
    if link is not None:
        actual = {
            **_row(link, seen, config, ()),
            "bridge": by_index.get(link.master),
            "parent": by_index.get(link.parent) if link.vlan else None,
            "vlan": link.vlan or None,
            "ports": sorted(other.name for other in seen.links.values() if other.master == link.index),
        }
    return {
        "name": name,
        "wanted": entry.model_dump(mode="json", by_alias=True, exclude_defaults=True) if entry else None,
        "actual": actual,
        "routes": [
            {"to": route.to, "via": route.via or None, "metric": route.metric, "table": route.table}
            for route in seen.routes
            if route.interface == name
        ],
    }
