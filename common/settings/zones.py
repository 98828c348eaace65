"""Time zones without a tz database in the image: names, and their rules as POSIX TZ strings.

Only the rules in force now are kept, 16 kB instead of megabytes; times of past decades may print with today's rules.
"""

from __future__ import annotations

import functools


@functools.cache
def zones() -> dict[str, str]:
    """Zone name → POSIX TZ string."""
    from common.settings.zonedata import RULES

    return {name: rule for rule, names in RULES.items() for name in names.split()}


def tzif(rule: str) -> bytes:
    """A TZif file (RFC 8536) for /etc/localtime that holds nothing but the rule `rule`, in its footer.

    The footer counts after the last transition, and musl asks for one to be there: so the block of version 2 has one
    transition, to UTC at the beginning of 1900. The block of version 1 is never read and as small as it may be.
    """
    utc = bytes(6) + b"UTC\0"
    return (
        _header(0) + utc + _header(1) + (-2_208_988_800).to_bytes(8, signed=True) + b"\0" + utc + f"\n{rule}\n".encode()
    )


def _header(transitions: int) -> bytes:
    """Magic, version 2, reserved bytes, six counts: one time type with four characters of name."""
    return b"TZif2" + bytes(15) + b"".join(count.to_bytes(4) for count in (0, 0, 0, transitions, 1, 4))
