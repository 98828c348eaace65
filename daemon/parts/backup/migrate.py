"""A restore that version 0.1 was interrupted in is carried out, or taken back, as its own journal says."""

from __future__ import annotations

import json
import shutil

from common.errors import MixosError
from common.files import sync_folder, write_atomically
from daemon.core.change import files
from daemon.core.part import Context
from daemon.linux.log import log


def migrate(context: Context) -> str | None:
    """ "finished", "undone", or None where nothing was interrupted. Whatever happens meanwhile, it can be repeated."""
    trees, journal = files.Trees.of(context), context.state / "backup" / "journal.json"
    outcome = None
    try:
        data = json.loads(journal.read_bytes())
        renames = files.from_document(data)
        if data["state"] == "doing":
            try:
                files.do(renames)
                outcome = "finished"
            except OSError:
                write_atomically(journal, json.dumps({**data, "state": "undoing"}).encode(), 0o600)
        if outcome is None:
            files.undo(renames)
            outcome = "undone"
        journal.unlink()
        sync_folder(journal.parent)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, RecursionError, MixosError) as error:
        log("err", f"backup: {journal} is damaged: {error}")
        journal.rename(journal.with_name("journal.json.damaged"))
    for folder in (trees.etc / ".mixos-restore", trees.lib / ".mixos-restore"):
        shutil.rmtree(folder, ignore_errors=True)
    return outcome
