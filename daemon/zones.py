"""Time zones without a tz database in the image: names, and their rules as POSIX TZ strings.

Only the rules in force now are kept, 16 kB instead of megabytes; times of past decades may print with today's rules.
"""

from __future__ import annotations

import functools


@functools.cache
def zones() -> dict[str, str]:
    """Zone name → POSIX TZ string."""
    from daemon.zonedata import RULES

    return {name: rule for rule, names in RULES.items() for name in names.split()}


def tzif(rule: str) -> bytes:
    """A TZif file (RFC 8536) that holds nothing but the rule `rule` in its footer; meant for /etc/localtime.

    Both data blocks have one time type, UTC, and no transition, so every reader takes the footer for all times.
    """
    counts = b"".join(count.to_bytes(4) for count in (0, 0, 0, 0, 1, 4))
    block = b"TZif2" + bytes(15) + counts + bytes(6) + b"UTC\0"
    return block + block + f"\n{rule}\n".encode()
