"""Which methods put the files of /etc/mixos in force after they were written, undone or restored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

# Where a path below /etc/mixos begins like this → the method that reads it again. Profiles are read at each use.
METHODS: Mapping[str, str] = MappingProxyType(
    {
        "firewall.toml": "firewall.apply",
        "lists/": "firewall.apply",
        "proxy.": "proxy.apply",
        "network.toml": "net.apply",
        "vpn.toml": "vpn.apply",
        "units/": "service.reload",
        "enabled.toml": "service.reload",
        "metrics.toml": "metrics.reload",
    }
)


def methods_for(files: Iterable[str]) -> list[str]:
    """The methods that put these paths in force, in the order of the table."""
    found = tuple(files)
    wanted = (method for start, method in METHODS.items() if any(path.startswith(start) for path in found))
    return list(dict.fromkeys(wanted))
