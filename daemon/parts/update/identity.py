"""A random name of this device for channels: its place in waves, and when it asks, follow from it. Nobody is told.

It is made once, and anew by whoever resets the device; two devices that were made from one backup have two.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from common.files import read_regular, write_atomically

FILE = "identity"  # in the state of updates, which no backup holds


def identity(folder: Path) -> str:
    """32 hexadecimal digits. Raises OSError."""
    path = folder / FILE
    try:
        found = read_regular(path, 100).decode("ascii", "replace").strip()
    except FileNotFoundError:
        found = ""
    if re.fullmatch("[0-9a-f]{32}", found):
        return found
    made = secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, f"{made}\n".encode(), 0o600)
    return made
