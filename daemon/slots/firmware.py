"""Whether the firmware of this machine starts a kernel image: its databases are asked, as they are now."""

from __future__ import annotations

from pathlib import Path

from common.efi import siglist

_VARIABLES = "sys/firmware/efi/efivars"


def refusal(image: bytes, root: Path) -> str | None:
    """Why it would not start it; None: it starts it, or Secure Boot is off. Raises OSError."""
    if _read(root, "SecureBoot", "PK") != b"\1":
        return None
    return siglist.refusal(image, _read(root, "db", "db"), _read(root, "dbx", "dbx"))


def _read(root: Path, name: str, like: str) -> bytes:
    """What a variable holds, nothing when it is not there. like: a database that has the same vendor."""
    try:
        data = (root / _VARIABLES / f"{name}-{siglist.VARIABLES[like]}").read_bytes()
    except FileNotFoundError:
        return b""
    return data[4:]  # behind four bytes of attributes
