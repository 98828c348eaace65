"""What version 0.1 kept in STATE/net is handed to `daemon.core.change`, once.

applied.toml: what was confirmed last; trial.json: a text on trial, which a new version ends since it came with a
reboot, or the digest of one that was reverted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import Any

from daemon.core.part import Context
from daemon.parts.net.engine import FILE


def migrate(context: Context) -> None:
    """Nothing without that folder. It goes last, so that a cut in the middle begins again."""
    folder = context.state / "net"
    if not folder.is_dir():
        return
    memory, path = context.changes.memory, context.etc / "network.toml"
    now = path.read_bytes() if path.is_file() else None
    if (folder / "applied.toml").is_file() and memory.good("net") is None:
        memory.keep("net", {FILE: (folder / "applied.toml").read_bytes()})
    record = _read(folder / "trial.json") if (folder / "trial.json").is_file() else {}
    tried = str(record.get("text", "")).encode() if record.get("state") == "trial" else None
    refused = record.get("refused")
    if tried == (now or b"") or refused == hashlib.sha256(now or b"").hexdigest():
        memory.refuse("net", {FILE: now})
    shutil.rmtree(folder)


def _read(path: Any) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
