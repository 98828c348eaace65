"""Whether the kernel routes at all: switched on only behind rules that say what may pass, off when nothing needs it.

IPv6: a router ignores router advertisements unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst), and this
device may still learn its own way out from them. Only what this module switched on is switched off again.
"""

from __future__ import annotations

from pathlib import Path

from daemon.linux.log import log
from daemon.parts.firewall.policy import Policy

_SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def needed(policy: Policy) -> set[int]:
    """The IP versions that are routed: both between zones, else those of the port forwards."""
    if policy.config.nat:
        return {4, 6}
    return {6 if ":" in forward.to else 4 for forward in policy.config.forwards.values()}


def switch(policy: Policy, run: Path, root: Path = Path("/proc/sys/net")) -> None:
    """Make the kernel route what the policy needs; to be called when its rules are in force. Failures are logged: then
    packets are not routed, which is the safe side."""
    wanted = needed(policy)
    for version, name in _SWITCHES.items():
        mark = run / f"firewall-forwards-{version}"
        path = root / name
        try:
            if version in wanted and path.read_text().strip() == "0":
                mark.touch()
                if version == 6:
                    _keep_learning(root)
                path.write_text("1\n")
            elif version not in wanted and mark.exists():
                path.write_text("0\n")
                mark.unlink()
        except OSError as error:
            log("warning", f"firewall: {path}: {error.strerror}")


def _keep_learning(root: Path) -> None:
    for path in (root / "ipv6/conf").glob("*/accept_ra"):
        if path.read_text().strip() == "1":
            path.write_text("2\n")
