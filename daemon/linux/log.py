"""Logging to the system's syslog, or to stderr while there is none. Small on purpose: no import of `logging`."""

from __future__ import annotations

import os
import socket
import sys

SYSLOG = "/dev/log"
_FACILITY = 3 << 3  # daemon (RFC 3164)
_LEVELS = {"err": 3, "warning": 4, "notice": 5, "info": 6}


def log(level: str, text: str) -> None:
    """Write one line. `level` is err, warning, notice or info; control characters are escaped."""
    line = text.encode("unicode_escape").decode("ascii")[:900]
    message = f"<{_FACILITY | _LEVELS[level]}>mixosd[{os.getpid()}]: {line}".encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto(message, SYSLOG)
    except OSError:
        # Early in the boot, or syslog is being restarted.
        sys.stderr.write(f"mixosd: {line}\n")
