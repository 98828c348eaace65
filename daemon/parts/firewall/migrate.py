"""What version 0.1 kept in STATE/firewall is handed to `daemon.core.change`, once.

good.json: the last good source; pending.json: a change on trial, which a new version ends since it came with a reboot;
committed.json: a confirmed one whose files may not be written yet; refused: the digest of a source that was undone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import write_atomically
from daemon.core.change.applier import View
from daemon.core.part import Context
from daemon.linux.log import log
from daemon.parts.firewall.policy import FILE, LISTS, Source, read_source


def migrate(context: Context) -> None:
    """Nothing without that folder. It goes last, so that a cut in the middle begins again."""
    folder = context.state / "firewall"
    if not folder.is_dir():
        return
    memory, view = context.changes.memory, View(context.changes.places)
    committed = _source(_read(folder / "committed.json").get("source"))
    for name, data in committed.items():
        path = context.changes.places.place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    good = committed or _source(_read(folder / "good.json"))
    if good and memory.good("firewall") is None:
        memory.keep("firewall", good)
    try:
        now = read_source(view)
        pending = _source(_read(folder / "pending.json").get("source"))
        digest = (folder / "refused").read_text() if (folder / "refused").exists() else ""
        if _contents(now) == pending or _digest(now) == digest:
            memory.refuse("firewall", {name: view.read(name) for name in _contents(now)})
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        log("warning", f"firewall: {error}")
    shutil.rmtree(folder)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _source(data: object) -> dict[str, bytes]:
    """The contents of a source as it was kept; empty for none."""
    if not isinstance(data, dict) or not isinstance(data.get("text"), str) or not isinstance(data.get("lists"), dict):
        return {}
    lists = {str(name): text for name, text in data["lists"].items() if isinstance(text, str) and "/" not in str(name)}
    return _contents(Source(data["text"], lists))


def _contents(source: Source) -> dict[str, bytes]:
    return {FILE: source.text.encode(), **{LISTS + name: text.encode() for name, text in sorted(source.lists.items())}}


def _digest(source: Source) -> str:
    data = json.dumps({"text": source.text, "lists": dict(sorted(source.lists.items()))}).encode()
    return hashlib.sha256(data).hexdigest()
